"""SmoothQuant's factors against the paper, and W8A8 as a product of integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compression import arch, artifact, attention, calibrate, engine, get, sample
from compression.base import Block, CalibrationError, Group, Site, Stats
from compression.packed.linear import CompressedLinear
from compression.quantization.smoothquant import ALPHAS, Magnitudes, best_alpha, int8, smoothing
from kernels import cpu
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
    assert np.allclose(
        found.numpy(),
        oracles.quantization.smoothing(x.numpy(), [w.numpy() for w in weights], alpha),
        rtol=1e-5,
    )


def test_what_alpha_equalises():
    """E7: 0.5 makes the maxima of each channel equal on both sides, 1 the activations' 1, 0 the weights'
    1."""
    weights, x = problem()

    def most(t):
        return t.abs().amax(0)

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
    """x W^T = s_x s_w (sum of integer products), token by token or with one scale, and a weight scale a row
    or one for all (O1, O3)."""
    weights, x = problem()
    stats = Stats(len(x), max_abs=x.abs().amax(0))
    site = Site("block.0.up", "up", 0, 1, weights[0], None, None)
    params = get("smoothquant").params.parse(
        {"activations": activations, "smooth": False, "weights": weights_share}
    )
    packed = (
        get("smoothquant")
        .compress(Block(0, 1, (Group((site,), stats, None, "post_norm"),)), params)
        .linears[site.path]
    )
    scale = x.abs().amax() / 127 if activations == "tensor" else x.abs().amax(1, keepdim=True) / 127
    row = (
        weights[0].abs().amax(1) / 127
        if weights_share == "row"
        else (weights[0].abs().amax() / 127).expand(len(weights[0]))
    )
    row = row.half().float()
    whole = torch.round(x / scale).double() @ torch.round(weights[0] / row[:, None]).double().T
    expected = whole * scale.double() * row.double()
    assert torch.allclose(
        packed.matmul(x).double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())
    )


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
        packed = (
            get("smoothquant")
            .compress(Block(0, 1, (Group((site,), stats, None, "post_norm"),)), params)
            .linears[site.path]
        )
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


# --- the paper's levels, percentiles, the search of alpha ---


def of_a_linear(weight, x, **params):
    """(packed, edit) of one linear by itself, of which the driver saw x."""
    method = get("smoothquant")
    site = Site("block.0.up", "up", 0, 1, weight, None, None)
    block = Block(0, 1, (Group((site,), Stats(len(x), max_abs=x.abs().amax(0)), None, "post_norm"),))
    return method.compress(block, method.params.parse({"smooth": False} | params)).linears[site.path]


@pytest.fixture(params=["C", "PyTorch"])
def served_by(request, monkeypatch):
    if request.param == "PyTorch":
        monkeypatch.setattr(cpu, "library", lambda: None)
    elif cpu.wait() is None:
        pytest.skip(cpu.status())
    return request.param


@pytest.mark.parametrize("shape", [(200, 48), (4, 50, 48), (1, 48)])
def test_one_scale_for_all_tokens_of_a_call(shape, served_by):
    """O2: y = s_x s_w (sum of integer products), s_x = max |X| / 127 over the call."""
    weights, x = problem()
    x = x[: shape[0]] if len(shape) == 2 else x.view(shape)
    packed = of_a_linear(weights[0], x.flatten(0, -2), activations="dynamic_tensor", weights="tensor")
    flat, w = x.flatten(0, -2).double().numpy(), weights[0].double().numpy()
    of_w = float(np.float16(np.abs(w).max() / 127))
    expected = oracles.quantization.w8a8(flat, w, np.abs(flat).max() / 127, of_w).reshape(*shape[:-1], -1)
    assert np.allclose(
        packed.matmul(x).numpy(), expected, rtol=1e-4, atol=np.abs(flat).max() / 127 * np.abs(w).max()
    )
    assert np.median(np.abs(packed.matmul(x).numpy() - expected)) < 1e-5 * np.abs(expected).max(), (
        "but for ties"
    )
    assert torch.allclose(
        packed.activations(x) @ packed.dequantize().T, packed.matmul(x), rtol=1e-4, atol=1e-2
    )


def test_a_token_alone_is_rounded_as_by_its_own_scale_and_beside_others_by_theirs():
    weights, x = problem()
    call, token = (of_a_linear(weights[0], x, activations=a) for a in ("dynamic_tensor", "token"))
    assert torch.allclose(call.matmul(x[:1]), token.matmul(x[:1]), rtol=1e-5, atol=1e-4)
    assert not torch.allclose(
        call.matmul(x[:4])[:1], call.matmul(torch.cat([x[:1], 9 * x[1:4]]))[:1], rtol=1e-3
    )
    assert call.activations.looks_at_call and not token.activations.looks_at_call


def test_the_gradient_of_a_call_with_one_scale_passes_straight_through():
    weights, x = problem(tokens=5)
    packed = of_a_linear(weights[0], x, activations="dynamic_tensor")
    x = x.requires_grad_()
    packed.matmul(x).sum().backward()
    assert torch.allclose(x.grad, packed.dequantize().sum(0).expand_as(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("percentile", [100.0, 99.9, 99.0, 90.0])
def test_a_percentile_is_numpys(percentile):
    x = problem()[1] ** 3
    found = Magnitudes.of(x).reach(percentile)
    expected = np.percentile(np.abs(x.numpy()), percentile, method="inverted_cdf")
    assert 0 <= found - expected <= float(x.abs().max()) / 65_536 * 1.01


def test_an_empty_histogram_reaches_nowhere():
    assert Magnitudes.of(torch.zeros(3, 4)).reach(99.0) == 0.0


@pytest.mark.parametrize("activations", ["token", "dynamic_tensor", "tensor"])
def test_the_search_takes_the_alpha_with_the_least_error(activations):
    weights, x = problem(seed=2, tokens=60)
    max_abs = x.abs().amax(0)

    def row(w):
        return np.maximum(np.abs(w).max(1, keepdims=True) / 127, 1e-12).astype(np.float16).astype(float)

    of_x = {
        "token": lambda t: np.abs(t).max(1, keepdims=True) / 127,
        "dynamic_tensor": lambda t: np.abs(t).max() / 127,
    }
    of_x["tensor"] = of_x["dynamic_tensor"]  # the sample is all of the text here
    expected = oracles.quantization.alpha_search(
        x.double().numpy(),
        max_abs.double().numpy(),
        [w.double().numpy() for w in weights],
        ALPHAS,
        lambda t, w: oracles.quantization.w8a8(t, w, of_x[activations](t), row(w)),
    )
    assert best_alpha(x, max_abs, weights, activations, 100.0, "row") == expected


def compressed(family="llama", **params):
    bundle, method = tiny.bundle(family), get("smoothquant")
    outcome = calibrate.compress(bundle, ((method, method.params.parse(params)),), tiny.ids(8))
    return bundle, outcome


def test_a_searched_model_loses_less_than_with_alpha_1_and_tells_what_it_chose():
    before = tiny.logits(tiny.bundle("llama"), tiny.ids(8))

    def lost(bundle):
        return float((tiny.logits(bundle, tiny.ids(8)) - before).norm())

    bundle, outcome = compressed(search=True)
    assert lost(bundle) < lost(compressed(alpha=1.0)[0])
    rows = {row["role"]: row.get("alpha") for row in outcome.layers}
    assert rows["q"] in ALPHAS and rows["gate"] in ALPHAS and rows["down"] is None
    assert rows["q"] == rows["k"] == rows["v"] and rows["gate"] == rows["up"]


def test_the_driver_s_percentile_is_that_of_what_enters_the_matrix():
    """Static scales of a whole model against numpy's percentile of the inputs that a hook sees, smoothing
    included."""
    bundle, seen = tiny.bundle("llama"), {}
    parts = {
        path: bundle.module.get_submodule(path)
        for path, role, layer in arch.linears(bundle.module)
        if role in ("q", "down") and layer == 0
    }
    for path, part in parts.items():
        part.register_forward_pre_hook(lambda part, args, path=path: seen.__setitem__(path, args[0]))
    plain = get("smoothquant").params.parse({"activations": "tensor", "percentile": 99.0, "smooth": False})
    tiny.logits(bundle, tiny.ids(8))
    entered = {path: x.abs().numpy() for path, x in seen.items()}
    calibrate.compress(bundle, ((get("smoothquant"), plain),), tiny.ids(8))
    for path, x in entered.items():
        static = bundle.module.get_submodule(path).packed.activations.static
        expected = np.percentile(x, 99.0, method="inverted_cdf") / 127
        assert expected * (1 - 1e-6) <= static <= expected + x.max() * 1.01 / 65_536 / 127


# --- 8 bits inside attention ---


@pytest.mark.parametrize("shared", attention.SHARED)
@pytest.mark.parametrize("t", [9, 1])
def test_attention_multiplies_integers(shared, t):
    """Against the definition, query by query; grouped heads, and queries that come behind tokens of a
    cache."""
    g = torch.Generator().manual_seed(4)
    query, key, value = (
        torch.randn(1, heads, count, 16, generator=g) for heads, count in ((4, t), (2, 12), (2, 12))
    )
    key[0, :, 3] *= 5
    rule = attention.Int8Attention(shared, (0.03, 0.13, 0.03) if shared == "tensor" else None)
    found = attention.products(query, key, value, None, 0.25, rule)[0].numpy()
    parts = (x[0].double().numpy() for x in (query, key, value))
    expected = oracles.quantization.int8_attention(*parts, 0.25, shared, rule.static)
    assert np.abs(found - expected).max() < 0.02, "a tie may go the other way"
    assert np.median(np.abs(found - expected)) < 1e-6
    exact = torch.softmax(
        query @ key.repeat_interleave(2, 1).transpose(2, 3) * 0.25
        + torch.full((t, 12), -torch.inf).triu(12 - t + 1),
        -1,
    ) @ value.repeat_interleave(2, 1)
    assert 0 < np.abs(found - exact[0].numpy()).max() < 0.2


def test_scores_taken_part_by_part_are_the_same(monkeypatch):
    g = torch.Generator().manual_seed(4)
    parts, rule = [torch.randn(2, 2, 12, 16, generator=g) for _ in range(3)], attention.Int8Attention("token")
    whole = attention.products(*parts, None, 0.25, rule)
    monkeypatch.setattr(attention, "SCORES", 2 * 2 * 12 * 5)
    assert torch.allclose(attention.products(*parts, None, 0.25, rule), whole, atol=1e-6)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_models_attention_rounds_and_the_step_declines(family):
    bundle, ids = tiny.bundle(family), tiny.ids(3)
    before = tiny.logits(bundle, ids)
    attention.install(bundle.module, [attention.Int8Attention("token")] * 2)
    bundle.attention = (attention.Int8Attention("token"),) * 2
    after = tiny.logits(bundle, ids)
    assert 1e-5 < (after - before).norm() / before.norm() < 0.03
    with pytest.raises(engine.CannotServe, match="attention multiplies 8-bit integers|C kernels"):
        engine.decoder(bundle)
    stepper = sample.stepper(bundle, 3, 32)
    last = [stepper(part) for part in (ids[:, :20], *ids[:, 20:].split(1, 1))][-1]
    assert torch.allclose(last, after[:, -1], atol=0.02 * float(after.abs().max())), (
        "token by token it rounds alike"
    )


@pytest.mark.parametrize("activations", ["tensor", "dynamic_tensor"])
def test_attentions_scales_are_the_texts_and_are_saved(activations, tmp_path):
    bundle, _ = compressed("qwen3", activations=activations, attention=True)
    ids = tiny.ids(3)
    if activations == "tensor":
        original, seen = tiny.bundle("qwen3"), []
        with attention.watched(
            arch.blocks(original.module)[0],
            lambda *parts: seen.extend(float(x.abs().max()) / 127 for x in parts),
        ):
            tiny.logits(original, tiny.ids(8))
        assert np.allclose(bundle.attention[0].static, seen, rtol=1e-4)
        assert "watcher" not in vars(original.module.model.layers[0].self_attn)
    artifact.save(bundle, tmp_path / "made", {"label": "a"})
    loaded = artifact.load(tmp_path / "made")
    assert loaded.attention == bundle.attention and len(loaded.attention) == 2
    off = (tiny.logits(loaded, ids) - tiny.logits(bundle, ids)).norm() / tiny.logits(bundle, ids).norm()
    assert off < 0.05, "norms and tables in 16 bits, and ties"
    assert loaded.module.config._attn_implementation == bundle.module.config._attn_implementation != "sdpa"
    assert compressed("qwen3", activations=activations)[0].attention == ()


def test_a_percentile_cuts_attention_too():
    whole, cut = (
        compressed(activations="tensor", attention=True, percentile=p)[0].attention[0].static
        for p in (100.0, 95.0)
    )
    assert all(a > b for a, b in zip(whole, cut, strict=True))


@pytest.mark.parametrize(
    "bad", [("word", None), ("token", (1.0, 1.0, 1.0)), ("tensor", None), ("tensor", (1.0, -1.0, 1.0))]
)
def test_scales_that_are_none_are_refused(bad):
    with pytest.raises(ValueError, match="allowed"):
        attention.Int8Attention(*bad)


def test_what_needs_the_inputs_says_so():
    weights, x = problem()
    with pytest.raises(CalibrationError, match="calibration inputs"):
        of_a_linear(weights[0], x, activations="tensor", percentile=99.0)
