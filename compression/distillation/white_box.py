"""The code that MiniLLM and GKD share: a student learns from its teacher's whole next-token distribution.

A student of some of its teacher's layers predicts badly at first, and its samples are noise. So a share of
the budget goes to a warm-up, which has a step size of its own: supervised forward KL to the teacher on text.
Then the method's own phase begins, on the student's own samples. Each phase keeps the state with the lowest
value of its own loss, measured on held-out text (or on samples that continue held-out text).

A student is judged by the reverse KL to its teacher on its own samples, in nats a token: a value for each
sample, so that two students that continue the same prompts can be compared in pairs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from compression import arch
from compression.base import BadParam, Context, Cost, Edit, Note, param
from compression.bundle import Bundle
from compression.distillation import rollouts
from compression.distillation.rollouts import Sequences, given
from compression.distillation.students import StudentParams, measured
from compression.divergences import forward_kl, reverse_kl
from compression.judged import Judged, questions_id
from compression.likelihood import final_states
from compression.recorder import Recorder
from compression.row_losses import sum_over_rows
from compression.sample import stop_ids
from compression.training import JUDGED, STATE_BYTES, Budget, Course, batches, hold_out, part_of, train

TEXT_TOKENS, SAMPLES = 2_048, 32  # text (at least two windows) and continuations that judge a state
JUDGED_SAMPLES = 200  # continuations that judge the student, before the method's phase and after it
DECODED = 5  # drawing one token at a time costs as much as this many forward passes for it


@dataclass(frozen=True)
class WhiteBoxParams(StudentParams):
    """The budget of a distillation and the shape of its samples."""

    train_tokens: int = param(
        32_768, "Training ends after this many tokens.", label="always", lo=0, hi=100_000_000
    )
    train_minutes: float = param(
        30.0, "Or after this many minutes, whichever comes first.", lo=0.1, hi=10_000.0
    )
    warm_up: float = param(
        0.5,
        "Share of the budget that the student first learns on text, by supervised forward KL.",
        lo=0.0,
        hi=0.95,
    )
    warm_up_rate: float = param(2e-4, "Highest step size of the warm-up.", lo=1e-7, hi=1.0, level="advanced")
    learning_rate: float = param(
        2e-4, "Highest step size of AdamW after the warm-up.", lo=1e-7, hi=1.0, level="advanced"
    )
    prompt_tokens: int = param(
        32, "Tokens of text that a sample continues.", lo=1, hi=2_048, step=1, level="advanced"
    )
    response_tokens: int = param(48, "Tokens of a sample, at most.", lo=1, hi=2_048, step=1, level="advanced")


W = TypeVar("W", bound=WhiteBoxParams)

# (logits of p, logits of q [n, vocabulary], which of the scored tokens) -> a value for each token [n]
Value = Callable[[Tensor | None, Tensor, slice], Tensor]


def token_mean(student: Bundle, teacher: Bundle | None, batch: Sequences, value: Value) -> Tensor:
    """Mean over a batch's scored tokens of `value`; differentiable in the student alone.

    If the two heads have different widths (padding of one vocabulary), both are cut to the smaller width.
    """
    states = scored_states(student, batch)
    width, taught = student.geometry.vocabulary, None
    if teacher is not None:
        with torch.no_grad():
            taught = batch.teacher_states
            if taught is None:
                taught = scored_states(teacher, batch)
        width = min(width, teacher.geometry.vocabulary)

    def lost(logits: Tensor, rows: slice) -> Tensor:
        p = None if taught is None else arch.head(teacher.module)[1](taught[rows])[:, :width]
        return value(p, logits[:, :width], rows)

    head = arch.head(student.module)[1]
    return sum_over_rows(head, student.geometry.vocabulary, states, lost) / len(states)


def scored_states(bundle: Bundle, batch: Sequences) -> Tensor:
    """Final hidden states [n, hidden] from which the batch's scored tokens are predicted."""
    return final_states(bundle, batch.ids)[:, :-1][batch.scored]


def text_loss(student: Bundle, batch: Sequences) -> Tensor:
    """Mean negative log-likelihood of a batch's scored tokens."""
    targets = batch.targets
    return token_mean(
        student, None, batch, lambda _, q, rows: F.cross_entropy(q.float(), targets[rows], reduction="none")
    )


@dataclass(frozen=True)
class Lesson(Generic[W]):
    """One distillation: its student and teacher, the text to learn from and the text to judge by."""

    student: Bundle
    teacher: Bundle
    taught: Tensor  # windows [n, window]
    held: Tensor  # windows that are held out
    params: W
    recorder: Recorder

    def texts(self) -> Iterator[Tensor]:
        """Pieces of text [b, prompt + response] in random order, for ever."""
        device = self.student.device
        cut = rollouts.pieces(self.taught, self.params.prompt_tokens + self.params.response_tokens)
        return (ids.to(device) for ids in batches(cut, self.recorder.seed))

    def sample(
        self, prompts: Tensor, generator: torch.Generator, alpha: float = 0.0, teacher: Bundle | None = None
    ) -> Sequences:
        """Continuations of prompts [b, n]."""
        ends = stop_ids(self.student)
        return rollouts.draw(
            self.student, teacher, prompts, self.params.response_tokens, alpha, ends, generator, self.recorder
        )

    def own(self) -> Sequences:
        """The student's continuations of held-out text, with the same randomness every time."""
        cut = rollouts.pieces(self.held, self.params.prompt_tokens + self.params.response_tokens)
        prompts = cut[:, : self.params.prompt_tokens].repeat(-(-SAMPLES // len(cut)), 1)[:SAMPLES]
        return self.sample(prompts, self.recorder.generator(1))

    @functools.cached_property
    def aside(self) -> Sequences:
        """The held-out windows with every token scored; the teacher's states for them are kept."""
        batch = given(self.held.to(self.student.device), 1)
        with torch.no_grad():
            return dataclasses.replace(batch, teacher_states=scored_states(self.teacher, batch))

    @functools.cached_property
    def prompts(self) -> Tensor:
        """Different beginnings [m, prompt] of held-out text, at most JUDGED_SAMPLES; the student is judged by
        how it continues them."""
        return rollouts.pieces(self.held, self.params.prompt_tokens)[:JUDGED_SAMPLES]

    @property
    def clusters(self) -> list[int]:
        """The prompt of each judged sample. All prompts come in turn, until there are enough samples."""
        return [i % len(self.prompts) for i in range(JUDGED_SAMPLES)]

    @property
    def asked(self) -> str:
        """A name for the prompts that judge the student: equal for students whose samples can be paired."""
        source = self.teacher.source
        teacher = source.get("weights_hash") or self.teacher.name
        return questions_id(
            teacher, self.prompts.tolist(), JUDGED_SAMPLES, self.params.response_tokens, self.recorder.seed
        )

    def divergences(self, batch: Sequences) -> tuple[Tensor, Tensor]:
        """(forward, reverse) KL to the teacher in nats, for each of a batch's sequences [b].

        Each is the mean over the sequence's scored tokens.
        """
        found: tuple[list[Tensor], list[Tensor]] = [], []

        def value(p: Tensor, q: Tensor, _: slice) -> Tensor:
            for values, divergence in zip(found, (forward_kl, reverse_kl), strict=True):
                values.append(divergence(p, q))
            return values[-1]

        token_mean(self.student, self.teacher, batch, value)
        lengths = batch.mask.sum(1).tolist()
        forward, reverse = (
            torch.stack([one.mean() for one in torch.cat(values).split(lengths)]) for values in found
        )
        return forward, reverse

    @torch.no_grad()
    def measured(self) -> tuple[dict[str, float], list[float]]:
        """How far the student is from its teacher, and the reverse KL of each judged sample.

        The dict has both divergences in nats a token, on held-out text and on the student's own samples, and
        how long and how varied the samples are.
        """
        own = self.sample(self.prompts[self.clusters], self.recorder.generator(1))
        text, judged = self.divergences(self.aside), self.divergences(own)
        found = {
            f"{where}_{which}": float(values.mean())
            for where, both in (("text", text), ("own", judged))
            for which, values in zip(("forward", "reverse"), both, strict=True)
        }
        varied = {"length": float(own.lengths.float().mean()), "distinct": rollouts.distinct(own)}
        return found | varied, judged[1].tolist()


@dataclass(frozen=True)
class Phase:
    """The parts of a method's training: a loss on the batches of `supply`, and a judge of states."""

    loss: Callable[[Sequences], Tensor]
    supply: Iterator[Sequences]
    judge: Callable[[], float]


def warm_up(lesson: Lesson, plain: bool) -> Phase:
    """Forward KL to the teacher on whole windows of text.

    plain: the loss of the text's own next tokens instead, without a teacher.
    """

    def loss(batch):
        return _supervised(lesson, batch, plain)

    supply = (given(ids.to(lesson.student.device), 1) for ids in batches(lesson.taught, lesson.recorder.seed))
    return Phase(loss, supply, lambda: float(loss(lesson.aside)))


def _supervised(lesson: Lesson, batch: Sequences, plain: bool) -> Tensor:
    if plain:
        return text_loss(lesson.student, batch)
    return token_mean(lesson.student, lesson.teacher, batch, lambda p, q, _: forward_kl(p, q))


def check_lengths(params: WhiteBoxParams, window: int) -> None:
    """Raises BadParam if a prompt and its continuation don't fit into a window of the text."""
    longest = params.prompt_tokens + params.response_tokens
    if longest > window:
        raise BadParam(
            f"prompt_tokens + response_tokens = {longest} is more than a window of {window} tokens; shorten "
            "them or give longer windows",
            name="prompt_tokens + response_tokens",
            got=longest,
            allowed=f"<= {window}",
        )


def check_windows(params: WhiteBoxParams, windows: Tensor) -> None:
    """ModelMethod.fits of these methods."""
    if params.train_tokens:
        check_lengths(params, windows.shape[1])


def distil(
    method: str,
    student: Bundle,
    context: Context,
    params: W,
    phase: Callable[[Lesson[W]], Phase],
    plain: bool = False,
) -> Edit:
    """Train the student: first the warm-up, then the method's phase.

    plain: the warm-up reads text without a teacher. Raises BadParam if prompt and response don't fit into a
    window; CalibrationError and Cancelled as training does.
    """
    if params.train_tokens == 0:
        return Edit(bundle=student)
    taught, held = hold_out(context.windows)
    check_lengths(params, taught.shape[1])
    dtype = student.module.dtype
    student.module.float().requires_grad_(True).eval()
    lesson = Lesson(
        student,
        context.teacher,
        taught,
        held[: max(2, TEXT_TOKENS // held.shape[1])],
        params,
        context.recorder,
    )
    first = Course()
    if params.warm_up:
        early = Budget(round(params.warm_up * params.train_tokens), params.warm_up * params.train_minutes)
        span = (0.0, params.warm_up)
        first = _train(lesson, warm_up(lesson, plain), early, params.warm_up_rate, span, 0)
    before, samples_before = lesson.measured()
    late = Budget(params.train_tokens - first.tokens, max(params.train_minutes - first.seconds / 60, 1e-3))
    course = _train(lesson, phase(lesson), late, params.learning_rate, (params.warm_up, 1.0), first.tokens)
    course.hurried |= first.hurried or first.ended == "minutes"
    after, samples_after = lesson.measured()
    student.module.to(dtype).requires_grad_(False)
    notes = [
        Note(
            "distilled",
            {
                "method": method,
                "tokens": first.tokens + course.tokens,
                "first_tokens": first.tokens,
                "steps": first.steps + course.steps,
                "seconds": round(first.seconds + course.seconds),
                "before": course.before,
                "best": course.best,
            },
        ),
        Note(
            "divergences",
            {
                f"{k}_{when}": v
                for when, found in (("before", before), ("after", after))
                for k, v in found.items()
                if k not in ("length", "distinct")
            },
        ),
        Note(
            "samples",
            {
                "count": JUDGED_SAMPLES,
                "most": params.response_tokens,
                "length_before": before["length"],
                "length": after["length"],
                "distinct_before": before["distinct"],
                "distinct": after["distinct"],
            },
        ),
    ]
    notes += course.notes(method)[1:]  # these say whether the minutes or a visitor ended it
    if course.best >= course.before:
        notes.append(Note("distilled_no_gain", {"method": method}))
    curves = {"training": course.curve} | ({"warm_up": first.curve} if first.curve else {})
    judged = Judged(
        "own_reverse_kl",
        lesson.asked,
        tuple(samples_before),
        tuple(samples_after),
        clusters=tuple(lesson.clusters),
    )
    return Edit(bundle=student, notes=tuple(notes), series=curves, judged=(judged,))


def _train(
    lesson: Lesson, phase: Phase, budget: Budget, rate: float, span: tuple[float, float], done: int
) -> Course:
    """Train one phase and report it as the part `span` of the whole. `done` tokens came before it."""
    return train(
        list(lesson.student.module.parameters()),
        phase.loss,
        phase.supply,
        phase.judge,
        budget,
        rate=rate,
        recorder=part_of(lesson.recorder, span, done, lesson.params.train_tokens),
    )


def cost(
    shape: tuple[int, int],
    params: WhiteBoxParams,
    tokens: int,
    *,
    samples: float,
    teacher_steps: bool,
    role: str,
) -> Cost:
    """The cost of a matrix of the teacher [out, in].

    bytes: the student's share of the matrix.
    flops: the teacher's pass over the tokens on which its layers are measured; both models' passes over the
    tokens that are trained on, over samples as they are drawn (`samples`: their share of the tokens after the
    warm-up) and over the tokens that judge.
    role "table": the token table, all of which the student has and trains.
    """
    weights = shape[0] * shape[1]
    share = 1.0 if role == "table" or params.student else params.kept
    length = params.prompt_tokens + params.response_tokens
    drawn = samples * (1 - params.warm_up) * params.train_tokens * params.response_tokens / length
    sample = length + DECODED * params.response_tokens
    states = 2 * (JUDGED + 1) * (TEXT_TOKENS + SAMPLES * sample)
    students = 2 * (TEXT_TOKENS + JUDGED_SAMPLES * sample)
    judged = (states + students) * (params.train_tokens > 0)
    passes = (
        params.train_tokens * (1 + 3 * share)
        + DECODED * drawn * (share + teacher_steps)
        + judged * (1 + share)
        + measured(params, tokens) * (role != "table")
    )
    held = STATE_BYTES * share * weights if params.train_tokens else 4 * share * weights
    return Cost(bytes=int(2 * share * weights), flops=2.0 * weights * passes, peak_bytes=int(held))
