"""Lion: a loop that finds the instructions at which a student is worse than its teacher, and teaches more of
that kind. The teacher shows its texts and nothing else.

The loop has three stages. Imitation: the teacher answers the instructions of the pool, and the student learns
these answers. Discrimination: both answer a growing pool, and a referee scores both; an instruction is hard
if the teacher leads by a point or more. Generation: new instructions are made, as many like the hard ones as
like the easy ones, so that the student doesn't forget the easy ones.

Jiang et al. 2023, "Lion: Adversarial Distillation of Proprietary Large Language Models", arXiv 2305.12870. In
the paper one large model is teacher, referee and generator. The lead is d = teacher's score - student's
score, each the mean of two reviews that name the answers in either order. An instruction is hard if d >= 1.0
of 10 points. A new instruction must have a ROUGE-L of at most 0.7 with every earlier one. There is one hard
for every easy instruction. The authors ask their generator for instructions of similar length and difficulty.
From a hard seed they want the same kind of task, from an easy seed a rarer task of the same domain.

Deviations. A small model can neither referee nor invent. So instructions are eight kinds of short jobs with a
right answer, in three levels. The rule-based referee gives 1 + 9 ROUGE-L with the right answer, so only an
exact answer gets 10 points. `referee` = teacher asks the model itself; a review that can't be read is left
out (the authors' code counts its instruction as easy). New instructions come from templates of the seed's own
kind and level, for hard and for easy seeds, because a template has no rarer task to offer. `harder` raises
the level of instructions from hard seeds, which the authors don't do. `inventor` = teacher asks the model
itself for new instructions, as the authors do; this takes a large model. Nobody knows the right answers to
invented instructions, so `inventor` = teacher needs `referee` = teacher. The next round trains on the new
instructions alone, or on the whole pool if there are too few new ones. Each round reports its share of hard
instructions. The student is here the teacher with fewer layers (or another model). It first reads plain text
for a share of the budget until it writes readable text (`warm_up`, with a step size of its own).

What is measured: ROUGE-L on 200 instructions that are kept aside, with the right answers and, if the teacher
is a model, with the teacher's answers, which the student imitates. Both are taken before and after the
training, and for a control on the same instructions. Exact match by level is reported too. The control starts
from the same warmed-up student and repeats the same rounds: the same teacher answers as many new
instructions, and the training takes as many tokens. Only the seeds differ: the referee separates hard from
easy instructions, and the control splits the pool by chance. So the difference shows what finding the hard
instructions is worth. `teaching` = oracle has this control too, and `instructions` = random is the control as
a run of its own. A teacher that fails at a kind of job has no lead there, so such a job is never found hard.

Layers: the run's text goes through the model once, and the layers that turn its hidden states least go
(block influence, Men et al. 2024, arXiv 2403.03853). `layers` has two other choices: a run of neighbours, and
evenly spaced ones.

What was measured: that the loop finds what a student can't do and asks for more of it, in the tests. Whether
a student is better for it than its control was not measured yet, on a small model or a pretrained one.

Cost: the teacher writes one text for each instruction, the kept-aside ones too. The student writes one for
each instruction in each round. The training after the warm-up is divided into rounds + 1 equal parts. The
warm-up is paid once. The lessons are paid twice, for student and control, and the teacher answers the
control's instructions too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from compression.base import BUDGET_MINUTES, BadParam, Context, Edit, Note, StudentMethod, param
from compression.bundle import Bundle
from compression.distillation import tasks
from compression.distillation.black_box import (
    FEWEST_LESSONS,
    READ,
    TRANSCRIPT,
    BlackBoxParams,
    cost,
    interview,
    make,
    percent,
    replies,
    row,
    teach,
    teacher_notes,
    text_tokens,
    twin,
    warm_up,
)
from compression.distillation.students import measures, reshaped
from compression.distillation.tasks import INSTRUCTIONS, LEVELS, Question
from compression.judged import Judged, questions_id
from compression.teacher import OracleTeacher
from compression.training import Budget, Course, part_of

ANSWER_TOKENS, REVIEW_TOKENS = 32, 24
LEAD = 1.0  # an instruction is hard if the teacher leads by this many of 10 points
ALIKE = 0.7  # an instruction isn't new if its ROUGE-L with a known one is above this
TRIES = 40  # draws from a template for one new instruction
# if a model writes instructions:
DRAFTS = 4  # it is asked for this many drafts of each wanted instruction
TOKENS_A_WORD = 4  # a draft may have this many tokens for each word of the longest seed
ENDS = ".?!:)\"'"  # a draft of one line that ends in none of these characters was cut off


@dataclass(frozen=True)
class LionParams(BlackBoxParams):
    """The parameters of the loop."""

    instructions: str = param(
        "hard",
        "Which instructions new ones are like: hard and easy ones, told apart by the referee, or any, told "
        "apart by chance (control).",
        choices=("hard", "random"),
        label="choice",
    )
    lion_rounds: int = param(2, "Rounds of discrimination and generation.", lo=0, hi=10, step=1)
    generated: int = param(
        24, "New instructions a round for each of the two kinds, hard and easy.", lo=1, hi=10_000, step=1
    )
    harder: int = param(
        0,
        "Levels by which a new instruction is harder than its hard seed. The authors ask for as hard a one.",
        lo=0,
        hi=2,
        step=1,
        when={"inventor": "templates"},
        level="advanced",
    )
    referee: str = param(
        "rule",
        "Who scores: a rule that knows the right answers, or the teacher itself.",
        choices=("rule", "teacher"),
        when={"teaching": "teacher", "instructions": "hard"},
        level="advanced",
    )
    inventor: str = param(
        "templates",
        "Who makes new instructions: templates, or the teacher itself (with referee = teacher).",
        choices=("templates", "teacher"),
        when={"teaching": "teacher"},
        level="advanced",
    )

    @property
    def judging(self) -> int:
        return self.judged * (READ + ANSWER_TOKENS)

    @property
    def hunts(self) -> bool:
        """Whether a referee looks for hard instructions. Where nobody teaches, nobody leads."""
        return self.instructions == "hard" and self.teaching != "answers"

    @property
    def controlled(self) -> bool:
        return self.hunts


Score = tuple[float, float] | None  # (teacher's, student's), each 1 to 10; None: no review could be read
MAKERS = {maker(Random(0), 1).kind: maker for maker in INSTRUCTIONS}


def request(question: Question) -> str:
    """An instruction as both models read it."""
    return f"{question.text}\nReply with the result only."


def by_rule(question: Question, text: str) -> float:
    """The score of the rule-based referee: 10 for the right answer, else 1 + 9 times its ROUGE-L.

    Capitals and punctuation don't matter.
    """
    return 1 + 9 * tasks.overlap(question.answer, tasks.answer_in(text))


def review(question: Question, first: str, second: str) -> str:
    """The prompt of one review by a model."""
    return (
        f"Instruction: {question.text}\nAnswer A: {first}\nAnswer B: {second}\n"
        "Score both answers from 1 to 10. Reply with two numbers only, A's score first."
    )


def scores_in(text: str) -> tuple[float, float] | None:
    """The two scores in a review; None if it doesn't hold two from 1 to 10."""
    found = [float(x) for x in re.findall(r"\d+(?:\.\d+)?", text)[:2]]
    return (found[0], found[1]) if len(found) == 2 and all(1 <= x <= 10 for x in found) else None


def both_ways(forward: Sequence[str], backward: Sequence[str]) -> list[Score]:
    """(teacher's, student's) scores, averaged over the two orders.

    forward: reviews that name the teacher first. backward: reviews that name it second.
    """
    out = []
    for one, other in zip(map(scores_in, forward), map(scores_in, backward), strict=True):
        out.append(((one[0] + other[1]) / 2, (one[1] + other[0]) / 2) if one and other else None)
    return out


def discriminate(scores: Sequence[Score]) -> tuple[list[int], list[int]]:
    """(hard, easy) places in the pool. An instruction without a score is in neither list."""
    hard = [i for i, s in enumerate(scores) if s is not None and s[0] - s[1] >= LEAD]
    return hard, [i for i, s in enumerate(scores) if s is not None and i not in set(hard)]


def generate(
    seeds: Sequence[Question], count: int, harder: int, known: list[Question], random: Random
) -> list[Question]:
    """Up to `count` new instructions of the kinds of the seeds; none is like a known one.

    harder: by how many levels a new instruction is above its seed, up to the last level.
    """
    out: list[Question] = []
    for number in range(count if seeds else 0):
        seed = seeds[number % len(seeds)]
        level = min(seed.level + harder, LEVELS[-1])
        for _ in range(TRIES):
            new = MAKERS[seed.kind](random, level)
            if all(tasks.overlap(new.text, old.text) <= ALIKE for old in (*known, *out)):
                out.append(new)
                break
    return out


def invite(seed: Question, hard: bool) -> str:
    """The prompt that asks a model for a new instruction like a hard or an easy seed."""
    wanted = "the same domain and the same type of task" if hard else "the same domain, but a rarer one"
    return (
        f"Instruction: {seed.text}\nWrite one new instruction of {wanted}, similar in length and difficulty. "
        "Reply with the new instruction only."
    )


def invented(text: str) -> str | None:
    """The instruction that a model wrote; None if the text is no instruction.

    A text is none if it is cut off, has three words or fewer, speaks about instructions, or isn't ASCII.
    """
    line, *more = [part.strip() for part in text.strip().splitlines() if part.strip()] or [""]
    whole = bool(more) or line[-1:] in ENDS
    fits = (
        len(line.split()) > 3 and line.isascii() and line[:1].isalnum() and "instruction" not in line.lower()
    )
    return line if whole and fits else None


def ask_for(
    ask: Callable, seeds: Sequence[Question], count: int, hard: bool, known: list[Question], seed: int
) -> list[Question]:
    """`generate`, done by a model, so the right answers are unknown. ask: Interview.ask."""
    out: list[Question] = []
    if not seeds:
        return out
    each = -(-DRAFTS * count // len(seeds))  # more than needed, since many are too much like others
    tokens = TOKENS_A_WORD * max(len(q.text.split()) for q in seeds)
    drafts = ask([invite(q, hard) for q in seeds], count=each, temperature=1.0, new_tokens=tokens, seed=seed)
    for number in range(each):  # the first draft of every seed, then the second of every seed
        for q, texts in zip(seeds, drafts, strict=True):
            text = invented(texts[number])
            if (
                text
                and len(out) < count
                and all(tasks.overlap(text, old.text) <= ALIKE for old in (*known, *out))
            ):
                out.append(Question(q.kind, q.level, text, ""))
    return out


# (seeds, count, whether the seeds are hard, known instructions) -> new instructions
Maker = Callable[[Sequence[Question], int, bool, list[Question]], list[Question]]


def by_chance(count: int, random: Random) -> tuple[list[int], list[int]]:
    """The places in a pool of `count`, split in two by chance. The control takes them for hard and easy."""
    places = random.sample(range(count), count)
    return places[: count // 2], places[count // 2 :]


def grow(
    pool: Sequence[Question],
    hard: Sequence[int],
    easy: Sequence[int],
    count: int,
    judged: Sequence[Question],
    random: Random,
    make: Maker,
) -> list[Question]:
    """New instructions from the seeds at the places `hard`, then as many from the seeds at `easy`.

    There are at most `count` of each.
    """
    seeds = [[pool[i] for i in random.sample(places, len(places))] for places in (hard, easy)]
    known = [*pool, *judged]
    harder = make(seeds[0], count, True, known)
    others = make(seeds[1], count, False, [*known, *harder])
    most = min(len(harder), len(others))
    return harder[:most] + others[:most]


def distinct(
    makers: Sequence[tasks.Maker],
    count: int,
    random: Random,
    levels: Sequence[int] = LEVELS,
    known: Sequence[Question] = (),
) -> list[Question]:
    """Up to `count` instructions, none of them like another or like a known one."""
    out: list[Question] = []
    for question in tasks.draw(makers, 4 * count, random, levels, {q.text for q in known}):
        if len(out) < count and all(
            tasks.overlap(question.text, old.text) <= ALIKE for old in (*known, *out)
        ):
            out.append(question)
    return out


def joined(courses: Sequence[Course]) -> Course:
    """Several trainings in a row as one course.

    It joins their curves. Its start is the first training's, its best state the last one's.
    """
    whole = replace(
        courses[0], curve=[], tokens=0, seconds=0.0, steps=0, best=courses[-1].best, ended=courses[-1].ended
    )
    for course in courses:
        whole.curve += [[whole.tokens + tokens, *rest] for tokens, *rest in course.curve]
        whole.tokens = whole.tokens + course.tokens
        whole.seconds = whole.seconds + course.seconds
        whole.steps = whole.steps + course.steps
    return whole


class Answerer:
    """Answers instructions by the teacher or by a program; if nobody teaches, by the right answers."""

    def __init__(self, bundle: Bundle, context: Context, params: LionParams):
        self.seed, self.answers = context.seed, dict[str, str]()
        self._right: dict[str, str] = {}
        self.asked = interview(context, bundle, params, OracleTeacher(self._right.__getitem__))

    def answer(self, questions: Sequence[Question]) -> None:
        """Answer instructions; `answers` holds them by the instruction's text."""
        if self.asked is None:
            self.answers |= {q.text: q.answer for q in questions}
            return
        self._right |= {request(q): q.answer for q in questions}
        said = self.asked.ask([request(q) for q in questions], new_tokens=ANSWER_TOKENS, seed=self.seed)
        self.answers |= {q.text: texts[0] for q, texts in zip(questions, said, strict=True)}


@dataclass(frozen=True)
class Part:
    """One part of a training: new instructions of each of two kinds, then imitation within a budget."""

    new: int
    budget: Budget


class Loop:
    """One student, its pool of instructions, and what it learnt."""

    def __init__(
        self,
        bundle: Bundle,
        context: Context,
        params: LionParams,
        judged: Sequence[Question],
        seeds: Sequence[Question],
        answerer: Answerer,
        hunts: bool,
    ):
        """hunts: the referee separates the seeds; else chance does, which makes it the control."""
        self.bundle, self.context, self.params, self.judged = bundle, context, params, judged
        self.pool, self.answerer, self.hunts = list(seeds), answerer, hunts
        self.random = Random(context.seed + (1 if hunts else 2))
        self.notes: list[Note] = []
        self.done: list[Part] = []  # the parts of the training, which the control repeats

    def student(self, bundle: Bundle, questions: Sequence[Question]) -> list[str]:
        return replies(bundle, [request(q) for q in questions], ANSWER_TOKENS, self.context.recorder)

    def imitate(
        self, questions: Sequence[Question], part: Part, span: tuple[float, float], quiet: bool
    ) -> Course:
        """Train on the teacher's answers. A question with an empty answer teaches nothing."""
        said = self.answerer.answers
        taught = [
            ((row(self.bundle.tokenizer, request(q), said[q.text]),),) for q in questions if said[q.text]
        ]
        before = sum(done.budget.tokens for done in self.done)
        recorder = part_of(self.context.recorder, span, before, self.params.train_tokens)
        context = replace(self.context, recorder=recorder)
        rate = self.params.learning_rate
        return teach(self.bundle, taught, (1.0,), context, part.budget, rate, quiet=quiet)

    def scores(self) -> list[Score]:
        """The referee's scores for the whole pool."""
        taught = [self.answerer.answers[q.text] for q in self.pool]
        rows = list(zip(self.pool, taught, self.student(self.bundle, self.pool), strict=True))
        if self.params.referee == "rule" or self.params.teaching == "oracle":
            return [(by_rule(q, t), by_rule(q, s)) for q, t, s in rows]

        def ask(prompts):
            texts = self.answerer.asked.ask(prompts, new_tokens=REVIEW_TOKENS, seed=self.context.seed)
            return [t[0] for t in texts]

        return both_ways(
            ask([review(q, t, s) for q, t, s in rows]), ask([review(q, s, t) for q, t, s in rows])
        )

    def invent(
        self, seeds: Sequence[Question], count: int, hard: bool, known: list[Question]
    ) -> list[Question]:
        """New instructions, from templates or from the teacher."""
        if self.params.effective().get("inventor") == "teacher":
            seed = self.context.seed + len(self.pool)
            return ask_for(self.answerer.asked.ask, seeds, count, hard, known, seed)
        return generate(seeds, count, self.params.harder if hard else 0, known, self.random)

    def fresh(self, number: int, count: int) -> list[Question]:
        """The new instructions of a round: as many like the hard ones as like the easy ones."""
        if not self.hunts:
            hard, easy = by_chance(len(self.pool), self.random)
            return grow(self.pool, hard, easy, count, self.judged, self.random, self.invent)
        scores = self.scores()
        hard, easy = discriminate(scores)
        new = grow(self.pool, hard, easy, count, self.judged, self.random, self.invent)
        facts = {
            "round": number,
            "hard": percent(len(hard), len(hard) + len(easy)),
            "unread": len(scores) - len(hard) - len(easy),
            "pool": len(self.pool),
            "new": len(new),
        }
        self.notes.append(Note("lion_round", facts))
        # too few hard or easy instructions: this round teaches less, or nothing
        if len(new) < 2 * count:
            self.notes.append(Note("lion_few", {"round": number, "new": len(new), "asked": 2 * count}))
        return new

    def right(self, texts: Sequence[str]) -> dict[int, float]:
        """Exact match of a student's answers to the judged questions in percent, by level."""
        hits = [(q.level, tasks.right(q, text)) for q, text in zip(self.judged, texts, strict=True)]
        return {
            level: percent(sum(h for n, h in hits if level == n), sum(level == n for n, _ in hits))
            for level in LEVELS
        }

    def run(self, parts: Sequence[Part], quiet: bool = False) -> Course:
        """Imitate first; then rounds of discriminating, generating, and imitating what is new."""
        courses: list[Course] = []
        fresh: list[Question] = self.pool
        for number, part in enumerate(parts):
            if number:
                if courses[-1].ended == "enough":
                    break
                fresh = self.fresh(number, part.new)
                self.pool += fresh
            self.answerer.answer(fresh)
            enough = not number or len(fresh) >= max(2 * self.params.generated, FEWEST_LESSONS)
            span = (number / len(parts), (number + 1) / len(parts))
            courses.append(self.imitate(fresh if enough else self.pool, part, span, quiet))
            new = len(fresh) // 2 if number else 0
            self.done.append(Part(new, Budget(courses[-1].tokens, float("inf"))))
        return joined(courses)


def judge(
    answerer: Answerer, params: LionParams, judged: Sequence[Question], sides: Sequence[Sequence[str]]
) -> tuple[Judged, ...]:
    """ROUGE-L of answers to the judged questions: with the right answer and, if the teacher is a model, with
    the teacher's answer.

    sides: the student's answers before and after, and the control's; [] if there is no control.
    """
    measures = {"instructions_overlap": [q.answer for q in judged]}
    if params.teaching == "teacher":
        answerer.answer(judged)
        measures["teacher_agreement"] = [answerer.answers[q.text] for q in judged]

    def overlaps(said: Sequence[str], wanted: Sequence[str]) -> tuple[float, ...]:
        pairs = zip(said, wanted, strict=True) if said else ()
        return tuple(tasks.overlap(tasks.answer_in(a), tasks.answer_in(b)) for a, b in pairs)

    texts, found = [q.text for q in judged], []
    for name, wanted in measures.items():
        before, after, control = (overlaps(said, wanted) for said in sides)
        found.append(Judged(name, questions_id(texts, wanted), before, after, control))
    return tuple(found)


def distil(bundle: Bundle, context: Context, params: LionParams) -> Edit:
    """Run the loop, or its control, and say what the student can do then.

    Raises BadParam.
    """
    chosen = params.effective()
    if chosen.get("inventor") == "teacher" and chosen.get("referee") == "rule":
        raise BadParam(
            "nobody knows the right answers to instructions that the teacher invents, and the rule-based "
            "referee needs them; set referee to teacher, or inventor to templates",
            name="referee",
            got="rule",
            allowed="teacher",
        )
    random = Random(context.seed)
    judged = distinct(INSTRUCTIONS, params.judged, random)
    seeds = distinct(INSTRUCTIONS, params.questions, random, known=judged)
    warmed = warm_up(bundle, context, params)
    answerer = Answerer(bundle, context, params)
    loop = Loop(bundle, warmed.context, params, judged, seeds, answerer, params.hunts)
    before = loop.student(bundle, judged)
    control = twin(bundle) if params.compares else None
    parts = params.lion_rounds + 1
    each = Budget(max(1, warmed.left.tokens // parts), warmed.left.minutes / parts)
    course = loop.run([Part(0, each)] + [Part(params.generated, each)] * params.lion_rounds)
    after, beside = loop.student(bundle, judged), list[str]()
    notes, texts = warmed.notes_with(course, "lion"), loop.pool
    said = [answerer.answers[q.text] for q in texts]
    hits = sum(tasks.right(q, text) for q, text in zip(texts, said, strict=True))
    known = all(q.answer for q in texts)  # for instructions that a teacher invents, we know no right answer
    if control is not None and course.tokens:
        other = Loop(control, warmed.context, params, judged, seeds, answerer, hunts=False)
        other.run(loop.done, quiet=True)
        beside = loop.student(control, judged)
        loop.notes.append(Note("lion_control", {"own": len(loop.pool), "texts": len(other.pool)}))
    judged_by = judge(answerer, params, judged, (before, after, beside))
    notes += teacher_notes(
        params, answerer.asked, right=hits if known else None, used=sum(map(bool, said)), texts=len(texts)
    )
    notes += (
        *loop.notes,
        Note(
            "lion_levels",
            {
                f"{when}_{level}": share
                for when, said in (("before", before), ("after", after))
                for level, share in loop.right(said).items()
            },
        ),
    )
    files = {TRANSCRIPT: answerer.asked.transcript()} if answerer.asked else {}
    return Edit(
        bundle=bundle,
        notes=notes,
        series=warmed.series | {"training": course.curve},
        judged=judged_by,
        files=files,
    )


def control(params: LionParams) -> tuple[str, dict] | None:
    """TrainingMethod.control: the same loop, teacher and numbers, with seeds that are chosen by chance."""
    return ("lion", params.json() | {"instructions": "random"}) if params.controlled else None


def compress(bundle: Bundle, context: Context, params: LionParams) -> Edit:
    """The student after the loop; unchanged if there are no tokens to train on."""
    return distil(bundle, context, params) if params.train_tokens else Edit(bundle=bundle)


METHOD = StudentMethod(
    name="lion",
    title="Lion",
    family="distillation",
    paper="https://arxiv.org/abs/2305.12870",
    params=LionParams,
    compress=compress,
    cost=cost,
    text_tokens=text_tokens,
    trains_table=True,
    reshaped=reshaped,
    student=make,
    measures=measures,
    teacher="text",
    control=control,
    compresses=True,
    identity={"kept": 1.0, "train_tokens": 0},
    tiny={
        "kept": 0.5,
        "teaching": "oracle",
        "questions": 16,
        "judged": 8,
        "compare": False,
        "train_tokens": 1_280,
        "warm_up": 0.2,
        "learning_rate": 1e-3,
        "lion_rounds": 1,
        "generated": 4,
    },
    # three rounds in which the teacher invents and judges; the authors begin with 52,000 instructions and add
    # 6,000 in each round
    full={
        "questions": 1_000,
        "judged": 200,
        "lion_rounds": 3,
        "generated": 1_000,
        "referee": "teacher",
        "inventor": "teacher",
        "warm_up": 0.2,
        "warm_up_rate": 2e-4,
        "learning_rate": 2e-5,
        "train_tokens": 10_240_000,
        "train_minutes": BUDGET_MINUTES,
    },
    essay=__doc__,
)
