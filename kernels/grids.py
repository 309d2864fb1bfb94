"""Forms of scales and zero points that the references, PyTorch's routes and Triton all read.

Levels: the grid of a sparse matrix whose kept values are integer codes.

Nested scales: scales of a code book that are codes themselves. This is QLoRA's double quantization with
bitsandbytes' numbers. The codes k are uint8, counted row by row. They index the 8-bit map `dynamic_map`, and
scale = map[k] * absmax[k's place // 256] + offset.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.grouped_int import spread

NESTED_BLOCK = 256  # nested scales that share a largest value, absmax


@functools.cache
def dynamic_map(device: torch.device | str = "cpu") -> Tensor:
    """The 256 values of bitsandbytes' signed dynamic data type, float32, rising.

    For each of the seven powers of ten below 1, the range from 0.1 to 1 times that power is cut into 1, 2, 4,
    ... 64 equal parts. The middles of these parts are values, with both signs; so are 0 and 1.
    """
    values = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1)
        middles = 10.0 ** (i - 6) * (edges[1:] + edges[:-1]) / 2
        values += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(values), device=device)


def nested_scale(codes: Tensor, absmax: Tensor, offset: Tensor) -> Tensor:
    """The scales float32 [out, groups] that nested codes stand for.

    codes uint8 [out, groups], absmax float32 [ceil(out groups / 256)], offset float32 [1].
    """
    largest = absmax.repeat_interleave(NESTED_BLOCK)[: codes.numel()].view(codes.shape)
    return dynamic_map(codes.device)[codes.long()] * largest + offset


class Levels(NamedTuple):
    """The grid of kept weights that are integer codes: w = scale * (code - zero).

    Each row has a scale and a zero point for every group of neighbouring inputs.
    """

    scale: Tensor  # float16 [out, groups]
    zero: Tensor  # uint8 [out, groups]
    bits: int
    group_size: int  # a multiple of 16; -1: the whole row is one group

    @classmethod
    def of(cls, grid) -> Levels:
        """The levels of a grid (compression/packed/grid.py) whose groups are runs of neighbouring inputs."""
        return cls(grid.scale, grid.zero_points(), grid.bits, grid.group_size)

    def decode(self, codes: Tensor, keep: Tensor, rows: slice = slice(None)) -> Tensor:
        """codes, keep (bool) [rows, in] of some rows -> float32 weights, zero where `keep` is False."""
        scale = spread(self.scale[rows].float(), codes.shape[1], self.group_size)
        zero = spread(self.zero[rows].float(), codes.shape[1], self.group_size)
        return (codes.float() - zero).mul_(scale).mul_(keep)
