"""Answers what the front shows: a set of runs, its drawing, the headline, the families' best, and remarks.

Pure but for the host's name: rows of the table of runs in, JSON for the page out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compression.catalogue import CATALOGUE
from evaluation import host
from evaluation.measuring import metrics
from evaluation.measuring.metrics import Row, error, present, value
from evaluation.page import cards, interactive, pareto, plots, points, requests
from evaluation.page.picture import STYLE
from evaluation.page.words import Words, digits, grade

PHOTO_BYTES = 3e6  # a photo as a phone's camera stores it


@dataclass
class Chosen:
    """A set of runs that is drawn."""

    name: str  # pareto.comparison; "" if nothing is measured
    known: list[tuple[str, Row, int]]  # all sets of the model, pareto.sets
    measured: list[Row]  # all runs of the set
    group: list[Row]  # those that the page opens with, own ones and the selected one


def answer(ask: requests.Front, rows: Sequence[Row], exports: Callable[[Row], Collection[str]]) -> dict:
    """The figure of one model in one set of runs, with its sentences.

    exports: what an own run's model can be written in for other programs.
    """
    words, model = Words(ask.lang), ask.model
    x, y = axes(ask)
    chosen = choose(ask, rows)
    group = wanted(ask, chosen, exports)
    drawn, remarks = timed(group, (x, y), words)
    whole = [r for r in drawn if value(r, x) is not None and value(r, y) is not None]
    drawing = plots.draw(whole, x, y, words, ask.selected)
    sentences, first = cards.answer(group, words, ask.budget or budget(group))
    best = pareto.smallest_within(group) or next((r for r in group if r["family"] == "original"), None)
    if others := len(chosen.measured) - len(chosen.group):
        remarks.insert(0, words.many("front.others", others))
    if len(whole) < len(drawn):
        remarks.append(words.many("front.missing", len(drawn) - len(whole)))
    if (entry := CATALOGUE.get(model)) and entry.rounded:
        facts = {"format": entry.rounded, "bytes": entry.publisher_bytes}
        remarks.append(words.note({"code": "already_rounded", "facts": facts}))
    return {
        "scene": plots.scene(drawing),
        "alt": plots.summary(drawing, first),
        "headline": headline(group, model, words),
        "purpose": words("app.sentence"),
        "scale": judged_size(group, words),
        "families": {family: best_of(row, words) for family, row in pareto.family_best(group).items()},
        "answer": sentences if group else "",
        "remarks": remarks,
        "sets": [
            [name, words.many("front.set.runs", n, name=called)]
            for (name, _, n), called in zip(chosen.known, set_names(chosen.known, words), strict=True)
        ],
        "set": chosen.name,
        "empty": not whole,
        "best": str(best["id"]) if best else "",
        "time_here": here_asked(x, y, ask.selected or (str(best["id"]) if best else ""), group, words),
        "x": x,
        "y": y,
        "ids": [str(r["id"]) for r in group],
    }


def alone(ask: requests.Front, rows: Sequence[Row], exports: Callable[[Row], Collection[str]]) -> str:
    """The same figure as a web page of its own (interactive.py)."""
    words, chosen = Words(ask.lang), choose(ask, rows)
    drawn, _ = timed(wanted(ask, chosen, exports), axes(ask), words)
    called = set_names(chosen.known, words)[[name for name, _, _ in chosen.known].index(chosen.name)]
    drawing = plots.draw(drawn, *axes(ask), words, ask.selected)
    return interactive.page(drawing, f"{title(ask.model)} · {called}", STYLE.read_text("utf-8"))


def axes(ask: requests.Front) -> tuple[str, str]:
    """The metrics that are drawn from left to right and upwards."""
    x = ask.x if ask.x in metrics.AXES else metrics.DEFAULT_X
    y = ask.y if ask.y in metrics.AXES else metrics.DEFAULT_Y
    return x, y


# --- which runs ---


def wanted(ask: requests.Front, chosen: Chosen, exports: Callable[[Row], Collection[str]]) -> list[Row]:
    """The runs of the set that are drawn.

    If only what other programs load is asked for, they are the original and the runs whose model can be
    written in another program's format.
    """
    if not ask.deploy:
        return chosen.group
    stored = points.exports()
    return [r for r in chosen.group if r["family"] == "original" or stored.get(str(r["id"])) or exports(r)]


def choose(ask: requests.Front, rows: Sequence[Row]) -> Chosen:
    """The set that is asked for, else that of the selected run, of the settings, or with the most runs."""
    known = pareto.sets(rows, ask.model)
    names = [name for name, _, _ in known]
    selected = next((r for r in rows if r["id"] == ask.selected and r["status"] == "ok"), None)
    name = ask.protocol
    if name not in names and selected and selected["model"] == ask.model:
        name = next((n for n in names if selected in pareto.comparable([selected], ask.model, n)), "")
    if name not in names:
        name = usual(known, ask.settings) or (names[0] if names else "")
    measured = pareto.comparable(rows, ask.model, name)
    return Chosen(name, known, measured, pareto.opening(measured, points.names(), ask.selected))


def usual(known: Iterable[tuple[str, Row, int]], settings: requests.Settings) -> str:
    """The set in which a run with these settings would be; "" if none is stored."""
    asked = ("text", "protocol", "tokens", "window", "table_bits")
    wanted = [getattr(settings, key) for key in asked]
    return next((name for name, row, _ in known if [row.get(key) for key in asked] == wanted), "")


def set_names(known: Sequence[tuple[str, Row, int]], words: Words) -> list[str]:
    """Each set in words: its text, tokens, windows and word table; what else differs where two are alike."""
    names = []
    for _, row, _ in known:
        text = str(row.get("text", ""))
        tokens = row.get("tokens")
        facts = {
            "text": words(f"text.{text}") if words.has(f"text.{text}") else Path(text).name,
            "tokens": words("front.set.tokens", n=f"{tokens:,}") if tokens else words("front.set.whole"),
            "window": f"{row.get('window', 0):,}",
            "bits": row.get("table_bits", 16),
        }
        names.append(words("front.set", **facts))
    return [
        f"{name} · {row['protocol_id']}" if names.count(name) > 1 else name
        for name, (_, row, _) in zip(names, known, strict=True)
    ]


def timed(group: Sequence[Row], axes: tuple[str, str], words: Words) -> tuple[list[Row], list[str]]:
    """The rows with the times that the axes need, all of one machine, and what is said of that machine."""
    if "decode_speedup" in axes:
        machine = points.machine([str(r["id"]) for r in group])
        if machine is None:
            return list(group), []
        told = words.many("front.time_bench", machine["threads"], processor=machine["processor"])
        return points.rated(group, machine), [told]
    if any(metrics.METRICS[key].kind == "time" for key in axes):
        return pareto.on_this_machine(group, host.processor(), host.threads()), [words("front.time_here")]
    return list(group), []


def here_asked(x: str, y: str, chosen: str, group: Sequence[Row], words: Words) -> dict | None:
    """On an axis of times, the chosen run unless it was timed on this machine; None on other axes."""
    row = next((r for r in group if r["id"] == chosen), None)
    if row is None or all(metrics.METRICS[key].kind != "time" for key in (x, y)):
        return None
    here = (row.get("host"), row.get("threads")) == (host.processor(), host.threads())
    if here and value(row, "decode_tokens_per_second") is not None:
        return None
    return {"id": chosen, "text": words("front.measure_here", name=words.run(row))}


def budget(rows: Iterable[Row]) -> float | None:
    """A first size to ask about: a third of the original or the smallest run, up to the next 10 MB."""
    sizes = sorted(s for r in rows if (s := value(r, "file_bytes")))
    return math.ceil(max(sizes[0], sizes[-1] / 3) / 1e7) * 1e7 if sizes else None


# --- in words ---


def best_of(row: Row, words: Words) -> str:
    """A family's best run: "best: GPTQ 4 bits, 87 MB, 17 % worse"."""
    ratio = present(row, "perplexity_ratio")
    return words(
        "front.best_of",
        name=words.run(row),
        size=words.size(present(row, "file_bytes")),
        cost=cost(ratio, words),
    )


def cost(ratio: float, words: Words) -> str:
    """A multiple of the original's perplexity as what one pays: "17 % worse", "6.7× the perplexity"."""
    if grade(ratio) == "same":
        return words("grade.same")
    if grade(ratio) == "broken":
        return words("front.cost.broken", times=digits(ratio, 2))
    if ratio >= 2:
        return words("front.cost.times", times=digits(ratio, 2))
    return words("front.cost.percent", n=digits(100 * (ratio - 1), 2))


def title(model: str) -> str:
    """A model's name as people say it: that of its publisher's weights, wherever they come from."""
    entry = CATALOGUE.get(model)
    if entry is None:
        return Path(model).name
    return next(
        (e.title for e in CATALOGUE.values() if e.hub_id == entry.hub_id and not e.package), entry.title
    )


def headline(rows: Sequence[Row], model: str, words: Words) -> str:
    """The computed sentence of the first screen.

    A model that its publisher has rounded is compared with the publisher's file, since that is what can be
    downloaded, and with its 16-bit weights.
    """
    best, entry = pareto.smallest_within(rows), CATALOGUE.get(model)
    original = value(best, "baseline_file_bytes") if best else None
    if best is None or not original:
        return words("app.headline_none", model=title(model)) if rows else words("app.headline_empty")
    now, ratio = present(best, "file_bytes"), present(best, "perplexity_ratio")
    facts = {
        "model": title(model),
        "original": words.size(original),
        "now": words.size(now),
        "smaller": words.smaller(original, now),
        "verdict": words("grade." + grade(ratio, error(best, "perplexity_ratio"))),
    }
    if entry is None or not (entry.rounded and entry.publisher_bytes):
        return words("app.headline", **facts)
    beside = entry.publisher_bytes / now
    key = "same" if 0.99 < beside < 1.01 else "smaller" if beside > 1 else "larger"
    facts |= {"download": words.size(entry.publisher_bytes), "times": digits(max(beside, 1 / beside), 2)}
    return words(f"app.headline_rounded.{key}", **facts)


def judged_size(rows: Sequence[Row], words: Words) -> str:
    """The best model's size against something that everybody owns."""
    best = pareto.smallest_within(rows)
    if best is None:
        return ""
    size = present(best, "file_bytes")
    return words.many("app.photos", round(size / PHOTO_BYTES), size=words.size(size))
