"""GPTQ by hand in the browser is that of compression/second_order.py and compression/quantization/gptq.py."""

from __future__ import annotations

import pytest
import torch

from compression.quantization.gptq import GptqParams, gptq
from compression.quantization.rtn import fit
from compression.second_order import inverse_factor

pytestmark = pytest.mark.browser


@pytest.fixture(params=[0, 1, 2])
def problem(request):
    """(weight [5, 8], the Gram matrix of inputs that move together), float32."""
    drawn = torch.Generator().manual_seed(request.param)
    x = torch.randn(300, 8, generator=drawn) @ torch.randn(8, 8, generator=drawn)
    return torch.randn(5, 8, generator=drawn), x.T @ x / 300


def close(got, expected, least):
    torch.testing.assert_close(torch.tensor(got).double(), expected.double(), rtol=least, atol=least)


def test_the_factor(lesson, problem):
    _, gram = problem
    expected, damping = inverse_factor(gram, 0.01)
    assert damping == 0.01
    close(lesson("gptq", "inverseFactor", gram.tolist()), expected, 1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_all_columns_are_what_gptq_gives(lesson, problem, bits):
    """To the half of a thousandth by which the page's scales, which aren't stored in 16 bits, differ."""
    weight, gram = problem
    codes, grid, _, _ = gptq(weight, gram, GptqParams(bits=bits, group_size=-1, act_order=False))
    states = lesson("gptq", "states", weight.tolist(), gram.tolist(), bits, True)
    assert len(states) == 9
    close(states[0], weight, 0)
    close(states[-1], grid.decode(codes), 3e-3)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_without_making_up_it_is_rounding_column_by_column(lesson, problem, bits):
    weight, gram = problem
    grid = fit(weight, bits, -1, False)
    rounded = grid.decode(grid.round(weight))
    for c, state in enumerate(lesson("gptq", "states", weight.tolist(), gram.tolist(), bits, False)):
        close(state, torch.cat([rounded[:, :c], weight[:, c:]], 1), 3e-3)


def test_the_error_is_that_of_the_outputs(lesson):
    drawn = torch.Generator().manual_seed(3)
    x, difference = torch.randn(50, 8, generator=drawn), torch.randn(5, 8, generator=drawn)
    expected = (x.double() @ difference.double().T).square().sum()
    got = lesson("gptq", "outputError", difference.tolist(), (x.double().T @ x.double()).tolist())
    assert got == pytest.approx(float(expected), rel=1e-6)


def test_after_each_column_the_damped_error_only_grows_and_less_than_by_rounding(lesson, problem):
    weight, gram = problem
    damped = (gram + 0.01 * gram.diagonal().mean() * torch.eye(8)).tolist()
    errors = {}
    for made_up in (True, False):
        states = lesson("gptq", "states", weight.tolist(), gram.tolist(), 3, made_up)
        left = [(torch.tensor(s) - weight).tolist() for s in states]
        errors[made_up] = [lesson("gptq", "outputError", d, damped) for d in left]
    assert all(b >= a - 1e-6 for a, b in zip(errors[True], errors[True][1:], strict=False))
    assert errors[True][-1] < errors[False][-1]
