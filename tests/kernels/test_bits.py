"""Packing to the bit against a long-integer oracle (E11)."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.bits import pack, row_bytes, unpack
from tests import oracles


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 70), st.integers(1, 4), st.randoms(use_true_random=False))
def test_pack_is_the_little_endian_bit_stream(bits, n, rows, random):
    values = torch.tensor(
        [[random.randrange(2**bits) for _ in range(n)] for _ in range(rows)], dtype=torch.uint8
    )
    packed = pack(values, bits)
    assert packed.shape == (rows, row_bytes(n, bits))
    assert packed.tolist() == [oracles.codes.pack_bits(row, bits) for row in values.tolist()]
    assert torch.equal(unpack(packed, bits, n), values)
