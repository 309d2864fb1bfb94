"""Looking at results: points, rows, axes, notes, links; a public page."""

from __future__ import annotations

import dataclasses
import re

import pytest
from playwright.sync_api import expect

from compression.catalogue import OFFLINE_MODEL
from tests.page.stage import GPTQ, Server, Visitor, address, no_sideways_scroll, says, shot, store_run, until

pytestmark = pytest.mark.browser


def test_points_rows_and_links_select(visit):
    page = visit()
    page.locator("#runs summary").click()
    # of the front's own protocol
    row = page.locator("#runs tbody tr", has_text="Wanda").filter(has_text="wiki").first
    row.locator("button").click()
    says(page, "#card h2", "Wanda")
    address(page, "run=")
    expect(row).to_have_attribute("aria-current", "true")
    page.locator("#front").scroll_into_view_if_needed()
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_selector("#front .mark[aria-pressed=true][data-id*=wanda]")
    # a point that lies apart from the others
    point = page.locator("#front .mark[data-id$='owq-3']").bounding_box()
    middle = point["x"] + point["width"] / 2, point["y"] + point["height"] / 2
    page.mouse.move(*middle)
    page.wait_for_selector("#front .hover:not([hidden])")
    page.mouse.click(*middle)
    address(page, "run=shipped-gates-owq-3")
    page.locator("#front .answer button").first.click()
    says(page, "#card h2", "SpQR, 4 bits")


def test_axes_can_be_chosen_and_missing_values_are_told(visit, server):
    store_run(
        server,
        id="timed",
        key="timed",
        metrics={"decode_tokens_per_second": 20.0, "baseline_decode_tokens_per_second": 30.0},
    )
    # of this machine; what others measured isn't drawn and isn't missing
    for name in ("untimed", "untimed-2"):
        store_run(server, id=name, key=name)
    page = visit()
    page.locator("#front details.axes summary").click()
    page.locator("#front details.axes select").first.select_option("decode_tokens_per_second")
    says(page, "#front", "have no value", "only runs of this machine")
    address(page, "x=decode_tokens_per_second")
    shot(page, "axes")
    for name in ("timed", "untimed", "untimed-2"):
        server.store.delete(name)


def test_a_result_with_notes_and_a_beaten_one(visit, server):
    note = {"code": "damping_raised", "facts": {"layer": "model.layers.3", "from": 0.01, "to": 0.1}}
    store_run(
        server, id="noted", key="noted", notes=[note], metrics={"perplexity_ratio": 3.0, "file_bytes": 2e8}
    )
    page = visit("?run=noted")
    says(page, "#card .notes", "damping was raised from 0.0100 to 0.100")
    says(page, "#card", "Another run is at least as small and as good")
    says(page, "#card .facts", "much worse")
    shot(page, "notes")
    server.store.delete("noted")


def test_times_of_another_machine_are_not_shown_as_this_ones(visit, server):
    timing = {
        "host": {"processor": "Some Other CPU", "threads": 64},
        "kernel": ["k"],
        "limit": {},
        "loop": "transformers",
    }
    store_run(
        server,
        id="far",
        key="far",
        environment={"processor": "Some Other CPU", "threads": 64},
        timings=[timing],
        metrics={"decode_tokens_per_second": 900.0, "baseline_decode_tokens_per_second": 1.0},
    )
    page = visit("?run=far")
    says(page, "#card", "timed on another machine (Some Other CPU)")
    says(page, "#card .facts", but=["faster"])
    server.store.delete("far")


def test_long_names_and_two_hundred_runs(visit, server):
    name = "an-owner-with-a-long-name/a-model-with-a-very-long-name-that-goes-on-and-on-instruct-v2.5"
    for i in range(200):
        spec = dataclasses.replace(GPTQ, model=name, seed=i)
        store_run(server, id=f"many-{i}", key=f"many-{i}", spec=spec, artifact="", created=float(i))
    try:
        for width in (1440, 390):
            page = visit(f"?model={name}&run=many-7", width=width)
            page.locator("#runs summary").click()
            expect(page.locator("#runs tbody tr").nth(200)).to_be_attached()
            no_sideways_scroll(page)
            shot(page, f"many-{width}")
        page.locator("#runs select").select_option(OFFLINE_MODEL)
        kept, own = "#runs tbody tr:visible", f'[data-model="{OFFLINE_MODEL}"]'
        expect(page.locator(f"{kept}:not({own})")).to_have_count(0)
        expect(page.locator(kept)).to_have_count(page.locator(f"#runs tbody tr{own}").count())
        page.locator("#runs [data-sort]").nth(3).click()
        expect(page.locator("#runs th[aria-sort]")).to_have_count(1)
    finally:
        for i in range(200):
            server.store.delete(f"many-{i}")


def test_a_link_with_unknown_things_says_so_and_shows_the_default(visit):
    page = visit("?model=nosuch&method=nosuch")
    expect(page.locator("#card .error h3").first).to_have_text(re.compile(r"nosuch\.$"))
    expect(page.locator("#card .error")).to_have_count(2)
    expect(page.locator("#model")).to_have_value(OFFLINE_MODEL)
    page = visit("?method=gptq&bits=99")
    says(page, "#card", "Bits to 99", "2 – 8")
    shot(page, "bad-link")


def test_a_model_without_results_invites(visit):
    page = visit("?model=gpt2")
    says(page, "#front", "Nothing is measured for this model yet")
    expect(page.locator("#controls .go")).to_have_text("Compress and measure")
    shot(page, "nothing-stored")


def test_a_store_that_cannot_be_written_says_so(browser, tmp_path):
    (tmp_path / "home").write_text("a file where the folder should be")
    server = Server(tmp_path / "home")
    visitor = Visitor(browser, server)
    page = visitor.open()
    says(page, "#top .warn", "new models and results are kept in a temporary folder until the app ends")
    shot(page, "read-only")
    visitor.contexts[0].close()
    server.demo.close()


def test_a_public_page_offers_no_paths(browser, tmp_path):
    server = Server(tmp_path, public=True)
    visitor = Visitor(browser, server)
    page = visitor.open()
    page.locator("#controls details[data-k=settings] summary").click()
    page.wait_for_selector("select#s-text")
    calibrations = page.locator("select#s-calibration option").all_inner_texts()
    assert "dialogue" in calibrations
    expect(page.locator("#s-text option")).to_have_text([name for name in calibrations if name != "dialogue"])
    page.locator("#model").select_option("")
    expect(page.locator("#custom")).to_have_attribute("placeholder", "owner/name")
    visitor.contexts[0].close()
    server.demo.close()


def test_a_result_file_leaves_and_enters_by_the_page(visit, server, tmp_path):
    store_run(server, id="mine", key="mine", metrics={"perplexity_ratio": 1.021})
    page = visit("?run=mine")
    with page.expect_download() as started:
        page.locator("#card [data-act=record]").click()
    file = tmp_path / started.value.suggested_filename
    started.value.save_as(file)
    page.locator("#card [data-act=delete]").click()
    page.wait_for_selector("#card [data-act=delete].sure")  # the first click asks
    assert server.store.get_id("mine")
    page.locator("#card [data-act=delete]").click()
    until(page, lambda: server.store.get_id("mine") is None)
    page.locator("#runs summary").click()
    page.locator("#add-results").set_input_files(str(file))
    until(page, lambda: server.store.get_id("mine"))
    address(page, "run=mine")
    (tmp_path / "odd.json").write_text("{}", "utf-8")
    page.locator("#add-results").set_input_files(str(tmp_path / "odd.json"))
    page.wait_for_selector("#runs .error")
    server.store.delete("mine")
