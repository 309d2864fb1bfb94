"""Draws the README's picture: the points of the first screen, each with its name, as one SVG.

It is drawn from the stored runs, with the figure's own axes and the page's own colours. A reader's light or
dark theme chooses between the two sets of colours. Pure, and the same on every machine.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from compression.catalogue import CATALOGUE
from evaluation import ROOT
from evaluation.measuring.metrics import DEFAULT_X, DEFAULT_Y, Row
from evaluation.page import plots
from evaluation.page.markup import render
from evaluation.page.plots import PATHS, SYMBOLS, Mark
from evaluation.page.words import BROKEN, Words

FILE, STYLE = ROOT / "assets" / "front.svg", ROOT / "assets" / "style.css"
WIDTH, HEIGHT = 1_120, 720
LEFT, TOP, RIGHT, BOTTOM = 64, 104, WIDTH - 24, HEIGHT - 132  # of the drawing itself
FLOOR = HEIGHT - 58  # of the band under it, in which broken models stand
CHARACTER, LINE = 6.3, 13.0  # width of a label's character and height of its line, in pixels
MARK = 7.0  # no label comes nearer to the middle of a mark
# distances and directions in which a name is tried, the nearest first
RINGS, DIRECTIONS = (11, 17, 25, 35, 47, 61, 77, 95, 115, 137), 16
NEAR = 20.0  # a name that is farther away is joined to its mark by a line

Box = tuple[float, float, float, float]  # left, top, right, bottom


def colours(style: str, dark: bool) -> list[tuple[str, str]]:
    """(name, colour) of the page's tokens in a style sheet; the dark ones over the light ones."""
    light, over = (
        dict(re.findall(r"--ce-([\w-]+): ([^;]+);", style.split(f"{head} {{", 1)[1].split("}", 1)[0]))
        for head in (":root", "\n.dark")
    )
    wanted = (*SYMBOLS, "original", "ground", "text", "subdued", "grid", "line", "band")
    return [(name, (light | over if dark else light)[name]) for name in wanted]


def names(rows: Sequence[Row], words: Words) -> dict[str, str]:
    """id -> the name of a run: the short one, or the long one if two runs would have the same."""
    short = {str(r["id"]): words.run(r) for r in rows}
    count = Counter(short.values())
    return {
        str(r["id"]): s if count[s := short[str(r["id"])]] == 1 else words.run(r, long=True) for r in rows
    }


def _around(x: float, y: float, text: str) -> Iterator[tuple[Box, str, float]]:
    """Places for a name about a mark: (box, anchor, distance), the nearest first."""
    wide = CHARACTER * len(text)
    for ring in RINGS:
        for k in range(DIRECTIONS):
            # the right side first, then alternately up and down
            angle = 2 * math.pi * ((k + 1) // 2 * (-1) ** k) / DIRECTIONS
            a, b = x + ring * math.cos(angle), y + 0.8 * ring * math.sin(angle)
            side = math.cos(angle)
            anchor = "start" if side > 0.3 else "end" if side < -0.3 else "middle"
            start = a - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
            yield (start, b - LINE / 2, start + wide, b + LINE / 2), anchor, ring


def _placed(points: Sequence[tuple[float, float, str]]) -> list[tuple[Box, str, float]]:
    """A place for each name (x, y, text) where it covers no mark and no other name, the crowded ones first.

    A name for which there is no such place takes the nearest one.
    """
    taken: list[Box] = [(x - MARK, y - MARK, x + MARK, y + MARK) for x, y, _ in points]

    def crowd(i: int) -> float:
        x, y, _ = points[i]
        return -sum(math.hypot(x - a, y - b) < 90 for a, b, _ in points)

    found: dict[int, tuple[Box, str, float]] = {}
    for i in sorted(range(len(points)), key=crowd):
        x, y, text = points[i]

        def free(box: Box) -> bool:
            inside = box[0] >= LEFT and box[2] <= RIGHT and box[1] >= TOP and box[3] <= FLOOR
            return inside and not any(plots.overlap(box, other) for other in taken)

        places = list(_around(x, y, text))
        found[i] = next((place for place in places if free(place[0])), places[0])
        taken.append(found[i][0])
    return [found[i] for i in range(len(points))]


def drawn(rows: Sequence[Row], style: str) -> str:
    """The picture of these runs of one model in one protocol; style: the page's style sheet."""
    words = Words("en")
    drawing, called = plots.draw(rows, DEFAULT_X, DEFAULT_Y, words), names(rows, words)

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + drawing.x.at(x) * (RIGHT - LEFT), TOP + (1 - drawing.y.at(y)) * (BOTTOM - TOP)

    def spot(m: Mark) -> tuple[float, float]:
        x, y = place(m.x, m.y)
        return x, (BOTTOM + FLOOR) / 2 + 8 if m.broken else y

    points = [(*spot(m), called[m.id]) for m in drawing.marks]
    marks = []
    for mark, (x, y, text), (box, anchor, far) in zip(drawing.marks, points, _placed(points), strict=True):
        at = {"start": box[0], "middle": (box[0] + box[2]) / 2, "end": box[2]}[anchor]
        middle = (box[1] + box[3]) / 2
        label = {"x": at, "y": middle + 4, "anchor": anchor, "text": text}
        marks.append(
            {
                "x": x,
                "y": y,
                "family": mark.family,
                "path": PATHS[SYMBOLS.get(mark.family, "star")],
                "label": label,
                "far": (at, middle) if far > NEAR else None,
            }
        )
    x_words, y_words = plots.directions(drawing)
    top, bottom = (place(0, v)[1] for v in reversed(drawing.band or (1.0, 1.0)))
    top, bottom = sorted((top, bottom))
    bits = sorted({r["table_bits"] for r in rows})
    protocol = ", ".join(str(rows[0]["protocol_id"]).split(" · ")[:4])
    return render(
        "picture.svg",
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        top=TOP,
        right=RIGHT,
        bottom=BOTTOM,
        light=colours(style, False),
        dark=colours(style, True),
        title=f"What compression costs: {CATALOGUE[rows[0]['model']].title}",
        about=f"Perplexity on {protocol}. The word table is stored in {' or '.join(map(str, bits))} bits.",
        floor=FLOOR,
        broken=words("front.broken", times=f"{BROKEN:g}"),
        foot="The settings of each point stand in the tables below.",
        alt=f"{len(marks)} compressed models: file size across, perplexity over the original's up",
        families=[
            {"key": key, "path": PATHS[symbol], "x": LEFT + 6 + 130 * i, "name": words(f"family.{key}")}
            for i, (key, symbol) in enumerate(SYMBOLS.items())
        ],
        band={"top": top, "height": bottom - top},
        x_ticks=[(place(t, 1.0)[0], text) for t, text in drawing.x.ticks],
        y_ticks=[(place(0, t)[1], text) for t, text in drawing.y.ticks],
        x_words=x_words,
        y_words=y_words,
        line=[place(m.x, m.y) for m in plots.joined(drawing.marks)],
        marks=marks,
    )
