"""y = x W^T for grouped integers: W[o, i] = scale[o, g(i)] * (q[o, i] - zero[o, g(i)]).

x      [tokens, in] float
codes  uint8 [out, ceil(in/8) * bits] (kernels/bits.py), the integers q
scale  [out, groups]
zero   [out, groups]: the grid's integer zero points; they may be real numbers as well

g(i) = i // group_size; the last group of a row may be shorter. Bytes moved: bits/8 a weight, and the scales.

The zero point is taken out of the sum,

    y[t, o] = sum_i scale[o, g(i)] q[o, i] x[t, i]  -  sum_g scale[o, g] zero[o, g] S[t, g]

with S[t, g] the sum of x[t, i] over group g. So a block of codes needs only a conversion to floats and one
multiplication by its scales.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import gpu
from kernels.bits import lanes, pack, unpack

BLOCK = 1 << 20  # weights unpacked at a time: 4 MB in float32

CASES = tuple(  # (tokens, out, in, bits, group_size)
    (m, n, k, bits, group)
    for bits in (2, 3, 4, 5, 8)
    for m, n, k, group in (
        (1, 64, 96, 32),
        (2, 33, 80, 32),
        (17, 5, 64, 64),
        (64, 130, 48, -1),
        (1, 1, 16, 16),
        (3, 50, 37, 16),
    )
)


def groups_of(in_features: int, group_size: int) -> int:
    """Number of groups in a row; group_size -1 is the whole row."""
    return 1 if group_size == -1 else -(-in_features // group_size)


def spread(per_group: Tensor, in_features: int, group_size: int) -> Tensor:
    """[out, groups] -> [out, in]: each group's value at its columns."""
    size = in_features if group_size == -1 else group_size
    return per_group.repeat_interleave(size, 1)[:, :in_features]


def level_codes(packed: Tensor, stats: Tensor, level_bits: int, out: int) -> Tensor:
    """Unpack the codes of scales or zero points, packed row by row -> uint8 [out, groups]."""
    groups = stats.shape[1]
    return unpack(packed[None], level_bits, out * groups).view(out, groups)


def levelled(codes: Tensor, stats: Tensor) -> Tensor:
    """The float32 scales or zero points that codes [out, groups] stand for.

    Each run of 16 rows has a grid of its own for every group: stats [runs, groups, 2], its scale and zero.
    """
    scale, zero = stats.float().repeat_interleave(16, 0)[: len(codes)].unbind(-1)
    return scale * (codes.float() - zero)


def grouped_int_reference(
    x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, bits: int, group_size: int
) -> Tensor:
    """The formula on the whole dequantised matrix."""
    n = x.shape[-1]
    q = unpack(codes, bits, n).to(x.dtype)
    weight = spread(scale.to(x.dtype), n, group_size) * (q - spread(zero.to(x.dtype), n, group_size))
    return x @ weight.T


def grouped_int(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, bits: int, group_size: int) -> Tensor:
    """y [tokens, out] in x's dtype, from the stored tensors: by Triton on a GPU, else by PyTorch."""
    if gpu.serves(x):
        from kernels.gpu.grouped_int import grouped_int as triton

        return triton(x.contiguous(), codes, scale, zero, bits, group_size)
    return _in_pytorch(x, codes, scale, zero, bits, group_size)


def two_level_int(
    x: Tensor,
    codes: Tensor,
    levels: tuple[Tensor, Tensor],
    stats: tuple[Tensor, Tensor],
    level_bits: int,
    bits: int,
    group_size: int,
) -> Tensor:
    """The product with scales and zero points that are integer codes themselves.

    levels: the codes of the scales and of the zero points, each uint8, packed to `level_bits` row by row.
    stats: the grids of these codes, each float16 [runs of 16 rows, groups, 2], a scale and a zero point.
    """
    if gpu.serves(x):
        from kernels.gpu.grouped_int import two_level_int as triton

        return triton(x.contiguous(), codes, levels, stats, level_bits, bits, group_size)
    (scale_codes, zero_codes), (scale_stats, zero_stats) = levels, stats
    scale = levelled(level_codes(scale_codes, scale_stats, level_bits, len(codes)), scale_stats)
    zero = levelled(level_codes(zero_codes, zero_stats, level_bits, len(codes)), zero_stats)
    return _in_pytorch(x, codes, scale, zero, bits, group_size)


def _in_pytorch(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, bits: int, group_size: int) -> Tensor:
    """Multiply a block of rows at a time."""
    tokens, n = x.shape
    size = n if group_size == -1 else group_size
    groups = scale.shape[1]
    padded = -(-n // 8) * 8
    scale, zero = scale.to(x.dtype), zero.to(x.dtype)
    sums = F.pad(x, (0, groups * size - n)).view(tokens, groups, size).sum(-1)
    x = F.pad(x, (0, padded - n))
    y = torch.empty(tokens, codes.shape[0], dtype=x.dtype, device=x.device)
    step = max(1, BLOCK // padded)
    for start in range(0, codes.shape[0], step):
        rows = slice(start, start + step)
        block = -(sums @ (scale[rows] * zero[rows]).T)
        for first, stride, q in lanes(codes[rows], bits):
            weight = _scaled(q.to(x.dtype), scale[rows], size // stride)
            block.addmm_(x[:, first::stride], weight.T)
        y[:, rows] = block
    return y


def _scaled(q: Tensor, scale: Tensor, per_group: int) -> Tensor:
    """q [rows, n] times its group's scale [rows, groups].

    A group has `per_group` columns; the last may have fewer.
    """
    rows, n = q.shape
    groups = scale.shape[1]
    if groups == 1:
        return q.mul_(scale)
    if groups * per_group == n:
        return q.view(rows, groups, per_group).mul_(scale[:, :, None]).view(rows, n)
    return q.mul_(scale.repeat_interleave(per_group, 1)[:, :n])


def grouped_int_examples(out: int, n: int, g: torch.Generator) -> Iterator[tuple[str, int, tuple]]:
    """(name, columns, operands) of small matrices, about [out, n]."""
    for bits in range(2, 9):
        for group in (16, 64, -1):
            codes, groups = torch.randint(0, 2**bits, (out, n), generator=g), groups_of(n, group)
            scale = (0.01 + torch.rand(out, groups, generator=g)).half()
            zero = torch.randint(0, 2**bits, scale.shape, generator=g).to(torch.uint8)
            stored = (pack(codes.to(torch.uint8), bits), scale, zero, bits, group)
            yield f"{bits} bits, group {group}", n, stored
    for bits, group in ((3, 16), (4, 64), (8, -1)):
        codes, groups = torch.randint(0, 2**bits, (out, n), generator=g), groups_of(n, group)
        scale = (0.01 + torch.rand(out, groups, generator=g)).half()
        zero = (2**bits * torch.rand(out, groups, generator=g)).half()
        stored = (pack(codes.to(torch.uint8), bits), scale, zero, bits, group)
        yield f"real zeros, {bits} bits, group {group}", n, stored
