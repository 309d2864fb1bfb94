"""A few 16-bit values and their places. Another format holds the other weights, and `Sum` adds the two."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.base import BadChain
from compression.packed.base import Packed, to_storage
from kernels.cpu import plans
from kernels.outliers import outliers, outliers_matrix


class Outliers(Packed):
    """values float16 [count], row by row; columns int16 [count] (the low 16 bits); starts int32 [out + 1]."""

    format = "outliers"

    def __init__(self, shape, values: Tensor, columns: Tensor, starts: Tensor):
        super().__init__(shape)
        self.register_buffer("values", values)
        self.register_buffer("columns", columns)
        self.register_buffer("starts", starts)

    @classmethod
    def encode(cls, weight: Tensor, where: Tensor) -> Outliers:
        """Store weight [out, in] at the places where bool `where` [out, in] is True.

        Raises ValueError if there are more than 65,536 columns.
        """
        if weight.shape[1] > 1 << 16:
            raise ValueError(f"got {weight.shape[1]} columns; at most {1 << 16}: their numbers have 16 bits")
        counts = where.sum(1)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
        return cls(weight.shape, to_storage(weight[where]), where.nonzero()[:, 1].to(torch.int16), starts)

    def config(self) -> dict:
        return {"format": self.format, "shape": list(self.shape), "count": len(self.values)}

    @classmethod
    def from_config(cls, config: dict) -> Outliers:
        shape, count = config["shape"], config["count"]
        starts = torch.empty(shape[0] + 1, dtype=torch.int32)
        return cls(
            shape, torch.empty(count, dtype=torch.float16), torch.empty(count, dtype=torch.int16), starts
        )

    def stored(self) -> Tensor:
        return outliers_matrix(self.values, self.columns, self.starts, self.shape[1])

    def product(self, x: Tensor) -> Tensor:
        return outliers(x, self.values, self.columns, self.starts)

    def tiles(self, rule):
        return plans.outliers(self.values, self.columns, self.starts, self.shape[1], rule)

    def encode_like(self, dense: Tensor) -> Outliers:
        raise BadChain("sparse outliers have no grid that another matrix could be rounded to")
