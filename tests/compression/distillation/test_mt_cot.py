"""MT-CoT: two tasks by the papers' weights, the papers' filters and targets, and worked steps that make a
task learnable."""

from __future__ import annotations

import itertools
import statistics
from random import Random

import pytest
import torch

from compression.base import Edit
from compression.distillation import mt_cot, tasks
from compression.distillation.black_box import loss, step
from compression.distillation.tasks import MARK, Question
from compression.teacher import Interview
from tests import micro

QUESTIONS = [
    Question("sum", 1, f"{a} + {b}?", str(a + b), f"{a} and {b} is {a + b}.")
    for a in range(5)
    for b in range(5)
]
WHY = [q.worked for q in QUESTIONS]


def interview(answer):
    return Interview(micro.Stub(answer), "stub")


def by_gradient(bundle, batch):
    bundle.module.requires_grad_(True).zero_grad()
    value = loss(bundle, batch)
    value.backward()
    return value.detach(), [p.grad.clone() for p in bundle.module.parameters()]


def test_all_weight_on_answers_is_learning_answers_alone_bit_for_bit():
    bundle = micro.model()
    tokenizer = bundle.tokenizer
    both, alone = (
        mt_cot.lessons(tokenizer, QUESTIONS, WHY, "MT-CoT"),
        mt_cot.lessons(tokenizer, QUESTIONS, None, "MT-CoT"),
    )
    first, second = by_gradient(bundle, step(both, (1.0, 0.0))), by_gradient(bundle, step(alone, (1.0, 0.0)))
    assert torch.equal(first[0], second[0]) and all(
        torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True)
    )
    mixed = by_gradient(bundle, step(both, (0.5, 0.5)))
    assert mixed[0] != first[0]


def test_the_loss_is_the_weighted_sum_of_the_two_tasks_means():
    bundle = micro.model()
    lessons = mt_cot.lessons(bundle.tokenizer, QUESTIONS, WHY, "MT-CoT")
    answers, reasons = (float(loss(bundle, step(lessons, s))) for s in ((1.0, 0.0), (0.0, 1.0)))
    assert float(loss(bundle, step(lessons, (0.3, 0.7)))) == pytest.approx(
        0.3 * answers + 0.7 * reasons, rel=1e-5
    )


def test_a_long_rationale_does_not_change_the_answer_tasks_weight():
    tokenizer = micro.model().tokenizer
    for why in (WHY, [5 * w for w in WHY]):
        parts = step(mt_cot.lessons(tokenizer, QUESTIONS, why, "MT-CoT"), (0.5, 0.5)).parts
        assert [float(p.weights.sum()) for p in parts] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize(
    "form, expected",
    [
        ("MT-Re", "1 and 2 is 3."),
        ("MT-Ra", f"{MARK} 3. 1 and 2 is 3."),
        ("MT-CoT", f"1 and 2 is 3. {MARK} 3"),
    ],
)
def test_the_three_forms(form, expected):
    q = Question("sum", 1, "1 + 2?", "3", "1 and 2 is 3.")
    (answer,), (second,) = mt_cot.lessons((t := micro.model().tokenizer), [q], [q.worked], form)[0]

    def said(r):
        return (t.decode(r.ids[: r.start]), t.decode(r.ids[r.start : -1]).strip())

    assert said(answer) == ("predict: 1 + 2?", "3") and said(second) == ("explain: 1 + 2?", expected)
    if form != "MT-Re":
        assert tasks.right(q, mt_cot.by_form(form, expected))


def test_thinking_is_believed_only_where_its_answer_is_right():
    """COTE: right with steps, right without steps, wrong, and no answer at all."""
    texts = iter([f"One and two. {MARK} 3", f"{MARK} 3", f"One and two. {MARK} 4", "One and two is 3"])
    q = Question("sum", 1, "1 + 2?", "3", "")
    found = mt_cot.explanations(interview(lambda p: next(texts)), [q] * 4, "COTE", 16, 0)
    assert found.texts == ["One and two.", "", "", ""] and found.right == 2 and found.given == 0


def test_crop_asks_again_with_the_answer_only_where_thinking_failed():
    asked = []

    def answer(prompt):
        asked.append(prompt)
        if "Think" in prompt:
            return (
                f"Steps. {MARK} {'0' if '4 + ' in prompt else sum(int(x) for x in prompt[:6] if x.isdigit())}"
            )
        return "Because."

    found = mt_cot.explanations(interview(answer), QUESTIONS, "CROP", 16, 0)
    wrong = [q for q in QUESTIONS if q.text.startswith("4")]
    assert asked == [mt_cot.think(q) for q in QUESTIONS] + [mt_cot.explain(q) for q in wrong]
    assert (
        found.given == 5
        and found.texts == ["Because." if q in wrong else "Steps." for q in QUESTIONS]
        and found.right == 20
    )
    told = mt_cot.explanations(interview(lambda p: "Because."), QUESTIONS, "RP", 16, 0)
    assert told.right is None and told.given == len(QUESTIONS)


def test_training_and_judged_questions_are_apart_and_a_kind_that_runs_out_is_told(monkeypatch):
    def drawn(questions, judged):
        seen = {}
        monkeypatch.setattr(
            mt_cot,
            "distil",
            lambda bundle, context, params, q, j: seen.update(q=q, j=j) or Edit(bundle=bundle),
        )
        params = mt_cot.MtCotParams(questions=questions, judged=judged)
        edit = mt_cot.compress(micro.model(), micro.context(), params)
        assert not {q.text for q in seen["q"]} & {q.text for q in seen["j"]}
        return len(seen["q"]), len(seen["j"]), [dict(n.facts) for n in edit.notes]

    assert drawn(300, 60) == (300, 60, [])
    monkeypatch.setattr(tasks, "LEVELS", (1,))
    monkeypatch.setattr(tasks.apart, "__defaults__", ((1,),))
    taught, judged, notes = drawn(3_000, 60)
    (scarce, *_) = notes
    assert judged == 60 and taught < 3_000 and scarce["kind"] == "parity"
    assert scarce["asked"] == 1_020 > scarce["found"]


def test_an_unchecked_explanation_and_the_teachers_own_answers_are_told():
    params = mt_cot.MtCotParams(
        teaching="teacher", compare=False, train_tokens=500, warm_up=0.0, explanation_tokens=8
    )
    edit = mt_cot.distil(
        micro.model(), micro.context(micro.Stub(lambda p: f"So. {MARK} 4")), params, QUESTIONS, QUESTIONS[:8]
    )
    right = sum(q.answer == "4" for q in QUESTIONS)
    assert micro.facts(edit, "teacher_right")["right"] == 100 * right / 25 == 20.0
    assert micro.facts(edit, "explanations_given") == {"given": 25 - right, "used": 25}


def parity(bits):
    """Odd or even number of ones, with the parity after each bit as the way there: one letter a bit, so that
    no step is long."""
    odd, way = 0, ""
    for bit in bits:
        odd ^= bit
        way += "eo"[odd]
    return Question("parity", 1, "".join(map(str, bits)), ("even", "odd")[odd], way)


@pytest.mark.slow
def test_the_way_makes_a_task_learnable_that_answers_alone_do_not_teach():
    """Parity of 8 bits, 200 questions to learn from and the 56 others to be judged by: in explanation mode
    nearly all are right; one trained on answers alone guesses, and so does this one's answer mode (which the
    paper promises more of, at its scale)."""
    every = [parity(bits) for bits in itertools.product((0, 1), repeat=8)]
    # as often each question
    tokens, reached = {"oracle": 800_000, "answers": 280_000}, {"oracle": [], "answers": []}
    for seed in (0, 1):
        Random(seed).shuffle(every)
        for teaching, modes in reached.items():
            params = mt_cot.MtCotParams(
                teaching=teaching,
                train_tokens=tokens[teaching],
                train_minutes=60.0,
                warm_up=0.0,
                compare=False,
                learning_rate=2e-3,
                explanation_tokens=16,
            )
            edit = mt_cot.distil(
                micro.model(seed=seed), micro.context(seed=seed), params, every[:200], every[200:]
            )
            way = "explained_right" if teaching == "oracle" else "answers_right"
            modes.append(statistics.fmean(micro.judged(edit, way).after))
    assert min(reached["oracle"]) > 0.9 and max(reached["answers"]) < 0.75
