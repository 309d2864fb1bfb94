"""y = x W^T for a few whole columns of W on a graphics card. OWQ adds it to another product.

x [tokens, in]; values float16 [out, k]; index int32 [k], the numbers of the columns. Bytes moved: 2 a value,
4 a column, k of each token's inputs, and y.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import Variant
from kernels.gpu.decode import FEW_TOKENS, LAUNCH, SIZES, store_y


@triton.jit(do_not_specialize=[*SIZES, "count"])
def rows_times_tokens(
    x, values, index, y, tokens, out, n, count, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """Rows [BN] of W times a block of tokens [BM], BK columns at a time."""
    token, row = tl.program_id(1) * BM + tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    acc = tl.zeros([BM, BN, BK], tl.float32)
    for start in range(0, count, BK):
        k = start + tl.arange(0, BK)
        column = tl.load(index + k, k < count, 0)
        value = tl.load(
            values + row[:, None].to(tl.int64) * count + k[None, :],
            (row[:, None] < out) & (k[None, :] < count),
            0.0,
        )
        at = token[:, None].to(tl.int64) * n + column[None, :]
        part = tl.load(x + at, (token[:, None] < tokens) & (k[None, :] < count), 0.0)
        acc += value.to(tl.float32)[None, :, :] * part.to(tl.float32)[:, None, :]
    store_y(y, tl.sum(acc, 2), token, row, tokens, out)


def _tiles(tokens: int) -> dict:
    return {"BM": triton.next_power_of_2(min(tokens, FEW_TOKENS)), "BN": 16, "BK": 16} | LAUNCH


def columns(x: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """y [tokens, out] in x's dtype."""
    x, (tokens, n), (out, count) = x.contiguous(), x.shape, values.shape
    y = torch.empty(tokens, out, dtype=x.dtype, device=x.device)
    if y.numel():
        tiles = _tiles(tokens)
        grid = (triton.cdiv(out, tiles["BN"]), triton.cdiv(tokens, tiles["BM"]))
        with torch.cuda.device_of(x):
            rows_times_tokens[grid](x, values, index, y, tokens, out, n, count, **tiles)
    return y


_POINTERS = {"x": "fp16", "values": "fp16", "index": "i32", "y": "fp16"}

VARIANTS = (
    Variant(rows_times_tokens, _POINTERS, _tiles(1)),
    Variant(rows_times_tokens, _POINTERS, _tiles(64)),
)
