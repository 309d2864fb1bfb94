"""Chooses the places that a score removes, and stores the result. The pruning methods share it.

A pattern n:m keeps n of every m neighbouring inputs. Of equal scores the earlier place is removed, so that a
mask is the same every time.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from compression.base import Cost, Edit, Site, UnsupportedLayer, param
from compression.edits import stored
from compression.packed.bitmask import Bitmask
from compression.packed.two_four import TwoFour

PATTERNS = ("unstructured", "1:4", "2:4", "4:8")


def sparsity_param():
    """The main knob of an unstructured pruning method."""
    return param(
        0.5,
        "Share of the weights that are removed.",
        lo=0.0,
        hi=0.95,
        step=0.05,
        main=True,
        ends=("nothing removed, same", "almost all removed, worse"),
        when={"pattern": "unstructured"},
    )


def pattern_param():
    """The knob for the pattern: free places, or n kept of every m."""
    return param(
        "unstructured", "Free places, or n kept of every m neighbours.", choices=PATTERNS, level="advanced"
    )


def kept_of(pattern: str) -> tuple[int, int]:
    """ "2:4" -> (2, 4): 2 kept of every 4."""
    kept, of = pattern.split(":")
    return int(kept), int(of)


class Patterned(Protocol):
    """Params with `pattern_param` and `sparsity_param`."""

    @property
    def pattern(self) -> str: ...

    @property
    def sparsity(self) -> float: ...


def kept_share(params: Patterned) -> float:
    """LinearMethod.kept_share of a method with `pattern_param` and `sparsity_param`."""
    if params.pattern == "unstructured":
        return 1 - params.sparsity
    kept, of = kept_of(params.pattern)
    return kept / of


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
