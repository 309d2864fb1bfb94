"""Every op against its formula, and the formula against numpy in 64 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels.binary_coded import CASES as BINARY_CASES
from kernels.binary_coded import binary_coded, binary_coded_reference
from kernels.bits import pack
from kernels.codebook import CASES as CODEBOOK_CASES
from kernels.codebook import codebook, codebook_reference
from kernels.columns import CASES as COLUMN_CASES
from kernels.columns import columns, columns_reference
from kernels.dense import CASES as DENSE_CASES
from kernels.dense import dense, dense_reference
from kernels.grids import Levels, dynamic_map
from kernels.grouped_int import (
    CASES,
    _in_pytorch,
    grouped_int,
    grouped_int_reference,
    groups_of,
    two_level_int,
)
from kernels.low_rank import CASES as LOW_RANK_CASES
from kernels.low_rank import low_rank, low_rank_reference
from kernels.outliers import CASES as OUTLIER_CASES
from kernels.outliers import outliers, outliers_reference
from kernels.sparse import CASES as SPARSE_CASES
from kernels.sparse import (
    bitmask,
    bitmask_reference,
    bits_mask,
    flat_codes,
    mask_bits,
    multiply_blocks,
    scatter_bitmask,
    scatter_two_four,
    two_four,
    two_four_reference,
)
from kernels.tensor_train import CASES as TRAIN_CASES
from kernels.tensor_train import tensor_train, tensor_train_reference, tensor_train_rows, values_per_row


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
        [
            [float(scale[o, i // size]) * (int(codes[o, i]) - int(zero[o, i // size])) for i in range(n)]
            for o in range(out)
        ]
    )
    expected = x.double().numpy() @ weight.T
    for op in (grouped_int, grouped_int_reference, _in_pytorch):
        found = op(x, pack(codes, bits), scale, zero, bits, group).numpy()
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("case", CASES[6:18])
def test_grids_with_real_zeros_and_two_levels(case):
    """Scales and zero points as numbers, and as codes of 3 bits whose own scale and zero 16 rows share."""
    tokens, out, n, bits, group = case
    g = torch.Generator().manual_seed(out * n + bits)
    codes, groups, size = (
        torch.randint(0, 2**bits, (out, n), generator=g).to(torch.uint8),
        groups_of(n, group),
        n if group == -1 else group,
    )
    levels = [torch.randint(0, 8, (out, groups), generator=g).to(torch.uint8) for _ in range(2)]
    stats = [torch.rand(-(-out // 16), groups, 2, generator=g).half() for _ in range(2)]

    def of(k, o, j):
        return float(stats[k][o // 16, j, 0]) * (int(levels[k][o, j]) - float(stats[k][o // 16, j, 1]))

    weight = np.array(
        [
            [of(0, o, i // size) * (int(codes[o, i]) - of(1, o, i // size)) for i in range(n)]
            for o in range(out)
        ]
    )
    x = torch.randn(tokens, n, generator=g)
    packed = [pack(level.view(1, -1), 3)[0] for level in levels]
    scale, zero = (torch.tensor([[of(k, o, j) for j in range(groups)] for o in range(out)]) for k in range(2))
    found = [
        op(x, pack(codes, bits), scale, zero, bits, group)
        for op in (grouped_int, grouped_int_reference, _in_pytorch)
    ]
    close(x, weight, [*found, two_level_int(x, pack(codes, bits), packed, stats, 3, bits, group)])


@pytest.mark.parametrize("case", COLUMN_CASES)
def test_columns(case):
    tokens, out, n, count = case
    g = torch.Generator().manual_seed(n)
    values, index, weight = (
        torch.randn(out, count, generator=g).half(),
        torch.randperm(n, generator=g)[:count].int(),
        np.zeros((out, n)),
    )
    for k, column in enumerate(index.tolist()):
        weight[:, column] = values[:, k].double().numpy()
    x = torch.randn(tokens, n, generator=g)
    close(x, weight, [op(x, values, index) for op in (columns, columns_reference)])


@pytest.mark.parametrize("case", DENSE_CASES)
def test_dense(case):
    tokens, out, n = case
    x, weight = torch.randn(tokens, n), torch.randn(out, n).half()
    close(x, weight.double().numpy(), [op(x, weight) for op in (dense, dense_reference)])


@pytest.mark.parametrize("case", LOW_RANK_CASES)
def test_low_rank(case):
    tokens, out, n, rank = case
    x, u, v = torch.randn(tokens, n), torch.randn(out, rank).half(), torch.randn(rank, n).half()
    expected = x.double() @ (u.double() @ v.double()).T
    for op in (low_rank, low_rank_reference):
        assert torch.allclose(
            op(x, u, v).double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
        )


@pytest.mark.parametrize("case", TRAIN_CASES)
def test_tensor_train(case):
    """Each entry is the product of one matrix of every core."""
    tokens, out, n, modes, ranks = case
    g = torch.Generator().manual_seed(n)
    x, cores = (
        torch.randn(tokens, n, generator=g),
        torch.randn(out, values_per_row(modes, ranks), generator=g).half(),
    )
    weight = np.zeros((out, n))
    for column, place in zip(range(n), np.ndindex(*modes), strict=False):
        chain, at = np.ones((out, 1, 1)), 0
        for r, mode, s, i in zip(ranks, modes, ranks[1:], place, strict=False):
            core = cores[:, at : at + r * mode * s].double().numpy().reshape(out, r, mode, s)
            chain, at = chain @ core[:, :, i], at + r * mode * s
        weight[:, column] = chain[:, 0, 0]
    assert np.allclose(
        tensor_train_rows(cores, modes, ranks, n).numpy(), weight, rtol=1e-4, atol=1e-4 * np.abs(weight).max()
    )
    if tokens:
        close(x, weight, [op(x, cores, modes, ranks) for op in (tensor_train, tensor_train_reference)])
    else:
        assert tensor_train(x, cores, modes, ranks).shape == (0, out)


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


@pytest.mark.parametrize("case", CODEBOOK_CASES)
def test_codebook(case):
    tokens, out, n, group = case
    g = torch.Generator().manual_seed(out * n)
    codes, table = torch.randint(0, 16, (out, n), generator=g).to(torch.uint8), torch.randn(16, generator=g)
    scale, size = torch.rand(out, groups_of(n, group), generator=g).half(), n if group == -1 else group
    weight = np.array(
        [[float(scale[o, i // size]) * float(table[int(codes[o, i])]) for i in range(n)] for o in range(out)]
    )
    x = torch.randn(tokens, n, generator=g)
    close(x, weight, [op(x, pack(codes, 4), scale, table, group) for op in (codebook, codebook_reference)])
    nested, absmax, offset = (
        torch.randint(0, 256, scale.shape, generator=g).to(torch.uint8),
        torch.rand(9, generator=g),
        torch.rand(1),
    )
    scale = [
        float(dynamic_map()[int(k)]) * float(absmax[i // 256]) + float(offset)
        for i, k in enumerate(nested.flatten())
    ]
    weight = np.array(
        [
            [scale[o * nested.shape[1] + i // size] * float(table[int(codes[o, i])]) for i in range(n)]
            for o in range(out)
        ]
    )
    close(x, weight, [codebook(x, pack(codes, 4), nested, table, group, absmax, offset)])


@pytest.mark.parametrize("case", BINARY_CASES)
def test_binary_coded(case):
    tokens, out, n, bits, group = case
    g = torch.Generator().manual_seed(out * n + bits)
    signs, groups = torch.rand(bits, out, n, generator=g) > 0.5, groups_of(n, group)
    alpha, offset = (
        torch.rand(bits, out, groups, generator=g).half(),
        torch.randn(out, groups, generator=g).half(),
    )
    size, x = n if group == -1 else group, torch.randn(tokens, n, generator=g)
    planes = torch.stack([mask_bits(plane) for plane in signs])
    for base in (offset, torch.randn(out, groups, generator=g), None):
        weight = np.array(
            [
                [
                    sum((1 if signs[k, o, i] else -1) * float(alpha[k, o, i // size]) for k in range(bits))
                    + (0 if base is None else float(base[o, i // size]))
                    for i in range(n)
                ]
                for o in range(out)
            ]
        )
        close(x, weight, [op(x, planes, alpha, base, group) for op in (binary_coded, binary_coded_reference)])


@pytest.mark.parametrize("case", OUTLIER_CASES)
def test_outliers(case):
    tokens, out, n, count = case
    g = torch.Generator().manual_seed(n)
    rows, columns = (
        torch.randint(0, out, (count,), generator=g).sort().values,
        torch.randint(0, n, (count,), generator=g),
    )
    values, weight = torch.randn(count, generator=g).half(), np.zeros((out, n))
    for r, c, v in zip(rows.tolist(), columns.tolist(), values.tolist(), strict=True):
        weight[r, c] += v
    starts = torch.tensor([int((rows < o).sum()) for o in range(out + 1)], dtype=torch.int32)
    x = torch.randn(tokens, n, generator=g)
    close(
        x, weight, [op(x, values, columns.to(torch.int16), starts) for op in (outliers, outliers_reference)]
    )


@pytest.mark.parametrize("case", [c for c in SPARSE_CASES if c[2] % 4 == 0])
def test_sparse_products(case):
    tokens, out, n = case
    g = torch.Generator().manual_seed(n)
    x, keep = torch.randn(tokens, n, generator=g), torch.rand(out, n, generator=g) > 0.5
    weight = (torch.randn(out, n, generator=g) * keep).half()
    starts = torch.tensor([int(keep[:o].sum()) for o in range(out + 1)], dtype=torch.int32)
    close(
        x,
        weight.double().numpy(),
        [op(x, mask_bits(keep), weight[keep], starts) for op in (bitmask, bitmask_reference)],
    )
    places = torch.stack(
        [torch.randperm(4, generator=g)[:2].sort().values for _ in range(out * n // 4)]
    ).view(out, n // 2)
    values, weight = torch.randn(out, n // 2, generator=g).half(), np.zeros((out, n))
    for o in range(out):
        for j in range(n // 2):
            weight[o, j // 2 * 4 + int(places[o, j])] = float(values[o, j])
    close(
        x, weight, [op(x, values, pack(places.to(torch.uint8), 2)) for op in (two_four, two_four_reference)]
    )


@pytest.mark.parametrize(
    "case",
    [
        (t, o, n, bits, group)
        for t, o, n in SPARSE_CASES
        if n % 4 == 0
        for bits, group in ((4, 16), (3, -1), (8, 32))
    ],
)
def test_sparse_products_of_codes(case):
    tokens, out, n, bits, group = case
    g = torch.Generator().manual_seed(n + bits)
    x, size = torch.randn(tokens, n, generator=g), n if group == -1 else group
    codes = torch.randint(0, 2**bits, (out, n), generator=g).to(torch.uint8)
    scale = (0.1 + torch.rand(out, groups_of(n, group), generator=g)).half()
    levels = Levels(scale, torch.randint(0, 2**bits, scale.shape, generator=g).to(torch.uint8), bits, group)

    def value(o, i):
        return float(scale[o, i // size]) * (int(codes[o, i]) - int(levels.zero[o, i // size]))

    places = torch.stack(
        [torch.randperm(4, generator=g)[:2].sort().values for _ in range(out * n // 4)]
    ).view(out, n // 2)
    pairs, keep = np.zeros((out, n)), torch.rand(out, n, generator=g) > 0.5
    weight = np.array([[value(o, i) if keep[o, i] else 0 for i in range(n)] for o in range(out)])
    starts = torch.tensor([int(keep[:o].sum()) for o in range(out + 1)], dtype=torch.int32)
    operands = (mask_bits(keep), pack(codes[keep][None], bits)[0], starts, levels)
    close(x, weight, [op(x, *operands) for op in (bitmask, bitmask_reference)])
    # every row keeps as many, so that their starts needn't be told
    even = torch.zeros(out, n, dtype=torch.bool)
    for o in range(out):
        even[o, torch.randperm(n, generator=g)[: n // 2]] = True
    weight = np.array([[value(o, i) if even[o, i] else 0 for i in range(n)] for o in range(out)])
    close(x, weight, [bitmask(x, mask_bits(even), pack(codes[even][None], bits)[0], None, levels)])
    kept = torch.zeros(out, n // 2, dtype=torch.uint8)
    for o in range(out):
        for j in range(n // 2):
            column = j // 2 * 4 + int(places[o, j])
            kept[o, j], pairs[o, column] = codes[o, column], value(o, column)
    operands = (pack(kept, bits), pack(places.to(torch.uint8), 2), levels)
    close(x, pairs, [op(x, *operands) for op in (two_four, two_four_reference)])


def close(x, weight, found):
    """Every product within float32's own error of the 64-bit one."""
    expected = x.double().numpy() @ weight.T
    for y in found:
        assert (
            np.abs(y.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
            if expected.size and np.abs(expected).max()
            else not y.any()
        )


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
