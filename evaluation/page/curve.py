"""A training as a small drawing with axes: its loss over the tokens that it read."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.page.markup import render
from evaluation.page.words import Words

WIDTH, HEIGHT = 420, 150
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 20, 34  # room for the axes' words


def svg(rows: Sequence[Sequence], words: Words, alt: str) -> str:
    """The drawing as SVG; rows [tokens, loss or None, held-out loss or None]."""
    return render("curve.svg", curve=marks(rows, words, alt))


def marks(rows: Sequence[Sequence], words: Words, alt: str) -> dict:
    """What templates/curve.svg draws: a line for the loss, dots for the held-out loss, both axes."""
    losses = [x for row in rows for x in row[1:] if x is not None]
    low, high = min(losses, default=0.0), max(losses, default=1.0)
    last = max(rows[-1][0], 1) if rows else 1
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(tokens: float, loss: float) -> tuple[float, float]:
        down = (high - loss) / max(high - low, 1e-9)
        return LEFT + (right - LEFT) * tokens / last, TOP + (bottom - TOP) * down

    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": right,
        "top": TOP,
        "bottom": bottom,
        "alt": alt,
        "line": [place(tokens, loss) for tokens, loss, _ in rows if loss is not None],
        "dots": [place(tokens, held_out) for tokens, _, held_out in rows if held_out is not None],
        "y_ticks": [(place(0, x)[1], f"{x:.3g}") for x in sorted({low, (low + high) / 2, high})],
        "x_ticks": [(place(x, high)[0], f"{x:,}") for x in sorted({0, last // 2, last})],
        "x_words": words("curve.x"),
        "y_words": words("curve.y"),
    }
