"""y = x W^T for weights in 16 bits on a graphics card: a whole W, or two thin factors W = U V.

x [tokens, in] float16, bfloat16 or float32; weight float16 [out, in]; u float16 [out, rank], v float16 [rank,
in]. Bytes moved: 2 a stored weight.

Few tokens: each program walks some rows of W as they are stored and sums in float32, whatever type x has.
PyTorch's product would first copy a weight that has another type than x. Many tokens: PyTorch's product. The
result of x V^T, between the two thin products, is float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu import Variant
from kernels.gpu.decode import FEW_TOKENS, LAUNCH, store_y, tile_of_x


@triton.jit(do_not_specialize=["tokens", "out"])
def few(x, weight, y, tokens, out, n, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """Rows [BN] of W times all tokens [BM]."""
    token, row = tl.arange(0, BM), tl.program_id(0) * BN + tl.arange(0, BN)
    line = row[:, None].to(tl.int64) * n
    acc = tl.zeros([BM, BN, BK], tl.float32)
    for start in range(0, n, BK):
        column = start + tl.arange(0, BK)
        w = tl.load(weight + line + column[None, :], (row[:, None] < out) & (column[None, :] < n), 0.0).to(
            tl.float32
        )
        acc += w[None, :, :] * tile_of_x(x, token, column, tokens, n).to(tl.float32)[:, None, :]
    store_y(y, tl.sum(acc, 2), token, row, tokens, out)


def _tiles(tokens: int) -> dict:
    return {"BM": triton.next_power_of_2(tokens), "BN": 4, "BK": 512 if tokens <= 2 else 256} | LAUNCH


def _few(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """x [tokens, in], contiguous, times weight^T in `dtype`."""
    (tokens, n), out = x.shape, len(weight)
    y = torch.empty(tokens, out, dtype=dtype, device=x.device)
    if y.numel():
        tiles = _tiles(tokens)
        with torch.cuda.device_of(x):
            few[(triton.cdiv(out, tiles["BN"]),)](x, weight, y, tokens, out, n, **tiles)
    return y


def dense(x: Tensor, weight: Tensor) -> Tensor:
    """y [tokens, out] in x's dtype."""
    if len(x) > FEW_TOKENS:
        return x @ weight.to(x.dtype).T
    return _few(x.contiguous(), weight, x.dtype)


def low_rank(x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """y [tokens, out] in x's dtype."""
    if len(x) > FEW_TOKENS:
        return (x @ v.to(x.dtype).T) @ u.to(x.dtype).T
    return _few(_few(x.contiguous(), v, torch.float32), u, x.dtype)


VARIANTS = (
    *(Variant(few, {"x": "fp16", "weight": "fp16", "y": y}, _tiles(1)) for y in ("fp16", "fp32")),
    *(Variant(few, {"x": "bf16", "weight": "fp16", "y": "bf16"}, _tiles(tokens)) for tokens in (1, 8)),
    Variant(few, {"x": "fp32", "weight": "fp16", "y": "fp16"}, _tiles(8)),
)
