"""LLM.int8(): vector-wise int8 against its definition, and both ends of the threshold (E8)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compression import get
from compression.base import BadParam, Site, Stats
from kernels import cpu
from tests import oracles


def run(weight, **params):
    method = get("llm_int8")
    edit = method.compress(Site("a", "q", 0, 1, weight, None, None), Stats(0), method.params.parse(params))
    return edit.linears["a"]


def problem(tokens=7, out=20, n=72, outliers=0, seed=0):
    """x [tokens, n] below 6 except for `outliers` columns of about 30; weight [out, n]."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, n, generator=g).clamp(-4, 4)
    x[:, :outliers] = 30 * x[:, :outliers].sign() + x[:, :outliers]
    return x, 0.05 * torch.randn(out, n, generator=g)


@pytest.fixture(params=["C", "PyTorch"])
def served_by(request, monkeypatch):
    if request.param == "PyTorch":
        monkeypatch.setattr(cpu, "library", lambda: None)
    elif cpu.wait() is None:
        pytest.skip(cpu.status())
    return request.param


@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("threshold", [6.0, 2.0, 1e6])
def test_equals_the_oracle(threshold, zero_point, served_by):
    x, weight = problem(outliers=2)
    x[0], x[1] = x[0].abs(), -x[1].abs()  # of one sign
    found = run(weight, threshold=threshold, zero_point=zero_point).matmul(x).numpy()
    expected = oracles.quantization.llm_int8(
        x.numpy().astype(np.float64), weight.numpy().astype(np.float64), threshold, zero_point
    )
    step = np.abs(x.numpy()).max() / 127 * np.abs(weight.numpy()).max()  # a tie of the rounding may go either way
    assert np.abs(found - expected).max() < max(1e-4 * np.abs(expected).max(), 1e-3 * step)


@pytest.mark.parametrize("threshold", [6.0, 100.0])
def test_without_outliers_it_is_vector_wise_int8_and_so_is_threshold_0(threshold, served_by):
    x, weight = problem()
    plain = run(weight, threshold=0.0)
    assert plain.activations.threshold is None, "0 turns the decomposition off, it doesn't make everything an outlier"
    assert torch.allclose(run(weight, threshold=threshold).matmul(x), plain.matmul(x), rtol=1e-5, atol=1e-6)


def test_a_tiny_threshold_leaves_the_activations_alone(served_by):
    x, weight = problem(outliers=2)
    packed = run(weight, threshold=1e-6)
    expected = x @ packed.dequantize().T
    assert torch.allclose(packed.matmul(x), expected, rtol=1e-4, atol=1e-5)
    assert (run(weight).matmul(x) - expected).norm() > 1e-3 * expected.norm(), "with 6 something is rounded"


def test_planted_outliers_cost_plain_int8_much_more(served_by):
    """The paper's point: 6 features of 30 stretch the scale of every token."""
    x, weight = problem(tokens=64, out=96, n=512, outliers=6)
    exact = x @ weight.T
    error = lambda threshold: float((run(weight, threshold=threshold).matmul(x) - exact).norm())  # noqa: E731
    assert error(6.0) < 0.4 * error(0.0)
    calm, _ = problem(tokens=64, n=512)
    assert error(6.0) < 3 * float((run(weight).matmul(calm) - calm @ weight.T).norm()), "about what is lost without outliers"


def test_a_zero_point_halves_the_steps_of_tokens_with_one_large_value(served_by):
    """Codes from -127 to 127 over max - min instead of over 2 max: a quarter of the squared error where min is 0."""
    x, weight = problem(tokens=64, out=96, n=512)
    x = x.abs()
    exact = x @ run(weight).dequantize().T
    error = lambda zero_point: float((run(weight, zero_point=zero_point).matmul(x) - exact).square().sum())  # noqa: E731
    assert 0.2 < error(True) / error(False) < 0.3
    even = torch.cat([x, -x], 1)
    both = run(torch.cat([weight, weight], 1), zero_point=True).matmul(even)
    assert torch.allclose(both, run(torch.cat([weight, weight], 1), zero_point=False).matmul(even), rtol=1e-4, atol=2e-2), (
        "alike where the sides are"
    )


def test_the_zero_point_is_saved_with_the_format(served_by):
    from compression.packed import from_config

    packed = run(problem()[1], zero_point=True)
    config = packed.full_config()
    assert config["activations"] == {"bits": 8, "threshold": 6.0, "zero_point": True}
    assert "zero_point" not in run(problem()[1], zero_point=False).full_config()["activations"], "as before where there is none"
    assert from_config(config).activations == packed.activations


@pytest.mark.parametrize("zero_point", [False, True])
def test_a_token_does_not_depend_on_its_neighbours(zero_point):
    x, weight = problem()
    alone = run(weight, zero_point=zero_point).matmul(x[:1])
    x[1:] *= 100
    assert torch.allclose(run(weight, zero_point=zero_point).matmul(x)[:1], alone, rtol=1e-6, atol=1e-5)


def test_sums_are_exact_integers(served_by):
    """Integers on both sides and scales of 1: what comes out is the integer that int64 gives, rounded once to float32."""
    g = torch.Generator().manual_seed(5)
    x = torch.randint(-127, 128, (3, 4096), generator=g)
    x[:, 0] = 127
    weight = torch.randint(-127, 128, (5, 4096), generator=g)
    weight[0], x[0], weight[:, 1] = 127, 127, -127  # one sum beyond 2^24: 127 * 127 * 4095 - 127 * 127
    exact = (x @ weight.T).float()
    packed = run(weight.float(), threshold=0.0)
    assert torch.equal(packed.dequantize(), weight.float())
    assert exact.abs().max() > 2**25
    found = packed.matmul(x.float())
    if served_by == "C":
        assert torch.equal(found, exact)
    else:  # sums of floats
        assert (found - exact).abs().max() <= 1e-4 * exact.abs().max()


def test_weights_are_the_nearest_of_255_codes():
    weight = problem(out=64)[1]
    weight[3] = 0
    packed = run(weight)
    codes = packed.codes.view(64, -1)[:, :72].int() - 128
    assert codes.abs().max() == 127 and int(codes.min()) == -127, "-128 never occurs"
    largest = weight.abs().amax(1, keepdim=True)
    assert bool(((packed.dequantize() - weight).abs() <= 0.51 * largest / 127 + 1e-3 * largest).all())
    assert packed.stored_bytes() == 64 * 72 + 2 * 64 and bool((packed.dequantize()[3] == 0).all())


def test_a_negative_threshold_is_refused():
    with pytest.raises(BadParam, match="threshold"):
        get("llm_int8").params.parse({"threshold": -1.0})
