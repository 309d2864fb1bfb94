"""y = x W^T for binary-coded weights on a graphics card, the format of LUT-GEMM (Park et al. 2022).

    W[o, i] = sum_k alpha[k, o, g(i)] * b_k[o, i] + offset[o, g(i)]        (eq. 1 and 3)

x       [tokens, in]
planes  uint8 [bits, out, ceil(in/8)], bit i % 8 of byte i // 8 set where b_k = +1, else -1
alpha   float16 [bits, out, groups]
offset  float16 or float32 [out, groups], or None

g(i) = i // group_size; group_size is a multiple of 16, or -1 for the whole row; the last group may be
shorter. Bytes moved: bits/8 a weight, 2 (bits + 1) a group, and x and y.

Few tokens have two kernels.
- `few` adds. For each plane it takes twice the sum of x over the set bits, less the sum of x. This needs
  selections and additions, and one multiplication for each word and plane.
- `looked` is LUT-GEMM's own way (section 3.2). For every MU neighbouring inputs it computes all 2^MU sums of
  +-x once for a block of rows; then MU bits of a plane are the index of their sum.

The paper has MU = 8 and keeps its tables in shared memory, one for each byte. Triton leaves no choice of the
memory: it keeps a table in the registers of a warp and reads it from the other threads by shuffles. A table
of 16 sums (MU = 4) for 16 rows takes one shuffle for each look-up. A table of 256 takes eight, which are as
many operations as adding eight inputs. Which way is faster must be measured on a card (kernels/bench_gpu.py
times all three). As long as nobody has measured it, `few` is used.

For many tokens a tile of W is decoded to x's dtype and multiplied on the tensor cores.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import Variant
from kernels.gpu.decode import (
    FEW_TOKENS,
    LAUNCH,
    ODD,
    SIZES,
    columns_of,
    few_tiles,
    lane_of_x,
    many_tiles,
    store_y,
    tile_of_x,
)

FEW_ROWS = {"BN": 4}
MU = 4  # inputs that share a table
LOOK_TILES = {
    4: {"BN": 16, "BR": 32},
    8: {"BN": 128, "BR": 8},
}  # rows, and tables of 2^MU sums; 16 rows by 16 sums: one shuffle a look-up


@triton.jit(do_not_specialize=SIZES)
def few(
    x,
    planes,
    alpha,
    offset,
    y,
    tokens,
    out,
    n,
    words,
    groups,
    group,
    BITS: tl.constexpr,
    OFFSET: tl.constexpr,
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
        at = (word * 8 // group)[None, :]
        total = tl.zeros([BM, BW], tl.float32)
        for j in tl.static_range(8):
            total += lane_of_x(x, token, word, tokens, n, j)
        if OFFSET:
            acc += (
                tl.load(offset + line * groups + at, inside, 0.0).to(tl.float32)[None, :, :]
                * total[:, None, :]
            )
        # not unrolled: the planes' bytes and scales would all be held at once, and spill
        for k in range(BITS):
            plane = line + k * out
            byte = tl.load(planes + plane * words + word[None, :], inside, 0)
            scale = tl.load(alpha + plane * groups + at, inside, 0.0).to(tl.float32)
            set_sum = tl.zeros([BM, BN, BW], tl.float32)
            for j in tl.static_range(8):
                xj = lane_of_x(x, token, word, tokens, n, j)[:, None, :]
                set_sum += tl.where((byte & (1 << j))[None, :, :] != 0, xj, 0.0)
            acc += scale[None, :, :] * (2 * set_sum - total[:, None, :])
    store_y(y, tl.sum(acc, 2), token, row, tokens, out)


@triton.jit(do_not_specialize=SIZES)
def looked(
    x,
    planes,
    alpha,
    offset,
    y,
    tokens,
    out,
    n,
    words,
    groups,
    group,
    BITS: tl.constexpr,
    OFFSET: tl.constexpr,
    MU: tl.constexpr,
    BN: tl.constexpr,
    BR: tl.constexpr,
):
    """Rows [BN] of W times one token, BR runs of MU columns at a time; a run's table has 2^MU sums."""
    row, token = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1)
    line = row[None, :].to(tl.int64)
    key = tl.arange(0, 1 << MU)[None, :]
    acc = tl.zeros([BR, BN], tl.float32)
    for start in range(0, words * (8 // MU), BR):
        run = start + tl.arange(0, BR)
        word = run * MU // 8
        inside = (row[None, :] < out) & (word[:, None] < words)
        at = (run * MU // group)[:, None]
        table, total = tl.zeros([BR, 1 << MU], tl.float32), tl.zeros([BR], tl.float32)
        for j in tl.static_range(MU):
            column = run * MU + j
            xj = tl.load(x + token * n + column, column < n, 0.0).to(tl.float32)
            total += xj
            table += tl.where((key & (1 << j)) != 0, xj[:, None], -xj[:, None])
        if OFFSET:
            acc += tl.load(offset + line * groups + at, inside, 0.0).to(tl.float32) * total[:, None]
        for k in range(BITS):
            plane = line + k * out
            byte = tl.load(planes + plane * words + word[:, None], inside, 0).to(tl.int32)
            signs = (byte >> (run * MU % 8)[:, None]) & ((1 << MU) - 1)
            scale = tl.load(alpha + plane * groups + at, inside, 0.0).to(tl.float32)
            acc += scale * tl.gather(table, signs, 1)
    tl.store(y + token * out + row, tl.sum(acc, 0).to(y.dtype.element_ty), row < out)


@triton.jit(do_not_specialize=ODD)
def many(
    x,
    planes,
    alpha,
    offset,
    y,
    tokens,
    out,
    n,
    words,
    groups,
    group,
    BITS: tl.constexpr,
    OFFSET: tl.constexpr,
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
        at = (word * 8 // group)[None, :]
        weight = tl.zeros([BN, BK // 8, 8], tl.float32)
        if OFFSET:
            weight += tl.load(offset + line * groups + at, inside, 0.0).to(tl.float32)[:, :, None]
        for k in tl.static_range(BITS):
            plane = line + k * out
            byte = tl.load(planes + plane * words + word[None, :], inside, 0)[:, :, None].to(tl.int32)
            scale = tl.load(alpha + plane * groups + at, inside, 0.0).to(tl.float32)[:, :, None]
            weight += tl.where(((byte >> tl.arange(0, 8)[None, None, :]) & 1) != 0, scale, -scale)
        weight = tl.reshape(weight, [BN, BK]).to(x.dtype.element_ty)
        block = tile_of_x(x, token, start + tl.arange(0, BK), tokens, n)
        acc = tl.dot(block, tl.trans(weight), acc, input_precision="ieee")
    store_y(y, acc, token, row, tokens, out)


def look_tiles(mu: int) -> dict:
    """Tile of `looked`, and how it is launched."""
    return {"MU": mu} | LOOK_TILES[mu] | LAUNCH


def looked_up(
    x: Tensor, planes: Tensor, alpha: Tensor, offset: Tensor | None, group_size: int, mu: int = MU
) -> Tensor:
    """`binary_coded` where few tokens look up the sums of `mu` inputs; `mu` is 4 or 8."""
    return binary_coded(x, planes, alpha, offset, group_size, mu)


def binary_coded(
    x: Tensor, planes: Tensor, alpha: Tensor, offset: Tensor | None, group_size: int, mu: int = 0
) -> Tensor:
    """y [tokens, out] in x's dtype. mu: few tokens look up the sums of `mu` inputs; 0: they add."""
    if mu and mu not in LOOK_TILES:
        raise ValueError(
            f"got tables of {mu} inputs; a table takes 4 or 8 inputs, which divide a byte, or 0 for no tables"
        )
    x, (tokens, n), (bits, out, words) = x.contiguous(), x.shape, planes.shape
    y = torch.empty(tokens, out, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    without = offset is None  # the kernel then reads no offset; it still needs a pointer
    operands = (
        x,
        planes,
        alpha,
        alpha if without else offset,
        y,
        tokens,
        out,
        n,
        words,
        alpha.shape[2],
        columns_of(n, group_size),
    )
    constants = {"BITS": bits, "OFFSET": not without}
    with torch.cuda.device_of(x):
        if tokens <= FEW_TOKENS and mu:
            tiles = look_tiles(mu)
            looked[(triton.cdiv(out, tiles["BN"]), tokens)](*operands, **constants, **tiles)
        elif tokens <= FEW_TOKENS:
            tiles = few_tiles(tokens) | FEW_ROWS
            few[(triton.cdiv(out, tiles["BN"]),)](*operands, **constants, **tiles)
        else:
            tiles = many_tiles(tokens, x.dtype)
            many[(triton.cdiv(out, tiles["BN"]), triton.cdiv(tokens, tiles["BM"]))](
                *operands, **constants, **tiles
            )
    return y


_POINTERS = {"x": "fp16", "planes": "u8", "alpha": "fp16", "offset": "fp16", "y": "fp16"}
_CONSTANTS = {"BITS": 4, "OFFSET": True}

VARIANTS = (
    Variant(few, _POINTERS, _CONSTANTS | few_tiles(1) | FEW_ROWS),
    Variant(few, _POINTERS, _CONSTANTS | few_tiles(8) | FEW_ROWS),
    Variant(looked, _POINTERS, _CONSTANTS | look_tiles(8)),
    Variant(looked, _POINTERS, _CONSTANTS | look_tiles(4)),
    Variant(many, _POINTERS, _CONSTANTS | many_tiles(64, torch.float16)),
    Variant(looked, _POINTERS | {"offset": "fp32"}, _CONSTANTS | look_tiles(8)),
    Variant(few, _POINTERS | {"offset": "fp32"}, _CONSTANTS | few_tiles(1) | FEW_ROWS),
    Variant(many, _POINTERS | {"offset": "fp32"}, _CONSTANTS | many_tiles(64, torch.float16)),
)
