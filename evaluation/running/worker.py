"""The process that does one run: it reads a request as one JSON line, and prints events as JSON lines.

    in    {"spec": {...}, "id": "...", "home": "...", "allow_paths": true, "again": false}
    in    "enough"
    out   {"stage": "compress", "done": 3, "total": 30, "seconds_left": 41}
    out   {"result": {...}}

The result is the last event. The line "enough" may follow the request; it ends a training early, with its
best state. The process imports what is slow before the request comes, so that a waiting worker starts at
once. It ends when its parent does, because its standard input closes then.
"""

from __future__ import annotations

import collections
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from evaluation import ROOT, limits
from evaluation.running import deaths
from evaluation.spec import Status

ENOUGH = "enough"
GRACE_SECONDS = 2  # between asking a worker to end and killing it


class Worker(subprocess.Popen):
    """A worker process, seen from the process that starts it.

    What it writes to standard error is passed on. `death` says in words how it ended.
    """

    def __init__(self):
        """Raises OSError if the system has no room for another process."""
        super().__init__(
            [sys.executable, "-m", "evaluation.running.worker"],
            cwd=ROOT,
            start_new_session=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self._said: collections.deque[str] = collections.deque(maxlen=20)
        self._kills = limits.oom_kills()
        self._relay = threading.Thread(target=self._pass_on, daemon=True)
        self._relay.start()

    def _pass_on(self) -> None:
        for line in self.stderr:
            self._said.append(line)
            sys.stderr.write(line)

    def ask(self, request: dict) -> None:
        """Give it its one request."""
        self._write(json.dumps(request))

    def events(self) -> Iterator[dict]:
        """The events that the worker prints, until it ends."""
        try:
            for line in self.stdout:
                yield json.loads(line)
            self.wait(GRACE_SECONDS)
        except (ValueError, subprocess.TimeoutExpired):
            pass  # it was cut off in the middle of a line, or hangs

    def enough(self) -> None:
        """Let it end a training and keep the best state."""
        self._write(ENOUGH)

    def _write(self, line: str) -> None:
        try:
            self.stdin.write(f"{line}\n")
            self.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it has ended: its death is told by its exit code

    def end(self, grace: float = GRACE_SECONDS) -> None:
        """Ask it to end, wait, then kill it with everything that it started (a compiler, a download)."""
        if self.poll() is None:
            self._signal(signal.SIGTERM)
            try:
                self.wait(grace)
            except subprocess.TimeoutExpired:
                pass
        self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        self.wait()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.pid, number) if hasattr(os, "killpg") else self.send_signal(number)
        except (ProcessLookupError, PermissionError):
            pass  # all of them have ended already

    def death(self) -> tuple[Status, dict]:
        """(status, error) of a worker that has ended without a result."""
        self._relay.join(1)
        return deaths.of_exit(self.wait(), "".join(self._said), self._kills)


def serve() -> int:
    """Serve one request and leave."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    # whatever a library prints must not mix with the events
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    import torch  # noqa: F401
    import transformers

    import evaluation.running.run  # noqa: F401

    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("evaluation.store").setLevel(logging.ERROR)  # the app has already logged what it skips
    line = sys.stdin.readline()
    if not line.strip():
        return 0
    enough = threading.Event()
    threading.Thread(target=_listen, args=(enough,), daemon=True).start()
    try:
        for event in events(json.loads(line), enough):
            _say(out, event)
    except BrokenPipeError:  # the parent is gone
        return 3
    return 0


def events(request: dict, enough: threading.Event | None = None) -> Iterator[dict]:
    """Do the run of a request and yield its events; {"result": ...} is the last.

    Leaving the loop early stops the run. `enough` ends a training.
    """
    from evaluation.running.run import run
    from evaluation.spec import RunSpec
    from evaluation.store import Store

    told: queue.SimpleQueue = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        try:
            result = run(
                RunSpec.parse(request["spec"]),
                told.put,
                stopped.is_set,
                Store(Path(request["home"])),
                allow_paths=request["allow_paths"],
                again=request["again"],
                run_id=request["id"],
                enough=(enough or threading.Event()).is_set,
            )
            told.put({"result": result.json()})
        finally:
            told.put(None)

    threading.Thread(target=work, daemon=True).start()
    try:
        while (event := told.get()) is not None:
            yield event
    finally:
        stopped.set()


def _say(out, event: dict) -> None:
    out.write(json.dumps(event, ensure_ascii=False) + "\n")


def _listen(enough: threading.Event) -> None:
    """Read the parent's messages; end when the parent does."""
    while line := sys.stdin.readline():
        if line.strip() == ENOUGH:
            enough.set()
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)  # this process and everything that it has started
    os._exit(3)


if __name__ == "__main__":
    sys.exit(serve())
