"""A run from request to result.

`run(spec)` is the one way that the command line, the page's worker and `make measure` take. It never raises
for what a visitor can cause; the Result says how the run ended. The stages stand in stages.py, and `_answer`
below calls them in their order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable

from compression.base import CompressionError
from compression.recorder import Recorder
from evaluation import host
from evaluation.running import deaths, stages
from evaluation.running.clock import Clock
from evaluation.spec import Result, RunSpec
from evaluation.store import Store


def run(
    spec: RunSpec,
    emit: Callable[[dict], None] = lambda event: None,
    cancelled: Callable[[], bool] = lambda: False,
    store: Store | None = None,
    *,
    allow_paths: bool = True,
    timings: bool = True,
    again: bool = False,
    run_id: str = "",
    enough: Callable[[], bool] = lambda: False,
    nudges: tuple[int, ...] = (),
) -> Result:
    """Do a run and return its Result, which is also put into the store.

    again: run even if the store has the answer. timings: False leaves out the latency stage. run_id: the id
    that the record gets. enough: becomes true when a training should end and keep its best state. nudges: the
    seeds of its witness (witness.py).
    """
    store = store or Store()
    started = time.time()
    with contextlib.ExitStack() as held:
        clock = Clock(spec, emit)
        recorder = Recorder(clock.emit, cancelled, enough, spec.seed)
        order = stages.Order(spec, store, clock, held, recorder, allow_paths, timings, again, nudges)
        try:
            result = _answer(order)
        except Exception as error:
            result = _failed(spec, store, error, created=started)
        if result.id and result.status == "ok" and not run_id:
            return result  # the store's own answer
        result = dataclasses.replace(result, id=run_id or result.id or store.new_id())
        try:
            return store.put(result)
        except (OSError, CompressionError) as error:
            return _unkept(store, result, error)


def _answer(order: stages.Order) -> Result:
    """All stages of a run, from the request to its result. Raises whatever ends the run."""
    read = stages.read_texts(order)
    loaded = stages.load(order, read)
    if not order.again and (found := order.answered(order.spec, loaded.fingerprint)):
        return found
    original = stages.measure_original(order, read, loaded)
    if order.spec.is_original:
        return original.result
    return stages.compress_and_compare(order, read, loaded, original)


def _failed(spec: RunSpec, store: Store, error: Exception, **fields) -> Result:
    """The result of a run that ended by an error."""
    return Result(
        key="",
        spec=spec,
        status=deaths.status(error),
        error=deaths.describe(error, store.home),
        environment=host.environment(),
        **fields,
    )


def _unkept(store: Store, result: Result, why: Exception) -> Result:
    """The result of a run whose record can't be written.

    Its artifact is removed, unless an earlier run of the same key has it too.
    """
    others = [r for r in store.own() if r.id != result.id and r.status == "ok"]
    if result.artifact and all(r.artifact != result.artifact for r in others):
        shutil.rmtree(store.artifact_folder(result.artifact), ignore_errors=True)
    failed = _failed(result.spec, store, why, id=result.id, created=result.created)
    failed = dataclasses.replace(failed, status="failed", environment=result.environment)
    try:
        return store.put(failed)
    except OSError:
        return failed
