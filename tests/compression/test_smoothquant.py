"""SmoothQuant's factors against the paper, and W8A8 as a product of integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compression import calibrate, get
from compression.base import Block, Group, Site, Stats
from compression.packed.linear import CompressedLinear
from compression.quantization.smoothquant import int8, smoothing
from tests import oracles, tiny


def problem(seed=0, tokens=200, n=48):
    """Two weights that share inputs, three channels of which are fifty times louder."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, n, generator=g)
    x[:, [5, 17, 40]] *= 50
    return [torch.randn(out, n, generator=g) for out in (20, 12)], x


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.85, 1.0])
def test_the_factors_are_the_papers(alpha):
    weights, x = problem()
    found = smoothing(x.abs().amax(0), weights, alpha)
    assert np.allclose(found.numpy(), oracles.quantization.smoothing(x.numpy(), [w.numpy() for w in weights], alpha), rtol=1e-5)


def test_what_alpha_equalises():
    """E7: 0.5 makes the maxima of each channel equal on both sides, 1 the activations' 1, 0 the weights' 1."""
    weights, x = problem()
    most = lambda t: t.abs().amax(0)  # noqa: E731
    for alpha in (0.0, 0.5, 1.0):
        s = smoothing(most(x), weights, alpha)
        of_x, of_w = most(x / s), most(torch.cat([w * s for w in weights]))
        if alpha == 0.5:
            assert torch.allclose(of_x, of_w, rtol=1e-4)
        else:
            assert torch.allclose(of_x if alpha else of_w, torch.ones(48), rtol=1e-4)


def test_a_silent_channel_stays_finite():
    weights, x = problem()
    x[:, 0] = 0
    weights[0][:, 1] = weights[1][:, 1] = 0
    for alpha in (0.0, 0.5, 1.0):
        assert bool(torch.isfinite(smoothing(x.abs().amax(0), weights, alpha)).all())


def test_rows_use_the_symmetric_range():
    weight = torch.tensor([[1.0, -2.0, 0.5] * 16, [0.0] * 48])
    packed = int8(weight)
    assert torch.allclose(packed.dequantize()[0], weight[0], atol=2 / 127 / 2 * 1.01) and bool(
        (packed.dequantize()[1] == 0).all()
    )
    assert packed.stored_bytes() == 2 * 48 + 2 * 2


@pytest.mark.parametrize("weights_share", ["row", "tensor"])
@pytest.mark.parametrize("activations", ["token", "tensor"])
def test_the_product_is_of_integers(activations, weights_share):
    """x W^T = s_x s_w (sum of integer products), token by token or with one scale, and a weight scale a row or one for all (O1, O3)."""
    weights, x = problem()
    stats = Stats(len(x), max_abs=x.abs().amax(0))
    site = Site("block.0.up", "up", 0, 1, weights[0], None, None)
    params = get("smoothquant").params.parse({"activations": activations, "smooth": False, "weights": weights_share})
    packed = get("smoothquant").compress(Block(0, 1, (Group((site,), stats, None, "post_norm"),)), params).linears[site.path]
    scale = x.abs().amax() / 127 if activations == "tensor" else x.abs().amax(1, keepdim=True) / 127
    row = weights[0].abs().amax(1) / 127 if weights_share == "row" else (weights[0].abs().amax() / 127).expand(len(weights[0]))
    row = row.half().float()
    whole = torch.round(x / scale).double() @ torch.round(weights[0] / row[:, None]).double().T
    expected = whole * scale.double() * row.double()
    assert torch.allclose(packed.matmul(x).double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_smoothing_helps_most_where_all_tokens_share_a_scale():
    """The paper's table 3: W8A8 with loud channels, one scale a tensor."""
    weights, x = problem(seed=3)
    exact = x @ weights[0].T
    errors = {}
    for smooth in (True, False):
        s = smoothing(x.abs().amax(0), weights, 0.5) if smooth else torch.ones(48)
        params = get("smoothquant").params.parse({"activations": "tensor", "smooth": False})
        site = Site("block.0.up", "up", 0, 1, weights[0] * s, None, None)
        stats = Stats(len(x), max_abs=(x / s).abs().amax(0))
        packed = get("smoothquant").compress(Block(0, 1, (Group((site,), stats, None, "post_norm"),)), params).linears[site.path]
        errors[smooth] = float((packed.matmul(x / s) - exact).norm() / exact.norm())
    assert errors[True] < 0.5 * errors[False]


def test_the_rule_is_kept_where_a_run_asks_for_int8_too():
    bundle, method = tiny.bundle("llama"), get("smoothquant")
    calibrate.compress(bundle, ((method, method.params.parse({})),), tiny.ids(8), activations="int8")
    rules = {m.packed.activations for m in bundle.module.modules() if isinstance(m, CompressedLinear)}
    assert [(r.bits, r.group, r.static) for r in rules] == [(8, None, None)]


@pytest.mark.parametrize("activations", ["token", "tensor"])
def test_the_whole_model_stays_close(activations):
    bundle, tokens, method = tiny.bundle("qwen2"), tiny.ids(8), get("smoothquant")
    before = tiny.logits(bundle, tokens)
    calibrate.compress(bundle, ((method, method.params.parse({"activations": activations})),), tokens)
    assert (tiny.logits(bundle, tokens) - before).norm() < 0.03 * before.norm()
