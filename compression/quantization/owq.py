"""OWQ: keep a few columns in 16 bits, those that suffer most from rounding, and round the rest as GPTQ does.

In a language model a handful of inputs of a layer are far louder than the others, and an error in the weights
of a loud input does more harm. OWQ finds these weak columns and stores them in 16 bits, which takes a
hundredth of a bit a weight. They come last in the order of rounding, so they also make up for the errors of
all other columns. Without the weak columns, the grid of the rest may cut off extremes: of many shorter ranges
the one with the smallest sum of errors is taken. Most of the gain comes from this search. On the offline
model at 3 bits a row, GPTQ with the same search leaves 0.64 of GPTQ's error in a layer's outputs. Weak
columns alone leave 0.98 of it, and both together 0.59.

Lee, Jin, Kim, Kim, Park 2023, arXiv 2306.02272, and the authors' code. With Q the weight rounded row by row,
    sensitivity_j = H_jj ||W[:, j] - Q[:, j]||^2,    H = X^T X,
the columns of the largest sensitivity are weak. Grid: of the ranges k / 40 of (max - min) and all their zero
points the one with the least sum of |w - w'|^2.4 (`tuning` "minmax": GPTQ's grid). Rounding: GPTQ's column
loop. Budget: n inputs, b bits, t = b + extra_bits: k = n rho (t - b) / (16 - b) * sum(P) / sum(rho P) weak
columns over the matrices of P weights of a block; rho is 1 in attention and hidden / feed-forward size in the
feed-forward part, where the authors write .25 for OPT and .375 for LLaMA. k is rounded to nearest, so small
models may get none somewhere.

Deviations. (1) The authors' sum(P) / sum(rho P) is 12 over the number of matrices, which is right where k and
v are as large as q; ours is right for grouped queries too. They round k up to an even number for their GPU
kernel. (2) They try 100 ranges for a row and 40 for a group. We try 40 for both, which costs about 0.1 % in
the sum of errors. We skip zero points that leave an unused grid value at one end. A row's search ends when
its error is 1.5 times its best: shorter ranges only get worse. (3) act-order is on by default, as for GPTQ.
If there are weak columns, the order is by sensitivity, as in the authors' code. (4) Groups have their grids
fitted before the first column. (5) A weak column is rounded to 16 bits, and later columns make up for this
error too.

Cost: GPTQ's, and two searches of some 80 passes over the weights (one search if no column is weak).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compression.base import Cost, Edit, LinearMethod, Params, Site, Stats, param
from compression.edits import damping_note, short_group_note, stored
from compression.grids import PASSES, fit, grid_bytes
from compression.packed.base import Packed, to_storage
from compression.packed.columns import Columns
from compression.packed.grouped_int import GroupedInt
from compression.packed.sum import Sum
from compression.second_order import compensate, inverse_factor, output_error
from kernels.bits import row_bytes

ATTENTION = frozenset("qkvo")


@dataclass(frozen=True)
class OwqParams(Params):
    """The grid, and how many bits are spent on weak columns."""

    bits: int = param(
        3,
        "Bits each weight takes, weak columns apart.",
        lo=2,
        hi=8,
        step=1,
        unit="bits",
        main=True,
        ends=("tiny, worse", "large, same"),
    )
    extra_bits: float = param(
        0.01,
        "Bits a weight, on average over a block, spent on weak inputs kept in 16 bits.",
        lo=0.0,
        hi=1.0,
        unit="bits",
    )
    group_size: int = param(
        -1,
        "Weights that share one scale; a multiple of 16, or -1 for a whole row.",
        lo=-1,
        hi=4096,
        step=16,
        suggest=(-1, 32, 64, 128),
    )
    tuning: str = param(
        "mse",
        "mse: the ruler may cut off extremes; minmax: it spans all weights.",
        choices=("mse", "minmax"),
        level="advanced",
    )
    act_order: bool = param(True, "Round the inputs with the largest activations first.", level="advanced")
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


def weak_count(n: int, params, share: float = 1.0) -> int:
    """How many of n inputs are weak. share: this matrix's part; 1 is the average."""
    return min(n, round(n * share * params.extra_bits / (16 - params.bits)))


def share(site: Site) -> float:
    """This matrix's weak columns relative to an even spread over the block: rho * sum(P) / sum(rho P)."""
    if not site.block:
        return 1.0
    feed_forward, hidden = site.block["up"]
    rho = {role: 1.0 if role in ATTENTION else hidden / feed_forward for role in site.block}
    weights = {role: out * n for role, (out, n) in site.block.items()}
    return rho[site.role] * sum(weights.values()) / sum(rho[role] * weights[role] for role in weights)


def cost(shape: tuple[int, int], params, tokens: int) -> Cost:
    """Bytes as stored with the block's average of weak columns; GPTQ's operations and the search's."""
    out, n = shape
    size = out * row_bytes(n, params.bits) + grid_bytes(shape, params.bits, params.group_size, False)
    return Cost(
        bytes=size + weak_count(n, params) * (2 * out + 4),
        peak_bytes=24 * n * n + 16 * out * n,
        flops=2.0 * tokens * n * n + 2.0 * n**3 + 2.0 * out * n * n + 10.0 * PASSES[params.tuning] * out * n,
    )


def sensitivity(weight: Tensor, gram: Tensor, params) -> Tensor:
    """H_jj ||W[:, j] - Q(W)[:, j]||^2 for every input j [in]; Q rounds row by row."""
    grid = fit(weight, params.bits, -1, False, params.tuning)
    return gram.diagonal() * (weight - grid.decode(grid.round(weight))).square().sum(0)


def owq(weight: Tensor, gram: Tensor, params: OwqParams, count: int) -> tuple[Packed, float, float]:
    """(the stored form, sum of squared column errors, damping used) for weight [out, in].

    count: the number of weak columns.
    """
    n, top = weight.shape[1], 2**params.bits - 1
    score = sensitivity(weight, gram, params) if count else gram.diagonal()
    by_score = torch.argsort(score, descending=True, stable=True)
    weak, rest = by_score[:count], by_score[count:]
    order = torch.cat([rest if params.act_order else rest.sort().values, weak])
    factor, damping = inverse_factor(gram[order][:, order], params.damping)
    # weak columns are set to zero for the fit, so that they don't widen the grid
    grid = fit(weight.index_fill(1, weak, 0.0), params.bits, params.group_size, False, params.tuning)
    scale, zero = (t[:, order].T.contiguous() for t in grid.columns())
    # [in, out]: a column of the weight is a contiguous row here
    live = weight.float()[:, order].T.contiguous()
    codes = zero.clone()  # the codes of a weak column stand for exactly 0

    def choose(c: int, errors: Tensor) -> Tensor:
        if c >= n - count:
            return to_storage(live[c]).float()
        s, z = scale[c], zero[c]
        codes[c] = torch.div(live[c], s).round_().add_(z).clamp_(0, top)
        return (codes[c] - z).mul_(s)

    total = compensate(live, factor.float(), range(0, n, params.block_size), choose)
    back = torch.argsort(order)
    packed = GroupedInt.encode(codes[back].T.contiguous().to(torch.uint8), grid)
    if count:
        packed = Sum(packed, Columns.encode(live[back].T, weak.sort().values))
    return packed, total, damping


def compress(site: Site, stats: Stats, params: OwqParams) -> Edit:
    """Quantize the weight [out, in] of one linear with the Gram matrix of its inputs."""
    count = weak_count(site.weight.shape[1], params, share(site))
    packed, _, damping = owq(site.weight, stats.gram, params, count)
    notes = short_group_note(site, params.group_size) + damping_note(site, params.damping, damping)
    error = output_error(site.weight, packed.dequantize(), stats.gram)
    return stored(site, packed, notes, output_error=error, weak_columns=count)


METHOD = LinearMethod(
    name="owq",
    title="OWQ",
    family="quantization",
    paper="https://arxiv.org/abs/2306.02272",
    params=OwqParams,
    compress=compress,
    cost=cost,
    stores="sum",
    stats=frozenset({"gram"}),
    after=frozenset({"dense"}),
    tiny={"bits": 3, "group_size": 16, "extra_bits": 0.7},
    essay=__doc__,
)
