"""Grids whose zero point is a real number.

    w = scale * (code - zero)        code = clamp(round(w / scale + zero), 0, 2^bits - 1)

The zero is added before rounding, so codes differ from an integer grid's if the zero has a fraction (HQQ,
SpQR).

RealGrid      scale and zero float16 [out, groups]: 32 bits a group.
TwoLevelGrid  SpQR's. The scales of 16 neighbouring rows in one group are codes of a few bits on a RealGrid of
              their own, whose scale and zero are float16; the zeros likewise. With 3 bits, 16 rows and 16
              columns that is 64 / 256 + 6 / 16 bits a weight instead of 2.

The step of a second level is never below 2^-11 of the largest value of its run, so that its zero stays among
the whole numbers that float16 holds. If all values of a run are equal, they are kept to 11 bits. The authors
put such a run on the range [-1, 1], where no 3-bit code meets the value.

group_index int16 [in] is there only if groups are not runs of neighbouring inputs, as in grid.py.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from compression.packed.base import to_storage
from compression.packed.grid import store_scale
from kernels.bits import pack, row_bytes
from kernels.cpu import plans
from kernels.grouped_int import grouped_int, groups_of, level_codes, levelled, spread, two_level_int

RUN = 16  # rows whose scales share a second level


class _Grid(nn.Module):
    """What both kinds of grid share."""

    kind: ClassVar[str]

    def __init__(self, shape: tuple[int, int], bits: int, group_size: int, group_index: Tensor | None):
        super().__init__()
        self.shape, self.bits, self.group_size = cast(tuple[int, int], tuple(shape)), bits, group_size
        self.register_buffer("group_index", group_index)

    def config(self) -> dict:
        return {
            "kind": self.kind,
            "bits": self.bits,
            "group_size": self.group_size,
            "indexed": self.group_index is not None,
        }

    def of_groups(self, rows: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor]:
        """(scale, zero) of every group of some rows, float32 [rows, groups]."""
        raise NotImplementedError

    def product(self, x: Tensor, codes: Tensor) -> Tensor:
        """x [tokens, in] times the weight of packed codes on this grid; groups must be runs of inputs."""
        raise NotImplementedError

    def tiles(self, codes: Tensor, rule):
        """Packed codes on this grid for the C kernels."""
        raise NotImplementedError

    def columns(self, rows: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor]:
        """(scale, zero) for every weight of some rows, float32 [rows, in]."""
        scale, zero = self.of_groups(rows)
        if self.group_index is not None:
            index = self.group_index.long()
            return scale[:, index], zero[:, index]
        return spread(scale, self.shape[1], self.group_size), spread(zero, self.shape[1], self.group_size)

    def round(self, weight: Tensor) -> Tensor:
        """The nearest codes of weight [out, in]: clamp(round(w / scale + zero), 0, 2^bits - 1), uint8."""
        scale, zero = self.columns()
        return torch.round(weight.float() / scale + zero).clamp_(0, 2**self.bits - 1).to(torch.uint8)

    def decode(self, codes: Tensor, rows: slice | Tensor = slice(None)) -> Tensor:
        """codes [rows, in] of some rows -> float32 weights."""
        scale, zero = self.columns(rows)
        return (codes.float() - zero).mul_(scale)


class RealGrid(_Grid):
    """scale, zero float16 [out, groups]."""

    kind = "real"

    def __init__(
        self,
        shape,
        bits: int,
        group_size: int,
        scale: Tensor,
        zero: Tensor,
        group_index: Tensor | None = None,
    ):
        super().__init__(shape, bits, group_size, group_index)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)

    @classmethod
    def make(
        cls, shape, bits: int, group_size: int, scale: Tensor, zero: Tensor, group_index: Tensor | None = None
    ) -> RealGrid:
        """From scale and zero [out, groups] float."""
        return cls(shape, bits, group_size, store_scale(scale), to_storage(zero), _index(group_index))

    @classmethod
    def empty(cls, shape, config: dict) -> RealGrid:
        """The grid that `config()` describes, its values undefined."""
        sizes = shape[0], groups_of(shape[1], config["group_size"])
        scale, zero = torch.empty(sizes, dtype=torch.float16), torch.empty(sizes, dtype=torch.float16)
        return cls(shape, config["bits"], config["group_size"], scale, zero, _empty_index(shape, config))

    def of_groups(self, rows: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor]:
        return self.scale[rows].float(), self.zero[rows].float()

    def product(self, x: Tensor, codes: Tensor) -> Tensor:
        return grouped_int(x, codes, self.scale, self.zero, self.bits, self.group_size)

    def tiles(self, codes: Tensor, rule):
        return plans.grouped_int(
            codes, self.scale, self.zero, self.bits, self.group_size, self.shape[1], rule, self.group_index
        )


class TwoLevelGrid(_Grid):
    """A grid whose scales and zeros are codes themselves.

    scale_codes, zero_codes: uint8 [row_bytes(out groups, level_bits)], packed to the bit row by row.
    scale_stats, zero_stats: float16 [runs, groups, 2], scale and zero of the second level.
    """

    kind = "two_level"

    def __init__(
        self,
        shape,
        bits: int,
        group_size: int,
        level_bits: int,
        scale_codes: Tensor,
        scale_stats: Tensor,
        zero_codes: Tensor,
        zero_stats: Tensor,
        group_index: Tensor | None = None,
    ):
        super().__init__(shape, bits, group_size, group_index)
        self.level_bits = level_bits
        self.register_buffer("scale_codes", scale_codes)
        self.register_buffer("scale_stats", scale_stats)
        self.register_buffer("zero_codes", zero_codes)
        self.register_buffer("zero_stats", zero_stats)

    @classmethod
    def make(
        cls,
        shape,
        bits: int,
        group_size: int,
        scale: Tensor,
        zero: Tensor,
        level_bits: int = 3,
        group_index: Tensor | None = None,
    ) -> TwoLevelGrid:
        """Make it from scale and zero [out, groups] float; `columns()` gives their rounded values."""
        stored = []
        for values in (scale, zero):
            codes, stats = second_level(values, level_bits)
            stored += [pack(codes.view(1, -1), level_bits)[0], stats]
        scales, scale_stats, zeros, zero_stats = stored
        index = _index(group_index)
        return cls(shape, bits, group_size, level_bits, scales, scale_stats, zeros, zero_stats, index)

    @classmethod
    def empty(cls, shape, config: dict) -> TwoLevelGrid:
        """The grid that `config()` describes, its values undefined."""
        out, groups, level_bits = shape[0], groups_of(shape[1], config["group_size"]), config["level_bits"]
        stored = []
        for _ in range(2):
            stored += [
                torch.empty(row_bytes(out * groups, level_bits), dtype=torch.uint8),
                torch.empty(-(-out // RUN), groups, 2, dtype=torch.float16),
            ]
        scales, scale_stats, zeros, zero_stats = stored
        bits, size, index = config["bits"], config["group_size"], _empty_index(shape, config)
        return cls(shape, bits, size, level_bits, scales, scale_stats, zeros, zero_stats, index)

    def config(self) -> dict:
        return super().config() | {"level_bits": self.level_bits}

    def of_groups(self, rows: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor]:
        pairs = (self.scale_codes, self.scale_stats), (self.zero_codes, self.zero_stats)
        return tuple(levelled(level_codes(c, s, self.level_bits, self.shape[0]), s)[rows] for c, s in pairs)

    def _levels(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], int, int, int]:
        levels, stats = (self.scale_codes, self.zero_codes), (self.scale_stats, self.zero_stats)
        return levels, stats, self.level_bits, self.bits, self.group_size

    def product(self, x: Tensor, codes: Tensor) -> Tensor:
        return two_level_int(x, codes, *self._levels())

    def tiles(self, codes: Tensor, rule):
        return plans.two_level(codes, *self._levels(), self.shape[1], rule, self.group_index)


GRIDS = {grid.kind: grid for grid in (RealGrid, TwoLevelGrid)}


def second_level(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """values [out, groups] on a second level, which 16 rows of a group share.

    Returns (codes uint8 [out, groups], stats float16 [runs, groups, 2]).
    """
    out, top = len(values), 2**bits - 1
    # [runs, 16, groups]
    runs = torch.cat([values.float(), values[-1:].float().expand(-out % RUN, -1)]).unflatten(0, (-1, RUN))
    low, high = runs.amin(1), runs.amax(1)
    smallest = runs.abs().amax(1).div(2048).clamp_min(torch.finfo(torch.float16).smallest_normal / 1024)
    scale = to_storage(torch.maximum((high - low) / top, smallest))
    zero = to_storage(-low / scale.float())
    codes = torch.round(runs / scale.float()[:, None] + zero.float()[:, None]).clamp_(0, top).to(torch.uint8)
    return codes.flatten(0, 1)[:out].contiguous(), torch.stack([scale, zero], -1)


def _index(group_index: Tensor | None) -> Tensor | None:
    return None if group_index is None else group_index.to(torch.int16)


def _empty_index(shape, config: dict) -> Tensor | None:
    return torch.empty(shape[1], dtype=torch.int16) if config["indexed"] else None
