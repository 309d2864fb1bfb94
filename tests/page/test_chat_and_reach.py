"""The chat, and that the page is reached by keyboard, by readers and by weak eyes."""

from __future__ import annotations

import pytest

from tests.page.stage import no_sideways_scroll, shot, store_run, text, until

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
    assert "GPTQ, 4 bits, group 64 · 114 MB" in text(page, "#chat .columns") and "Original · 269 MB" in text(
        page, "#chat .columns"
    )
    assert "the chat is slower now" in text(page, "#chat") and "already rounded to 4 bits (Q4_1)" in text(
        page, "#chat .columns"
    )
    page.locator("#chat .chip").first.click()
    page.wait_for_function(
        "document.querySelector('#chat .chat-status').textContent.includes('differ after 3')"
    )
    columns = page.locator("#chat .columns .text")
    assert (
        columns.nth(0).inner_text() == "The capital <b>is</b> Paris."
        and columns.nth(1).inner_text() == "The capital <b>is</b> London."
    )
    assert page.locator("#chat .columns mark").all_inner_texts() == ["Paris.", "London."]
    assert "20 tokens/s" in page.locator("#chat .live").nth(0).inner_text()
    shot(page, "chat")
    page.reload()
    page.wait_for_selector("#chat .columns:visible")
    assert "Paris" in page.locator("#chat .columns .text").nth(0).inner_text(), "the last exchange is kept"
    page.locator("#prompt").fill("again")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#chat .asked').textContent === 'again'")
    page.wait_for_function(
        "document.querySelector('#chat .chat-status').textContent.includes('differ after 3')"
    )
    phone = visit(f"?run={made.id}&tab=chat", width=390, drawn=False)
    phone.wait_for_selector("#chat .columns:visible")
    no_sideways_scroll(phone)
    shot(phone, "chat-390")
    server.store.delete("talks")


def test_chat_without_a_model_shows_recorded_answers(visit):
    """What ships, not a made-up file: no empty tab for a newcomer."""
    page = visit("?tab=chat", drawn=False)
    page.wait_for_selector("#chat .columns:visible")
    assert "Paris" in text(page, "#chat .columns .text") and page.locator("#chat .none").is_hidden()
    assert [step.inner_text() for step in page.locator("#chat .step h4").all()] == [
        "Original",
        "8 bits",
        "4 bits",
        "3 bits",
        "2 bits",
    ]


def test_keyboard_alone(visit, server):
    page = visit()
    page.locator("#tab-explore").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.body.dataset.tab") == "chat"
    page.keyboard.press("ArrowLeft")
    page.locator("#knob-0").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert (
        page.locator("#knob-0").input_value() == "6"
        and page.locator("#knob-0").get_attribute("aria-valuetext") == "6 bits"
    )
    outline = page.evaluate("getComputedStyle(document.querySelector('#knob-0')).outlineStyle")
    assert outline == "solid", "focus is visible"
    page.keyboard.press("Enter")
    until(page, lambda: server.runner.submitted)
    assert server.runner.submitted[0].methods[0][1].bits == 6


def test_everything_has_a_name(visit):
    page = visit()
    for summary in page.locator("details > summary").all():
        summary.click()
    nameless = page.evaluate("""() => [...document.querySelectorAll('.panel :is(button, input, select, textarea, [role=img])')]
      .filter(e => e.getClientRects().length && !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML.slice(0, 120))""")
    assert nameless == []
    assert page.locator("h1").count() == 1
    alt = page.locator("#front .plot").get_attribute("aria-label")
    assert "runs" in alt and "smallest within" in alt


def test_words_are_readable_on_their_ground(visit):
    """4.5:1 for every word, light and dark."""
    for dark in (False, True):
        page = visit(dark=dark)
        page.locator("#runs summary").click()
        poor = page.evaluate(CONTRAST)
        assert poor == [], f"dark={dark}"


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
