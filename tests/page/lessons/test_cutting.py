"""The cutting lesson's formulas in the browser are those of compression/pruning and second_order.py."""

from __future__ import annotations

import pytest
import torch

from compression.pruning.patterns import lowest, lowest_in_groups
from compression.pruning.sparsegpt import SparsegptParams, sparsegpt
from compression.second_order import inverse_factor, output_error

pytestmark = pytest.mark.browser
N = 16


@pytest.fixture(params=[0, 1, 2])
def problem(request):
    """(a row [1, N], the Gram matrix of inputs that resemble each other), float64."""
    drawn = torch.Generator().manual_seed(request.param)
    mix = torch.randn(N, N, generator=drawn, dtype=torch.float64)
    x = torch.randn(200, N, generator=drawn, dtype=torch.float64) @ mix
    return torch.randn(1, N, generator=drawn, dtype=torch.float64), x.T @ x / 200


def flat(tensor):
    return tensor.flatten().tolist()


def test_the_factor(lesson, problem):
    _, gram = problem
    expected, damping = inverse_factor(gram, 0.01)
    assert damping == 0.01
    got = torch.tensor(lesson("cutting", "inverseFactor", flat(gram)), dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)


def test_the_error_of_the_output(lesson, problem):
    row, gram = problem
    left = row.masked_fill(lowest(row.abs(), N // 2), 0)
    got = lesson("cutting", "outputError", flat(row), flat(left), flat(gram))
    assert got == pytest.approx(output_error(row, left, gram), rel=1e-9)


@pytest.mark.parametrize("pattern, group", [("unstructured", N), ("2:4", 4)])
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_what_goes_by_a_score(lesson, problem, method, pattern, group):
    row, gram = problem
    score = row.abs() if method == "magnitude" else row.abs() * gram.diagonal().sqrt()
    gone = lowest(score, N // 2) if pattern == "unstructured" else lowest_in_groups(score, pattern)
    got = lesson("cutting", f"cut.{method}", flat(row), flat(gram), group)
    assert got["gone"] == flat(gone)
    assert got["left"] == flat(row.masked_fill(gone, 0))


@pytest.mark.parametrize("pattern, group", [("unstructured", N), ("2:4", 4)])
def test_sparsegpt(lesson, problem, pattern, group):
    row, gram = problem
    left, gone, *_ = sparsegpt(row, gram, SparsegptParams(sparsity=0.5, pattern=pattern))
    got = lesson("cutting", "cut.sparsegpt", flat(row), flat(gram), group)
    assert got["gone"] == flat(gone)
    assert got["left"] == pytest.approx(flat(left), rel=1e-7, abs=1e-9)


def test_of_equals_the_earlier_goes(lesson):
    assert lesson("cutting", "lowest", [1, 1, 1, 1], 4) == [True, True, False, False]
    assert lesson("cutting", "lowest", [1, 0, 2, 0], 2) == [False, True, False, True]
