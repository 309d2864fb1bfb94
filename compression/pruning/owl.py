"""OWL: blocks with many outliers keep more of their weights, at the same mean.

A few weights of a language model meet inputs that are far larger than the others. Yin et al. 2023, "Outlier
Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High Sparsity", arXiv 2310.05175,
count how many of them each block holds. With the score A[i, j] = |W[i, j]| ||X_j|| of Wanda over all matrices
of block l, and A's mean over them,

    D_l = share of the entries with A[i, j] > M mean(A)                                        (section 3.2)
    kept_l = c + 2 lambda (D_l - min D) / (max D - min D)

and c is chosen so that the mean of kept_l is the share that shall stay. M = 5 and lambda = 0.08 are the
authors' defaults. The scores come from the uncompressed model, as in the authors' code.

Deviation: the mean counts each block by its number of weights, so that the asked share is met even if blocks
differ in size. If all blocks hold equally many outliers, all lose the same share.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from compression.base import BadParam

MOST = 0.95  # the largest share that a block may lose, as the main knob has it


def outlier_share(scores: Sequence[Tensor], factor: float) -> float:
    """D of a block: the share of all entries of its scores [out, in] above `factor` times their mean."""
    count = sum(score.numel() for score in scores)
    mean = sum(float(score.double().sum()) for score in scores) / count
    return sum(int((score > factor * mean).sum()) for score in scores) / count


def sparsities(outliers: Tensor, weights: Tensor, sparsity: float, spread: float) -> Tensor:
    """The share that each block loses, float64 [blocks].

    outliers: D of each block [blocks]. weights: how many weights it has [blocks]. The mean of the result,
    counted by weights, is `sparsity`. Raises BadParam if a block would lose less than nothing or more than
    `MOST`.
    """
    outliers, weights = outliers.double(), weights.double()
    width = outliers.max() - outliers.min()
    kept = (outliers - outliers.min()) * (2 * spread / width if width > 0 else 0.0)
    lost = sparsity - kept + (kept * weights).sum() / weights.sum()
    least, most = float(lost.min()), float(lost.max())
    if least < -1e-12 or most > MOST + 1e-12:
        raise BadParam(
            f"sparsity = {sparsity} with spread = {spread} takes {least:.3f} to {most:.3f} of a block; "
            f"allowed: 0 to {MOST}. Lower spread, or choose another sparsity.",
            name="spread",
            got=spread,
            allowed=f"what leaves every block between 0 and {MOST}",
        )
    return lost.clamp(0.0, MOST)
