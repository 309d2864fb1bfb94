"""Modules that carry a format inside a model: CompressedLinear for a linear, CompressedTable for a table.

A tied table is stored once: the model's embedding holds it, and `TableHead` reads the same object.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compression.packed.base import Packed


class CompressedLinear(nn.Module):
    """y = packed.matmul(x * input_scale) + bias, in x's dtype."""

    def __init__(self, packed: Packed, bias: Tensor | None = None, input_scale: Tensor | None = None):
        super().__init__()
        self.packed = packed
        self.register_buffer("bias", bias)  # [out]
        self.register_buffer("input_scale", input_scale)  # [in]

    @property
    def in_features(self) -> int:
        return self.packed.shape[1]

    @property
    def out_features(self) -> int:
        return self.packed.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        if self.input_scale is not None:
            x = x * self.input_scale.to(x.dtype)
        y = self.packed.matmul(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class CompressedTable(nn.Module):
    """A token embedding [vocabulary, width] in a row-wise format; also the head if the model ties the two."""

    def __init__(self, packed: Packed, dtype: torch.dtype, scale: float = 1.0):
        super().__init__()
        self.packed = packed
        self.dtype = dtype  # the type that the model computes in
        self.scale = scale  # the architecture's factor on the vectors; the head has none

    def rows(self, ids: Tensor) -> Tensor:
        """ids [...] -> their vectors as they are stored [..., width]."""
        return self.packed.rows(ids.reshape(-1)).to(self.dtype).reshape(*ids.shape, self.packed.shape[1])

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.rows(ids)
        return rows if self.scale == 1 else rows * rows.new_tensor(self.scale)

    def matmul(self, x: Tensor) -> Tensor:
        """x [..., width] -> logits [..., vocabulary]."""
        return self.packed.matmul(x)


class TableHead(nn.Module):
    """The output head of a model whose embedding is a CompressedTable; it shares the table's storage."""

    def __init__(self, table: CompressedTable):
        super().__init__()
        self._table = [table]  # a list, so that the module tree and the state_dict hold the table once

    @property
    def table(self) -> CompressedTable:
        return self._table[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.table.matmul(x)
