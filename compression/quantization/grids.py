"""How integer grids are fitted to weights. The field has several min-max quantizers that differ in small ways; each
that is in use has its own named function (sources: GPTQ's reference code, 2210.17323)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compression.base import Edit, Note, Site
from compression.packed.base import Packed
from compression.packed.grid import Grid, store_scale
from compression.packed.grouped_int import GroupedInt
from kernels.grouped_int import groups_of


def minmax_asym(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(scale, integer zero) from each group's minimum and maximum; zero is always on the grid, an all-zero group gets [-1, 1]."""
    low, high = low.clamp_max(0), high.clamp_min(0)
    empty = (low == 0) & (high == 0)
    low, high = low.masked_fill(empty, -1), high.masked_fill(empty, 1)
    scale = store_scale((high - low) / (2**bits - 1))
    zero = torch.round(-low / scale.float()).clamp_(0, 2**bits - 1)
    return scale, zero


def minmax_sym(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, None]:
    """(scale, None): the grid spans -m to m for m = max |w|, its zero point is 2^(bits-1)."""
    largest = torch.maximum(low.abs(), high.abs())
    largest = largest.masked_fill(largest == 0, 1)
    return store_scale(2 * largest / (2**bits - 1)), None


def extremes(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of each group, [out, groups]; the last group may be short (0 fills it: grids hold 0 anyway)."""
    out, n = weight.shape
    groups = groups_of(n, group_size)
    size = n if group_size == -1 else group_size
    padded = F.pad(weight, (0, groups * size - n)).view(out, groups, size)
    return padded.amin(-1), padded.amax(-1)


def fit(weight: Tensor, bits: int, group_size: int, symmetric: bool) -> Grid:
    """The min-max grid of weight [out, in]."""
    low, high = extremes(weight, group_size)
    scale, zero = (minmax_sym if symmetric else minmax_asym)(low, high, bits)
    return Grid.make(weight.shape, bits, group_size, scale, zero)


def encode(previous: Packed | None, codes: Tensor, grid: Grid) -> Packed:
    """Codes on a grid: sparse with an earlier step's mask if that step pruned, else dense."""
    return (
        previous.with_codes(codes, grid)
        if previous is not None and previous.mask() is not None
        else GroupedInt.encode(codes, grid)
    )


def short_group_note(site: Site, group_size: int) -> tuple[Note, ...]:
    """Tells that the last group is short, once a width."""
    rest = site.weight.shape[1] % group_size if group_size > 0 else 0
    if not rest:
        return ()
    return (Note("short_group", {"in_features": site.weight.shape[1], "group_size": group_size, "last": rest}),)


def stored(site: Site, packed: Packed, notes: tuple[Note, ...] = (), **figures: float) -> Edit:
    """An edit that replaces one linear."""
    return Edit(linears={site.path: packed}, notes=notes, figures={site.path: figures} if figures else {})


def grid_bytes(shape: tuple[int, int], bits: int, group_size: int, symmetric: bool) -> int:
    """Bytes of a grid's scales and zero points."""
    groups = shape[0] * groups_of(shape[1], group_size)
    return 2 * groups + (0 if symmetric else -(-groups // 8) * bits)
