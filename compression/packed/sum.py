"""The sum of two formats of one shape: grouped integers with sparse outliers, a base with an adapter."""

from __future__ import annotations

from torch import Tensor

from compression.base import BadChain
from compression.packed.base import Packed
from kernels.cpu import plans


class Sum(Packed):
    """first + second; each is stored in its own format."""

    format = "sum"

    def __init__(self, first: Packed, second: Packed):
        if first.shape != second.shape:
            raise ValueError(f"a sum of {first.shape} and {second.shape}; both must have one shape")
        super().__init__(first.shape)
        self.first, self.second = first, second

    def config(self) -> dict:
        return {
            "format": self.format,
            "shape": list(self.shape),
            "first": self.first.config(),
            "second": self.second.config(),
        }

    @classmethod
    def from_config(cls, config: dict) -> Sum:
        from compression.packed import from_config

        return cls(from_config(config["first"]), from_config(config["second"]))

    def stored(self) -> Tensor:
        return self.first.stored() + self.second.stored()

    def product(self, x: Tensor) -> Tensor:
        return self.first.product(x) + self.second.product(x)

    @property
    def op(self) -> str:
        return self.first.op

    @property
    def exact_columns(self) -> Tensor | None:
        return self.second.whole_columns

    def columns_of(self, ids: Tensor) -> Tensor:
        return self.first.columns_of(ids) + self.second.columns_of(ids)

    def tiles(self, rule):
        first, second = self.first.tiles(rule), self.second.tiles(rule)
        return None if first is None or second is None else plans.sum_of(first, second)

    @property
    def in_triton(self) -> bool:
        return self.first.in_triton and self.second.in_triton

    def mask(self) -> Tensor | None:
        a, b = self.first.mask(), self.second.mask()
        return None if a is None or b is None else a & b

    def encode_like(self, dense: Tensor) -> Sum:
        raise BadChain("a sum of two formats doesn't say which of them another matrix should go to")
