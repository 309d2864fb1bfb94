"""Grouped integers: codes packed to the bit on a grid of scales and zero points."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.packed.base import Packed
from compression.packed.grid import Grid
from kernels import gpu
from kernels.bits import pack, row_bytes, unpack
from kernels.cpu import plans
from kernels.grouped_int import grouped_int


class GroupedInt(Packed):
    """codes uint8 [out, ceil(in/8) * bits] on a Grid.

    Bits a weight = bits + (16 + zero bits) / group size.
    """

    format = "grouped_int"
    grid: Grid

    def __init__(self, codes: Tensor, grid: Grid):
        super().__init__(grid.shape)
        self.register_buffer("codes", codes)
        self.grid = grid

    @classmethod
    def encode(cls, codes: Tensor, grid: Grid) -> GroupedInt:
        """Pack codes uint8 [out, in], one in each byte."""
        return cls(pack(codes, grid.bits), grid)

    def config(self) -> dict:
        return {"format": self.format, "shape": list(self.shape), "grid": self.grid.config()}

    @classmethod
    def from_config(cls, config: dict) -> GroupedInt:
        out, n = config["shape"]
        codes = torch.empty(out, row_bytes(n, config["grid"]["bits"]), dtype=torch.uint8)
        return cls(codes, Grid.empty((out, n), config["grid"]))

    def stored(self) -> Tensor:
        return self.grid.decode(unpack(self.codes, self.grid.bits, self.shape[1]))

    def rows(self, ids: Tensor) -> Tensor:
        if self.plan() is not None:
            return super().rows(ids)
        return self.grid.decode(unpack(self.codes[ids], self.grid.bits, self.shape[1]), ids)

    def product(self, x: Tensor) -> Tensor:
        grid = self.grid
        # PyTorch multiplies scattered groups, since the kernel reads only runs of neighbouring inputs
        if grid.group_index is not None:
            return x @ self.stored().to(x.dtype).T
        return grouped_int(x, self.codes, grid.scale, grid.zero_points(), grid.bits, grid.group_size)

    @property
    def _eight_a_row(self) -> bool:
        """Whether codes have 8 bits about 128 and one scale a row, as kernels/gpu/int8.py takes them."""
        grid = self.grid
        return grid.bits == 8 and grid.zero is None and grid.scale.shape[1] == 1

    def columns_of(self, ids: Tensor) -> Tensor:
        if self.prepared or not self._eight_a_row:
            return super().columns_of(ids)
        return (self.codes[:, ids].float() - 128) * self.grid.scale.float()

    def rounded_product(self, x: Tensor) -> Tensor:
        rule = self.activations
        if rule is not None and rule.group is None and self._eight_a_row and gpu.serves(x):
            return self._int8_product(x, rule.kernel.top)
        return super().rounded_product(x)

    def ruled_product(self, x: Tensor) -> Tensor:
        rule = self.activations.of_the_rest
        if rule.group is None and rule.static is None and self._eight_a_row and gpu.serves(x):
            return self._int8_product(x, rule.kernel.top, rule.threshold, rule.zero_point)
        return super().ruled_product(x)

    def _int8_product(self, x: Tensor, *rule) -> Tensor:
        from kernels.gpu.int8 import int8_product

        grid = self.grid
        return int8_product(
            x.contiguous(), self.codes, grid.scale, grid.zero_points(), grid.group_size, *rule
        )

    def encode_like(self, dense: Tensor) -> GroupedInt:
        return GroupedInt.encode(self.grid.round(dense), self.grid)

    def tiles(self, rule):
        grid = self.grid
        if grid.group_index is not None and rule is not None and rule[0] < self.shape[1]:
            # the tiles reorder the columns, and then neighbouring inputs share no activation scale
            return None
        zero = None if grid.zero is None else grid.zero_points()
        return plans.grouped_int(
            self.codes, grid.scale, zero, grid.bits, grid.group_size, self.shape[1], rule, grid.group_index
        )
