"""The first screen and the knobs, in a real browser."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from compression import texts
from tests.page.stage import no_sideways_scroll, shot, text, until

pytestmark = pytest.mark.browser


def test_first_visit_understood_in_ten_seconds(visit):
    page = visit()
    shot(page, "first")
    assert re.fullmatch(
        r"SmolLM2 135M Instruct in \d+ MB stays about as good: .+ 16 bits \(269 MB\), .+ file \(98 MB\)\.",
        text(page, "h2#headline"),
    )
    assert "photos" in text(page, "#top .scale") and "see what you pay" in text(page, "#top .purpose")
    labels = page.locator("#front svg text").all_text_contents()
    assert (
        "original" in labels
        and any("bits" in x for x in labels)
        and any("better" in x for x in labels)
        and any("smaller" in x for x in labels)
    )
    assert text(page, "#controls .go") == "Show result (already measured)"
    assert "is the smallest within 5 % of the original" in text(page, "#front .answer")
    assert "then chat" in text(page, "#card button.primary"), (
        "a shipped point has no model on this disk: it offers to make it"
    )
    for place in ("#card", "#front", "#controls"):
        assert "already rounded to 4 bits (Q4_1)" in text(page, place), "its numbers never stand without this"
    assert "98 MB" in text(page, "#card")
    assert page.locator("details[open]").count() == 0, "axes, table and Advanced start folded"
    no_sideways_scroll(page)


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("language", ["en", "zh-TW"])
def test_every_look(visit, width, dark, language):
    page = visit(width=width, dark=dark, language=language)
    shot(page, f"look-{width}-{'dark' if dark else 'light'}-{language}")
    no_sideways_scroll(page)
    ground = page.evaluate("getComputedStyle(document.querySelector('.gradio-container')).backgroundColor")
    assert (ground == "rgb(18, 18, 20)") == dark
    assert ("縮小到" in text(page, "#headline")) == (language == "zh-TW")
    if width == 390:
        tops = [page.locator(s).bounding_box()["y"] for s in ("#headline", "#front", "#controls", "#card")]
        assert tops == sorted(tops), "sentence, front, knobs, card"
        bar = page.locator("#controls .runbar").bounding_box()
        assert bar["y"] + bar["height"] <= 901, "estimate and button stick to the bottom"


def test_language_switch_keeps_everything_and_the_link_carries_it(visit):
    page = visit()
    page.locator("#knob-0").fill("6")
    page.locator(".lang[lang=zh-Hant]").click()
    page.wait_for_function("document.querySelector('#headline').textContent.includes('縮小')")
    assert (
        page.locator("#knob-0").input_value() == "6"
        and page.evaluate("document.documentElement.lang") == "zh-Hant"
    )
    assert "lang=zh-Hant" in page.url and "bits=6" in page.url
    shot(page, "chinese")
    page.reload()
    page.wait_for_function("document.querySelector('#headline')?.textContent.includes('縮小')")
    assert page.locator("#knob-0").input_value() == "6"


def test_the_ghost_follows_the_knob_and_the_estimate_is_quick(visit):
    page = visit()
    page.locator("#knob-0").fill("6")
    page.wait_for_function("document.querySelector('#front .plot').dataset.ghost > 1.1e8")
    assert "quality unknown until measured" in text(page, "#front .ghost-words")
    page.wait_for_function(
        "document.querySelector('#controls .more').textContent.includes('6.3 bits')", timeout=1_000
    )
    assert text(page, "#controls .go") == "Compress and measure"
    shot(page, "ghost")


def test_families_methods_and_chains(visit):
    page = visit()
    page.locator("#family-pruning").check()
    assert text(page, "#controls .knob .big") == "50 %"
    page.locator("#controls .add").click()
    assert page.locator("#then").input_value() == "gptq"
    page.wait_for_function(
        "document.querySelector('#controls .go').textContent.includes('Compress and measure')"
    )
    page.locator("#controls details[data-k=advanced] summary").click()
    page.locator("#p-wanda-pattern").select_option("2:4")
    assert "has no effect" in text(page, "#controls .knob.off")
    assert "pattern=2%3A4" in page.url and "then=gptq" in page.url
    shot(page, "chain")


def test_the_caches_bits_are_a_setting_of_the_run(visit, server):
    page = visit("?method=none")
    page.locator("#controls details[data-k=settings] summary").click()
    assert page.locator("#s-cache_bits").input_value() == "16" and "cache_bits" not in page.url
    page.locator("#s-cache_bits").select_option("8")
    page.wait_for_function(
        "document.querySelector('#controls .go').textContent.includes('Compress and measure')"
    )
    assert "cache_bits=8" in page.url and "12 KB of cache per token" in text(page, "#controls .more")
    page.locator("#controls .go").click()
    page.wait_for_function(
        "document.querySelector('#controls .progress .now').textContent.includes('cache in 8 bits')"
    )
    until(page, lambda: server.runner.submitted)
    assert server.runner.submitted[-1].cache_bits == 8 and not server.runner.submitted[-1].is_original
    page = visit("?method=gptq&cache_bits=4")
    assert page.locator("#s-cache_bits").input_value() == "4"
    shot(page, "cache-bits")


def test_a_tile_says_its_familys_best_and_makes_the_family_stand_out(visit):
    page = visit()
    page.wait_for_function("document.querySelectorAll('#controls .best-of:not(:empty)').length === 4")
    assert text(page, "#controls .tile:has(#family-quantization) .best-of").startswith("best: ")
    assert page.locator("#front .front-svg.lit").count() == 0, "a first visit sees all four alike"
    page.locator("#family-low_rank").check()
    page.wait_for_selector("#front .front-svg.lit .mark.low_rank.on")
    assert "family=low_rank" in page.url and page.locator("#front .mark.on:not(.low_rank)").count() == 0
    page.reload()
    page.wait_for_selector("#front .front-svg.lit .mark.low_rank.on")
    page.locator("#front .filters button").click()
    page.wait_for_selector("#front .front-svg:not(.lit)")
    assert "family=" not in page.url


def test_only_what_other_programs_load_stays_in_the_address(visit):
    page = visit()
    whole = page.locator("#front .mark").count()
    page.locator("#deploy").check()
    page.wait_for_function(f"document.querySelectorAll('#front .mark').length < {whole}")
    assert "deploy=yes" in page.url and page.locator("#front .mark[data-id$=spqr-4]").count() == 0
    page.wait_for_function("!document.querySelector('#card h2').textContent.includes('SpQR')")
    page.reload()
    page.wait_for_selector("#front .mark")
    assert page.locator("#deploy").is_checked() and page.locator("#front .mark").count() < whole


def test_points_by_keyboard_and_the_table_is_their_twin(visit):
    """One stop of Tab, after the controls; arrows move, Enter opens."""
    page = visit()
    order = page.evaluate("""() => { const all = [...document.querySelectorAll('button, input, select, [tabindex="0"]')];
      return [all.indexOf(document.querySelector('#controls .go')), all.indexOf(document.querySelector('#front .mark[tabindex="0"]'))]; }""")
    assert 0 <= order[0] < order[1] and page.locator("#front .mark[tabindex='0']").count() == 1
    page.locator("#front .mark[tabindex='0']").focus()
    page.keyboard.press("Home")
    first = page.evaluate("document.activeElement.dataset.id")
    page.keyboard.press("ArrowRight")
    second = page.evaluate("document.activeElement.dataset.id")
    assert first != second and "perplexity" in page.locator("#front .mark:focus").get_attribute("aria-label")
    assert page.locator("#front .hover").is_visible()
    page.keyboard.press("Enter")
    page.wait_for_function("id => new URLSearchParams(location.search).get('run') === id", arg=second)
    page.wait_for_selector(f"#front .mark[data-id='{second}'][aria-pressed=true]")
    assert page.evaluate("document.activeElement.dataset.id") == second, "the focus stays"
    page.locator("#front .foot button").first.click()
    page.wait_for_selector("#runs details[open] table")


def test_a_run_of_another_set_says_that_the_figure_changed_and_leads_back(visit):
    page = visit()
    best = text(page, "#front .answer")
    page.locator("#runs summary").click()
    page.locator("#runs tbody tr[data-run=shipped-domain-nf4-double] button").click()
    page.wait_for_selector("#front .notice:not([hidden])")
    assert "now shows other runs: Unicode" in text(page, "#front .notice")
    assert text(page, "#front .answer") != best
    page.locator("#front .notice button").click()
    page.wait_for_selector("#front .mark[data-id=shipped-gates-gptq-4]")
    page.wait_for_selector("#front .notice", state="hidden")
    assert text(page, "#front .answer") == best and "run=" not in page.url


def test_the_picture_is_saved_whole(visit):
    page = visit()
    for kind, head in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=kind).click()
        content = Path(waiting.value.path()).read_bytes()
        assert content.startswith(head) and waiting.value.suggested_filename.endswith(kind.lower())
        if kind == "SVG":
            drawn = content.decode()
            assert "SpQR 4 bits" in drawn and "var(--" not in drawn and "tabindex" not in drawn


@pytest.mark.parametrize("width", [390, 1024, 1920])
def test_the_figure_fits_at_every_width_and_the_page_stands_in_the_middle(visit, width):
    page = visit(width=width)
    no_sideways_scroll(page)
    box = page.locator("#top .panel").bounding_box()
    assert abs(box["x"] + box["width"] / 2 - width / 2) < 10
    outside = page.evaluate("""() => { const p = document.querySelector('#front .plot').getBoundingClientRect();
      return [...document.querySelectorAll('#front .mark, #front svg text')].filter(e => { const b = e.getBoundingClientRect();
        return b.left < p.left - 15 || b.right > p.right + 15 || b.bottom > p.bottom + 2; }).map(e => e.textContent); }""")
    assert outside == []
    covered = page.evaluate("""() => { const b = [...document.querySelectorAll('#front .name')].map(e => e.getBoundingClientRect());
      return b.filter((p, i) => b.some((q, k) => k > i && p.left < q.right && q.left < p.right && p.top + 3 < q.bottom && q.top + 3 < p.bottom)).length; }""")
    assert covered == 0
    shot(page, f"width-{width}")


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_jumps_when_the_figure_arrives(visit, width):
    """The sum of layout shifts, as browsers count it."""
    page = visit(width=width)
    shift = page.evaluate("""() => new Promise(done => new PerformanceObserver(list =>
      done(list.getEntries().filter(e => !e.hadRecentInput).reduce((sum, e) => sum + e.value, 0)))
      .observe({type: 'layout-shift', buffered: true}) || setTimeout(() => done(0), 1500))""")
    assert shift < 0.02


def test_values_survive_a_change_of_method(visit):
    page = visit()
    page.locator("#knob-0").fill("3")
    page.locator("#family-low_rank").check()
    page.locator("#family-quantization").check()
    assert page.locator("#method").input_value() == "gptq" and page.locator("#knob-0").input_value() == "3"


def test_too_big_says_so_and_disables_the_button(visit, server):
    real = server.estimate
    server.estimate = lambda spec: dataclasses.replace(
        real(spec), fits=False, reason="memory", peak_bytes=30 * 10**9, available_bytes=10**9
    )
    try:
        page = visit("?bits=6")
        assert "needs about 30 GB, and 1.0 GB are free" in text(page, "#controls .warn")
        assert page.locator("#controls .go").is_disabled()
        shot(page, "too-big")
    finally:
        server.estimate = real


@pytest.mark.parametrize(
    "query, said", [("?text=nosuch", "No text is called nosuch"), ("?tokens=100", "can't be 100")]
)
def test_bad_settings_are_told_before_the_run(visit, query, said, server):
    page = visit(query)
    if said.startswith("can't"):
        assert said in text(page, "#controls .error h3")
    else:
        server.runner.answer = {
            "status": "failed",
            "error": {"code": "unknown_text", "message": "m", "facts": {"name": "nosuch"}},
        }
        page.locator("#controls .go").click()
        page.wait_for_selector("#controls .trouble .error")
        assert said in text(page, "#controls .trouble .error")
        page.locator("#controls .trouble [data-act=builtin]").click()
        assert page.locator("#s-text").input_value() == "builtin"


def test_a_student_is_chosen_by_its_layers_or_by_its_name(visit):
    page = visit()
    page.locator("#family-distillation").check()
    page.locator("#method").select_option("gkd")
    assert page.locator("#controls .big").inner_text() == "65 %" and "Layers kept" in text(
        page, "#controls .knob"
    )
    page.locator("#controls details[data-k=advanced] summary").click()
    box = page.get_by_label("Another student")
    assert box.get_attribute("type") == "text"
    box.fill(" smollm2-135m ")
    box.press("Tab")
    page.wait_for_selector("#controls .knob.off")
    assert "student=smollm2-135m" in page.url and page.locator("#knob-0").is_disabled()
    box.fill("")
    box.press("Tab")
    page.wait_for_selector("#controls .knob:not(.off)")


def test_a_training_has_a_short_and_a_full_budget(visit):
    page = visit()
    assert page.locator("#budget-0").count() == 0, "rounding has none"
    page.locator("#method").select_option("qlora")
    budget = page.locator("#budget-0")
    assert budget.input_value() == "short" and "32.8K" in budget.inner_text()
    budget.select_option("full")
    page.wait_for_function("document.querySelector('#knob-0').value == '64'")
    assert "train_tokens=15840000" in page.url and budget.input_value() == "full"
    page.locator("#knob-0").fill("16")
    page.locator("#controls details[data-k=advanced] summary").click()
    box = page.locator("#p-qlora-train_tokens")
    assert box.input_value() == "15840000" and budget.input_value() == "full"
    shot(page, "budget")
    box.fill("50000")
    box.press("Tab")
    page.wait_for_function("document.querySelector('#budget-0').value == 'own'")
    page.reload()
    page.wait_for_selector("#budget-0")
    assert budget.input_value() == "own"
    budget.select_option("short")
    page.wait_for_function("document.querySelector('#knob-0').value == '8'")
    assert "train_tokens" not in page.url


def test_without_the_hub_new_runs_read_the_built_in_text_and_the_page_says_so(visit, server, monkeypatch):
    monkeypatch.setattr(texts, "refused", lambda name: name == "wikitext-2")
    page = visit()
    page.locator("#knob-0").fill("6")  # at 4 bits the answer is stored
    page.wait_for_selector("#controls .told")
    assert "WikiText-2 can't be fetched here" in text(page, "#controls .told")
    assert page.locator("#controls .go").is_enabled() and "text=builtin" in page.url
    page.locator("#controls .go").click()
    until(page, lambda: server.runner.submitted)
    asked = server.runner.submitted[-1]
    assert (asked.text, asked.calibration, asked.tokens, asked.table_bits) == (
        "builtin",
        "builtin",
        8_192,
        16,
    )


def test_a_run_that_is_asked_for_before_the_text_was_refused_reads_the_built_in_text(
    visit, server, monkeypatch
):
    """The page asks for the estimate while the hub hasn't answered yet."""
    said = []
    monkeypatch.setattr(texts, "settled", lambda seconds: said.append(seconds) or True)
    monkeypatch.setattr(texts, "refused", lambda name: bool(said) and name == "wikitext-2")
    page = visit()
    page.locator("#knob-0").fill("6")
    page.wait_for_function("document.querySelector('#controls .go').textContent.startsWith('Compress')")
    assert page.locator("#controls .told").count() == 0
    page.locator("#controls .go").click()
    until(page, lambda: server.runner.submitted)
    assert server.runner.submitted[-1].text == "builtin" and len(server.runner.submitted) == 1
    assert "text=builtin" in page.url
