"""A `Recorder` reports the progress of long work, tells it when to stop, and holds the run's seed."""

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
    """It is handed down from the run to every loop that takes long."""

    emit: Callable[[dict], None] = _nobody  # takes an event: {"stage", "done", "total", "facts"}
    cancelled: Callable[[], bool] = _never  # true: give up the whole run
    enough: Callable[[], bool] = _never  # true: end the training now and keep its best state
    seed: int = 0

    def progress(self, stage: str, done: float, total: float, **facts) -> None:
        """Report how far a stage is."""
        self.emit({"stage": stage, "done": done, "total": total} | ({"facts": facts} if facts else {}))

    def check(self, doing: str) -> None:
        """Raises Cancelled if somebody pressed Stop. doing: what is stopped, e.g. "training"."""
        if self.cancelled():
            raise Cancelled(f"stopped while {doing}")

    def generator(self, number: int = 0) -> torch.Generator:
        """A random stream of the run's seed; another number gives another stream."""
        import torch

        return torch.Generator().manual_seed(self.seed + number)

    def telling(self, change: Callable[[dict], dict]) -> Recorder:
        """The same recorder, whose events are changed by `change` on their way."""
        return dataclasses.replace(self, emit=lambda event: self.emit(change(event)))


QUIET = Recorder()  # nobody watches, and nothing stops the work
