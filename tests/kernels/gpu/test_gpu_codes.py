"""Triton's products of integer codes, of code books and of binary planes."""

from __future__ import annotations

import pytest
import torch

from kernels import binary_coded, codebook, grouped_int, sparse
from kernels.bits import pack, unpack
from kernels.grids import dynamic_map
from tests.kernels.gpu.on_card import by_turns, check, grid, half_of, many, product, scales, tokens_of
from tests.tiers import met

WIDE = tuple(
    (tokens, 9, 1100, bits, group)
    for tokens, bits, group in ((1, 4, 64), (4, 3, 128), (8, 8, -1), (9, 2, 32), (16, 6, 48))
)
SEVEN = ((1, 33, 80, 6, 32), (17, 33, 80, 7, 32), (5, 9, 45, 7, 16))


def bits_of(case):
    return case[3]


def has_offset(case):
    """Whether a case of binary planes has one."""
    return (case[0] + bits_of(case)) % 2 == 0


@product
@pytest.mark.parametrize("case", by_turns(grouped_int.CASES + SEVEN, bits_of))
def test_product_of_grouped_int(case, poisoned, small_tiles):
    tokens, out, n, bits, group = case
    operands, weight = grid(out, n, bits, group)
    from kernels.gpu.grouped_int import grouped_int as op

    check(op, tokens_of(tokens, n), weight, *operands, dtypes=half_of(case), tiled=True)


@product
@pytest.mark.parametrize("case", WIDE)
def test_product_of_grouped_int_as_it_is_tiled_for_use(case, poisoned):
    tokens, out, n, bits, group = case
    operands, weight = grid(out, n, bits, group)
    from kernels.gpu.grouped_int import grouped_int as op

    check(op, tokens_of(tokens, n), weight, *operands, tiled=True)


REAL = (*(case for case in grouped_int.CASES if case[3] in (3, 8)), (9, 17, 1100, 4, 48))
LEVELS = (*((*case, 3) for case in REAL), *((*case, bits) for case in REAL[-4:] for bits in (4, 5)))


@product
@pytest.mark.parametrize("case", by_turns(REAL, bits_of))
def test_product_of_grouped_int_with_real_zeros(case, poisoned, small_tiles):
    tokens, out, n, bits, group = case
    (codes, scale, _, *rest), _ = grid(out, n, bits, group)
    zero = (2**bits * torch.rand(scale.shape, generator=torch.Generator().manual_seed(1))).half()
    spread = [grouped_int.spread(t.double(), n, group) for t in (scale, zero)]
    from kernels.gpu.grouped_int import grouped_int as op

    weight = spread[0] * (unpack(codes, bits, n).double() - spread[1])
    check(op, tokens_of(tokens, n), weight, codes, scale, zero, *rest, dtypes=half_of(case), tiled=True)


@product
@pytest.mark.parametrize("case", by_turns(LEVELS, bits_of, lambda case: case[5]))
def test_product_of_two_levels(case, poisoned, small_tiles):
    """Runs of 16 rows share a grid for their scales and one for their zero points; the last run is short."""
    tokens, out, n, bits, group, level_bits = case
    (codes, scale, *_), _ = grid(out, n, bits, group)
    g, groups, found, levels, stats = torch.Generator().manual_seed(level_bits), scale.shape[1], [], [], []
    for _ in range(2):
        level = torch.randint(0, 2**level_bits, (out, groups), generator=g).to(torch.uint8)
        stat = torch.rand(-(-out // 16), groups, 2, generator=g).div(16).half()
        step, base = stat.double()[torch.arange(out) // 16].unbind(-1)
        found.append(step * (level.double() - base))
        levels.append(pack(level.view(1, -1), level_bits)[0])
        stats.append(stat)
    spread = [grouped_int.spread(t, n, group) for t in found]
    from kernels.gpu.grouped_int import two_level_int as op

    def called(x, codes, *rest):
        return op(x, codes, rest[:2], rest[2:4], *rest[4:])

    weight = spread[0] * (unpack(codes, bits, n).double() - spread[1])
    operands = (codes, *levels, *stats, level_bits, bits, group)
    check(called, tokens_of(tokens, n), weight, *operands, dtypes=half_of(case), tiled=True)


@product
def test_product_of_what_is_not_contiguous_or_empty(poisoned):
    from kernels.gpu.grouped_int import grouped_int as op

    (codes, scale, zero, bits, group), weight = grid(24, 40, 4, 16)
    for tokens in (0, 3, 9):
        x = tokens_of(40, tokens).T
        check(op, x, weight, codes, scale, zero, bits, group, dtypes=(torch.float32,))
        check(op, x, weight[8:], codes[8:], scale[8:], zero[8:], bits, group, dtypes=(torch.float32,))
        check(op, x, weight[:0], codes[:0], scale[:0], zero[:0], bits, group, dtypes=(torch.float32,))


BOOKS = (*codebook.CASES, (8, 9, 1100, 64))


@product
@pytest.mark.parametrize("case", BOOKS)
def test_product_of_codebook(case, poisoned, small_tiles):
    tokens, out, n, group = case
    g = torch.Generator().manual_seed(out)
    q, table = torch.randint(0, 16, (out, n), generator=g), torch.randn(16, generator=g)
    scale = scales(out, n, group, g)
    weight = table.double()[q] * grouped_int.spread(scale.double(), n, group)
    from kernels.gpu.codebook import codebook as op

    check(
        op,
        tokens_of(tokens, n),
        weight,
        pack(q.to(torch.uint8), 4),
        scale,
        table,
        group,
        dtypes=half_of(case),
        tiled=True,
    )


@product
@pytest.mark.parametrize("case", met(BOOKS, many, lambda case: half_of(case)[1], lambda case: case[3]))
def test_product_of_codebook_with_nested_scales(case, poisoned, small_tiles):
    tokens, out, n, group = case
    g = torch.Generator().manual_seed(out)
    q, table = torch.randint(0, 16, (out, n), generator=g), torch.randn(16, generator=g)
    nested = torch.randint(0, 256, (out, grouped_int.groups_of(n, group)), generator=g).to(torch.uint8)
    absmax, offset = torch.rand(-(-nested.numel() // 256), generator=g), torch.rand(1, generator=g)
    flat = torch.stack(
        [dynamic_map()[int(k)] * absmax[i // 256] + offset[0] for i, k in enumerate(nested.flatten())]
    )
    weight = table.double()[q] * grouped_int.spread(flat.view(nested.shape).double(), n, group)
    from kernels.gpu.codebook import codebook as op

    operands = (pack(q.to(torch.uint8), 4), nested, table, group, absmax, offset)
    check(op, tokens_of(tokens, n), weight, *operands, dtypes=half_of(case), tiled=True)


@product
@pytest.mark.parametrize("case", by_turns(binary_coded.CASES, bits_of, has_offset))
def test_product_of_binary_coded(case, poisoned, small_tiles):
    tokens, out, n, bits, group = case
    g = torch.Generator().manual_seed(out + bits)
    b = torch.rand(bits, out, n, generator=g) > 0.5
    alpha = torch.stack([scales(out, n, group, g) for _ in range(bits)])
    offset = (
        scales(out, n, group, g).to(torch.float32 if tokens % 2 else torch.float16)
        if has_offset(case)
        else None
    )
    weight = sum(
        grouped_int.spread(a.double(), n, group) * (2 * plane.double() - 1)
        for a, plane in zip(alpha, b, strict=True)
    )
    if has_offset(case):
        weight = weight + grouped_int.spread(offset.double(), n, group)
    from kernels.gpu.binary_coded import binary_coded as op
    from kernels.gpu.binary_coded import looked_up

    planes = torch.stack([sparse.mask_bits(plane) for plane in b])
    check(op, tokens_of(tokens, n), weight, planes, alpha, offset, group, dtypes=half_of(case), tiled=True)
    if tokens <= 8:
        check(
            looked_up,
            tokens_of(tokens, n),
            weight,
            planes,
            alpha,
            offset,
            group,
            8 if bits % 2 else 4,
            dtypes=half_of(case)[1:],
        )


@product
def test_product_by_tables_of_a_size_that_is_none_is_refused():
    from kernels.gpu.binary_coded import looked_up

    with pytest.raises(ValueError, match="tables of 3 inputs.*4 or 8"):
        looked_up(
            torch.zeros(1, 16),
            torch.zeros(1, 4, 2, dtype=torch.uint8),
            torch.zeros(1, 4, 1).half(),
            None,
            16,
            3,
        )


@product
def test_product_of_binary_coded_as_it_is_tiled_for_use(poisoned):
    out, n = 5, 1100
    b, alpha = (
        torch.rand(3, out, n, generator=torch.Generator().manual_seed(0)) > 0.5,
        torch.rand(3, out, 18).half(),
    )
    weight = sum(
        grouped_int.spread(a.double(), n, 64) * (2 * plane.double() - 1)
        for a, plane in zip(alpha, b, strict=True)
    )
    from kernels.gpu.binary_coded import binary_coded as op

    planes = torch.stack([sparse.mask_bits(plane) for plane in b])
    check(op, tokens_of(2, n), weight, planes, alpha, None, 64)
    for mu in (4, 8):
        check(op, tokens_of(1, n), weight, planes, alpha, None, 64, mu, dtypes=(torch.float16,))
