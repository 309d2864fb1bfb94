"""A few whole input columns in 16 bits. Another format holds the other columns, and `Sum` adds the two."""

from __future__ import annotations

import torch
from torch import Tensor

from compression.base import BadChain
from compression.packed.base import Packed, to_storage
from kernels.columns import columns, columns_matrix
from kernels.cpu import plans


class Columns(Packed):
    """values float16 [out, k], index int32 [k]; bits a weight = 16 k / in + 32 k / (in out)."""

    format = "columns"

    def __init__(self, shape, values: Tensor, index: Tensor):
        super().__init__(shape)
        self.register_buffer("values", values)
        self.register_buffer("index", index)

    @property
    def whole_columns(self) -> Tensor:
        return self.index

    @classmethod
    def encode(cls, weight: Tensor, index: Tensor) -> Columns:
        """Store the columns `index` [k] of weight [out, in].

        Raises ValueError if a column is named twice or doesn't exist.
        """
        n = weight.shape[1]
        if len(index.unique()) != len(index) or (
            len(index) and not 0 <= int(index.min()) <= int(index.max()) < n
        ):
            raise ValueError(
                f"columns {index.tolist()} of a matrix with {n}; each must be named once, 0 to {n - 1}"
            )
        return cls(weight.shape, to_storage(weight[:, index.long()]), index.to(torch.int32))

    def config(self) -> dict:
        return {"format": self.format, "shape": list(self.shape), "count": len(self.index)}

    @classmethod
    def from_config(cls, config: dict) -> Columns:
        shape, count = config["shape"], config["count"]
        return cls(
            shape, torch.empty(shape[0], count, dtype=torch.float16), torch.empty(count, dtype=torch.int32)
        )

    def stored(self) -> Tensor:
        return columns_matrix(self.values, self.index, self.shape[1])

    def columns_of(self, ids: Tensor) -> Tensor:
        return self.values.float() @ (self.index[:, None] == ids).float()

    def product(self, x: Tensor) -> Tensor:
        return columns(x, self.values, self.index)

    def tiles(self, rule):
        return plans.columns(self.values, self.index, self.shape[1], rule)

    def encode_like(self, dense: Tensor) -> Columns:
        raise BadChain("whole columns have no grid that another matrix could be rounded to")
