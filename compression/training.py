"""The one training loop: a budget, a curve, the best state so far.

A method decides what is trained, on what batches and by what loss.

A budget has tokens and minutes, and the training ends when either is used up. The learning rate rises over
the first tenth of the run and then falls linearly to zero at its end. The tokens say how much of the run is
over, or the minutes where these are ahead (`over`). So a run that its tokens end well within its minutes is
the same on every machine; a run whose rate followed the minutes says so.

The held-out loss is measured after every eighth of the budget. What is kept in the end is the best state that
was seen, which may be the untrained one. Whoever watches may end the training early, which keeps the best
state, or cancel the whole run (`Recorder`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from compression import arch
from compression.base import CalibrationError, Note
from compression.bundle import Bundle
from compression.likelihood import final_states
from compression.recorder import QUIET, Recorder
from compression.row_losses import next_token_loss

WARM_UP, JUDGED = 0.1, 8  # share of the run; held-out measurements after the first one
HEAD_START = 0.1  # share of the minutes that isn't counted: the first measurement takes time and no token
CLIP = 1.0
HELD_OUT, MOST_HELD_OUT, FEWEST = 8, 8, 2  # every eighth window is held out, at most 8 and at least 2
TOKENS_PER_STEP = 1_024
STATE_BYTES = 20  # of a number trained in 32 bits: itself, its gradient, two moments, the best value so far


class Batch(Protocol):
    """What one step trains on: token ids [b, window], or a record that holds them and more."""

    def numel(self) -> int:
        """How many tokens it has; they count against the budget."""


B = TypeVar("B", bound=Batch)


@dataclass(frozen=True)
class Budget:
    """How long a training may take."""

    tokens: int
    minutes: float


@dataclass
class Course:
    """How a training went: curve rows [tokens, loss, held-out loss or None], and why it ended."""

    curve: list[list] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    before: float = 0.0  # held-out loss at the start
    best: float = 0.0
    ended: str = "tokens"  # tokens, minutes, enough
    hurried: bool = False  # whether the rate followed the minutes at some step

    def notes(self, method: str) -> tuple[Note, ...]:
        """What a reader must know about this training."""
        facts = {
            "method": method,
            "tokens": self.tokens,
            "seconds": round(self.seconds),
            "before": self.before,
            "best": self.best,
        }
        out = [Note("trained", facts)]
        if self.ended != "tokens":
            out.append(Note(f"training_{self.ended}", {"tokens": self.tokens}))
        elif self.hurried:
            out.append(Note("training_hurried"))
        return tuple(out)


def over(tokens: float, minutes: float) -> float:
    """The share of a run that is over, from the shares of its tokens and of its minutes that are used.

    The minutes count only from HEAD_START on, and are scaled so that both shares reach 1 at their end.
    """
    return max(tokens, (minutes - HEAD_START) / (1 - HEAD_START))


def height(done: float) -> float:
    """The rate as a share of its highest, where `done` of the run is over."""
    return max(0.0, min(done / WARM_UP + 0.01, (1 - done) / (1 - WARM_UP), 1.0))


def part_of(recorder: Recorder, span: tuple[float, float], done: int, budget: int) -> Recorder:
    """The recorder of one of several trainings in a row: it reports progress as the part `span` of them all.

    span: shares of the whole at which it starts and ends. done: tokens of the trainings before it. budget:
    tokens of them all.
    """
    start, end = span

    def of_the_whole(event: dict) -> dict:
        if event["stage"] != "train":
            return event
        facts = event["facts"] | {"tokens": done + event["facts"]["tokens"], "budget": budget}
        return event | {"done": start + (end - start) * min(event["done"], 1.0), "facts": facts}

    return recorder.telling(of_the_whole)


def hold_out(windows: Tensor) -> tuple[Tensor, Tensor]:
    """(windows to train on, windows to judge by) of [n, window]: every eighth is held out.

    Raises CalibrationError.
    """
    if len(windows) < 2 * FEWEST:
        raise CalibrationError(
            f"{len(windows)} windows of text; training needs at least {2 * FEWEST}. Give a longer "
            "calibration text or a shorter window.",
            code="too_little_text",
            got=len(windows),
            allowed=f">= {2 * FEWEST}",
        )
    held = torch.arange(len(windows)) % HELD_OUT == HELD_OUT - 1
    if int(held.sum()) < FEWEST:
        held = torch.arange(len(windows)) >= len(windows) - FEWEST
    return windows[~held], windows[held][:MOST_HELD_OUT]


def batches(windows: Tensor, seed: int, tokens: int = TOKENS_PER_STEP) -> Iterator[Tensor]:
    """Windows [b, window] of about `tokens` tokens, in a new random order every epoch, for ever."""
    size, order = max(1, tokens // windows.shape[1]), torch.Generator().manual_seed(seed)
    while True:
        for part in torch.randperm(len(windows), generator=order).split(size):
            yield windows[part]


def language_loss(bundle: Bundle, ids: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean negative log-likelihood in nats of windows [b, window]; differentiable.

    counted: bool [b, window - 1], the predicted tokens that the mean is over; None for all.
    """
    ids = ids.to(bundle.device)
    hidden, targets = final_states(bundle, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    weights = None if counted is None else counted.to(hidden).flatten()
    total = next_token_loss(arch.head(bundle.module)[1], bundle.geometry.vocabulary, hidden, targets, weights)
    return total / (len(hidden) if counted is None else counted.sum())


def from_text(
    windows: Tensor, loss: Callable[[Tensor], Tensor], seed: int
) -> tuple[Iterator[Tensor], Callable[[], float]]:
    """(batches to train on, held-out judge) of a text, windows [n, window].

    The judge gives the mean loss over the held-out windows.
    """
    taught, held = hold_out(windows)
    return batches(taught, seed), lambda: mean_loss(held, loss)


def mean_loss(windows: Tensor, loss: Callable[[Tensor], Tensor]) -> float:
    """Mean of `loss` over windows [n, window], about TOKENS_PER_STEP tokens at a time.

    `loss` is itself a mean over the windows that it is given.
    """
    parts = windows.split(max(1, TOKENS_PER_STEP // windows.shape[1]))
    return sum(loss(part).item() * len(part) for part in parts) / len(windows)


def adamw(parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """AdamW without weight decay."""
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)


def train(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[B], Tensor],
    supply: Iterator[B],
    judge: Callable[[], float],
    budget: Budget,
    *,
    rate: float,
    optimizer: Callable[[Sequence[nn.Parameter], float], torch.optim.Optimizer] = adamw,
    before_step: Callable[[float], None] = lambda share: None,
    finish: Callable[[], bool] = lambda: False,
    recorder: Recorder = QUIET,
) -> Course:
    """Train `parameters` in place on loss(batch) for the batches of `supply`.

    They end in the state with the lowest `judge`. `from_text` makes supply and judge of a plain text. Both
    run without gradients.

    supply: batches for ever. If they depend on the model's state (its own samples), they are drawn when they
    are asked for. judge(): the loss that should fall, on data that isn't trained on. optimizer(parameters,
    rate): makes the optimizer; its learning rate is set anew at each step. before_step(share of the budget
    done): called with the step's gradients in place, for measures and schedules of the method's own.
    finish(): called at the end; true if it changed the model around the parameters, so that no earlier state
    counts.

    Raises CalibrationError (too little text, a loss that is not finite) and Cancelled.
    """
    course, start = Course(), time.perf_counter()
    stepper = optimizer(parameters, rate)
    next_judged = 0.0
    best: list[Tensor] = []
    torch.manual_seed(recorder.seed)

    def take_stock(last_loss: float | None) -> None:
        with torch.no_grad():
            now = judge()
        if not course.curve:
            course.before = course.best = now
        if not best or now < course.best:
            course.best = now
            best[:] = [p.detach().clone() for p in parameters]
        course.curve.append([course.tokens, last_loss, now])

    def tell() -> None:
        recorder.progress(
            "train",
            share,
            1.0,
            loss=course.curve[-1][1],
            best=course.best,
            before=course.before,
            curve=course.curve[-200:],
            tokens=course.tokens,
            budget=budget.tokens,
        )

    share = 0.0
    with torch.enable_grad():
        while True:
            if share >= next_judged:
                take_stock(course.curve[-1][1] if course.curve else None)
                next_judged += 1 / JUDGED
                tell()
            recorder.check("training")
            if course.tokens >= budget.tokens:
                break
            if course.seconds >= 60 * budget.minutes or recorder.enough():
                course.ended = "minutes" if course.seconds >= 60 * budget.minutes else "enough"
                break
            with torch.no_grad():
                batch = next(supply)
            used = course.tokens / budget.tokens
            done = over(used, course.seconds / (60 * budget.minutes))
            course.hurried |= done > used
            stepper.param_groups[0]["lr"] = rate * height(done)
            value = loss(batch)
            if not bool(torch.isfinite(value)):
                raise CalibrationError(
                    f"the loss became {value.item()} after {course.steps} steps; lower the learning rate",
                    code="training_diverged",
                    steps=course.steps,
                )
            value.backward()
            nn.utils.clip_grad_norm_(parameters, CLIP)
            before_step(share)
            stepper.step()
            stepper.zero_grad()
            course.steps, course.tokens = course.steps + 1, course.tokens + batch.numel()
            course.seconds = time.perf_counter() - start
            share = max(course.tokens / budget.tokens, course.seconds / (60 * budget.minutes))
            course.curve.append([course.tokens, value.item(), None])
            tell()
        if finish():
            best.clear()
        if not best or course.curve[-1][2] is None:
            take_stock(course.curve[-1][1])
    with torch.no_grad():
        for p, kept in zip(parameters, best, strict=True):
            p.copy_(kept)
    course.seconds = time.perf_counter() - start
    return course
