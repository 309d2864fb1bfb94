"""Low rank: a matrix [out, in] as the product of two thin ones."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.base import BadChain
from compression.packed.base import Packed, to_storage
from kernels.cpu import plans
from kernels.low_rank import low_rank


class LowRank(Packed):
    """u float16 [out, rank], v float16 [rank, in]; bits a weight = 16 rank (out + in) / (out in)."""

    format = "low_rank"

    def __init__(self, u: Tensor, v: Tensor):
        super().__init__((u.shape[0], v.shape[1]))
        self.register_buffer("u", u)
        self.register_buffer("v", v)

    @classmethod
    def encode(cls, u: Tensor, v: Tensor) -> LowRank:
        """u [out, rank], v [rank, in] rounded to float16."""
        return cls(to_storage(u), to_storage(v))

    def config(self) -> dict:
        return {"format": self.format, "shape": list(self.shape), "rank": self.u.shape[1]}

    @classmethod
    def from_config(cls, config: dict) -> LowRank:
        (out, n), rank = config["shape"], config["rank"]
        return cls(torch.empty(out, rank, dtype=torch.float16), torch.empty(rank, n, dtype=torch.float16))

    def stored(self) -> Tensor:
        return self.u.float() @ self.v.float()

    def product(self, x: Tensor) -> Tensor:
        return low_rank(x, self.u, self.v)

    def encode_like(self, dense: Tensor) -> LowRank:
        raise BadChain("a low-rank format has no mask and no grid that another matrix could be stored with")

    def tiles(self, rule):
        return plans.low_rank(self.u, self.v, rule)
