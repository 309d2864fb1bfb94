"""LLM-Pruner: importance against the paper's sums, counts against published models, and what must not
matter."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch

from compression import arch, artifact, calibrate, get, structure
from compression.base import BadChain, BadParam, Cancelled, Context, TextUnavailable
from compression.bundle import LayerGeometry
from compression.pruning.gradients import gradients
from compression.pruning.llm_pruner import TAYLOR, LlmPrunerParams, compress, sampled
from compression.pruning.structured import by_queries, pruned_layers, reshaped, shrunk
from compression.recorder import Recorder
from tests import oracles, tiny

ALL = {"protect_first": 0.0, "protect_last": 0.0, "samples": 3, "sample_tokens": 16}


def context(ids=None, **more):
    return Context(tiny.ids(8) if ids is None else ids, Recorder(**more))


def edit(bundle, seed=0, **values):
    return compress(bundle, context(seed=seed), LlmPrunerParams(**ALL | values))


def roles(bundle, layer):
    return {role: path for group in arch.groups(bundle.module, layer) for path, role in group}


def by_hand(bundle, paths, ids):
    """Gradients of each text's loss by autograd: a list of {path: [out, in]}."""
    weights = [bundle.module.get_submodule(p).weight.requires_grad_() for p in paths]
    out = []
    for text in ids:
        logits = bundle.module(input_ids=text[None], use_cache=False).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[:-1], text[1:])
        out.append(dict(zip(paths, torch.autograd.grad(loss, weights), strict=True)))
    for weight in weights:
        weight.requires_grad_(False)
    return out


# --- how many ---

# sizes of the original, blocks pruned at 25 %, parameters before and after (the authors' README and table 1)
PUBLISHED = {
    "LLaMA-7B": (
        dict(
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            vocab_size=32000,
        ),
        {},
        range(4, 30),
        6_738_415_616,
        5_422_977_024,
    ),
    "Llama-3-8B": (
        dict(
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            vocab_size=128256,
        ),
        {},
        range(4, 30),
        8_030_261_248,
        6_612_586_496,
    ),
    "TinyLlama": (
        dict(
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
            vocab_size=32000,
        ),
        {"protect_first": 0.15, "protect_last": 0.15},
        range(4, 18),
        1_100_048_384,
        945_907_712,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_published_models(name):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes, protect, blocks, before, after = PUBLISHED[name]
    config = AutoConfig.for_model("llama", tie_word_embeddings=False, **sizes)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
        arch.normalise(module)

    def count():
        return sum(p.numel() for p in module.parameters())

    assert count() == before
    params = LlmPrunerParams(removed=0.25, **protect)
    now = arch.geometry(module)
    then = reshaped(now, params)
    assert [i for i, (a, b) in enumerate(zip(now.layers, then.layers, strict=True)) if a != b] == list(blocks)
    structure.cut(module, {i: structure.first(now.layers[i], then.layers[i]) for i in blocks})
    assert count() == after and arch.geometry(module) == then


def test_whole_groups_go_unless_there_are_few():
    """Section 4(f): SmolLM2-135M has 3 key-value heads with 3 queries each, Qwen2.5-7B 4 with 7."""
    smol = LayerGeometry(9, 3, 64, 1536)
    params = LlmPrunerParams(removed=0.25)
    assert shrunk(smol, params) == LayerGeometry(6, 3, 64, 1152) and by_queries(smol, params)
    assert shrunk(smol, dataclasses.replace(params, heads="groups")) == LayerGeometry(6, 2, 64, 1152)
    assert shrunk(LayerGeometry(28, 4, 128, 18944), params) == LayerGeometry(21, 3, 128, 14208)
    assert shrunk(LayerGeometry(14, 2, 64, 4864), params).heads == 10
    assert shrunk(LayerGeometry(12, 12, 64, 3072), params) == LayerGeometry(9, 9, 64, 2304)
    assert shrunk(LayerGeometry(2, 2, 8, 3), LlmPrunerParams(removed=0.8)) == LayerGeometry(1, 1, 8, 1), (
        "something stays"
    )


def test_first_and_last_blocks_are_protected():
    found = {n: pruned_layers(n, LlmPrunerParams()) for n in (32, 30, 24, 12)}
    assert found == {32: range(4, 30), 30: range(3, 28), 24: range(3, 22), 12: range(2, 11)}
    with pytest.raises(BadParam, match="protect all 2 blocks"):
        pruned_layers(2, LlmPrunerParams())


# --- which ---


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_gradients_are_autograds(family):
    bundle, ids = tiny.bundle(family), tiny.ids(3, 16)
    paths = list(roles(bundle, 0).values())
    expected = by_hand(bundle, paths, ids)
    found = gradients(bundle, paths, ids, context(), second=True)
    for path in paths:
        each = torch.stack([text[path] for text in expected])
        assert torch.allclose(found.first[path], each.mean(0), atol=1e-6)
        assert torch.allclose(found.second[path], each.square().mean(0), atol=1e-8)
    assert all(p.grad is None and not p.requires_grad for p in bundle.module.parameters())


@pytest.mark.parametrize("form", [*TAYLOR, "l2"])
@pytest.mark.parametrize("family, heads", [("llama", "queries"), ("qwen3", "groups"), ("gpt_neox", "auto")])
def test_what_stays_is_what_the_papers_sums_rank_highest(family, heads, form):
    bundle = tiny.bundle(family)
    params = LlmPrunerParams(importance=form, heads=heads, **ALL)
    ids = sampled(tiny.ids(8), params)
    kept = compress(bundle, context(), params).kept
    for layer, sizes in enumerate(bundle.geometry.layers):
        paths = roles(bundle, layer)
        grads = by_hand(bundle, list(paths.values()), ids)
        size, serves = sizes.head_size, sizes.heads // sizes.kv_heads

        def score(members, paths=paths, grads=grads):
            """members: (role, number of a row, or of a column of o and down)."""

            def take(t, role, i):
                return (t[:, i] if role in ("o", "down") else t[i]).double().tolist()

            rows = [take(bundle.module.get_submodule(paths[role]).weight, role, i) for role, i in members]
            return oracles.pruning.structure_importance(
                form, rows, [[take(g[paths[role]], role, i) for role, i in members] for g in grads]
            )

        def lanes(role, head, size=size):
            return [(role, head * size + i) for i in range(size)]

        query = [score(lanes("q", h) + lanes("o", h)) for h in range(sizes.heads)]
        keys = [score(lanes("k", j) + lanes("v", j)) for j in range(sizes.kv_heads)]
        channels = [
            score([(r, c) for r in ("gate", "up", "down") if r in paths]) for c in range(sizes.feed_forward)
        ]

        def best(scores, n):
            return tuple(sorted(sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[:n]))

        then = shrunk(sizes, params)
        if by_queries(sizes, params):
            groups = tuple(range(sizes.kv_heads))
            chosen = [best(query[j * serves : (j + 1) * serves], then.heads // then.kv_heads) for j in groups]
        else:
            whole = [keys[j] + sum(query[j * serves : (j + 1) * serves]) for j in range(sizes.kv_heads)]
            groups = best(whole, then.kv_heads)
            chosen = [range(serves)] * len(groups)
        assert kept[layer].kv_heads == groups
        assert kept[layer].heads == tuple(
            j * serves + i for j, own in zip(groups, chosen, strict=True) for i in own
        )
        assert kept[layer].channels == best(channels, then.feed_forward)


def test_first_order_scores_without_absolute_values_are_the_derivative_along_the_weights():
    """Invariant 4: their sum is <g, w>, what the loss does when all these weights grow by a factor."""
    bundle, ids = tiny.bundle("qwen2"), tiny.ids(4, 16)
    bundle.module.double()
    paths = [p for p, _, _ in arch.linears(bundle.module)]
    found = gradients(bundle, paths, ids, context())
    total = sum(float((found.first[p] * bundle.module.get_submodule(p).weight).sum()) for p in paths)

    def loss(factor):
        with torch.no_grad():
            for p in paths:
                bundle.module.get_submodule(p).weight.mul_(factor)
            logits = bundle.module(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
            out = float(torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()))
            for p in paths:
                bundle.module.get_submodule(p).weight.div_(factor)
        return out

    assert total == pytest.approx((loss(1 + 1e-4) - loss(1 - 1e-4)) / 2e-4, rel=2e-3)


# OPT's ReLU leaves channels that never fire: ties
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("form", ["element1", "vector", "mixed"])
def test_the_order_of_heads_and_channels_does_not_matter(family, form):
    """Invariant 2: the same structures stay wherever they stand."""
    bundle, moved = tiny.bundle(family), tiny.bundle(family)
    sizes = bundle.geometry.layers[0]
    serves, groups = sizes.heads // sizes.kv_heads, list(reversed(range(sizes.kv_heads)))
    heads = [j * serves + i for j in groups for i in reversed(range(serves))]
    channels = torch.randperm(sizes.feed_forward, generator=torch.Generator().manual_seed(3)).tolist()
    order = structure.Kept(tuple(heads), tuple(groups), tuple(channels))
    structure.cut(moved.module, {0: order, 1: order})
    before, after = edit(bundle, importance=form).kept, edit(moved, importance=form).kept
    for layer in (0, 1):
        assert sorted(heads[h] for h in after[layer].heads) == list(before[layer].heads)
        assert sorted(groups[j] for j in after[layer].kv_heads) == list(before[layer].kv_heads)
        assert sorted(channels[c] for c in after[layer].channels) == list(before[layer].channels)


def test_gradients_find_dead_structures_that_their_size_hides():
    """The paper's case against magnitude: what is large but leads nowhere can go without a trace."""
    bundle, tokens = tiny.bundle("gpt_neox"), tiny.ids(3)
    dead = {layer: (layer, list(range(layer, 96, 4))) for layer in (0, 1)}
    for layer, (head, channels) in dead.items():
        w = {
            role: bundle.module.get_submodule(path).weight.data for role, path in roles(bundle, layer).items()
        }
        rows = structure.lanes(torch.tensor([head]), 12)
        w["o"][:, rows], w["down"][:, channels] = 0, 0
        for role in ("q", "k", "v"):
            w[role][rows] *= 5
        w["up"][channels] *= 5
    before, change = tiny.logits(bundle, tokens), {}
    for form in (*TAYLOR, "l2"):
        cut = dataclasses.replace(bundle, module=copy.deepcopy(bundle.module))
        structure.cut(cut.module, edit(bundle, importance=form).kept)
        change[form] = float((tiny.logits(cut, tokens) - before).abs().max())
    assert max(change[form] for form in TAYLOR) < 1e-5 < 1e-2 < change["l2"]


def test_chance_is_drawn_from_the_seed_and_is_fair():
    bundle = tiny.bundle("gpt2")
    first = edit(bundle, importance="random", seed=1)
    assert (
        first.kept
        == edit(bundle, importance="random", seed=1).kept
        != edit(bundle, importance="random", seed=2).kept
    )
    gone = [
        c
        for seed in range(40)
        for c in set(range(192)) - set(edit(bundle, importance="random", seed=seed).kept[0].channels)
    ]
    counts = torch.bincount(torch.tensor(gone), minlength=192).float()
    assert counts.mean() == 10 and counts.max() < 22 and counts.min() > 1


# --- through the driver ---


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_driver_cuts_and_later_steps_see_smaller_linears(family, tmp_path):
    bundle, before = tiny.bundle(family), tiny.bundle(family).geometry
    method, params = get("llm_pruner"), LlmPrunerParams(**ALL)
    steps = ((method, params), (get("rtn"), get("rtn").params(bits=8, group_size=16)))
    outcome = calibrate.compress(bundle, steps, tiny.ids(8), table_bits=8)
    assert bundle.geometry == reshaped(before, params) != before
    assert {row["method"] for row in outcome.layers} == {"llm_pruner", "rtn"}
    assert [n.code for n in outcome.notes if n.code == "structures_removed"] == ["structures_removed"]
    artifact.save(bundle, tmp_path / "model", {})
    again = artifact.load(tmp_path / "model")
    assert again.geometry == bundle.geometry
    assert float((tiny.logits(again, tiny.ids(2)) - tiny.logits(bundle, tiny.ids(2))).abs().max()) < 2e-2


def test_it_prunes_what_is_pruned_already_and_nothing_that_is_compressed():
    bundle, method = tiny.bundle("gpt2"), get("llm_pruner")
    twice = ((method, LlmPrunerParams(**ALL)), (method, LlmPrunerParams(**ALL)))
    calibrate.compress(bundle, twice, tiny.ids(8))
    assert [(g.heads, g.feed_forward) for g in bundle.geometry.layers] == [(2, 108)] * 2
    rtn = get("rtn")
    with pytest.raises(BadChain, match="llm_pruner can't follow"):
        calibrate.compress(
            tiny.bundle(), ((rtn, rtn.params(group_size=16)), (method, LlmPrunerParams(**ALL))), tiny.ids(8)
        )


def test_texts_are_spread_over_the_windows_and_too_few_are_told():
    windows = torch.arange(6 * 40).view(6, 40)
    cut = sampled(windows, LlmPrunerParams(samples=4, sample_tokens=16))
    assert cut.tolist() == [windows[i // 2, i % 2 * 16 : i % 2 * 16 + 16].tolist() for i in (0, 3, 6, 9)]
    for values in ({"samples": 13, "sample_tokens": 16}, {"samples": 1, "sample_tokens": 41}):
        with pytest.raises(TextUnavailable, match="pieces of"):
            sampled(windows, LlmPrunerParams(**values))


def test_it_tells_how_far_it_is_and_stops():
    told, calls, bundle = [], itertools.count(), tiny.bundle()
    with pytest.raises(Cancelled):
        compress(
            bundle, context(emit=told.append, cancelled=lambda: next(calls) == 2), LlmPrunerParams(**ALL)
        )
    assert [e["done"] for e in told] == [0, 1, 2] and {e["total"] for e in told} == {3}
    assert all(p.grad is None and not p.requires_grad for p in bundle.module.parameters())


# --- channels of the width ---


@pytest.mark.parametrize("form", [*TAYLOR, "l2"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "opt-post-norm", "gpt2"])
def test_which_channels_of_the_width_stay_is_what_the_papers_sums_rank_highest(family, form):
    """Members: an entry of the table and of an untied head, a column of q, k, v, gate and up, a row of o and
    down."""
    bundle = tiny.bundle(family)
    params = LlmPrunerParams(importance=form, granularity="channel", removed=0.25, **ALL)
    ids = sampled(tiny.ids(8), params)
    found = compress(bundle, context(), params)
    along = {path: 0 if role in ("o", "down") else 1 for path, role, _ in arch.linears(bundle.module)}
    if family != "opt-post-norm":  # its table has a width of its own
        along |= {arch.embedding(bundle.module)[0]: 1} | (
            {} if bundle.geometry.tied else {arch.head(bundle.module)[0]: 1}
        )
    grads = by_hand(bundle, list(along), ids)

    def take(t, path, i):
        return t.select(along[path], i).double().tolist()

    total = []
    for i in range(48):
        rows = [take(bundle.module.get_submodule(path).weight, path, i) for path in along]
        total.append(
            oracles.pruning.structure_importance(
                form, rows, [[take(g[path], path, i) for path in along] for g in grads]
            )
        )
    assert (
        found.width == tuple(sorted(sorted(range(48), key=total.__getitem__, reverse=True)[:36]))
        and not found.kept
    )
    assert found.notes[0].facts == {"width": 48, "left": 36}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_narrow_model_has_the_promised_sizes(family):
    bundle, method = tiny.bundle(family), get("llm_pruner")
    params = LlmPrunerParams(granularity="channel", removed=0.3, samples=3, sample_tokens=16)
    promised = method.reshaped(bundle.geometry, params)
    outcome = calibrate.compress(bundle, ((method, params),), tiny.ids(8))
    assert (
        bundle.geometry == promised
        and promised.hidden == 33
        and all(row["format"] == "cut" for row in outcome.layers)
    )
    assert not {"protect_first", "protect_last", "heads"} & set(params.effective())


# --- all blocks in one ranking, and in steps ---


def loud(bundle, layer, factor):
    """The matrices of a block are larger, so that its structures score higher by their size."""
    with torch.no_grad():
        for path in roles(bundle, layer).values():
            bundle.module.get_submodule(path).weight.mul_(factor)


@pytest.mark.parametrize("family, heads", [("llama", "queries"), ("qwen3", "groups"), ("gpt_neox", "auto")])
def test_the_structures_of_all_blocks_are_ranked_together(family, heads):
    """By size (l2), so that each structure's score is a plain sum of squares: those that stay are the highest
    of both blocks, but for one that stays in each."""
    bundle = tiny.bundle(family)
    loud(bundle, 0, 1.15)
    kept = edit(bundle, importance="l2", ranking="global", heads=heads, removed=0.4).kept
    sizes = bundle.geometry.layers[0]
    alike = shrunk(sizes, LlmPrunerParams(removed=0.4, heads=heads, **ALL))
    channels = []
    for layer in (0, 1):
        paths, own = roles(bundle, layer), torch.zeros(sizes.feed_forward, dtype=torch.float64)
        for role in ("gate", "up", "down"):
            if role in paths:
                weight = bundle.module.get_submodule(paths[role]).weight.double().square()
                own += weight.sum(0 if role == "down" else 1)
        channels += [(score, layer, c) for c, score in enumerate(own.tolist())]
    best = sorted(channels, reverse=True)[: 2 * alike.feed_forward]
    for layer in (0, 1):
        assert kept[layer].channels == tuple(sorted(c for _, of, c in best if of == layer))
    assert len(kept[0].channels) > alike.feed_forward > len(kept[1].channels) > 0
    assert sum(len(own.heads) for own in kept.values()) == 2 * alike.heads
    assert len(kept[0].heads) >= len(kept[1].heads) > 0


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_blocks_of_unequal_sizes_run_and_are_told(family):
    bundle = tiny.bundle(family)
    loud(bundle, 0, 1.5)
    params = LlmPrunerParams(ranking="global", importance="l2", removed=0.4, **ALL)
    promised = reshaped(bundle.geometry, params)
    outcome = calibrate.compress(bundle, ((get("llm_pruner"), params),), tiny.ids(8))
    left = bundle.geometry.layers
    assert left[0] != left[1]
    assert sum(g.feed_forward for g in left) == sum(g.feed_forward for g in promised.layers)
    assert sum(g.heads for g in left) == sum(g.heads for g in promised.layers)
    assert bool(torch.isfinite(tiny.logits(bundle, tiny.ids(2))).all())
    (note,) = (n for n in outcome.notes if n.code == "structures_ranked")
    assert note.facts["channels_most"] == left[0].feed_forward > note.facts["channels_least"]


def test_one_block_ranked_with_itself_is_the_usual_ranking():
    bundle = tiny.bundle("llama")
    values = {"protect_first": 0.5, "importance": "element1"}
    assert edit(bundle, **values).kept == edit(bundle, ranking="global", **values).kept


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_step_takes_the_gradient_of_the_model_that_is_left(family):
    """Half of the share, then the rest by the gradients of the really smaller model."""
    bundle, params = tiny.bundle(family), LlmPrunerParams(**ALL | {"removed": 0.5})
    found = edit(bundle, removed=0.5, prune_steps=2).kept
    first = edit(bundle, removed=0.25).kept
    cut = dataclasses.replace(bundle, module=copy.deepcopy(bundle.module))
    structure.cut(cut.module, first)
    cut.geometry = arch.geometry(cut.module)
    sizes = bundle.geometry.layers
    paths = {layer: roles(cut, layer) for layer in (0, 1)}
    grads = by_hand(cut, [p for own in paths.values() for p in own.values()], sampled(tiny.ids(8), params))
    for layer, own in paths.items():
        score = torch.zeros(len(first[layer].channels), dtype=torch.float64)
        for role in ("gate", "up", "down"):
            if role in own:
                mean = torch.stack([g[own[role]] for g in grads]).mean(0)
                term = (mean * cut.module.get_submodule(own[role]).weight.detach()).double().abs()
                score += term.sum(0 if role == "down" else 1)
        best = torch.argsort(score, descending=True)[: shrunk(sizes[layer], params).feed_forward]
        assert found[layer].channels == tuple(sorted(first[layer].channels[i] for i in best.tolist()))
        assert set(found[layer].heads) <= set(first[layer].heads)
        assert len(found[layer].heads) == shrunk(sizes[layer], params).heads


def test_nothing_is_left_behind_by_a_step():
    bundle, ids = tiny.bundle("qwen2"), tiny.ids(2)
    before = tiny.logits(bundle, ids)
    edit(bundle, prune_steps=3)
    assert torch.equal(tiny.logits(bundle, ids), before)
