"""HQQ: rounding whose zero points are moved until few weights are far off, without any data.

Rounding takes each group's ruler from its smallest and largest weight. HQQ keeps the length of the ruler's
steps and moves its zero point, which is a real number here, so that the sum of the rounding errors |w - w'|^p
becomes small. With p = 0.7 one large error counts less than many middling errors. So the ruler fits the many
usual weights, and not the rare large ones at the cost of all others. HQQ takes seconds, needs no calibration
text, and at 4 bits comes near the methods that need one.

Badri, Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"
(mobiusml.github.io/hqq_blog). With W_q = clamp(round(W / s + z), 0, 2^bits - 1) and D = W - s (W_q - z), two
steps in turn:
    E = sign(D) relu(|D| - |D|^(p - 1) / beta)      what is left of the errors after shrinking (problem 1)
    z = mean over the group of W_q - (W - E) / s    the best zero point for the rest (problem 2)
and beta grows by kappa. Defaults p 0.7, beta 10, kappa 1.01, at most 20 rounds, groups of 64, as in the
authors' code. The first zero point is a whole number (`round_zero`): small weights then start out exact,
which a model with a few very loud inputs rewards.

Deviations. (1) The authors stop a whole matrix when its mean |D| rises and keep the zero points of that last
round; we go on with each group while its zero point moves and keep the one with the smallest sum of |D|^p, so
that no group ends worse than it began. (2) All of it is computed with scale and zero point as they are
stored, in 16 bits. (3) A group of nearly equal weights gets a step of at least 2^-15 of its largest weight,
because 16 bits hold no larger zero point; the authors bound the step by a fixed 1/20000. (4) The authors'
code begins with a whole zero point at 4 bits alone. At 3 bits a whole zero point keeps HQQ better than plain
rounding on the offline model; turn `round_zero` off to see what the authors' code gives there. At 2 bits so
small a model is broken with either start, and at 8 bits nothing is lost with either.

With the authors' beta an error below 0.17 is shrunk to nothing (E = 0). The errors in language models are
rarely larger, and then z is simply the mean.

Cost: up to 20 passes over the weights, fewer for groups that have settled; stored with 32 bits a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compression.base import Cost, Edit, LinearMethod, Params, Site, Stats, param
from compression.edits import short_group_note, stored
from compression.packed.affine_int import AffineInt
from compression.packed.base import to_storage
from compression.packed.grid import store_scale
from compression.packed.real_grid import RealGrid
from compression.quantization.groups import groups_as_rows
from kernels.bits import row_bytes
from kernels.grouped_int import groups_of

LARGEST_ZERO = 2.0**15  # the largest zero point; float16 ends at 65,504


@dataclass(frozen=True)
class HqqParams(Params):
    """The grid, and how its zero point is searched for."""

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
    round_zero: bool = param(
        True, "Begin with a whole-number zero point, so that small weights start out exact.", level="advanced"
    )
    iterations: int = param(
        20, "Rounds at most; 0 keeps the first zero points.", lo=0, hi=1000, level="advanced"
    )
    p: float = param(
        0.7,
        "Power of the errors whose sum is made small; below 1 rare large errors count little.",
        lo=0.1,
        hi=1.0,
        level="advanced",
    )
    beta: float = param(
        10.0,
        "How strictly large errors are set aside: the larger, the more are.",
        lo=0.01,
        hi=1e6,
        level="advanced",
    )
    kappa: float = param(1.01, "Factor by which beta grows each round.", lo=1.0, hi=10.0, level="advanced")


def cost(shape: tuple[int, int], params, tokens: int) -> Cost:
    """Bytes of codes, scales and zero points. Half of the groups stop changing after three rounds."""
    out, n = shape
    size = out * row_bytes(n, params.bits) + 4 * out * groups_of(n, params.group_size)
    rounds = min(params.iterations + 1, 4)
    # counted as the operations of matrix products that take as long
    return Cost(bytes=size, flops=400.0 * rounds * out * n, peak_bytes=32 * out * n)


def first_grid(groups: Tensor, bits: int, whole: bool = False) -> tuple[Tensor, Tensor]:
    """(scale, zero) [n] of groups [n, size] from their smallest and largest weight, as 16 bits store them.

    whole: the zero is rounded to a whole number.
    """
    low, high = groups.amin(1), groups.amax(1)
    scale = store_scale(
        torch.maximum((high - low) / (2**bits - 1), groups.abs().amax(1) / LARGEST_ZERO)
    ).float()
    zero = -low / scale
    return scale, to_storage(zero.round() if whole else zero).float()


def hqq(groups: Tensor, params: HqqParams) -> tuple[Tensor, Tensor]:
    """(scale, zero) [n] of groups [n, size]; the half-quadratic steps have moved the zero points."""
    scale, zero = first_grid(groups, params.bits, params.round_zero)
    lowest = torch.full_like(zero, torch.inf)
    # groups that still change, and the zero points that they try
    live, trial = torch.arange(len(groups), device=groups.device), zero.clone()
    for k in range(params.iterations + 1):
        w, s, z = groups[live], scale[live, None], trial[:, None]
        codes = torch.round(w / s + z).clamp_(0, 2**params.bits - 1)
        d = w - s * (codes - z)
        steep = d.abs().clamp_min(1e-30) ** (params.p - 1)
        error = (steep * d.abs()).sum(1)
        falls = error < lowest[live]
        better = live[falls]
        lowest[better], zero[better] = error[falls], trial[falls]
        kept = d.sign() * torch.relu(d.abs() - steep / (params.beta * params.kappa**k))
        moved = to_storage((codes - (w - kept) / s).mean(1)).float()
        moves = moved != trial
        live, trial = live[moves], moved[moves]
    return scale, zero


def compress(site: Site, stats: Stats, params: HqqParams) -> Edit:
    """Quantize the weight [out, in] of one linear."""
    fits = [hqq(groups, params) for groups in groups_as_rows(site.weight, params.group_size)]
    rows = len(site.weight)
    scale = torch.cat([s.view(rows, -1) for s, _ in fits], 1)
    zero = torch.cat([z.view(rows, -1) for _, z in fits], 1)
    grid = RealGrid.make(site.weight.shape, params.bits, params.group_size, scale, zero)
    packed = AffineInt.encode(grid.round(site.weight), grid)
    return stored(site, packed, short_group_note(site, params.group_size))


METHOD = LinearMethod(
    name="hqq",
    title="HQQ",
    family="quantization",
    paper="https://mobiusml.github.io/hqq_blog/",
    params=HqqParams,
    compress=compress,
    cost=cost,
    stores="affine_int",
    after=frozenset({"dense"}),
    tiny={"bits": 4, "group_size": 16},
    essay=__doc__,
)
