"""AWQ's search against the paper's equation on the inputs themselves, and its identities."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from compression import calibrate, get
from compression.base import Block, Edit, Group, Site, Stats
from compression.packed.linear import CompressedLinear
from compression.quantization.awq import (
    EXPONENTS,
    LIMITS,
    awq_grid,
    clipped,
    loss,
    module_error,
    rounded,
    search,
)
from compression.second_order import output_error
from tests import oracles, tiny


def problem(seed=0, tokens=300, n=48, outs=(20, 12)):
    """Two weights that share inputs with a few loud channels."""
    g = torch.Generator().manual_seed(seed)
    loud = 1 + 15 * (torch.rand(n, generator=g) > 0.85)
    x = torch.randn(tokens, n, generator=g) * loud
    return [torch.randn(out, n, generator=g) for out in outs], x


def quantizer(bits=3, group=16):
    return lambda w: rounded(w, bits, group)


@pytest.mark.parametrize("bits, group", [(3, 16), (4, 32), (2, -1)])
def test_the_search_is_the_papers(bits, group):
    """E6: the exponent and its loss, computed from X itself and not from its Gram matrix."""
    weights, x = problem()
    s, losses = search(weights, x.abs().mean(0), x.T @ x, quantizer(bits, group))
    expected_s, expected = oracles.quantization.awq_search(
        [w.numpy() for w in weights], x.numpy(), bits, group, EXPONENTS
    )
    assert np.allclose(losses, expected, rtol=2e-3)
    assert np.allclose(s.numpy(), expected_s, rtol=1e-5)


def test_no_exponent_is_plain_rounding_and_the_best_is_never_worse():
    weights, x = problem(seed=1)
    gram = x.T @ x
    s, losses = search(weights, x.abs().mean(0), gram, quantizer())
    plain = sum(float(((x @ (rounded(w, 3, 16) - w).T) ** 2).sum()) for w in weights)
    assert losses[0] == pytest.approx(plain, rel=1e-3)
    assert min(losses) < 0.8 * losses[0], "loud channels gain"
    assert loss(weights, s, gram, quantizer()) == pytest.approx(min(losses), rel=1e-5)
    assert float((s.max() * s.min()).sqrt()) == pytest.approx(1, rel=1e-5)


def test_equal_channels_have_nothing_to_protect():
    weights, _ = problem()
    x = torch.ones(100, 48)
    s, losses = search(weights, x.abs().mean(0), x.T @ x, quantizer())
    assert torch.allclose(s, torch.ones(48)) and max(losses) == pytest.approx(min(losses), rel=1e-6)


@pytest.mark.parametrize("group", [16, 32, -1])
def test_clipping_is_never_worse_in_any_group(group):
    weights, x = problem(seed=2)
    weight, gram = weights[0], x.T @ x
    weight[0, 3] = 30.0
    cut = clipped(weight, gram, 3, group)
    size = 48 if group == -1 else group
    for start in range(0, 48, size):
        c = slice(start, min(start + size, 48))

        def error(w, c=c):
            return ((x[:, c] @ (rounded(w, 3, -1) - weight[:, c]).T) ** 2).sum(0)

        after, before = error(cut[:, c]), error(weight[:, c])
        assert bool((after <= before * (1 + 1e-4)).all())
        most = weight[:, c].abs().amax(1)
        assert all(min(abs(float(v) - k) for k in LIMITS) < 1e-5 for v in cut[:, c].abs().amax(1) / most)
    assert bool((cut != weight).any())


def test_the_grid_is_the_authors():
    """A group without zero in its range is not stretched to it, and its zero point stays on the grid."""
    weight = torch.tensor([[0.5, 1.0, 0.75, 0.6] * 4, [-1.0, 1.0, 0.0, 0.5] * 4])
    grid = awq_grid(weight, 4, -1)
    assert torch.allclose(grid.scale.float(), torch.tensor([[0.5 / 15], [2 / 15]]), rtol=1e-3)
    assert grid.zero_points().tolist() == [[0], [8]]


@pytest.mark.parametrize("seed", range(3))
def test_better_than_rounding_on_the_outputs(seed):
    """S15: on inputs with loud channels the whole method errs less than rounding with the same grid."""
    weights, x = problem(seed=10 + seed)
    stats = Stats(len(x), gram=x.T @ x, mean_abs=x.abs().mean(0))
    sites = tuple(Site(f"block.0.l{i}", "up", 0, 1, w, None, None) for i, w in enumerate(weights))
    params = get("awq").params.parse({"bits": 3, "group_size": 16})
    edit = get("awq").compress(Block(0, 1, (Group(sites, stats, None, "activation"),)), params)
    for site in sites:
        s = 1 / edit.tensors[f"{site.path}.input_scale"]
        ours = edit.linears[site.path].dequantize() / s
        assert output_error(site.weight, ours, stats.gram) < 0.8 * output_error(
            site.weight, rounded(site.weight, 3, 16), stats.gram
        )
        assert edit.figures[site.path]["output_error"] == pytest.approx(
            output_error(site.weight, ours, stats.gram), rel=1e-3
        )


def test_behind_a_gelu_the_division_stays_at_run_time():
    """The model with its input scales equals the one whose weights were divided back."""
    bundle, tokens = tiny.bundle("gpt2"), tiny.ids(8)
    method = get("awq")
    calibrate.compress(bundle, ((method, method.params.parse({"bits": 4, "group_size": 16})),), tokens)
    scaled = {
        path
        for path, m in bundle.module.named_modules()
        if isinstance(m, CompressedLinear) and m.input_scale is not None
    }
    assert scaled and all("mlp.c_proj" in path for path in scaled)


def test_statistics_come_from_the_uncompressed_model():
    """The second block sees what it saw before compression, whatever became of the first."""
    method, found = get("awq"), []
    for bits in (2, 8):
        seen = []

        def spy(block, params, seen=seen):
            seen.append([group.stats.mean_abs.clone() for group in block.groups])
            return method.compress(block, params)

        bundle = tiny.bundle("llama")
        params = method.params.parse({"bits": bits, "group_size": 16})
        calibrate.compress(bundle, ((dataclasses.replace(method, compress=spy), params),), tiny.ids(8))
        found.append(seen[1])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_error_behind_a_module_is_the_authors(family):
    """The mean squared difference of what attention or feed-forward gives, of the model's own windows; by
    hand for a gated feed-forward. Matrices that share no input are measured at their outputs, as theirs
    are."""
    seen, paths, bundle, ids = [], [], tiny.bundle(family), tiny.ids(4, seed=3)

    def spy(block, params):
        seen.append([module_error(block, g, quantizer()) for g in block.groups])
        paths.append([site.path for site in block.groups[0].sites])
        return Edit()

    calibrate.compress(bundle, ((dataclasses.replace(get("awq"), compress=spy), get("awq").params()),), ids)
    errors = dict(zip(("q k v", "o", "gate up" if family == "llama" else "up", "down"), seen[0], strict=True))
    assert [name for name, error in errors.items() if error is not None] == (
        ["q k v", "gate up"] if family == "llama" else ["q k v"]
    )
    block = next(m for m in bundle.module.modules() if isinstance(m, torch.nn.ModuleList))[0]
    attention = block.self_attn if family == "llama" else block.attn
    entered, given, kept = [], [], copy.deepcopy(block.state_dict())
    hooks = [attention.register_forward_hook(lambda m, args, out: given.append(out[0].clone()))]
    hooks += [block.mlp.register_forward_pre_hook(lambda m, args: entered.append(args[0]))]
    s = 0.5 + torch.rand(48, generator=torch.Generator().manual_seed(4))
    tiny.logits(bundle, ids)
    for path in paths[0]:
        linear = bundle.module.get_submodule(path)
        linear.weight.data = quantizer()(linear.weight * s) / s
    tiny.logits(bundle, ids)
    assert errors["q k v"](s) == pytest.approx(float((given[0] - given[1]).square().mean()), rel=1e-4)
    for hook in hooks:
        hook.remove()
    block.load_state_dict(kept)
    if family == "llama":
        gate, up, down = (
            getattr(block.mlp, f"{n}_proj").weight.detach().double() for n in ("gate", "up", "down")
        )
        x = entered[0].double()

        def forward(g, u):
            return (torch.nn.functional.silu(x @ g.T) * (x @ u.T)) @ down.T

        tried = [(quantizer()(w.float() * s) / s).double() for w in (gate, up)]
        assert errors["gate up"](s) == pytest.approx(
            float((forward(*tried) - forward(gate, up)).square().mean()), rel=1e-4
        )


def test_the_search_behind_modules_takes_the_best_for_them():
    """Whatever measures the error, the exponent with the least is taken; the default measures at the
    matrices."""
    weights, x = problem()

    def wanted(s):
        return float((s.log().abs().max() - 0.3) ** 2)

    s, losses = search(weights, x.abs().mean(0), x.T @ x, quantizer(), error=wanted)
    assert len(losses) == 20 and wanted(s) == min(losses)
    made = []
    for place in ("matrix", "module"):
        bundle, params = (
            tiny.bundle("llama"),
            get("awq").params(bits=3, group_size=16, clip=False, loss_at=place),
        )
        calibrate.compress(bundle, ((get("awq"), params),), tiny.ids(4))
        made.append(bundle.module.state_dict())
    assert get("awq").params().loss_at == "matrix" and any(
        not torch.equal(made[0][k], made[1][k]) for k in made[0]
    )
