"""NF4 and FP4: 16 values that are not equally spaced, the same for every group, times a scale a group.

Weights crowd around zero and thin out quickly, so equally spaced marks are wasted on places where few weights
are. NF4 ("normal float") puts its 16 values at quantiles of the bell curve, dense in the middle; FP4 takes
what a 4-bit floating point number can hold. Each group of 64 is divided by its largest |weight|, and every
weight becomes the nearest of the 16 values. It needs no data and takes seconds; users of bitsandbytes and
QLoRA know it. NF4 is the better of the two, and about as good as rounding to 4 bits with a zero point, which
takes as much space.

Dettmers, Pagnoni, Holtzman, Zettlemoyer 2023 (QLoRA), arXiv 2305.14314, section 3: NF4 has 7 quantiles below
zero, zero, and 8 above, each side scaled to end at 1 (equation 4 as bitsandbytes computes it). FP4 in
bitsandbytes' order of codes: 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4 and their negatives. Double quantization:
the scales less their mean are themselves 8-bit codes with a 32-bit scale for every 256: 4.127 bits a weight
instead of 4.25.

Deviations from bitsandbytes: (1) without double quantization the scale takes 16 bits, not 32 (4.25 bits a
weight, not 4.5), and codes are chosen for the scale as it is stored. With double quantization they are chosen
before the scales become codes, as in bitsandbytes, and its codes and scales come out. (2) Groups end with
their row, where bitsandbytes cuts the whole matrix into runs; the same wherever the group size divides the
row. A tie goes to the lower value.

Cost: one pass over the weights, no calibration.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compression.base import Cost, Edit, LinearMethod, Params, Site, Stats, param
from compression.edits import short_group_note, stored
from compression.packed.codebook import TABLES, CodeBook
from kernels.bits import row_bytes
from kernels.grids import NESTED_BLOCK
from kernels.grouped_int import groups_of


@dataclass(frozen=True)
class Nf4Params(Params):
    """Which 16 values, and how many weights share a scale."""

    table: str = param(
        "nf4",
        "The 16 values: quantiles of a bell curve (nf4) or 4-bit floats (fp4).",
        choices=("nf4", "fp4"),
        label="title",
    )
    group_size: int = param(
        64,
        "Weights that share one scale; a multiple of 16, or -1 for a whole row.",
        lo=-1,
        hi=4096,
        step=16,
        suggest=(-1, 32, 64, 128),
    )
    double: bool = param(False, "Double quantization: scales are 8-bit codes themselves.")


def cost(shape: tuple[int, int], params, tokens: int) -> Cost:
    """Bytes of codes, scales and the table; a search among 16 values for each weight."""
    out, n = shape
    groups = out * groups_of(n, params.group_size)
    scales = groups + 4 * -(-groups // NESTED_BLOCK) + 4 if params.double else 2 * groups
    return Cost(bytes=out * row_bytes(n, 4) + scales + 4 * 16, flops=100.0 * out * n, peak_bytes=24 * out * n)


def compress(site: Site, stats: Stats, params: Nf4Params) -> Edit:
    """Round the weight [out, in] of one linear to the table."""
    table = torch.tensor(TABLES[params.table], device=site.weight.device)
    packed = CodeBook.encode(site.weight, table, params.group_size, nested=params.double)
    return stored(site, packed, short_group_note(site, params.group_size))


METHOD = LinearMethod(
    name="nf4",
    title="NF4 / FP4",
    family="quantization",
    paper="https://arxiv.org/abs/2305.14314",
    params=Nf4Params,
    compress=compress,
    cost=cost,
    stores="codebook",
    after=frozenset({"dense"}),
    tiny={"group_size": 16},
    essay=__doc__,
)
