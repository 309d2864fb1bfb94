"""Draws the front: the same marks as a still SVG for the first paint, and as a figure for Plotly.

Colours are tokens ("var:quantization") that the page turns into the theme's colours, so that a figure is
right in light and dark. Pure: it doesn't import Plotly, and the figure is Plotly's JSON.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import escape

from evaluation.measuring.metrics import METRICS, Row, error, present, value
from evaluation.page.markup import render
from evaluation.page.pareto import front, smallest_within
from evaluation.page.words import NOTICEABLE, Words

WIDTH, HEIGHT = 760, 400  # the still's coordinates; labels are placed for this size
MARGIN = {"l": 58, "r": 22, "t": 30, "b": 50}
LOG_TICKS = (1, 1.02, 1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
# larger multiples of the original's perplexity are drawn at the edge: a broken model must not squash the
# others
WORST_RATIO = 10.0
SIZES = {"star": 17, "best": 13, "plain": 11, "beaten": 9}
PALE = 0.45  # opacity of a run that another beats; it keeps its family's colour
SYMBOLS = {"quantization": "circle", "pruning": "square", "low_rank": "diamond", "distillation": "pentagon"}


@dataclass
class Mark:
    """One run as a point of the figure."""

    id: str
    x: float
    y: float
    family: str
    label: str
    hover: str
    leading: bool  # no other run beats it
    best: bool = False
    clipped: bool = False  # drawn at the edge; the hover text has its true value
    error: float | None = None
    notes: int = 0


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


def marks(rows: Sequence[Row], x: str, y: str, words: Words) -> list[Mark]:
    """The runs that have both figures."""
    rows = [r for r in rows if value(r, x) is not None and value(r, y) is not None]
    leading, best = set(front(rows, x, y)), smallest_within(rows)
    limit = WORST_RATIO * (
        1
        if y == "perplexity_ratio"
        else next((present(r, y) for r in rows if r["family"] == "original"), math.inf)
    )
    cut = limit if METRICS[y].log else math.inf
    out = []
    for r in rows:
        there, seen = present(r, y), min(present(r, y), cut)
        out.append(
            Mark(
                id=str(r["id"]),
                x=present(r, x),
                y=seen,
                family=str(r["family"]),
                label=words.run(r),
                hover=_hover(r, x, y, words),
                leading=r["id"] in leading,
                best=best is not None and r["id"] == best["id"],
                clipped=there > seen,
                error=error(r, y),
                notes=len(noteworthy(r)),
            )
        )
    return out


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


def _hover(row: Row, x: str, y: str, words: Words) -> str:
    """What Plotly shows over a point; Plotly knows a few tags."""
    lines = []
    for key in (x, y):
        spread = error(row, key)
        figure = words.figure(key, present(row, key)) + (
            f" ± {words.figure(key, spread, 2)}" if spread else ""
        )
        lines.append(f"{words(f'metric.{key}')}: {figure}")
    if source := row.get("calibration"):
        lines.append(words("card.calibrated", source=source))
    if (bits := row.get("table_bits")) and row.get("family") != "original":
        lines.append(words("front.table", bits=bits))
    lines += [words("shipped_mark")] if row.get("shipped") else []
    lines += [words.note(n) for n in noteworthy(row)[:2]]
    return render("hover.html", name=words.run(row, long=True), lines=lines)


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
    if metric.unit == "bytes" or (low >= 0 and low < 0.5 * high):
        low = 0.0
    if metric.unit == "share":
        high = max(high, 1.0)
    span = (high - low) or abs(high) or 1.0
    axis = Scale(key, low - (0.04 * span if low else 0), high + 0.07 * span, False, flip)
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
    """Everything that both pictures need."""

    marks: list[Mark]
    x: Scale
    y: Scale
    words: Words
    labels: list[tuple[Mark, str, float, float, str]]  # mark, text, offset in pixels, anchor
    band: tuple[float, float] | None  # range of y that can't be told from the original


def draw(rows: Sequence[Row], x: str, y: str, words: Words) -> Drawing:
    """Choose the axes and place points and labels."""
    found = marks(rows, x, y, words)
    xs, ys = scale(x, [m.x for m in found], words, False), scale(y, [m.y for m in found], words, True)
    band = None
    if y == "perplexity_ratio" and found:
        band = (max(1 / NOTICEABLE, 10**ys.low), NOTICEABLE)
    return Drawing(found, xs, ys, words, _labels(found, xs, ys, words), band)


def _labels(found: list[Mark], xs: Scale, ys: Scale, words: Words) -> list:
    """At most four names: the original, the best, and the ends of the front, where there is room."""
    original = [m for m in found if m.family == "original"]
    best = [m for m in found if m.best]
    ends = sorted(
        (m for m in found if m.leading and m not in original + best and not m.clipped), key=lambda m: m.x
    )
    wanted = (original + best + ends[:1] + ends[-1:])[:4]

    def px(m):
        return (
            xs.at(m.x) * (WIDTH - MARGIN["l"] - MARGIN["r"]),
            (1 - ys.at(m.y)) * (HEIGHT - MARGIN["t"] - MARGIN["b"]),
        )

    taken = [(a - 9, b - 9, a + 9, b + 9) for a, b in map(px, found)]
    out: list[tuple[Mark, str, int, int, str]] = []
    for m in wanted:
        if any(m is o[0] for o in out):
            continue
        text = words("original") if m in original else m.label
        width = 7.0 * sum(2 if ord(c) > 0x2E80 else 1 for c in text) + 6
        a, b = px(m)
        for dx, dy, anchor in (
            (0, -20, "middle"),
            (14, 0, "start"),
            (-14, 0, "end"),
            (0, 22, "middle"),
            (14, -16, "start"),
            (-14, -16, "end"),
            (14, 18, "start"),
            (-14, 18, "end"),
        ):
            left = a + dx - {"middle": width / 2, "start": 0, "end": width}[anchor]
            box = (left, b + dy - 9, left + width, b + dy + 9)
            inside = (
                -MARGIN["l"] * 0 <= box[0]
                and box[2] <= WIDTH - MARGIN["l"] - 4
                and -MARGIN["t"] + 4 <= box[1]
            )
            inside = inside and box[3] <= HEIGHT - MARGIN["t"] - MARGIN["b"]
            own = (a - 9, b - 9, a + 9, b + 9)
            if inside and not any(overlap(box, other) for other in taken if other != own):
                out.append((m, text, dx, dy, anchor))
                taken.append(box)
                break
    return out


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


def figure(drawing: Drawing) -> dict:
    """The Plotly figure.

    Points carry the run's id as customdata. The trace named "ring" marks the selected point.
    """
    found = drawing.marks
    line = joined(found)
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "front",
            "hoverinfo": "skip",
            "x": [m.x for m in line],
            "y": [m.y for m in line],
            "line": {"color": "var:line", "width": 1.5, "shape": "linear"},
        }
    ]
    data += [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "ring",
            "hoverinfo": "skip",
            "x": [],
            "y": [],
            "marker": {"size": 24, "color": "rgba(0,0,0,0)", "line": {"color": "var:text", "width": 2}},
        }
    ]
    best = [m for m in found if m.best]
    data += [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "best",
            "hoverinfo": "skip",
            "x": [m.x for m in best],
            "y": [m.y for m in best],
            "marker": {"size": 21, "color": "rgba(0,0,0,0)", "line": {"color": "var:accent", "width": 1.5}},
        }
    ]
    for leading in (False, True):
        data += [_trace(found, f, leading) for f in SYMBOLS]
    data += [_trace(found, "original", None)]
    return {"data": [t for t in data if t["x"] or t["name"] == "ring"], "layout": _layout(drawing)}


def joined(found: list[Mark]) -> list[Mark]:
    """The points that the front's line joins, from left to right."""
    return sorted((m for m in found if m.leading and not m.clipped), key=lambda m: m.x)


def _trace(found: list[Mark], family: str, leading: bool | None) -> dict:
    """The marks of a family: those that no other run beats, or the others; None: all."""
    chosen = [m for m in found if m.family == family and leading in (None, m.leading)]
    symbol = {"original": "star"}.get(family)
    size = SIZES["star" if family == "original" else "beaten" if leading is False else "plain"]
    symbols = ["triangle-down" if m.clipped else symbol or SYMBOLS.get(m.family, "circle") for m in chosen]
    noted = [
        f"{s}-open-dot" if m.notes and not m.clipped else s for s, m in zip(symbols, chosen, strict=True)
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": f"{family} beaten" if leading is False else family,
        "opacity": PALE if leading is False else 1.0,
        "x": [m.x for m in chosen],
        "y": [m.y for m in chosen],
        "customdata": [m.id for m in chosen],
        "text": [m.hover for m in chosen],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "size": size,
            "symbol": noted,
            "color": f"var:{family}",
            "line": {"width": 1, "color": "var:ground"},
        },
        "error_y": {
            "type": "data",
            "array": [2 * (m.error or 0) if not m.clipped else 0 for m in chosen],
            "thickness": 1,
            "width": 2,
            "color": f"var:{family}",
        },
    }


def _layout(drawing: Drawing) -> dict:
    words = drawing.words

    def axis(s: Scale) -> dict:
        low_high = [s.high, s.low] if s.flip else [s.low, s.high]
        return {
            "type": "log" if s.log else "linear",
            "range": low_high,
            "fixedrange": True,
            "zeroline": False,
            "tickmode": "array",
            "tickvals": [t for t, _ in s.ticks],
            "ticktext": [t for _, t in s.ticks],
            "gridcolor": "var:grid",
            "linecolor": "var:grid",
            "tickfont": {"color": "var:subdued", "size": 12},
            "ticks": "",
        }

    def note(text: str, x: float, y: float, **more) -> dict:
        return {
            "text": str(escape(text)),
            "x": x,
            "y": y,
            "xref": "paper",
            "yref": "paper",
            "showarrow": False,
            "font": {"color": "var:subdued", "size": 12},
        } | more

    x_words, y_words = directions(drawing)
    annotations = [
        note(y_words, 0, 1, xanchor="left", yanchor="bottom", xshift=-48, yshift=8, name="axis"),
        note(x_words, 0, 0, xanchor="left", yanchor="top", yshift=-26, name="axis"),
    ]
    shift = {"middle": "center", "start": "left", "end": "right"}
    for rank, (m, text, dx, dy, anchor) in enumerate(drawing.labels):
        annotations.append(
            {
                "text": f"<b>{escape(text)}</b>" if m.best else str(escape(text)),
                "x": math.log10(m.x) if drawing.x.log else m.x,
                "y": math.log10(m.y) if drawing.y.log else m.y,
                "xref": "x",
                "yref": "y",
                "showarrow": False,
                "xanchor": shift[anchor],
                "xshift": dx,
                "yshift": -dy,
                "yanchor": "middle",
                "font": {"color": "var:text", "size": 13},
                "name": f"label{rank}",
            }
        )
    shapes = []
    if drawing.band:
        shapes.append(
            {
                "type": "rect",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "yref": "y",
                "y0": drawing.band[0],
                "y1": drawing.band[1],
                "fillcolor": "var:band",
                "line": {"width": 0},
                "layer": "below",
            }
        )
        middle = (math.log10(drawing.band[0]) + math.log10(drawing.band[1])) / 2
        annotations.append(
            note(
                words("front.band"),
                0,
                middle,
                yref="y",
                xanchor="left",
                xshift=6,
                font={"color": "var:subdued", "size": 11},
                name="band",
            )
        )
    return {
        "xaxis": axis(drawing.x),
        "yaxis": axis(drawing.y),
        "annotations": annotations,
        "shapes": shapes,
        "uirevision": "front",
        "margin": MARGIN,
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": False,
        "hoverdistance": 24,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "height": HEIGHT,
        "hoverlabel": {
            "bgcolor": "var:ground",
            "bordercolor": "var:grid",
            "align": "left",
            "font": {"color": "var:text", "size": 13},
        },
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


def still(drawing: Drawing) -> str:
    """The same picture as SVG.

    It stands there until Plotly has loaded, and a page without Plotly keeps it.
    """
    left, top, right, bottom = MARGIN["l"], MARGIN["t"], WIDTH - MARGIN["r"], HEIGHT - MARGIN["b"]

    def across(x: float) -> float:
        return left + drawing.x.at(x) * (right - left)

    def down(y: float) -> float:
        return top + (1 - drawing.y.at(y)) * (bottom - top)

    band = None
    if drawing.band:
        high, low = sorted(map(down, drawing.band))
        band = {"top": high, "height": low - high}
    marks = [
        {"x": across(m.x), "y": down(m.y), "kind": m.family, "leading": m.leading, "best": m.best}
        for m in drawing.marks
    ]
    labels = [
        {"x": across(m.x) + dx, "y": down(m.y) + dy + 4, "anchor": anchor, "text": text}
        for m, text, dx, dy, anchor in drawing.labels
    ]
    x_words, y_words = directions(drawing)
    return render(
        "still.svg",
        width=WIDTH,
        height=HEIGHT,
        left=left,
        top=top,
        right=right,
        bottom=bottom,
        band=band,
        x_ticks=[(across(t), text) for t, text in drawing.x.ticks],
        y_ticks=[(down(t), text) for t, text in drawing.y.ticks],
        x_words=x_words,
        y_words=y_words,
        line=[(across(m.x), down(m.y)) for m in joined(drawing.marks)],
        marks=marks,
        labels=labels,
        star=STAR,
    )


STAR = (
    "M"
    + "L".join(
        f"{r * math.sin(math.pi * k / 5):.1f} {-r * math.cos(math.pi * k / 5):.1f}"
        for k, r in ((k, 9 if k % 2 == 0 else 3.8) for k in range(10))
    )
    + "Z"
)
