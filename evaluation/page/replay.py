"""The recorded answers (evaluation/recorded.py) as the chat's tab shows them.

They are two columns, and one question at 8, 4, 3 and 2 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from compression.catalogue import CATALOGUE
from evaluation.measuring.metrics import Row, error, present, value
from evaluation.page.pareto import smallest_within
from evaluation.page.words import Words, grade
from evaluation.recorded import PROMPTS, SETTINGS, parted

LADDER = "rtn"  # the method whose widths stand in a row: nothing but the bits changes


def shown(
    words: Words, rows: Iterable[Row], points: Mapping[str, Any], run: str = "", prompt: str = ""
) -> dict[str, Any]:
    """What the tab shows of the recorded answers.

    run, prompt: what is chosen; the best point and the first prompt if it isn't recorded. "options": what can
    be chosen. "left", "right": the columns' heads. "state": both answers, in the form of a live one.
    "ladder": the same question at fewer and fewer bits. Without the original's answers all of it is empty.
    """
    recorded = {str(r["id"]): r for r in rows if r["id"] in points}
    originals = {r["model"]: i for i, r in recorded.items() if r["family"] == "original"}
    compressed = {i: r for i, r in recorded.items() if r["family"] != "original" and r["model"] in originals}
    if not compressed:
        return {"prompts": prompts(words), "options": [], "right": None, "ladder": []}
    best = smallest_within(list(compressed.values())) or next(iter(compressed.values()))
    row = compressed.get(run, best)
    name = prompt if prompt in {p.name for p in PROMPTS} else PROMPTS[0].name
    original = recorded[originals[row["model"]]]
    before, after = (points[str(r["id"])]["answers"][name] for r in (original, row))
    entry = CATALOGUE.get(str(row["model"]))
    return {
        "prompts": prompts(words),
        "prompt": name,
        "asked": next(p.text for p in PROMPTS if p.name == name),
        "options": [[i, _option(words, r)] for i, r in sorted(compressed.items(), key=_family_and_size)],
        "id": row["id"],
        "model": row["model"],
        "left": _head(words, words("chat.left"), original),
        "right": _head(words, words.run(row, long=True), row),
        "rounded": words("controls.model.rounded", format=entry.rounded) if entry and entry.rounded else "",
        "state": {
            "sides": {"original": _side(before), "compressed": _side(after)},
            "parted": _parted(before, after),
            "status": _status(words, before, after),
            "done": True,
            "error": "",
        },
        "about": words(
            "chat.recorded.about",
            date=points[str(row["id"])]["date"],
            tokens=SETTINGS["max_tokens"],
            commit=points[str(row["id"])]["commit"],
        ),
        "ladder": _ladder(words, original, compressed.values(), points, name),
    }


def prompts(words: Words) -> list[dict[str, str]]:
    """The suggested questions: what is asked, and its label in the reader's language."""
    return [{"name": p.name, "text": p.text, "label": words(f"prompt.{p.name}")} for p in PROMPTS]


def _family_and_size(entry: tuple[str, Row]) -> tuple:
    order = ("quantization", "pruning", "low_rank", "distillation")
    _, row = entry
    return order.index(str(row["family"])), value(row, "file_bytes") or 0.0


def _option(words: Words, row: Row) -> str:
    size = value(row, "file_bytes")
    return " · ".join([words.run(row, long=True), *([words.size(size)] if size else [])])


def _head(words: Words, title: str, row: Row) -> dict[str, Any]:
    """What a column is: its name, its file and how good it is."""
    size = value(row, "file_bytes")
    return {
        "title": " · ".join([title, *([words.size(size)] if size else [])]),
        "grade": _grade(words, row),
        "rate": None,
        "stored": "",
        "size": size,
        "size_words": words.size(size) if size else "",
    }


def _grade(words: Words, row: Row) -> str:
    ratio = present(row, "perplexity_ratio") if value(row, "perplexity_ratio") else None
    return words("grade." + grade(ratio, error(row, "perplexity_ratio"))) if ratio else ""


def _side(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded answer in the form of a live one."""
    return {
        "text": answer["text"],
        "ends": answer["ends"],
        "pieces": len(answer["tokens"]),
        "done": True,
        "cut": not answer["ended"],
    }


def _parted(before: Mapping[str, Any], after: Mapping[str, Any]) -> int | None:
    return parted(before["tokens"], after["tokens"])


def _status(words: Words, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    at = _parted(before, after)
    return words("chat.equal") if at is None else words.many("chat.parted", at)


def _ladder(
    words: Words, original: Row, compressed: Iterable[Row], points: Mapping[str, Any], name: str
) -> list[dict[str, Any]]:
    """The original and plain rounding at fewer and fewer bits, on one question; [] without such points."""

    def bits(row: Row) -> int:
        return int(row["recipe"][0][1]["bits"])

    steps = [
        r
        for r in compressed
        if [step[0] for step in r["recipe"]] == [LADDER] and r["model"] == original["model"]
    ]
    if not steps:
        return []
    before = points[str(original["id"])]["answers"][name]
    out = []
    for row in (original, *sorted(steps, key=bits, reverse=True)):
        answer = points[str(row["id"])]["answers"][name]
        size = value(row, "file_bytes")
        out.append(
            {
                "title": words("chat.left") if row is original else words("value.bits", v=bits(row)),
                "size": words.size(size) if size else "",
                "grade": "" if row is original else _grade(words, row),
                "side": _side(answer),
                "parted": None if row is original else _parted(before, answer),
            }
        )
    return out
