"""Chooses what the front draws: marks, axes, names and lines, in fractions of the drawing's frame.

The page's script (assets/scripts/plot.js) lays them out at the size that the window has, and the style sheet
gives the colours. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from evaluation.measuring.metrics import METRICS, Row, error, present, value
from evaluation.page.pareto import family_best, front, parents, smallest_within
from evaluation.page.words import BROKEN, NOTICEABLE, Words

LOG_TICKS = (1, 1.02, 1.05, 1.1, 1.2, 1.5, 2, 3, 4, 5, 10, 20, 50, 100, 200, 500, 1000)
SYMBOLS = {"quantization": "circle", "pruning": "square", "low_rank": "diamond", "distillation": "pentagon"}


def _polygon(corners: int, radius: float, turned: float = 0.0) -> str:
    at = [math.pi * (2 * k / corners + turned) for k in range(corners)]
    return "M" + "L".join(f"{radius * math.sin(a):.1f} {-radius * math.cos(a):.1f}" for a in at) + "Z"


STAR = (
    "M"
    + "L".join(
        f"{r * math.sin(math.pi * k / 5):.1f} {-r * math.cos(math.pi * k / 5):.1f}"
        for k, r in ((k, 9 if k % 2 == 0 else 3.8) for k in range(10))
    )
    + "Z"
)
# what a symbol looks like, around 0 0
PATHS = {
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z",
    "square": _polygon(4, 6.4, 0.25),
    "diamond": _polygon(4, 6.6),
    "pentagon": _polygon(5, 6.4),
    "star": STAR,
}


@dataclass
class Mark:
    """One run as a point of the figure."""

    id: str
    x: float  # of a broken model its true value, which the axis doesn't reach; y too
    y: float
    family: str
    label: str
    lines: list[str]  # what is said of the point on hover and focus
    leading: bool  # no other run beats it
    best: bool = False
    # along x and y, whether the model is broken by that axis: it is drawn in a band at the axis's worse end,
    # which has no scale
    beyond: tuple[bool, bool] = (False, False)
    error: float | None = None
    noted: bool = False
    parent: str = ""  # id of the run that it goes on from
    own: bool = False

    @property
    def broken(self) -> bool:
        """Whether it stands in a band."""
        return any(self.beyond)


@dataclass
class Scale:
    """One axis: its range in drawn coordinates (decades if it is logarithmic), its best end and its ticks."""

    key: str
    low: float
    high: float
    log: bool
    flip: bool  # smaller values at the top
    ticks: list[tuple[float, str]] = field(default_factory=list)

    def at(self, v: float) -> float:
        """Where a value is drawn: 0 at the low end of the drawing, 1 at the high end."""
        v = math.log10(v) if self.log else v
        part = (v - self.low) / (self.high - self.low)
        return 1 - part if self.flip else part


def beyond_use(rows: Iterable[Row], key: str) -> float:
    """The value from which a model is broken, by the grade of that name; inf for other metrics."""
    if key == "perplexity_ratio":
        return BROKEN
    if key != "perplexity":
        return math.inf
    own = [value(r, key) for r in rows if r["family"] == "original"]
    return BROKEN * own[0] if own and own[0] else math.inf


def marks(rows: Sequence[Row], x: str, y: str, words: Words) -> list[Mark]:
    """The runs that have both figures."""
    rows = [r for r in rows if value(r, x) is not None and value(r, y) is not None]
    leading, best = set(front(rows, x, y)), smallest_within(rows)
    limits = beyond_use(rows, x), beyond_use(rows, y)
    parent = parents(rows)
    return [
        Mark(
            id=str(r["id"]),
            x=present(r, x),
            y=present(r, y),
            family=str(r["family"]),
            label=words("original") if r["family"] == "original" else words.run(r),
            lines=_lines(r, x, y, words),
            leading=r["id"] in leading,
            best=best is not None and r["id"] == best["id"],
            beyond=(present(r, x) > limits[0], present(r, y) > limits[1]),
            error=error(r, y),
            noted=bool(noteworthy(r)),
            parent=parent.get(str(r["id"]), ""),
            own=not r.get("shipped"),
        )
        for r in rows
    ]


# notes that every result of a kind has; they aren't drawn on points
EXPECTED_NOTES = frozenset(
    {
        "already_rounded",
        "structures_removed",
        "width_removed",
        "student_layers",
        "student_other",
        "blocks_by_influence",
        "blocks_contiguous",
    }
)


def noteworthy(row: Row) -> list[dict]:
    """The notes that set a run apart from its neighbours."""
    return [n for n in row.get("notes") or () if n.get("code") not in EXPECTED_NOTES]


def _lines(row: Row, x: str, y: str, words: Words) -> list[str]:
    """What is said of a point: its long name, both figures, and what sets it apart."""
    lines = [words.run(row, long=True)]
    for key in (x, y):
        spread = error(row, key)
        figure = words.figure(key, present(row, key)) + (
            f" ± {words.figure(key, spread, 2)}" if spread else ""
        )
        lines.append(words("front.figure", name=words(f"metric.{key}"), figure=figure))
    if source := row.get("calibration"):
        lines.append(words("card.calibrated", source=source))
    lines += [words("shipped_mark")] if row.get("shipped") else []
    return lines + [words.note(n) for n in noteworthy(row)[:2]]


def scale(key: str, values: Sequence[float], words: Words, vertical: bool) -> Scale:
    """An axis that holds all values, with room at both ends; a vertical axis has better values at the top."""
    metric = METRICS[key]
    flip = vertical and metric.better == "low"
    if not values:
        return Scale(key, 0.0, 1.0, False, flip)
    values = [*values, metric.original] if metric.log and metric.original else values
    low, high = min(values), max(values)
    if metric.log and low > 0:
        low, high = math.log10(low), math.log10(high)
        pad = max(0.06 * (high - low), 0.02)
        axis = Scale(key, low - pad, high + pad, True, flip)
        inside = [
            t * b for b in _decades(axis) for t in LOG_TICKS if axis.low <= math.log10(t * b) <= axis.high
        ]
        axis.ticks = [(t, words.figure(key, t)) for t in _spaced(axis, sorted(set(inside)), 0.07)]
        return axis
    if 0 <= low < 0.25 * high:
        low = 0.0
    if metric.unit == "share":
        high = max(high, 1.0)
    span = (high - low) or abs(high) or 1.0
    # the low end has more room: there the knobs' next model will stand
    axis = Scale(key, low - (min(0.14 * span, low) if low else 0), high + 0.07 * span, False, flip)
    step = _nice(span / 5)
    first = math.ceil(axis.low / step)
    ticks = [round(k * step, 10) for k in range(first, math.floor(axis.high / step) + 1)]
    axis.ticks = [(t, words.figure(key, t)) for t in ticks if not (metric.unit == "share" and t > 1)]
    return axis


def _decades(axis: Scale) -> list[float]:
    """The powers of ten that spread LOG_TICKS (1 to 1000) over the whole range."""
    start = math.floor(axis.low / 3)
    return [10.0 ** (3 * k) for k in range(start, math.floor(axis.high / 3) + 1)]


def _spaced(axis: Scale, ticks: list[float], least: float) -> list[float]:
    kept: list[float] = []
    for t in ticks:
        if not kept or abs(axis.at(t) - axis.at(kept[-1])) >= least:
            kept.append(t)
    return kept


def _nice(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= step)


@dataclass
class Drawing:
    """Everything that a picture needs."""

    marks: list[Mark]
    x: Scale
    y: Scale
    words: Words
    names: list[str]  # ids of the marks that are named, the most wanted first
    band: tuple[float, float] | None  # range of y that can't be told from the original


def draw(rows: Sequence[Row], x: str, y: str, words: Words, chosen: str = "") -> Drawing:
    """Choose the axes and the names. chosen: id of the run that is looked at."""
    found = marks(rows, x, y, words)
    xs = scale(x, [m.x for m in found if not m.beyond[0]], words, False)
    ys = scale(y, [m.y for m in found if not m.beyond[1]], words, True)
    band = None
    if y == "perplexity_ratio" and not all(m.beyond[1] for m in found):
        band = (max(1 / NOTICEABLE, 10**ys.low), NOTICEABLE)
    return Drawing(found, xs, ys, words, _names(found, rows, chosen), band)


def _names(found: list[Mark], rows: Sequence[Row], chosen: str) -> list[str]:
    """Which points are named where there is room, in this order.

    The original, the best, the chosen run, own runs with the newest first, each family's best, what is
    broken, the front, and all others.
    """
    created = {str(r["id"]): r.get("created", 0.0) for r in rows}
    bests = {str(r["id"]) for r in family_best(rows).values()}
    own = sorted((m for m in found if m.own), key=lambda m: -created[m.id])
    wanted = [
        *(m for m in found if m.family == "original"),
        *(m for m in found if m.best),
        *(m for m in found if m.id == chosen),
        *own,
        *(m for m in found if m.id in bests),
        *(m for m in found if m.broken),
        *joined(found),
        *found,
    ]
    return list(dict.fromkeys(m.id for m in wanted))


def overlap(a: tuple, b: tuple) -> bool:
    """Whether two boxes (left, top, right, bottom) share a point."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def summary(drawing: Drawing, names: str) -> str:
    """The picture in one sentence, for people who can't see it."""
    words, lead = drawing.words, [m for m in drawing.marks if m.leading]
    return words(
        "front.alt",
        runs=len(drawing.marks),
        x=words(f"metric.{drawing.x.key}"),
        y=words(f"metric.{drawing.y.key}"),
        lead=len(lead),
        answer=names,
    )


def joined(found: list[Mark]) -> list[Mark]:
    """The points that the front's line joins, from left to right."""
    return sorted((m for m in found if m.leading and not m.broken), key=lambda m: m.x)


def scene(drawing: Drawing) -> dict:
    """The drawing as JSON for the page's script.

    Places are fractions of the frame: 0 0 is its lower left corner. A broken model has no place along the
    axis by which it is broken ("x" or "y" is null).
    """
    x, y, words = drawing.x, drawing.y, drawing.words

    def height(m: Mark, value: float) -> float:
        low, high = (y.at(10**v if y.log else v) for v in (y.low, y.high))
        return min(max(y.at(value), min(low, high)), max(low, high))

    def spread(m: Mark) -> list[float] | None:
        if not m.error or m.beyond[1]:
            return None
        least = 10**y.low if y.log else -math.inf
        return sorted(height(m, max(m.y + way * 2 * m.error, least)) for way in (-1, 1))

    x_words, y_words = directions(drawing)
    return {
        "marks": [
            {
                "id": m.id,
                "x": None if m.beyond[0] else x.at(m.x),
                "y": None if m.beyond[1] else y.at(m.y),
                "spread": spread(m),
                "family": m.family,
                "path": PATHS[SYMBOLS.get(m.family, "star")],
                "label": m.label,
                "lines": m.lines,
                "leading": m.leading,
                "best": m.best,
                "noted": m.noted,
                "parent": m.parent,
            }
            for m in drawing.marks
        ],
        "names": drawing.names,
        "line": [[x.at(m.x), y.at(m.y)] for m in joined(drawing.marks)],
        "band": [y.at(v) for v in sorted(drawing.band, reverse=True)] if drawing.band else None,
        "x": {
            "ticks": [[x.at(t), text] for t, text in x.ticks],
            "words": x_words,
            # where a value of a linear axis stands is known to the script too, for the knobs' estimate
            "range": None if x.log else [x.low, x.high],
        },
        "y": {"ticks": [[y.at(t), text] for t, text in y.ticks], "words": y_words},
        "said": {"band": words("front.band"), "broken": words("front.broken", times=f"{BROKEN:g}")},
    }


def directions(drawing: Drawing) -> tuple[str, str]:
    """The axes' names, each with an arrow to its better end."""
    words = drawing.words
    x, y = METRICS[drawing.x.key], METRICS[drawing.y.key]
    arrow = "front.left" if x.better == "low" else "front.right"
    kind = {"size": "smaller", "time": "faster" if x.unit != "seconds" else "sooner", "quality": "better"}[
        x.kind
    ]
    return (
        words(arrow, word=words(f"front.{kind}"), name=words(f"metric.{x.key}")),
        words("front.up", word=words("front.better"), name=words(f"metric.{y.key}")),
    )
