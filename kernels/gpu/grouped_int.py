"""y = x W^T for grouped integers on a graphics card: W[o, i] = scale[o, g(i)] * (q[o, i] - zero[o, g(i)]).

x      [tokens, in]
codes  uint8 [out, row_bytes(in, bits)] (kernels/bits.py), 2 to 8 bits
scale  float16 [out, groups]
zero   uint8 or float16 [out, groups]

g(i) = i // group_size; group_size is a multiple of 16, or -1 for the whole row; the last group may be
shorter. Bytes moved: bits/8 a weight, 3 or 4 a group, and x and y. In `two_level_int` scales and zero points
are codes themselves, and are read as they are stored.

Few tokens: each program walks some rows of W, takes the zero point out of the sums (kernels/grouped_int.py)
and keeps partial sums in each thread until the end. Many tokens: a tile of W is decoded to x's dtype and
multiplied on the tensor cores.
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
    grid_at,
    lane,
    lane_of_x,
    many_tiles,
    store_y,
    tile_of_x,
)


@triton.jit(do_not_specialize=SIZES)
def few(
    x,
    codes,
    scale,
    zero,
    scale_stats,
    zero_stats,
    y,
    tokens,
    out,
    n,
    words,
    groups,
    group,
    BITS: tl.constexpr,
    LEVEL: tl.constexpr,
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
        code = eight_codes(codes, line * words + word[None, :], inside, BITS)
        s, z = grid_at(
            scale, zero, scale_stats, zero_stats, line, (word * 8 // group)[None, :], groups, inside, LEVEL
        )
        dot, total = tl.zeros([BM, BN, BW], tl.float32), tl.zeros([BM, BW], tl.float32)
        for j in tl.static_range(8):
            xj = lane_of_x(x, token, word, tokens, n, j)
            total += xj
            dot += lane(code, j, BITS)[None, :, :] * (xj * (1.0 / (1 << (BITS * j % 16))))[:, None, :]
        acc += s[None, :, :] * (dot - z[None, :, :] * total[:, None, :])
    store_y(y, tl.sum(acc, 2), token, row, tokens, out)


@triton.jit(do_not_specialize=ODD)
def many(
    x,
    codes,
    scale,
    zero,
    scale_stats,
    zero_stats,
    y,
    tokens,
    out,
    n,
    words,
    groups,
    group,
    BITS: tl.constexpr,
    LEVEL: tl.constexpr,
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
        code = eight_codes(codes, line * words + word[None, :], inside, BITS)[:, :, None]
        q = (code >> (BITS * tl.arange(0, 8))[None, None, :]) & ((1 << BITS) - 1)
        s, z = grid_at(
            scale, zero, scale_stats, zero_stats, line, (word * 8 // group)[None, :], groups, inside, LEVEL
        )
        weight = tl.reshape(s[:, :, None] * (q.to(tl.float32) - z[:, :, None]), [BN, BK]).to(
            x.dtype.element_ty
        )
        block = tile_of_x(x, token, start + tl.arange(0, BK), tokens, n)
        acc = tl.dot(block, tl.trans(weight), acc, input_precision="ieee")
    store_y(y, acc, token, row, tokens, out)


def grouped_int(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, bits: int, group_size: int) -> Tensor:
    """y [tokens, out] in x's dtype."""
    # the two pointers to statistics are not read; scale and zero stand in for them
    return _launch(x, codes, scale, zero, scale, zero, scale.shape[1], bits, group_size, 0)


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
    return _launch(x, codes, *levels, *stats, stats[0].shape[1], bits, group_size, level_bits)


def _launch(x, codes, scale, zero, scale_stats, zero_stats, groups, bits, group_size, level_bits) -> Tensor:
    x, (tokens, n), out = x.contiguous(), x.shape, len(codes)
    y = torch.empty(tokens, out, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    operands: tuple = (x, as_words(codes, bits), scale, zero, scale_stats, zero_stats, y)
    operands += (tokens, out, n, -(-n // 8), groups, columns_of(n, group_size))
    constants = {"BITS": bits, "LEVEL": level_bits}
    with torch.cuda.device_of(x):
        if tokens <= FEW_TOKENS:
            tiles = few_tiles(tokens)
            few[(triton.cdiv(out, tiles["BN"]),)](*operands, **constants, **tiles)
        else:
            tiles = many_tiles(tokens, x.dtype)
            many[(triton.cdiv(out, tiles["BN"]), triton.cdiv(tokens, tiles["BM"]))](
                *operands, **constants, **tiles
            )
    return y


def _variant(
    kernel, bits: int, dtype: torch.dtype, tokens: int, zero: str = "u8", level_bits: int = 0
) -> Variant:
    """`kernel` for codes of `bits` and x in `dtype`, tiled for `tokens`; zero: the zero points' type."""
    tiles = few_tiles(tokens) if kernel is few else many_tiles(tokens, dtype)
    word = {2: "i16", 4: "i32", 8: "i64"}.get(bits, "u8")
    of_x = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    pointers = {
        "x": of_x,
        "codes": word,
        "scale": "u8" if level_bits else "fp16",
        "zero": zero,
        "scale_stats": "fp16",
        "zero_stats": "fp16",
        "y": of_x,
    }
    return Variant(kernel, pointers, {"BITS": bits, "LEVEL": level_bits} | tiles)


VARIANTS = (
    *(_variant(few, bits, torch.float16, 1) for bits in (2, 3, 4, 8)),
    _variant(few, 4, torch.bfloat16, 8),
    *(_variant(many, bits, torch.float16, 64) for bits in (4, 8)),
    _variant(many, 4, torch.bfloat16, 16),
    _variant(many, 4, torch.float32, 64),
    *(_variant(kernel, 4, torch.float16, tokens, zero="fp16") for kernel, tokens in ((few, 1), (many, 64))),
    *(_variant(few, 3, torch.float16, tokens, level_bits=3) for tokens in (1, 8)),
    *(_variant(many, bits, torch.float16, 64, level_bits=3) for bits in (3, 4)),
)
