"""Measures generated text: how much of it repeats itself, and where it parts from the original's.

Pure functions on token ids. A broken model often writes one phrase again and again.
"""

from __future__ import annotations

from collections.abc import Sequence

NGRAM = 4


def repeat_rate(tokens: Sequence[int], n: int = NGRAM) -> float:
    """Share of n-grams that occurred before in the same text: 0 for fresh text, near 1 for a loop."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two continuations share before they differ (their length if they never do)."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
