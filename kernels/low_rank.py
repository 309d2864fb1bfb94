"""y = x (U V)^T as two thin products: (x V^T) U^T.

x [tokens, in]; V [rank, in], U [out, rank] stored in 16 bits. Bytes moved: 2 rank (out + in).
"""

from __future__ import annotations

from torch import Tensor

CASES = ((1, 64, 96, 8), (3, 576, 1536, 167), (17, 33, 80, 5), (64, 7, 48, 1), (4, 1, 37, 3))  # (tokens, out, in, rank)


def low_rank_reference(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The formula on the dense product."""
    return x @ (u.to(x.dtype) @ v.to(x.dtype)).T


def low_rank(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """y [..., out] in x's dtype for x [..., in]; on a GPU two 16-bit products of its own library."""
    return (x @ v.to(x.dtype).T) @ u.to(x.dtype).T
