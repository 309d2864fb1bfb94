"""Slow, obvious versions of the methods, written from the papers in numpy float64; never from the code they test."""

from __future__ import annotations

import numpy as np


def gptq_columns(weight, hessian, scale, zero, top, order):
    """GPTQ as optimal brain quantization column by column: after each column the inverse of the REMAINING damped
    Hessian is computed anew, and the remaining weights move by -(w - q) / [H^-1]_cc * [H^-1]_c,: (eq. 2 and 3).

    weight [out, in]; hessian [in, in] damped; scale, zero [out, in] fixed grids; order: the columns in turn.
    Returns (codes, dequantized).
    """
    live = np.array(weight, dtype=np.float64)
    codes, result = np.zeros_like(live), np.zeros_like(live)
    remaining = list(order)
    while remaining:
        c = remaining[0]
        inverse = np.linalg.inv(hessian[np.ix_(remaining, remaining)])
        code = np.clip(np.round(live[:, c] / scale[:, c]) + zero[:, c], 0, top)
        codes[:, c], result[:, c] = code, scale[:, c] * (code - zero[:, c])
        error = (live[:, c] - result[:, c]) / inverse[0, 0]
        live[:, remaining] -= np.outer(error, inverse[0])
        remaining = remaining[1:]
    return codes, result


def minmax_asym(row, bits):
    """(scale in half precision, zero) of one group by the definition."""
    low, high = min(row.min(), 0.0), max(row.max(), 0.0)
    if low == high == 0.0:
        low, high = -1.0, 1.0
    scale = float(np.float16(max((high - low) / (2**bits - 1), np.finfo(np.float16).tiny)))
    return scale, float(np.clip(np.round(-low / scale), 0, 2**bits - 1))


def rtn(weight, bits, group_size):
    """(codes, dequantized) of round-to-nearest, weight by weight."""
    codes, result = np.zeros(weight.shape), np.zeros(weight.shape)
    size = weight.shape[1] if group_size == -1 else group_size
    for r in range(weight.shape[0]):
        for start in range(0, weight.shape[1], size):
            scale, zero = minmax_asym(weight[r, start : start + size], bits)
            for c in range(start, min(start + size, weight.shape[1])):
                codes[r, c] = min(max(round(float(weight[r, c]) / scale) + zero, 0), 2**bits - 1)
                result[r, c] = scale * (codes[r, c] - zero)
    return codes, result


def wanda_mask(weight, inputs, sparsity):
    """Removed places by the definition: in each row the lowest |w| * ||x||_2, floor(sparsity * in) of them."""
    norms = np.sqrt((inputs.astype(np.float64) ** 2).sum(0))
    removed = np.zeros(weight.shape, dtype=bool)
    count = int(np.floor(sparsity * weight.shape[1]))
    for r in range(weight.shape[0]):
        scores = [(abs(float(weight[r, c])) * norms[c], c) for c in range(weight.shape[1])]
        for _, c in sorted(scores)[:count]:
            removed[r, c] = True
    return removed


def svd_llm(weight, inputs, rank):
    """The paper's form: whiten with the Cholesky factor of X^T X, truncate, multiply by its inverse."""
    gram = inputs.T @ inputs
    lower = np.linalg.cholesky(gram)
    u, s, vt = np.linalg.svd(weight @ lower, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank] @ np.linalg.inv(lower), s


def pack_bits(values, bits):
    """A row as one long integer, value k shifted by k * bits, cut into bytes; padded to a multiple of 8 values."""
    whole = sum(int(v) << (bits * k) for k, v in enumerate(values))
    return list(whole.to_bytes(-(-len(values) // 8) * bits, "little"))
