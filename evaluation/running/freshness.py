"""Says whether a stored answer still answers its own request.

A request names a model and texts by their paths or names, and the files there may have changed since. A run
compares contents itself (RunSpec.key). This is the quick look beforehand: it reads files' dates, configs,
tokenizers and texts, and no weights. Weights whose hash isn't remembered count as changed; the run then finds
out whether they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from compression import importing, models
from compression.base import CompressionError
from evaluation.running import provenance
from evaluation.spec import CALIBRATIONS, Result
from evaluation.store import Store

if TYPE_CHECKING:
    from compression.texts import Role


def answers(result: Result, store: Store) -> bool:
    """Whether the program would still give this result to the same request.

    The code must give it, as far as that is known (provenance.py). The model, the students and the texts of
    the request must be on this disk as the run read them.
    """
    spec, seen = result.spec, result.fingerprint
    if not provenance.known(result, store):
        return False
    try:
        if not _is_model(spec.model, seen):
            return False
        if not all(_is_student(name, seen.get("students", ())) for name in spec.students):
            return False
        if not _is_text(spec.text, "evaluation", seen.get("text")):
            return False
        return not spec.needs_calibration or _is_text(
            spec.calibration, "calibration", seen.get("calibration")
        )
    except (CompressionError, OSError):  # something is no longer there, or no longer whole
        return False


def _is_model(name: str, seen: Mapping[str, str]) -> bool:
    asked = ("model", "config", "words")
    found = dict(
        zip(asked, (*(models.remembered(name) or (None, None)), models.words_hash(name)), strict=True)
    )
    if models.is_path(name):
        return all(found[part] is not None and found[part] == seen.get(part) for part in asked)
    # a model of the hub or the catalogue: an older record names fewer parts, and a part may not be here
    return all(found[part] is None or seen.get(part) in (None, found[part]) for part in asked)


def _is_student(name: str, hashes) -> bool:
    return models.combined(*models.remembered(name) or ("", "")) in hashes or not models.is_path(name)


def _is_text(name: str, role: Role, hash: str | None) -> bool:
    """True for a named text, which the program brings itself, or a file whose content is the same."""
    with importing:
        from compression.texts import load_text

    return name in CALIBRATIONS or load_text(name, role).hash == hash
