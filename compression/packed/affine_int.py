"""Grouped integers on a grid with real zero points, whose scales may be codes themselves (HQQ, SpQR)."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.packed.base import Packed
from compression.packed.real_grid import GRIDS, RealGrid, TwoLevelGrid
from kernels.bits import pack, row_bytes, unpack
from kernels.sparse import multiply_blocks


class AffineInt(Packed):
    """codes uint8 [out, ceil(in/8) * bits] on a RealGrid (bits + 32 / group size) or a TwoLevelGrid."""

    format = "affine_int"
    grid: RealGrid | TwoLevelGrid

    def __init__(self, codes: Tensor, grid: RealGrid | TwoLevelGrid):
        super().__init__(grid.shape)
        self.register_buffer("codes", codes)
        self.grid = grid

    @classmethod
    def encode(cls, codes: Tensor, grid: RealGrid | TwoLevelGrid) -> AffineInt:
        """Pack codes uint8 [out, in], one in each byte."""
        return cls(pack(codes, grid.bits), grid)

    def config(self) -> dict:
        return {"format": self.format, "shape": list(self.shape), "grid": self.grid.config()}

    @classmethod
    def from_config(cls, config: dict) -> AffineInt:
        (out, n), grid = config["shape"], config["grid"]
        codes = torch.empty(out, row_bytes(n, grid["bits"]), dtype=torch.uint8)
        return cls(codes, GRIDS[grid["kind"]].empty((out, n), grid))

    def stored(self) -> Tensor:
        return self.grid.decode(unpack(self.codes, self.grid.bits, self.shape[1]))

    def product(self, x: Tensor) -> Tensor:
        grid = self.grid
        if grid.group_index is None:
            return grid.product(x, self.codes)
        # PyTorch multiplies scattered groups, since the kernels read only runs of neighbouring inputs
        return multiply_blocks(
            x, self.shape, lambda rows: grid.decode(unpack(self.codes[rows], grid.bits, self.shape[1]), rows)
        )

    def encode_like(self, dense: Tensor) -> AffineInt:
        return AffineInt.encode(self.grid.round(dense), self.grid)

    def tiles(self, rule):
        grid = self.grid
        if grid.group_index is not None and rule is not None and rule[0] < self.shape[1]:
            # the tiles reorder the columns, and then neighbouring inputs share no activation scale
            return None
        return grid.tiles(self.codes, rule)
