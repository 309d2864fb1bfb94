"""How long a run will still take.

It takes the estimate's seconds for each stage, and corrects them by how fast the stage really goes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from evaluation import host
from evaluation.spec import RunSpec

# an event's stage -> the name that this stage has in the estimate
_STAGE_OF = {"generate": "evaluate", "tables": "compress"}


class Clock:
    """Adds "seconds_left" and the stage to every event that passes through `emit`."""

    def __init__(self, spec: RunSpec, emit: Callable[[dict], None]):
        from evaluation.running.estimate import stage_seconds

        self._emit, self._plan = emit, stage_seconds(spec)
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
        stages = [s for s in self._spent if s in self._planned and s != "load"]
        planned = sum(self._planned[s] for s in stages)
        if planned > 10:  # a short run says little about a long one
            host.learn(planned, sum(self._spent[s] for s in stages))

    def emit(self, event: dict) -> None:
        done, total = event.get("done", 0), event.get("total", 1)
        shown = self._current if self._current == "baseline" else event["stage"]
        self._emit(event | {"stage": shown, "seconds_left": round(self._left(done / max(total, 1)), 1)})

    def _left(self, share: float) -> float:
        planned = self._plan.get(self._current, 0.0)
        spent = time.perf_counter() - self._began
        if share > 0.05:
            planned = spent / share
        later = sum(s for name, s in self._plan.items() if name != self._current)
        return max(0.0, planned - spent) + later
