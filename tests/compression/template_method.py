"""A method to copy: every weight becomes the nearest of a few equally spaced values of its row.

compression/<family>/<name>.py holds such a file; its name then stands in `compression.NAMES`. This docstring
is the essay that the page shows. It says in words what the method does, names the paper and its equations,
tells where we deviate and why, and what it costs:

    scale = 2 max|w| / (2^bits - 1)        w' = scale * round(w / scale), a scale a row

Deviation: none; there is no paper. Cost: one pass over the weights, no calibration.
"""

from __future__ import annotations

from dataclasses import dataclass

from compression.base import Cost, Edit, LinearMethod, Params, Site, Stats, param
from compression.edits import stored
from compression.grids import encode, fit, grid_bytes


@dataclass(frozen=True)
class EvenParams(Params):
    """Each field is a widget of the page, a flag of the command line, a check, and part of the cache key."""

    bits: int = param(4, "Bits each weight takes.", lo=2, hi=8, step=1, unit="bits", main=True)


def cost(shape: tuple[int, int], params: EvenParams, tokens: int) -> Cost:
    """What the estimate says before a run; the contract tests compare the bytes with what is stored."""
    out, n = shape
    size = out * -(-n // 8) * params.bits + grid_bytes(shape, params.bits, -1, True)
    return Cost(bytes=size, flops=8.0 * out * n, peak_bytes=12 * out * n)


def compress(site: Site, stats: Stats, params: EvenParams) -> Edit:
    """Round the weight [out, in] of one linear. Changes nothing itself: the driver applies the Edit."""
    grid = fit(site.weight, params.bits, -1, symmetric=True)
    return stored(site, encode(site.previous, grid.round(site.weight), grid))


METHOD = LinearMethod(
    name="even",
    title="Evenly spaced values",
    family="quantization",
    paper="",
    params=EvenParams,
    compress=compress,
    cost=cost,
    stores="grouped_int",
    after=frozenset({"dense"}),
    tiny={"bits": 4},
    essay=__doc__,
)
