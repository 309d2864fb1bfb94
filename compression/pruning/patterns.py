"""Chooses the places that a score removes, and stores the result. The pruning methods share it.

The methods that remove single weights share their knobs too (`PatternParams`): how much is removed, in which
pattern, whether blocks lose different shares (owl.py), and whether channels are reordered first
(permutation.py).

A pattern n:m keeps n of every m neighbouring inputs. Of equal scores the earlier place is removed, so that a
mask is the same every time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compression.base import Cost, Edit, Params, Site, Stats, UnsupportedLayer, param
from compression.edits import stored
from compression.packed.bitmask import Bitmask
from compression.packed.two_four import TwoFour

PATTERNS = ("unstructured", "1:4", "2:4", "4:8")


@dataclass(frozen=True)
class PatternParams(Params):
    """How much is removed, in which pattern, and how it is divided among the blocks."""

    sparsity: float = param(
        0.5,
        "Share of the weights that are removed.",
        lo=0.0,
        hi=0.95,
        step=0.05,
        main=True,
        ends=("nothing removed, same", "almost all removed, worse"),
        when={"pattern": "unstructured"},
    )
    pattern: str = param(
        "unstructured", "Free places, or n kept of every m neighbours.", choices=PATTERNS, level="advanced"
    )
    allocation: str = param(
        "uniform",
        "Every block loses the same share, or blocks with many outliers lose less (OWL). The mean is the "
        "asked share.",
        choices=("uniform", "owl"),
        label="choice",
        level="advanced",
        only={"pattern": ("unstructured",)},
        because="the pattern fixes what every matrix loses",
    )
    outlier_factor: float = param(
        5.0,
        "OWL's M: a weight times its input's norm is an outlier if it is above this many times the block's "
        "mean.",
        lo=1.0,
        hi=100.0,
        level="advanced",
        when={"allocation": "owl"},
    )
    spread: float = param(
        0.08,
        "OWL's lambda: the shares of two blocks differ by at most twice this.",
        lo=0.0,
        hi=0.4,
        step=0.01,
        level="advanced",
        when={"allocation": "owl"},
    )
    permute: bool = param(
        False,
        "Reorders channels before n of every m are kept, where the new order can be folded into the "
        "neighbouring matrices.",
        level="advanced",
        only={"pattern": PATTERNS[1:]},
        because="any place may go there, so the order of the channels doesn't matter",
    )


def kept_of(pattern: str) -> tuple[int, int]:
    """ "2:4" -> (2, 4): 2 kept of every 4."""
    kept, of = pattern.split(":")
    return int(kept), int(of)


def kept_share(params: PatternParams) -> float:
    """LinearMethod.kept_share of these methods."""
    if params.pattern == "unstructured":
        return 1 - params.sparsity
    kept, of = kept_of(params.pattern)
    return kept / of


def loud(weight: Tensor, stats: Stats) -> Tensor:
    """Wanda's score: |W| times the norm of each input, [out, in]."""
    assert stats.sum_sq is not None
    return weight.abs() * stats.sum_sq.sqrt()


def lowest(score: Tensor, count: int) -> Tensor:
    """bool [rows, n], True at exactly the `count` lowest scores of each row."""
    order = torch.argsort(score, dim=1, stable=True)[:, :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(1, order, True)


def lowest_in_groups(score: Tensor, pattern: str, path: str = "") -> Tensor:
    """bool [out, in], True at the m - n lowest scores of every m neighbouring inputs.

    Raises UnsupportedLayer.
    """
    kept, of = kept_of(pattern)
    out, n = score.shape
    if n % of:
        raise UnsupportedLayer(
            f"{path}: pattern {pattern} needs the number of inputs to be divisible by {of}; it is {n}. "
            f"Choose the unstructured pattern.",
            path=path,
            got=n,
            allowed=f"multiples of {of}",
        )
    return lowest(score.view(-1, of), of - kept).view(out, n)


def store(site: Site, pruned: Tensor, **figures: float) -> Edit:
    """Keep the weights where `pruned` is False: packed as 2:4 if the mask has that form, else a bitmask."""
    if not bool(pruned.any()):
        return Edit()
    n = pruned.shape[1]
    is_two_four = n % 4 == 0 and bool((pruned.view(-1, 4).sum(1) == 2).all())
    return stored(site, (TwoFour if is_two_four else Bitmask).encode(site.weight, pruned), (), **figures)


def cost(shape: tuple[int, int], params, tokens: int) -> Cost:
    """Bytes of the mask and the kept 16-bit values; sorting the scores."""
    out, n = shape
    share, mask = kept_share(params), out * -(-n // 8)
    if share == 1:
        return Cost(bytes=2 * out * n, flops=0.0)
    return Cost(
        bytes=int(2 * out * n * share) + mask,
        flops=60.0 * out * n + 2.0 * tokens * n,
        peak_bytes=20 * out * n,
    )
