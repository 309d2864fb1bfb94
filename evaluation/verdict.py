"""Says whether one result is better than another, for the whole project: better, worse or unclear.

    found = paired(ours, control)      # losses of the same windows, questions or seeds, in one order
    found.word                         # "better", "worse" or "unclear"
    found.ratio, found.ratio_margin    # of perplexities: 0.89, 0.009

Two results are compared pair by pair, because a hard window is hard for both. Only the noise of the
difference remains. The verdict follows from a 95 % interval of the mean difference (Student's t, two sides).
Pairs that belong together, for example the questions on one text, count as one: their sums are compared (the
cluster-robust error of Liang and Zeger 1986, with the factor c / (c - 1) for c clusters).

Pairs of windows show only the noise of the text. Two runs may also differ by chance in the run itself: by
another seed, or by a rounding that breaks ties in another way. They can then differ by more than such an
interval says. If this matters, the pairs are seeds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

LEVEL = 0.95
BROKEN = 10_000  # perplexity above which a model knows next to nothing


def both_broken(perplexity: float, control: float) -> bool:
    """Whether both models are broken. Then a verdict on them would say nothing about their methods."""
    return min(perplexity, control) > BROKEN


@dataclass(frozen=True)
class Difference:
    """The mean of (ours - control) over pairs. Lower is better.

    stderr: its standard error; nan if there is only one pair or cluster. margin: half the width of the
    interval. freedom: degrees of freedom of its t distribution.
    """

    mean: float
    stderr: float
    margin: float
    freedom: int

    @property
    def word(self) -> str:
        """ "better", "worse", or "unclear" if the interval holds zero or there is none."""
        if not abs(self.mean) > self.margin:
            return "unclear"
        return "better" if self.mean < 0 else "worse"

    @property
    def ratio(self) -> float:
        """Our perplexity divided by the control's, if the pairs are losses in nats."""
        return math.exp(self.mean)

    @property
    def ratio_margin(self) -> float:
        """Half of the ratio's interval, to first order."""
        return self.ratio * self.margin


def paired(
    ours: Sequence[float],
    control: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    higher_is_better: bool = False,
) -> Difference:
    """The difference of two lists of equal length; equal places belong together.

    clusters: a name for each pair; pairs with the same name count as one. Raises ValueError if the lists
    can't be paired, or if a number isn't finite.
    """
    n = len(ours)
    if n != len(control) or (clusters is not None and n != len(clusters)) or not n:
        raise ValueError(
            f"pairs need lists of one length, at least 1: got {n}, "
            f"{len(control)}{'' if clusters is None else f', {len(clusters)}'}"
        )
    differences = [(b - a if higher_is_better else a - b) for a, b in zip(ours, control, strict=True)]
    if not all(map(math.isfinite, differences)):
        raise ValueError("pairs need finite numbers; at least one loss is not")
    mean = math.fsum(differences) / n
    sums: dict[Hashable, float] = {}
    for name, d in zip(range(n) if clusters is None else clusters, differences, strict=True):
        sums[name] = sums.get(name, 0.0) + d - mean
    count = len(sums)
    if count < 2:
        return Difference(mean, math.nan, math.nan, 0)
    stderr = math.sqrt(count / (count - 1) * math.fsum(s * s for s in sums.values())) / n
    return Difference(mean, stderr, quantile((1 + LEVEL) / 2, count - 1) * stderr, count - 1)


def share_below(t: float, freedom: int) -> float:
    """The share of Student's distribution below t >= 0, for whole degrees of freedom.

    Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return (1 + inside) / 2


def quantile(share: float, freedom: int) -> float:
    """The t >= 0 below which `share` (0.5 or more) of Student's distribution lies."""
    low, high = 0.0, 1.0
    while share_below(high, freedom) < share:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if share_below(middle, freedom) < share else (low, middle)
    return high
