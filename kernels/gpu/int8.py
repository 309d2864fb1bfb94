"""y = x' W^T with x' = x rounded to int8, a scale a token, on a graphics card: both factors are whole numbers.

W[o, i] = scale[o] * (q[o, i] - 128). x [tokens, in]; codes uint8 [out, ceil(in/8) * 8]; scale float16 [out, 1]; zero
uint8 [out, 1], 128 everywhere; one group a row. With s[t] = max_i |x[t, i]| / top and r = round(x / s), ties to even,

    y[t, o] = s[t] * scale[o] * sum_i r[t, i] * (q[o, i] - 128),

the sum exact in int32 (in < 130,000). Bytes moved: 1 a weight; x once to round it, a byte of it to multiply.
Rounding x makes it another product than that of grouped_int.py, and a run says so.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import Variant
from kernels.gpu.decode import LAUNCH, ODD, SIZES, tile_of_x

ROUND = {"BK": 1024} | LAUNCH


@triton.jit(do_not_specialize=SIZES)
def round_tokens(x, rounded, step, n, TOP: tl.constexpr, BK: tl.constexpr):
    """One token: its step float32 [tokens] and its integers int8 [tokens, in]."""
    token = tl.program_id(0)
    line = token.to(tl.int64) * n
    largest = tl.zeros([BK], tl.float32)
    for start in range(0, n, BK):
        column = start + tl.arange(0, BK)
        largest = tl.maximum(largest, tl.abs(tl.load(x + line + column, column < n, 0.0).to(tl.float32)))
    s = tl.div_rn(tl.max(largest, 0), TOP * 1.0)
    tl.store(step + token, s)
    s = tl.where(s > 0, s, 1.0)
    for start in range(0, n, BK):
        column = start + tl.arange(0, BK)
        r = tl.div_rn(tl.load(x + line + column, column < n, 0.0).to(tl.float32), s + tl.zeros([BK], tl.float32))
        r = (r + 12582912.0) - 12582912.0  # 1.5 * 2^23 leaves no bit for a fraction: the nearest integer, ties to even
        tl.store(rounded + line + column, r.to(tl.int8), column < n)


@triton.jit(do_not_specialize=ODD)
def product(x, codes, step, scale, y, tokens, out, n, columns,
            BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """Rows [BN] of W times a block of rounded tokens [BM]."""
    token, row = tl.program_id(1) * BM + tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    line = row[None, :].to(tl.int64) * columns
    acc = tl.zeros([BM, BN], tl.int32)
    for start in range(0, n, BK):
        column = start + tl.arange(0, BK)
        code = tl.load(codes + line + column[:, None], (row[None, :] < out) & (column[:, None] < n), 0)
        weight = (code ^ 128).to(tl.int8, bitcast=True)  # q - 128
        acc = tl.dot(tile_of_x(x, token, column, tokens, n), weight, acc, out_dtype=tl.int32)
    s = tl.load(step + token, token < tokens, 0.0)[:, None] * tl.load(scale + row, row < out, 0.0).to(tl.float32)[None, :]
    at = token[:, None].to(tl.int64) * out + row[None, :]
    tl.store(y + at, (acc.to(tl.float32) * s).to(y.dtype.element_ty), (token[:, None] < tokens) & (row[None, :] < out))


def _tiles(tokens: int) -> dict:
    return {"BM": 16 if tokens <= 16 else 64, "BN": 64, "BK": 128} | LAUNCH


def int8_product(x: Tensor, codes: Tensor, scale: Tensor, zero: Tensor, group_size: int, top: int = 127) -> Tensor:
    """y [tokens, out] in x's dtype; `zero` and `group_size` are those of the layout above, whatever they hold."""
    if scale.shape[1] != 1:
        raise ValueError(f"int8_product takes one group a row, got {scale.shape[1]}: multiply with grouped_int instead")
    x, (tokens, n), out = x.contiguous(), x.shape, len(codes)
    y = torch.empty(tokens, out, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    rounded = torch.empty(tokens, n, dtype=torch.int8, device=x.device)
    step = torch.empty(tokens, dtype=torch.float32, device=x.device)
    tiles = _tiles(tokens)
    with torch.cuda.device_of(x):
        round_tokens[(tokens,)](x, rounded, step, n, TOP=top, **ROUND)
        grid = (triton.cdiv(out, tiles["BN"]), triton.cdiv(tokens, tiles["BM"]))
        product[grid](rounded, codes, step, scale, y, tokens, out, n, codes.shape[1], **tiles)
    return y


_POINTERS = {"x": "i8", "codes": "u8", "step": "fp32", "scale": "fp16", "y": "fp16"}

VARIANTS = (
    Variant(round_tokens, {"x": "fp16", "rounded": "i8", "step": "fp32"}, {"TOP": 127} | ROUND),
    Variant(product, _POINTERS, _tiles(1)),
    Variant(product, _POINTERS, _tiles(64)),
)
