"""PCA of the outputs against the outputs' own covariance, its limit cases, its claim, and its bias on the way
to the decode step."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from compression import arch, artifact, calibrate, engine, get
from compression.low_rank.rank import rank_for
from evaluation.running.estimate import estimate
from evaluation.spec import RunSpec
from kernels import cpu
from tests import oracles, tiny
from tests.compression.test_methods import inputs, run, site


def biased(out, n, value=None):
    here = site(out, n)
    return here if value is None else dataclasses.replace(here, bias=torch.full((out,), value))


@pytest.mark.parametrize("value", [None, 0.7])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (30, 30)])
def test_equals_the_oracle_and_its_error_is_the_discarded_spectrum(shape, value):
    """G: N times the eigenvalues left out."""
    here, x = biased(*shape, value), inputs(shape[1]) + 0.5
    packed, edit = run("pca", here, x, removed=0.4)
    rank = rank_for(shape, 0.4)
    weight, wide = here.weight.numpy().astype(np.float64), x.numpy().astype(np.float64)
    old = np.full(shape[0], value or 0.0)
    expected, bias, spectrum = oracles.low_rank.pca(weight, old, wide, rank)
    new = packed.dequantize().numpy().astype(np.float64)
    assert np.abs(new - expected).max() < 4e-3 * np.abs(expected).max() + 4e-3
    found = edit.tensors[f"{here.path}.bias"].numpy()
    assert np.abs(found - bias).max() < 2e-2, "the factors' rounding in the mean is in it"
    residual = ((wide @ (weight - new).T + old - found) ** 2).sum()
    assert residual == pytest.approx(len(x) * spectrum[rank:].sum(), rel=1e-3)
    share = residual / ((wide @ weight.T) ** 2).sum()
    assert edit.figures[here.path]["output_error"] == pytest.approx(share, rel=1e-3)


def test_without_a_mean_it_is_svd_llm():
    here, x = site(), inputs()
    x = torch.cat([x, -x])
    packed, edit = run("pca", here, x, removed=0.4)
    assert (packed.dequantize() - run("svd_llm", here, x, removed=0.4)[0].dequantize()).abs().max() < 5e-3
    assert edit.tensors[f"{here.path}.bias"].abs().max() < 1e-5


def test_the_mean_output_is_exact_however_few_directions_are_left():
    here, x = biased(24, 40, 0.3), inputs() + 2
    packed, edit = run("pca", here, x, removed=0.95)
    mean = x.mean(0)
    found = packed.dequantize() @ mean + edit.tensors[f"{here.path}.bias"]
    assert packed.u.shape[1] == 1 and torch.allclose(found, here.weight @ mean + 0.3, atol=1e-4)


def test_a_large_mean_costs_svd_llm_a_direction_and_pca_none():
    here, x = site(24, 40), inputs() + 3 * torch.randn(40, generator=torch.Generator().manual_seed(9))
    errors = {
        name: run(name, here, x, removed=0.7)[1].figures[here.path]["output_error"]
        for name in ("pca", "svd_llm")
    }
    assert errors["pca"] < 0.95 * errors["svd_llm"]


def test_few_tokens_are_told():
    here = dataclasses.replace(site(16, 40), role="down")
    _, edit = run("pca", here, inputs(40, tokens=8), removed=0.2)
    assert [n.code for n in edit.notes] == ["few_tokens"] and edit.figures[here.path]["output_error"] < 0.01


# --- the bias, all the way ---


def compressed(family):
    bundle = tiny.bundle(family)
    calibrate.compress(bundle, ((get("pca"), get("pca").params(removed=0.4)),), tiny.ids(12))
    return bundle


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_saved_loaded_and_stepped_it_says_the_same(family, tmp_path):
    """With biases large enough that forgetting one would show, in every role."""
    bundle, ids = compressed(family), tiny.ids(2, 24)
    linears = [bundle.module.get_submodule(path) for path, _, _ in arch.linears(bundle.module)]
    assert all(bool(linear.bias.any()) for linear in linears)
    g = torch.Generator().manual_seed(0)
    for linear in linears:
        linear.bias.add_(0.1 * torch.randn(linear.bias.shape, generator=g))
    artifact.save(bundle, tmp_path / "model", {})
    again = artifact.load(tmp_path / "model")
    for linear, (path, _, _) in zip(linears, arch.linears(bundle.module), strict=True):
        assert torch.equal(again.module.get_submodule(path).bias, linear.bias.half().float())
    expected = tiny.logits(again, ids)
    assert (expected - tiny.logits(bundle, ids)).abs().max() < 6e-3
    assert cpu.wait() is not None
    session = engine.decoder(again, torch.float32).session(2, 32)
    found = [session.run(ids[:, :20]), *(session.run(ids[:, i : i + 1]) for i in range(20, 24))]
    for i, logits in enumerate(found):
        assert (logits - expected[:, 19 + i]).norm() < 1e-4 * expected[:, 19 + i].norm()


def test_the_mean_is_that_of_the_model_as_it_is_compressed():
    """Its default: behind every layer the compressed model's own mean output is the matrix's, whatever the
    layers before lost. With the original's activations it isn't."""
    ids, apart = tiny.ids(24), {}
    for choice in ("compressed", "original"):
        bundle, fresh = tiny.bundle("llama"), tiny.bundle("llama")
        calibrate.compress(bundle, ((get("pca"), get("pca").params(removed=0.6, inputs=choice)),), ids)
        path = "model.layers.1.mlp.down_proj"
        caught = []
        linear = bundle.module.get_submodule(path)
        hook = linear.register_forward_pre_hook(lambda m, a, into=caught: into.append(a[0]))
        tiny.logits(bundle, ids)
        hook.remove()
        x = caught[0].flatten(0, -2)
        lost = bundle.module.get_submodule(path)(x) - x @ fresh.module.get_submodule(path).weight.T
        apart[choice] = float(lost.mean(0).norm())
    assert apart["compressed"] < 0.05 * apart["original"], apart


def test_the_estimate_counts_the_new_biases():
    recipe = (("pca", {"removed": 0.2}),)
    spec = RunSpec(tiny.folder("llama"), recipe, table_bits=16)
    bundle = tiny.bundle("llama")
    calibrate.compress(bundle, ((get("pca"), get("pca").params(removed=0.2)),), tiny.ids(4))
    assert estimate(spec).file_bytes == pytest.approx(artifact.stored_bytes(bundle), rel=0.02)
    plain = estimate(dataclasses.replace(spec, recipe=(("svd_llm", {"removed": 0.2}),)))
    outs = sum(bundle.module.get_submodule(path).out_features for path, _, _ in arch.linears(bundle.module))
    assert estimate(spec).file_bytes - plain.file_bytes == 2 * outs
