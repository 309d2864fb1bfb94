"""y = x (U V)^T as two thin products: (x V^T) U^T.

x [tokens, in]; V [rank, in], U [out, rank] stored in 16 bits. Bytes moved: 2 rank (out + in).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels import gpu

# (tokens, out, in, rank)
CASES = ((1, 64, 96, 8), (3, 576, 1536, 167), (17, 33, 80, 5), (64, 7, 48, 1), (4, 1, 37, 3))


def low_rank_reference(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The formula on the dense product."""
    return x @ (u.to(x.dtype) @ v.to(x.dtype)).T


def low_rank(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """y [tokens, out] in x's dtype for x [tokens, in]: few tokens on a GPU by Triton, else by PyTorch."""
    if gpu.serves(x):
        from kernels.gpu.dense import low_rank as triton

        return triton(x, u, v)
    return (x @ v.to(x.dtype).T) @ u.to(x.dtype).T


def low_rank_examples(out: int, n: int, g: torch.Generator) -> Iterator[tuple[str, int, tuple]]:
    """(name, columns, operands) of small matrices, about [out, n]."""
    yield "low rank", n, tuple(torch.randn(*size, generator=g).half() for size in ((out, 5), (5, n)))
