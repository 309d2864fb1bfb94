"""Cutting heads and channels out: the model that is left is the model with those parts masked, wherever it
runs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from compression import arch, artifact, engine, export, kv_cache, sample, structure
from compression.base import UnsupportedLayer
from compression.structure import Kept
from kernels import cpu
from tests import tiny

# one query head of each of two groups, or two heads of four
QUERIES = Kept((1, 2), (0, 1), tuple(range(0, 80, 3)))
GROUP = Kept((2, 3), (1,), (0, 5, 6, 79))  # the second group with both its queries
MANY = Kept((0, 3), (0, 3), tuple(range(70)))  # of four heads with keys of their own
GROUPED = ("llama", "qwen2", "qwen3")


def kept_for(family):
    """Different in each block: uneven models."""
    return {0: QUERIES, 1: GROUP} if family in GROUPED else {0: MANY, 1: Kept((2,), (2,), (1, 4, 9))}


def shrunk(family, kept=None):
    bundle = tiny.bundle(family)
    structure.cut(bundle.module, kept or kept_for(family))
    bundle.geometry = arch.geometry(bundle.module)
    return bundle


def masked(family, kept=None):
    """The whole model with the input columns of o and down zeroed: that alone removes a structure."""
    bundle = tiny.bundle(family)
    for layer, parts in (kept or kept_for(family)).items():
        sizes = bundle.geometry.layers[layer]
        for path, role in (linear for group in arch.groups(bundle.module, layer) for linear in group):
            weight = bundle.module.get_submodule(path).weight
            if role == "o":
                stays = structure.lanes(torch.tensor(parts.heads), sizes.head_size)
            elif role == "down":
                stays = torch.tensor(parts.channels)
            else:
                continue
            mask = torch.zeros(weight.shape[1]).index_fill_(0, stays, 1)
            weight.data *= mask
    return bundle


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_shrunk_model_is_the_masked_one(family):
    """F, invariant 1: fused and split q, k, v, shared keys, biases, per-head norms, partial rotary."""
    tokens = tiny.ids(3)
    found, expected = tiny.logits(shrunk(family), tokens), tiny.logits(masked(family), tokens)
    assert float((found - expected).abs().max()) < 1e-5
    assert float((expected - tiny.logits(tiny.bundle(family), tokens)).abs().max()) > 1e-3


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_sizes_are_read_from_the_matrices(family):
    bundle, kept = shrunk(family), kept_for(family)
    whole = arch.geometry_of(bundle.module.config)
    for sizes, was, parts in zip(bundle.geometry.layers, whole.layers, kept.values(), strict=True):
        assert sizes == replace(
            was, heads=len(parts.heads), kv_heads=len(parts.kv_heads), feed_forward=len(parts.channels)
        )
    shapes = {(layer, role): shape for role, layer, shape in arch.linear_shapes(bundle.geometry)}
    for path, role, layer in arch.linears(bundle.module):
        linear = bundle.module.get_submodule(path)
        assert tuple(linear.weight.shape) == (linear.out_features, linear.in_features) == shapes[layer, role]
        assert linear.bias is None or len(linear.bias) == linear.out_features


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_cache_shrinks_and_generation_with_it_is_generation_without(family):
    bundle, ids = shrunk(family), tiny.ids(2, 12)
    cache = bundle.new_cache()
    with torch.no_grad():
        bundle.module(input_ids=ids, **kv_cache.handed(bundle.module, cache))
    stored = sum(t.numel() for layer in cache.layers for t in (layer.keys, layer.values)) // ids.numel()
    assert (
        2 * stored
        == bundle.geometry.kv_cache_bytes_per_token()
        < tiny.bundle(family).geometry.kv_cache_bytes_per_token()
    )
    for _ in range(6):
        ids = torch.cat([ids, tiny.logits(bundle, ids)[:, -1:].argmax(-1)], 1)
        with torch.no_grad():
            stepped = bundle.module(input_ids=ids[:, -1:], **kv_cache.handed(bundle.module, cache)).logits
        assert float((stepped[:, -1] - tiny.logits(bundle, ids)[:, -1]).abs().max()) < 1e-4


@pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler here")
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_decode_step_runs_uneven_blocks(family):
    bundle, ids = shrunk(family), tiny.ids(2, 20)
    session, expected = engine.decoder(bundle, torch.float32).session(2, 32), tiny.logits(bundle, ids)
    assert float((session.run(ids[:, :12]) - expected[:, 11]).abs().max()) < 1e-4 * float(
        expected.abs().max()
    )
    for i in range(12, 20):
        assert float((session.run(ids[:, i : i + 1]) - expected[:, i]).abs().max()) < 1e-4 * float(
            expected.abs().max()
        )
    assert len(list(sample.generate(bundle, ids, 5))) == 5 and bundle.decoder is not None


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_uneven_model_is_saved_and_read_back(family, tmp_path):
    bundle = shrunk(family)
    artifact.save(bundle, tmp_path / "model", {})
    manifest = json.loads((tmp_path / "model" / artifact.MANIFEST).read_text("utf-8"))
    again = artifact.load(tmp_path / "model")
    assert len(manifest["geometry"]) == 2 and again.geometry == bundle.geometry
    assert float((tiny.logits(again, tiny.ids(3)) - tiny.logits(bundle, tiny.ids(3))).abs().max()) < 6e-3
    artifact.save(again, tmp_path / "again", {})
    first, second = ((tmp_path / name / artifact.WEIGHTS).read_bytes() for name in ("model", "again"))
    assert first == second, "16 bits are rounded once"
    assert export.offers(tmp_path / "model") == []
    with pytest.raises(export.CannotExport, match="cut out"):
        export.write(bundle, tmp_path / "exported", "gptq_v2")


def test_a_whole_model_has_no_sizes_of_its_own(tmp_path):
    artifact.save(tiny.bundle(), tmp_path / "model", {})
    assert "geometry" not in json.loads((tmp_path / "model" / artifact.MANIFEST).read_text("utf-8"))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_keeping_everything_changes_nothing_and_order_is_free(family):
    """Invariant 2."""
    bundle, tokens = tiny.bundle(family), tiny.ids(3)
    sizes = bundle.geometry.layers[0]
    structure.cut(bundle.module, {i: structure.first(sizes, sizes) for i in range(2)})
    before = tiny.logits(tiny.bundle(family), tokens)
    assert torch.equal(tiny.logits(bundle, tokens), before)
    serves = sizes.heads // sizes.kv_heads
    groups = tuple(reversed(range(sizes.kv_heads)))
    moved = Kept(
        tuple(j * serves + i for j in groups for i in reversed(range(serves))),
        groups,
        tuple(reversed(range(sizes.feed_forward))),
    )
    structure.cut(bundle.module, {1: moved})
    assert float((tiny.logits(bundle, tokens) - before).abs().max()) < 1e-4


@pytest.mark.parametrize(
    "kept",
    [
        Kept((0, 1, 2), (0, 1), (0,)),  # two queries for one key, one for the other
        Kept((0, 1), (1,), (0,)),  # another group's queries
        Kept((), (), (0,)),
        Kept((0, 2), (0, 1), ()),
    ],
)
def test_what_attention_cannot_run_is_refused(kept):
    with pytest.raises(UnsupportedLayer, match="equally many"):
        structure.cut(tiny.bundle("llama").module, {0: kept})


# --- channels of the width ---

WIDE = (*range(0, 48, 2), 47)  # 25 of 48


def narrow(family, kept=WIDE):
    bundle = tiny.bundle(family)
    structure.cut_width(bundle.module, kept)
    bundle.geometry = arch.geometry(bundle.module)
    return bundle


def masked_width(family):
    """The whole model with the removed channels zeroed wherever they are made, its norms over the channels
    that stay."""
    bundle, index = tiny.bundle(family), torch.tensor(WIDE)
    module, table = bundle.module, arch.of(bundle.module)
    gone = torch.ones(48, dtype=torch.bool).index_fill_(0, index, False)
    for path, role, _ in arch.linears(module):
        if role in ("o", "down"):
            linear = module.get_submodule(path)
            linear.weight.data[gone] = 0
            if linear.bias is not None:
                linear.bias.data[gone] = 0
    parent = module.get_submodule(table.final.rpartition(".")[0])
    if getattr(parent, "project_in", None) is not None:
        parent.project_in.weight.data[gone] = 0
    else:
        arch.embedding(module)[1].weight.data[:, gone] = 0
    if table.positions:
        module.get_submodule(table.positions).weight.data[:, gone] = 0
    for norm in arch.norms(module):

        def over_few(x, norm=norm):
            x, w, out = x[..., index], norm.weight[index], torch.zeros_like(x)
            if isinstance(norm, torch.nn.LayerNorm):
                out[..., index] = torch.nn.functional.layer_norm(
                    x, (len(index),), w, norm.bias[index], norm.eps
                )
            else:
                out[..., index] = w * x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
            return out

        norm.forward = over_few
    return bundle


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_narrow_model_is_the_masked_one(family):
    """Section 4, channel-wise: equal to an explicit reference over the channels that stay, tied and projected
    tables included."""
    tokens, bundle = tiny.ids(3), narrow(family)
    found, expected = tiny.logits(bundle, tokens), tiny.logits(masked_width(family), tokens)
    assert float((found - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))
    assert (
        bundle.geometry.hidden == len(WIDE) and bundle.geometry.layers == tiny.bundle(family).geometry.layers
    )
    assert (
        bundle.geometry.kv_cache_bytes_per_token() == tiny.bundle(family).geometry.kv_cache_bytes_per_token()
    )


@pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler here")
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_decode_step_runs_a_narrow_model(family):
    bundle, ids = narrow(family), tiny.ids(2, 12)
    session, expected = engine.decoder(bundle, torch.float32).session(2, 16), tiny.logits(bundle, ids)
    assert float((session.run(ids) - expected[:, -1]).abs().max()) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_narrow_model_is_saved_and_read_back(family, tmp_path):
    bundle = narrow(family)
    structure.cut(bundle.module, kept_for(family))
    bundle.geometry = arch.geometry(bundle.module)
    artifact.save(bundle, tmp_path / "model", {})
    manifest, again = (
        json.loads((tmp_path / "model" / artifact.MANIFEST).read_text("utf-8")),
        artifact.load(tmp_path / "model"),
    )
    assert manifest["width"] == len(WIDE) and again.geometry == bundle.geometry
    assert float((tiny.logits(again, tiny.ids(3)) - tiny.logits(bundle, tiny.ids(3))).abs().max()) < 2e-2
    assert export.offers(tmp_path / "model") == []


def test_no_width_is_refused():
    with pytest.raises(UnsupportedLayer, match="at least one"):
        structure.cut_width(tiny.bundle().module, ())
