"""y = x W^T for 4-bit codes into a table on a graphics card: W[o, i] = scale[o, g(i)] * table[q[o, i]].

x [tokens, in]; codes uint8 [out, row_bytes(in, 4)] (kernels/bits.py); scale float16 [out, groups]; table
float32 [16]. g(i) = i // group_size; group_size is a multiple of 16, or -1 for the whole row; the last group
may be shorter. Bytes moved: half a byte a weight, 2 a group (1 if scales are nested, kernels/grids.py), and x
and y. The tables take 1 kB at most and stay in the first-level cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import Variant
from kernels.gpu.decode import (
    FEW_TOKENS,
    ODD,
    SIZES,
    as_words,
    columns_of,
    eight_codes,
    few_tiles,
    lane_of_x,
    many_tiles,
    store_y,
    tile_of_x,
)
from kernels.grids import dynamic_map


@triton.jit
def scale_at(scale, map, absmax, offset, place, inside, NESTED: tl.constexpr):
    """The scales at `place`, which counts them row by row; float32."""
    s = tl.load(scale + place, inside, 0)
    if NESTED:
        largest = tl.load(absmax + place // 256, inside, 0.0)
        return tl.load(map + s.to(tl.int32)) * largest + tl.load(offset)
    return s.to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def few(
    x,
    codes,
    scale,
    map,
    absmax,
    offset,
    table,
    y,
    tokens,
    out,
    n,
    words,
    groups,
    group,
    NESTED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BW: tl.constexpr,
):
    """Rows [BN] of W times all tokens [BM]."""
    token, row = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    line = row[:, None].to(tl.int64)
    acc = tl.zeros([BM, BN, BW], tl.float32)
    for start in range(0, words, BW):
        word = start + tl.arange(0, BW)
        inside = (row[:, None] < out) & (word[None, :] < words)
        code = eight_codes(codes, line * words + word[None, :], inside, 4)
        s = scale_at(scale, map, absmax, offset, line * groups + (word * 8 // group)[None, :], inside, NESTED)
        dot = tl.zeros([BM, BN, BW], tl.float32)
        for j in tl.static_range(8):
            value = tl.load(table + ((code >> (4 * j)) & 15))
            dot += value[None, :, :] * lane_of_x(x, token, word, tokens, n, j)[:, None, :]
        acc += s[None, :, :] * dot
    store_y(y, tl.sum(acc, 2), token, row, tokens, out)


@triton.jit(do_not_specialize=ODD)
def many(
    x,
    codes,
    scale,
    map,
    absmax,
    offset,
    table,
    y,
    tokens,
    out,
    n,
    words,
    groups,
    group,
    NESTED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Rows [BN] of W times a block of tokens [BM]."""
    token, row = tl.program_id(1) * BM + tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    line = row[:, None].to(tl.int64)
    acc = tl.zeros([BM, BN], tl.float32)
    for start in range(0, n, BK):
        word = start // 8 + tl.arange(0, BK // 8)
        inside = (row[:, None] < out) & (word[None, :] < words)
        code = eight_codes(codes, line * words + word[None, :], inside, 4)[:, :, None]
        value = tl.load(table + ((code >> (4 * tl.arange(0, 8))[None, None, :]) & 15))
        s = scale_at(scale, map, absmax, offset, line * groups + (word * 8 // group)[None, :], inside, NESTED)
        weight = tl.reshape(s[:, :, None] * value, [BN, BK]).to(x.dtype.element_ty)
        block = tile_of_x(x, token, start + tl.arange(0, BK), tokens, n)
        acc = tl.dot(block, tl.trans(weight), acc, input_precision="ieee")
    store_y(y, acc, token, row, tokens, out)


def codebook(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    table: Tensor,
    group_size: int,
    absmax: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """y [tokens, out] in x's dtype; nested scales come with their absmax and offset."""
    x, (tokens, n), out = x.contiguous(), x.shape, len(codes)
    y = torch.empty(tokens, out, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    operands = (
        x,
        as_words(codes, 4),
        scale,
        # without nested scales the kernel reads none of these pointers; they may be any
        *((table, table, table) if absmax is None else (dynamic_map(x.device), absmax, offset)),
        table.float(),
        y,
        tokens,
        out,
        n,
        -(-n // 8),
        scale.shape[1],
        columns_of(n, group_size),
    )
    with torch.cuda.device_of(x):
        if tokens <= FEW_TOKENS:
            tiles = few_tiles(tokens)
            few[(triton.cdiv(out, tiles["BN"]),)](*operands, NESTED=absmax is not None, **tiles)
        else:
            tiles = many_tiles(tokens, x.dtype)
            grid = (triton.cdiv(out, tiles["BN"]), triton.cdiv(tokens, tiles["BM"]))
            many[grid](*operands, NESTED=absmax is not None, **tiles)
    return y


_POINTERS = {
    "x": "fp16",
    "codes": "i32",
    "scale": "fp16",
    "map": "fp32",
    "absmax": "fp32",
    "offset": "fp32",
    "table": "fp32",
    "y": "fp16",
}

VARIANTS = tuple(
    Variant(kernel, _POINTERS | {"scale": scale}, {"NESTED": scale == "u8"} | tiles)
    for kernel, tiles in ((few, few_tiles(1)), (many, many_tiles(64, torch.float16)))
    for scale in ("fp16", "u8")
)
