"""Every op against its formula, and the formula against numpy in 64 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.bits import pack
from kernels.grouped_int import CASES, _in_pytorch, grouped_int, grouped_int_reference, groups_of
from kernels.low_rank import CASES as LOW_RANK_CASES
from kernels.low_rank import low_rank, low_rank_reference
from kernels.sparse import CASES as SPARSE_CASES
from kernels.sparse import bits_mask, flat_codes, mask_bits, multiply_blocks, scatter_bitmask, scatter_two_four


@pytest.mark.parametrize("case", CASES)
def test_grouped_int(case):
    tokens, out, n, bits, group = case
    g = torch.Generator().manual_seed(out * n + bits)
    codes = torch.randint(0, 2**bits, (out, n), generator=g).to(torch.uint8)
    groups = groups_of(n, group)
    scale = (0.01 + torch.rand(out, groups, generator=g)).half()
    zero = torch.randint(0, 2**bits, (out, groups), generator=g).to(torch.uint8)
    x = torch.randn(tokens, n, generator=g)
    size = n if group == -1 else group
    weight = np.array(
        [[float(scale[o, i // size]) * (int(codes[o, i]) - int(zero[o, i // size])) for i in range(n)] for o in range(out)]
    )
    expected = x.double().numpy() @ weight.T
    for op in (grouped_int, grouped_int_reference, _in_pytorch):
        found = op(x, pack(codes, bits), scale, zero, bits, group).numpy()
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("case", LOW_RANK_CASES)
def test_low_rank(case):
    tokens, out, n, rank = case
    x, u, v = torch.randn(tokens, n), torch.randn(out, rank).half(), torch.randn(rank, n).half()
    expected = x.double() @ (u.double() @ v.double()).T
    for op in (low_rank, low_rank_reference):
        assert torch.allclose(op(x, u, v).double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("case", SPARSE_CASES)
def test_bitmask_scatter_and_product(case):
    tokens, out, n = case
    g = torch.Generator().manual_seed(n)
    keep = torch.rand(out, n, generator=g) > 0.5
    keep[0] = False  # a row without any weight
    weight = torch.randn(out, n, generator=g) * keep
    assert torch.equal(bits_mask(mask_bits(keep), n), keep)
    assert mask_bits(keep)[-1, 0].item() == sum(int(b) << i for i, b in enumerate(keep[-1, :8]))
    assert torch.equal(scatter_bitmask(weight[keep], keep), weight)
    x = torch.randn(tokens, n, generator=g)
    found = multiply_blocks(x, (out, n), lambda rows: weight[rows])
    assert torch.allclose(found.double(), x.double() @ weight.double().T, atol=1e-4)


def test_two_four_scatter():
    values, positions = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[0, 3, 1, 2]], dtype=torch.uint8)
    assert scatter_two_four(values, positions).tolist() == [[1, 0, 0, 2, 0, 3, 4, 0]]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_piece_of_a_flat_stream(bits):
    values = torch.randint(0, 2**bits, (97,)).to(torch.uint8)
    stream = pack(values[None], bits)[0]
    for start, stop in ((0, 97), (1, 2), (7, 50), (64, 97), (13, 13)):
        assert torch.equal(flat_codes(stream, bits, start, stop), values[start:stop])


def test_the_float32_library_is_as_exact_as_float32():
    """Whatever was chosen here: products of all shapes stay at float32's own error."""
    from kernels.dense import choose_float32

    assert choose_float32() in ("oneDNN", "default")
    for m, n, k in ((1, 96, 576), (7, 33, 1536), (512, 130, 576)):
        x, w = torch.randn(m, k), torch.randn(n, k)
        expected = x.double() @ w.double().T
        assert (torch.nn.functional.linear(x, w) - expected).abs().max() <= 4e-6 * expected.abs().max()


def test_a_library_that_rounds_is_refused(monkeypatch):
    from kernels import dense

    real = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, w: real(x.bfloat16(), w.bfloat16()).float())
    before = torch.get_float32_matmul_precision()
    assert dense.choose_float32.__wrapped__() == "default" and torch.get_float32_matmul_precision() == before
