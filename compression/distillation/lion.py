"""Lion: a loop that finds the instructions at which a student is worse than its teacher, and teaches more of
that kind. The teacher shows its texts and nothing else.

Three stages, over and over. Imitation: the teacher answers the instructions of the pool, the student learns
its answers. Discrimination: both answer a growing pool, a referee scores both, and an instruction is hard
where the teacher leads by a point or more. Generation: as many new instructions like the hard ones as like
the easy ones, so that the easy isn't forgotten.

Jiang et al. 2023, "Lion: Adversarial Distillation of Proprietary Large Language Models", arXiv 2305.12870.
There one large model plays teacher, referee and generator. d = teacher's score - student's score, both the
mean of two reviews with the answers in either order, hard if d >= 1.0 of 10; new instructions must have a
ROUGE-L of at most 0.7 with every one so far; hard to easy is 1 : 1.

Deviations. A small model can neither referee nor invent. Instructions are eight kinds of short jobs with a
right answer, in three levels. The rule-based referee gives 1 + 9 ROUGE-L with the right answer, so that only
an exact answer has 10; `referee` = teacher asks the model itself, and a review that can't be read counts for
nothing (in the authors' code it counts as easy). New instructions come from templates of the seed's own kind:
one level harder for a hard seed, of the same level for an easy one; `inventor` = teacher asks the model
itself for them, as the paper does, which takes a large one. Nobody knows a right answer to what it invents,
so `inventor` = teacher needs `referee` = teacher. The next round trains on the new instructions alone. Each
round reports its share of hard ones.

What is measured, on 200 kept-aside instructions: ROUGE-L with the right answers, and, where the teacher is a
model, with that teacher's own answers, which are what the student imitates. Both are taken before and after,
and instruction by instruction beside a control; exact match by level is told too. The control learns the
right answers to as many instructions drawn at random, by the same tokens. A short run shows the loop at work;
whether it gains anything over random instructions, the control tells. A teacher that fails a kind of job has
no lead there, so what it can't do is never found hard.

Cost: the teacher writes one text for each instruction, the kept-aside ones too. The student writes one for
each instruction in each round. The training is divided into rounds + 1 equal parts.
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
    off,
    percent,
    replies,
    row,
    teach,
    teacher_notes,
    twin,
)
from compression.distillation.students import measures, reshaped
from compression.distillation.tasks import INSTRUCTIONS, LEVELS, Question
from compression.judged import Judged, questions_id
from compression.teacher import OracleTeacher
from compression.training import Budget, Course

ANSWER_TOKENS, REVIEW_TOKENS = 32, 24
LEAD = 1.0  # an instruction is hard if the teacher leads by this many of 10 points
ALIKE = 0.7  # an instruction isn't new if its ROUGE-L with a known one is above this
TRIES = 40  # draws from a template for one new instruction
# if a model writes instructions: drafts for each, tokens for each word of its seed, characters that end a
# line
DRAWN, WORDS, ENDS = 4, 4, ".?!:)\"'"


@dataclass(frozen=True)
class LionParams(BlackBoxParams):
    """The parameters of the loop."""

    lion_rounds: int = param(2, "Rounds of discrimination and generation.", lo=0, hi=10, step=1)
    generated: int = param(
        24, "New instructions a round for each of the two kinds, hard and easy.", lo=1, hi=10_000, step=1
    )
    referee: str = param(
        "rule",
        "Who scores: a rule that knows the right answers, or the teacher itself.",
        choices=("rule", "teacher"),
        when={"teaching": "teacher"},
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
    seeds: Sequence[Question], count: int, harder: bool, known: list[Question], random: Random
) -> list[Question]:
    """Up to `count` new instructions of the kinds of the seeds; none is like a known one.

    They are a level harder than the seeds, or as hard.
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
    wanted = (
        "the same domain and the same type of task, similar in length and difficulty"
        if hard
        else "the same domain, but a rarer one"
    )
    return (
        f"Instruction: {seed.text}\nWrite one new instruction of {wanted}. Reply with the new "
        "instruction only."
    )


def invented(text: str) -> str | None:
    """The instruction that a model wrote; None if the text is no instruction.

    That is so if it is cut off, has three words or fewer, speaks about instructions, or is in another script.
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
    """`generate`, done by a model. `ask` is an interview's. Their right answers are unknown."""
    out: list[Question] = []
    if not seeds:
        return out
    each = -(-DRAWN * count // len(seeds))  # more than needed, since many are too much like others
    tokens = WORDS * max(len(q.text.split()) for q in seeds)
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


def grow(
    pool: Sequence[Question],
    scores: Sequence[Score],
    count: int,
    judged: Sequence[Question],
    random: Random,
    make: Maker,
) -> tuple[list[Question], list[Question]]:
    """New instructions (from hard seeds, from easy seeds): the same number of each, at most `count`."""
    hard, easy = discriminate(scores)
    for places in (hard, easy):
        random.shuffle(places)
    known = [*pool, *judged]
    harder = make([pool[i] for i in hard], count, True, known)
    others = make([pool[i] for i in easy], count, False, [*known, *harder])
    most = min(len(harder), len(others))
    return harder[:most], others[:most]


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
    """Several trainings in a row as one.

    Their curves are joined; it starts where the first started and has the last one's best.
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


class Loop:
    """One run: the student, its pool of instructions, and the teacher's answers."""

    def __init__(
        self,
        bundle: Bundle,
        context: Context,
        params: LionParams,
        judged: Sequence[Question],
        seeds: list[Question],
    ):
        self.bundle, self.context, self.params, self.judged = bundle, context, params, judged
        self.pool, self.random = list(seeds), Random(context.seed + 1)
        self.notes: list[Note] = []
        self.answers: dict[str, str] = {}
        self.oracle_knows: dict[str, str] = {}
        self.asked = interview(context, bundle, params, OracleTeacher(self.oracle_knows.__getitem__))

    def teacher(self, questions: Sequence[Question]) -> list[str]:
        """The teacher's answers; they are remembered."""
        self.oracle_knows |= {request(q): q.answer for q in questions}
        texts = [
            t[0]
            for t in self.asked.ask(
                [request(q) for q in questions], new_tokens=ANSWER_TOKENS, seed=self.context.seed
            )
        ]
        self.answers |= {q.text: text for q, text in zip(questions, texts, strict=True)}
        return texts

    def student(self, bundle: Bundle, questions: Sequence[Question]) -> list[str]:
        return replies(bundle, [request(q) for q in questions], ANSWER_TOKENS, self.context.recorder)

    def imitate(
        self,
        bundle: Bundle,
        questions: Sequence[Question],
        say: Callable[[Question], str],
        budget: Budget,
        quiet=False,
    ) -> Course:
        """Train on the answers of `say`. A question with an empty answer teaches nothing."""
        taught = [((row(bundle.tokenizer, request(q), text),),) for q in questions if (text := say(q))]
        return teach(bundle, taught, (1.0,), self.context, budget, self.params.learning_rate, quiet=quiet)

    def scores(self) -> list[Score]:
        """The referee's scores for the whole pool."""
        taught, learnt = [self.answers[q.text] for q in self.pool], self.student(self.bundle, self.pool)
        rows = list(zip(self.pool, taught, learnt, strict=True))
        if self.params.referee == "rule" or self.params.teaching == "oracle":
            return [(by_rule(q, t), by_rule(q, s)) for q, t, s in rows]

        def ask(prompts):
            return [t[0] for t in self.asked.ask(prompts, new_tokens=REVIEW_TOKENS, seed=self.context.seed)]

        return both_ways(
            ask([review(q, t, s) for q, t, s in rows]), ask([review(q, s, t) for q, t, s in rows])
        )

    def invent(
        self, seeds: Sequence[Question], count: int, hard: bool, known: list[Question]
    ) -> list[Question]:
        """New instructions, from templates or from the teacher."""
        if self.params.effective().get("inventor") == "teacher":
            return ask_for(self.asked.ask, seeds, count, hard, known, self.context.seed + len(self.pool))
        return generate(seeds, count, hard, known, self.random)

    def right(self, texts: Sequence[str]) -> dict[int, float]:
        """Exact match of a student's answers to the judged questions in percent, by level."""
        hits = [(q.level, tasks.right(q, text)) for q, text in zip(self.judged, texts, strict=True)]
        return {
            level: percent(sum(h for n, h in hits if level == n), sum(level == n for n, _ in hits))
            for level in LEVELS
        }

    def judge(self, before: Sequence[str], after: Sequence[str], control: Sequence[str]) -> list[Judged]:
        """ROUGE-L of answers to the judged questions: with the right answer, and with what a model as the
        teacher says.

        control: its answers, [] if there is none.
        """
        measures = {"instructions_overlap": [q.answer for q in self.judged]}
        if self.params.teaching == "teacher":
            measures["teacher_agreement"] = self.teacher(self.judged)

        def overlaps(said: Sequence[str], wanted: Sequence[str]) -> tuple[float, ...]:
            pairs = zip(said, wanted, strict=True) if said else ()
            return tuple(tasks.overlap(tasks.answer_in(a), tasks.answer_in(b)) for a, b in pairs)

        return [
            Judged(
                name,
                questions_id([q.text for q in self.judged], wanted),
                overlaps(before, wanted),
                overlaps(after, wanted),
                overlaps(control, wanted),
            )
            for name, wanted in measures.items()
        ]

    def adversarial(self) -> list[Course]:
        """Imitate first; then rounds of discriminating, generating, and imitating what is new."""
        parts = self.params.lion_rounds + 1
        budget = Budget(max(1, self.params.train_tokens // parts), self.params.train_minutes / parts)
        self.teacher(self.pool)

        def say(question: Question) -> str:
            return self.answers[question.text]

        courses = [self.imitate(self.bundle, self.pool, say, budget)]
        for number in range(1, parts):
            if courses[-1].ended == "enough":
                break
            scores = self.scores()
            hard, easy = discriminate(scores)
            harder, others = grow(
                self.pool, scores, self.params.generated, self.judged, self.random, self.invent
            )
            facts = {
                "round": number,
                "hard": percent(len(hard), len(hard) + len(easy)),
                "unread": len(scores) - len(hard) - len(easy),
                "pool": len(self.pool),
                "new": len(harder) + len(others),
            }
            self.notes.append(Note("lion_round", facts))
            fresh = harder + others
            # too few hard or easy instructions: this round teaches less, or nothing
            if len(fresh) < 2 * self.params.generated:
                self.notes.append(
                    Note("lion_few", {"round": number, "new": len(fresh), "asked": 2 * self.params.generated})
                )
            if not fresh:
                break
            self.teacher(fresh)
            self.pool += fresh
            enough = len(fresh) >= max(2 * self.params.generated, FEWEST_LESSONS)
            learnt = fresh if enough else self.pool
            courses.append(self.imitate(self.bundle, learnt, say, budget))
        return courses


def distil(bundle: Bundle, context: Context, params: LionParams) -> Edit:
    """Run the loop, or the control's plain training, and say what the student can do then.

    Raises BadParam.
    """
    chosen = params.effective()
    if chosen.get("inventor") == "teacher" and chosen["referee"] == "rule":
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
    loop = Loop(bundle, context, params, judged, seeds)
    before = loop.student(bundle, judged)
    control = twin(bundle) if params.compare and params.teaching == "teacher" else None

    def answers_alone(student: Bundle, count: int, budget: Budget, quiet: bool = False) -> Course:
        more = (
            distinct(INSTRUCTIONS, count, Random(context.seed + 2), known=[*judged, *seeds]) if count else []
        )
        return loop.imitate(student, [*seeds, *more], lambda q: q.answer, budget, quiet)

    whole = Budget(params.train_tokens, params.train_minutes)
    if loop.asked is None:
        course = answers_alone(bundle, 2 * params.lion_rounds * params.generated, whole)
    else:
        course = joined(loop.adversarial())
    after, beside = loop.student(bundle, judged), list[str]()
    if control is not None and course.tokens:
        answers_alone(control, len(loop.pool) - len(seeds), Budget(course.tokens, float("inf")), quiet=True)
        beside = loop.student(control, judged)
    judged_by = loop.judge(before, after, beside)
    notes, texts = course.notes("lion"), list(loop.pool) if loop.asked else seeds
    said = [loop.answers.get(q.text, "") for q in texts]
    hits = sum(tasks.right(q, text) for q, text in zip(texts, said, strict=True))
    known = all(q.answer for q in texts)  # for instructions that a teacher invents, we know no right answer
    notes += teacher_notes(
        params, loop.asked, right=hits if known else None, used=sum(map(bool, said)), texts=len(texts)
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
    files = {TRANSCRIPT: loop.asked.transcript()} if loop.asked else {}
    return Edit(
        bundle=bundle, notes=notes, series={"training": course.curve}, judged=tuple(judged_by), files=files
    )


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
    own_text=True,
    reshaped=reshaped,
    student=make,
    measures=measures,
    teacher="text",
    control=off("lion"),
    compresses=True,
    identity={"kept": 1.0, "train_tokens": 0},
    tiny={
        "kept": 0.5,
        "teaching": "oracle",
        "questions": 16,
        "judged": 8,
        "train_tokens": 1_024,
        "learning_rate": 1e-3,
        "lion_rounds": 1,
        "generated": 4,
    },
    # three rounds, the teacher inventing and judging; theirs begins with 52,000 instructions and adds 6,000 a
    # round
    full={
        "questions": 1_000,
        "judged": 200,
        "lion_rounds": 3,
        "generated": 1_000,
        "referee": "teacher",
        "inventor": "teacher",
        "learning_rate": 2e-5,
        "train_tokens": 10_240_000,
        "train_minutes": BUDGET_MINUTES,
    },
    essay=__doc__,
)
