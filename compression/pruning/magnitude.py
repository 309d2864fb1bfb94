"""Magnitude pruning: remove the smallest weights.

The oldest idea and the baseline of every pruning paper: a weight near zero adds little, so take it out. No
data is needed, and the other weights are untouched. For language models it works poorly. A small weight on an
input that is always large matters more than a big weight on a silent input, and this method doesn't know the
inputs. At 50 % most models break.

Unstructured: in each matrix exactly the given share of the weights is removed, those with the smallest |w|.
n:m: of every m neighbouring inputs of a row the m - n smallest are removed (2:4 keeps two of four). Source:
the baseline in Frantar and Alistarh 2023 (SparseGPT, arXiv 2301.00774) and Sun et al. 2023 (Wanda,
2306.11695).

`allocation` owl lets blocks lose different shares (Yin et al. 2023, OWL, arXiv 2310.05175). The more entries
|W[i, j]| ||X_j|| of a block lie above `outlier_factor` times their mean, the more of the block stays. The
shares of two blocks differ by at most twice `spread`, and their mean is the asked share. `permute` reorders
channels before n of m are kept (Pool and Yu 2021). It reorders the feed-forward's channels, by the rows of
gate and up, and the channels of a head's values, by the rows of v. The model computes the same as before, in
the same time. All blocks share the channels of the residual stream, so the inputs of q, k, v, gate and up
keep their order.

Deviation: the authors' code removes everything not above the threshold, at least one weight even at 0 %. We
remove an exact number; of equal weights the earlier is removed.

Stored as one bit a place and the kept weights in 16 bits (2:4: the place of each kept weight in two bits). At
50 % that is 9 bits a weight. Smaller is not faster by itself: it takes a kernel that reads this layout.

Cost: one sort a matrix, no calibration. With `allocation` owl or `permute`: one forward pass over a
calibration text.
"""

from __future__ import annotations

from dataclasses import dataclass

from compression.base import Edit, LinearMethod, Site, Stats
from compression.pruning.patterns import PatternParams, cost, kept_share, lowest, lowest_in_groups, store
from compression.pruning.planning import planner


@dataclass(frozen=True)
class MagnitudeParams(PatternParams):
    """How much is removed, and from where."""


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
    planner=planner(lambda weight, stats: weight.abs()),
    after=frozenset({"dense"}),
    identity={"sparsity": 0.0},
    essay=__doc__,
)
