"""y = x' W^T on a graphics card, where x' is x rounded to int8 with one scale for each token.

So both factors are whole numbers. W[o, i] = scale[o] * (q[o, i] - 128).

x      [tokens, in]
codes  uint8 [out, ceil(in/8) * 8], the integers q
scale  float16 [out, 1]
zero   uint8 [out, 1], 128 everywhere; one group a row

With s[t] = max_i |x[t, i]| / top and r = round(x / s), ties to even,

    y[t, o] = s[t] * scale[o] * sum_i r[t, i] * (q[o, i] - 128),

where the sum is exact in int32 (in < 130,000). Bytes moved: 1 a weight; x once to round it, and a byte of it
to multiply. Because x is rounded, the product differs from that of grouped_int.py, and a run says so.

With a threshold (LLM.int8()), inputs of at least its size neither count for s nor are rounded. Their places
are listed token by token. After the integers' sum, each such input is multiplied by its column of W. Nothing
waits for the host to count them.

With a zero point, the integers run from a token's least to its largest input (0 is among them): s = (max -
min) / (2 top), z = round(-top - min / s), r = round(x / s) + z. Then

    y[t, o] = scale[o] * s[t] * (sum_i r (q - 128) - z[t] sum_i (q - 128)).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import Variant
from kernels.gpu.decode import LAUNCH, ODD, SIZES, store_y, tile_of_x

ROUND = {"BK": 1024} | LAUNCH


@triton.jit(do_not_specialize=SIZES)
def round_tokens(
    x,
    rounded,
    step,
    zero,
    places,
    counts,
    n,
    TOP: tl.constexpr,
    THRESHOLD: tl.constexpr,
    SHIFTED: tl.constexpr,
    BK: tl.constexpr,
):
    """Round one token: its step float32 [tokens] and its integers int8 [tokens, in].

    Inputs of at least THRESHOLD (0: none) are left out; their places int32 [tokens, in] and their number
    int32 [tokens] are written. SHIFTED: the integers have a zero point, float32 [tokens].
    """
    token = tl.program_id(0)
    line = token.to(tl.int64) * n
    largest = tl.zeros([BK], tl.float32)
    least = tl.zeros([BK], tl.float32)
    spoiled = tl.zeros([BK], tl.float32)
    for start in range(0, n, BK):
        column = start + tl.arange(0, BK)
        v = tl.load(x + line + column, column < n, 0.0).to(tl.float32)
        if THRESHOLD > 0:
            v = tl.where(tl.abs(v) >= THRESHOLD, 0.0, v)
        largest = tl.maximum(largest, v if SHIFTED else tl.abs(v))
        least = tl.minimum(least, v)
        spoiled += v * 0.0  # NaN where a value isn't finite, so that its token stays so
    low = tl.min(least, 0)
    reach = (tl.max(largest, 0) - low) / 2 if SHIFTED else tl.max(largest, 0)
    s = tl.div_rn(reach, TOP * 1.0) + tl.sum(spoiled, 0)
    tl.store(step + token, s)
    s = tl.where(s > 0, s, 1.0)
    z = 0.0
    if SHIFTED:
        z = ((-TOP - tl.div_rn(low, s)) + 12582912.0) - 12582912.0
        tl.store(zero + token, z)
    count = 0
    for start in range(0, n, BK):
        column = start + tl.arange(0, BK)
        v = tl.load(x + line + column, column < n, 0.0).to(tl.float32)
        if THRESHOLD > 0:
            large = tl.abs(v) >= THRESHOLD
            v = tl.where(large, 0.0, v)
            ahead = tl.cumsum(large.to(tl.int32), 0)
            tl.store(places + line + count + ahead - 1, column, large)
            count += tl.max(ahead, 0)
        r = tl.div_rn(v, s + tl.zeros([BK], tl.float32))
        # 1.5 * 2^23 leaves no bit for a fraction: the nearest integer, ties to even
        r = (r + 12582912.0) - 12582912.0
        if SHIFTED:
            r = tl.minimum(tl.maximum(r + z, -TOP), TOP)
        tl.store(rounded + line + column, r.to(tl.int8), column < n)
    if THRESHOLD > 0:
        tl.store(counts + token, count)


@triton.jit(do_not_specialize=ODD)
def product(
    x,
    codes,
    step,
    zero,
    scale,
    exact,
    places,
    counts,
    y,
    tokens,
    out,
    n,
    columns,
    SPLIT: tl.constexpr,
    SHIFTED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Rows [BN] of W times a block of rounded tokens [BM].

    SPLIT: also times the inputs that weren't rounded, from `exact`. SHIFTED: each token's integers have a
    zero point.
    """
    token, row = tl.program_id(1) * BM + tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    line = row[None, :].to(tl.int64) * columns
    acc, every = tl.zeros([BM, BN], tl.int32), tl.zeros([BN], tl.int32)
    for start in range(0, n, BK):
        column = start + tl.arange(0, BK)
        code = tl.load(codes + line + column[:, None], (row[None, :] < out) & (column[:, None] < n), 128)
        weight = (code ^ 128).to(tl.int8, bitcast=True)  # q - 128
        if SHIFTED:
            every += tl.sum(weight.to(tl.int32), 0)
        acc = tl.dot(tile_of_x(x, token, column, tokens, n), weight, acc, out_dtype=tl.int32)
    sums = acc.to(tl.float32)
    if SHIFTED:
        sums -= tl.load(zero + token, token < tokens, 0.0)[:, None] * every.to(tl.float32)[None, :]
    sums *= tl.load(step + token, token < tokens, 0.0)[:, None]
    if SPLIT:
        count = tl.load(counts + token, token < tokens, 0)
        for k in range(0, tl.max(count, 0)):
            at = token.to(tl.int64) * n
            place = tl.load(places + at + k, k < count, 0)
            value = tl.load(exact + at + place, k < count, 0.0).to(tl.float32)
            code = tl.load(codes + line + place[:, None], (k < count)[:, None] & (row[None, :] < out), 128)
            sums += value[:, None] * (code.to(tl.float32) - 128)
    sums *= tl.load(scale + row, row < out, 0.0).to(tl.float32)[None, :]
    store_y(y, sums, token, row, tokens, out)


def _tiles(tokens: int, split: bool, shifted: bool) -> dict:
    tiles = {
        "BM": 16 if tokens <= 16 else 64,
        "BN": 64,
        "BK": 128,
        "SPLIT": split,
        "SHIFTED": shifted,
    } | LAUNCH
    # with 4, a column's codes beside the sums spill
    return tiles | {"num_warps": 8} if split and tokens > 16 else tiles


def int8_product(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor,
    group_size: int,
    top: int = 127,
    threshold: float | None = None,
    zero_point: bool = False,
) -> Tensor:
    """y [tokens, out] in x's dtype.

    `zero` and `group_size` are not read: the layout above fixes them.
    """
    if scale.shape[1] != 1:
        raise ValueError(
            f"int8_product takes one group a row, got {scale.shape[1]}: multiply with grouped_int instead"
        )
    x, (tokens, n), out = x.contiguous(), x.shape, len(codes)
    y = torch.empty(tokens, out, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    rounded = torch.empty(tokens, n, dtype=torch.int8, device=x.device)
    step, zeros = (torch.empty(tokens, dtype=torch.float32, device=x.device) for _ in range(2))
    split = threshold is not None
    tiles = _tiles(tokens, split, zero_point)
    places = torch.empty(tokens * n if split else 1, dtype=torch.int32, device=x.device)
    counts = torch.empty(tokens if split else 1, dtype=torch.int32, device=x.device)
    with torch.cuda.device_of(x):
        rule = {"TOP": top, "THRESHOLD": threshold or 0.0, "SHIFTED": zero_point}
        round_tokens[(tokens,)](x, rounded, step, zeros, places, counts, n, **rule, **ROUND)
        grid = (triton.cdiv(out, tiles["BN"]), triton.cdiv(tokens, tiles["BM"]))
        product[grid](
            rounded, codes, step, zeros, scale, x, places, counts, y, tokens, out, n, codes.shape[1], **tiles
        )
    return y


_LISTS = {"places": "i32", "counts": "i32"}
_ROUNDED = {"x": "fp16", "rounded": "i8", "step": "fp32", "zero": "fp32"} | _LISTS
_POINTERS = (
    {"x": "i8", "codes": "u8", "step": "fp32", "zero": "fp32", "scale": "fp16", "exact": "fp16"}
    | _LISTS
    | {"y": "fp16"}
)

VARIANTS = tuple(
    variant
    for split in (False, True)
    for shifted in (False, True)
    for variant in (
        Variant(round_tokens, _ROUNDED, {"TOP": 127, "THRESHOLD": 6.0 * split, "SHIFTED": shifted} | ROUND),
        Variant(product, _POINTERS, _tiles(1, split, shifted)),
        Variant(product, _POINTERS, _tiles(64, split, shifted)),
    )
)
