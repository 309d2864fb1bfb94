"""Tensor train: every row of a matrix is a chain of small cores, whose product is the row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from compression.base import BadChain
from compression.packed.base import Packed, to_storage
from kernels.cpu import plans
from kernels.tensor_train import ROWS_PER_BLOCK, tensor_train, tensor_train_rows, values_per_row


class TensorTrain(Packed):
    """cores float16 [out, P], P = sum of r_{k-1} I_k r_k; bits a weight = 16 P / in.

    modes: I_1 .. I_K, their product at least `in` (the rest is padding); ranks: r_0 = 1 .. r_K = 1.
    """

    format = "tensor_train"

    def __init__(self, shape: tuple[int, int], cores: Tensor, modes: Sequence[int], ranks: Sequence[int]):
        super().__init__(shape)
        if cores.shape != (shape[0], values_per_row(modes, ranks)) or math.prod(modes) < shape[1]:
            raise ValueError(
                f"cores {list(cores.shape)} with modes {list(modes)} and ranks {list(ranks)} are no "
                f"matrix {list(shape)}"
            )
        self.modes, self.ranks = tuple(modes), tuple(ranks)
        self.register_buffer("cores", cores)

    @classmethod
    def encode(cls, shape: tuple[int, int], parts: Sequence[Tensor]) -> TensorTrain:
        """parts: the K cores [out, r_{k-1}, I_k, r_k] of every row, rounded to float16.

        A factor may be moved from one core to another without changing their product. So the cores of a row
        first get equal root mean squares, and none leaves the range of float16.
        """
        modes, ranks = [p.shape[2] for p in parts], [1, *(p.shape[3] for p in parts)]
        return cls(shape, to_storage(balanced(parts)), modes, ranks)

    def config(self) -> dict:
        return {
            "format": self.format,
            "shape": list(self.shape),
            "modes": list(self.modes),
            "ranks": list(self.ranks),
        }

    @classmethod
    def from_config(cls, config: dict) -> TensorTrain:
        shape, modes, ranks = config["shape"], config["modes"], config["ranks"]
        return cls(
            shape, torch.empty(shape[0], values_per_row(modes, ranks), dtype=torch.float16), modes, ranks
        )

    def stored(self) -> Tensor:
        blocks = self.cores.split(ROWS_PER_BLOCK)
        return torch.cat(
            [tensor_train_rows(block, self.modes, self.ranks, self.shape[1]) for block in blocks]
        )

    def rows(self, ids: Tensor) -> Tensor:
        if self.plan() is not None:
            return super().rows(ids)
        return tensor_train_rows(self.cores[ids], self.modes, self.ranks, self.shape[1])

    def product(self, x: Tensor) -> Tensor:
        return tensor_train(x, self.cores, self.modes, self.ranks)

    def encode_like(self, dense: Tensor) -> TensorTrain:
        raise BadChain("a tensor train has no mask and no grid that another matrix could be stored with")

    def tiles(self, rule):
        return plans.tensor_train(self.cores, self.modes, self.ranks, self.shape[1], rule)


def balanced(parts: Sequence[Tensor]) -> Tensor:
    """Cores [n, r, I, r'] of the same products, flattened to one [n, P].

    All cores of a row get the same root mean square.
    """
    flat = [part.flatten(1) for part in parts]
    sizes = torch.stack([part.square().mean(1).sqrt() for part in flat], 1)  # [n, K]
    sizes = torch.where((sizes > 0).all(1, keepdim=True), sizes, 1.0)  # a row of zeros stays zero
    wanted = sizes.log().mean(1, keepdim=True).exp()
    return torch.cat([part * (wanted / sizes)[:, k : k + 1] for k, part in enumerate(flat)], 1)
