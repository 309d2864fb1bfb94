"""The rank that a budget allows, and what a factorised layer costs; shared by the low-rank methods."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from compression.base import Cost, Edit, Site, param
from compression.edits import stored
from compression.packed.low_rank import LowRank


def removed_param():
    """The main knob: the share of a matrix's parameters that is removed."""
    return param(
        0.2,
        "Share of each matrix's parameters that is removed.",
        lo=0.0,
        hi=0.95,
        step=0.05,
        main=True,
        ends=("nothing removed, same", "almost all removed, worse"),
    )


def allocation_param(default: str, *choices: str):
    """The knob that divides the removed share among the matrices."""
    return param(
        default,
        "How what is removed is divided among the matrices: the same share everywhere, or more where it "
        "harms less. Together they keep what is asked for.",
        choices=choices,
        label="choice",
        level="advanced",
    )


def inputs_param(default: str):
    """The knob that says which model's activations the factors are fitted to."""
    return param(
        default,
        "Whose activations the factors are fitted to: the original model's, or those of the model whose "
        "matrices before are compressed already.",
        choices=("original", "compressed"),
        label="choice",
        level="advanced",
    )


def rank_for(shape: tuple[int, int], removed: float) -> int:
    """The rank whose two factors hold (1 - removed) of the matrix's parameters.

    floor((1 - removed) out in / (out + in)), at least 1.
    """
    out, n = shape
    return max(1, int((1 - removed) * out * n / (out + n)))


def top_eigenvectors(symmetric: Tensor, rank: int) -> Tensor:
    """The eigenvectors [n, rank] of the largest eigenvalues of a symmetric matrix [n, n]."""
    return torch.linalg.eigh(symmetric).eigenvectors[:, -rank:].flip(1)


def project(site: Site, basis: Tensor, **figures: float) -> Edit:
    """Store W as U (U^T W) for an orthonormal U [out, rank]."""
    packed = LowRank.encode(basis.float(), (basis.T @ site.weight.double()).float())
    return stored(site, packed, (), rank=basis.shape[1], **figures)


def cost(shape: tuple[int, int], params, tokens: int) -> Cost:
    """Bytes of both factors in 16 bits; an eigenproblem of the smaller side, and the products around it."""
    out, n = shape
    if params.removed == 0:
        return Cost(bytes=2 * out * n, flops=0.0)
    rank, small = rank_for(shape, params.removed), min(out, n)
    flops = 20.0 * small**3 + 4.0 * out * n * small + 2.0 * tokens * n * n
    return Cost(bytes=2 * rank * (out + n), flops=flops, peak_bytes=8 * (3 * out * n + 3 * n * n))


def divided_cost(shape: tuple[int, int], params, tokens: int) -> Cost:
    """`cost`, with the eigenvalue problems once more if `allocation` divides the share by them."""
    plain = cost(shape, params, tokens)
    return dataclasses.replace(plain, flops=plain.flops * (1 if params.allocation == "uniform" else 2))
