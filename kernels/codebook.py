"""y = x W^T for 4-bit codes into a table of 16 values, such as NF4 or FP4.

    W[o, i] = scale[o, g(i)] * table[q[o, i]],  g(i) = i // group_size

x      [tokens, in] float
codes  uint8 [out, row_bytes(in, 4)] (kernels/bits.py)
scale  float16 [out, groups], or nested (kernels/grids.py)
table  float32 [16]

group_size -1 makes the whole row one group; the last group of a row may be shorter. Bytes moved: half a byte
a weight, and the scales.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels import gpu
from kernels.bits import pack, unpack
from kernels.grids import nested_scale
from kernels.grouped_int import BLOCK, groups_of, spread

CASES = (  # (tokens, out, in, group_size)
    (1, 64, 96, 32),
    (2, 33, 80, 32),
    (17, 5, 64, 64),
    (64, 130, 48, -1),
    (1, 1, 16, 16),
    (3, 50, 37, 16),
    (1, 40, 576, 64),
)


def codebook_rows(codes: Tensor, scale: Tensor, table: Tensor, group_size: int, n: int) -> Tensor:
    """The rows that codes [rows, bytes] and scale [rows, groups] stand for, float32 [rows, n]."""
    return table.float()[unpack(codes, 4, n).long()] * spread(scale.float(), n, group_size)


def codebook_reference(x: Tensor, codes: Tensor, scale: Tensor, table: Tensor, group_size: int) -> Tensor:
    """The formula on the whole dequantised matrix."""
    return x @ codebook_rows(codes, scale, table, group_size, x.shape[-1]).to(x.dtype).T


def codebook(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    table: Tensor,
    group_size: int,
    absmax: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """y [tokens, out] in x's dtype, from the stored tensors: by Triton on a GPU, else by PyTorch.

    Nested scales come with their absmax and offset.
    """
    if gpu.serves(x):
        from kernels.gpu.codebook import codebook as triton

        return triton(x.contiguous(), codes, scale, table, group_size, absmax, offset)
    if absmax is not None:
        scale = nested_scale(scale, absmax, offset)
    y = torch.empty(len(x), len(codes), dtype=x.dtype, device=x.device)
    step = max(1, BLOCK // x.shape[1])
    for start in range(0, len(codes), step):
        rows = slice(start, start + step)
        y[:, rows] = codebook_reference(x, codes[rows], scale[rows], table, group_size)
    return y


def codebook_examples(out: int, n: int, g: torch.Generator) -> Iterator[tuple[str, int, tuple]]:
    """(name, columns, operands) of small matrices, about [out, n]."""
    table = torch.randn(16, generator=g)
    for dtype in (torch.float16, torch.float32):
        codes = pack(torch.randint(0, 16, (out, n), generator=g).to(torch.uint8), 4)
        scale = torch.rand(out, groups_of(n, 32), generator=g).to(dtype)
        yield f"codebook, {dtype}", n, (codes, scale, table, 32)
