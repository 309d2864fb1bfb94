"""Mathematics of methods that change a layer's weights by what its inputs are: H = X^T X, and what it tells.

GPTQ and its descendants store one input after another and let those to come make up for each error. With U
the upper Cholesky factor of the inverse of the damped H, storing input c as w' leaves the scaled error e =
(w_c - w') / U[c, c], and the inputs after it change by -e U[c, c+1:] (Frantar et al. 2022, 2210.17323,
equations 2 and 3). What w' is, a method decides: a mark of a grid, a 16-bit value, either. Whatever it is,
the sum of all e^2 equals tr(D H D^T) for the final difference D.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from compression.base import CalibrationError


def inverse_factor(gram: Tensor, damping: float) -> tuple[Tensor, float]:
    """(U, damping used): upper Cholesky factor of (H + damping * mean(diag H) I)^-1, float64 [in, in].

    gram [in, in]: any positive multiple of X^T X; inputs that never fire get a diagonal of 1. Damping rises
    tenfold, up to 1, while the matrix is not positive definite. Raises CalibrationError beyond that or if H
    is not finite.
    """
    hessian = gram.double()
    if not bool(torch.isfinite(hessian).all()):
        raise CalibrationError(
            "the calibration activations are not finite (overflow in the model); use another text "
            "or compute in 32 bits",
            code="gram_not_finite",
        )
    diagonal = hessian.diagonal()
    scale = diagonal.mean().clamp_min(torch.finfo(torch.float64).tiny)
    used = damping
    while used <= 1.0:
        damped = hessian + torch.diag(torch.where(diagonal == 0, scale, 0.0) + used * scale)
        # with J the reversal, H = J L L^T J gives H^-1 = U^T U for U = J L^-1 J: one factor, one triangular
        # inverse
        factor, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed:
            identity = torch.eye(len(damped), dtype=damped.dtype, device=damped.device)
            return torch.linalg.solve_triangular(factor, identity, upper=False).flip(0, 1), used
        used *= 10
    raise CalibrationError(
        "H is not positive definite even with full damping; give more calibration tokens",
        code="gram_not_positive",
    )


def compensate(
    live: Tensor, factor: Tensor, starts: Sequence[int], choose: Callable[[int, Tensor], Tensor]
) -> float:
    """Replace the inputs of live [in, out] in turn by what `choose` stores for them; returns the sum of e^2.

    factor: U, float32 upper [in, in]. starts: where each block of inputs begins; updates of later blocks wait
    until a block is through. choose(c, errors) -> [out]: at c's turn `live` holds what c and all inputs after
    it in its block should be by then; errors [c - start, out] are those of the block's inputs before c, which
    later blocks have not seen yet.
    """
    n, total = len(live), 0.0
    for start, stop in zip(starts, [*starts[1:], n], strict=True):
        errors = torch.empty_like(live[start:stop])
        for c in range(start, stop):
            value = choose(c, errors[: c - start])
            error = (live[c] - value).div_(factor[c, c])
            live[c] = value
            errors[c - start] = error
            if c + 1 < stop:
                live[c + 1 : stop].addr_(factor[c, c + 1 : stop], error, alpha=-1)
        if stop < n:
            live[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
        total += float(errors.double().square().sum())
    return total


def output_error(weight: Tensor, new: Tensor, gram: Tensor) -> float:
    """||(W - W') X||^2 / ||W X||^2 from the Gram matrix of X."""
    difference = weight - new
    return float(((difference @ gram) * difference).sum() / ((weight @ gram) * weight).sum().clamp_min(1e-30))
