"""Manages finished runs: names them, tells how much disk they take, writes all of them into a file.

All of it is for the runs of one's own machine. On a public page visitors share one store, and `Page` refuses.
"""

from __future__ import annotations

import time
from pathlib import Path

from compression.base import CompressionError
from evaluation import records
from evaluation.labels import Label
from evaluation.page.words import Words
from evaluation.spec import Result
from evaluation.store import ARTIFACT_BYTES, Store
from kernels.home import write


def own(store: Store, run_id: str) -> Result:
    """A finished run of this machine.

    Raises CompressionError if there is none of this id, or if it is going on.
    """
    result = store.get_id(run_id)
    if result is None or result not in store.own():
        raise CompressionError("no run of this machine has this id", code="run_gone")
    if result.status in ("queued", "running"):
        raise CompressionError("the run is going on; stop it first", code="run_going_on")
    return result


def name(store: Store, run_id: str, title: str, note: str) -> None:
    """Give an own run a title and a note. Raises CompressionError as `own` does."""
    store.label(own(store, run_id).id, Label(title, note))


def disk(store: Store, words: Words) -> str:
    """What the compressed models take on this disk, in words; "" if there are none."""
    models = {r.artifact: store.disk_bytes(r) for r in store.own() if store.has_artifact(r)}
    if not models:
        return ""
    facts = {"size": words.size(sum(models.values())), "limit": words.size(ARTIFACT_BYTES)}
    return words.many("runs.disk", len(models), **facts)


def export(store: Store, folder: Path) -> dict[str, str]:
    """Write all finished runs of this machine into one file, as `evaluation results save` does.

    A line has one record. Raises CompressionError if there are none.
    """
    found = [r for r in store.own() if r.status == "ok"]
    if not found:
        raise CompressionError("this machine has no finished run yet", code="nothing_to_export")
    file = folder / f"results-{time.strftime('%Y%m%d')}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    write(file, b"".join(records.content(r) + b"\n" for r in found))
    return {"file": str(file), "name": file.name}
