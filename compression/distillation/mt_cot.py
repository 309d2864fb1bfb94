"""MT-CoT: the student learns answers and explanations as two tasks of one model.

A question's answer says little about the way to it. So the teacher writes an explanation for every training
question, and the student learns two tasks: "predict: question" gives the answer, "explain: question" the
explanation. In use only the answer task is asked, so that explanations cost nothing. A student that is asked
for the explanation works its way to an answer.

Li et al. 2022, "Explanations from Large Language Models Make Small Reasoners Better", arXiv 2210.06726, and
the same idea in Hsieh et al. 2023, "Distilling Step-by-Step!", arXiv 2305.02301. The loss is L = alpha
L_answer + (1 - alpha) L_explanation. Each part is the mean over its own task's tokens, so that long
explanations don't outweigh short answers. There are three ways to get explanations. COTE: the teacher thinks
step by step, and its explanation is used if its answer is right. RP: the teacher is told the right answer and
says why. CROP: COTE, and RP where COTE's answer was wrong. The second task's target is the explanation
(MT-Re), the answer with its explanation after it (MT-Ra), or the explanation and then the answer (MT-CoT).

Deviations. Questions are generated: parity, counting a letter, comparing ages in two steps, in three levels.
A third of the training questions and a third of the judged ones are of each kind, and no question is in both.
A note says so if a kind has too few different questions. The answers are always the right ones; only the
explanations are the teacher's. A small teacher is often wrong. So the share of its own right answers and the
share of its explanations that were used are reported. An explanation that it wrote to a given answer (RP)
isn't checked. With `teaching` = oracle a program writes the steps, and a note says so. The student is here
the teacher with fewer layers (or another model), where the papers begin with whole models. It first reads
plain text for a share of the budget until it writes readable text (`warm_up`, with a step size of its own).

What is measured: exact match on 200 other questions, in answer mode and, if the second task gives an answer,
in explanation mode. The control starts from the same warmed-up student and learns the same questions by as
many tokens, with their answers alone, so it reads each question more often. It is compared with both modes,
question by question. The chance level is the share of right answers if each kind of question gets its best
constant guess: about 40 percent, because parity has two answers.

Layers: the run's text goes through the model once, and the layers that turn its hidden states least go
(block influence, Men et al. 2024, arXiv 2403.03853). `layers` has two other choices: a run of neighbours, and
evenly spaced ones.

What to expect. A model of a hundred thousand weights learnt the parity of 8 bits from 200 worked questions.
It gets nearly all other questions right if it writes out the steps. If it answers at once, it guesses,
whichever way it was trained. So here the written steps help, and the second task by itself doesn't. The
papers report better answers at once too, from models ten thousand times as large. A pretrained model was not
measured yet.

Cost: the teacher writes one or two texts for each question. A training step costs three forward passes of the
student, whose weights are all trained. The warm-up is paid once, the lessons twice, for student and control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from compression.base import BUDGET_MINUTES, Context, Edit, Note, StudentMethod, param
from compression.bundle import Bundle
from compression.distillation import tasks
from compression.distillation.black_box import (
    READ,
    TRANSCRIPT,
    BlackBoxParams,
    Lesson,
    Row,
    cost,
    interview,
    make,
    off,
    replies,
    row,
    teach,
    teacher_notes,
    text_tokens,
    twin,
    warm_up,
)
from compression.distillation.students import measures, reshaped
from compression.distillation.tasks import MARK, Question
from compression.judged import Judged, best_guess, questions_id
from compression.teacher import Interview, OracleTeacher
from compression.training import Budget

ANSWER_TOKENS = 12  # of the student's answer
LEAVE = 24  # tokens for the answer after an explanation, on top of the explanation's own
FORMS = {  # the second task's target
    "MT-Re": "{explanation}",
    "MT-Ra": f"{MARK} {{answer}}. {{explanation}}",
    "MT-CoT": f"{{explanation}} {MARK} {{answer}}",
}


@dataclass(frozen=True)
class MtCotParams(BlackBoxParams):
    """Where explanations come from, and how they are learnt."""

    form: str = param(
        "MT-CoT",
        "What the second task writes: the explanation, the answer and why, or the way to the answer.",
        choices=tuple(FORMS),
    )
    explanations: str = param(
        "CROP",
        "How the teacher explains: it finds the answer itself, is given it, or is given it where it was "
        "wrong.",
        choices=("COTE", "RP", "CROP"),
        when={"teaching": "teacher"},
    )
    answer_share: float = param(
        0.5, "Share of the answer task in the loss.", lo=0.0, hi=1.0, step=0.05, level="advanced"
    )
    explanation_tokens: int = param(
        64, "Longest explanation.", lo=8, hi=1024, step=1, unit="tokens", level="advanced"
    )

    @property
    def explains(self) -> bool:
        """Whether the second task gives an answer that can be judged."""
        return self.teaching != "answers" and self.form != "MT-Re"

    @property
    def judging(self) -> int:
        explained = READ + self.explanation_tokens + LEAVE if self.explains else 0
        return self.judged * (READ + ANSWER_TOKENS + explained)


def think(question: Question) -> str:
    """COTE's prompt."""
    return f"{question.text}\nThink step by step, then end with '{MARK}' and the answer alone."


def explain(question: Question) -> str:
    """RP's prompt, which tells the right answer."""
    return f"{question.text}\nThe answer is {question.answer}. Explain step by step why."


def accepted(question: Question, text: str) -> str:
    """COTE's filter: the explanation before a right answer; "" if the answer is wrong or there is none."""
    return text.rsplit(MARK, 1)[0].strip() if MARK in text and tasks.right(question, text) else ""


@dataclass(frozen=True)
class Explained:
    """Explanations of questions ("" for a question without one), and how they came about."""

    texts: list[str]
    right: int | None  # questions that the teacher itself answered right; None if it wasn't asked to answer
    given: int  # explanations that were written to a given answer; they aren't checked


def explanations(
    asked: Interview, questions: Sequence[Question], kind: str, new_tokens: int, seed: int
) -> Explained:
    """Ask for explanations by COTE, RP or CROP."""
    found, right = [""] * len(questions), None
    if kind != "RP":
        texts = [
            t[0] for t in asked.ask([think(q) for q in questions], new_tokens=new_tokens + LEAVE, seed=seed)
        ]
        found = [accepted(q, t) for q, t in zip(questions, texts, strict=True)]
        right = sum(tasks.right(q, t) for q, t in zip(questions, texts, strict=True))
    missing = [i for i, text in enumerate(found) if not text] if kind != "COTE" else []
    for i, texts in zip(
        missing,
        asked.ask([explain(questions[i]) for i in missing], new_tokens=new_tokens, seed=seed),
        strict=True,
    ):
        found[i] = texts[0].rsplit(MARK, 1)[0].strip()
    return Explained(found, right, sum(bool(found[i]) for i in missing))


def target(form: str, answer: str, explanation: str) -> str:
    """What the second task learns to write."""
    return FORMS[form].format(answer=answer, explanation=explanation)


def lessons(tokenizer, questions: Sequence[Question], why: Sequence[str] | None, form: str) -> list[Lesson]:
    """One lesson for each question: the answer task, and the explanation task if there is an explanation.

    why None: answers alone.
    """
    out: list[Lesson] = []
    for number, q in enumerate(questions):
        first = (row(tokenizer, f"predict: {q.text}", q.answer),)
        second: tuple[Row, ...] = ()
        if why is not None and why[number]:
            second = (row(tokenizer, f"explain: {q.text}", target(form, q.answer, why[number])),)
        out.append((first, second))
    return out


def by_form(form: str, text: str) -> str:
    """The answer in the text of an explanation task, in the form that `tasks.right` reads."""
    if form == "MT-Ra":
        return text.split(MARK, 1)[-1].split(".", 1)[0]
    return text if MARK in text else ""


def oracle(questions: Sequence[Question]) -> OracleTeacher:
    """A program that gives right explanations."""
    known = {think(q): f"{q.worked} {MARK} {q.answer}" for q in questions} | {
        explain(q): q.worked for q in questions
    }
    return OracleTeacher(known.__getitem__)


def distil(
    bundle: Bundle,
    context: Context,
    params: MtCotParams,
    questions: Sequence[Question],
    judged: Sequence[Question],
) -> Edit:
    """Train the student on both tasks, and say how well it answers in both ways."""
    asked, why, explained = interview(context, bundle, params, oracle(questions)), None, None
    if asked is not None:
        kind = params.explanations if params.teaching == "teacher" else "COTE"
        explained = explanations(asked, questions, kind, params.explanation_tokens, context.seed)
        why = explained.texts

    def judge(student: Bundle, mode: str) -> tuple[float, ...]:
        long = params.explanation_tokens + LEAVE if mode == "explain" else ANSWER_TOKENS
        texts = replies(student, [f"{mode}: {q.text}" for q in judged], long, context.recorder)
        said = [by_form(params.form, t) for t in texts] if mode == "explain" else texts
        return tuple(float(tasks.right(q, t)) for q, t in zip(judged, said, strict=True))

    def trained(student: Bundle, why, budget: Budget, quiet: bool = False):
        shares = (1.0, 0.0) if why is None else (params.answer_share, 1 - params.answer_share)
        taught = lessons(student.tokenizer, questions, why, params.form)
        return teach(student, taught, shares, warmed.context, budget, params.learning_rate, quiet=quiet)

    warmed = warm_up(bundle, context, params)
    before, before_why = judge(bundle, "predict"), judge(bundle, "explain") if params.explains else ()
    control = twin(bundle) if params.compares else None
    course = trained(bundle, why, warmed.left)
    after, after_why = judge(bundle, "predict"), judge(bundle, "explain") if params.explains else ()
    beside: tuple[float, ...] = ()
    notes = warmed.notes_with(course, "mt_cot")
    used = sum(map(bool, why or ()))
    notes += teacher_notes(
        params, asked, right=None if explained is None else explained.right, used=used, texts=len(questions)
    )
    if explained is not None and explained.given:
        notes += (Note("explanations_given", {"given": explained.given, "used": used}),)
    if control is not None and course.tokens:
        trained(control, None, Budget(course.tokens, float("inf")), quiet=True)
        beside = judge(control, "predict")
    ways = [("answers_right", before, after)]
    ways += [("explained_right", before_why, after_why)] if params.explains else []
    name = questions_id([q.text for q in judged])
    chance = best_guess([q.kind for q in judged], [q.answer for q in judged])
    return Edit(
        bundle=bundle,
        notes=notes,
        judged=tuple(Judged(way, name, was, now, beside, chance=chance) for way, was, now in ways),
        series=warmed.series | {"training": course.curve},
        files={TRANSCRIPT: asked.transcript()} if asked else {},
    )


def compress(bundle: Bundle, context: Context, params: MtCotParams) -> Edit:
    """The student after its training; unchanged if there are no tokens to train on."""
    if not params.train_tokens:
        return Edit(bundle=bundle)
    drawn = tasks.apart(tasks.REASONING, params.questions, params.judged, Random(context.seed))
    edit = distil(bundle, context, params, drawn.taught, drawn.judged)
    scarce = [
        Note("kind_scarce", {"kind": kind, "asked": asked, "found": found})
        for kind, asked, found in drawn.scarce
    ]
    return replace(edit, notes=(*edit.notes, *scarce))


METHOD = StudentMethod(
    name="mt_cot",
    title="MT-CoT",
    family="distillation",
    paper="https://arxiv.org/abs/2210.06726",
    params=MtCotParams,
    compress=compress,
    cost=cost,
    text_tokens=text_tokens,
    trains_table=True,
    reshaped=reshaped,
    student=make,
    measures=measures,
    teacher="text",
    control=off("mt_cot"),
    compresses=True,
    identity={"kept": 1.0, "train_tokens": 0},
    tiny={
        "kept": 0.5,
        "teaching": "oracle",
        "questions": 16,
        "judged": 8,
        "compare": False,
        "train_tokens": 768,
        "warm_up": 0.25,
        "learning_rate": 1e-3,
        "explanation_tokens": 8,
    },
    # up to 10,000 steps, as in Distilling step-by-step
    full={
        "questions": 10_000,
        "judged": 500,
        "explanation_tokens": 256,
        "warm_up": 0.2,
        "warm_up_rate": 2e-4,
        "learning_rate": 5e-5,
        "train_tokens": 10_240_000,
        "train_minutes": BUDGET_MINUTES,
    },
    essay=__doc__,
)
