"""How long a run will still take.

It begins with the estimate's seconds for each stage. The current stage is corrected by its progress, and the
later stages by the run's speed so far. So a busy machine shows in the first stage that computes. Downloading
and building the kernels don't count for this speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from evaluation import host
from evaluation.spec import RunSpec

NOT_COMPUTED = ("load", "kernels")  # stages whose time follows from the network, or from a compiler
KERNELS_SECONDS = 60.0  # that building the C kernels takes, once on a machine
# seconds that a run must compute before its own speed counts as much as the estimate's
TRUSTED_SECONDS = 5.0
STALLED = 0.2  # without news for some time, the next news is expected after this share of that time


def still(left: float, quiet: float) -> float:
    """Seconds left, `quiet` seconds after `left` was said; never none while there is no news."""
    return max(left - quiet, STALLED * quiet)


class Clock:
    """Adds "seconds_left" and the stage to every event that passes through `emit`."""

    def __init__(self, spec: RunSpec, emit: Callable[[dict], None]):
        from evaluation.running.estimate import stage_seconds
        from kernels import cpu

        planned = stage_seconds(spec)
        kernels = KERNELS_SECONDS if planned and not cpu.is_built() else 0.0
        self._emit, self._plan = emit, {"load": planned.pop("load", 0.0), "kernels": kernels} | planned
        self._planned = dict(self._plan)
        self._spent: dict[str, float] = {}
        self._current, self._began = "load", time.perf_counter()

    def stage(self, name: str) -> None:
        """A new stage begins."""
        self._spent[self._current] = time.perf_counter() - self._began
        for earlier in list(self._plan):
            if earlier == name:
                break
            self._plan[earlier] = 0.0
        self._current, self._began = name, time.perf_counter()
        self.emit({"stage": name, "done": 0, "total": 1})

    def end(self) -> None:
        """The run has its result: adapt the machine's pace to what the stages took.

        Loading doesn't count, because it may have been a download.
        """
        self._spent[self._current] = time.perf_counter() - self._began
        stages = [s for s in self._spent if s in self._planned and s not in NOT_COMPUTED]
        planned = sum(self._planned[s] for s in stages)
        if planned > 10:  # a short run says little about a long one
            host.learn(planned, sum(self._spent[s] for s in stages))

    def emit(self, event: dict) -> None:
        done, total = event.get("done", 0), event.get("total", 1)
        shown = self._current if self._current == "baseline" else event["stage"]
        self._emit(event | {"stage": shown, "seconds_left": round(self._left(done / max(total, 1)), 1)})

    def _left(self, share: float) -> float:
        spent = time.perf_counter() - self._began
        told = share > 0.05  # enough of the stage is done to say how long the rest of it takes
        pace = self._pace(spent, share if told else 0.0)
        planned = spent / share if told else self._plan.get(self._current, 0.0) * pace
        rest = {name: s for name, s in self._plan.items() if name != self._current}
        later = sum(s * (1.0 if name in NOT_COMPUTED else pace) for name, s in rest.items())
        return max(0.0, planned - spent) + later

    def _pace(self, spent: float, share: float) -> float:
        """This run's seconds for each second of the plan, 1 before it has computed anything.

        spent, share: of the stage that goes on.
        """
        ended = {n: s for n, s in self._spent.items() if n not in NOT_COMPUTED and n in self._planned}
        took, planned = sum(ended.values()), sum(self._planned[name] for name in ended)
        if self._current not in NOT_COMPUTED and share:
            took, planned = took + spent, planned + share * self._planned.get(self._current, 0.0)
        return (took + TRUSTED_SECONDS) / (planned + TRUSTED_SECONDS)
