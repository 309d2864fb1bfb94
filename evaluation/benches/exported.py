"""Finds the formats of other programs that can hold a stored run's model.

The run's recipe is run on the small model of its witness, and each format is tried.

Whether a format holds a model depends on how its matrices are stored and not on their numbers, so the small
model answers for the large one. assets/exports.json keeps the answers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from compression import export
from compression.base import CannotExport
from evaluation.running import witness
from evaluation.spec import Result

FORMS = tuple(form for form in export.FORMS if form != "gptq")  # the page offers version 2


def forms(result: Result) -> list[str]:
    """The formats in which the run's model can be written."""
    bundle, held = witness.compressed(result.spec, result.witness["config"]), []
    for form in FORMS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                export.write(bundle, Path(folder) / form, form)
            except CannotExport:
                continue
            held.append(form)
    return held


def found(results: Iterable[Result], known: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """id -> formats of each run; those that are `known` already are not run again."""
    return {r.id: known[r.id] if r.id in known else [] if r.spec.is_original else forms(r) for r in results}
