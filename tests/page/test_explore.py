"""The first screen and the knobs, in a real browser."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from compression import texts
from tests.page.stage import address, becomes, no_sideways_scroll, says, shot, until

pytestmark = pytest.mark.browser
MEASURE = "Compress and measure"


def test_first_visit_understood_in_ten_seconds(visit):
    page = visit()
    shot(page, "first")
    expect(page.locator("h2#headline")).to_have_text(
        re.compile(
            r"^SmolLM2 135M Instruct in \d+\sMB stays about as good: .+\(269\sMB\), .+ file \(98\sMB\)\.$"
        )
    )
    says(page, "#top .scale", "photos")
    says(page, "#top .purpose", "see what you pay")
    labels = page.locator("#front svg text")
    expect(labels.filter(has_text=re.compile("^original$"))).to_have_count(1)
    for word in ("bits", "better", "smaller", "broken"):
        expect(labels.filter(has_text=word)).not_to_have_count(0)
    expect(page.locator("#controls .go")).to_have_text("Show result (already measured)")
    says(page, "#front .answer", "is the smallest within 5 % of the original")
    # a shipped point has no model on this disk: it offers to make it
    says(page, "#card button.primary", "then chat")
    for place in ("#card", "#front", "#controls"):  # its numbers never stand without this
        says(page, place, "already rounded to 4 bits (Q4_1)")
    says(page, "#card", "98 MB")
    page.wait_for_selector("#runs summary")
    expect(page.locator("details[open]")).to_have_count(0)  # axes, table and Advanced start folded
    no_sideways_scroll(page)


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("language", ["en", "zh-TW"])
def test_every_look(visit, width, dark, language):
    page = visit(width=width, dark=dark, language=language)
    shot(page, f"look-{width}-{'dark' if dark else 'light'}-{language}")
    no_sideways_scroll(page)
    ground = expect(page.locator(".gradio-container").first)
    (ground.to_have_css if dark else ground.not_to_have_css)("background-color", "rgb(18, 18, 20)")
    says(page, "#headline", "縮小到" if language == "zh-TW" else "stays about as good")
    if width == 390:

        def box(selector):
            return page.locator(selector).bounding_box()

        parts = ("#headline", "#front", "#controls", "#card")
        until(page, lambda: (tops := [box(part)["y"] for part in parts]) == sorted(tops))
        # estimate and button stick to the bottom
        until(page, lambda: (bar := box("#controls .runbar"))["y"] + bar["height"] <= 901)


def test_language_switch_keeps_everything_and_the_link_carries_it(visit):
    page = visit()
    page.locator("#knob-0").fill("6")
    page.locator(".lang[lang=zh-Hant]").click()
    says(page, "#headline", "縮小")
    expect(page.locator("#knob-0")).to_have_value("6")
    expect(page.locator("html")).to_have_attribute("lang", "zh-Hant")
    address(page, "lang=zh-Hant", "bits=6")
    shot(page, "chinese")
    page.reload()
    says(page, "#headline", "縮小")
    expect(page.locator("#knob-0")).to_have_value("6")


def test_the_ghost_follows_the_knob_and_the_estimate_comes_after(visit):
    page = visit()
    page.locator("#knob-0").fill("6")
    page.wait_for_function("document.querySelector('#front .plot')?.dataset.ghost > 1.1e8")
    says(page, "#front .ghost-words", "quality unknown until measured")
    says(page, "#controls .more", "6.3 bits")
    expect(page.locator("#controls .go")).to_have_text(MEASURE)
    shot(page, "ghost")


def test_families_methods_and_chains(visit):
    page = visit("?tokens=8192")  # a protocol in which nothing is stored
    page.locator("#family-pruning").check()
    expect(page.locator("#controls .knob .big").first).to_have_text("50 %")
    page.locator("#controls .add").click()
    expect(page.locator("#then")).to_have_value("gptq")
    says(page, "#controls .go", MEASURE)
    page.locator("#controls details[data-k=advanced] summary").click()
    page.locator("#p-wanda-pattern").select_option("2:4")
    says(page, "#controls .knob.off", "has no effect")
    address(page, "pattern=2%3A4", "then=gptq")
    shot(page, "chain")


def test_the_caches_bits_are_a_setting_of_the_run(visit, server):
    page = visit("?method=none&tokens=8192")  # a protocol in which nothing is stored
    page.locator("#controls details[data-k=settings] summary").click()
    expect(page.locator("#s-cache_bits")).to_have_value("16")
    address(page, but=["cache_bits"])
    page.locator("#s-cache_bits").select_option("8")
    says(page, "#controls .go", MEASURE)
    says(page, "#controls .more", "12 KB of cache per token")
    address(page, "cache_bits=8")
    page.locator("#controls .go").click()
    says(page, "#controls .progress .now", "cache in 8 bits")
    asked = [(spec.cache_bits, spec.is_original) for spec in server.runner.submitted]
    assert asked == [(8, False)]
    page = visit("?method=gptq&cache_bits=4")
    expect(page.locator("#s-cache_bits")).to_have_value("4")
    shot(page, "cache-bits")


def test_a_tile_says_its_familys_best_and_makes_the_family_stand_out(visit):
    page = visit()
    expect(page.locator("#controls .best-of:not(:empty)")).to_have_count(4)
    says(page, "#controls .tile:has(#family-quantization) .best-of", "best: ")
    expect(page.locator("#front .front-svg.lit")).to_have_count(0)  # a first visit sees all four alike
    page.locator("#family-low_rank").check()
    page.wait_for_selector("#front .front-svg.lit .mark.low_rank.on")
    expect(page.locator("#front .mark.on:not(.low_rank)")).to_have_count(0)
    address(page, "family=low_rank")
    page.reload()
    page.wait_for_selector("#front .front-svg.lit .mark.low_rank.on")
    page.locator("#front .filters button").click()
    page.wait_for_selector("#front .front-svg:not(.lit)")
    address(page, but=["family="])


def test_only_what_other_programs_load_stays_in_the_address(visit):
    page = visit()
    spqr, gptq = (page.locator(f"#front .mark[data-id$={name}-4]") for name in ("spqr", "gptq"))
    expect(spqr).to_have_count(1)
    page.locator("#deploy").check()
    expect(spqr).to_have_count(0)
    expect(gptq).to_have_count(1)
    address(page, "deploy=yes")
    expect(page.locator("#card h2")).not_to_contain_text("SpQR")  # the card is of a run that is drawn
    page.reload()
    expect(gptq).to_have_count(1)
    expect(spqr).to_have_count(0)
    expect(page.locator("#deploy")).to_be_checked()


def test_points_by_keyboard_and_the_table_is_their_twin(visit):
    """One stop of Tab, after the controls; arrows move, Enter opens."""
    page = visit()
    page.wait_for_function("""() => {
      const stops = [...document.querySelectorAll('button, input, select, [tabindex="0"]')];
      const at = selector => stops.indexOf(document.querySelector(selector));
      return document.querySelectorAll('#front .mark[tabindex="0"]').length === 1
        && at('#knob-0') >= 0 && at('#controls .go') > at('#knob-0') && at('#front .mark[tabindex="0"]') > at('#controls .go');
    }""")
    page.locator("#front .mark[tabindex='0']").focus()
    page.keyboard.press("Home")
    held = page.locator("#front .mark:focus")
    first = held.get_attribute("data-id")
    page.keyboard.press("ArrowRight")
    expect(held).not_to_have_attribute("data-id", first)
    second = held.get_attribute("data-id")
    expect(held).to_have_attribute("aria-label", re.compile("perplexity"))
    expect(page.locator("#front .hover")).to_be_visible()
    page.keyboard.press("Enter")
    page.wait_for_function("id => new URLSearchParams(location.search).get('run') === id", arg=second)
    page.wait_for_selector(f"#front .mark[data-id='{second}'][aria-pressed=true]")
    expect(held).to_have_attribute("data-id", second)  # the focus stays
    page.get_by_role("button", name="Show as a table").click()
    page.wait_for_selector("#runs details[open] table")


def test_a_run_of_another_set_says_that_the_figure_changed_and_leads_back(visit):
    page = visit()
    page.wait_for_selector("#front .mark[data-id=shipped-gates-gptq-4]")
    best = page.locator("#front .answer button").first
    name = best.inner_text()
    page.locator("#runs summary").click()
    page.locator("#runs tbody tr[data-run=shipped-domain-nf4-double] button").click()
    says(page, "#front .notice", "now shows other runs: Unicode")
    expect(best).not_to_have_text(name)
    page.locator("#front .notice button").click()
    page.wait_for_selector("#front .mark[data-id=shipped-gates-gptq-4]")
    expect(page.locator("#front .notice")).to_be_hidden()
    expect(best).to_have_text(name)
    address(page, but=["run="])


def test_on_an_axis_of_times_the_chosen_run_can_be_measured_here(visit, server):
    page = visit("?x=decode_speedup&run=shipped-gates-gptq-4")
    says(page, "#front", "Speed: timed on", "each model beside the original", "writing speed ÷ original")
    page.get_by_role("button", name="Measure GPTQ 4 bits on this machine").click()
    until(page, lambda: server.runner.submitted)
    assert server.runner.submitted[-1].recipe[0][0] == "gptq"


@pytest.mark.parametrize("kind, head", [("SVG", b"<svg"), ("PNG", b"\x89PNG")])
def test_the_picture_is_saved_whole(visit, kind, head):
    page = visit()
    page.wait_for_selector("#front .name")
    with page.expect_download() as waiting:
        page.get_by_role("button", name=kind).click()
    saved = Path(waiting.value.path()).read_bytes()
    assert saved.startswith(head) and waiting.value.suggested_filename.endswith(kind.lower())
    if kind == "SVG":
        drawn = saved.decode()
        assert "SpQR 4 bits" in drawn and "var(--" not in drawn and "tabindex" not in drawn


@pytest.mark.parametrize("width", [390, 1024, 1920])
def test_the_figure_fits_at_every_width_and_the_page_stands_in_the_middle(visit, width):
    page = visit(width=width)
    no_sideways_scroll(page)
    page.wait_for_selector("#front .name")
    page.wait_for_function("""() => {
      const box = document.querySelector('#top .panel').getBoundingClientRect();
      return Math.abs((box.left + box.right) / 2 - innerWidth / 2) < 10;
    }""")
    page.wait_for_function("""() => {
      const plot = document.querySelector('#front .plot').getBoundingClientRect();
      const boxes = [...document.querySelectorAll('#front .mark, #front svg text')].map(e => e.getBoundingClientRect());
      return boxes.every(b => b.left > plot.left - 15 && b.right < plot.right + 15 && b.bottom < plot.bottom + 2);
    }""")
    page.wait_for_function("""() => {
      const boxes = [...document.querySelectorAll('#front .name')].map(e => e.getBoundingClientRect());
      const meet = (p, q) => p.left < q.right && q.left < p.right && p.top + 3 < q.bottom && q.top + 3 < p.bottom;
      return boxes.length > (innerWidth < 520 ? 1 : 3) && !boxes.some((p, i) => boxes.some((q, k) => k > i && meet(p, q)));
    }""")
    # a phone has room for few names: these two always stand
    expect(page.locator("#front .name").filter(has_text=re.compile("^original$"))).to_have_count(1)
    expect(page.locator("#front .name.strong")).to_have_count(1)
    shot(page, f"width-{width}")


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_jumps_when_the_figure_arrives(visit, width):
    """The sum of layout shifts, as browsers count it."""
    page = visit(width=width)
    shift = page.evaluate("""() => new Promise(done => {
      const sum = list => list.getEntries().filter(e => !e.hadRecentInput).reduce((all, e) => all + e.value, 0);
      new PerformanceObserver(list => done(sum(list))).observe({type: 'layout-shift', buffered: true});
      setTimeout(() => done(0), 1500);
    })""")
    assert shift < 0.02


def test_values_survive_a_change_of_method(visit):
    page = visit()
    page.locator("#knob-0").fill("3")
    page.locator("#family-low_rank").check()
    page.locator("#family-quantization").check()
    expect(page.locator("#method")).to_have_value("gptq")
    expect(page.locator("#knob-0")).to_have_value("3")


def test_too_big_says_so_and_disables_the_button(visit, server):
    real = server.estimate
    server.estimate = lambda spec: dataclasses.replace(
        real(spec), fits=False, reason="memory", peak_bytes=30 * 10**9, available_bytes=10**9
    )
    try:
        page = visit("?bits=6")
        says(page, "#controls .warn", "needs about 30 GB, and 1.0 GB are free")
        expect(page.locator("#controls .go")).to_be_disabled()
        shot(page, "too-big")
    finally:
        server.estimate = real


@pytest.mark.parametrize(
    "query, said", [("?text=nosuch", "No text is called nosuch"), ("?tokens=100", "can't be 100")]
)
def test_bad_settings_are_told_before_the_run(visit, query, said, server):
    page = visit(query)
    if said.startswith("can't"):
        says(page, "#controls .error h3", said)
    else:
        server.runner.answer = {
            "status": "failed",
            "error": {"code": "unknown_text", "message": "m", "facts": {"name": "nosuch"}},
        }
        page.locator("#controls .go").click()
        says(page, "#controls .trouble .error", said)
        page.locator("#controls .trouble [data-act=builtin]").click()
        expect(page.locator("#s-text")).to_have_value("builtin")


def test_a_student_is_chosen_by_its_layers_or_by_its_name(visit):
    page = visit()
    page.locator("#family-distillation").check()
    page.locator("#method").select_option("gkd")
    expect(page.locator("#controls .big")).to_have_text("65 %")
    says(page, "#controls .knob", "Layers kept")
    page.locator("#controls details[data-k=advanced] summary").click()
    box = page.get_by_label("Another student")
    expect(box).to_have_attribute("type", "text")
    box.fill(" smollm2-135m ")
    box.press("Tab")
    page.wait_for_selector("#controls .knob.off")
    address(page, "student=smollm2-135m")
    expect(page.locator("#knob-0")).to_be_disabled()
    box.fill("")
    box.press("Tab")
    page.wait_for_selector("#controls .knob:not(.off)")


def test_a_training_has_a_short_and_a_full_budget(visit):
    page = visit()
    budget, knob = page.locator("#budget-0"), page.locator("#knob-0")
    expect(budget).to_have_count(0)  # rounding has none
    page.locator("#method").select_option("qlora")
    expect(budget).to_have_value("short")
    expect(budget).to_contain_text("32.8K")
    budget.select_option("full")
    expect(knob).to_have_value("64")
    expect(budget).to_have_value("full")
    address(page, "train_tokens=15840000")
    knob.fill("16")
    page.locator("#controls details[data-k=advanced] summary").click()
    box = page.locator("#p-qlora-train_tokens")
    expect(box).to_have_value("15840000")
    expect(budget).to_have_value("full")
    shot(page, "budget")
    box.fill("50000")
    box.press("Tab")
    expect(budget).to_have_value("own")
    page.reload()
    expect(budget).to_have_value("own")
    budget.select_option("short")
    expect(knob).to_have_value("8")
    address(page, but=["train_tokens"])


def test_without_the_hub_new_runs_read_the_built_in_text_and_the_page_says_so(visit, server, monkeypatch):
    monkeypatch.setattr(texts, "refused", lambda name: name == "wikitext-2")
    page = visit()
    page.locator("#knob-0").fill("6")  # at 4 bits the answer is stored
    says(page, "#controls .told", "WikiText-2 can't be fetched here")
    expect(page.locator("#controls .go")).to_be_enabled()
    address(page, "text=builtin")
    page.locator("#controls .go").click()

    def asked():
        return [(s.text, s.calibration, s.tokens, s.table_bits) for s in server.runner.submitted]

    becomes(page, asked, [("builtin", "builtin", 8_192, 16)])


def test_a_run_that_is_asked_for_before_the_text_was_refused_reads_the_built_in_text(
    visit, server, monkeypatch
):
    """The page asks for the estimate while the hub hasn't answered yet."""
    said = []
    monkeypatch.setattr(texts, "wait_for_fetch", lambda seconds: said.append(seconds) or True)
    monkeypatch.setattr(texts, "refused", lambda name: bool(said) and name == "wikitext-2")
    page = visit()
    page.locator("#knob-0").fill("6")
    says(page, "#controls .go", "Compress")
    expect(page.locator("#controls .told")).to_have_count(0)
    page.locator("#controls .go").click()
    becomes(page, lambda: [spec.text for spec in server.runner.submitted], ["builtin"])
    address(page, "text=builtin")
