"""How long a run still takes: the estimate's seconds for each stage, corrected by how fast the stage really goes."""

from __future__ import annotations

import time
from collections.abc import Callable

from evaluation.spec import RunSpec

_STAGE_OF = {"generate": "evaluate", "tables": "compress"}  # events that belong to a stage of another name


class Clock:
    """Adds "seconds_left" and the stage to every event that passes through `emit`."""

    def __init__(self, spec: RunSpec, emit: Callable[[dict], None]):
        from evaluation.estimate import stage_seconds

        self._emit, self._plan = emit, stage_seconds(spec)
        self._current, self._began = "load", time.perf_counter()

    def stage(self, name: str) -> None:
        """A new stage begins."""
        for earlier in list(self._plan):
            if earlier == name:
                break
            self._plan[earlier] = 0.0
        self._current, self._began = name, time.perf_counter()
        self.emit({"stage": name, "done": 0, "total": 1})

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
