"""y = x W^T for binary-coded weights, the format of LUT-GEMM (Park et al. 2022, eq. 1 and 3).

    W[o, i] = sum_k alpha[k, o, g(i)] * b_k[o, i] + offset[o, g(i)],  each b_k[o, i] is -1 or +1

The offset is what lets the format hold any uniform grid exactly.

x       [tokens, in] float
planes  uint8 [bits, out, ceil(in/8)]; bit i % 8 of byte i // 8 is set where b_k = +1
alpha   float16 [bits, out, groups]
offset  float16 [out, groups] or None

Bytes moved: bits/8 a weight, and (bits + 1) scales a group.

A kernel needs only additions. With S[t, g] the sum of x[t, i] over the inputs i of group g,

    y[t, o] = sum_k sum_g alpha[k, o, g] (2 * (sum of x[t, i] over i in g with b_k = +1) - S[t, g])
              + sum_g offset[o, g] S[t, g].

Another kernel ("looked_up") first fills a table with all sums of +-x of a few neighbouring inputs. A few bits
of a plane are then the index of their sum in that table.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels import gpu
from kernels.grouped_int import BLOCK, groups_of, spread
from kernels.sparse import bits_mask, mask_bits

CASES = tuple(  # (tokens, out, in, bits, group_size)
    (m, n, k, bits, group)
    for bits in (1, 2, 3, 4)
    for m, n, k, group in (
        (1, 64, 96, 32),
        (2, 33, 80, 32),
        (17, 5, 64, 64),
        (64, 130, 48, -1),
        (1, 1, 16, 16),
        (3, 50, 37, 16),
    )
)


def binary_coded_rows(
    planes: Tensor, alpha: Tensor, offset: Tensor | None, group_size: int, n: int
) -> Tensor:
    """The rows that planes [bits, rows, bytes] stand for, float32 [rows, n]."""
    weight = torch.zeros(planes.shape[1], n, device=planes.device)
    for plane, scale in zip(planes, alpha, strict=True):
        weight += spread(scale.float(), n, group_size) * (2 * bits_mask(plane, n).float() - 1)
    return weight if offset is None else weight + spread(offset.float(), n, group_size)


def binary_coded_reference(
    x: Tensor, planes: Tensor, alpha: Tensor, offset: Tensor | None, group_size: int
) -> Tensor:
    """The formula on the whole dequantised matrix."""
    return x @ binary_coded_rows(planes, alpha, offset, group_size, x.shape[-1]).to(x.dtype).T


def binary_coded(x: Tensor, planes: Tensor, alpha: Tensor, offset: Tensor | None, group_size: int) -> Tensor:
    """y [tokens, out] in x's dtype, from the stored tensors: by Triton on a GPU, else by PyTorch."""
    if gpu.serves(x):
        from kernels.gpu.binary_coded import binary_coded as triton

        return triton(x.contiguous(), planes, alpha, offset, group_size)
    out = planes.shape[1]
    y = torch.empty(len(x), out, dtype=x.dtype, device=x.device)
    step = max(1, BLOCK // x.shape[1])
    for start in range(0, out, step):
        rows = slice(start, start + step)
        part = None if offset is None else offset[rows]
        y[:, rows] = binary_coded_reference(x, planes[:, rows], alpha[:, rows], part, group_size)
    return y


def binary_coded_examples(out: int, n: int, g: torch.Generator) -> Iterator[tuple[str, int, tuple]]:
    """(name, columns, operands) of small matrices, about [out, n]."""
    for bits, group in ((1, 48), (3, 48), (2, 32), (4, -1)):
        groups = groups_of(n, group)
        planes = torch.stack([mask_bits(torch.rand(out, n, generator=g) > 0.5) for _ in range(bits)])
        alpha = torch.rand(bits, out, groups, generator=g).half()
        offset = torch.randn(out, groups, generator=g)
        yield f"{bits} planes, group {group}", n, (planes, alpha, offset, group)
