"""A code book: 4-bit places in a table of 16 values, times a scale a group (NF4, FP4)."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.packed.base import Packed, to_storage
from kernels.bits import pack, row_bytes
from kernels.codebook import codebook, codebook_rows
from kernels.cpu import plans
from kernels.grouped_int import groups_of


class CodeBook(Packed):
    """codes uint8 [out, ceil(in/8) * 4], scale float16 [out, groups], table float32 [16]; bits a weight = 4 + 16 / group size."""

    format = op = "codebook"

    def __init__(self, shape, codes: Tensor, scale: Tensor, table: Tensor, group_size: int):
        super().__init__(shape)
        self.group_size = group_size
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("table", table)

    @classmethod
    def encode(cls, weight: Tensor, table: Tensor, group_size: int) -> CodeBook:
        """weight [out, in] to the nearest entry of `table` [16] times its group's largest |weight| over the table's."""
        out, n = weight.shape
        size = n if group_size == -1 else group_size
        groups = torch.nn.functional.pad(weight.float(), (0, -n % size)).view(out, -1, size)
        scale = to_storage(groups.abs().amax(-1) / table.abs().max()).clamp_min(torch.finfo(torch.float16).smallest_normal)
        return cls((out, n), _nearest(weight, scale, table, size), scale, table.float(), group_size)

    def config(self) -> dict:
        return {"format": self.format, "shape": list(self.shape), "group_size": self.group_size}

    @classmethod
    def from_config(cls, config: dict) -> CodeBook:
        (out, n), group_size = config["shape"], config["group_size"]
        codes, scale = (
            torch.empty(out, row_bytes(n, 4), dtype=torch.uint8),
            torch.empty(out, groups_of(n, group_size), dtype=torch.float16),
        )
        return cls((out, n), codes, scale, torch.empty(16), group_size)

    def stored(self) -> Tensor:
        return codebook_rows(self.codes, self.scale, self.table, self.group_size, self.shape[1])

    def product(self, x: Tensor) -> Tensor:
        return codebook(x, self.codes, self.scale, self.table, self.group_size)

    def tiles(self, rule):
        return plans.codebook(self.codes, self.scale, self.table, self.group_size, self.shape[1], rule)

    def encode_like(self, dense: Tensor) -> CodeBook:
        size = self.shape[1] if self.group_size == -1 else self.group_size
        return CodeBook(
            self.shape, _nearest(dense, self.scale, self.table, size), self.scale.clone(), self.table.clone(), self.group_size
        )


def _nearest(weight: Tensor, scale: Tensor, table: Tensor, size: int) -> Tensor:
    """Packed codes of the nearest entries; a tie takes the smaller one."""
    values, order = table.float().sort()
    middles = (values[1:] + values[:-1]) / 2
    ratio = weight.float() / scale.float().repeat_interleave(size, 1)[:, : weight.shape[1]]
    return pack(order[torch.bucketize(ratio, middles)].to(torch.uint8), 4)
