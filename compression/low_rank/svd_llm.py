"""SVD-LLM: the low-rank product that changes the layer's outputs least.

Plain SVD keeps the directions that are large in the weights. SVD-LLM keeps those that are large in the
layer's outputs on real text. For every rank this is the best possible choice on the calibration tokens, and
the gap to plain SVD is huge (LLaMA-7B with 20 % removed: perplexity 7.9 against 20,061 in the paper). It
still costs more quality than quantization at the same size, because the matrices aren't of low rank.

Wang et al. 2024, "SVD-LLM: Truncation-aware Singular Value Decomposition", arXiv 2403.07378. The paper
whitens with a Cholesky factor L of G = X X^T, truncates W L and multiplies by the inverse of L. We use the
equal form without an inverse: W' = U_r U_r^T W, where U_r are the eigenvectors of W G W^T for the largest
eigenvalues. It is the same matrix when G is invertible and still right when G is not (few tokens, silent
inputs). The error on the calibration data, ||(W - W') X||^2, is exactly the sum of the eigenvalues left out
(theorem 3.2 of the paper in this form). For tall matrices the same basis comes from the smaller eigenproblem
of S W^T W S with S the square root of G.

The activations are the original model's, as in the authors' code. In the compressed model a layer gets other
inputs X', because the blocks before it make errors. For them the paper's first version has a closed form,
`update`: V = U_r^T W stays, and the left factor is fitted again,

    U' = argmin ||W X' - U V X'||^2 = W G' V^T (V G' V^T)^-1,    G' = X' X'^T

where X' has passed the compressed blocks. If X' = X, the result is U_r. `inputs` compressed goes further:
both factors are the optimum for the inputs that the compressed matrices before give.

`allocation` loss divides the removed share R as SVD-LLM V2 does (Wang et al. 2025, arXiv 2503.12340,
algorithm 1). Among the matrices of one role over all layers, matrix i loses a share in proportion to 1 / log
L_i, with L_i = ||(W - W') X|| at the share R; the mean is R. `allocation` search is ASVD's rank search with
these factors.

Deviations: the inverse-free form. Losses L_i below e count as e, because 1 / log L has no meaning there; no
matrix loses more than 95 %, and the others then make up for it; matrices that differ in size count by their
parameters. SVD-LLM wants many tokens: at least 8 for every input.

Cost: one forward pass over the calibration tokens; one or two eigenvalue problems a matrix, in 64 bits.
`update` takes three passes, and solves the normal equations, whose size is the rank. `allocation` loss takes
all this twice, and search costs what it costs in ASVD.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compression.base import (
    CalibrationError,
    Context,
    Edit,
    LinearMethod,
    Note,
    Params,
    Plan,
    Planner,
    Site,
    Stats,
    Stream,
    param,
)
from compression.bundle import Bundle
from compression.edits import stored
from compression.inputs import observed
from compression.low_rank.rank import (
    allocation_param,
    divided_cost,
    inputs_param,
    rank_for,
    removed_param,
    top_eigenvectors,
)
from compression.low_rank.search import planner, search_tokens_param
from compression.packed.low_rank import LowRank

STATS = frozenset({"gram"})
TOKENS_PER_INPUT = 8
MOST = 0.95  # the largest share that a matrix may lose, as the main knob has it


@dataclass(frozen=True)
class SvdLlmParams(Params):
    """How much is removed, how it is divided among the matrices, and which inputs count."""

    removed: float = removed_param()
    allocation: str = allocation_param("uniform", "uniform", "loss", "search")
    search_tokens: int = search_tokens_param()
    inputs: str = inputs_param("original")
    update: bool = param(
        False,
        "Fits the left factor again, to what the compressed blocks before give.",
        level="advanced",
        when={"inputs": "original"},
    )

    @property
    def updates(self) -> bool:
        """Whether the left factor is fitted again."""
        return self.update and self.inputs == "original"


def stream(params: SvdLlmParams) -> Stream:
    """Which model the inputs come from."""
    return "both" if params.updates else "compressed" if params.inputs == "compressed" else "original"


def output_basis(weight: Tensor, gram: Tensor, rank: int) -> Tensor:
    """An orthonormal basis [out, rank] of the top eigenvectors of W G W^T.

    weight [out, in], gram [in, in], float64.
    """
    out, n = weight.shape
    if out <= n:
        return top_eigenvectors(weight @ gram @ weight.T, rank)
    values, vectors = torch.linalg.eigh(gram)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    scaled = weight @ root
    return torch.linalg.qr(scaled @ top_eigenvectors(scaled.T @ scaled, rank)).Q


def basis(weight: Tensor, stats: Stats, rank: int, params: Any) -> Tensor:
    """`output_basis` for the inputs that `stats` describes.

    Raises CalibrationError if their Gram matrix isn't finite.
    """
    assert stats.gram is not None
    if not bool(torch.isfinite(stats.gram).all()):
        raise CalibrationError(
            "the calibration activations are not finite; use another text", code="gram_not_finite"
        )
    return output_basis(weight, stats.gram.double(), rank)


def fitted(weight: Tensor, right: Tensor, gram: Tensor) -> Tensor:
    """The left factor [out, rank] with which U V X is nearest to W X, for a right factor V [rank, in].

    weight [out, in] and gram X X^T [in, in] in float64. Directions in which V X is silent get 0.
    """
    seen = gram @ right.T
    return weight @ seen @ torch.linalg.pinv(right @ seen, rtol=1e-10, hermitian=True)


def lost_share(weight: Tensor, new: Tensor, gram: Tensor) -> float:
    """||(W - W') X||^2 / ||W X||^2 for weights [out, in] and the Gram matrix of X."""
    lost = weight - new
    total = ((weight @ gram) * weight).sum().clamp_min(1e-30)
    return max(float(((lost @ gram) * lost).sum() / total), 0.0)


def compress(site: Site, stats: Stats, params: SvdLlmParams) -> Edit:
    """Factorise the weight [out, in] of one linear for the inputs that `stats` describes."""
    if params.removed == 0:
        return Edit()
    weight = site.weight.double()
    left = basis(weight, stats.original or stats, rank_for(weight.shape, params.removed), params)
    right = left.T @ weight
    assert stats.gram is not None
    gram = stats.gram.double()
    if stats.original is not None:
        left = fitted(weight, right, gram)
    edit = stored(
        site,
        LowRank.encode(left.float(), right.float()),
        rank=left.shape[1],
        output_error=lost_share(weight, left @ right, gram),
    )
    if stats.tokens >= TOKENS_PER_INPUT * weight.shape[1] or site.layer or site.role != "down":
        return edit
    note = Note("few_tokens", {"tokens": stats.tokens, "advised": TOKENS_PER_INPUT * weight.shape[1]})
    return dataclasses.replace(edit, notes=(note,))


# --- shares by loss ---


def by_loss(losses: Tensor, sizes: Tensor, removed: float) -> Tensor:
    """The share that each matrix of one role loses, float64 [matrices] (SVD-LLM V2, algorithm 1).

    losses: ||(W - W') X|| with the share `removed` taken off each. sizes: their parameters. The mean by
    parameters is `removed`, and none loses more than `MOST`.
    """
    weights, sizes = 1 / losses.double().log().clamp_min(1.0), sizes.double()
    shares = torch.full_like(weights, MOST)
    free = torch.ones_like(weights, dtype=torch.bool)
    while bool(free.any()):
        budget = removed * sizes.sum() - MOST * sizes[~free].sum()
        shares[free] = weights[free] * budget / (sizes * weights)[free].sum()
        over = free & (shares > MOST)
        if not bool(over.any()):
            break
        shares[over], free = MOST, free & ~over
    return shares


def divided(bundle: Bundle, context: Context, params: SvdLlmParams) -> Plan:
    """Each linear's own share, by the losses within its role."""
    found: dict[str, list[tuple[str, float, int]]] = defaultdict(list)
    total = len(bundle.geometry.layers)
    for layer, groups, stats in observed(
        bundle, context.windows, STATS, lambda: context.recorder.check("dividing the share")
    ):
        context.recorder.progress("compress", layer, total)
        for group, own in zip(groups, stats, strict=True):
            for path, role in group:
                weight = bundle.module.get_submodule(path).weight.detach().double()
                left = basis(weight, own, rank_for(tuple(weight.shape), params.removed), params)
                gram = own.gram.double()
                lost = weight - left @ (left.T @ weight)
                loss = float(((lost @ gram) * lost).sum().clamp_min(0).sqrt())
                found[role].append((path, loss, weight.numel()))
    own_params = {}
    for rows in found.values():
        shares = by_loss(
            torch.tensor([loss for _, loss, _ in rows]),
            torch.tensor([size for _, _, size in rows]),
            params.removed,
        )
        for (path, _, _), share in zip(rows, shares.tolist(), strict=True):
            own_params[path] = dataclasses.replace(params, removed=share)
    removed = [p.removed for p in own_params.values()]
    note = Note("shares_by_loss", {"least": 100 * min(removed), "most": 100 * max(removed)})
    return Plan(params=own_params, edit=Edit(notes=(note,)))


SEARCH = planner(STATS, basis)


def plan(bundle: Bundle, context: Context, params: SvdLlmParams) -> Plan:
    """The search's shares, or those by loss."""
    return (SEARCH.find if params.allocation == "search" else divided)(bundle, context, params)


def planned_tokens(params: SvdLlmParams, linears: int, tokens: int) -> float:
    """Tokens that `plan` sends through the whole model."""
    return SEARCH.tokens(params, linears, tokens) if params.allocation == "search" else float(tokens)


METHOD = LinearMethod(
    name="svd_llm",
    title="SVD-LLM",
    family="low_rank",
    paper="https://arxiv.org/abs/2403.07378",
    params=SvdLlmParams,
    compress=compress,
    cost=divided_cost,
    stores="low_rank",
    shown_first=True,
    stats=STATS,
    stream=stream,
    planner=Planner(
        find=plan,
        tokens=planned_tokens,
        wanted=lambda params: params.allocation != "uniform" and params.removed > 0,
    ),
    after=frozenset({"dense"}),
    identity={"removed": 0.0},
    tiny={"search_tokens": 32},
    essay=__doc__,
)
