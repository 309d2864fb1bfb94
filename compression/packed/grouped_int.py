"""Grouped integers: codes packed to the bit on a grid of scales and zero points."""

from __future__ import annotations

import torch
from torch import Tensor

import kernels
from compression.packed.base import Packed
from compression.packed.grid import Grid
from kernels.bits import pack, row_bytes, unpack
from kernels.grouped_int import grouped_int


class GroupedInt(Packed):
    """codes uint8 [out, ceil(in/8) * bits] on a Grid; bits a weight = bits + (16 + zero bits) / group size."""

    format = "grouped_int"

    def __init__(self, codes: Tensor, grid: Grid):
        super().__init__(grid.shape)
        self.register_buffer("codes", codes)
        self.grid = grid

    @classmethod
    def encode(cls, codes: Tensor, grid: Grid) -> GroupedInt:
        """codes uint8 [out, in], one a byte, packed."""
        return cls(pack(codes, grid.bits), grid)

    def config(self) -> dict:
        return {"format": self.format, "shape": list(self.shape), "grid": self.grid.config()}

    @classmethod
    def from_config(cls, config: dict) -> GroupedInt:
        out, n = config["shape"]
        codes = torch.empty(out, row_bytes(n, config["grid"]["bits"]), dtype=torch.uint8)
        return cls(codes, Grid.empty((out, n), config["grid"]))

    def dequantize(self) -> Tensor:
        return self.grid.decode(unpack(self.codes, self.grid.bits, self.shape[1]))

    def rows(self, ids: Tensor) -> Tensor:
        """Rows [ids] of the matrix as float32 [n, in], without rebuilding the others."""
        return self.grid.decode(unpack(self.codes[ids], self.grid.bits, self.shape[1]), ids)

    def product(self, x: Tensor) -> Tensor:
        grid = self.grid
        flat = x.reshape(-1, self.shape[1])
        if grid.group_index is not None:  # scattered groups: the block kernel reads runs of neighbouring inputs only
            return (flat @ self.dequantize().to(x.dtype).T).view(*x.shape[:-1], -1)
        y = grouped_int(flat, self.codes, grid.scale, grid.zero_points(), grid.bits, grid.group_size)
        return y.view(*x.shape[:-1], -1)

    def encode_like(self, dense: Tensor) -> GroupedInt:
        return GroupedInt.encode(self.grid.round(dense), self.grid)

    @property
    def kernel(self) -> str:
        return kernels.OPS["grouped_int"]
