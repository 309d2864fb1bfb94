"""y = x W^T for sparse weights in two layouts, values in 16 bits or as integer codes of a grid.

bitmask   mask uint8 [out, ceil(in/8)]: bit i of a row is set where the weight is kept. The kept values follow
          row by row in one flat stream; `starts` [out + 1] says where each row begins.
two_four  of every 4 inputs exactly 2 are kept: values [out, in/2] and their 2-bit positions, packed.

`scatter_*` put a block's values at their places in a matrix of zeros [rows, in]. The block is then scaled if
the values are codes, and multiplied. Bytes moved if half of the weights are kept: 9 bits a weight with 16-bit
values; 3 bits a weight and the scales with 4-bit codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import gpu
from kernels.bits import pack, unpack
from kernels.grids import Levels

BLOCK = 1 << 20  # weights unpacked at a time

CASES = ((1, 64, 96), (2, 33, 80), (17, 5, 64), (64, 130, 48), (1, 1, 16), (3, 50, 40))  # (tokens, out, in)


def mask_bits(mask: Tensor) -> Tensor:
    """bool [out, in] -> uint8 [out, ceil(in/8)]; bit i of byte j is column 8 j + i."""
    mask = F.pad(mask.to(torch.uint8), (0, -mask.shape[1] % 8)).view(mask.shape[0], -1, 8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    return (mask * weights).sum(-1, dtype=torch.uint8)


def bits_mask(packed: Tensor, n: int) -> Tensor:
    """The inverse of `mask_bits`: bool [out, n]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, :, None] >> shifts) & 1).flatten(1)[:, :n].bool()


def scatter_bitmask(values: Tensor, mask: Tensor) -> Tensor:
    """values [kept] in row order at the True places of mask [rows, in] -> [rows, in], zero elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter_(mask, values)


def scatter_two_four(values: Tensor, positions: Tensor) -> Tensor:
    """Values at their positions (0..3) in each four: two [rows, in/2] -> [rows, in], zero elsewhere."""
    rows, half = values.shape
    base = torch.arange(half, device=values.device) // 2 * 4
    out = torch.zeros(rows, half * 2, dtype=values.dtype, device=values.device)
    return out.scatter_(1, base + positions.long(), values)


def flat_codes(stream: Tensor, bits: int, start: int, stop: int) -> Tensor:
    """Values [start, stop) of a packed flat stream, uint8 [stop - start]."""
    first = start // 8
    piece = stream[first * bits : -(-stop // 8) * bits]
    return unpack(piece[None], bits, piece.numel() * 8 // bits)[0, start - 8 * first : stop - 8 * first]


def bitmask_reference(
    x: Tensor, kept: Tensor, values: Tensor, starts: Tensor | None = None, levels: Levels | None = None
) -> Tensor:
    """The formula on the whole dense matrix.

    values: float16 in row order, or codes of `levels` in one packed stream.
    """
    keep = bits_mask(kept, x.shape[-1])
    if levels is None:
        return x @ scatter_bitmask(values.to(x.dtype), keep).T
    codes = scatter_bitmask(flat_codes(values, levels.bits, 0, int(keep.sum())), keep)
    return x @ levels.decode(codes, keep).to(x.dtype).T


def bitmask(
    x: Tensor, kept: Tensor, values: Tensor, starts: Tensor | None, levels: Levels | None = None
) -> Tensor:
    """y [tokens, out] in x's dtype: by Triton on a GPU, else by PyTorch.

    values: 16-bit, or codes of `levels`. starts: [out + 1], or None if every row keeps the same number.
    """
    out, n = len(kept), x.shape[1]
    if starts is None:
        per_row = bits_mask(kept[:1], n).sum(dtype=torch.int32)
        starts = torch.arange(out + 1, dtype=torch.int32, device=values.device) * per_row
    if gpu.serves(x):
        from kernels.gpu.sparse import bitmask as triton

        return triton(x.contiguous(), kept, values, starts, levels)

    def block(rows: slice) -> Tensor:
        keep, first, last = bits_mask(kept[rows], n), int(starts[rows.start]), int(starts[rows.stop])
        if levels is None:
            return scatter_bitmask(values[first:last].to(x.dtype), keep)
        return levels.decode(scatter_bitmask(flat_codes(values, levels.bits, first, last), keep), keep, rows)

    return multiply_blocks(x, (out, n), block)


def two_four_reference(x: Tensor, values: Tensor, positions: Tensor, levels: Levels | None = None) -> Tensor:
    """The formula on the whole dense matrix; positions are packed to 2 bits."""
    return x @ _two_four_rows(values, positions, levels, x.shape[1], slice(0, len(values)), x.dtype).T


def two_four(x: Tensor, values: Tensor, positions: Tensor, levels: Levels | None = None) -> Tensor:
    """y [tokens, out] in x's dtype: by Triton on a GPU, else by PyTorch.

    values: 16-bit [out, in/2], or codes of `levels`, packed row by row.
    """
    if gpu.serves(x):
        from kernels.gpu.sparse import two_four as triton

        return triton(x.contiguous(), values, positions, levels)
    n = x.shape[1]
    return multiply_blocks(
        x, (len(values), n), lambda rows: _two_four_rows(values, positions, levels, n, rows, x.dtype)
    )


def _two_four_rows(
    values: Tensor, positions: Tensor, levels: Levels | None, n: int, rows: slice, dtype: torch.dtype
) -> Tensor:
    """Some rows [rows, in] of a 2:4 weight in `dtype`, with their zeros."""
    places = unpack(positions[rows], 2, n // 2)
    if levels is None:
        return scatter_two_four(values[rows].to(dtype), places)
    keep = scatter_two_four(torch.ones_like(places), places)
    return levels.decode(scatter_two_four(unpack(values[rows], levels.bits, n // 2), places), keep, rows).to(
        dtype
    )


def multiply_blocks(x: Tensor, shape: tuple[int, int], block_of: Callable[[slice], Tensor]) -> Tensor:
    """x [tokens, in] times the transpose of a weight [out, in], a block of rows at a time.

    `block_of(slice)` rebuilds these rows of the weight.
    """
    out, n = shape
    y = torch.empty(x.shape[0], out, dtype=x.dtype, device=x.device)
    step = max(1, BLOCK // n)
    for start in range(0, out, step):
        rows = slice(start, min(start + step, out))
        y[:, rows] = x @ block_of(rows).to(x.dtype).T
    return y


def bitmask_examples(out: int, n: int, g: torch.Generator) -> Iterator[tuple[str, int, tuple]]:
    """(name, columns, operands) of small matrices, about [out, n]."""
    keep = torch.rand(out, n, generator=g) > 0.5
    starts = F.pad(keep.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    yield "bitmask", n, (mask_bits(keep), torch.randn(int(keep.sum()), generator=g).half(), starts)


def two_four_examples(out: int, n: int, g: torch.Generator) -> Iterator[tuple[str, int, tuple]]:
    """(name, columns, operands) of small matrices, about [out, n]."""
    fours = -(-n // 4)
    places = torch.rand(out, fours, 4, generator=g).argsort(-1)[..., :2].sort(-1).values.flatten(1)
    values = torch.randn(out, 2 * fours, generator=g).half()
    yield "two of four", 4 * fours, (values, pack(places.to(torch.uint8), 2))
