"""Factors moved from activations to weights leave the model as it was, in every family, or are refused with
the reason."""

from __future__ import annotations

import pytest
import torch

from compression import arch, calibrate, get
from compression.base import Block, Group, Site, Stats
from compression.quantization.folding import folded
from tests import tiny


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_fold_that_is_offered_is_exact(family):
    """A random factor on each group's inputs, one group at a time and all together."""
    bundle, tokens = tiny.bundle(family), tiny.ids(3)
    before = tiny.logits(bundle, tokens)
    module = bundle.module
    for layer in range(2):
        groups = []
        for i, paths in enumerate(arch.groups(module, layer)):
            weights = [module.get_submodule(path).weight.detach().float() for path, _ in paths]
            sites = tuple(
                Site(p, r, layer, 2, w, None, None) for (p, r), w in zip(paths, weights, strict=True)
            )
            groups.append(Group(sites, Stats(0), *arch.fold(module, layer, i)))
        random = torch.Generator().manual_seed(layer)
        factors = {
            i: g.fold.shared(0.2 + 3 * torch.rand(g.sites[0].weight.shape[1], generator=random))
            for i, g in enumerate(groups)
            if g.fold is not None
        }
        weights, tensors = folded(Block(layer, 2, tuple(groups)), factors)
        for path, tensor in (tensors | {f"{path}.weight": w for path, w in weights.items()}).items():
            owner, _, name = path.rpartition(".")
            getattr(module.get_submodule(owner), name).data = tensor
    after = tiny.logits(bundle, tokens)
    assert factors and (after - before).abs().max() <= 2e-5 * before.abs().max()


@pytest.mark.parametrize(
    "family, expected",
    [
        ("llama", ["", "", "", ""]),
        ("qwen3", ["", "", "", ""]),
        ("opt", ["", "", "", ""]),
        ("opt-post-norm", ["post_norm", "", "post_norm", ""]),
        ("gpt2", ["", "", "", "activation"]),
        ("gpt_neox", ["", "", "", "activation"]),
    ],
)
def test_what_can_not_be_folded_says_why(family, expected):
    module = tiny.bundle(family).module
    found = [arch.fold(module, 0, i) for i in range(4)]
    assert [reason for _, reason in found] == expected
    assert all((fold is None) == bool(reason) for fold, reason in found)


@pytest.mark.parametrize("name", ["awq", "smoothquant"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_folding_without_rounding_leaves_the_logits(name, family):
    """E6, E7, on real statistics; the norms of a post-norm model stay untouched and a note says so."""
    bundle, tokens = tiny.bundle(family), tiny.ids(8)
    before = tiny.logits(bundle, tokens)
    norms = {n: p.clone() for n, p in bundle.module.named_parameters() if "norm" in n}
    values = {"bits": 3, "group_size": 16} if name == "awq" else {"alpha": 0.8}
    method = get(name)
    outcome = calibrate.compress(
        bundle, ((method, method.params.parse(values | {"rounding": False})),), tokens
    )
    after = tiny.logits(bundle, tokens)
    assert (after - before).abs().max() <= 2e-5 * before.abs().max()
    assert not outcome.layers, "nothing was stored in another format"
    reasons = {n.facts["reason"] for n in outcome.notes if n.code == "fold_skipped"}
    if family == "opt-post-norm":
        assert reasons == {"post_norm"}
        kept = dict(bundle.module.named_parameters())
        assert all(torch.equal(kept[n], p) for n, p in norms.items())
    else:
        assert "post_norm" not in reasons
        if name == "smoothquant":
            assert (
                any(not torch.equal(p, norms[n]) for n, p in bundle.module.named_parameters() if n in norms)
                or not norms
            )


@pytest.mark.parametrize("name", ["awq", "smoothquant"])
def test_gptq_rounds_what_was_folded(name):
    bundle, tokens = tiny.bundle("llama"), tiny.ids(8)
    first, second = get(name), get("gptq")
    recipe = (
        (first, first.params.parse({"rounding": False})),
        (second, second.params.parse({"bits": 4, "group_size": 16})),
    )
    outcome = calibrate.compress(bundle, recipe, tokens)
    assert len(outcome.layers) == len(arch.linears(bundle.module)) and {
        r["method"] for r in outcome.layers
    } == {"gptq"}


def test_grouped_query_attention_gets_one_factor_for_heads_that_share_a_value():
    fold, _ = arch.fold(tiny.bundle("llama").module, 0, 1)  # 4 query heads, 2 key heads of 12
    s = fold.shared(torch.arange(48.0) + 1)
    assert torch.equal(s[:12], s[12:24]) and torch.equal(s[24:36], s[36:])
    assert s[0] == (1 + 13) / 2 and len(fold.rows(s)) == 24
