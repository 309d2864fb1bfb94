"""The course as a whole: its lessons, their data, and the map of the survey that is its table of contents."""

from __future__ import annotations

import json
from typing import Any

from evaluation.learning import lessons as _lessons
from evaluation.learning.lesson import DATA, ClaimGone, Lesson, Real, drawn, rounded
from evaluation.learning.survey import FAMILIES, SYSTEMS, System
from evaluation.page import words

__all__ = ["Real", "lessons", "made", "survey_map"]


def lessons() -> dict[str, Lesson]:
    """Every lesson by its name, in the order of the course."""
    return _lessons.load()


def made(lesson: Lesson, real: Real) -> dict[str, Any]:
    """A lesson's data, checked. Raises ClaimGone if a draw of it doesn't bear out the lesson's words."""
    data = rounded(lesson.make(real))
    for one in drawn(data):
        lesson.check(one)
    return data


def survey_map(real: Real) -> dict[str, Any]:
    """Lessons, and the survey's families with their groups and systems, each with its best stored result."""
    place = {system: lesson.name for lesson in lessons().values() for system in lesson.systems}
    return rounded(
        {
            "lessons": [_entry(name) for name in lessons()],
            "systems": len(SYSTEMS),
            "original": {"perplexity": real.perplexity("none")},
            "families": [
                {
                    "name": family,
                    "groups": [
                        {"name": group, "systems": [_leaf(s, place, real) for s in systems]}
                        for group, systems in groups.items()
                    ],
                }
                for family, groups in FAMILIES.items()
            ],
        }
    )


def _entry(name: str) -> dict[str, Any]:
    """A lesson's line in the table of contents, in each language."""
    own = {
        language: json.loads((DATA / "lessons" / name / f"{language}.json").read_text("utf-8"))
        for language in words.LANGUAGES
    }
    return {"name": name} | {
        key: {language: strings[key] for language, strings in own.items()} for key in ("title", "idea")
    }


def _leaf(system: System, place: dict[str, str], real: Real) -> dict[str, Any]:
    method = words.methods()[system.method]
    return {
        "name": system.name,
        "title": system.title,
        "year": system.year,
        "method": system.method,
        "paper": method["paper"].removeprefix("https://"),
        "link": method["paper"],
        "lesson": place.get(system.name, ""),
        "best": _best(system, real),
    }


def _best(system: System, real: Real) -> dict[str, Any] | None:
    try:
        result = real.result(system.best)
    except ClaimGone:
        return None
    return {
        "id": real.id(system.best),
        "perplexity": result.metrics["perplexity"],
        "file_bytes": result.metrics["file_bytes"],
        "words": {language: words.Words(language).recipe(result.spec.recipe) for language in words.LANGUAGES},
    }
