"""What a long work tells whoever watches it, and what it is told: progress, stop, enough; and its seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compression.base import Cancelled

if TYPE_CHECKING:
    import torch


def _nobody(event: dict) -> None:
    pass


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Recorder:
    """Handed down from the run to every loop that takes long."""

    emit: Callable[[dict], None] = _nobody  # takes an event: {"stage", "done", "total", "facts"}
    cancelled: Callable[[], bool] = _never  # true: give the whole run up
    enough: Callable[[], bool] = _never  # true: end the training now and keep its best state
    seed: int = 0

    def progress(self, stage: str, done: float, total: float, **facts) -> None:
        """Tell how far a stage is."""
        self.emit({"stage": stage, "done": done, "total": total} | ({"facts": facts} if facts else {}))

    def check(self, doing: str) -> None:
        """Raises Cancelled if somebody pressed Stop. doing: what stops, e.g. "training"."""
        if self.cancelled():
            raise Cancelled(f"stopped while {doing}")

    def generator(self, number: int = 0) -> torch.Generator:
        """A random stream of the seed; streams of other numbers are others."""
        import torch

        return torch.Generator().manual_seed(self.seed + number)

    def telling(self, change: Callable[[dict], dict]) -> Recorder:
        """The same, whose events are changed on their way."""
        return dataclasses.replace(self, emit=lambda event: self.emit(change(event)))


QUIET = Recorder()  # nobody watches, nothing stops
