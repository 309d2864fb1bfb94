"""Answers that come late, or after newer ones: the page shows and does what was chosen last."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.page.stage import Held, address, becomes, says, store_run

pytestmark = pytest.mark.browser


def let_in(page):
    """Time in which a late answer would show; whoever ignores it needs none."""
    page.wait_for_timeout(300)


def choose_row(page, words):
    page.locator("#runs details:not([open]) summary").click()
    page.locator("#runs tbody tr", has_text=words).filter(has_text="wiki").first.locator("button").click()


def test_however_often_the_button_is_pressed_one_run_begins(visit, server):
    page = visit("?bits=6")
    begun = Held(page, "begin")
    page.locator("#controls .go").click()
    begun.wait()
    page.locator("#knob-0").fill("5")
    says(page, "#controls .more", "5.3 bits")  # the next estimate is there
    expect(page.locator("#controls .go")).to_be_disabled()
    page.locator("#knob-0").press("Enter")
    page.locator("#controls .four").click()
    let_in(page)
    begun.release()
    page.wait_for_selector("#controls .progress:visible")
    becomes(page, lambda: [spec.methods[0][1].bits for spec in server.runner.submitted], [6])


def test_the_button_never_shows_the_stored_run_of_other_knobs(visit, server):
    """The estimate of the new knobs, which says whether they are stored, is still on its way."""
    page = visit()
    expect(page.locator("#controls .go")).to_have_text("Show result (already measured)")
    weighed = Held(page, "weigh")
    page.locator("#family-pruning").check()
    weighed.wait()
    page.locator("#controls .go").click()
    becomes(page, lambda: [spec.recipe[0][0] for spec in server.runner.submitted], ["wanda"])
    weighed.release()


def test_a_card_that_comes_after_another_model_was_chosen_is_not_shown(visit):
    page = visit()
    cards = Held(page, "card")
    choose_row(page, "Wanda")
    cards.wait()
    page.locator("#model").select_option("gpt2")
    page.wait_for_selector("#card .quiet")
    cards.release()
    let_in(page)
    expect(page.locator("#card h2")).to_have_count(0)


def test_a_deletion_that_is_told_late_leaves_the_run_that_was_chosen_meanwhile(visit, server):
    store_run(server, id="mine", key="mine")
    page = visit("?run=mine")
    deleted = Held(page, "delete")
    page.locator("#card [data-act=delete]").click()
    page.locator("#card [data-act=delete].sure").click()
    deleted.wait()
    choose_row(page, "Wanda")
    says(page, "#card h2", "Wanda")
    deleted.release()
    expect(page.locator("#runs tr[data-run=mine]")).to_have_count(0)
    says(page, "#card h2", "Wanda")
    address(page, "run=", but=["run=mine"])


def test_while_a_size_is_typed_the_answer_of_the_newest_stays(visit):
    page = visit()
    box = page.locator("#front .answer input")
    fronts = Held(page, "front")
    for count, megabytes in ((1, "500"), (2, "1")):
        box.fill(megabytes)
        fronts.wait(count)
    fronts.release()
    says(page, "#front .answer", "nothing")
    let_in(page)
    says(page, "#front .answer", "nothing")


def test_a_way_of_the_plan_is_chosen_for_the_model_that_it_was_told_for(visit):
    page = visit("?tab=plan", drawn=False)
    page.locator("#plan-model").select_option("smollm2-135m-instruct-q4_1")
    says(page, "#plan .plan-answer:not([aria-busy]) .verdict", "SmolLM2 135M")
    plans = Held(page, "plan")
    page.locator("#plan-model").select_option("qwen2.5-7b-instruct")
    plans.wait()
    page.locator("#plan [data-use]").first.click()
    expect(page.locator("#model")).to_have_value("smollm2-135m-instruct-q4_1")
    plans.release()
