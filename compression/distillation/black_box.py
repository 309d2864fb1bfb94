"""Makes lessons of texts, trains on them, and judges the student: the code that black-box methods share.

A lesson is what one question teaches: for each task, a few (prompt, target) pairs. The loss is taken on the
target and on the stop token after it. Where the target stands follows from lengths, never from which ids are
padding, because a model may use its stop token as padding. Padding is on the right, where a causal model
can't see it. Each task of a step has its own mean over tokens, so that a long explanation weighs no more than
a short answer. The student is judged by what it writes.

A student that lost layers writes noise at first. So a share of the budget goes to a warm-up on plain text,
without the teacher, and its control starts from the same warmed-up student.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from compression import arch, engine
from compression.base import CalibrationError, Context, Cost, Edit, Note, param
from compression.bundle import Bundle
from compression.distillation import students
from compression.distillation.students import StudentParams
from compression.likelihood import final_states, token_losses
from compression.recorder import QUIET, Recorder
from compression.replies import TOGETHER, prompt_text, write
from compression.row_losses import next_token_loss
from compression.teacher import ORACLE, Answers, Interview
from compression.training import (
    HELD_OUT,
    MOST_HELD_OUT,
    STATE_BYTES,
    TOKENS_PER_STEP,
    Budget,
    Course,
    from_text,
    language_loss,
    part_of,
    train,
)

TRANSCRIPT = "teacher_cache.jsonl"
FEWEST_LESSONS = 8
READ = 50  # tokens of a question that a student is judged on, in the offline model's chat template
SURE = 80.0  # percent of right answers; a teacher with fewer also teaches its errors


@dataclass(frozen=True)
class BlackBoxParams(StudentParams):
    """The student, who writes its texts, and its training. Base of the black-box methods' parameters."""

    student: str = param(
        "",
        "Another model as the student: a catalogue name, a hub id or a folder. Its tokenizer may differ, but "
        "a run measures students with the teacher's only. Empty: the teacher's own layers.",
        level="advanced",
    )
    teaching: str = param(
        "teacher",
        "Who writes the texts: the model itself, a program that knows the answers (oracle text teacher), "
        "or nobody: the right answers alone (control).",
        choices=("teacher", "oracle", "answers"),
        label="choice",
    )
    questions: int = param(160, "Generated questions to train on.", lo=16, hi=100_000, step=1)
    judged: int = param(
        200,
        "Other generated questions that the student is judged on. With 200, a share of right answers is "
        "known to ± 7 points (95 %), with 800 to ± 3.5.",
        lo=8,
        hi=10_000,
        step=1,
        level="advanced",
    )
    compare: bool = param(
        True,
        "Train a control too: the same start and tokens, without what is special to the method. Takes as "
        "long again.",
        level="advanced",
    )
    train_tokens: int = param(
        32_768, "Training ends after this many tokens.", label="always", lo=0, hi=100_000_000
    )
    train_minutes: float = param(
        10.0, "Or after this many minutes, whichever comes first.", lo=0.1, hi=10_000.0
    )
    warm_up: float = param(
        0.5,
        "Share of the budget that the student first learns on plain text, until it writes readable text. "
        "A student that has all layers needs none.",
        lo=0.0,
        hi=0.95,
        when={"student": ""},
    )
    warm_up_rate: float = param(
        2e-4, "Highest step size of the warm-up.", lo=1e-7, hi=1.0, level="advanced", when={"student": ""}
    )
    learning_rate: float = param(
        1e-4, "Highest step size of AdamW after the warm-up.", lo=1e-7, hi=1.0, level="advanced"
    )

    @property
    def controlled(self) -> bool:
        """Whether a control would differ from this run. A run in which nobody teaches is a control itself."""
        return self.teaching != "answers"

    @property
    def compares(self) -> bool:
        """Whether the run trains its control too."""
        return self.compare and self.controlled

    @property
    def warm_tokens(self) -> int:
        """Tokens of plain text in the warm-up, before whole steps are counted.

        A student that has all of its teacher's layers, or is another model, writes readable text already.
        """
        broken = not self.student and self.kept < 1.0
        return round(self.warm_up * self.train_tokens) if broken else 0

    @property
    def judging(self) -> int:
        """About how many tokens a student reads and writes when it is judged once."""
        raise NotImplementedError


@dataclass(frozen=True)
class Row:
    """A prompt with its target, as the student reads it."""

    ids: tuple[int, ...]
    start: int  # where the target begins; it ends with the stop token
    weight: float = 1.0
    span: tuple[int, int] = (0, 0)  # tokens of the prompt that are learnt too (demonstrations)


Lesson = tuple[tuple[Row, ...], ...]  # task -> its rows; a task may have none


@dataclass(frozen=True)
class Part:
    """Rows of one task, padded on the right.

    ids [b, window], and the weight of each token's loss [b, window].
    """

    ids: Tensor
    weights: Tensor
    tokens: int


@dataclass(frozen=True)
class Step:
    """What one step trains on."""

    parts: tuple[Part, ...]

    def numel(self) -> int:
        """Tokens in it, without padding."""
        return sum(part.tokens for part in self.parts)


def row(tokenizer, prompt: str, target: str, weight: float = 1.0, learnt: str = "") -> Row:
    """Encode a pair as the student reads it.

    The prompt goes through the student's own chat template; after a plain prompt comes a space, then the
    target. learnt: a piece of the prompt that is learnt too.
    """
    shown, plain = prompt_text(tokenizer, prompt), not tokenizer.chat_template
    found = tokenizer(shown, add_special_tokens=plain, return_offsets_mapping=bool(learnt))
    before, span = list(found["input_ids"]), (0, 0)
    if learnt:
        first = shown.index(learnt)
        inside = [
            i
            for i, (a, b) in enumerate(found["offset_mapping"])
            if a < first + len(learnt) and b > max(first, a)
        ]
        span = (inside[0], inside[-1] + 1)
    said = tokenizer(" " + target if plain else target, add_special_tokens=False)["input_ids"]
    stop = tokenizer.eos_token_id
    return Row((*before, *said, *([] if stop is None else [stop])), len(before), weight, span)


def part(rows: Sequence[Row], share: float, learnt: float = 0.0) -> Part:
    """Rows as one batch whose weights make up the loss.

    The loss is `share` times the weighted mean over target tokens, plus `learnt` times the mean over the
    tokens of the prompts' spans.
    """
    window = max(len(r.ids) for r in rows)
    ids, weights = torch.zeros(len(rows), window, dtype=torch.long), torch.zeros(len(rows), window)
    total = sum(r.weight * (len(r.ids) - r.start) for r in rows)
    spans = sum(max(0, r.span[1] - max(1, r.span[0])) for r in rows)
    for i, r in enumerate(rows):
        ids[i, : len(r.ids)] = torch.tensor(r.ids)
        weights[i, r.start : len(r.ids)] = share * r.weight / total
        if learnt and spans:
            weights[i, max(1, r.span[0]) : r.span[1]] = learnt / spans
    return Part(ids, weights, sum(len(r.ids) for r in rows))


def step(lessons: Sequence[Lesson], shares: Sequence[float], learnt: float = 0.0) -> Step:
    """Lessons as one step. A task that has no share, or no rows in these lessons, is left out."""
    tasks = [
        [r for lesson in lessons for r in lesson[task]] if share else [] for task, share in enumerate(shares)
    ]
    return Step(tuple(part(rows, share, learnt) for rows, share in zip(tasks, shares, strict=True) if rows))


def loss(bundle: Bundle, batch: Step) -> Tensor:
    """Sum over tokens of weight times negative log-likelihood, in nats.

    Logits are computed only for tokens with a weight.
    """
    head, out = arch.head(bundle.module)[1], torch.zeros((), device=bundle.device)
    for piece in batch.parts:
        ids, weights = piece.ids.to(bundle.device), piece.weights.to(bundle.device)[:, 1:]
        counted = weights > 0
        hidden = final_states(bundle, ids)[:, :-1][counted]
        out = out + next_token_loss(
            head, bundle.geometry.vocabulary, hidden, ids[:, 1:][counted], weights[counted]
        )
    return out


def steps(
    lessons: Sequence[Lesson], shares: Sequence[float], seed: int, learnt: float = 0.0
) -> Iterator[Step]:
    """Steps of about TOKENS_PER_STEP tokens; the lessons come in a new random order every epoch, for ever."""
    long = [
        sum(len(r.ids) for rows, share in zip(lesson, shares, strict=True) if share for r in rows)
        for lesson in lessons
    ]
    size = max(1, TOKENS_PER_STEP * len(lessons) // max(1, sum(long)))
    order = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(lessons), generator=order).split(size):
            yield step([lessons[i] for i in chosen.tolist()], shares, learnt)


@torch.no_grad()
def costs(bundle: Bundle, rows: Sequence[Row], recorder: Recorder = QUIET) -> list[float]:
    """Negative log-likelihood in nats of each row's target with its stop token, summed over tokens."""
    head, out = arch.head(bundle.module)[1], []
    for start in range(0, len(rows), TOGETHER):
        recorder.check("the student is judged")
        some = rows[start : start + TOGETHER]
        ids = part(some, 1.0).ids.to(bundle.device)
        for r, states, own in zip(some, final_states(bundle, ids), ids, strict=True):
            targets = slice(r.start, len(r.ids))
            logits = head(states[r.start - 1 : len(r.ids) - 1]).float()
            out.append(float(token_losses(logits, own[targets]).sum()))
    return out


@contextmanager
def trainable(bundle: Bundle) -> Iterator[list[nn.Parameter]]:
    """All weights of the student, which have gradients meanwhile."""
    bundle.module.requires_grad_(True)
    try:
        yield list(bundle.module.parameters())
    finally:
        bundle.module.requires_grad_(False)
        engine.forget(bundle)


@dataclass(frozen=True)
class Warmed:
    """What a warm-up leaves to the method: a budget, and a context that reports the rest of the course."""

    left: Budget
    context: Context
    notes: tuple[Note, ...] = ()
    series: dict[str, list] = field(default_factory=dict)
    # whether the limit in minutes changed its course; another machine's numbers then differ
    hurried: bool = False

    def notes_with(self, course: Course, method: str) -> tuple[Note, ...]:
        """Notes on the warm-up and on the training that followed it."""
        return self.notes + replace(course, hurried=course.hurried or self.hurried).notes(method)


def warm_up(bundle: Bundle, context: Context, params: BlackBoxParams) -> Warmed:
    """Train all weights of the student on the text's next tokens, in place, for its share of the budget.

    A student that lost layers writes noise at first, and learns little from a few hundred lessons. Its
    control is a copy made after this. Raises CalibrationError for too little text, and Cancelled.
    """
    tokens, minutes = params.warm_tokens, params.train_minutes
    if not tokens:
        return Warmed(Budget(params.train_tokens, minutes), context)
    assert context.windows is not None, "TrainingMethod.text_tokens asks for them"

    def lost(ids: Tensor) -> Tensor:
        return language_loss(bundle, ids)

    supply, judge = from_text(context.windows, lost, context.seed)
    share, recorder = params.warm_up, context.recorder
    with trainable(bundle) as weights:
        course = train(
            weights,
            lost,
            supply,
            judge,
            Budget(tokens, share * minutes),
            rate=params.warm_up_rate,
            recorder=part_of(recorder, (0.0, share), 0, params.train_tokens),
        )
    left = Budget(max(0, params.train_tokens - course.tokens), max(minutes - course.seconds / 60, 1e-3))
    rest = part_of(recorder, (share, 1.0), course.tokens, params.train_tokens)
    facts = {"tokens": course.tokens, "seconds": round(course.seconds)} | {
        name: math.exp(min(nats, 700.0)) for name, nats in (("before", course.before), ("after", course.best))
    }
    return Warmed(
        left,
        replace(context, recorder=rest),
        (Note("warmed_up", facts),),
        {"warm_up": course.curve},
        course.hurried or course.ended == "minutes",
    )


def teach(
    bundle: Bundle,
    lessons: Sequence[Lesson],
    shares: Sequence[float],
    context: Context,
    budget: Budget,
    rate: float,
    *,
    learnt: float = 0.0,
    quiet: bool = False,
    score: Callable[[Bundle, Step], Tensor] | None = None,
) -> Course:
    """Train all weights of the student on lessons, in place. Every eighth lesson is held out to judge by.

    quiet: it reports no events and can't be ended early. score: the loss of a step; `loss` if none is given.

    Raises CalibrationError for too few lessons, and Cancelled.
    """
    if len(lessons) < FEWEST_LESSONS:
        raise CalibrationError(
            f"{len(lessons)} texts to learn from; training needs at least {FEWEST_LESSONS}. Ask more "
            "questions, or choose a better teacher.",
            code="too_few_texts",
            got=len(lessons),
            allowed=FEWEST_LESSONS,
        )
    held = [step([lesson], shares, learnt) for lesson in lessons[HELD_OUT - 1 :: HELD_OUT]][:MOST_HELD_OUT]
    taught = [lesson for i, lesson in enumerate(lessons) if i % HELD_OUT != HELD_OUT - 1]
    quietly = Recorder(cancelled=context.recorder.cancelled, seed=context.seed)
    score = score or loss
    with trainable(bundle) as weights:
        return train(
            weights,
            lambda batch: score(bundle, batch),
            steps(taught, shares, context.seed, learnt),
            lambda: sum(float(score(bundle, batch)) for batch in held) / len(held),
            budget,
            rate=rate,
            recorder=quietly if quiet else context.recorder,
        )


def twin(bundle: Bundle) -> Bundle:
    """A copy of the student with weights of its own, from which its control starts."""
    return Bundle(
        copy.deepcopy(bundle.module), bundle.tokenizer, bundle.geometry, bundle.name, dict(bundle.source)
    )


def replies(bundle: Bundle, prompts: Sequence[str], new_tokens: int, recorder: Recorder = QUIET) -> list[str]:
    """What the student writes after each prompt, taking the likeliest tokens."""
    engine.forget(bundle)
    try:
        return [texts[0].text for texts in write(bundle, prompts, new_tokens=new_tokens, recorder=recorder)]
    finally:
        engine.forget(bundle)


def interview(context: Context, bundle: Bundle, params: BlackBoxParams, oracle: Answers) -> Interview | None:
    """The teacher that writes the texts, chosen by `params.teaching`; None if nobody does."""
    if params.teaching == "answers":
        return None
    if params.teaching == "oracle":
        return Interview(oracle, ORACLE, context.recorder)
    return Interview(context.teacher, bundle.source.get("weights_hash") or bundle.name, context.recorder)


def percent(hits: int, of: int) -> float:
    """The share `hits` / `of` in percent; 0 if `of` is 0."""
    return 100.0 * hits / of if of else 0.0


def teacher_notes(
    params: BlackBoxParams, asked: Interview | None, *, right: int | None, used: int, texts: int
) -> tuple[Note, ...]:
    """Notes on who wrote how much, how much of it was right, and how much was used.

    right: None if the teacher wasn't asked for answers.
    """
    if asked is None:
        return (Note("no_teacher", {"texts": texts}),)
    facts = asked.counts() | {"texts": texts, "used": percent(used, texts)}
    if params.teaching == "oracle":
        return (Note("oracle_texts", facts),)
    notes = [Note("teacher_texts", facts)]
    if right is not None:
        notes.append(Note("teacher_right", {"texts": texts, "right": percent(right, texts)}))
        if percent(right, texts) < SURE:
            notes.append(Note("teacher_unsure", {"right": percent(right, texts)}))
    return tuple(notes)


def off(name: str) -> Callable[[BlackBoxParams], tuple[str, dict] | None]:
    """TrainingMethod.control: the same questions, start, tokens and seed, with right answers alone."""
    return lambda params: (name, params.json() | {"teaching": "answers"}) if params.controlled else None


def text_tokens(params: BlackBoxParams) -> int:
    """TrainingMethod.text_tokens: the tokens of the warm-up."""
    return params.warm_tokens


def make(teacher: Bundle, context: Context, params: BlackBoxParams) -> Edit:
    """StudentMethod.student: some of the teacher's own layers, or another model with any tokenizer."""
    return students.make(teacher, context, params, same_tokenizer=False)


def cost(
    shape: tuple[int, int], params: BlackBoxParams, tokens: int, role: str = "up", *, shown: bool = False
) -> Cost:
    """The cost of a matrix of the teacher [out, in].

    bytes: the student's share of the matrix.
    flops: training on the warm-up and the lessons; training a control on the lessons again; the tokens that
    student (twice) and control read and write when they are judged; the teacher's pass over the text on which
    its layers are measured. The teacher's writing is not counted.
    peak_bytes: weights, gradients, two moments, the best state and the control.
    shown: the teacher reads the lessons too. role "table": the token table, all of which the student has and
    trains.
    """
    weights = shape[0] * shape[1]
    share = 1.0 if role == "table" or params.student else params.kept
    warm, twice = params.warm_tokens, params.compares
    lessons = params.train_tokens - warm
    passes = 3 * share * (warm + (1 + twice) * lessons) + lessons * shown
    passes += share * (2 + twice) * params.judging * (params.train_tokens > 0)
    passes += students.measured(params, tokens) * (role != "table")
    held = (STATE_BYTES + 4 * twice if params.train_tokens else 4) * share * weights
    return Cost(bytes=int(2 * share * weights), flops=2.0 * weights * passes, peak_bytes=int(held))
