"""The grid that integer codes stand on: w = scale * (code - zero), for each group of inputs.

scale        float16 [out, groups]
zero         integer zero points packed to the bit; none for a symmetric grid (then it is 2^(bits-1))
group_index  int16 [in], only if groups are not runs of neighbouring inputs (GPTQ's act-order without static
             groups)

Codes are always computed with the scale as it is stored.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from compression.packed.base import to_storage
from kernels.bits import pack, row_bytes, unpack
from kernels.cpu import plans
from kernels.grouped_int import groups_of, spread


class Grid(nn.Module):
    """Scales and zero points of a matrix [out, in]."""

    def __init__(
        self,
        shape: tuple[int, int],
        bits: int,
        group_size: int,
        scale: Tensor,
        zero: Tensor | None,
        group_index: Tensor | None = None,
    ):
        """zero: packed uint8 as `pack_zero` makes it, or None for a symmetric grid."""
        super().__init__()
        self.shape, self.bits, self.group_size = cast(tuple[int, int], tuple(shape)), bits, group_size
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.register_buffer("group_index", group_index)
        self._zeros: tuple[Tensor, Tensor] | None = None

    @classmethod
    def make(
        cls, shape, bits: int, group_size: int, scale: Tensor, zero: Tensor | None, group_index=None
    ) -> Grid:
        """From scale [out, groups] float and integer zero [out, groups] (None: symmetric)."""
        packed = None if zero is None else pack(zero.to(torch.uint8).reshape(1, -1), bits)[0]
        index = None if group_index is None else group_index.to(torch.int16)
        return cls(shape, bits, group_size, store_scale(scale), packed, index)

    @classmethod
    def empty(cls, shape, config: dict) -> Grid:
        """The grid that `config()` describes, its values undefined."""
        bits, group_size = config["bits"], config["group_size"]
        groups = groups_of(shape[1], group_size)
        zero = (
            None
            if config["symmetric"]
            else torch.empty(row_bytes(shape[0] * groups, bits), dtype=torch.uint8)
        )
        index = torch.empty(shape[1], dtype=torch.int16) if config["indexed"] else None
        return cls(shape, bits, group_size, torch.empty(shape[0], groups, dtype=torch.float16), zero, index)

    def config(self) -> dict:
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "symmetric": self.zero is None,
            "indexed": self.group_index is not None,
        }

    def zero_points(self) -> Tensor:
        """Integer zero points as uint8 [out, groups]; kept in memory after the first call."""
        if self.zero is None:
            return torch.full(
                self.scale.shape, 2 ** (self.bits - 1), dtype=torch.uint8, device=self.scale.device
            )
        if self._zeros is None or self._zeros[0] is not self.zero:
            flat = unpack(self.zero[None], self.bits, self.scale.numel())[0]
            self._zeros = (self.zero, flat.view(self.scale.shape))
        return self._zeros[1]

    def columns(self, rows: slice | Tensor = slice(None)) -> tuple[Tensor, Tensor]:
        """(scale, zero) for every weight of some rows, float32 [rows, in]."""
        scale, zero = self.scale[rows].float(), self.zero_points()[rows].float()
        if self.group_index is not None:
            index = self.group_index.long()
            return scale[:, index], zero[:, index]
        return spread(scale, self.shape[1], self.group_size), spread(zero, self.shape[1], self.group_size)

    def masked_tiles(self, keep: Tensor, codes: Tensor, rule, op: str):
        """Kept codes [out, in] on this grid for the C kernels; None if groups are not runs of inputs."""
        if self.group_index is not None:
            return None
        zero = None if self.zero is None else self.zero_points()
        return plans.bitmask_codes(keep, codes, self.scale, zero, self.bits, self.group_size, rule, op)

    def round(self, weight: Tensor) -> Tensor:
        """The nearest codes of weight [out, in]: clamp(round(w / scale) + zero, 0, 2^bits - 1), uint8."""
        scale, zero = self.columns()
        return (torch.round(weight.float() / scale) + zero).clamp_(0, 2**self.bits - 1).to(torch.uint8)

    def decode(self, codes: Tensor, rows: slice | Tensor = slice(None)) -> Tensor:
        """codes [rows, in] of some rows -> float32 weights."""
        scale, zero = self.columns(rows)
        return (codes.float() - zero).mul_(scale)


def store_scale(scale: Tensor) -> Tensor:
    """Round to float16, and never to zero: a scale of zero would lose its group."""
    return to_storage(scale.clamp_min(torch.finfo(torch.float16).smallest_normal))
