"""y = x W^T for a very sparse W, to be added to a dense product (SpQR's outliers).

x        [tokens, in] float
values   float16 [count], row by row
columns  int16 [count], the low 16 bits of each value's column (in <= 65,536)
starts   int32 [out + 1], where each row's values begin

Bytes moved: 4 an outlier and 4 a row.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels import gpu

# (tokens, out, in, count)
CASES = ((1, 64, 96, 30), (2, 33, 80, 5), (17, 5, 64, 200), (64, 130, 48, 0), (3, 7, 40_000, 50))


def outliers_matrix(values: Tensor, columns: Tensor, starts: Tensor, n: int) -> Tensor:
    """The dense float32 [out, n] that the outliers stand for."""
    out = len(starts) - 1
    rows = torch.repeat_interleave(torch.arange(out, device=values.device), starts.diff().long())
    dense = torch.zeros(out, n, device=values.device)
    return dense.index_put_((rows, columns.long() & 0xFFFF), values.float(), accumulate=True)


def outliers_reference(x: Tensor, values: Tensor, columns: Tensor, starts: Tensor) -> Tensor:
    """The formula on the dense matrix."""
    return x @ outliers_matrix(values, columns, starts, x.shape[-1]).to(x.dtype).T


def outliers(x: Tensor, values: Tensor, columns: Tensor, starts: Tensor) -> Tensor:
    """y [tokens, out] in x's dtype, from the stored tensors: by Triton on a GPU, else by PyTorch."""
    if gpu.serves(x):
        from kernels.gpu.outliers import outliers as triton

        return triton(x.contiguous(), values, columns, starts)
    out = len(starts) - 1
    rows = torch.repeat_interleave(torch.arange(out, device=x.device), starts.diff().long())
    products = x[:, columns.long() & 0xFFFF] * values.to(x.dtype)
    return torch.zeros(len(x), out, dtype=x.dtype, device=x.device).index_add_(1, rows, products)


def outliers_examples(out: int, n: int, g: torch.Generator) -> Iterator[tuple[str, int, tuple]]:
    """(name, columns, operands) of small matrices, about [out, n]."""
    values = torch.randn(2 * out, generator=g).half()
    columns = torch.randint(0, n, (2 * out,), generator=g).short()
    yield "outliers", n, (values, columns, torch.arange(out + 1, dtype=torch.int32) * 2)
