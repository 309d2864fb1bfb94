"""The chat, and that the page is reached by keyboard, by readers and by weak eyes."""

from __future__ import annotations

import functools
import re

import pytest
from playwright.sync_api import expect

from tests.page.stage import becomes, no_sideways_scroll, says, shot, store_run, until

pytestmark = pytest.mark.browser


def test_chat_side_by_side(visit, server):
    made = store_run(
        server,
        id="talks",
        key="talks",
        metrics={"decode_tokens_per_second": 20.0, "baseline_decode_tokens_per_second": 25.0},
    )
    server.runner.work = True
    page = visit(f"?run={made.id}")
    page.locator("#card [data-act=chat]").click()
    page.wait_for_selector("#chat .columns:visible")
    says(page, "#chat .columns", "GPTQ, 4 bits, group 64 · 114 MB", "Original · 269 MB")
    says(page, "#chat .columns", "already rounded to 4 bits (Q4_1)")
    says(page, "#chat", "the chat is slower now")
    page.locator("#chat .chip").first.click()
    says(page, "#chat .chat-status", "differ after 3")
    answers = ["The capital <b>is</b> Paris.", "The capital <b>is</b> London."]
    expect(page.locator("#chat .columns .text")).to_have_text(answers)
    expect(page.locator("#chat .columns mark")).to_have_text(["Paris.", "London."])
    says(page, "#chat .live", "20 tokens/s")
    shot(page, "chat")
    page.reload()
    page.wait_for_selector("#chat .columns:visible")
    says(page, "#chat .columns .text", "Paris")  # the last exchange is kept
    page.locator("#prompt").fill("again")
    page.keyboard.press("Enter")
    expect(page.locator("#chat .asked")).to_have_text("again")
    says(page, "#chat .chat-status", "differ after 3")
    phone = visit(f"?run={made.id}&tab=chat", width=390, drawn=False)
    phone.wait_for_selector("#chat .columns:visible")
    no_sideways_scroll(phone)
    shot(phone, "chat-390")
    server.store.delete("talks")


def test_chat_without_a_model_shows_recorded_answers(visit):
    """What ships, not a made-up file: no empty tab for a newcomer."""
    page = visit("?tab=chat", drawn=False)
    page.wait_for_selector("#chat .columns:visible")
    says(page, "#chat .columns .text", "Paris")
    expect(page.locator("#chat .none")).to_be_hidden()
    expect(page.locator("#chat .step h4")).to_have_text(["Original", "8 bits", "4 bits", "3 bits", "2 bits"])


def test_keyboard_alone(visit, server):
    page = visit()
    page.locator("#tab-explore").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("body")).to_have_attribute("data-tab", "learn")
    page.keyboard.press("ArrowRight")
    expect(page.locator("body")).to_have_attribute("data-tab", "chat")
    page.keyboard.press("Home")
    expect(page.locator("body")).to_have_attribute("data-tab", "explore")
    knob = page.locator("#knob-0")
    knob.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(knob).to_have_value("6")
    expect(knob).to_have_attribute("aria-valuetext", "6 bits")
    expect(knob).to_have_css("outline-style", "solid")  # focus is visible
    page.keyboard.press("Enter")
    until(page, lambda: [spec.methods[0][1].bits for spec in server.runner.submitted] == [6])


def test_everything_has_a_name(visit):
    page = visit()
    for name in ("axes", "advanced", "settings", "all", "runs-fold"):
        fold = page.locator(f"details:is(.{name}, [data-k={name}])").first
        fold.locator("summary").first.click()
        expect(fold).to_have_attribute("open", "")
    expect(page.locator("details:not([open])")).to_have_count(0)
    nameless = """() => [...document.querySelectorAll('.panel :is(button, input, select, textarea, [role=img])')]
      .filter(e => e.getClientRects().length && !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML.slice(0, 120))"""
    becomes(page, lambda: page.evaluate(nameless), [])
    expect(page.locator("h1")).to_have_count(1)
    expect(page.locator("#front .plot")).to_have_attribute("aria-label", re.compile("runs.*smallest within"))


def test_the_essay_opens_over_the_page_and_moves_nothing(visit):
    page = visit()
    knob = page.locator("#knob-0")
    becomes(page, lambda: bool(knob.bounding_box()), True)
    before = knob.bounding_box()["y"]
    page.locator("#controls button.about").first.click()
    reader = page.locator("dialog.reader")
    expect(reader).to_be_visible()
    says(page, "dialog.reader .essay", "GPTQ")
    page.wait_for_function("document.querySelector('dialog.reader').getBoundingClientRect().width > 700")
    becomes(page, lambda: knob.bounding_box()["y"], before)
    shot(page, "essay")
    page.keyboard.press("Escape")
    expect(reader).to_be_hidden()


def test_words_are_readable_on_their_ground(visit):
    """4.5:1 for every word, light and dark."""
    for dark in (False, True):
        page = visit(dark=dark)
        page.locator("#runs summary").click()
        page.wait_for_selector("#runs tbody tr")
        becomes(page, functools.partial(page.evaluate, CONTRAST), [])


CONTRAST = """() => {
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const parse = s => s.match(/[\\d.]+/g).map(Number);
  const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0.9) return c.slice(0, 3); } return [255, 255, 255]; };
  const out = [];
  for (const e of document.querySelectorAll('.panel *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.getClientRects().length || e.closest('svg, .sr, [hidden], :disabled, .off')) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color).slice(0, 3)), light(ground(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) out.push([e.textContent.trim().slice(0, 40), Math.round(ratio * 100) / 100]);
  }
  return out; }"""
