"""The chat with recorded answers: what it shows, before any model is made."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from evaluation import recorded
from evaluation.page import replay
from evaluation.page.words import Words
from evaluation.store import Store
from tests.page.stage import address, no_sideways_scroll, says, shot, store_run, until

# what each point says to every prompt, token by token
SAID = {
    "none": ["The ", "capital ", "is ", "Paris."],
    "rtn-8": ["The ", "capital ", "is ", "Paris."],
    "rtn-4": ["The ", "capital ", "was ", "<b>Rome</b>."],
    "rtn-3": ["The ", "the ", "the "],
    "rtn-2": ["x", "{}", "?"],
    "wanda-0.5": ["The ", "capital "],
}


def points(said=SAID):
    """A small made-up file; the token's id is its word, so that equal words are equal tokens."""
    found = {}
    for name, tokens in said.items():
        ends = [len("".join(tokens[: i + 1])) for i in range(len(tokens))]
        answer = {"text": "".join(tokens), "tokens": tokens, "ends": ends, "ended": name != "rtn-3"}
        found[f"shipped-gates-{name}"] = {
            "date": "2026-11-30",
            "commit": "abc123",
            "answers": {p.name: answer for p in recorded.PROMPTS},
        }
    return found


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("home")).rows()


def shown(rows, run="", prompt="", language="en", **changes):
    return replay.shown(Words(language), rows, points(**changes), run, prompt)


def test_both_answers_and_where_they_part(rows):
    found = shown(rows, "shipped-gates-rtn-4", "sum")
    assert found["id"] == "shipped-gates-rtn-4" and found["asked"] == "What is 17 + 25?"
    state = found["state"]
    assert state["sides"]["original"]["text"] == "The capital is Paris."
    assert state["sides"]["compressed"]["text"] == "The capital was <b>Rome</b>."
    assert state["parted"] == 2 and "after 2 tokens" in state["status"] and state["done"]
    assert "Original · 269" in found["left"]["title"] and "Rounding, 4 bits" in found["right"]["title"]
    assert "2026-11-30" in found["about"] and "abc123" in found["about"] and "60" in found["about"]
    # sizes are those of files on both sides: 2.4 times, where memory in float32 said 4.7
    assert 2.2 < found["left"]["size"] / found["right"]["size"] < 2.5


def test_equal_answers_and_an_answer_that_ends_early(rows):
    same = shown(rows, "shipped-gates-rtn-8")["state"]
    assert same["parted"] is None and "same" in same["status"]
    assert shown(rows, "shipped-gates-wanda-0.5")["state"]["parted"] == 2
    cut = shown(rows, "shipped-gates-rtn-3")["state"]["sides"]
    assert cut["compressed"]["cut"] and not cut["original"]["cut"]


def test_one_question_at_fewer_and_fewer_bits(rows):
    ladder = shown(rows)["ladder"]
    assert [step["title"] for step in ladder] == ["Original", "8 bits", "4 bits", "3 bits", "2 bits"]
    assert [step["parted"] for step in ladder] == [None, None, 2, 1, 0]
    assert ladder[0]["grade"] == "" and all(step["size"] and step["grade"] for step in ladder[1:])
    some = {name: SAID[name] for name in ("none", "wanda-0.5")}
    assert shown(rows, said=some)["ladder"] == []


def test_what_is_not_recorded_falls_back_to_what_is(rows):
    found = shown(rows, "shipped-gates-gptq-4", "no such prompt")
    assert found["id"] in {i for i, _ in found["options"]} and found["prompt"] == recorded.PROMPTS[0].name
    assert len(found["options"]) == 5 and found["options"][-1][0] == "shipped-gates-wanda-0.5"
    empty = {"prompts": replay.prompts(Words("en")), "options": [], "right": None, "ladder": []}
    assert shown(rows, said={}) == empty
    assert shown(rows, said={"rtn-4": SAID["rtn-4"]}) == empty, "nothing to compare it with"
    assert shown([], "shipped-gates-rtn-4") == empty


@pytest.mark.parametrize("language", ["en", "zh-Hant"])
def test_every_prompt_has_a_label(language):
    labels = [p["label"] for p in replay.prompts(Words(language))]
    assert len(set(labels)) == len(recorded.PROMPTS)
    if language == "zh-Hant":
        assert all(any("\u4e00" <= c <= "\u9fff" for c in label) for label in labels)


@pytest.fixture(scope="module", autouse=True)
def recording(tmp_path_factory):
    """The made-up file in place of the one that ships."""
    file = tmp_path_factory.mktemp("recorded") / "answers.json"
    file.write_text(json.dumps({"points": points()}), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded, "FILE", file)
        yield


@pytest.mark.browser
def test_a_newcomer_reads_two_answers_at_once(visit, server):
    page = visit("?tab=chat&run=shipped-gates-rtn-4&method=gptq&bits=4", drawn=False)
    answers = page.locator("#chat .columns .text")
    expect(answers).to_have_text(["The capital is Paris.", "The capital was <b>Rome</b>."])
    expect(page.locator("#chat .columns mark")).to_have_text(["is ", "was "])
    says(page, "#chat .about", "Recorded on 2026-11-30")
    expect(page.locator("#chat .ask")).to_be_hidden()
    expect(page.locator("#chat .step")).to_have_count(5)
    page.locator("#chat .chip[data-prompt=water]").click()
    says(page, "#chat .asked", "Why do we need to drink water?")
    page.wait_for_selector("#chat .chip[data-prompt=water][aria-pressed=true]")
    page.locator("#side").select_option("shipped-gates-rtn-8")
    says(page, "#chat .chat-status", "same")
    address(page, "run=shipped-gates-rtn-8")
    shot(page, "chat-recorded")
    # the way to a model that answers anything
    page.locator("#chat .own [data-act=make]").click()
    expect(page.locator("body")).to_have_attribute("data-tab", "explore")
    until(page, lambda: server.runner.submitted)
    assert server.runner.submitted[-1].methods[0][1].bits == 8


@pytest.mark.browser
def test_a_run_without_a_recording_says_what_is_shown_instead(visit):
    page = visit("?tab=chat&run=shipped-gates-gptq-4", width=390, drawn=False)
    says(page, "#chat .instead", "has no recorded answers")
    no_sideways_scroll(page)
    shot(page, "chat-recorded-390")


@pytest.mark.browser
def test_a_model_that_is_here_answers_live(visit, server):
    made = store_run(server, id="talks", key="talks")
    page = visit(f"?tab=chat&run={made.id}", drawn=False)
    page.wait_for_selector("#chat .ask:visible")
    expect(page.locator("#chat .own")).to_be_hidden()
    expect(page.locator("#chat .about")).to_have_text("")
    page.locator("#chat .chip[data-prompt=capital]").click()
    says(page, "#chat .chat-status", "after 3")
    says(page, "#chat .asked", "What is the capital of France?")
    server.store.delete("talks")
