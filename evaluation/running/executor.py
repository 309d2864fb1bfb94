"""Where runs happen: in a process of this machine, or in this process while a graphics card is lent to it.

The runner begins a run and reads its events; it doesn't know where they come from. A third place, for example
another machine, is one more class like `Workers` and its choice in app.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from typing import Protocol

from compression import importing
from evaluation.running import deaths
from evaluation.running.worker import GRACE_SECONDS, Worker
from evaluation.spec import RunSpec, Status


class Running(Protocol):
    """A run that has begun."""

    def events(self) -> Iterator[dict]:
        """Stages as they come, {"result": ...} last; without a result if the run died or was ended."""

    def enough(self) -> None:
        """End a training now and keep its best state. A run that doesn't train, or has ended, stays as it
        is."""

    def end(self, grace: float = GRACE_SECONDS) -> None:
        """Stop it; nothing of it works on after `grace` seconds."""

    def death(self) -> tuple[Status, dict]:
        """(status, error) of a run that has ended without a result."""


class Executor(Protocol):
    """A place for runs."""

    ends_trainings: bool  # whether `Running.enough` has an effect

    def ready(self) -> None:
        """Prepare for the next run, so that it starts at once. Called between runs."""

    def begin(self, request: dict) -> Running:
        """Begin the run of a request (evaluation/running/worker.py). Raises OSError where there is no room
        for it, CompressionError where its model can't be had."""

    def close(self) -> None:
        """Give up what `ready` prepared; no run begins after this."""


class Workers:
    """One process for each run. spare: one more process waits, its imports done."""

    ends_trainings = True

    def __init__(self, spare: bool = True):
        self._lock = threading.Lock()
        self._spare: Worker | None = None
        self._wanted = spare

    def ready(self) -> None:
        with self._lock:
            if self._wanted and self._spare is None:
                try:
                    self._spare = Worker()
                except OSError:
                    pass  # no room for one more process now

    def begin(self, request: dict) -> Running:
        with self._lock:
            worker, self._spare = self._spare, None
        if worker is None or worker.poll() is not None:
            worker = Worker()
        worker.ask(request)
        return worker

    def close(self) -> None:
        with self._lock:
            worker, self._spare, self._wanted = self._spare, None, False
        if worker:
            worker.end(grace=0.2)


class Lent:
    """Runs in this process. A Space with ZeroGPU lends its card to a decorated function, never to a process
    that we start. events: that function, `worker.events` decorated."""

    ends_trainings = False

    def __init__(self, events: Callable[[dict], Generator[dict]]):
        self._events = events

    def ready(self) -> None:
        pass

    def begin(self, request: dict) -> Running:
        with importing:
            from compression import models

        spec = RunSpec.parse(request["spec"])
        for name in (spec.model, *spec.students):  # a download must not cost the lent card's time
            models.prepare(name, allow_paths=request["allow_paths"])
        return _Here(self._events(request))

    def close(self) -> None:
        pass


class _Here:
    def __init__(self, events: Generator[dict]):
        self._events, self._ended = events, False

    def events(self) -> Iterator[dict]:
        for event in self._events:
            if self._ended:
                self._events.close()
                return
            yield event

    def enough(self) -> None:
        pass

    def end(self, grace: float = GRACE_SECONDS) -> None:
        self._ended = True  # the thread that reads the events closes them

    def death(self) -> tuple[Status, dict]:
        return deaths.of_exit(1)
