"""y = x W^T for sparse weights with 16-bit values on a graphics card, in two layouts.

bitmask   kept uint8 [out, ceil(in/8)], bit i % 8 of byte i // 8 set where W[o, i] is kept; values float16 [kept], row by
          row; starts int32 [out + 1], where each row's values begin. Bytes moved at 50 %: 9 bits a weight.
two_four  of every 4 inputs 2 are kept: values float16 [out, in/2], positions uint8 [out, row_bytes(in/2, 2)]: 2 bits
          each (kernels/bits.py), in a multiple of 4. Bytes moved: 9 bits a weight.

x [tokens, in]. Where a kept value of a bitmask stands is the number of bits set before it: each thread counts those of
its byte, `cumsum` adds up the threads' counts, and a count a row runs along. Few tokens are multiplied so. For many,
`bitmask_rows` and `two_four_rows` write a block of rows with their zeros, which PyTorch multiplies; 2:4 rows on the card's sparse
tensor cores where it has them (sparse_cores.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import Variant, sparse_cores
from kernels.gpu.decode import FEW_TOKENS, LAUNCH, SIZES, lane_of_x, store_y

BLOCK = 1 << 24  # weights written at a time: 32 MB in 16 bits, which stay in the second cache of a large card


@triton.jit(do_not_specialize=SIZES)
def bitmask_few(x, kept, values, starts, y, tokens, out, n, words,
                BM: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr):  # fmt: skip
    """Rows [BN] of W times all tokens [BM]."""
    token, row = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    line = row[:, None].to(tl.int64) * words
    first = tl.load(starts + row, row < out, 0)
    acc = tl.zeros([BM, BN, BW], tl.float32)
    for start in range(0, words, BW):
        word = start + tl.arange(0, BW)
        byte = tl.load(kept + line + word[None, :], (row[:, None] < out) & (word[None, :] < words), 0).to(tl.int32)
        count = byte - ((byte >> 1) & 0x55)  # bits set in a byte: pairs, fours, all
        count = (count & 0x33) + ((count >> 2) & 0x33)
        count = (count + (count >> 4)) & 15
        at = first[:, None] + tl.cumsum(count, 1) - count
        first += tl.sum(count, 1)
        for j in tl.static_range(8):
            bit = (byte >> j) & 1
            value = tl.load(values + at, bit != 0, 0.0).to(tl.float32)
            acc += value[None, :, :] * lane_of_x(x, token, word, tokens, n, j)[:, None, :]
            at += bit
    store_y(y, tl.sum(acc, 2), token, row, tokens, out)


@triton.jit(do_not_specialize=SIZES)
def bitmask_dense(rows, kept, values, starts, out, n, words, BN: tl.constexpr, BK: tl.constexpr):
    """Writes W [out, n]."""
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    line = row[:, None].to(tl.int64)
    first = tl.load(starts + row, row < out, 0)
    for start in range(0, n, BK):
        column = start + tl.arange(0, BK)[None, :]
        inside = (row[:, None] < out) & (column < n)
        bit = (tl.load(kept + line * words + column // 8, inside, 0).to(tl.int32) >> (column % 8)) & 1
        value = tl.load(values + first[:, None] + tl.cumsum(bit, 1) - bit, bit != 0, 0.0)
        first += tl.sum(bit, 1)
        tl.store(rows + line * n + column, value.to(rows.dtype.element_ty), inside)


@triton.jit
def position_of(positions, line, kept, inside, row_bytes):
    """0..3: where in its four the kept value number `kept` of a row stands."""
    byte = tl.load(positions + line * row_bytes + kept // 4, inside, 0).to(tl.int32)
    return (byte >> (kept % 4 * 2)) & 3


@triton.jit(do_not_specialize=SIZES)
def two_four_few(x, values, positions, y, tokens, out, n, words,
                 BM: tl.constexpr, BN: tl.constexpr, BW: tl.constexpr):  # fmt: skip
    """Rows [BN] of W times all tokens [BM]; `words` is the bytes of a row of positions."""
    token, row = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    line = row[:, None].to(tl.int64)
    acc = tl.zeros([BM, BN, BW], tl.float32)
    for start in range(0, n // 2, BW):
        kept = start + tl.arange(0, BW)[None, :]
        inside = (row[:, None] < out) & (kept < n // 2)
        value = tl.load(values + line * (n // 2) + kept, inside, 0.0).to(tl.float32)
        column = kept // 2 * 4 + position_of(positions, line, kept, inside, words)
        mask = (token[:, None, None] < tokens) & inside[None, :, :]
        acc += value[None, :, :] * tl.load(x + token[:, None, None] * n + column[None, :, :], mask, 0.0).to(tl.float32)
    store_y(y, tl.sum(acc, 2), token, row, tokens, out)


@triton.jit(do_not_specialize=SIZES)
def two_four_dense(rows, values, positions, out, n, words, BN: tl.constexpr, BK: tl.constexpr):
    """Writes W [out, n]; `words` is the bytes of a row of positions."""
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    line = row[:, None].to(tl.int64)
    column = tl.program_id(1) * BK + tl.arange(0, BK)[None, :]
    inside = (row[:, None] < out) & (column < n)
    value = tl.zeros([BN, BK], tl.float32)
    for k in tl.static_range(2):
        kept = column // 4 * 2 + k
        here = inside & (position_of(positions, line, kept, inside, words) == column % 4)
        value += tl.load(values + line * (n // 2) + kept, here, 0.0).to(tl.float32)
    tl.store(rows + line * n + column, value.to(rows.dtype.element_ty), inside)


_MASK = {"BN": 8, "BW": 32} | LAUNCH  # 32 words of a row are a warp's, which adds their counts up by itself
_PAIR = {"BN": 4, "BW": 256} | LAUNCH
_DENSE = {"BN": 4, "BK": 256} | LAUNCH


def bitmask_rows(kept: Tensor, values: Tensor, starts: Tensor, first: int, last: int, n: int, dtype: torch.dtype) -> Tensor:
    """Rows [first, last) of W in `dtype`, [rows, n]."""
    rows = torch.empty(last - first, n, dtype=dtype, device=kept.device)
    if rows.numel():
        with torch.cuda.device_of(kept):
            grid = (triton.cdiv(last - first, _DENSE["BN"]),)
            bitmask_dense[grid](rows, kept[first:last], values, starts[first:], last - first, n, kept.shape[1], **_DENSE)
    return rows


def two_four_rows(values: Tensor, positions: Tensor, first: int, last: int, dtype: torch.dtype) -> Tensor:
    """Rows [first, last) of W in `dtype`, [rows, in]."""
    n = values.shape[1] * 2
    rows = torch.empty(last - first, n, dtype=dtype, device=values.device)
    if rows.numel():
        with torch.cuda.device_of(values):
            grid = (triton.cdiv(last - first, _DENSE["BN"]), triton.cdiv(n, _DENSE["BK"]))
            two_four_dense[grid](rows, values[first:last], positions[first:last], last - first, n, positions.shape[1], **_DENSE)
    return rows


def bitmask(x: Tensor, kept: Tensor, values: Tensor, starts: Tensor) -> Tensor:
    """y [tokens, out] in x's dtype."""
    x, (tokens, n), (out, words) = x.contiguous(), x.shape, kept.shape
    if tokens > FEW_TOKENS:
        return _by_blocks(x, out, lambda first, last: bitmask_rows(kept, values, starts, first, last, n, x.dtype))
    y = torch.empty(tokens, out, dtype=x.dtype, device=x.device)
    if y.numel():
        tiles = {"BM": triton.next_power_of_2(tokens)} | _MASK
        with torch.cuda.device_of(x):
            bitmask_few[(triton.cdiv(out, tiles["BN"]),)](x, kept, values, starts, y, tokens, out, n, words, **tiles)
    return y


def two_four(x: Tensor, values: Tensor, positions: Tensor) -> Tensor:
    """y [tokens, out] in x's dtype."""
    x, (tokens, n), out = x.contiguous(), x.shape, len(values)
    if tokens > FEW_TOKENS:
        rows_of = lambda first, last: two_four_rows(values, positions, first, last, x.dtype)  # noqa: E731
        return _by_blocks(x, out, rows_of, sparse_cores.product if sparse_cores.serve(x, out) else F.linear)
    y = torch.empty(tokens, out, dtype=x.dtype, device=x.device)
    if y.numel():
        tiles = {"BM": triton.next_power_of_2(tokens)} | _PAIR
        with torch.cuda.device_of(x):
            two_four_few[(triton.cdiv(out, tiles["BN"]),)](x, values, positions, y, tokens, out, n, positions.shape[1], **tiles)
    return y


def _by_blocks(x: Tensor, out: int, rows_of, product=F.linear) -> Tensor:
    """x times the transpose of W [out, in], whose rows [first, last) `rows_of` writes, a block at a time."""
    y = torch.empty(len(x), out, dtype=x.dtype, device=x.device)
    step = max(1, BLOCK // x.shape[1])
    if step > sparse_cores.ROWS:
        step -= step % sparse_cores.ROWS
    for first in range(0, out, step):
        last = min(first + step, out)
        y[:, first:last] = product(x, rows_of(first, last))
    return y


_MASK_POINTERS = {"kept": "u8", "values": "fp16", "starts": "i32"}
_PAIR_POINTERS = {"values": "fp16", "positions": "u8"}

VARIANTS = (
    Variant(bitmask_few, {"x": "fp16"} | _MASK_POINTERS | {"y": "fp16"}, {"BM": 1} | _MASK),
    Variant(bitmask_dense, {"rows": "fp16"} | _MASK_POINTERS, _DENSE),
    Variant(two_four_few, {"x": "fp16"} | _PAIR_POINTERS | {"y": "fp16"}, {"BM": 1} | _PAIR),
    Variant(two_four_few, {"x": "bf16"} | _PAIR_POINTERS | {"y": "bf16"}, {"BM": 8} | _PAIR),
    Variant(two_four_dense, {"rows": "fp16"} | _PAIR_POINTERS, _DENSE),
)
