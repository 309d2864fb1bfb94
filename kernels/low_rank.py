"""y = x (U V)^T as two thin products: (x V^T) U^T.

x [tokens, in]; V [rank, in], U [out, rank] stored in 16 bits. Bytes moved: 2 rank (out + in). On a processor up to
FEW_TOKENS tokens are multiplied by the 16-bit values as they are stored (kernels/cpu/half.c); more by PyTorch with a
widened copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

CASES = ((1, 64, 96, 8), (3, 576, 1536, 167), (17, 33, 80, 5), (64, 7, 48, 1), (4, 1, 37, 3))  # (tokens, out, in, rank)
FEW_TOKENS = 16


def low_rank_reference(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The formula on the dense product."""
    return x @ (u.to(x.dtype) @ v.to(x.dtype)).T


def low_rank(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """y [..., out] in x's dtype for x [..., in]."""
    from kernels.cpu import library

    flat = x.reshape(-1, x.shape[-1])
    in_c = x.device.type == "cpu" and x.dtype == torch.float32 and u.dtype == v.dtype == torch.float16
    if in_c and len(flat) <= FEW_TOKENS and (c := library()):
        return c_half_product(c, c_half_product(c, flat, v), u).view(*x.shape[:-1], -1)
    return (x @ v.to(x.dtype).T) @ u.to(x.dtype).T


def c_half_product(c, x: Tensor, weight: Tensor) -> Tensor:
    """x [tokens, in] float32 times the transpose of weight [out, in] float16, by the C kernel."""
    from ctypes import c_long, c_void_p

    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty(len(x), len(weight))
    pointers = (c_void_p(t.data_ptr()) for t in (x, weight, y))
    c.half_product(*pointers, *map(c_long, (len(x), *weight.shape)))
    return y
