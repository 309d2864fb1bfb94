"""LUT-GEMM: weights as sums of planes of -1 and +1, so that a product needs look-ups and additions only.

Each group of weights is written as w = offset + alpha_1 b_1 + ... + alpha_q b_q, where every b is -1 or +1.
This takes one bit for each weight and plane, and a scale for each plane. A product with such a plane needs no
multiplication. For every few inputs the kernel computes all possible sums of +-x once, and the bits of each
plane select one of these sums. There are two uses:

After a step that stored integers in plain groups, such as rounding or GPTQ, the same weights are written in
this form without any change: with q bits, scale s and zero point z,
    alpha_k = s 2^(k-1) for k = 0 .. q-1,   offset = s ((2^q - 1) / 2 - z)
(the offset takes 32 bits, so that the result is exact). Bits, group size and quality are those of the earlier
step.

As the first step it fits planes to the weights themselves (binary-coding quantization), with values that need
not be equally spaced. The fit "greedy" takes one plane after the other: a plane takes the signs of the
remainder that the planes before it leave, and the mean size of the remainder as its scale. The fit
"alternating" begins there, then takes in turn the best scales for the codes and the nearest codes for the
scales. Both look at weights alone. The fewer the bits, the smaller is the alternating fit's error in the
weights beside rounding's; a model need not gain as much.

Kernels. For one token a processor has two. The first looks up: four inputs have 16 sums, these fill a
register, and a byte shuffle looks 64 of them up at once (T-MAC, Wei et al. 2024, arXiv 2407.00088). T-MAC
rounds its tables to 8 bits. Ours hold the whole sums, in two bytes for 8-bit inputs and in four for exact
inputs, so that a table adds no error. The second kernel adds the inputs whose bit is set. On AVX2 without
VNNI the first is used: in a first timing on a busy machine it took 0.34 to 0.41 of the second's time, and
0.46 to 0.62 with 8-bit inputs. The second is used in plain C and with VNNI, which adds four inputs in one
instruction; the first hasn't been timed there. For many tokens the planes are decoded to floats. A graphics
card adds too; its look-up kernel (tables of 4 or 8 inputs) is tested and has not been timed.

Park et al. 2022, arXiv 2206.09557: equations 1 and 2 (binary coding, greedy: b = sign(r), alpha = mean |r|),
the alternating fit of Xu et al. 2018 (1802.00150), 15 rounds and groups of 128 as in the authors' code;
sign(0) is +1.

Deviations. (1) The fit has an offset, as the paper's own form for uniform grids has. It also starts a second
time from rounding, and each group keeps the better fit, so it is never worse than rounding to nearest.
Without the offset it is the paper's plain form. (2) Codes are chosen once more for the scales as stored, in
16 bits. (3) The rounds work on sorted weights and their running sums: the same numbers from 2^q values a
group. (4) Scales that can't be halved in 16 bits are refused rather than rounded. (5) The paper looks up 8
inputs at a time in a card's shared memory. Our tables are of 4 inputs and stand in registers. If looking up
isn't known to be faster, the inputs are added (kernels/cpu/token.c, kernels/gpu/binary_coded.py). The product
is the same. (6) The greedy fit keeps the paper's scales. With the offset, a group that rounding fits better
takes rounding's scales. Its codes are the nearest ones (deviation 2), where the paper keeps the greedy signs.
The paper's greedy form is `fit` greedy without `offset`.

Cost: one sort of every group and 30 rounds on 2^q numbers a group; stored with 16 (q + 1) bits a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from compression.base import BadChain, Cost, Edit, LinearMethod, Params, Site, Stats, param
from compression.edits import short_group_note, stored
from compression.grids import minmax_asym
from compression.packed.base import to_storage
from compression.packed.binary_coded import BinaryCoded
from compression.packed.grouped_int import GroupedInt
from compression.quantization.groups import groups_as_rows
from kernels.bits import unpack
from kernels.grouped_int import groups_of

AT_A_TIME = 1 << 21  # weights, or levels of groups, that are fitted at a time; this bounds the memory


@dataclass(frozen=True)
class LutGemmParams(Params):
    """How many planes, and how they are fitted. After another quantization step, that step decides both."""

    bits: int = param(
        3,
        "Planes, one bit a weight each.",
        lo=1,
        hi=8,
        step=1,
        unit="bits",
        main=True,
        ends=("tiny, worse", "large, same"),
    )
    group_size: int = param(
        128,
        "Weights that share their scales; a multiple of 16, or -1 for a whole row.",
        lo=-1,
        hi=4096,
        step=16,
        suggest=(-1, 32, 64, 128),
    )
    offset: bool = param(True, "A constant beside the planes of each group.", level="advanced")
    fit: str = param(
        "alternating",
        "How planes are fitted to weights: greedy, one after the other (the paper's equation 2), or "
        "alternating, greedy and then scales and codes in turn.",
        choices=("greedy", "alternating"),
        level="advanced",
    )
    rounds: int = param(
        15, "Rounds of the alternating fit.", lo=1, hi=1000, level="advanced", when={"fit": "alternating"}
    )

    @property
    def turns(self) -> int:
        """Rounds that follow the greedy start."""
        return self.rounds if self.fit == "alternating" else 0


def cost(shape: tuple[int, int], params, tokens: int) -> Cost:
    """Bytes of planes and scales; a sort of the groups, then rounds on 2^bits numbers a group."""
    out, n = shape
    groups = out * groups_of(n, params.group_size)
    size = params.bits * out * -(-n // 8) + 2 * groups * (params.bits + params.offset)
    # counted as the operations of matrix products that take as long
    flops = 3e3 * out * n + 2e3 * params.turns * groups * 2**params.bits
    return Cost(bytes=size, flops=flops, peak_bytes=16 * out * n + 80 * min(out * n, AT_A_TIME))


def converted_cost(shape: tuple[int, int], params, tokens: int) -> Cost:
    """`cost` after a step that stored integers: nothing is fitted, and the offset takes 32 bits."""
    out, n = shape
    size = params.bits * out * -(-n // 8) + out * groups_of(n, params.group_size) * (2 * params.bits + 4)
    return Cost(bytes=size, flops=50.0 * out * n, peak_bytes=16 * out * n)


# --- converted exactly, from integers on a grid ---


def convert(site: Site) -> BinaryCoded:
    """The integers that an earlier step stored, as planes: the same weights, bit for bit. Raises BadChain."""
    previous = site.previous
    assert isinstance(previous, GroupedInt)
    grid = previous.grid
    if grid.group_index is not None:
        raise BadChain(
            f"{site.path}: its groups are scattered over the row (act_order without static_groups), and the "
            "planes' scales belong to neighbouring inputs. Set static_groups in the step before.",
            method="lut_gemm",
        )
    if previous.activations is not None:
        raise BadChain(
            f"{site.path}: the step before rounds activations to {previous.activations.bits} bits for an "
            "integer product; LUT-GEMM adds exact activations up. Choose a step that rounds weights only.",
            method="lut_gemm",
        )
    alpha = torch.stack([grid.scale.float() * 2.0 ** (k - 1) for k in range(grid.bits)])
    inexact = (alpha != to_storage(alpha).float()).any(0)
    if bool(inexact.any()):
        raise BadChain(
            f"{site.path}: {int(inexact.sum())} of {inexact.numel()} scales, the smallest "
            f"{float(grid.scale.min()):.3g}, can't be "
            f"halved and doubled exactly in 16 bits. Use fewer bits or larger groups in the step before.",
            method="lut_gemm",
        )
    offset = grid.scale.float() * ((2**grid.bits - 1) / 2 - grid.zero_points().float())
    codes = unpack(previous.codes, grid.bits, previous.shape[1])
    return BinaryCoded.encode(planes_of(codes, grid.bits), alpha, offset, grid.group_size, exact_offset=True)


def planes_of(codes: Tensor, bits: int) -> Tensor:
    """bool [bits, ...]: bit k of every code is in plane k."""
    return torch.stack([(codes >> k & 1).bool() for k in range(bits)])


# --- fitted to the weights ---


def greedy(groups: Tensor, bits: int) -> Tensor:
    """alpha [n, bits] of groups [n, size]: each plane takes the mean of what the planes before it left."""
    rest, alpha = groups, []
    for _ in range(bits):
        alpha.append(rest.abs().mean(1))
        rest = rest - alpha[-1][:, None] * torch.where(rest < 0, -1.0, 1.0)
    return torch.stack(alpha, 1)


def uniform(groups: Tensor, bits: int) -> Tensor:
    """(alpha, offset) [n, bits + 1] of the min-max grid with an integer zero point."""
    scale, zero = minmax_asym(groups.amin(1), groups.amax(1), bits)
    alpha = [scale.to(groups) * 2.0 ** (k - 1) for k in range(bits)]
    return torch.stack([*alpha, scale.to(groups) * ((2**bits - 1) / 2 - zero.to(groups))], 1)


def combinations(bits: int, offset: bool, like: Tensor) -> Tensor:
    """[2^bits, bits (+ 1)]: the signs that each code stands for, and a 1 for the offset."""
    signs = 2 * planes_of(torch.arange(2**bits, device=like.device), bits).T.to(like) - 1
    return F.pad(signs, (0, int(offset)), value=1.0)


def cuts_of(levels: Tensor) -> Tensor:
    """The middles between neighbouring sorted levels [n, 2^bits].

    A weight exactly in the middle goes up, so that sign(0) is +1.
    """
    return (levels[:, 1:] + levels[:, :-1]) / 2


def alternate(weights: Tensor, scales: Tensor, signs: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """(scales, squared errors [n]) after `rounds` of two steps.

    A round takes the nearest codes for the scales, then the best scales for the codes. weights [n, size] are
    sorted; scales [n, planes (+ offset)] are the start; both float64; signs come from `combinations`. In a
    sorted group the weights nearest to a level are neighbours, so their number and sum are differences of
    running sums.
    """
    running = F.pad(weights.cumsum(1), (1, 0))
    squares = weights.square().sum(1)
    products = (signs[:, :, None] * signs[:, None, :]).flatten(1)
    for k in range(rounds + 1):
        levels, order = (scales @ signs.T).sort(1)
        ends = F.pad(torch.searchsorted(weights, cuts_of(levels).contiguous()), (1, 0))
        ends = F.pad(ends, (0, 1), value=weights.shape[1])
        counts, sums = ends.diff(dim=1).to(weights), running.gather(1, ends).diff(dim=1)
        error = squares - 2 * (levels * sums).sum(1) + (levels.square() * counts).sum(1)
        if k == rounds:
            break
        by_code = [torch.zeros_like(levels).scatter_(1, order, t) for t in (counts, sums)]
        scales = descend(
            (by_code[0] @ products).unflatten(1, (signs.shape[1], -1)), by_code[1] @ signs, scales
        )
    return scales, error


def descend(matrix: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """Solve matrix [n, k, k] x = right [n, k] by k conjugate-gradient steps from x, as the authors do.

    The solution is exact if the matrix is regular. It is never worse than the start if it isn't, e.g. if two
    planes are alike or a code is unused.
    """
    residual = right - (matrix @ x[:, :, None])[:, :, 0]
    direction, square = residual, residual.square().sum(1)
    floor = 1e-28 * right.square().sum(1)
    for _ in range(right.shape[1]):
        ahead = (matrix @ direction[:, :, None])[:, :, 0]
        curvature = (direction * ahead).sum(1)
        step = torch.where((square > floor) & (curvature > 0), square / curvature, 0.0)[:, None]
        x, residual = x + step * direction, residual - step * ahead
        before, square = square, residual.square().sum(1)
        direction = residual + torch.where(before > floor, square / before, 0.0)[:, None] * direction
    return x


def fit(groups: Tensor, params: LutGemmParams) -> tuple[Tensor, Tensor, Tensor]:
    """(codes [n, size], alpha [n, bits], offset [n] or zeros) of groups [n, size], for scales as stored."""
    wide = groups.double()
    weights = wide.sort(1).values
    signs = combinations(params.bits, params.offset, wide)
    scales, error = alternate(
        weights, F.pad(greedy(weights, params.bits), (0, int(params.offset))), signs, params.turns
    )
    if params.offset:
        other, found = alternate(weights, uniform(weights, params.bits), signs, params.turns)
        scales = torch.where((found < error)[:, None], other, scales)
    alpha = to_storage(scales[:, : params.bits].abs().sort(1, descending=True).values)
    offset = to_storage(scales[:, params.bits :].sum(1))
    levels = torch.cat([alpha, offset[:, None]], 1).double() @ combinations(params.bits, True, wide).T
    levels, order = levels.sort(1)
    codes = order.gather(1, torch.searchsorted(cuts_of(levels).contiguous(), wide, right=True))
    return codes.to(torch.uint8), alpha, offset


def encode(weight: Tensor, params: LutGemmParams) -> BinaryCoded:
    """The planes fitted to weight [out, in]."""
    out, found = len(weight), []
    for groups in groups_as_rows(weight, params.group_size):
        step = max(1, AT_A_TIME // max(groups.shape[1], 2**params.bits))
        parts = zip(*(fit(part, params) for part in groups.split(step)), strict=True)
        codes, alpha, offset = (torch.cat(part) for part in parts)
        found.append((codes.view(out, -1), alpha.view(out, -1, params.bits), offset.view(out, -1)))
    codes, alpha, offset = (torch.cat(part, 1) for part in zip(*found, strict=True))
    return BinaryCoded.encode(
        planes_of(codes, params.bits),
        alpha.permute(2, 0, 1),
        offset if params.offset else None,
        params.group_size,
    )


def compress(site: Site, stats: Stats, params: LutGemmParams) -> Edit:
    """Convert an earlier step's integers to planes, or fit planes to the weight [out, in]."""
    if isinstance(site.previous, GroupedInt):
        return stored(site, convert(site))
    return stored(site, encode(site.weight, params), short_group_note(site, params.group_size))


METHOD = LinearMethod(
    name="lut_gemm",
    title="LUT-GEMM",
    family="quantization",
    paper="https://arxiv.org/abs/2206.09557",
    params=LutGemmParams,
    compress=compress,
    cost=cost,
    stores="binary_coded",
    after=frozenset({"dense", "grouped_int"}),
    inherits=("bits", "group_size"),
    converted_cost=converted_cost,
    tiny={"bits": 3, "group_size": 16},
    essay=__doc__,
)
