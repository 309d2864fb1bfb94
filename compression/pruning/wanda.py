"""Wanda: remove the weights that matter least for what the layer really sees.

Magnitude pruning looks at weights alone. Wanda multiplies each weight by the typical size of its input: a
small weight on a loud input stays, a larger weight on a silent input goes. The comparison is made within each
output row, so every output keeps the same number of inputs. One pass over a few thousand tokens gives the
input sizes. Nothing is retrained, and the kept weights keep their exact values. At 50 % it is far better than
magnitude and nearly as good as methods that solve a least-squares problem for each layer.

Sun, Liu, Bair, Kolter 2023, "A Simple and Effective Pruning Approach for Large Language Models", arXiv
2306.11695, equation 1: score[i, j] = |W[i, j]| * ||X[:, j]||_2; in every row the lowest share is removed,
exactly floor(sparsity * in) weights. n:m: the m - n lowest of every m neighbouring inputs.

As in the authors' code, the input norms of a block come from one pass before any of its weights is removed;
the hidden states that enter the block have passed the pruned blocks before it. Deviation: ||X_j|| is not
divided by the number of samples, which changes no ranking.

`allocation` owl lets blocks lose different shares (Yin et al. 2023, OWL, arXiv 2310.05175). The more entries
|W[i, j]| ||X_j|| of a block lie above `outlier_factor` times their mean, the more of the block stays. The
shares of two blocks differ by at most twice `spread`, and their mean is the asked share. `permute` reorders
channels before n of m are kept (Pool and Yu 2021). It reorders the feed-forward's channels, by the rows of
gate and up, and the channels of a head's values, by the rows of v. The model computes the same as before, in
the same time. All blocks share the channels of the residual stream, so the inputs of q, k, v, gate and up
keep their order.

Stored as one bit a place and the kept weights in 16 bits (2:4: two bits a kept weight): 9 bits a weight at 50
%. Smaller is not faster by itself: it takes a kernel that reads this layout.

Cost: about two forward passes over the calibration tokens and one sort a row; one pass more with `allocation`
owl or `permute`.
"""

from __future__ import annotations

from dataclasses import dataclass

from compression.base import Edit, LinearMethod, Site, Stats
from compression.pruning.patterns import (
    PatternParams,
    cost,
    kept_share,
    loud,
    lowest,
    lowest_in_groups,
    store,
)
from compression.pruning.planning import PLANNER


@dataclass(frozen=True)
class WandaParams(PatternParams):
    """How much is removed, and from where."""


def compress(site: Site, stats: Stats, params: WandaParams) -> Edit:
    """Prune the weight [out, in] of one linear by |w| times its input's norm."""
    score = loud(site.weight, stats)
    if params.pattern == "unstructured":
        pruned = lowest(score, int(params.sparsity * score.shape[1]))
    else:
        pruned = lowest_in_groups(score, params.pattern, site.path)
    return store(site, pruned, removed_score=float(score[pruned].sum() / score.sum()))


METHOD = LinearMethod(
    name="wanda",
    title="Wanda",
    family="pruning",
    paper="https://arxiv.org/abs/2306.11695",
    params=WandaParams,
    compress=compress,
    cost=cost,
    stores="bitmask",
    shown_first=True,
    kept_share=kept_share,
    planner=PLANNER,
    stats=frozenset({"sum_sq"}),
    stream="block",
    after=frozenset({"dense"}),
    identity={"sparsity": 0.0},
    essay=__doc__,
)
