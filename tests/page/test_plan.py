"""The plan on the page: a newcomer's question is answered without a run, and its answer leads on."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from compression.catalogue import OFFLINE_MODEL
from tests.page.stage import address, no_sideways_scroll, says, shot

pytestmark = pytest.mark.browser


def verdict(page, *words, but=()):
    """Wait until the newest answer says these words."""
    says(page, "#plan .plan-answer:not([aria-busy]) .verdict", *words, but=but)


def test_a_7b_on_4_gb_is_answered(visit, server):
    page = visit("?tab=plan", drawn=False)
    page.wait_for_selector("#plan table")
    page.locator("#plan-model").select_option("qwen2.5-7b-instruct")
    page.locator("#plan-machine").select_option("own")
    page.locator("#plan-memory").fill("4")
    page.locator("#plan-context").fill("2048")
    verdict(page, "4.0", "Qwen2.5 7B Instruct")
    page.wait_for_selector("#plan tr.out")
    assert server.runner.submitted == [], "no run is needed"
    page.locator("#plan .others button").first.click()
    verdict(page, "fits", but=["7B"])
    shot(page, "plan")


def test_a_way_becomes_the_knobs(visit):
    page = visit("?tab=plan", drawn=False)
    page.locator("#plan-model").select_option(OFFLINE_MODEL)
    verdict(page, "SmolLM2 135M")
    page.get_by_role("button", name="Choose AWQ, 3 bits, group 128 under Explore").click()
    expect(page.locator("body")).to_have_attribute("data-tab", "explore")
    expect(page.locator("#knob-0")).to_have_value("3")
    address(page, "method=awq")


def test_a_machine_names_its_sources(visit):
    page = visit("?tab=plan", drawn=False)
    page.locator("#plan-machine").select_option("t4")
    source = page.get_by_role("link", name="NVIDIA T4 product brief")
    expect(source).to_have_attribute("href", re.compile("^https://www.nvidia.com/"))
    says(page, "#plan .sources", "NVIDIA T4, 16 GB reads 320 GB a second")
    page.locator("#plan-machine").select_option("m4")
    for link in ("Apple's new Mac mini", "Apple introduces M4 chip"):  # its memory and its bandwidth
        expect(page.locator("#plan .sources a").filter(has_text=link)).to_have_count(1)
    page.locator("#plan-machine").select_option("own")
    expect(page.locator("#plan .sources")).to_have_count(0)


def test_a_model_by_its_sizes(visit):
    page = visit("?tab=plan", drawn=False)
    page.locator("#plan-model").select_option("own")
    page.locator("#plan-layers").fill("16")
    verdict(page, "his model")
    expect(page.locator("#plan [data-use]")).to_have_count(0)  # there is nothing to compress
    page.locator("#plan-layers").fill("0")  # not asked of the server
    page.wait_for_selector("#plan-layers:invalid")


def test_an_unknown_hub_model_says_what_to_do(visit):
    page = visit("?tab=plan", drawn=False)
    page.wait_for_selector("#plan table")
    page.locator("#plan-hub").fill("someone/some-model")
    page.locator("#plan-hub").press("Tab")
    page.wait_for_selector("#plan .plan-answer .error")
    page.locator("#plan .plan-answer .error button").click()
    expect(page.locator("#plan .plan-answer .error")).to_have_count(0)


@pytest.mark.parametrize("width", [390, 1440])
def test_it_reads_at_every_width_in_both_languages(visit, width):
    for lang in ("en", "zh-Hant"):
        page = visit(f"?tab=plan&lang={lang}", width=width, drawn=False)
        page.wait_for_selector("#plan table")
        no_sideways_scroll(page)
        shot(page, f"plan-{width}-{lang}")
