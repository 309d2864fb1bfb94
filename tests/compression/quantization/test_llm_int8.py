"""LLM.int8(): vector-wise int8 against its definition, and both ends of the threshold (E8)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compression import arch, calibrate, engine, get
from compression.base import BadParam, Site, Stats
from compression.packed import from_config
from kernels import cpu
from tests import oracles, tiny


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
    # a tie of the rounding may go either way
    step = np.abs(x.numpy()).max() / 127 * np.abs(weight.numpy()).max()
    assert np.abs(found - expected).max() < max(1e-4 * np.abs(expected).max(), 1e-3 * step)


@pytest.mark.parametrize("threshold", [6.0, 100.0])
def test_without_outliers_it_is_vector_wise_int8_and_so_is_threshold_0(threshold, served_by):
    x, weight = problem()
    plain = run(weight, threshold=0.0)
    assert plain.activations.threshold is None, (
        "0 turns the decomposition off, it doesn't make everything an outlier"
    )
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

    def error(threshold):
        return float((run(weight, threshold=threshold).matmul(x) - exact).norm())

    assert error(6.0) < 0.4 * error(0.0)
    calm, _ = problem(tokens=64, n=512)
    assert error(6.0) < 3 * float((run(weight).matmul(calm) - calm @ weight.T).norm()), (
        "about what is lost without outliers"
    )


def test_a_zero_point_halves_the_steps_of_tokens_with_one_large_value(served_by):
    """Codes from -127 to 127 over max - min instead of over 2 max: a quarter of the squared error where min
    is 0."""
    x, weight = problem(tokens=64, out=96, n=512)
    x = x.abs()
    exact = x @ run(weight).dequantize().T

    def error(zero_point):
        return float((run(weight, zero_point=zero_point).matmul(x) - exact).square().sum())

    assert 0.2 < error(True) / error(False) < 0.3
    even = torch.cat([x, -x], 1)
    both = run(torch.cat([weight, weight], 1), zero_point=True).matmul(even)
    assert torch.allclose(
        both, run(torch.cat([weight, weight], 1), zero_point=False).matmul(even), rtol=1e-4, atol=2e-2
    ), "alike where the sides are"


def test_the_zero_point_is_saved_with_the_format(served_by):
    packed = run(problem()[1], zero_point=True)
    config = packed.full_config()
    assert config["activations"] == {"bits": 8, "threshold": 6.0, "zero_point": True}
    assert "zero_point" not in run(problem()[1], zero_point=False).full_config()["activations"], (
        "as before where there is none"
    )
    assert from_config(config).activations == packed.activations


@pytest.mark.parametrize("zero_point", [False, True])
def test_a_token_does_not_depend_on_its_neighbours(zero_point):
    x, weight = problem()
    alone = run(weight, zero_point=zero_point).matmul(x[:1])
    x[1:] *= 100
    assert torch.allclose(run(weight, zero_point=zero_point).matmul(x)[:1], alone, rtol=1e-6, atol=1e-5)


def test_sums_are_exact_integers(served_by):
    """Integers on both sides and scales of 1: what comes out is the integer that int64 gives, rounded once to
    float32."""
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


# --- by column, as in the paper ---


def kept(weight, seen, **params):
    """With the weights of outlier columns in 16 bits; seen [tokens, in]: the calibration's inputs."""
    method = get("llm_int8")
    values = method.params.parse({"decomposition": "column", "outlier_weights": 16} | params)
    return method.compress(
        Site("a", "q", 0, 1, weight, None, None), Stats(len(seen), max_abs=seen.abs().amax(0)), values
    ).linears["a"]


def mixed(tokens=7, n=72):
    """Two columns in which only some tokens are outliers."""
    x, weight = problem(tokens=tokens, n=n)
    x[1, 3], x[4, 50], x[5, 50] = 40.0, -9.0, 6.0
    return x, weight


def test_by_column_equals_equation_8(served_by):
    x, weight = mixed()
    packed = run(weight, decomposition="column", zero_point=False)
    expected = oracles.quantization.llm_int8_by_column(x.double().numpy(), weight.double().numpy(), 6.0)
    assert np.abs(packed.matmul(x).numpy() - expected).max() < 1e-3 * np.abs(expected).max()
    assert np.abs(packed.matmul(x.view(1, 7, -1))[0].numpy() - expected).max() < 1e-3 * np.abs(expected).max()
    assert torch.allclose(
        packed.activations(x) @ packed.dequantize().T, packed.matmul(x), rtol=1e-3, atol=1e-3
    )
    by_token = run(weight, zero_point=False)
    assert torch.allclose(packed.matmul(x[:1]), by_token.matmul(x[:1]), atol=1e-5), "one token: the same"
    assert not torch.allclose(packed.matmul(x)[0], by_token.matmul(x)[0], atol=1e-4), (
        "its column left the 8 bits, for another's sake"
    )


@pytest.mark.parametrize("zero_point", [False, True])
def test_by_column_with_weights_in_16_bits(zero_point, served_by):
    """Column 3 is known from calibration, column 50 is not and is read back from int8."""
    x, weight = mixed()
    seen = x.clone()
    seen[:, 50] = 1
    packed = kept(weight, seen, zero_point=zero_point)
    assert packed.format == "sum" and packed.second.index.tolist() == [3]
    assert packed.stored_bytes() == 20 * 72 + 2 * 20 + 2 * 20 + 4
    expected = oracles.quantization.llm_int8_by_column(
        x.double().numpy(), weight.double().numpy(), 6.0, kept=[3]
    )
    found = packed.matmul(x).numpy()
    assert np.abs(found - expected).max() < (1e-3 if not zero_point else 0.02) * np.abs(expected).max()
    exact = (x @ weight.T).numpy()
    plain = run(weight, decomposition="column", zero_point=zero_point).matmul(x).numpy()
    assert np.abs(found - exact)[1].mean() < np.abs(plain - exact)[1].mean(), (
        "what the large value meets is exact"
    )
    assert from_config(packed.full_config()).activations == packed.activations


def test_without_outliers_or_a_threshold_nothing_is_kept():
    x, weight = problem()
    assert kept(weight, x).format == "grouped_int"
    off = get("llm_int8").params.parse({"decomposition": "column", "outlier_weights": 16, "threshold": 0.0})
    packed = get("llm_int8").compress(Site("a", "q", 0, 1, weight, None, None), Stats(0), off).linears["a"]
    assert not packed.activations.looks_at_call


def test_only_weights_in_16_bits_ask_for_calibration():
    method = get("llm_int8")

    def asks(**p):
        return method.needs_calibration(method.params.parse(p))

    assert not asks() and not asks(decomposition="column") and not asks(outlier_weights=16)
    assert asks(decomposition="column", outlier_weights=16)
    assert not asks(decomposition="column", outlier_weights=16, threshold=0.0)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_whole_model_by_column(bits):
    bundle, ids, method = tiny.bundle("llama"), tiny.ids(4), get("llm_int8")
    before = tiny.logits(bundle, ids)
    values = {"decomposition": "column", "outlier_weights": bits, "threshold": 2.0, "zero_point": False}
    calibrate.compress(bundle, ((method, method.params.parse(values)),), ids)
    assert (tiny.logits(bundle, ids) - before).norm() < 0.03 * before.norm()
    formats = {bundle.module.get_submodule(path).packed.format for path, _, _ in arch.linears(bundle.module)}
    assert ("sum" in formats) == (bits == 16)
    after = tiny.logits(bundle, ids)
    engine.prepare(bundle)
    assert torch.equal(tiny.logits(bundle, ids), after), "it reads single columns, so its tensors stay"
    with pytest.raises(engine.CannotServe, match="other tokens of the call|C kernels"):
        engine.decoder(bundle)


def test_the_gradient_by_column_passes_straight_through():
    x, weight = mixed()
    packed = run(weight, decomposition="column", zero_point=False)
    x.requires_grad_()
    packed.matmul(x).sum().backward()
    assert torch.allclose(x.grad, packed.dequantize().sum(0).expand_as(x), rtol=1e-4, atol=1e-4)
