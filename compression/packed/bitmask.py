"""Sparse weights: one bit for each place, and the kept values in 16 bits or as integer codes on a grid."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.packed.base import Packed, to_storage
from compression.packed.grid import Grid
from kernels.bits import pack, row_bytes
from kernels.cpu import plans
from kernels.grids import Levels
from kernels.sparse import bitmask, bits_mask, flat_codes, mask_bits, multiply_blocks, scatter_bitmask


class Bitmask(Packed):
    """kept uint8 [out, ceil(in/8)]: a bit is set where the weight is kept.

    values: float16 [kept], row by row; with a grid, the packed codes of the kept places. starts int32 [out +
    1]: where each row's values begin; left out if every row keeps the same number. Bits a weight if half are
    kept: 9 with 16-bit values, 3 and the grid with 4-bit codes.
    """

    format = "bitmask"
    grid: Grid | None

    def __init__(
        self, shape, count: int, kept: Tensor, values: Tensor, starts: Tensor | None, grid: Grid | None = None
    ):
        super().__init__(shape)
        self.count = count
        self.register_buffer("kept", kept)
        self.register_buffer("values", values)
        self.register_buffer("starts", starts)
        self.grid = grid

    @classmethod
    def encode(cls, weight: Tensor, pruned: Tensor) -> Bitmask:
        """weight [out, in] float, pruned bool [out, in] (True: removed); kept values in float16."""
        keep = ~pruned
        return cls(weight.shape, int(keep.sum()), mask_bits(keep), to_storage(weight[keep]), _starts(keep))

    def with_codes(self, codes: Tensor, grid: Grid) -> Bitmask:
        """The same mask, with the values as codes uint8 [out, in] on a grid."""
        keep = ~self.mask()
        stream = pack(codes[keep][None], grid.bits)[0]
        return Bitmask(self.shape, self.count, self.kept.clone(), stream, self.starts, grid)

    def config(self) -> dict:
        return {
            "format": self.format,
            "shape": list(self.shape),
            "count": self.count,
            "ragged": self.starts is not None,
            "grid": self.grid.config() if self.grid else None,
        }

    @classmethod
    def from_config(cls, config: dict) -> Bitmask:
        (out, n), count, grid = config["shape"], config["count"], config["grid"]
        kept = torch.empty(out, -(-n // 8), dtype=torch.uint8)
        starts = torch.empty(out + 1, dtype=torch.int32) if config["ragged"] else None
        if grid is None:
            return cls((out, n), count, kept, torch.empty(count, dtype=torch.float16), starts)
        values = torch.empty(row_bytes(count, grid["bits"]), dtype=torch.uint8)
        return cls((out, n), count, kept, values, starts, Grid.empty((out, n), grid))

    def mask(self) -> Tensor:
        return ~bits_mask(self.kept, self.shape[1])

    def _block(self, rows: slice) -> Tensor:
        """Rows of the weight, float32 [rows, in]."""
        keep = bits_mask(self.kept[rows], self.shape[1])
        per_row = self.count // self.shape[0]
        first = rows.start * per_row if self.starts is None else int(self.starts[rows.start])
        last = rows.stop * per_row if self.starts is None else int(self.starts[rows.stop])
        if self.grid is None:
            return scatter_bitmask(self.values[first:last].float(), keep)
        codes = scatter_bitmask(flat_codes(self.values, self.grid.bits, first, last), keep)
        return self.grid.decode(codes, rows).mul_(keep)

    def stored(self) -> Tensor:
        return self._block(slice(0, self.shape[0]))

    def product(self, x: Tensor) -> Tensor:
        if self.grid is not None and self.grid.group_index is not None:
            return multiply_blocks(x, self.shape, self._block)
        return bitmask(
            x, self.kept, self.values, self.starts, None if self.grid is None else Levels.of(self.grid)
        )

    def encode_like(self, dense: Tensor) -> Bitmask:
        if self.grid is None:
            return Bitmask.encode(dense, self.mask())
        return self.with_codes(self.grid.round(dense), self.grid)

    def tiles(self, rule):
        if self.grid is None:
            return plans.bitmask(self.kept, self.values, self.shape[1], rule)
        keep = bits_mask(self.kept, self.shape[1])
        codes = scatter_bitmask(flat_codes(self.values, self.grid.bits, 0, self.count), keep)
        return self.grid.masked_tiles(keep, codes, rule, self.op)


def _starts(keep: Tensor) -> Tensor | None:
    counts = keep.sum(1)
    if bool((counts == counts[0]).all()):
        return None
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
