"""Magnitude pruning: remove the smallest weights.

The oldest idea and the baseline of every pruning paper: a weight near zero adds little, so take it out. No
data is needed and what stays is untouched. For language models it works poorly: a small weight on an input
that is always large matters more than a big weight on a silent input, and this method can't tell. At 50 %
most models break.

Unstructured: one threshold a matrix, the given share of its weights with the smallest |w| is removed, exactly
that many. n:m: of every m neighbouring inputs of a row the m - n smallest are removed (2:4 keeps two of
four). Source: the baseline in Frantar and Alistarh 2023 (SparseGPT, arXiv 2301.00774) and Sun et al. 2023
(Wanda, 2306.11695).

Deviation: the authors' code removes everything not above the threshold, at least one weight even at 0 %; we
remove an exact number, ties broken by place.

Stored as one bit a place and the kept weights in 16 bits (2:4: the place of each kept weight in two bits). At
50 % that is 9 bits a weight. Smaller is not faster by itself: it takes a kernel that reads this layout.

Cost: one sort a matrix, no calibration.
"""

from __future__ import annotations

from dataclasses import dataclass

from compression.base import Edit, LinearMethod, Params, Site, Stats
from compression.pruning.patterns import (
    cost,
    kept_share,
    lowest,
    lowest_in_groups,
    pattern_param,
    sparsity_param,
    store,
)


@dataclass(frozen=True)
class MagnitudeParams(Params):
    """How much is removed, and in which pattern."""

    sparsity: float = sparsity_param()
    pattern: str = pattern_param()


def compress(site: Site, stats: Stats, params: MagnitudeParams) -> Edit:
    """Prune the weight [out, in] of one linear by |w|."""
    score = site.weight.abs()
    if params.pattern != "unstructured":
        return store(site, lowest_in_groups(score, params.pattern, site.path))
    count = int(params.sparsity * score.numel())
    return store(site, lowest(score.view(1, -1), count).view(score.shape))


METHOD = LinearMethod(
    name="magnitude",
    title="Magnitude pruning",
    family="pruning",
    paper="https://arxiv.org/abs/2301.00774",
    params=MagnitudeParams,
    compress=compress,
    cost=cost,
    stores="bitmask",
    kept_share=kept_share,
    after=frozenset({"dense"}),
    identity={"sparsity": 0.0},
    essay=__doc__,
)
