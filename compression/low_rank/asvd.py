"""ASVD: truncated SVD of a weight in which the columns of loud inputs count more.

An input of a layer is loud if its activations are large. Plain SVD treats all inputs alike, though a few of
them are many times louder than the rest, and an error in a weight that meets a loud input does most harm.
ASVD multiplies each column of the weight by a power of its input's mean absolute value, truncates the SVD of
the product, and divides the columns of the result again. So the columns of loud inputs count more, and the
error moves to quiet inputs. ASVD looks at each input by itself. SVD-LLM knows how inputs move together, and
is never worse on the calibration text.

Yuan et al. 2023, "ASVD: Activation-aware Singular Value Decomposition for Compressing Large Language Models",
arXiv 2312.05821. With S = diag(mean|x_j|^alpha + 1e-6) the weight is W S S^-1, and W' = U_r Sigma_r (V_r^T
S^-1) from the SVD of W S. We use the equal form without the inverse, W' = U_r (U_r^T W), where U_r are the
eigenvectors of W S^2 W^T for the largest eigenvalues. alpha = 0 is plain SVD; the authors take 0.5.

`allocation` search is the paper's sensitivity-based rank search. Each matrix alone is cut to 0.4, 0.5 ... 0.9
of its parameters (0.1 ... 0.9 if more than half are to go), and the model's loss is measured each time. Each
matrix then gets the smallest share whose loss lies below a common threshold. The threshold is chosen so that
the kept parameters fit the budget. Some matrices stay whole. `allocation` uniform takes the same share of
every matrix, as SVD and SVD-LLM do, so that the three can be compared.

Deviations: the search measures on `search_tokens` tokens of one window, where the authors take 32 windows of
2,048. It starts each measurement at the block of the matrix, which gives the same loss. The authors' code
truncates with a randomised SVD without oversampling and includes the output head; here the decomposition is
complete and the head stays as it is. Here U is orthonormal. The authors multiply the root of Sigma into each
factor, which gives the same product. The activations are the original model's.

Cost: one forward pass over the calibration tokens; one or two eigenvalue problems a matrix, in 64 bits. The
search needs as many eigenvalue problems again. It also needs about half a pass over its tokens for each of
six shares of every matrix: 1,260 half passes in a model of 210 matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from compression.base import CalibrationError, Edit, LinearMethod, Params, Site, Stats, param
from compression.low_rank.rank import allocation_param, divided_cost, project, rank_for, removed_param
from compression.low_rank.search import planner, search_tokens_param
from compression.low_rank.svd_llm import output_basis

STATS = frozenset({"mean_abs"})
FLOOR = 1e-6  # added to S, so that an input that is always 0 still counts a little


@dataclass(frozen=True)
class AsvdParams(Params):
    """How much is removed, how it is divided among the matrices, and how much loudness counts."""

    removed: float = removed_param()
    allocation: str = allocation_param("search", "search", "uniform")
    search_tokens: int = search_tokens_param()
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


def basis(weight: Tensor, stats: Stats, rank: int, params: AsvdParams) -> Tensor:
    """The basis [out, rank] of the weight [out, in] with columns scaled by the loudness of their inputs.

    Raises CalibrationError if the loudness isn't finite.
    """
    assert stats.mean_abs is not None
    scale = loudness(stats.mean_abs, params.alpha)
    if not bool(scale.isfinite().all()):
        raise CalibrationError(
            "the calibration activations are not finite; use another text", code="gram_not_finite"
        )
    return output_basis(weight, scale.square().diag(), rank)


def compress(site: Site, stats: Stats, params: AsvdParams) -> Edit:
    """Factorise the weight [out, in] of one linear."""
    if params.removed == 0:
        return Edit()
    weight = site.weight.double()
    return project(site, basis(weight, stats, rank_for(weight.shape, params.removed), params))


METHOD = LinearMethod(
    name="asvd",
    title="ASVD",
    family="low_rank",
    paper="https://arxiv.org/abs/2312.05821",
    params=AsvdParams,
    compress=compress,
    cost=divided_cost,
    stores="low_rank",
    stats=STATS,
    stream="original",
    planner=planner(STATS, basis),
    after=frozenset({"dense"}),
    identity={"removed": 0.0},
    tiny={"search_tokens": 32},
    essay=__doc__,
)
