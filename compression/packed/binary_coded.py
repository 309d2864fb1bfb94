"""Binary-coded weights: a sum of planes of -1 and +1, each with a scale a group (the format of LUT-GEMM)."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.base import BadChain
from compression.packed.base import Packed, to_storage
from kernels.binary_coded import binary_coded, binary_coded_rows
from kernels.cpu import plans
from kernels.grouped_int import groups_of
from kernels.sparse import mask_bits


class BinaryCoded(Packed):
    """planes uint8 [bits, out, ceil(in/8)], alpha float16 [bits, out, groups], offset [out, groups] or None.

    The offset is float16 or float32. Bits a weight = bits + 16 (bits + 1) / group size. A float32 offset
    takes 16 / group size more; a uniform grid needs it to be converted without an error.
    """

    format = "binary_coded"

    def __init__(self, shape, planes: Tensor, alpha: Tensor, offset: Tensor | None, group_size: int):
        super().__init__(shape)
        self.group_size = group_size
        self.register_buffer("planes", planes)
        self.register_buffer("alpha", alpha)
        self.register_buffer("offset", offset)

    @classmethod
    def encode(
        cls, signs: Tensor, alpha: Tensor, offset: Tensor | None, group_size: int, exact_offset: bool = False
    ) -> BinaryCoded:
        """signs bool [bits, out, in] (True: +1); alpha [bits, out, groups]; offset [out, groups] or None.

        The offset is stored in float32 if `exact_offset`.
        """
        planes = torch.stack([mask_bits(plane) for plane in signs])
        if offset is not None:
            offset = offset.float().contiguous() if exact_offset else to_storage(offset)
        return cls(signs.shape[1:], planes, to_storage(alpha), offset, group_size)

    def config(self) -> dict:
        return {
            "format": self.format,
            "shape": list(self.shape),
            "bits": len(self.planes),
            "group_size": self.group_size,
            "offset": None if self.offset is None else str(self.offset.dtype).removeprefix("torch."),
        }

    @classmethod
    def from_config(cls, config: dict) -> BinaryCoded:
        (out, n), bits, group_size = config["shape"], config["bits"], config["group_size"]
        groups = groups_of(n, group_size)
        offset = (
            torch.empty(out, groups, dtype=getattr(torch, config["offset"])) if config["offset"] else None
        )
        planes = torch.empty(bits, out, -(-n // 8), dtype=torch.uint8)
        alpha = torch.empty(bits, out, groups, dtype=torch.float16)
        return cls((out, n), planes, alpha, offset, group_size)

    def stored(self) -> Tensor:
        return binary_coded_rows(self.planes, self.alpha, self.offset, self.group_size, self.shape[1])

    def product(self, x: Tensor) -> Tensor:
        return binary_coded(x, self.planes, self.alpha, self.offset, self.group_size)

    def tiles(self, rule):
        return plans.binary_coded(self.planes, self.alpha, self.offset, self.group_size, self.shape[1], rule)

    def encode_like(self, dense: Tensor) -> BinaryCoded:
        raise BadChain("binary-coded weights have no grid that another matrix could be rounded to")
