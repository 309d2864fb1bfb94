"""GPTQ: round one column at a time, and let the columns still to come make up for the error.

Rounding to nearest treats every weight alone. GPTQ looks at the layer's real inputs: it rounds the weights of
one input channel, measures what that does to the layer's output, and shifts the weights not yet rounded so
that the output changes least. The inputs enter only through the matrix H = X^T X of a few thousand
calibration tokens. The result is stored exactly as rounding stores it, at the same size; only the numbers are
better chosen. At 4 bits it usually halves the damage of rounding, at 3 bits it is the difference between a
usable and a broken model.

Frantar, Ashkboos, Hoefler, Alistarh 2022, arXiv 2210.17323, algorithm 1. With U the upper Cholesky factor of
the inverse of the damped H, column c is rounded to q, e = (w_c - q) / U[c, c], and the columns after it
change by -e U[c, c+1:] (equations 2 and 3); updates of far columns wait for blocks of 128. `act_order` takes
the columns with the largest inputs first. `static_groups` fits every group's ruler before the first column,
so that neighbouring inputs share a scale whatever the order; without it act-order needs an index of 16 bits
an input.

Deviations. (1) The authors refit a group's ruler from weights that lag behind when the group is smaller than
a block; we use the live weights, and the result no longer depends on the block size. (2) act-order and static
groups are on by default, as the authors recommend for LLaMA. (3) If H is not positive definite, damping rises
tenfold until it is, and a note says so; rounding is never passed off as GPTQ. (4) An input that never fires
keeps its weight rounded to nearest instead of being set to zero, which changes nothing on the calibration
data.

Cost: about two forward passes over the calibration tokens, in^3 operations a layer for the factor, out * in^2
for the columns; memory for one H (4 in^2 bytes, twice that in 64 bits while it is factored).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compression.base import Cost, Edit, LinearMethod, Params, Site, Stats, param
from compression.edits import damping_note, short_group_note, stored
from compression.grids import PASSES, encode, fit, grid_bytes, range_of, tuning_param
from compression.packed.grid import Grid
from compression.second_order import compensate, inverse_factor, output_error
from kernels.bits import row_bytes
from kernels.grouped_int import groups_of


@dataclass(frozen=True)
class GptqParams(Params):
    """The grid, and the order in which columns are rounded."""

    bits: int = param(
        4,
        "Bits each weight takes.",
        lo=2,
        hi=8,
        step=1,
        unit="bits",
        main=True,
        ends=("tiny, worse", "large, same"),
    )
    group_size: int = param(
        64,
        "Weights that share one scale; a multiple of 16, or -1 for a whole row.",
        lo=-1,
        hi=4096,
        step=16,
        suggest=(-1, 32, 64, 128),
    )
    symmetric: bool = param(False, "No zero point: the ruler is centred on zero.", level="advanced")
    tuning: str = tuning_param()
    act_order: bool = param(True, "Round the inputs with the largest activations first.", level="advanced")
    static_groups: bool = param(True, "Fit all rulers before the first column.", level="advanced")
    damping: float = param(
        0.01, "Share of the mean diagonal that is added to H.", lo=0.0001, hi=1.0, level="advanced"
    )
    block_size: int = param(
        128,
        "Columns whose updates of later blocks wait; changes speed, not the result.",
        lo=1,
        hi=4096,
        level="advanced",
    )


def cost(shape: tuple[int, int], params, tokens: int) -> Cost:
    """Bytes as stored; the Gram matrix, the factor and the column loop in operations."""
    out, n = shape
    index = (
        2 * n if params.act_order and not params.static_groups and groups_of(n, params.group_size) > 1 else 0
    )
    size = (
        out * row_bytes(n, params.bits)
        + grid_bytes(shape, params.bits, params.group_size, params.symmetric)
        + index
    )
    search = 10.0 * PASSES[params.tuning] * out * n
    return Cost(
        bytes=size,
        flops=2.0 * tokens * n * n + 2.0 * n**3 + 2.0 * out * n * n + search,
        peak_bytes=24 * n * n + 16 * out * n,
    )


def gptq(
    weight: Tensor, gram: Tensor, params: GptqParams, pruned: Tensor | None = None
) -> tuple[Tensor, Grid, float, float]:
    """(codes uint8 [out, in], grid, sum of squared column errors, damping used) for weight [out, in].

    The sum equals tr(D H D^T) of the final difference D under the damped H (the paper's objective). pruned
    bool [out, in] marks places that must stay zero.
    """
    out, n = weight.shape
    size = n if params.group_size == -1 else params.group_size
    static = params.static_groups or groups_of(n, params.group_size) == 1
    order = torch.arange(n, device=weight.device)
    if params.act_order:
        order = torch.argsort(gram.diagonal(), descending=True, stable=True)
    factor, damping = inverse_factor(gram[order][:, order], params.damping)
    factor = factor.float()
    # [in, out]: a column of the weight is a contiguous row here
    live = weight.float()[:, order].T.contiguous()
    forbidden = None if pruned is None else pruned[:, order].T
    if static:
        grid = fit(weight, params.bits, params.group_size, params.symmetric, params.tuning)
        scale, zero = (t[:, order].T.contiguous() for t in grid.columns())
    else:
        scale, zero = torch.empty_like(live), torch.empty_like(live)
        scales, zeros = [], []
    codes, top = torch.empty_like(live), 2**params.bits - 1

    def begin_group(c: int, errors: Tensor) -> None:
        """Fit the grid of the group that begins at c.

        Its columns in later blocks have not been updated for this block's errors yet, so a copy is updated.
        """
        start, end = c - len(errors), min(c + size, n)
        stop = min(start + params.block_size, n)
        group = live[c:end].clone()
        if end > stop:
            late = slice(max(c, stop), end)
            group[late.start - c :] -= factor[start:c, late].T @ errors
        s, z = range_of(group.T, params.bits, params.symmetric, params.tuning)
        scales.append(s)
        zeros.append(z)
        scale[c:end] = s.float().T
        zero[c:end] = 2 ** (params.bits - 1) if z is None else z.T

    def choose(c: int, errors: Tensor) -> Tensor:
        if not static and c % size == 0:
            begin_group(c, errors)
        s, z = scale[c], zero[c]
        codes[c] = torch.div(live[c], s).round_().add_(z).clamp_(0, top)
        if forbidden is not None:
            codes[c] = torch.where(forbidden[c], z, codes[c])
        return (codes[c] - z).mul_(s)

    total = compensate(live, factor, range(0, n, params.block_size), choose)
    back = torch.argsort(order)
    if not static:
        index = back // size if params.act_order else None
        zero_all = None if params.symmetric else torch.cat(zeros, 1)
        grid = Grid.make((out, n), params.bits, params.group_size, torch.cat(scales, 1), zero_all, index)
    return codes[back].T.contiguous().to(torch.uint8), grid, total, damping


def compress(site: Site, stats: Stats, params: GptqParams) -> Edit:
    """Quantize the weight [out, in] of one linear with the Gram matrix of its inputs."""
    pruned = site.previous.mask() if site.previous is not None else None
    codes, grid, _, damping = gptq(site.weight, stats.gram, params, pruned)
    packed = encode(site.previous, codes, grid)
    notes = short_group_note(site, params.group_size) + damping_note(site, params.damping, damping)
    return stored(
        site, packed, notes, output_error=output_error(site.weight, packed.dequantize(), stats.gram)
    )


METHOD = LinearMethod(
    name="gptq",
    title="GPTQ",
    family="quantization",
    paper="https://arxiv.org/abs/2210.17323",
    params=GptqParams,
    compress=compress,
    cost=cost,
    stores="grouped_int",
    shown_first=True,
    stats=frozenset({"gram"}),
    after=frozenset({"dense", "bitmask", "two_four"}),
    tiny={"bits": 4, "group_size": 16},
    essay=__doc__,
)
