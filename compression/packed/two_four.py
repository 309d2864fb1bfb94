"""2:4 sparse weights: of every 4 neighbouring inputs 2 are kept, in 16 bits or as integer codes on a grid."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.packed.base import Packed, to_storage
from compression.packed.grid import Grid
from kernels.bits import pack, row_bytes, unpack
from kernels.cpu import plans
from kernels.grids import Levels
from kernels.sparse import mask_bits, multiply_blocks, scatter_two_four, two_four


class TwoFour(Packed):
    """values float16 [out, in/2] (or packed codes with a grid), and their positions.

    A position is the 2-bit place of a value among its four. Bits a weight: 8 + 1 with 16-bit values, 2 + 1
    and the grid with 4-bit codes.
    """

    format = "two_four"
    grid: Grid | None

    def __init__(self, shape, values: Tensor, positions: Tensor, grid: Grid | None = None):
        super().__init__(shape)
        self.register_buffer("values", values)
        self.register_buffer("positions", positions)
        self.grid = grid

    @classmethod
    def encode(cls, weight: Tensor, pruned: Tensor) -> TwoFour:
        """weight [out, in], pruned bool [out, in] with exactly two of every four True."""
        out, n = weight.shape
        if n % 4 or not bool((pruned.view(out, -1, 4).sum(-1) == 2).all()):
            raise ValueError(
                f"2:4 needs in_features divisible by 4 and two of every four removed; got shape {out} x {n}"
            )
        places = torch.arange(4, device=weight.device).expand(out, n // 4, 4)
        positions = places[~pruned.view(out, -1, 4)].view(out, n // 2)
        values = to_storage(weight[~pruned].view(out, n // 2))
        return cls(weight.shape, values, pack(positions.to(torch.uint8), 2))

    def with_codes(self, codes: Tensor, grid: Grid) -> TwoFour:
        """The same mask, with the values as codes uint8 [out, in] on a grid."""
        kept = codes[~self.mask()].view(self.shape[0], -1)
        return TwoFour(self.shape, pack(kept, grid.bits), self.positions.clone(), grid)

    def config(self) -> dict:
        return {
            "format": self.format,
            "shape": list(self.shape),
            "grid": self.grid.config() if self.grid else None,
        }

    @classmethod
    def from_config(cls, config: dict) -> TwoFour:
        (out, n), grid = config["shape"], config["grid"]
        positions = torch.empty(out, row_bytes(n // 2, 2), dtype=torch.uint8)
        if grid is None:
            return cls((out, n), torch.empty(out, n // 2, dtype=torch.float16), positions)
        values = torch.empty(out, row_bytes(n // 2, grid["bits"]), dtype=torch.uint8)
        return cls((out, n), values, positions, Grid.empty((out, n), grid))

    def _places(self, rows: slice) -> Tensor:
        return unpack(self.positions[rows], 2, self.shape[1] // 2)

    def mask(self) -> Tensor:
        places = self._places(slice(None))
        return scatter_two_four(torch.ones_like(places), places) == 0

    def _block(self, rows: slice) -> Tensor:
        """Rows of the weight, float32 [rows, in]."""
        places = self._places(rows)
        if self.grid is None:
            return scatter_two_four(self.values[rows].float(), places)
        codes = unpack(self.values[rows], self.grid.bits, self.shape[1] // 2)
        keep = scatter_two_four(torch.ones_like(places), places)
        return self.grid.decode(scatter_two_four(codes, places), rows).mul_(keep)

    def stored(self) -> Tensor:
        return self._block(slice(0, self.shape[0]))

    def product(self, x: Tensor) -> Tensor:
        if self.grid is not None and self.grid.group_index is not None:
            return multiply_blocks(x, self.shape, self._block)
        return two_four(x, self.values, self.positions, None if self.grid is None else Levels.of(self.grid))

    def encode_like(self, dense: Tensor) -> TwoFour:
        if self.grid is None:
            return TwoFour.encode(dense, self.mask())
        return self.with_codes(self.grid.round(dense), self.grid)

    def tiles(self, rule):
        places = self._places(slice(None))
        # bool [out, in]: True at the two kept places of every four
        keep = scatter_two_four(torch.ones_like(places), places).bool()
        if self.grid is None:
            values = self.stored().half()[keep]  # in the order of the columns
            return plans.bitmask(mask_bits(keep), values, self.shape[1], rule, self.op)
        codes = scatter_two_four(unpack(self.values, self.grid.bits, self.shape[1] // 2), places)
        return self.grid.masked_tiles(keep, codes, rule, self.op)
