"""A format to copy: 8-bit codes with one scale a row, stored column by column.

compression/packed/<name>.py holds such a class. Of kernels/<op>.py come the functions below it. The layout is odd
on purpose, so that nothing else reads it; the C kernels read it as INT, a kind that they decode already.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from compression.packed.base import Packed, to_storage
from kernels.cpu import plans

# --- compression/packed/<name>.py ---


class Turned(Packed):
    """codes uint8 [in, out], 128 stands for zero; scale float16 [out]. Bits a weight = 8 + 16 / in."""

    format = "turned"

    def __init__(self, codes: Tensor, scale: Tensor):
        super().__init__((codes.shape[1], codes.shape[0]))
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    @classmethod
    def encode(cls, weight: Tensor) -> Turned:
        """weight [out, in] to the nearest codes."""
        scale = to_storage(weight.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float16).smallest_normal)
        codes = (weight / scale.float()[:, None]).round().clamp(-127, 127) + 128
        return cls(codes.to(torch.uint8).T.contiguous(), scale)

    def config(self) -> dict:
        return {"format": self.format, "shape": list(self.shape)}

    @classmethod
    def from_config(cls, config: dict) -> Turned:
        out, n = config["shape"]
        return cls(torch.empty(n, out, dtype=torch.uint8), torch.empty(out, dtype=torch.float16))

    def stored(self) -> Tensor:
        return turned_rows(self.codes, self.scale)

    def product(self, x: Tensor) -> Tensor:
        return turned(x, self.codes, self.scale)

    def tiles(self, rule):
        return turned_tiles(self.codes, self.scale, self.shape[1], rule)

    def encode_like(self, dense: Tensor) -> Turned:
        return Turned.encode(dense)


# --- kernels/<op>.py ---


def turned_rows(codes: Tensor, scale: Tensor) -> Tensor:
    """The matrix that they stand for, float32 [out, in]."""
    return scale.float()[:, None] * (codes.T.float() - 128)


def turned_reference(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """The formula."""
    return x @ turned_rows(codes, scale).to(x.dtype).T


def turned(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """y [tokens, out] in x's dtype; the scales are taken out of the sum."""
    return (x @ (codes.to(x.dtype) - 128)) * scale.to(x.dtype)


def turned_examples(out: int, n: int, g: torch.Generator) -> Iterator[tuple[str, int, tuple]]:
    """(name, columns, operands) of small matrices, about [out, n]."""
    codes = torch.randint(0, 256, (n, out), generator=g).to(torch.uint8)
    yield "turned", n, (codes, (0.01 + torch.rand(out, generator=g)).half())


# --- kernels/cpu/plans.py, with a line in TILES ---


def turned_tiles(codes: Tensor, scale: Tensor, n: int, rule=None) -> plans.Plan:
    """codes uint8 [in, out], scale [out]."""
    return plans.grouped_int(codes.T.contiguous(), scale[:, None], None, 8, -1, n, rule)
