"""Reads facts that are stored beside the runs, under their ids.

assets/points.json names the runs that the first screen opens with (declared in evaluation/benches/points.py),
assets/speeds.json has the decode rates of the stored bench, and assets/exports.json has the formats of other
programs that a run's model was written in. `python -m evaluation tables` writes all three.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence

from evaluation import ROOT
from evaluation.measuring.metrics import Row

FILE, SPEEDS, EXPORTS = (ROOT / "assets" / f"{name}.json" for name in ("points", "speeds", "exports"))


@functools.cache
def names() -> frozenset[str]:
    """Ids of the stored runs that are drawn without being asked for."""
    return frozenset(json.loads(FILE.read_text("utf-8")))


@functools.cache
def exports() -> dict[str, list[str]]:
    """id -> formats of other programs that hold the run's model."""
    return json.loads(EXPORTS.read_text("utf-8"))


@functools.cache
def machines() -> tuple[dict, ...]:
    """The machines of the bench: processor, threads, rates (id -> [tokens/s, the original's beside it])."""
    return tuple(json.loads(SPEEDS.read_text("utf-8")))


def machine(ids: Sequence[str]) -> dict | None:
    """The machine that has rates for the most of these runs; None if none has any."""
    found = max(machines(), key=lambda m: sum(i in m["rates"] for i in ids), default=None)
    return found if found and any(i in found["rates"] for i in ids) else None


def rated(rows: Sequence[Row], machine: dict) -> list[Row]:
    """The rows with how much faster they write than the original, as it was timed on one machine.

    A run that was measured on that very machine has its own times.
    """

    def faster(row: Row) -> float | None:
        if str(row["id"]) in machine["rates"]:
            own, original = machine["rates"][str(row["id"])]
            return own / original
        own, original = (row.get(f"{side}decode_tokens_per_second") for side in ("", "baseline_"))
        there = (row.get("host"), row.get("threads")) == (machine["processor"], machine["threads"])
        return own / original if there and own and original else None

    return [dict(row) | {"decode_speedup": faster(row)} for row in rows]
