"""The first screen and the knobs, in a real browser."""

from __future__ import annotations

import dataclasses
import re

import pytest

from compression import texts
from tests.page.stage import no_sideways_scroll, shot, text, until

pytestmark = pytest.mark.browser


def test_first_visit_understood_in_ten_seconds(visit):
    page = visit()
    shot(page, "first")
    assert re.fullmatch(
        r"SmolLM2 135M Instruct \(offline\) shrinks from 269 MB to \d+ MB and stays .+\.",
        text(page, "#headline"),
    )
    labels = page.locator("#front .annotation-text").all_text_contents()
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
    monkeypatch.setattr(texts, "wait_for_fetch", lambda seconds: said.append(seconds) or True)
    monkeypatch.setattr(texts, "refused", lambda name: bool(said) and name == "wikitext-2")
    page = visit()
    page.locator("#knob-0").fill("6")
    page.wait_for_function("document.querySelector('#controls .go').textContent.startsWith('Compress')")
    assert page.locator("#controls .told").count() == 0
    page.locator("#controls .go").click()
    until(page, lambda: server.runner.submitted)
    assert server.runner.submitted[-1].text == "builtin" and len(server.runner.submitted) == 1
    assert "text=builtin" in page.url
