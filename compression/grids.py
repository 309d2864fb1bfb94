"""Fits integer grids to weights.

The field has several min-max quantizers that differ in small ways. Each quantizer that is used here is a
function of its own (sources: GPTQ's reference code, 2210.17323).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compression.base import param
from compression.packed.base import Packed
from compression.packed.grid import Grid, store_scale
from compression.packed.grouped_int import GroupedInt
from kernels.grouped_int import groups_of

# How a group's range is chosen: its whole range; the best multiple of it; the best of all ranges and zero
# points.
TUNINGS = ("minmax", "shrink", "mse")
RANGES = 40  # ranges that are tried for each group, evenly from the whole one down
POWER = 2.4
GIVE_UP = 1.5  # a row is given up when a range's error sum reaches this multiple of the row's best
CHUNK = 1 << 18  # weights searched at a time, so that a pass stays in the processor's cache
PASSES = {"minmax": 2, "shrink": 100, "mse": 160}  # passes over the weights, about


def minmax_asym(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(scale, integer zero) from each group's minimum and maximum.

    Zero is always on the grid. A group of zeros gets [-1, 1].
    """
    low, high = low.clamp_max(0), high.clamp_min(0)
    empty = (low == 0) & (high == 0)
    low, high = low.masked_fill(empty, -1), high.masked_fill(empty, 1)
    scale = store_scale((high - low) / (2**bits - 1))
    zero = torch.round(-low / scale.float()).clamp_(0, 2**bits - 1)
    return scale, zero


def minmax_sym(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, None]:
    """(scale, None): the grid spans -m to m with m = max |w|, and its zero point is 2^(bits-1)."""
    largest = torch.maximum(low.abs(), high.abs())
    largest = largest.masked_fill(largest == 0, 1)
    return store_scale(2 * largest / (2**bits - 1)), None


def tuning_param():
    """The knob of all methods that round on this grid."""
    return param(
        "minmax",
        "minmax: the ruler spans all weights; shrink and mse: it may cut off extremes to serve the "
        "rest better.",
        choices=TUNINGS,
        level="advanced",
    )


def fit(weight: Tensor, bits: int, group_size: int, symmetric: bool, tuning: str = "minmax") -> Grid:
    """The grid of weight [out, in], with ranges chosen by `tuning` (one of TUNINGS)."""
    out, n = weight.shape
    size, groups = n if group_size == -1 else group_size, groups_of(n, group_size)
    # a short last group is filled with zeros, which every grid holds anyway
    rows = F.pad(weight, (0, groups * size - n)).view(-1, size)
    scale, zero = range_of(rows, bits, symmetric, tuning)
    return Grid.make(
        weight.shape,
        bits,
        group_size,
        scale.view(out, groups),
        None if zero is None else zero.view(out, groups),
    )


def range_of(rows: Tensor, bits: int, symmetric: bool, tuning: str) -> tuple[Tensor, Tensor | None]:
    """(scale, integer zero or None) [n, 1] of groups that are rows [n, size]."""
    if tuning == "minmax":
        return (minmax_sym if symmetric else minmax_asym)(
            rows.amin(1, keepdim=True), rows.amax(1, keepdim=True), bits
        )
    search = shrunk if tuning == "shrink" or symmetric else mse_asym
    parts = [
        search(part, bits, *([symmetric] if search is shrunk else []))
        for part in rows.split(max(1, CHUNK // rows.shape[1]))
    ]
    scale, zero = (None if symmetric and i else torch.cat([part[i] for part in parts]) for i in range(2))
    return scale, zero


def shrunk(rows: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """(scale, integer zero or None) [n, 1] of rows [n, size]: the best multiple of each min-max range.

    The multiples are k / 40, from the whole range down to a fifth. The best has the least sum of |w -
    w'|^2.4. This is the search of GPTQ's reference code (its `mse`), which tries k / 100.
    """
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    chosen: list[Tensor | None] = []
    best: Tensor | None = None
    for k in range(RANGES, RANGES // 5 - 1, -1):
        scale, zero = (minmax_sym if symmetric else minmax_asym)(
            low * (k / RANGES), high * (k / RANGES), bits
        )
        s, z = scale.float(), 2.0 ** (bits - 1) if zero is None else zero
        codes = (torch.round(rows / s) + z).clamp_(0, 2**bits - 1)
        error = (rows - s * (codes - z)).abs_().pow_(POWER).sum(1, keepdim=True)
        if best is None:
            chosen, best = [scale, zero], error
            continue
        better = error < best
        chosen = [
            old if old is None else torch.where(better, new, old)
            for new, old in zip((scale, zero), chosen, strict=True)
        ]
        best = torch.minimum(error, best)
    return chosen[0], chosen[1]


def mse_asym(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(scale, integer zero) [rows, 1] of weight [rows, size]: the best of all ranges and zero points.

    The best has the least sum of |w - w'|^2.4.
    """
    top = 2**bits - 1
    reach = weight.amax(1, keepdim=True).clamp_min(0) - weight.amin(1, keepdim=True).clamp_max(0)
    reach.masked_fill_(reach == 0, 2.0)  # a row of zeros
    scale, zero, best = torch.zeros_like(reach), torch.zeros_like(reach), torch.full_like(reach, torch.inf)
    # the rows for which shorter ranges may still be better
    live = torch.arange(len(weight), device=weight.device)
    for k in range(RANGES, 0, -1):
        w, s = weight[live], store_scale(reach[live] * (k / RANGES) / top).float()
        marks = torch.round(w / s)
        # the grid may end between the lowest and the highest rounded weight; further out, it would have
        # values that no weight takes
        first, last = -marks.amin(1, keepdim=True), top - marks.amax(1, keepdim=True)
        last = torch.minimum(first, last)
        least, at = torch.full_like(s, torch.inf), first
        for shift in range(int((first - last).max()) + 1):
            z = torch.maximum(first - shift, last).clamp_(0, top)
            error = (
                torch.addcmul(w, marks.clamp(-z, top - z), s, value=-1)
                .abs_()
                .pow_(POWER)
                .sum(1, keepdim=True)
            )
            at, least = torch.where(error < least, z, at), torch.minimum(error, least)
        better = least < best[live]
        for target, value in ((scale, s), (zero, at), (best, least)):
            target[live[better[:, 0]]] = value[better][:, None]
        live = live[(least <= GIVE_UP * best[live])[:, 0]]
        if not len(live):
            break
    return scale, zero


def encode(previous: Packed | None, codes: Tensor, grid: Grid) -> Packed:
    """Codes on a grid in their format: sparse under the mask of an earlier pruning step, else dense."""
    return (
        previous.with_codes(codes, grid)
        if previous is not None and previous.mask() is not None
        else GroupedInt.encode(codes, grid)
    )


def grid_bytes(shape: tuple[int, int], bits: int, group_size: int, symmetric: bool) -> int:
    """Bytes of a grid's scales and zero points."""
    groups = shape[0] * groups_of(shape[1], group_size)
    return 2 * groups + (0 if symmetric else -(-groups // 8) * bits)
