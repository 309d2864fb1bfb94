"""y = x W^T for sparse weights in two layouts on a graphics card.

The values are float16, or integer codes of a grid.

bitmask   kept uint8 [out, ceil(in/8)]: bit i % 8 of byte i // 8 is set where W[o, i] is kept. The values are
          stored row by row; starts int32 [out + 1] says where each row's values begin.
two_four  of every 4 inputs 2 are kept: values [out, in/2], and positions uint8 [out, row_bytes(in/2, 2)] of 2
          bits each (kernels/bits.py). `in` is a multiple of 4.

Bytes moved if half of the weights are kept, in both layouts: 9 bits a weight; with 4-bit codes, 3 bits a
weight and the grid.

x [tokens, in]. With `levels` (kernels/grids.py) the values are codes packed to the bit: one stream for a
bitmask, row by row for 2:4. A kept weight is then scale * (code - zero) of its row and group.

The place of a kept value of a bitmask is the number of bits set before it. Each thread counts the bits of its
byte, `cumsum` adds up the threads' counts, and each row carries its count along. This is how few tokens are
multiplied. For many tokens, `bitmask_rows` and `two_four_rows` write a block of rows with their zeros, which
PyTorch multiplies. Where the card has sparse tensor cores, these multiply 2:4 rows (sparse_cores.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import Variant, sparse_cores
from kernels.gpu.decode import FEW_TOKENS, LAUNCH, SIZES, code_at, columns_of, grid_at, lane_of_x, store_y
from kernels.grids import Levels

BLOCK = 1 << 24  # weights written at a time: 32 MB in 16 bits, which stay in the second cache of a large card
FLOATS = 16  # BITS of values that are no codes


@triton.jit
def kept_at(values, at, kept, scale, zero, BITS: tl.constexpr):
    """The kept values number `at` as float32, zero where not `kept`.

    scale and zero are the grid's, if the values are codes.
    """
    if BITS == 16:
        value = tl.load(values + at, kept, 0.0).to(tl.float32)
    else:
        code = code_at(values, at.to(tl.int64), kept, BITS).to(tl.float32)
        value = tl.where(kept, scale * (code - zero), 0.0)
    return value


@triton.jit
def levels_at(scale, zero, line, column, groups, group, inside, BITS: tl.constexpr):
    """(scale, zero point) of row `line` (int64) and column; nothing is read if values have 16 bits."""
    s, z = 1.0, 0.0
    if BITS < 16:
        s, z = grid_at(scale, zero, scale, zero, line, column // group, groups, inside, 0)
    return s, z


@triton.jit(do_not_specialize=SIZES)
def bitmask_few(
    x,
    kept,
    values,
    starts,
    scale,
    zero,
    y,
    tokens,
    out,
    n,
    words,
    groups,
    group,
    BITS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,
):
    """Rows [BN] of W times all tokens [BM]."""
    token, row = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    line = row[:, None].to(tl.int64)
    first = tl.load(starts + row, row < out, 0)
    acc = tl.zeros([BM, BN, BW], tl.float32)
    for start in range(0, words, BW):
        word = start + tl.arange(0, BW)
        inside = (row[:, None] < out) & (word[None, :] < words)
        byte = tl.load(kept + line * words + word[None, :], inside, 0).to(tl.int32)
        s, z = levels_at(scale, zero, line, word[None, :] * 8, groups, group, inside, BITS)
        count = byte - ((byte >> 1) & 0x55)  # bits set in a byte: pairs, fours, all
        count = (count & 0x33) + ((count >> 2) & 0x33)
        count = (count + (count >> 4)) & 15
        at = first[:, None] + tl.cumsum(count, 1) - count
        first += tl.sum(count, 1)
        for j in tl.static_range(8):
            bit = (byte >> j) & 1
            value = kept_at(values, at, bit != 0, s, z, BITS)
            acc += value[None, :, :] * lane_of_x(x, token, word, tokens, n, j)[:, None, :]
            at += bit
    store_y(y, tl.sum(acc, 2), token, row, tokens, out)


@triton.jit(do_not_specialize=SIZES)
def bitmask_dense(
    rows,
    kept,
    values,
    starts,
    scale,
    zero,
    out,
    n,
    words,
    groups,
    group,
    BITS: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Writes W [out, n]."""
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    line = row[:, None].to(tl.int64)
    first = tl.load(starts + row, row < out, 0)
    for start in range(0, n, BK):
        column = start + tl.arange(0, BK)[None, :]
        inside = (row[:, None] < out) & (column < n)
        bit = (tl.load(kept + line * words + column // 8, inside, 0).to(tl.int32) >> (column % 8)) & 1
        s, z = levels_at(scale, zero, line, column, groups, group, inside, BITS)
        value = kept_at(values, first[:, None] + tl.cumsum(bit, 1) - bit, bit != 0, s, z, BITS)
        first += tl.sum(bit, 1)
        tl.store(rows + line * n + column, value.to(rows.dtype.element_ty), inside)


@triton.jit
def position_of(positions, line, kept, inside, row_bytes):
    """0..3: where in its four the kept value number `kept` of a row stands."""
    byte = tl.load(positions + line * row_bytes + kept // 4, inside, 0).to(tl.int32)
    return (byte >> (kept % 4 * 2)) & 3


@triton.jit(do_not_specialize=[*SIZES, "width"])
def two_four_few(
    x,
    values,
    positions,
    scale,
    zero,
    y,
    tokens,
    out,
    n,
    words,
    width,
    groups,
    group,
    BITS: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,
):
    """Rows [BN] of W times all tokens [BM].

    A row has `words` bytes of positions, and room for `width` values.
    """
    token, row = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    line = row[:, None].to(tl.int64)
    acc = tl.zeros([BM, BN, BW], tl.float32)
    for start in range(0, n // 2, BW):
        kept = start + tl.arange(0, BW)[None, :]
        inside = (row[:, None] < out) & (kept < n // 2)
        s, z = levels_at(scale, zero, line, kept // 2 * 4, groups, group, inside, BITS)
        value = kept_at(values, line * width + kept, inside, s, z, BITS)
        column = kept // 2 * 4 + position_of(positions, line, kept, inside, words)
        mask = (token[:, None, None] < tokens) & inside[None, :, :]
        acc += value[None, :, :] * tl.load(x + token[:, None, None] * n + column[None, :, :], mask, 0.0).to(
            tl.float32
        )
    store_y(y, tl.sum(acc, 2), token, row, tokens, out)


@triton.jit(do_not_specialize=[*SIZES, "width"])
def two_four_dense(
    rows,
    values,
    positions,
    scale,
    zero,
    out,
    n,
    words,
    width,
    groups,
    group,
    BITS: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Writes W [out, n]; a row has `words` bytes of positions, and room for `width` values."""
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    line = row[:, None].to(tl.int64)
    column = tl.program_id(1) * BK + tl.arange(0, BK)[None, :]
    inside = (row[:, None] < out) & (column < n)
    s, z = levels_at(scale, zero, line, column, groups, group, inside, BITS)
    value = tl.zeros([BN, BK], tl.float32)
    for k in tl.static_range(2):
        kept = column // 4 * 2 + k
        here = inside & (position_of(positions, line, kept, inside, words) == column % 4)
        value += kept_at(values, line * width + kept, here, s, z, BITS)
    tl.store(rows + line * n + column, value.to(rows.dtype.element_ty), inside)


_MASK = {"BN": 8, "BW": 32} | LAUNCH  # one warp takes 32 words of a row, and adds their counts by itself
_DENSE = {"BN": 4, "BK": 256} | LAUNCH


def _pair(tokens: int) -> dict:
    """The tile of `two_four_few`: half as wide for several tokens, whose sums would spill otherwise."""
    return {"BN": 4, "BW": 256 if tokens <= 2 else 128} | LAUNCH


def _levels(values: Tensor, levels: Levels | None, n: int, first: int = 0) -> tuple[tuple, tuple, dict]:
    """A grid as the kernels take it, for the rows from `first` on.

    It is (scale and zero points, their counts of groups and columns, BITS).
    """
    if levels is None:
        return (values, values), (1, 8), {"BITS": FLOATS}
    scale, zero, bits, group_size = levels
    return (scale[first:], zero[first:]), (scale.shape[1], columns_of(n, group_size)), {"BITS": bits}


def _width(values: Tensor, levels: Levels | None) -> int:
    """Values that a stored row [out, in/2] of 2:4 has room for."""
    return values.shape[1] if levels is None else values.shape[1] * 8 // levels.bits


def bitmask_rows(
    kept: Tensor,
    values: Tensor,
    starts: Tensor,
    levels: Levels | None,
    first: int,
    last: int,
    n: int,
    dtype: torch.dtype,
) -> Tensor:
    """Rows [first, last) of W in `dtype`, [rows, n]."""
    rows = torch.empty(last - first, n, dtype=dtype, device=kept.device)
    if rows.numel():
        pointers, sizes, bits = _levels(values, levels, n, first)
        operands = (
            rows,
            kept[first:last],
            values,
            starts[first:],
            *pointers,
            last - first,
            n,
            kept.shape[1],
            *sizes,
        )
        with torch.cuda.device_of(kept):
            bitmask_dense[(triton.cdiv(last - first, _DENSE["BN"]),)](*operands, **bits, **_DENSE)
    return rows


def two_four_rows(
    values: Tensor,
    positions: Tensor,
    levels: Levels | None,
    first: int,
    last: int,
    n: int,
    dtype: torch.dtype,
) -> Tensor:
    """Rows [first, last) of W in `dtype`, [rows, n]."""
    rows = torch.empty(last - first, n, dtype=dtype, device=values.device)
    if rows.numel():
        pointers, sizes, bits = _levels(values, levels, n, first)
        counts = (last - first, n, positions.shape[1], _width(values, levels), *sizes)
        grid = (triton.cdiv(last - first, _DENSE["BN"]), triton.cdiv(n, _DENSE["BK"]))
        with torch.cuda.device_of(values):
            two_four_dense[grid](
                rows, values[first:last], positions[first:last], *pointers, *counts, **bits, **_DENSE
            )
    return rows


def bitmask(x: Tensor, kept: Tensor, values: Tensor, starts: Tensor, levels: Levels | None = None) -> Tensor:
    """y [tokens, out] in x's dtype."""
    x, (tokens, n), (out, words) = x.contiguous(), x.shape, kept.shape
    if tokens > FEW_TOKENS:
        return _by_blocks(
            x, out, lambda first, last: bitmask_rows(kept, values, starts, levels, first, last, n, x.dtype)
        )
    y = torch.empty(tokens, out, dtype=x.dtype, device=x.device)
    if y.numel():
        pointers, sizes, bits = _levels(values, levels, n)
        tiles = {"BM": triton.next_power_of_2(tokens)} | _MASK
        operands = (x, kept, values, starts, *pointers, y, tokens, out, n, words, *sizes)
        with torch.cuda.device_of(x):
            bitmask_few[(triton.cdiv(out, tiles["BN"]),)](*operands, **bits, **tiles)
    return y


def two_four(x: Tensor, values: Tensor, positions: Tensor, levels: Levels | None = None) -> Tensor:
    """y [tokens, out] in x's dtype."""
    x, (tokens, n), out = x.contiguous(), x.shape, len(values)
    if tokens > FEW_TOKENS:

        def rows_of(first, last):
            return two_four_rows(values, positions, levels, first, last, n, x.dtype)

        return _by_blocks(x, out, rows_of, sparse_cores.product if sparse_cores.serve(x, out) else F.linear)
    y = torch.empty(tokens, out, dtype=x.dtype, device=x.device)
    if y.numel():
        pointers, sizes, bits = _levels(values, levels, n)
        tiles = {"BM": triton.next_power_of_2(tokens)} | _pair(tokens)
        operands = (
            x,
            values,
            positions,
            *pointers,
            y,
            tokens,
            out,
            n,
            positions.shape[1],
            _width(values, levels),
            *sizes,
        )
        with torch.cuda.device_of(x):
            two_four_few[(triton.cdiv(out, tiles["BN"]),)](*operands, **bits, **tiles)
    return y


def _by_blocks(x: Tensor, out: int, rows_of, product=F.linear) -> Tensor:
    """x times the transpose of W [out, in], a block at a time; `rows_of` writes rows [first, last)."""
    y = torch.empty(len(x), out, dtype=x.dtype, device=x.device)
    step = max(1, BLOCK // x.shape[1])
    if step > sparse_cores.ROWS:
        step -= step % sparse_cores.ROWS
    for first in range(0, out, step):
        last = min(first + step, out)
        y[:, first:last] = product(x, rows_of(first, last))
    return y


def _variant(kernel, bits: int, of_x: str, tiles: dict) -> Variant:
    """`kernel` for values of `bits`; `of_x` is the type of x, or of the rows that it writes."""
    pointers = {"x": of_x, "rows": of_x, "y": of_x, "kept": "u8", "positions": "u8", "starts": "i32"}
    grid = (
        {"values": "fp16", "scale": "fp16", "zero": "fp16"}
        if bits == FLOATS
        else {"values": "u8", "scale": "fp16", "zero": "u8"}
    )
    pointers = {name: kind for name, kind in (pointers | grid).items() if name in kernel.arg_names}
    return Variant(kernel, pointers, {"BITS": bits} | tiles)


VARIANTS = (
    *(_variant(bitmask_few, bits, "fp16", {"BM": 1} | _MASK) for bits in (FLOATS, 8, 4, 3)),
    *(_variant(two_four_few, bits, "fp16", {"BM": 1} | _pair(1)) for bits in (FLOATS, 8, 4, 3)),
    *(_variant(bitmask_few, bits, "bf16", {"BM": 8} | _MASK) for bits in (FLOATS, 4, 3)),
    *(_variant(two_four_few, bits, "bf16", {"BM": 8} | _pair(8)) for bits in (FLOATS, 4, 3)),
    *(
        _variant(kernel, bits, "fp16", _DENSE)
        for kernel in (bitmask_dense, two_four_dense)
        for bits in (FLOATS, 4)
    ),
)
