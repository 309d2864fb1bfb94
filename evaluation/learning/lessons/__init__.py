"""The lessons in the order of the course; `load()` gives each. A new lesson is a file here and a line."""

from __future__ import annotations

import importlib

from evaluation.learning.lesson import Lesson

NAMES = (
    "sum",
    "rounding",
    "gptq",
    "channels",
    "protect",
    "planes",
    "cutting",
    "thin",
    "student",
    "through",
    "mixed",
    "believe",
    "bytes",
)


def load() -> dict[str, Lesson]:
    """Every lesson by its name, in the order of the course."""
    return {name: importlib.import_module(f"{__name__}.{name}").LESSON for name in NAMES}
