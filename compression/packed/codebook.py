"""A code book: each weight is one of 16 values of a table, times its group's scale (NF4, FP4)."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.packed.base import Packed, to_storage
from kernels.bits import pack, row_bytes
from kernels.codebook import codebook, codebook_rows
from kernels.cpu import plans
from kernels.grids import NESTED_BLOCK, dynamic_map, nested_scale
from kernels.grouped_int import groups_of

_FP4 = [value / 12 for value in (0, 0.0625, 8, 12, 4, 6, 2, 3)]  # sign, two bits of exponent, one of mantissa

TABLES = {  # the tables that have a name
    "nf4": (
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
    "fp4": (*_FP4, *(-value for value in _FP4)),
}


class CodeBook(Packed):
    """codes uint8 [out, ceil(in/8) * 4], scale float16 [out, groups], table float32 [16].

    Bits a weight = 4 + 16 / group size.

    With nested scales (QLoRA's double quantization) scale is uint8 [out, groups]: codes of an 8-bit map.
    offset float32 [1] is the scales' mean, which is subtracted first. absmax float32 [ceil(out groups / 256)]
    is the largest remaining value of each run of 256 scales. Bits a weight = 4 + 8.125 / group size.
    """

    format = "codebook"

    def __init__(
        self,
        shape,
        codes: Tensor,
        scale: Tensor,
        table: Tensor,
        group_size: int,
        absmax: Tensor | None = None,
        offset: Tensor | None = None,
    ):
        super().__init__(shape)
        self.group_size = group_size
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("table", table)
        self.register_buffer("absmax", absmax)
        self.register_buffer("offset", offset)

    @classmethod
    def encode(cls, weight: Tensor, table: Tensor, group_size: int, nested: bool = False) -> CodeBook:
        """weight [out, in] rounded to the nearest entry of `table` [16] times its group's scale.

        The scale is the group's largest |weight| divided by the table's largest. Weights are rounded with the
        scale as it is stored. If scales are nested, weights are rounded with the scale before it becomes a
        code, as in bitsandbytes.
        """
        out, n = weight.shape
        size = n if group_size == -1 else group_size
        groups = torch.nn.functional.pad(weight.float(), (0, -n % size)).view(out, -1, size)
        scale = groups.abs().amax(-1) / table.abs().max()
        if nested:
            codes = _nearest(weight, scale.clamp_min(torch.finfo(torch.float32).tiny), table, size)
            stored = _nested(scale)
            return cls((out, n), codes, stored[0], table.float(), group_size, *stored[1:])
        scale = to_storage(scale).clamp_min(torch.finfo(torch.float16).smallest_normal)
        return cls((out, n), _nearest(weight, scale.float(), table, size), scale, table.float(), group_size)

    def config(self) -> dict:
        return {
            "format": self.format,
            "shape": list(self.shape),
            "group_size": self.group_size,
            "nested": self.absmax is not None,
        }

    @classmethod
    def from_config(cls, config: dict) -> CodeBook:
        (out, n), group_size, nested = config["shape"], config["group_size"], config["nested"]
        groups = groups_of(n, group_size)
        codes = torch.empty(out, row_bytes(n, 4), dtype=torch.uint8)
        scale = torch.empty(out, groups, dtype=torch.uint8 if nested else torch.float16)
        more = (torch.empty(-(-out * groups // NESTED_BLOCK)), torch.empty(1)) if nested else ()
        return cls((out, n), codes, scale, torch.empty(16), group_size, *more)

    def scales(self) -> Tensor:
        """The scales float32 [out, groups] that the stored ones stand for."""
        return (
            self.scale.float() if self.absmax is None else nested_scale(self.scale, self.absmax, self.offset)
        )

    def stored(self) -> Tensor:
        return codebook_rows(self.codes, self.scales(), self.table, self.group_size, self.shape[1])

    def product(self, x: Tensor) -> Tensor:
        return codebook(x, self.codes, self.scale, self.table, self.group_size, self.absmax, self.offset)

    def tiles(self, rule):
        scale = self.scale if self.absmax is None else self.scales()
        return plans.codebook(self.codes, scale, self.table, self.group_size, self.shape[1], rule)

    def encode_like(self, dense: Tensor) -> CodeBook:
        size = self.shape[1] if self.group_size == -1 else self.group_size
        rest = (None if t is None else t.clone() for t in (self.absmax, self.offset))
        codes = _nearest(dense, self.scales(), self.table, size)
        return CodeBook(self.shape, codes, self.scale.clone(), self.table.clone(), self.group_size, *rest)


def _nested(scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """scale [out, groups] -> (codes uint8 [out, groups], absmax float32 [blocks], offset float32 [1]).

    It does the same as bitsandbytes.
    """
    offset = scale.mean().view(1)
    flat = (scale - offset).flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % NESTED_BLOCK)).view(-1, NESTED_BLOCK)
    absmax = blocks.abs().amax(1)
    entries = dynamic_map(scale.device)
    ratio = blocks / absmax.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(ratio, (entries[1:] + entries[:-1]) / 2).to(torch.uint8)
    return codes.flatten()[: len(flat)].view(scale.shape), absmax, offset


def _nearest(weight: Tensor, scale: Tensor, table: Tensor, size: int) -> Tensor:
    """Packed codes of the nearest entries; of two equally near entries it takes the smaller one."""
    values, order = table.float().sort()
    middles = (values[1:] + values[:-1]) / 2
    ratio = weight.float() / scale.repeat_interleave(size, 1)[:, : weight.shape[1]]
    return pack(order[torch.bucketize(ratio, middles)].to(torch.uint8), 4)
