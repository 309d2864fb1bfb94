"""ICL distillation: fair prompts, disjoint tasks, the loss of the paper's two terms, votes, and what it
measures."""

from __future__ import annotations

import statistics
from random import Random

import pytest

from compression.distillation import icl_distillation as icl
from compression.distillation import tasks
from compression.distillation.tasks import Naming
from compression.teacher import TextTeacher
from tests import micro


def both(setting):
    return icl.plan(icl.IclParams(questions=60, judged=40, setting=setting, demonstrations=6), icl.WORLD, 3)


def cases(found):
    return [*found.alike, *found.others]


@pytest.mark.parametrize("setting", ["meta", "multitask"])
def test_a_query_is_never_among_its_demonstrations_and_these_are_balanced(setting):
    found = both(setting)
    for shown in (*found.prompts, *(s for c in cases(found) for s in c.shown)):
        words, labels = zip(*shown.demonstrations, strict=True)
        assert shown.query not in words and len(set(words)) == 6
        assert sorted(map(labels.count, shown.labels)) == [3, 3] and shown.answer in shown.labels
        assert (
            shown.prompt
            == tasks.HEADER + "".join(f"{w} -> {y}\n" for w, y in shown.demonstrations) + f"{shown.query} ->"
        )


def classes_of(shown):
    return {
        name
        for name, words in tasks.CLASSES.items()
        for w in (shown.query, *(w for w, _ in shown.demonstrations))
        if w in words
    }


def test_meta_trains_on_other_classes_than_it_is_judged_on_as_unseen():
    found = both("meta")
    learnt = set().union(*map(classes_of, found.prompts))
    unseen = set().union(*(classes_of(s) for c in found.others for s in c.shown))
    alike = set().union(*(classes_of(s) for c in found.alike for s in c.shown))
    assert (
        not learnt & unseen
        and unseen <= set(tasks.UNSEEN)
        and alike <= learnt | (set(tasks.CLASSES) - set(tasks.UNSEEN))
    )


def test_multitask_learns_the_few_examples_of_the_judged_tasks():
    found = both("multitask")
    known = {(frozenset(s.labels), frozenset(classes_of(s))) for s in found.prompts}
    judged = {(frozenset(s.labels), frozenset(classes_of(s))) for c in found.alike for s in c.shown}
    assert judged <= known and len(known) <= icl.TARGETS and all(len(c.shown) == 5 for c in found.alike)


@pytest.mark.parametrize("setting", ["meta", "multitask"])
def test_no_judged_word_is_ever_learnt_from(setting):
    found = both(setting)
    learnt = {w for s in found.prompts for w in (s.query, *(w for w, _ in s.demonstrations))}
    assert not learnt & {c.bare.query for c in cases(found)}


def test_labels_mean_nothing_beyond_the_demonstrations():
    """With the label words swapped in the whole prompt the right answer is swapped, and nothing else
    changes."""
    one = Naming((("a", "b", "c"), ("d", "e", "f")), ("up", "down"))
    two = Naming(one.words, ("down", "up"))
    first, second = (tasks.show(t, 4, t.all_words, "b", Random(1)) for t in (one, two))
    assert [w for w, _ in first.demonstrations] == [w for w, _ in second.demonstrations]
    assert all(a != b for (_, a), (_, b) in zip(first.demonstrations, second.demonstrations, strict=True))


def test_the_loss_is_the_share_of_the_right_label_and_of_the_teachers_answers():
    """a CE(gold) + (1 - a) CE(y*): of four answers one names no label, two the wrong one, one the right
    one."""
    tokenizer = micro.model().tokenizer
    shown = tasks.show(
        Naming((("a", "b", "c"), ("d", "e", "f")), ("up", "down")), 2, "abcdef", "a", Random(0)
    )
    params = icl.IclParams(gold_share=0.4)
    (rows,) = icl.lessons(tokenizer, [shown], [["I say down.", "down", "who knows", "Up? up it is"]], params)[
        0
    ]
    weights = {tokenizer.decode(r.ids[r.start : -1]).strip(): r.weight for r in rows}
    assert weights == pytest.approx({"up": 0.4 + 0.6 / 3, "down": 0.6 * 2 / 3})
    assert icl.lessons(tokenizer, [shown], [["who knows"]], params) == [], "no label: dropped"
    alone = icl.lessons(tokenizer, [shown], None, params)[0][0]
    assert [r.weight for r in alone] == [1.0] and tokenizer.decode(alone[0].ids[alone[0].start : -1]) == " up"


def test_without_a_weight_for_reading_only_the_label_is_learnt():
    tokenizer = micro.model().tokenizer
    shown = tasks.show(
        Naming((("a", "b", "c"), ("d", "e", "f")), ("up", "down")), 2, "abcdef", "a", Random(0)
    )
    for weight in (0.0, 0.5):
        r = icl.lessons(tokenizer, [shown], None, icl.IclParams(read_weight=weight))[0][0][0]
        text = tokenizer.decode(r.ids[r.span[0] : r.span[1]])
        assert text == (shown.demonstrated if weight else "")


@pytest.mark.parametrize(
    "labels, expected", [(["up"] * 5, "up"), (["up", "down", "down"], "down"), (["up", "down"], "up")]
)
def test_votes(labels, expected):
    assert icl.vote(labels) == expected


def test_a_label_is_found_in_a_sentence_and_never_in_a_longer_word():
    assert tasks.label_in("The answer is down, not up.", ("up", "down")) == "down"
    assert tasks.label_in("upper Down", ("up", "down")) is None


def test_the_teachers_share_of_right_labels_and_of_texts_used_is_told():
    found = icl.plan(icl.IclParams(questions=16, judged=8), icl.WORLD, 0)
    right = {s.prompt: s.answer for s in found.prompts}
    wrong = {s.prompt: next(x for x in s.labels if x != s.answer) for s in found.prompts}
    order = list(right)

    def answer(p):
        return "hm" if p in order[:4] else wrong[p] if p in order[4:8] else right[p]

    params = icl.IclParams(questions=16, judged=8, teaching="teacher", compare=False, train_tokens=500)
    edit = icl.distil(micro.model(), micro.context(micro.Stub(answer)), params, icl.WORLD)
    assert micro.facts(edit, "teacher_right")["right"] == 50.0 == micro.facts(edit, "teacher_unsure")["right"]
    assert micro.facts(edit, "teacher_texts")["used"] == 75.0


def learnt(params, teacher=None, seed=0):
    """(the student after its training, what demonstrations bring it on tasks like those trained on, the
    edit): words of two classes, four of each, under two of four labels; it ends when the labels are read,
    after about a million tokens."""
    few = {
        name: words[:4]
        for name, words in tasks.CLASSES.items()
        if name in ("animals", "fruits", "jobs", "furniture")
    }
    world = icl.World(few, ("jobs", "furniture"), tasks.LABELS[:4], apart=False)
    told = ["->", *tasks.HEADER.split(), *world.labels, *(w for words in few.values() for w in words)]
    student, best = micro.model(seed=seed, tokenizer=micro.tokenizer_of(told)), [9.0]

    def emit(event):
        best[0] = event.get("facts", {}).get("best", best[0])

    context = micro.context(teacher, seed, emit=emit, enough=lambda: best[0] < 0.53)
    edit = icl.distil(student, context, params, world)
    return student, micro.judged(edit, "demonstration_gain_alike"), edit


@pytest.mark.slow
def test_a_student_learns_from_a_teachers_strings_to_read_demonstrations(tmp_path):
    """A teacher that reads them (it was trained on right labels); two students that see its texts and nothing
    else. The gain rises by 46 and 52 points (63 and 55 on one thread); on classes whose words they never met
    it stays where it was (-6 and 5), since no word of theirs means anything."""
    each = dict(
        demonstrations=6,
        questions=4000,
        judged=100,
        read_weight=1.0,
        compare=False,
        train_tokens=5_000_000,
        train_minutes=60.0,
        learning_rate=2e-3,
    )
    teacher, reads, _ = learnt(icl.IclParams(teaching="answers", **each))
    assert statistics.fmean(reads.after) > 0.35
    for seed in (1, 2):
        strings = TextTeacher(teacher, tmp_path / "answers.jsonl")
        _, alike, edit = learnt(icl.IclParams(teaching="teacher", gold_share=0.0, **each), strings, seed)
        assert micro.facts(edit, "teacher_right")["right"] > 95
        before, after = statistics.fmean(alike.before), statistics.fmean(alike.after)
        assert abs(before) < 0.15 and after > before + 0.3, alike
        saved = micro.facts(edit, "demonstrations_loss")
        assert saved["alike"] > 0.5 > abs(saved["alike_before"]) + 0.4, "nats of ln 2"
