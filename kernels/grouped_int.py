"""y = x W^T for grouped integers: W[o, i] = scale[o, g(i)] * (q[o, i] - zero[o, g(i)]).

x [tokens, in] float; codes uint8 [out, ceil(in/8) * bits] (kernels/bits.py); scale [out, groups]; zero [out, groups]
(the grid's integer zero points); g(i) = i // group_size, the last group short. Bytes moved: bits/8 a weight and the
scales. The zero point is taken out of the sum,

    y[t, o] = sum_i scale[o, g(i)] q[o, i] x[t, i]  -  sum_g scale[o, g] zero[o, g] * (sum of x[t, i] over group g),

so that a block of codes needs only a conversion and one multiplication by its scales.

On a processor up to FEW_TOKENS tokens are multiplied straight from the codes in C (kernels/cpu/grouped_int.c); more are
multiplied by PyTorch with a block of rows that C has decoded. Without C, PyTorch decodes too.
"""

from __future__ import annotations

from ctypes import c_long as L
from ctypes import c_void_p as P

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.bits import lanes, unpack

BLOCK = 1 << 20  # weights unpacked at a time: 4 MB in float32
FEW_TOKENS = 16  # up to here decoding anew for every four tokens is cheaper than a whole block and a product

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


def grouped_int_reference(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, bits: int, group_size: int) -> Tensor:
    """The formula on the whole dequantised matrix."""
    n = x.shape[-1]
    q = unpack(codes, bits, n).to(x.dtype)
    weight = spread(scale.to(x.dtype), n, group_size) * (q - spread(zero.to(x.dtype), n, group_size))
    return x @ weight.T


def grouped_int(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, bits: int, group_size: int) -> Tensor:
    """y [tokens, out] in x's dtype."""
    from kernels.cpu import library

    on_processor = x.device.type == "cpu" and x.dtype == torch.float32 and 2 <= bits <= 8
    if on_processor and codes.is_contiguous() and (group_size == -1 or group_size % 16 == 0) and (c := library()):
        return _in_c(c, x, codes, scale, zero, bits, group_size)
    return _in_pytorch(x, codes, scale, zero, bits, group_size)


def _in_c(c, x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, bits: int, group_size: int) -> Tensor:
    tokens, n = x.shape
    out = codes.shape[0]
    if tokens <= FEW_TOKENS:
        return c_product(c, x, codes, scale, zero, bits, group_size)
    y = torch.empty(tokens, out)
    step = max(1, BLOCK // n)
    for start in range(0, out, step):
        stop = min(start + step, out)
        y[:, start:stop] = x @ c_rows(c, codes, scale, zero, bits, group_size, n, start, stop).T
    return y


def c_product(c, x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, bits: int, group_size: int) -> Tensor:
    """x [tokens, in] W^T by the C kernel."""
    x, scale, zero = x.contiguous(), scale.contiguous(), zero.contiguous()
    tokens, n = x.shape
    out, groups = scale.shape
    y, scratch = torch.empty(tokens, out), torch.empty(tokens * (-(-n // 16) * 16 + groups))
    pointers = (P(t.data_ptr()) for t in (x, codes, scale, zero, y, scratch))
    if c.grouped_int_product(*pointers, *map(L, (tokens, out, n, groups, _values(n, group_size))), bits):
        raise ValueError(f"no C kernel for {bits} bits")
    return y


def c_rows(c, codes: Tensor, scale: Tensor, zero: Tensor, bits: int, group_size: int, n: int, start: int, stop: int) -> Tensor:
    """Rows [start, stop) of W as float32 [rows, in] by the C kernel."""
    scale, zero = scale.contiguous(), zero.contiguous()
    out, groups = scale.shape
    rows = torch.empty(stop - start, n)
    pointers = (P(t.data_ptr()) for t in (codes, scale, zero, rows))
    if c.grouped_int_rows(*pointers, *map(L, (start, stop, out, n, groups, _values(n, group_size))), bits):
        raise ValueError(f"no C kernel for {bits} bits")
    return rows


def _values(n: int, group_size: int) -> int:
    """Values in a group, a whole row rounded up to full pieces."""
    return -(-n // 16) * 16 if group_size == -1 else group_size


def _in_pytorch(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, bits: int, group_size: int) -> Tensor:
    """A block of rows at a time."""
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
    """q [rows, n] times its group's scale [rows, groups], `per_group` columns a group, the last group short."""
    rows, n = q.shape
    groups = scale.shape[1]
    if groups == 1:
        return q.mul_(scale)
    if groups * per_group == n:
        return q.view(rows, groups, per_group).mul_(scale[:, :, None]).view(rows, n)
    return q.mul_(scale.repeat_interleave(per_group, 1)[:, :n])
