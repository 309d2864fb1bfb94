"""Triton's products of 16-bit weights: dense, low rank, a few values, a few columns."""

from __future__ import annotations

import pytest
import torch

from kernels import columns, dense, low_rank, outliers
from tests.kernels.gpu.on_card import check, half_of, product, tokens_of


def lower(case):
    """At most 42 rows: the interpreter walks through 4 at a time, and the last 2 are a tile that isn't full."""
    return (case[0], min(case[1], 42), *case[2:])


@product
@pytest.mark.parametrize("case", dense.CASES)
def test_product_of_dense(case, poisoned):
    tokens, out, n = case
    weight = torch.randn(out, n, generator=torch.Generator().manual_seed(n)).half()
    from kernels.gpu.dense import dense as op

    check(op, tokens_of(tokens, n), weight.double(), weight)
    if tokens > 1:  # a view with another stride
        x = tokens_of(tokens, 2 * n)[:, ::2]
        check(op, x, weight.double(), weight, dtypes=(torch.float32,))


@product
@pytest.mark.parametrize("case", [(*lower(case[:3]), min(case[3], 42)) for case in low_rank.CASES])
def test_product_of_low_rank(case, poisoned):
    tokens, out, n, rank = case
    g = torch.Generator().manual_seed(rank)
    u, v = torch.randn(out, rank, generator=g).half(), torch.randn(rank, n, generator=g).half()
    from kernels.gpu.dense import low_rank as op

    check(op, tokens_of(tokens, n), u.double() @ v.double(), u, v)


@product
@pytest.mark.parametrize("case", (*map(lower, outliers.CASES), (9, 5, 300, 400)))
def test_product_of_outliers(case, poisoned):
    tokens, out, n, count = case
    g = torch.Generator().manual_seed(count)
    weight = torch.zeros(out * n).half()
    weight[torch.randperm(out * n, generator=g)[:count]] = torch.randn(count, generator=g).half()
    weight = weight.view(out, n)
    rows, columns = weight.nonzero().T
    starts = torch.cat([torch.zeros(1), rows.bincount(minlength=out).cumsum(0)]).int()
    low = torch.where(columns < 32768, columns, columns - 65536).to(torch.int16)
    from kernels.gpu.outliers import outliers as op

    check(op, tokens_of(tokens, n), weight.double(), weight[rows, columns], low, starts, dtypes=half_of(case))


@product
@pytest.mark.parametrize("case", (*map(lower, columns.CASES), (9, 20, 300, 40)))
def test_product_of_columns(case, poisoned):
    tokens, out, n, count = case
    g = torch.Generator().manual_seed(count)
    values, index = torch.randn(out, count, generator=g).half(), torch.randperm(n, generator=g)[:count].int()
    weight = torch.zeros(out, n).double()
    for k, column in enumerate(index.tolist()):
        weight[:, column] = values[:, k].double()
    from kernels.gpu.columns import columns as op

    check(op, tokens_of(tokens, n), weight, values, index, dtypes=half_of(case))
