"""SpQR: 3-bit weights in tiny groups, scales that are stored in 3 bits themselves, and a few hard weights in
16 bits.

A few weights here and there cause most of the damage of rounding, and they follow no pattern of rows or
columns. SpQR finds them while it rounds, keeps each with its place (32 bits an outlier, 1 % of the weights by
default), and fits the grids without them. Groups of 16 weights let the grids fit closely. Their scales and
zero points would cost 2 bits a weight, so they are rounded too: the scales of 16 rows in one group are 3-bit
codes with a scale of their own. Together this takes 3 + 6 / 16 + 64 / 256 = 3.625 bits a weight, and 32 bits
for each outlier.

Dettmers, Svirschevski, Egiazarian and others 2023, arXiv 2306.03078, and the authors' code. GPTQ's column
loop with U from the damped H; where a group begins, on the weights as they are by then:
    1. gain_j = the group's sum of ((w - w') / U_cc)^2 minus the same with weight j left out of fit and sum
    2. gain_j > T: a likely outlier; scale and real zero point are fitted with its place taken by the mean of
       the others
    3. scales and zero points of 16 rows are rounded to 3 bits, and the loop goes on with what they then are
and each weight of column c with ((w - w') / U_cc)^2 > T is an outlier: its value at this moment is stored,
and its code is that of 0.

Deviations. (1) The authors give T = tau * mean(var(W[:, j]) / U_jj^2), with tau found by trial for a wanted
size; one tau gives layers of one model very different shares. We give the share of outliers. For each matrix
T is then the limit that would give this share if no weight changed before its turn. `tau` above 0 is the
authors' way, with one tau for the whole model. (2) An outlier is stored as its difference from the value of
its code, so codes and outliers add up. (3) Only the smallest and the largest weight decide a fit, so leaving
out any other weight changes only the sum. So three fits give what the authors compute with 16. (4) For a
scale and a zero point we try the nearest 3-bit codes and the codes beside them, and take the pair with the
least sum of squares (`level_search`). The nearest codes alone leave a fifth more error, and a narrow model is
then no better than with GPTQ at 4 bits a row. (5) A group of equal weights is kept exactly; the authors put
it on [-1, 1]. No zero point is beyond 1024, and a second level keeps equal values to 11 bits
(packed/real_grid.py). (6) Damping is 0.01, the default of the authors' code. Their README's commands give
1.0, which leaves one and a half times the error on the offline model. As with the authors, a group has inputs
of similar loudness, which takes an index of 16 bits an input. `neighbours` needs no index and leaves some 7 %
more error at the same size.

Cost: GPTQ's loop, with some dozen small steps more for each column and a hundred for each group.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compression.base import Cost, Edit, LinearMethod, Params, Site, Stats, param
from compression.edits import damping_note, short_group_note, stored
from compression.packed.affine_int import AffineInt
from compression.packed.base import Packed, to_storage
from compression.packed.grid import store_scale
from compression.packed.outliers import Outliers
from compression.packed.real_grid import RUN, RealGrid, TwoLevelGrid, second_level
from compression.packed.sum import Sum
from compression.second_order import compensate, inverse_factor, output_error
from kernels.bits import pack, row_bytes
from kernels.grouped_int import groups_of, levelled

BLOCK = 128  # columns whose updates of later blocks wait
# offsets that are tried for two codes, from the nearest codes
PAIRS = tuple(sorted(itertools.product((0, -1, 1), repeat=2), key=lambda p: p != (0, 0)))
LARGEST_ZERO = 1024  # the largest zero point; 16 bits hold every zero point up to here to half a step
SAMPLED_RUNS = 16  # runs of 16 rows that are sampled to find the limit for outliers


@dataclass(frozen=True)
class SpqrParams(Params):
    """The grids, and how many weights are kept as outliers."""

    bits: int = param(
        3,
        "Bits each weight takes, outliers apart.",
        lo=2,
        hi=8,
        step=1,
        unit="bits",
        main=True,
        ends=("tiny, worse", "large, same"),
    )
    outliers: float = param(
        0.01,
        "Share of the weights that is kept in 16 bits beside the codes.",
        lo=0.0,
        hi=0.2,
        label="always",
        when={"tau": 0.0},
    )
    tau: float = param(
        0.0,
        "One threshold for outliers in the whole model, as the authors' (they take 0.1 to 1); 0: a fixed "
        "share of each matrix.",
        lo=0.0,
        hi=100.0,
        suggest=(0.0, 0.1, 0.2, 0.5, 1.0),
        level="advanced",
    )
    group_size: int = param(
        16, "Weights that share one scale; a multiple of 16.", lo=16, hi=4096, step=16, suggest=(16, 32, 64)
    )
    level_bits: int = param(
        3,
        "Bits of each scale and zero point; 16 stores them unrounded.",
        choices=(2, 3, 4, 8, 16),
        level="advanced",
    )
    level_search: bool = param(
        True,
        "Of the nearest codes of scale and zero point and the codes beside them, take the best pair.",
        label="always",
        level="advanced",
    )
    leave_one_out: bool = param(True, "Fit each ruler without its likely outliers.", level="advanced")
    act_order: bool = param(True, "Round the inputs with the largest activations first.", level="advanced")
    neighbours: bool = param(
        False,
        "Groups are neighbouring inputs, not inputs of like loudness.",
        level="advanced",
        when={"act_order": True},
    )
    damping: float = param(
        0.01, "Share of the mean diagonal that is added to H.", lo=0.0001, hi=1.0, level="advanced"
    )


def cost(shape: tuple[int, int], params, tokens: int) -> Cost:
    """Bytes of codes, both levels of the grid, outliers and the groups' index.

    Outliers beyond `tau` aren't counted, because only calibration tells how many there are. Operations of
    GPTQ and of the fits.
    """
    out, n = shape
    share = 0.0 if params.tau else params.outliers
    groups, kept = groups_of(n, params.group_size), round(share * out * n)
    size = out * row_bytes(n, params.bits) + (4 * kept + 4 * (out + 1) if kept else 0)
    if params.level_bits == 16:
        size += 4 * out * groups
    else:
        size += 2 * row_bytes(out * groups, params.level_bits) + 8 * -(-out // RUN) * groups
    if params.act_order and not params.neighbours and groups > 1:
        size += 2 * n
    return Cost(
        bytes=size,
        flops=2.0 * tokens * n * n + 2.0 * n**3 + 2.0 * out * n * n + 100.0 * out * n,
        peak_bytes=24 * n * n + 24 * out * n,
    )


def real_minmax(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(scale, real zero) from each group's smallest and largest weight.

    If all weights are equal, the range is extended to 0.
    """
    equal = low == high
    low, high = torch.where(equal, low.clamp_max(0), low), torch.where(equal, high.clamp_min(0), high)
    smallest = torch.maximum(-low, high) / LARGEST_ZERO
    scale = torch.maximum((high - low) / (2**bits - 1), smallest).clamp_min(
        torch.finfo(torch.float16).smallest_normal
    )
    return scale, -low / scale


def nearest(weight: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest codes of weight on a grid with a real zero."""
    return torch.round(weight / scale + zero).clamp_(0, 2**bits - 1)


def squares(weight: Tensor, scale: Tensor, zero: Tensor, diagonal: Tensor, bits: int) -> Tensor:
    """((w - w') / U_cc)^2 of weight [..., size], rounded with scale and zero [..., 1].

    diagonal: U_cc [..., size].
    """
    return ((weight - (nearest(weight, scale, zero, bits) - zero) * scale) / diagonal).square()


def gains(weight: Tensor, diagonal: Tensor, bits: int) -> Tensor:
    """For each weight [..., size]: how much its group's sum of squares falls when the weight is left out.

    It is left out of both the fit and the sum.
    """
    size = weight.shape[-1]
    low, high = weight.min(-1, keepdim=True), weight.max(-1, keepdim=True)
    full = squares(weight, *real_minmax(low.values, high.values, bits), diagonal, bits)
    if size == 1:
        return full
    out, total = full.clone(), full.sum(-1, keepdim=True)
    next_low = weight.scatter(-1, low.indices, torch.inf).amin(-1, keepdim=True)
    next_high = weight.scatter(-1, high.indices, -torch.inf).amax(-1, keepdim=True)
    for at, ends in ((low.indices, (next_low, high.values)), (high.indices, (low.values, next_high))):
        without = squares(weight, *real_minmax(*ends, bits), diagonal, bits).scatter(-1, at, 0.0)
        out.scatter_(-1, at, total - without.sum(-1, keepdim=True))
    return out


def fit(
    weight: Tensor, diagonal: Tensor, limit: float, params: SpqrParams
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Fit a grid to each group of weight [out, groups, size].

    Returns (tensors to store [.., groups, ..], scale, zero [out, groups, 1] as they are stored). diagonal:
    U_cc [groups, size]. Likely outliers, whose gain exceeds the limit, don't count in the fit.
    """
    heard = torch.ones_like(weight, dtype=torch.bool)
    if params.leave_one_out and limit < torch.inf:
        heard = gains(weight, diagonal, params.bits) <= limit
    mean = (weight * heard).sum(-1, keepdim=True) / heard.sum(-1, keepdim=True).clamp_min(1)
    low, high = torch.where(heard, weight, mean).aminmax(dim=-1)
    scale, zero = real_minmax(low, high, params.bits)
    if params.level_bits == 16:
        kept = store_scale(scale), to_storage(zero)
        return kept, *(t.float()[..., None] for t in kept)
    near, stats = zip(*(second_level(t, params.level_bits) for t in (scale, zero)), strict=True)

    def stood_for(codes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        scale, zero = (levelled(c, t)[..., None] for c, t in zip(codes, stats, strict=True))
        return scale, zero

    least, best = torch.full_like(scale, torch.inf), list(near)
    for steps in PAIRS if params.level_search else PAIRS[:1]:
        codes = [
            (c.short() + step).clamp_(0, 2**params.level_bits - 1)
            for c, step in zip(near, steps, strict=True)
        ]
        error = (squares(weight, *stood_for(codes), diagonal, params.bits) * heard).sum(-1)
        best = [torch.where(error < least, new, old) for new, old in zip(codes, best, strict=True)]
        least = torch.minimum(least, error)
    return (best[0], stats[0], best[1], stats[1]), *stood_for(best)


def make_grid(shape, size: int, kept: Sequence[tuple[Tensor, ...]], params: SpqrParams, index: Tensor | None):
    """The grid of the tensors that `fit` gave for each group, in turn."""
    parts = [torch.cat(t, 1) for t in zip(*kept, strict=True)]
    if params.level_bits == 16:
        scale, zero = parts
        return RealGrid.make(shape, params.bits, size, scale, zero, index)
    codes = [pack(t.reshape(1, -1), params.level_bits)[0] for t in parts[::2]]
    index = None if index is None else index.to(torch.int16)
    return TwoLevelGrid(
        shape, params.bits, size, params.level_bits, codes[0], parts[1], codes[1], parts[3], index
    )


def arrange(loudness: Tensor, params: SpqrParams) -> tuple[Tensor, Tensor]:
    """(order in which the inputs are rounded [in], group of each input [in]).

    The inputs of a group follow each other.
    """
    n = len(loudness)
    place = torch.arange(n, device=loudness.device)
    group = place // params.group_size
    if not params.act_order:
        return place, group
    loudest = torch.argsort(loudness, descending=True, stable=True)
    if not params.neighbours:
        return loudest, torch.empty_like(group).index_copy_(0, loudest, group)
    # the rank of each group's loudest input
    first = torch.full_like(place, n).scatter_reduce(0, group[loudest], place, "amin")
    return loudest[torch.argsort(first[group[loudest]], stable=True)], group


def outlier_limit(weight: Tensor, diagonal: Tensor, params: SpqrParams) -> float:
    """The limit T with which `params.outliers` of the weights would be outliers if no weight changed before.

    weight [out, in] has its inputs group by group; diagonal: U_cc [in] in the same order. Rows are sampled,
    and a short last group is left out.
    """
    if not params.outliers:
        return torch.inf
    out, n = weight.shape
    size = min(params.group_size, n)
    starts = torch.linspace(0, max(0, out - RUN), min(SAMPLED_RUNS, -(-out // RUN))).long()
    rows = (starts[:, None] + torch.arange(RUN)).flatten()
    # [rows, groups, size]
    groups = weight[rows[rows < out].unique(), : n - n % size].unflatten(1, (-1, size))
    diagonal = diagonal[: n - n % size].view(-1, size)

    def share(limit: float) -> float:
        _, scale, zero = fit(groups, diagonal, limit, params)
        return float((squares(groups, scale, zero, diagonal, params.bits) > limit).float().mean())

    high = float(gains(groups, diagonal, params.bits).max())
    low = high * 1e-9
    for _ in range(14):  # each time the interval of the ratio is halved: to 0.13 %
        middle = (low * high) ** 0.5
        low, high = (middle, high) if share(middle) > params.outliers else (low, middle)
    return high


def relative_limit(weight: Tensor, diagonal: Tensor, tau: float) -> float:
    """The authors' T = tau * mean(var(W[:, j]) / U_jj^2).

    weight [out, in], diagonal: U_cc [in] in the same order.
    """
    variance = weight.var(0) if len(weight) > 1 else torch.zeros_like(weight[0])
    return tau * float((variance / diagonal.square()).mean())


def spqr(
    weight: Tensor, gram: Tensor, params: SpqrParams, limit: float | None = None
) -> tuple[Packed, float, float]:
    """(the stored form, sum of squared column errors, damping used) for weight [out, in].

    limit: T, the scaled squared error beyond which a weight is an outlier; None: of `params.tau`, or found
    for `params.outliers`.
    """
    out, n = weight.shape
    order, group = arrange(gram.diagonal(), params)
    back, laid_out = torch.argsort(order), torch.argsort(group, stable=True)
    factor, damping = inverse_factor(gram[order][:, order], params.damping)
    factor = factor.float()
    diagonal = factor.diagonal()
    if limit is None and params.tau:
        limit = relative_limit(weight.float(), diagonal[back], params.tau)
    elif limit is None:
        limit = outlier_limit(weight.float()[:, laid_out], diagonal[back][laid_out], params)
    # [in, out]: a column of the weight is a contiguous row here
    live = weight.float()[:, order].T.contiguous()
    codes = torch.empty_like(live)
    beside = torch.zeros_like(live)
    outlier = torch.zeros_like(live, dtype=torch.bool)
    begins, start = {}, 0  # place in the order -> (the group that begins there, its length)
    for g, length in zip(
        *(t.tolist() for t in torch.unique_consecutive(group[order], return_counts=True)), strict=True
    ):
        begins[start] = g, length
        start += length
    kept: list = [None] * len(begins)  # the tensors to store of each group's grid
    scale = zero = live.new_empty(0)

    def choose(c: int, errors: Tensor) -> Tensor:
        nonlocal scale, zero
        if c in begins:
            g, length = begins[c]
            kept[g], *ruler = fit(
                live[c : c + length].T[:, None], diagonal[None, c : c + length], limit, params
            )
            scale, zero = (t.flatten() for t in ruler)
        w = live[c]
        q = nearest(w, scale, zero, params.bits)
        value = (q - zero).mul_(scale)
        if limit < torch.inf:
            outlier[c] = ((w - value) / diagonal[c]).square() > limit
            q = torch.where(outlier[c], nearest(torch.zeros_like(w), scale, zero, params.bits), q)
            value = (q - zero).mul_(scale)
            beside[c] = to_storage(w - value).float() * outlier[c]
        codes[c] = q
        return value + beside[c]

    total = compensate(live, factor, list(begins)[:: max(1, BLOCK // params.group_size)], choose)
    index = None if torch.equal(laid_out, torch.arange(n, device=laid_out.device)) else group
    grid = make_grid((out, n), params.group_size, kept, params, index)
    codes, outlier = codes[back].T.contiguous().to(torch.uint8), outlier[back].T
    packed = AffineInt.encode(codes, grid)
    if bool(outlier.any()):
        packed = Sum(packed, Outliers.encode(beside[back].T, outlier))
    return packed, total, damping


def compress(site: Site, stats: Stats, params: SpqrParams) -> Edit:
    """Quantize the weight [out, in] of one linear with the Gram matrix of its inputs."""
    packed, _, damping = spqr(site.weight, stats.gram, params)
    notes = short_group_note(site, params.group_size) + damping_note(site, params.damping, damping)
    kept = len(packed.second.values) if isinstance(packed, Sum) else 0
    error = output_error(site.weight, packed.dequantize(), stats.gram)
    return stored(site, packed, notes, output_error=error, outlier_share=kept / site.weight.numel())


METHOD = LinearMethod(
    name="spqr",
    title="SpQR",
    family="quantization",
    paper="https://arxiv.org/abs/2306.03078",
    params=SpqrParams,
    compress=compress,
    cost=cost,
    stores="sum",
    open_ended=lambda params: params.tau > 0,
    stats=frozenset({"gram"}),
    after=frozenset({"dense"}),
    tiny={"bits": 3, "outliers": 0.02},
    essay=__doc__,
)
