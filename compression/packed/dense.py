"""16-bit weights, as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.packed.base import Packed, to_storage
from kernels.cpu import plans
from kernels.dense import dense


class Dense(Packed):
    """weight float16 [out, in]."""

    format = "dense"

    def __init__(self, weight: Tensor):
        super().__init__(weight.shape)
        self.register_buffer("weight", weight)

    @classmethod
    def encode(cls, weight: Tensor) -> Dense:
        """weight [out, in] rounded to float16."""
        return cls(to_storage(weight))

    def config(self) -> dict:
        return {"format": self.format, "shape": list(self.shape)}

    @classmethod
    def from_config(cls, config: dict) -> Dense:
        return cls(torch.empty(config["shape"], dtype=torch.float16))

    def stored(self) -> Tensor:
        return self.weight.float()

    def product(self, x: Tensor) -> Tensor:
        return dense(x, self.weight)

    def encode_like(self, dense: Tensor) -> Dense:
        return Dense.encode(dense)

    def tiles(self, rule):
        return plans.dense(self.weight, rule)
