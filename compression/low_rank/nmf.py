"""NMF: thin matrices without negative numbers, so that parts only ever add up.

Non-negative matrix factorisation explains data as sums of parts: what one part adds, no other part can take
away. This makes its factors readable if the data are counts or brightness. Weights are neither: they have
both signs and no parts, so NMF keeps far less of them than SVD does at the same rank. It is here to show what
this constraint costs.

Lee and Seung 1999, "Learning the parts of objects by non-negative matrix factorization", Nature 401. It needs
non-negative data, so W = W+ - W- is split by sign, each part is factorised with half the rank, and both are
stored as one pair, W' = [U+, -U-] [V+; V-]. Or, as `semi`, one factorisation of W with all of the rank in
which V alone is kept from negative numbers (Ding, Li and Jordan 2010, "Convex and Semi-Nonnegative Matrix
Factorizations").

The factors are found by hierarchical alternating least squares (Cichocki et al. 2007): each row of V in turn
is set to the best non-negative row while all else stands still, then each column of U. With A = U^T W and B =
U^T U,

    V_k <- max(0, (A_k - sum over j != k of B_kj V_j) / B_kk)

No step can raise ||W - U V||^2. The error falls much faster than with Lee and Seung's multiplicative updates,
and no entry gets stuck at zero. W itself is needed only for A, twice a round.

Deviations: rows are updated in turn, not multiplicatively; a fixed number of rounds from a fixed seed. If the
rank is odd, the positive part gets one more than the negative. By Eckart and Young the error is never below
SVD's at the same rank.

Cost: no calibration. A round takes two products of the size of the matrix and a pass over each factor, in 32
bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compression.base import Cost, Edit, LinearMethod, Params, Site, Stats, param
from compression.edits import stored
from compression.low_rank.rank import rank_for, removed_param
from compression.packed.low_rank import LowRank

TINY = 1e-12  # replaces a squared length of 0, so that a row of zeros stays zero


@dataclass(frozen=True)
class NmfParams(Params):
    """How much is removed, which factors are non-negative, how long they are improved."""

    removed: float = removed_param()
    signs: str = param(
        "split",
        "Split: positive and negative weights apart, all factors non-negative. Semi: one factor only.",
        choices=("split", "semi"),
        level="advanced",
    )
    updates: int = param(
        10, "How often all rows of both factors are improved in turn.", lo=1, hi=200, level="advanced"
    )


def sweep(factor: Tensor, target: Tensor, gram: Tensor, low: float) -> None:
    """Improve the rows of `factor` [rank, n] in turn, in place.

    Each becomes the best row >= low while the others stay fixed.

    target = other^T W [rank, n]; gram = other^T other [rank, rank].
    """
    length = gram.diagonal().clamp_min(TINY).unsqueeze(1)
    target, gram = target / length, gram / length
    gram.fill_diagonal_(0)
    for k in range(len(factor)):
        factor[k] = torch.addmv(target[k], factor.T, gram[k], alpha=-1).clamp_min_(low)


def factorise(
    weight: Tensor, rank: int, updates: int, signed: bool = False, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """(U [out, rank], V [rank, in]) near weight [out, in]; V >= 0, and U >= 0 unless `signed`."""
    out, n = weight.shape
    random = torch.Generator().manual_seed(seed)
    level = (weight.abs().mean() / max(rank, 1)).sqrt()
    u = level * (torch.randn if signed else torch.rand)(rank, out, generator=random).to(weight)
    v = level * torch.rand(rank, n, generator=random).to(weight)
    for _ in range(updates):
        sweep(v, u @ weight, u @ u.T, 0.0)
        sweep(u, v @ weight.T, v @ v.T, -torch.inf if signed else 0.0)
    share = (v.norm(dim=1, keepdim=True).clamp_min(TINY) / u.norm(dim=1, keepdim=True).clamp_min(TINY)).sqrt()
    return (u * share).T, v / share  # with equal lengths, so that both fit 16 bits well


def compress(site: Site, stats: Stats, params: NmfParams) -> Edit:
    """Factorise the weight [out, in] of one linear."""
    if params.removed == 0:
        return Edit()
    weight, rank = site.weight, rank_for(site.weight.shape, params.removed)
    if params.signs == "semi":
        u, v = factorise(weight, rank, params.updates, signed=True)
    else:
        (plus, up), (minus, down) = (
            factorise(part.clamp_min(0), r, params.updates)
            for part, r in ((weight, rank - rank // 2), (-weight, rank // 2))
        )
        u, v = torch.cat([plus, -minus], 1), torch.cat([up, down])
    packed = LowRank.encode(u, v)
    error = float((weight - packed.dequantize()).square().sum() / weight.square().sum().clamp_min(1e-30))
    return stored(site, packed, (), rank=rank, weight_error=error)


def cost(shape: tuple[int, int], params: NmfParams, tokens: int) -> Cost:
    """Bytes of both factors in 16 bits; the products of all rounds."""
    out, n = shape
    if params.removed == 0:
        return Cost(bytes=2 * out * n, flops=0.0)
    rank, parts = rank_for(shape, params.removed), 2 if params.signs == "split" else 1
    flops = params.updates * rank * (4.0 * out * n + 4.0 * rank / parts * (out + n))
    return Cost(bytes=2 * rank * (out + n), flops=flops, peak_bytes=4 * (2 * out * n + 4 * rank * (out + n)))


METHOD = LinearMethod(
    name="nmf",
    title="NMF",
    family="low_rank",
    paper="https://doi.org/10.1038/44565",
    params=NmfParams,
    compress=compress,
    cost=cost,
    stores="low_rank",
    after=frozenset({"dense"}),
    identity={"removed": 0.0},
    essay=__doc__,
)
