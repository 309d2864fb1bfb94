"""y = x W^T for a very sparse W on a graphics card, to be added to a dense product (SpQR's outliers).

x [tokens, in]; values float16 [count], row by row; columns int16 [count], the low 16 bits of each value's
column (in <= 65,536); starts int32 [out + 1], where each row's values begin. Bytes moved: 4 an outlier, 4 a
row, the inputs that the outliers meet, and y.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import Variant
from kernels.gpu.decode import FEW_TOKENS, LAUNCH, SIZES, store_y


@triton.jit(do_not_specialize=SIZES)
def rows_times_tokens(
    x, values, columns, starts, y, tokens, out, n, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """Rows [BN] of W times a block of tokens [BM], BK outliers of each row at a time."""
    token, row = tl.program_id(1) * BM + tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    first, last = tl.load(starts + row, row < out, 0), tl.load(starts + row + 1, row < out, 0)
    acc = tl.zeros([BM, BN, BK], tl.float32)
    for start in range(0, tl.max(last - first, 0), BK):
        at = (first + start)[:, None] + tl.arange(0, BK)[None, :]
        inside = at < last[:, None]
        value = tl.load(values + at, inside, 0.0).to(tl.float32)
        column = tl.load(columns + at, inside, 0).to(tl.int32) & 0xFFFF
        mask = (token[:, None, None] < tokens) & inside[None, :, :]
        acc += value[None, :, :] * tl.load(
            x + token[:, None, None].to(tl.int64) * n + column[None, :, :], mask, 0.0
        ).to(tl.float32)
    store_y(y, tl.sum(acc, 2), token, row, tokens, out)


def _tiles(tokens: int) -> dict:
    return {"BM": triton.next_power_of_2(min(tokens, FEW_TOKENS)), "BN": 4, "BK": 32} | LAUNCH  # a row a warp


def outliers(x: Tensor, values: Tensor, columns: Tensor, starts: Tensor) -> Tensor:
    """y [tokens, out] in x's dtype."""
    x, (tokens, n), out = x.contiguous(), x.shape, len(starts) - 1
    y = torch.empty(tokens, out, dtype=x.dtype, device=x.device)
    if y.numel():
        tiles = _tiles(tokens)
        grid = (triton.cdiv(out, tiles["BN"]), triton.cdiv(tokens, tiles["BM"]))
        with torch.cuda.device_of(x):
            rows_times_tokens[grid](x, values, columns, starts, y, tokens, out, n, **tiles)
    return y


_POINTERS = {"x": "fp16", "values": "fp16", "columns": "i16", "starts": "i32", "y": "fp16"}

VARIANTS = (Variant(rows_times_tokens, _POINTERS, _tiles(64)),)
