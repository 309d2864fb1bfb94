"""Mathematics of methods that change a layer's weights by means of H = X^T X, where X are the layer's inputs.

GPTQ and its descendants store the weights of one input after another, and let the inputs that come later make
up for each error. Let U be the upper Cholesky factor of the inverse of the damped H. Storing the weights w_c
of input c as w' leaves the scaled error e = (w_c - w') / U[c, c], and the weights of later inputs change by
-e U[c, c+1:] (Frantar et al. 2022, 2210.17323, equations 2 and 3). A method decides what w' is: a value of a
grid, a 16-bit value, or either. In any case, the sum of all e^2 equals tr(D H D^T) for the final difference
D.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from compression.base import CalibrationError


def inverse_factor(gram: Tensor, damping: float) -> tuple[Tensor, float]:
    """(U, damping used): upper Cholesky factor of (H + damping * mean(diag H) I)^-1, float64 [in, in].

    gram [in, in]: any positive multiple of X^T X; inputs that are always zero get a diagonal of 1. While the
    matrix is not positive definite, the damping rises tenfold, up to 1. Raises CalibrationError if even that
    fails, or if H is not finite.
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
        # let J reverse the order: H = J L L^T J gives H^-1 = U^T U with U = J L^-1 J, so that one factor and
        # one triangular inverse are enough
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

    factor: U, float32 upper [in, in]. starts: where each block of inputs begins. Later blocks are updated
    once a block is through. choose(c, errors) -> [out]: when it is c's turn, `live` holds the values that c
    and the later inputs of its block should have by then. errors [c - start, out]: those of the block's
    inputs before c, which later blocks have not been updated for yet.
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
    """||(W - W') X||^2 / ||W X||^2, computed from the Gram matrix of X."""
    difference = weight - new
    return float(((difference @ gram) * difference).sum() / ((weight @ gram) * weight).sum().clamp_min(1e-30))
