"""Rounding to nearest: the simplest way to store a weight in few bits.

Each group of neighbouring weights in a row (64 by default) gets a small ruler: a scale and, unless symmetric,
a zero point, chosen so that the ruler spans the group's smallest to largest weight. Every weight is then
replaced by the nearest of the ruler's 2^bits marks. Nothing is learned from data, so it takes seconds, and at
8 bits nothing is lost that one could measure. At 4 bits it costs a little, at 3 bits a lot: one large weight
stretches the ruler of its whole group. Smaller groups help and cost space (a 16-bit scale and a zero point
each).

Quantizer: min-max as in GPTQ's reference code (Frantar et al. 2022, arXiv 2210.17323), zero always on the
grid,
    asymmetric  scale = (max - min) / (2^bits - 1),  zero = round(-min / scale)
    symmetric   scale = 2 max|w| / (2^bits - 1),     zero = 2^(bits - 1)
    code = clamp(round(w / scale) + zero, 0, 2^bits - 1)
`tuning` may shorten the range, so that a group's extremes are cut off and the rest gets a finer ruler:
"shrink" tries the whole range times k / 40 and takes the least sum of |w - w'|^2.4, the search of GPTQ's
reference code; "mse" tries all ranges and zero points, as OWQ does. Codes are computed with the scale as it
is stored, in 16 bits. Group size -1 means one group a row ("per channel"). After a pruning step the removed
weights stay exactly zero and only the kept ones are stored.

Deviation: none; there is no single paper. Cost: one pass over the weights, no calibration, no extra memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from compression.base import Cost, Edit, LinearMethod, Params, Site, Stats, param
from compression.edits import short_group_note, stored
from compression.grids import PASSES, encode, fit, grid_bytes, tuning_param


@dataclass(frozen=True)
class RtnParams(Params):
    """The grid."""

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


def cost(shape: tuple[int, int], params, tokens: int) -> Cost:
    """Bytes of codes and grid; a few operations a weight."""
    out, n = shape
    codes = out * -(-n // 8) * params.bits
    size = codes + grid_bytes(shape, params.bits, params.group_size, params.symmetric)
    return Cost(
        bytes=size,
        flops=(8.0 if params.tuning == "minmax" else 10.0 * PASSES[params.tuning]) * out * n,
        peak_bytes=12 * out * n,
    )


def compress(site: Site, stats: Stats, params: RtnParams) -> Edit:
    """Round the weight [out, in] of one linear."""
    grid = fit(site.weight, params.bits, params.group_size, params.symmetric, params.tuning)
    packed = encode(site.previous, grid.round(site.weight), grid)
    return stored(site, packed, short_group_note(site, params.group_size))


METHOD = LinearMethod(
    name="rtn",
    title="Round to nearest",
    family="quantization",
    paper="https://arxiv.org/abs/2210.17323",
    params=RtnParams,
    compress=compress,
    cost=cost,
    stores="grouped_int",
    after=frozenset({"dense", "bitmask", "two_four"}),
    tiny={"bits": 4, "group_size": 16},
    essay=__doc__,
)
