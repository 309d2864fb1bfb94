"""y = x W^T for a few whole columns of W, to be added to another product (OWQ's weak columns).

x [tokens, in] float; values float16 [out, k]; index int32 [k], the numbers of the columns, each once. Bytes
moved: 2 a value and 4 a column.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels import gpu

# (tokens, out, in, columns)
CASES = ((1, 64, 96, 3), (2, 33, 80, 1), (17, 5, 64, 64), (64, 130, 48, 0), (3, 7, 40_000, 20))


def columns_matrix(values: Tensor, index: Tensor, n: int) -> Tensor:
    """The dense float32 [out, n] that the columns stand for."""
    dense = torch.zeros(len(values), n, device=values.device)
    dense[:, index.long()] = values.float()
    return dense


def columns_reference(x: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """The formula on the dense matrix."""
    return x @ columns_matrix(values, index, x.shape[-1]).to(x.dtype).T


def columns(x: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """y [tokens, out] in x's dtype, from the stored tensors: by Triton on a GPU, else by PyTorch."""
    if gpu.serves(x):
        from kernels.gpu.columns import columns as triton

        return triton(x.contiguous(), values, index)
    return x[:, index.long()] @ values.to(x.dtype).T


def columns_examples(out: int, n: int, g: torch.Generator) -> Iterator[tuple[str, int, tuple]]:
    """(name, columns, operands) of small matrices, about [out, n]."""
    index = torch.randperm(n, generator=g)[:5]
    yield "columns", n, (torch.randn(out, len(index), generator=g).half(), index.int())
