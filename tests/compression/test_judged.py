"""By what a distillation is judged: the record's rules, the chance level, and what each method returns."""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from collections import Counter
from random import Random

import pytest
import torch
import torch.nn.functional as F

from compression import calibrate, get
from compression.base import Edit
from compression.distillation import icl_distillation as icl
from compression.distillation import lion, mt_cot, rollouts, tasks, white_box
from compression.judged import Judged, best_guess
from compression.recorder import QUIET
from tests import chain_language as language
from tests import micro, tiny

ONE = Judged("answers_right", "q", (0.0, 1.0), (1.0, 1.0), (0.0, 0.0), (0, 0), 0.5)


# --- the record ---


def test_a_record_survives_json():
    assert Judged.parse(json.loads(json.dumps(ONE.json()))) == ONE
    third = dataclasses.replace(ONE, after=(1 / 3, 2 / 3), control=(), clusters=(), chance=None)
    again = Judged.parse(json.loads(json.dumps(third.json())))
    assert again.after == pytest.approx(third.after, rel=1e-5) and again.control == () == again.clusters


@pytest.mark.parametrize(
    "change, said",
    [
        ({"measure": "beauty"}, "no measure 'beauty'; allowed: own_reverse_kl"),
        ({"after": (1.0,)}, "need one length"),
        ({"before": (1.0,)}, "need one length"),
        ({"control": (1.0,)}, "need one length"),
        ({"clusters": (1,)}, "need one length"),
        ({"before": (), "after": (), "control": (), "clusters": ()}, "at least 1"),
        ({"after": (1.0, float("nan"))}, "isn't finite"),
        ({"chance": float("inf")}, "isn't finite"),
    ],
)
def test_a_record_that_cannot_be_paired_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(ONE, **change)


def test_the_best_guess_is_the_best_of_all_constant_guesses():
    """By trying every choice of one answer a kind on drawn questions."""
    for seed in range(5):
        questions = tasks.draw(tasks.REASONING, 30, Random(seed))
        kinds, answers = [q.kind for q in questions], [q.answer for q in questions]
        names = sorted(set(kinds))
        best = max(
            statistics.fmean(guess[names.index(k)] == a for k, a in zip(kinds, answers, strict=True))
            for guess in itertools.product(sorted(set(answers)), repeat=len(names))
        )
        assert best_guess(kinds, answers) == pytest.approx(best)
    assert best_guess(["a", "a", "b"], ["x", "y", "z"]) == pytest.approx(2 / 3)


def test_two_hundred_questions_know_a_share_to_seven_points():
    """What the knob's words promise, by the binomial's own spread at its widest."""
    for questions, points in ((200, 7.0), (800, 3.5)):
        assert 100 * 1.96 * (0.25 / questions) ** 0.5 == pytest.approx(points, abs=0.1)
    for name in ("icl_distillation", "mt_cot", "lion"):
        method = get(name)
        assert method.params().judged >= 200 and method.full.get("judged", 200) >= 200
    assert white_box.JUDGED_SAMPLES >= 200


def test_a_later_step_leaves_nothing_of_what_an_earlier_one_was_judged_by():
    """A rounded student is no longer the student that was judged."""
    judged = get("gkd")
    tuned = dataclasses.replace(
        judged, compress=lambda bundle, context, p: Edit(bundle=bundle, judged=(ONE,))
    )
    first, then = (tuned, judged.params(kept=0.5, train_tokens=0)), (get("rtn"), get("rtn").params())
    assert calibrate.compress(tiny.bundle(), [first], tiny.ids(4)).judged == [ONE]
    assert calibrate.compress(tiny.bundle(), [first, then], tiny.ids(4)).judged == []


# --- reverse KL on own samples ---


def lesson(student, seed=0, **values):
    params = get("gkd").params.parse({"prompt_tokens": 4, "response_tokens": 6} | values)
    recorder = dataclasses.replace(QUIET, seed=seed)
    return white_box.Lesson(
        student, language.model(seed=1), language.text(16, 2), language.text(2, 3), params, recorder
    )


def test_each_samples_reverse_kl_is_that_of_the_whole_distributions():
    """MiniLLM, equation 1, a token at a time: sum_v q(v) (log q(v) - log p(v)) in 64 bits, each sample alone.

    Samples end early, so that the ids behind their ends must not count.
    """
    student, ends = language.model(16, 1), frozenset({3, 4})
    found = lesson(student)
    drawn = rollouts.draw(student, None, found.prompts[:8], 6, 0.0, ends, torch.Generator().manual_seed(0))
    assert drawn.lengths.min() < drawn.lengths.max()
    with torch.no_grad():
        forward, reverse = found.divergences(drawn)
    for row, length, f, r in zip(drawn.ids, drawn.lengths.tolist(), forward, reverse, strict=True):
        p, q = (
            F.log_softmax(tiny.logits(m, row[None, : 4 + length])[0].double(), -1)[3:-1]
            for m in (found.teacher, student)
        )
        assert len(p) == length
        assert float(r) == pytest.approx(float((q.exp() * (q - p)).sum(-1).mean()), rel=1e-4)
        assert float(f) == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)


def test_a_student_that_is_its_teacher_has_no_divergence():
    facts, values = lesson(language.model(seed=1)).measured()
    assert max(values) < 1e-6 and facts["own_reverse"] == pytest.approx(statistics.fmean(values), abs=1e-9)


def test_samples_of_one_prompt_are_a_cluster_and_equal_questions_have_equal_names():
    found, other = lesson(language.model(16, 1)), lesson(language.model(16, 1, seed=5))
    assert len(found.prompts) == 2 * language.WINDOW // 4 == 16
    assert Counter(found.clusters) == {i: 13 if i < 8 else 12 for i in range(16)}
    assert found.asked == other.asked, "another student, the same question"
    assert found.asked != lesson(language.model(16, 1), seed=1).asked, "other randomness"
    assert found.asked != lesson(language.model(16, 1), response_tokens=7).asked, "longer samples"
    assert found.asked != lesson(language.model(16, 1), prompt_tokens=8).asked, "other prompts"
    moved = dataclasses.replace(found, teacher=dataclasses.replace(found.teacher, name="another"))
    assert moved.asked != found.asked, "another teacher"


@pytest.mark.parametrize("name", ["gkd", "minillm"])
def test_a_white_box_method_returns_what_its_note_tells(name):
    method = get(name)
    params = method.params.parse({"train_tokens": 600, "prompt_tokens": 4, "response_tokens": 6})
    context = micro.context(language.model(32, 1, 9))
    context = dataclasses.replace(context, windows=language.text(16, 6))
    edit = method.compress(language.model(16, 1), context, params)
    (one,) = edit.judged
    told = micro.facts(edit, "divergences")
    assert (one.measure, len(one.after), one.control, one.chance) == ("own_reverse_kl", 200, (), None)
    assert statistics.fmean(one.before) == pytest.approx(told["own_reverse_before"], rel=1e-5)
    assert statistics.fmean(one.after) == pytest.approx(told["own_reverse_after"], rel=1e-5)


# --- the black-box methods ---


def test_the_gain_of_each_case_is_the_label_with_demonstrations_less_the_label_without(monkeypatch):
    """A student that copies the first demonstration's label, and says the first label where there is none."""
    found = icl.plan(icl.IclParams(questions=16, judged=30, demonstrations=4), icl.WORLD, 0)

    def costs(bundle, rows, recorder=QUIET):
        out = []
        for prompt, label in rows:
            lines = prompt.splitlines()[1:-1]
            said = lines[0].split()[-1] if lines else None
            out.append(0.0 if said == label else 1.0)
        return out

    monkeypatch.setattr(icl, "costs", costs)
    monkeypatch.setattr(icl, "row", lambda tokenizer, prompt, label: (prompt, label))
    reading = icl.read(micro.model(), found.alike, QUIET)
    for case, gain in zip(found.alike, reading.gains, strict=True):
        (shown,) = case.shown
        first = dict(shown.demonstrations[:1])
        copied = next(iter(first.values()))
        assert gain == (copied == shown.answer) - (case.bare.labels[0] == case.bare.answer)
    assert len(set(reading.gains)) > 1


@pytest.mark.parametrize("setting, clusters", [("meta", 40), ("multitask", icl.TARGETS)])
def test_queries_of_one_task_belong_together(setting, clusters):
    found = icl.plan(icl.IclParams(questions=16, judged=40, setting=setting), icl.WORLD, 3)
    assert len({case.task for case in found.alike}) == clusters
    by_task = {case.task: case.bare.labels for case in found.alike}
    assert all(case.bare.labels == by_task[case.task] for case in found.alike)


def test_in_context_distillation_is_judged_by_gains_on_both_kinds_of_tasks():
    params = icl.IclParams(questions=16, judged=12, teaching="oracle", warm_up=0.0, train_tokens=300)
    edit = icl.distil(micro.model(), micro.context(), params, icl.WORLD)
    assert [one.measure for one in edit.judged] == ["demonstration_gain_alike", "demonstration_gain_others"]
    assert all(len(one.after) == 12 and one.chance == 0.0 and not one.control for one in edit.judged)
    assert {x for one in edit.judged for x in (*one.before, *one.after)} <= {-1.0, 0.0, 1.0}
    assert edit.judged[0].asked != edit.judged[1].asked


def says(monkeypatch, module, answer):
    """Every student of a method answers by this rule, whatever it learnt."""
    monkeypatch.setattr(
        module, "replies", lambda bundle, prompts, tokens, recorder=QUIET: [answer(p) for p in prompts]
    )


def test_mt_cot_is_judged_in_both_modes_with_the_chance_level(monkeypatch):
    """A student that knows parity when it may explain, and says "even" at once otherwise."""
    questions = tasks.draw(tasks.REASONING, 60, Random(0))
    known = {q.text: q for q in questions}

    def answer(prompt):
        mode, text = prompt.split(": ", 1)
        q = known[text]
        return f"Steps. {tasks.MARK} {q.answer}" if mode == "explain" and q.kind == "parity" else "even"

    says(monkeypatch, mt_cot, answer)
    params = mt_cot.MtCotParams(
        teaching="oracle", compare=False, warm_up=0.0, train_tokens=300, explanation_tokens=8
    )
    edit = mt_cot.distil(micro.model(), micro.context(), params, questions[:30], questions[30:])
    right, explained = edit.judged
    assert right.after == tuple(float(q.answer == "even") for q in questions[30:])
    assert explained.after == tuple(float(q.kind == "parity") for q in questions[30:])
    kinds = Counter(q.kind for q in questions[30:])
    most = {k: Counter(q.answer for q in questions[30:] if q.kind == k).most_common(1)[0][1] for k in kinds}
    assert right.chance == explained.chance == sum(most.values()) / 30
    assert right.asked == explained.asked, "a control in answer mode may stand beside either"


def test_lion_is_judged_by_the_right_answers_and_by_its_teachers(monkeypatch):
    """Of a teacher that always says the same, a student that says it too has learnt everything, and nothing of
    the right answers."""
    says(monkeypatch, lion, lambda prompt: "apple pear")
    params = lion.LionParams(
        questions=16, judged=12, warm_up=0.0, train_tokens=300, generated=2, lion_rounds=0, compare=False
    )
    edit = lion.distil(micro.model(), micro.context(micro.Stub(lambda prompt: "apple plum")), params)
    overlap, agreement = edit.judged
    assert (overlap.measure, agreement.measure) == ("instructions_overlap", "teacher_agreement")
    assert agreement.after == (0.5,) * 12 and max(overlap.after) < 0.5
    oracle = dataclasses.replace(params, teaching="oracle")
    assert [one.measure for one in lion.distil(micro.model(), micro.context(), oracle).judged] == [
        "instructions_overlap"
    ]


@pytest.mark.parametrize("name, tokens", [("mt_cot", 62 + 138), ("lion", 82), ("icl_distillation", 4 * 120)])
def test_the_estimate_counts_what_judging_reads_and_writes(name, tokens):
    """Of the student before and after, and of the control; a question has 50 tokens on the offline model."""
    method = get(name)

    def passes(**values):
        """Over the whole of a student of half the layers."""
        chosen = method.params(kept=0.5, teaching="oracle", **values)
        return method.cost_of((8, 16), chosen, 0, "up").flops / (2 * 8 * 16) / 0.5

    for compare, judged_times in ((False, 2), (True, 2 if name == "icl_distillation" else 3)):
        more = passes(judged=300, compare=compare) - passes(judged=200, compare=compare)
        assert more == pytest.approx(judged_times * 100 * tokens)
    assert passes(judged=300, train_tokens=0) == passes(judged=200, train_tokens=0)
