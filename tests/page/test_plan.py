"""The plan on the page: a newcomer's question is answered without a run, and its answer leads on."""

from __future__ import annotations

import pytest

from compression.catalogue import OFFLINE_MODEL
from tests.page.stage import no_sideways_scroll, shot, text

pytestmark = pytest.mark.browser


def verdict(page) -> str:
    page.wait_for_selector("#plan .plan-answer:not([aria-busy]) .verdict")
    return text(page, "#plan .verdict")


def test_a_7b_on_4_gb_is_answered(visit, server):
    page = visit("?tab=plan", drawn=False)
    page.wait_for_selector("#plan table")
    page.locator("#plan-model").select_option("qwen2.5-7b-instruct")
    page.locator("#plan-machine").select_option("own")
    page.locator("#plan-memory").fill("4")
    page.locator("#plan-context").fill("2048")
    page.wait_for_function("document.querySelector('#plan .verdict').textContent.includes('4.0')")
    assert "Qwen2.5 7B Instruct" in verdict(page)
    page.wait_for_selector("#plan tr.out")
    assert server.runner.submitted == [], "no run is needed"
    page.locator("#plan .others button").first.click()
    page.wait_for_function("!document.querySelector('#plan .verdict').textContent.includes('7B')")
    assert "fits" in verdict(page)
    shot(page, "plan")


def test_a_way_becomes_the_knobs(visit):
    page = visit("?tab=plan", drawn=False)
    page.locator("#plan-model").select_option(OFFLINE_MODEL)
    page.wait_for_function("document.querySelector('#plan .verdict').textContent.includes('SmolLM2 135M')")
    page.get_by_role("button", name="Choose AWQ, 3 bits, group 128 under Explore").click()
    assert page.evaluate("document.body.dataset.tab") == "explore"
    assert page.locator("#knob-0").input_value() == "3" and "method=awq" in page.url


def test_a_model_by_its_sizes(visit):
    page = visit("?tab=plan", drawn=False)
    page.locator("#plan-model").select_option("own")
    page.locator("#plan-layers").fill("16")
    assert "this model" in verdict(page).lower()
    assert page.locator("#plan [data-use]").count() == 0, "there is nothing to compress"
    page.locator("#plan-layers").fill("0")  # not asked of the server
    assert page.locator("#plan-layers").evaluate("e => e.validity.valid") is False


def test_an_unknown_hub_model_says_what_to_do(visit):
    page = visit("?tab=plan", drawn=False)
    page.wait_for_selector("#plan table")
    page.locator("#plan-hub").fill("someone/some-model")
    page.locator("#plan-hub").press("Tab")
    page.wait_for_selector("#plan .plan-answer .error")
    page.locator("#plan .plan-answer .error button").click()
    assert page.locator("#plan .plan-answer .error").count() == 0


@pytest.mark.parametrize("width", [390, 1440])
def test_it_reads_at_every_width_in_both_languages(visit, width):
    for lang in ("en", "zh-Hant"):
        page = visit(f"?tab=plan&lang={lang}", width=width, drawn=False)
        page.wait_for_selector("#plan table")
        no_sideways_scroll(page)
        shot(page, f"plan-{width}-{lang}")
