"""Triton's products of bitmask and 2:4 weights, of 16 bits or of codes, and the choice of a card's sparse
cores."""

from __future__ import annotations

import pytest
import torch

from kernels import grouped_int, sparse
from kernels.bits import pack
from kernels.grids import Levels
from tests.kernels.gpu.on_card import DEVICE, by_turns, check, half_of, on_device, product, scales, tokens_of

SPARSE = (*sparse.CASES, (2, 9, 1100), (9, 3, 1100))


@product
@pytest.mark.parametrize("case", SPARSE)
def test_product_of_bitmask(case, poisoned, monkeypatch):
    tokens, out, n = case
    g = torch.Generator().manual_seed(n)
    keep = torch.rand(out, n, generator=g) > 0.5
    keep[out // 2] = False  # a row without any weight
    keep[-1] = True
    weight = torch.randn(out, n, generator=g).half() * keep
    starts = torch.cat([torch.zeros(1), keep.sum(1).cumsum(0)]).int()
    from kernels.gpu import sparse as ours

    monkeypatch.setattr(ours, "BLOCK", 3 * n)  # many tokens: blocks of three rows at most
    check(
        ours.bitmask,
        tokens_of(tokens, n),
        weight.double(),
        sparse.mask_bits(keep),
        weight[keep],
        starts,
        dtypes=half_of(case),
    )


CODED = tuple(  # (tokens, out, in, bits, group_size)
    (tokens, out, n, bits, group)
    for bits, group in ((4, 32), (8, -1), (3, 16), (2, 64), (5, 48))
    for tokens, out, n in ((1, 9, 1100), (3, 50, 40), (17, 5, 64))
)


def levels_of(out, n, bits, group):
    """A grid of its own for every group."""
    g = torch.Generator().manual_seed(bits)
    scale = scales(out, n, group, g)
    return Levels(scale, torch.randint(0, 2**bits, scale.shape, generator=g).to(torch.uint8), bits, group)


def check_levels(op, x, weight, *operands, levels, case):
    """`check` for a launcher whose last operand is a grid."""
    there = Levels(*on_device(*levels))
    check(lambda x, *rest: op(x, *rest, there), x, weight, *operands, dtypes=half_of(case))


@product
@pytest.mark.parametrize("case", by_turns(CODED, lambda case: case[3]))
def test_product_of_bitmask_codes(case, poisoned, monkeypatch):
    tokens, out, n, bits, group = case
    g = torch.Generator().manual_seed(n)
    keep = torch.rand(out, n, generator=g) > 0.5
    keep[out // 2] = False
    keep[-1] = True
    codes = torch.randint(0, 2**bits, (out, n), generator=g).to(torch.uint8)
    levels = levels_of(out, n, bits, group)
    scale, zero = (grouped_int.spread(t.double(), n, group) for t in levels[:2])
    starts = torch.cat([torch.zeros(1), keep.sum(1).cumsum(0)]).int()
    from kernels.gpu import sparse as ours

    monkeypatch.setattr(ours, "BLOCK", 3 * n)
    operands = (sparse.mask_bits(keep), pack(codes[keep][None], bits)[0], starts)
    check_levels(
        ours.bitmask, tokens_of(tokens, n), scale * (codes - zero) * keep, *operands, levels=levels, case=case
    )


@product
@pytest.mark.parametrize("case", by_turns(CODED, lambda case: case[3]))
def test_product_of_two_four_codes(case, poisoned, monkeypatch):
    tokens, out, n, bits, group = case
    _, positions = pairs(out, n)
    codes = torch.randint(0, 2**bits, (out, n // 2), generator=torch.Generator().manual_seed(n)).to(
        torch.uint8
    )
    levels = levels_of(out, n, bits, group)
    scale, zero = (grouped_int.spread(t.double(), n, group) for t in levels[:2])
    keep = sparse.scatter_two_four(torch.ones_like(codes), positions).bool()
    weight = scale * (sparse.scatter_two_four(codes, positions) - zero) * keep
    from kernels.gpu import sparse as ours

    monkeypatch.setattr(ours, "BLOCK", 3 * n)
    check_levels(
        ours.two_four,
        tokens_of(tokens, n),
        weight,
        pack(codes, bits),
        pack(positions, 2),
        levels=levels,
        case=case,
    )


def pairs(out, n):
    """values float16 [out, in/2] and positions of 2:4 weights."""
    g = torch.Generator().manual_seed(n)
    positions = (
        torch.rand(out, n // 4, 4, generator=g)
        .argsort(-1)[..., :2]
        .sort(-1)
        .values.reshape(out, -1)
        .to(torch.uint8)
    )
    return torch.randn(out, n // 2, generator=g).half(), positions


@product
@pytest.mark.parametrize("case", SPARSE)
def test_product_of_two_four(case, poisoned):
    tokens, out, n = case
    values, positions = pairs(out, n)
    weight = sparse.scatter_two_four(values, positions)
    from kernels.gpu.sparse import two_four, two_four_rows

    check(two_four, tokens_of(tokens, n), weight.double(), values, pack(positions, 2), dtypes=half_of(case))
    given = on_device(values, pack(positions, 2))
    assert torch.equal(two_four_rows(*given, None, 0, out, n, torch.float16).cpu(), weight)


@product
def test_product_of_two_four_on_sparse_cores(monkeypatch):
    """Many tokens take cuSPARSELt on a card that has it, in blocks of a shape that it takes; elsewhere a
    stand-in shows the shapes."""
    from kernels.gpu import sparse as ours
    from kernels.gpu import sparse_cores

    tokens, out, n = sparse_cores.MANY if DEVICE == "cuda" else 20, 160, 128
    values, positions = pairs(out, n)
    shapes, real = [], torch.sparse.to_sparse_semi_structured
    if DEVICE == "cuda":
        if not torch.backends.cusparselt.is_available():
            pytest.skip("PyTorch has no cuSPARSELt here")
        assert not sparse_cores.why_not(torch.device("cuda", 0), torch.float16), "there, but refused or wrong"
    else:
        monkeypatch.setattr(sparse_cores, "serve", lambda x, out: x.dtype != torch.float32)

        def real(rows):
            return rows

    monkeypatch.setattr(
        torch.sparse,
        "to_sparse_semi_structured",
        lambda rows: (shapes.append(tuple(rows.shape)), real(rows))[1],
    )
    monkeypatch.setattr(ours, "BLOCK", 70 * n)
    check(
        ours.two_four,
        tokens_of(tokens, n),
        sparse.scatter_two_four(values, positions).double(),
        values,
        pack(positions, 2),
    )
    assert shapes == [(64, n), (64, n), (32, n)] * 2, "float16 and bfloat16; float32 has no sparse cores"


def test_sparse_cores_serve_what_fits_a_card_that_has_them(monkeypatch):
    from kernels.gpu import sparse_cores

    assert "cuSPARSELt" in sparse_cores.why_not(torch.device("cpu"), torch.float16)

    class OnCard:
        is_cuda, device = True, torch.device("cuda", 0)

        def __init__(self, tokens, n, dtype=torch.float16):
            self.shape, self.dtype = (tokens, n), dtype

        def __len__(self):
            return self.shape[0]

    monkeypatch.setattr(sparse_cores, "why_not", lambda device, dtype: "")
    assert sparse_cores.serve(OnCard(1024, 576), 1536)
    refused = ((1023, 576, 1536), (1024, 80, 1536), (1024, 576, 1550))  # tokens, in, out
    assert not any(sparse_cores.serve(OnCard(tokens, n), out) for tokens, n, out in refused)
    assert not sparse_cores.serve(OnCard(1024, 576, torch.float32), 1536)
