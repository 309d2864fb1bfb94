"""Wanda: remove the weights that matter least for what the layer really sees.

Magnitude pruning looks at weights alone. Wanda multiplies each weight by the typical size of its input: a
small weight on a loud input stays, a larger one on a silent input goes. The comparison is made within each
output row, so every output keeps the same number of inputs. One pass over a few thousand tokens gives the
input sizes; nothing is retrained and what stays keeps its exact value. At 50 % it is far better than
magnitude and nearly as good as methods that solve a least-squares problem for each layer.

Sun, Liu, Bair, Kolter 2023, "A Simple and Effective Pruning Approach for Large Language Models", arXiv
2306.11695, equation 1: score[i, j] = |W[i, j]| * ||X[:, j]||_2; in every row the lowest share is removed,
exactly floor(sparsity * in) weights. n:m: the m - n lowest of every m neighbouring inputs.

As in the authors' code, the input norms of a block come from one pass before any of its weights goes; what
enters the block has passed the pruned ones before it. Deviation: ||X_j|| is not divided by the number of
samples, which changes no ranking.

Stored as one bit a place and the kept weights in 16 bits (2:4: two bits a kept weight): 9 bits a weight at 50
%. Smaller is not faster by itself: it takes a kernel that reads this layout.

Cost: about two forward passes over the calibration tokens and one sort a row.
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
class WandaParams(Params):
    """How much is removed, and in which pattern."""

    sparsity: float = sparsity_param()
    pattern: str = pattern_param()


def compress(site: Site, stats: Stats, params: WandaParams) -> Edit:
    """Prune the weight [out, in] of one linear by |w| times its input's norm."""
    score = site.weight.abs() * stats.sum_sq.sqrt()
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
    stats=frozenset({"sum_sq"}),
    stream="block",
    after=frozenset({"dense"}),
    identity={"sparsity": 0.0},
    essay=__doc__,
)
