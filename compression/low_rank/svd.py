"""Truncated SVD: replace each matrix by the product of two thin ones.

A matrix of 576 x 576 that is the product of a 576 x 230 and a 230 x 576 matrix has a fifth fewer numbers. The
singular value decomposition finds the product that is nearest to the original weights (Eckart and Young
1936). It needs no data, and that is its weakness: it spends its rank on directions in which the weights are
large, not on those that the layer's inputs use. The matrices of language models are not of low rank, so plain
SVD breaks a model early; it is here as the baseline of the low-rank family.

W [out, in] becomes U_r (U_r^T W) with U_r the eigenvectors of W W^T (or, for tall matrices, (W V_r) V_r^T
with those of W^T W) for the largest eigenvalues: the same as keeping the r largest singular values. The
squared error is the sum of the squared singular values left out. The rank follows from the share of
parameters to remove, r = floor((1 - removed) out in / (out + in)); a square matrix breaks even at half its
size.

Deviation: none. Stored as two 16-bit matrices, multiplied one after the other.

Cost: an eigenvalue problem of the smaller side a matrix, in 64 bits; no calibration.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compression.base import Edit, LinearMethod, Params, Site, Stats
from compression.low_rank.rank import cost, project, rank_for, removed_param, top_eigenvectors


@dataclass(frozen=True)
class SvdParams(Params):
    """How much is removed."""

    removed: float = removed_param()


def compress(site: Site, stats: Stats, params: SvdParams) -> Edit:
    """Factorise the weight [out, in] of one linear."""
    if params.removed == 0:
        return Edit()
    weight = site.weight.double()
    out, n = weight.shape
    rank = rank_for((out, n), params.removed)
    if out <= n:
        basis = top_eigenvectors(weight @ weight.T, rank)
    else:
        basis = torch.linalg.qr(weight @ top_eigenvectors(weight.T @ weight, rank)).Q
    return project(site, basis)


METHOD = LinearMethod(
    name="svd",
    title="Truncated SVD",
    family="low_rank",
    paper="https://doi.org/10.1007/BF02288367",
    params=SvdParams,
    compress=compress,
    cost=cost,
    stores="low_rank",
    after=frozenset({"dense"}),
    identity={"removed": 0.0},
    essay=__doc__,
)
