"""Lion: the referee's two orders, a partition, new instructions that are new, one hard for one easy, and a
loop that repeats."""

from __future__ import annotations

from itertools import combinations
from random import Random

import pytest

from compression.base import BadParam
from compression.distillation import lion, tasks
from compression.distillation.tasks import Question
from tests import micro

POOL = lion.distinct(tasks.INSTRUCTIONS, 30, Random(0))


def test_swapping_the_two_reviews_leaves_the_difference_unchanged():
    """d is antisymmetric in who is who: a referee that always prefers the first place prefers nobody."""
    forward, backward = ["8 5", "7, 3", "A: 9\nB: 9"], ["4 9", "6 2", "10 1.5"]
    one = lion.both_ways(forward, backward)
    other = lion.both_ways(backward, forward)
    assert one == [(8.5, 4.5), (4.5, 4.5), (5.25, 9.5)]
    assert [(b, a) for a, b in other] == one


@pytest.mark.parametrize("text", ["", "good", "7", "0 5", "11 3", "-1 -1", "error"])
def test_a_review_that_cannot_be_read_is_missing_and_neither_hard_nor_easy(text):
    assert lion.scores_in(text) is None or text == "-1 -1"
    if text != "-1 -1":
        scores = lion.both_ways(["9 1", text, "5 5"], ["1 9", "1 9", "5 5"])
        assert scores[1] is None and lion.discriminate(scores) == ([0], [2])


def test_hard_is_a_lead_of_a_point_and_the_partition_is_whole():
    scores = [(10.0, 9.0), (10.0, 9.01), (1.0, 10.0), (5.0, 5.0), (6.5, 5.0), None]
    hard, easy = lion.discriminate(scores)
    assert hard == [0, 4] and easy == [1, 2, 3] and not set(hard) & set(easy)


def test_the_rule_gives_ten_to_the_exact_answer_alone():
    q = Question("sort", 1, "Sort by alphabet: b, a, c", "a, b, c")
    assert (
        lion.by_rule(q, "A, b, c.") == 10.0 and lion.by_rule(q, "") == 1.0 and lion.by_rule(q, "x y z") == 1.0
    )
    assert lion.by_rule(q, "b, a, c") == pytest.approx(1 + 9 * 2 / 3) and lion.by_rule(q, "a, b") < 10.0


@pytest.mark.parametrize("levels", [0, 1])
def test_new_instructions_are_new_as_many_hard_as_easy_and_as_hard_as_their_seeds(levels):
    """Or so many levels harder than the hard ones, if that is asked for."""
    scores = [(10.0, 1.0) if i % 3 else (10.0, 10.0) for i in range(len(POOL))]
    judged = lion.distinct(tasks.INSTRUCTIONS, 8, Random(9), known=POOL)

    def grow(scores):
        random = Random(1)

        def make(seeds, count, hard, known):
            return lion.generate(seeds, count, levels if hard else 0, known, random)

        new = lion.grow(POOL, *lion.discriminate(scores), 6, judged, random, make)
        return new[: len(new) // 2], new[len(new) // 2 :]

    harder, others = grow(scores)
    assert len(harder) == len(others) == 6
    for new, old in [
        *combinations(harder + others, 2),
        *((n, p) for n in harder + others for p in (*POOL, *judged)),
    ]:
        assert tasks.overlap(new.text, old.text) <= 0.7
    hard, easy = lion.discriminate(scores)

    def places(some):
        return {(POOL[i].kind, POOL[i].level) for i in some}

    raised = {(kind, min(level + levels, 3)) for kind, level in places(hard)}
    assert {(q.kind, q.level) for q in harder} <= raised
    assert {(q.kind, q.level) for q in others} <= places(easy)
    assert (harder, others) == grow(scores), "the same for a seed"
    assert grow([(10.0, 1.0)] * len(POOL)) == ([], []), "none easy: none new"


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_new_instructions_are_as_hard_as_the_authors_ask_unless_harder_ones_are_wanted(levels):
    """Like an easy seed, never harder."""
    params = lion.LionParams(teaching="oracle", harder=levels)
    assert lion.LionParams().harder == 0
    loop = lion.Loop(None, micro.context(), params, (), POOL, None, hunts=True)
    seeds = [q for q in POOL if q.level == 1]
    for hard, level in ((True, 1 + levels), (False, 1)):
        new = loop.invent(seeds, 8, hard, list(POOL))
        assert len(new) == 8 and {q.level for q in new} == {level}
        assert {q.kind for q in new} <= {q.kind for q in seeds}


def oracle_run(seed=0, **changes):
    params = lion.LionParams(
        **{
            "teaching": "oracle",
            "questions": 24,
            "judged": 8,
            "train_tokens": 1500,
            "warm_up": 0.0,
            "compare": False,
            "generated": 4,
            "lion_rounds": 1,
        }
        | changes
    )
    return lion.distil(micro.model(), micro.context(seed=seed), params)


def test_the_same_seed_is_the_same_run():
    first, again = oracle_run(), oracle_run()
    assert (
        first.files == again.files
        and first.series == again.series
        and [n.json() for n in first.notes][1:] == [n.json() for n in again.notes][1:]
    )
    assert first.files != oracle_run(seed=1).files


def test_a_round_finds_what_the_student_lacks_and_learns_it(monkeypatch):
    """A student that fails on all words and knows all numbers: hard and easy are those, and new ones of both
    are answered."""
    knows = ("largest", "total")
    by_text = {}
    original = lion.Loop.student
    monkeypatch.setattr(
        lion.Loop, "student", lambda self, bundle, qs: [q.answer if q.kind in knows else "?" for q in qs]
    )
    edit = oracle_run(lion_rounds=2, train_tokens=3_000)
    rounds = [dict(n.facts) for n in edit.notes if n.code == "lion_round"]
    assert [r["new"] for r in rounds] == [8, 8] and [r["pool"] for r in rounds] == [24, 32]
    assert 60 < rounds[0]["hard"] < 90 and rounds[0]["unread"] == 0 and original and not by_text
    assert micro.facts(edit, "oracle_texts")["texts"] == 40
    curve = [row[0] for row in edit.series["training"]]
    assert curve == sorted(curve), "three trainings end to end"


def test_a_model_as_the_referee_is_asked_in_both_orders():
    seen = []

    def answer(prompt):
        seen.append(prompt)
        return "9 2" if "Score both" in prompt else "apple"

    params = lion.LionParams(
        questions=16,
        judged=8,
        train_tokens=900,
        warm_up=0.0,
        generated=2,
        lion_rounds=1,
        referee="teacher",
        compare=False,
    )
    edit = lion.distil(micro.model(), micro.context(micro.Stub(answer)), params)
    reviews = [p for p in seen if "Score both" in p]
    assert (
        len(reviews) == 32
        and all("Answer A: apple" in p for p in reviews[:16])
        and all("Answer B: apple" in p for p in reviews[16:])
    )
    assert micro.facts(edit, "lion_round") == {"round": 1, "hard": 0.0, "unread": 0, "pool": 16, "new": 0}, (
        "it prefers a place, nobody leads"
    )


@pytest.mark.parametrize(
    "text, kept",
    [
        ("Name three rivers of Europe.", "Name three rivers of Europe."),
        ("\n  Which planet is largest?\nIt is about planets.", "Which planet is largest?"),
        ("Say the words backwards: one two three\n", None),  # nothing shows that the line was finished
        ("Count the vowels of the word", None),
        ("Go there now.", None),
        ("Write an instruction about rivers.", None),
        ("- Name three rivers of Europe.", None),
        ("Nenne drei Flüsse in Europa.", None),
        ("", None),
    ],
)
def test_what_a_model_invents_is_read_as_the_authors_read_it(text, kept):
    assert lion.invented(text) == kept


class Inventor(micro.Stub):
    """Invents a new instruction at each request, every second time one that is known already, and prefers its
    own answers."""

    def __init__(self):
        super().__init__(
            lambda prompt: (
                "9 2" if "Answer A: apple" in prompt else "2 9" if "Score both" in prompt else "apple"
            )
        )
        self.invited, self.number = [], 0

    def ask(self, prompts, count=1, **how):
        if "Write one new instruction" not in prompts[0]:
            return super().ask(prompts, count=count, **how)
        self.invited += prompts
        return [[self.draft(prompt) for _ in range(count)] for prompt in prompts]

    def draft(self, prompt):
        self.number += 1
        words = " ".join(
            "".join(chr(97 + self.number * k % 26) for k in range(i + 1, i + 6)) for i in range(4)
        )
        return (
            f"Explain {words}."
            if self.number % 2
            else prompt.removeprefix("Instruction: ").split("\n")[0] + "."
        )


def test_a_model_that_invents_is_its_own_referee_and_what_it_invents_is_learnt(monkeypatch):
    teacher = Inventor()
    params = lion.LionParams(
        questions=16,
        judged=8,
        train_tokens=900,
        warm_up=0.0,
        generated=2,
        lion_rounds=1,
        referee="teacher",
        inventor="teacher",
        compare=False,
    )

    def leads(self):
        return [(9.0, 2.0) if i % 2 else (5.0, 5.0) for i in range(len(self.pool))]

    monkeypatch.setattr(lion.Loop, "scores", leads)
    edit = lion.distil(micro.model(), micro.context(teacher), params)
    assert micro.facts(edit, "lion_round")["new"] == 4 and micro.facts(edit, "teacher_texts")["texts"] == 20
    assert "teacher_right" not in {n.code for n in edit.notes}, "nobody knows the right answers to these"
    assert all("similar in length and difficulty" in p for p in teacher.invited), "as the authors ask"
    hard = [p for p in teacher.invited if "the same type of task" in p]
    rarer = [p for p in teacher.invited if "a rarer one" in p]
    assert len(hard) == len(rarer) == 8 and len(teacher.invited) == 16, (
        "every seed is asked about, the hard and the easy"
    )
    with pytest.raises(BadParam, match="set referee to teacher"):
        lion.distil(micro.model(), micro.context(teacher), lion.LionParams(inventor="teacher"))


# --- the control ---


def loops():
    """(loops as they are made: a run's and its control's, the class that notes them)."""
    made = []

    class Seen(lion.Loop):
        def __init__(self, *args, **how):
            super().__init__(*args, **how)
            made.append(self)

    return made, Seen


@pytest.mark.parametrize("teaching", ["oracle", "teacher"])
def test_the_control_has_the_same_teachers_answers_to_as_many_instructions_chosen_by_chance(
    teaching, monkeypatch
):
    """The same start, teacher, seeds, rounds and tokens of each round; only the choice of seeds differs."""
    made, seen = loops()
    monkeypatch.setattr(lion, "Loop", seen)
    knows = ("largest", "total", "sort")
    monkeypatch.setattr(
        seen, "student", lambda self, bundle, qs: ["" if q.kind in knows else q.answer for q in qs]
    )
    said = {}

    def answer(prompt):
        said[prompt] = str(len(said))
        return said[prompt]

    monkeypatch.setattr(lion, "by_rule", lambda q, text: 10.0 if text else 1.0)
    params = lion.LionParams(
        teaching=teaching, questions=24, judged=8, train_tokens=3_000, warm_up=0.0, generated=4, lion_rounds=2
    )
    edit = lion.distil(micro.model(), micro.context(micro.Stub(answer)), params)
    own, other = made
    assert own.hunts and not other.hunts and own.answerer is other.answerer
    assert own.pool[:24] == other.pool[:24] and len(own.pool) == len(other.pool) == 40
    assert own.pool[24:] != other.pool[24:]
    assert [p.new for p in own.done] == [p.new for p in other.done] == [0, 4, 4]
    for part, again in zip(own.done, other.done, strict=True):
        assert again.budget.tokens == pytest.approx(part.budget.tokens, abs=1_100), "within a step"
    hard = [sum(q.kind in knows for q in loop.pool[24:]) for loop in made]
    assert hard[0] == 8 > hard[1], "half of the new ones are like what the student can't do"
    if teaching == "teacher":
        told = own.answerer.answers
        assert all(told[q.text] == said[lion.request(q)] for q in (*own.pool, *other.pool))
    else:
        assert all(own.answerer.answers[q.text] == q.answer for q in (*own.pool, *other.pool))
    facts = micro.facts(edit, "lion_control")
    assert facts["own"] == facts["texts"] == 40
    assert all(len(one.control) == len(one.after) for one in edit.judged)


def test_the_control_as_a_run_of_its_own_asks_no_referee(monkeypatch):
    params = lion.LionParams(**{**oracle_values(), "compare": True})
    name, values = lion.METHOD.control(params)
    assert (name, values) == ("lion", params.json() | {"instructions": "random"})
    control = lion.LionParams(**values)
    assert lion.METHOD.control(control) is None and not control.compares
    monkeypatch.setattr(lion.Loop, "scores", lambda self: pytest.fail("nobody is scored"))
    edit = lion.distil(micro.model(), micro.context(), control)
    assert micro.facts(edit, "oracle_texts")["texts"] == 24 + 8
    assert "lion_round" not in {n.code for n in edit.notes}


def oracle_values():
    return {
        "teaching": "oracle",
        "questions": 24,
        "judged": 8,
        "train_tokens": 1_500,
        "warm_up": 0.0,
        "generated": 4,
        "lion_rounds": 1,
    }
