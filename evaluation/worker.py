"""The process that does one run: reads a request as one JSON line, prints events as JSON lines, the result last.

    in    {"spec": {...}, "id": "...", "home": "...", "allow_paths": true, "again": false}, later perhaps "enough"
    out   {"stage": ..., "done": ..., "total": ..., "seconds_left": ...} ..., {"result": {...}}

A line "enough" ends a training early, with its best state. It imports what is slow before the request comes, so that a
waiting worker starts at once, and it ends when its parent does: standard input closes.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

ENOUGH = "enough"


def serve() -> int:
    """Serve one request and leave."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints must not mix with the events
    import torch  # noqa: F401
    import transformers

    import evaluation.run  # noqa: F401

    transformers.utils.logging.disable_progress_bar()
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
    """Do the run of a request and yield its events, {"result": ...} last. Leaving the loop early stops the run; `enough` ends
    a training."""
    from evaluation.run import run
    from evaluation.spec import RunSpec
    from evaluation.store import Store

    told: queue.SimpleQueue = queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        try:
            result = run(
                RunSpec.parse(request["spec"]), told.put, stopped.is_set, Store(Path(request["home"])),
                allow_paths=request["allow_paths"], again=request["again"], run_id=request["id"], enough=(enough or threading.Event()).is_set,
            )  # fmt: skip
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
    """Take the parent's words; leave with it."""
    while line := sys.stdin.readline():
        if line.strip() == ENOUGH:
            enough.set()
    os._exit(3)
