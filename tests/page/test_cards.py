"""What a card says first: whether the method helped, by its own measure and beside its control."""

from __future__ import annotations

import pytest

from evaluation.page import cards, curve
from evaluation.page.words import Words
from evaluation.spec import Result, RunSpec
from evaluation.verdict import paired

WORDS = Words("en")
ORIGINAL = RunSpec("m", (("none", {}),))
REPAIRED = RunSpec("m", (("gptq", {"bits": 4}), ("lora", {})))
STUDENT = RunSpec("m", (("gkd", {}),))


def result(spec, losses, judged=(), **metrics):
    return Result(
        key="k",
        spec=spec,
        status="ok",
        metrics={"perplexity": 30.0} | metrics,
        series={"window_losses": losses},
        judged=list(judged),
        protocol_id="p",
    )


def told(spec, losses, judged=(), relatives=None, **metrics):
    return cards._takeaways(WORDS, result(spec, losses, judged, **metrics), relatives or {})


LOW, HIGH = [3.0, 3.1, 2.9, 3.0], [3.24, 3.32, 3.13, 3.23]  # 0.23 nats apart: exp(0.23) = 1.26


def test_a_method_beside_its_control_in_words():
    worse = told(STUDENT, HIGH, relatives={"control": result(STUDENT, LOW)})
    assert worse == ["26 % worse than its control: the method did not help here."]
    better = told(STUDENT, LOW, relatives={"control": result(STUDENT, HIGH)})
    assert better == ["21 % better than its control: the method helped here."]
    mixed = [2.9, 3.4, 2.7, 3.1]
    assert "can't be told" in told(STUDENT, mixed, relatives={"control": result(STUDENT, LOW)})[0]
    broken = result(STUDENT, LOW, perplexity=2e4)
    assert "broken" in told(STUDENT, HIGH, relatives={"control": broken}, perplexity=3e4)[0]
    assert told(STUDENT, HIGH) == [], "a control that nobody measured gives no verdict"


def test_a_repair_is_compared_with_the_run_without_it_not_with_a_trained_original():
    relatives = {"without": result(ORIGINAL, HIGH), "control": result(ORIGINAL, [1.0, 1.1, 1.0, 1.2])}
    assert told(REPAIRED, LOW, relatives=relatives) == [
        "21 % better than without the training: the training helped."
    ]


def test_repetition_is_said_even_where_perplexity_is_good():
    said = told(ORIGINAL, LOW, repeat_rate=0.39, baseline_repeat_rate=0.21, perplexity_ratio=1.02)
    assert said == ["It repeats itself: 39 % of what it writes is repetition, against 21 % for the original."]
    assert told(ORIGINAL, LOW, repeat_rate=0.25, baseline_repeat_rate=0.21) == []


@pytest.mark.parametrize(
    "ratio, expected",
    [
        (1.26, "26 % higher"),
        (0.9, "10 % lower"),
        (1.001, "the same"),
        (6.0, "6.0× higher"),
        (0.1, "10× lower"),
    ],
)
def test_a_change_in_words(ratio, expected):
    assert WORDS.change(ratio) == expected


def test_a_measure_of_ones_own_comes_before_perplexity():
    found = paired([0.6, 0.7, 0.8, 0.7], [0.5, 0.58, 0.66, 0.58], higher_is_better=True)
    said = WORDS.helped(found, measure="answers_right")
    assert "better than its control" in said and "12 points" in said.replace("\u00a0", " ")


def test_a_curve_has_both_axes_and_its_ends():
    drawn = curve.marks([[0, None, 4.0], [1000, 3.5, None], [2000, 3.0, 3.2]], WORDS, "alt")
    assert drawn["x_words"] == "training tokens" and drawn["y_words"] == "loss"
    assert [text for _, text in drawn["x_ticks"]] == ["0", "1,000", "2,000"]
    assert [text for _, text in drawn["y_ticks"]] == ["3", "3.5", "4"]
    heights = dict((text, y) for y, text in drawn["y_ticks"])
    assert heights["4"] < heights["3.5"] < heights["3"], "a high loss stands high"
    assert drawn["line"][0][0] == pytest.approx((drawn["left"] + drawn["right"]) / 2)
    assert drawn["dots"][0] == (drawn["left"], drawn["top"]) and drawn["line"][-1] == (
        drawn["right"],
        drawn["bottom"],
    )
    svg = curve.svg([[0, None, 4.0], [10, 3.5, None]], WORDS, "falls")
    assert 'aria-label="falls"' in svg and svg.count("<circle") == 1


def test_a_training_that_says_nothing_yet_is_drawn():
    assert curve.marks([], WORDS, "")["line"] == []
