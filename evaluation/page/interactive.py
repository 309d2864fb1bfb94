"""The figure as a web page of its own, in which a reader can zoom, hover and hide families.

It holds everything that it needs, so that it opens without a network and without this program. It opens on
the range of the page's own figure; broken models lie outside it, and come into view when all is shown.
"""

from __future__ import annotations

from itertools import groupby

from markupsafe import escape

from evaluation.page.picture import colours
from evaluation.page.plots import SYMBOLS, Drawing, Mark, Scale, directions, joined

BEATEN = 0.45  # opacity of a point that another one beats


def page(drawing: Drawing, title: str, style: str) -> str:
    """A whole HTML document. title: plain text above the figure. style: the page's style sheet."""
    import plotly.graph_objects as go  # takes 0.1 s, and only who asks for this file needs it

    words, colour = drawing.words, dict(colours(style, False))
    x_words, y_words = directions(drawing)
    line = joined(drawing.marks)
    figure = go.Figure(
        go.Scatter(
            x=[m.x for m in line],
            y=[m.y for m in line],
            mode="lines",
            line={"color": colour["line"], "width": 1},
            name=words("front.line"),
            hoverinfo="skip",
        )
    )
    for family, found in groupby(sorted(drawing.marks, key=lambda m: m.family), lambda m: m.family):
        members = list(found)
        figure.add_scatter(
            x=[m.x for m in members],
            y=[m.y for m in members],
            mode="markers",
            name=words(f"family.{family}"),
            hovertext=[_hover(m) for m in members],
            hoverinfo="text",
            marker={
                "size": [14 if m.best else 10 for m in members],
                "color": colour[family],
                "symbol": SYMBOLS.get(family, "cross"),
                "opacity": [1.0 if m.leading or family == "original" else BEATEN for m in members],
            },
        )
    figure.update_layout(
        title={"text": str(escape(title)), "subtitle": {"text": words("front.html_help")}},
        template="simple_white",
        font={"size": 16},
        xaxis=_axis(drawing.x, x_words),
        yaxis=_axis(drawing.y, y_words),
        hoverlabel={"align": "left"},
    )
    return figure.to_html(include_plotlyjs=True, full_html=True, config={"displaylogo": False})


def _hover(mark: Mark) -> str:
    """What is said of a point, as Plotly's markup: text that a visitor wrote stays text."""
    return "<br>".join(str(escape(line)) for line in mark.lines)


def _axis(scale: Scale, title: str) -> dict:
    """An axis of the drawing: the same range, ticks and words, with better values at the top."""
    ends = [scale.high, scale.low] if scale.flip else [scale.low, scale.high]  # of a logarithm: its exponents
    return {
        "title": {"text": title},
        "type": "log" if scale.log else "linear",
        "range": ends,
        "tickvals": [value for value, _ in scale.ticks],
        "ticktext": [text for _, text in scale.ticks],
        "showgrid": True,
    }
