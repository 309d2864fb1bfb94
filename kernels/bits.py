"""Packs integers of b bits without gaps, and unpacks them.

Value k of a row occupies bits [b k, b k + b) of the row's little-endian bit stream. A row of n values takes
ceil(n / 8) * b bytes; n is padded to a multiple of 8 with zeros.

Unpacking works by lanes. Values k, k + L, k + 2L, ... of a row stand at the same shift, in bytes of equal
distance. So one strided slice and one shift (two where a value crosses a byte) give a whole lane [rows, n /
L].
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# values until the pattern of bits within bytes repeats; 8 for the other widths, whose values may cross bytes
LANES = {1: 8, 2: 4, 4: 2, 8: 1}


def row_bytes(n: int, bits: int) -> int:
    """Bytes of a packed row of n values."""
    return -(-n // 8) * bits


def pack(values: Tensor, bits: int) -> Tensor:
    """uint8 [rows, n], each below 2^bits -> uint8 [rows, row_bytes(n, bits)]."""
    rows, n = values.shape
    values = F.pad(values, (0, -n % 8)).view(rows, -1, 8).to(torch.int64)
    word = sum(values[..., k] << (bits * k) for k in range(8))  # 8 b bits, at most 64
    parts = [(word >> (8 * j)) & 255 for j in range(bits)]
    return torch.stack(parts, -1).to(torch.uint8).reshape(rows, -1)


def lanes(packed: Tensor, bits: int) -> Iterator[tuple[int, int, Tensor]]:
    """Every lane of packed uint8 [rows, bytes]: (first value, stride, uint8 values [rows, ...])."""
    count = LANES.get(bits, 8)
    stride = bits * count // 8  # bytes until the pattern repeats
    mask = (1 << bits) - 1
    for k in range(count):
        byte, shift = divmod(bits * k, 8)
        value = packed[:, byte::stride] >> shift
        if shift + bits > 8:
            value = value | (packed[:, byte + 1 :: stride] << (8 - shift))
        yield k, count, value & mask if bits < 8 else value


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """The inverse of `pack`: uint8 [rows, n]."""
    out = torch.empty(packed.shape[0], packed.shape[1] * 8 // bits, dtype=torch.uint8, device=packed.device)
    for first, step, values in lanes(packed, bits):
        out[:, first::step] = values
    return out[:, :n]
