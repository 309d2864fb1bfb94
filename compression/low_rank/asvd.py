"""ASVD: truncated SVD of a weight whose loud inputs were made louder first.

Plain SVD treats all inputs of a layer alike, though a few of them are many times louder than the rest: an
error in a weight that meets a loud input does the harm. ASVD multiplies each column of the weight by a power
of its input's mean absolute value, truncates the SVD of that, and divides the columns of the result again.
Loud inputs weigh more, so the error moves to where it is hardly heard. It looks at each input by itself;
SVD-LLM, which knows how inputs move together, is never worse on the calibration text.

Yuan et al. 2023, "ASVD: Activation-aware Singular Value Decomposition for Compressing Large Language Models",
arXiv 2312.05821. With S = diag(mean|x_j|^alpha + 1e-6) the weight is W S S^-1, and W' = U_r Sigma_r (V_r^T
S^-1) from the SVD of W S. We use the equal form without the inverse, W' = U_r (U_r^T W), where U_r are the
eigenvectors of W S^2 W^T for the largest eigenvalues. alpha = 0 is plain SVD; the authors take 0.5.

Deviations: every matrix loses the same share. The authors search a share for each layer, by measuring the
perplexity of the model with that layer alone cut to each of six shares; that takes hundreds of passes over
the model and is left out. Their code truncates with a randomised SVD without oversampling and includes the
output head; here the decomposition is complete and the head stays as it is. U is orthonormal, while the
authors give a root of Sigma to either side: the same product. The activations are the original model's.

Cost: one forward pass over the calibration tokens; one or two eigenvalue problems a matrix, in 64 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from compression.base import CalibrationError, Edit, LinearMethod, Params, Site, Stats, param
from compression.low_rank.rank import cost, project, rank_for, removed_param
from compression.low_rank.svd_llm import output_basis

FLOOR = 1e-6  # added to S, so that an input that is always 0 still counts a little


@dataclass(frozen=True)
class AsvdParams(Params):
    """How much is removed, and how much loudness counts."""

    removed: float = removed_param()
    alpha: float = param(
        0.5,
        "Power of the mean absolute activation that scales a weight's column. 0 is plain SVD.",
        lo=0.0,
        hi=2.0,
        step=0.1,
        level="advanced",
    )


def loudness(mean_abs: Tensor, alpha: float) -> Tensor:
    """The diagonal of S [in], from mean |x| [in]."""
    return mean_abs.double() ** alpha + FLOOR


def compress(site: Site, stats: Stats, params: AsvdParams) -> Edit:
    """Factorise the weight [out, in] of one linear, its columns scaled by the loudness of their inputs."""
    if params.removed == 0:
        return Edit()
    scale = loudness(stats.mean_abs, params.alpha)
    if not bool(scale.isfinite().all()):
        raise CalibrationError(
            "the calibration activations are not finite; use another text", code="gram_not_finite"
        )
    weight = site.weight.double()
    return project(site, output_basis(weight, scale.square().diag(), rank_for(weight.shape, params.removed)))


METHOD = LinearMethod(
    name="asvd",
    title="ASVD",
    family="low_rank",
    paper="https://arxiv.org/abs/2312.05821",
    params=AsvdParams,
    compress=compress,
    cost=cost,
    stores="low_rank",
    stats=frozenset({"mean_abs"}),
    stream="original",
    after=frozenset({"dense"}),
    identity={"removed": 0.0},
    essay=__doc__,
)
