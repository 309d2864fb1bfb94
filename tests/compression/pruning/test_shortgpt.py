"""Whole blocks go: which ones, what is left, and what may follow."""

from __future__ import annotations

import math

import pytest
import torch

from compression import arch, artifact, calibrate, depth, engine, export, get, sample
from compression.base import BadChain, BadParam, CalibrationError, Context
from compression.distillation.students import keep_blocks
from compression.pruning import shortgpt
from compression.recorder import QUIET, Recorder
from tests import tiny
from tests.compression.test_depth import cos, deeper, states
from tests.compression.test_export import compressed

SHORT = get("shortgpt")


def cut(bundle, *more, windows=None, **values):
    """Run the method, and steps (name, params) after it."""
    steps = [("shortgpt", values), *more]
    recipe = tuple((get(name), get(name).params.parse(own)) for name, own in steps)
    return calibrate.compress(bundle, recipe, tiny.ids(8) if windows is None else windows)


@pytest.mark.parametrize(
    "total, removed, gone", [(30, 0.2, 6), (32, 0.2, 6), (24, 0.2, 5), (12, 0.2, 2), (2, 0.2, 0), (2, 0.9, 1)]
)
def test_whole_blocks_go_and_one_stays(total, removed, gone):
    assert shortgpt.count(total, removed) == gone


@pytest.mark.parametrize("removed, codes", [(0.0, []), (0.2, ["no_block_removed"])])
def test_a_share_of_less_than_half_a_block_is_said_to_do_nothing(removed, codes):
    bundle = tiny.bundle("llama")
    before = tiny.logits(bundle, tiny.ids(2))
    assert [note.code for note in cut(bundle, removed=removed).notes] == codes
    assert torch.equal(tiny.logits(bundle, tiny.ids(2)), before)


@pytest.mark.parametrize("order", shortgpt.ORDERS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_is_left_is_the_model_without_the_chosen_blocks(family, order):
    bundle, ids = deeper(family), tiny.ids(8)
    kept = shortgpt.choose(bundle, Context(ids, QUIET), 2, order).kept
    expected = keep_blocks(bundle, kept)
    promised = SHORT.geometry_after(bundle.geometry, SHORT.params.parse({"removed": 0.4}))
    outcome = cut(bundle, removed=0.4, order=order)
    assert torch.equal(tiny.logits(bundle, ids), tiny.logits(expected, ids))
    assert bundle.geometry == expected.geometry == promised
    (note,) = outcome.notes
    gone = [i for i in range(5) if i not in kept]
    assert note.facts == {"gone": depth.spans(gone), "count": 2, "of": 5}
    assert {row["layer"] for row in outcome.layers} == set(gone)
    assert {(row["format"], row["bits_per_weight"]) for row in outcome.layers} == {("cut", 0.0)}


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_the_gradients_order_is_the_papers_sum(family):
    """|g w| summed over every weight of a block's matrices, g by autograd on the mean loss of ten texts."""
    bundle, ids = deeper(family), tiny.ids(12)
    found = shortgpt.dependence(bundle, Context(ids, QUIET)).tolist()
    few = ids[[i * 12 // 10 for i in range(10)]]
    places = [(path, layer) for path, _, layer in arch.linears(bundle.module)]
    weights = [bundle.module.get_submodule(path).weight.requires_grad_() for path, _ in places]
    losses = [
        torch.nn.functional.cross_entropy(
            bundle.module(input_ids=text[None], use_cache=False).logits[0, :-1], text[1:]
        )
        for text in few
    ]
    grads = torch.autograd.grad(sum(losses) / len(losses), weights)
    expected = [0.0] * 5
    for (_, layer), weight, grad in zip(places, weights, grads, strict=True):
        pairs = zip(weight.flatten().tolist(), grad.flatten().tolist(), strict=True)
        expected[layer] += sum(abs(w * g) for w, g in pairs)
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_ends_go_last():
    """Four first and two last of 32 as published, four and two of 30, and none of two."""
    rising = torch.arange(32.0, dtype=torch.float64) + 1
    assert depth.least(shortgpt.spared(rising), 26) == list(range(4, 30))
    assert depth.least(shortgpt.spared(rising.flip(0)), 27) == [*range(4, 30), 31], (
        "then the least of the spared"
    )
    assert depth.least(shortgpt.spared(rising[:30]), 24) == list(range(4, 28))
    assert depth.least(shortgpt.spared(rising[:2]), 1) == [0]


def test_the_angle_is_measured_over_each_block_alone():
    bundle, ids = deeper(), tiny.ids(8)
    h = states(bundle, ids)
    angles = [
        sum(math.acos(min(1.0, cos(a, b))) for a, b in zip(h[i], h[i + 1], strict=True)) for i in range(5)
    ]
    gone = shortgpt.choose(bundle, Context(ids, QUIET), 3, "angular").gone
    assert gone == tuple(sorted(sorted(range(5), key=angles.__getitem__)[:3]))


def test_chance_is_drawn_from_the_seed_and_is_fair():
    bundle, ids = deeper(), tiny.ids(1)

    def gone(seed):
        return shortgpt.choose(bundle, Context(ids, Recorder(seed=seed)), 2, "random").gone

    assert gone(3) == gone(3) and len({gone(seed) for seed in range(20)}) > 5
    counts = [sum(block in gone(seed) for seed in range(200)) for block in range(5)]
    assert sum(counts) == 400 and min(counts) > 55 and max(counts) < 105


def test_a_block_that_does_nothing_for_the_loss_goes_first():
    """The claim, planted: block 2 adds nothing to what it reads, and every measure finds it."""
    bundle, ids = deeper(), tiny.ids(8)
    with torch.no_grad():
        for path, role, layer in arch.linears(bundle.module):
            if layer == 2 and role in ("o", "down"):
                bundle.module.get_submodule(path).weight.zero_()
    for order in ("influence", "angular", "contiguous", "taylor"):
        assert shortgpt.choose(bundle, Context(ids, QUIET), 1, order).gone == (2,), order


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_it_is_saved_loaded_and_served(family, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSION_EXPLORER_HOME", str(tmp_path / "home"))
    bundle, ids = deeper(family), tiny.ids(3)
    cut(bundle, removed=0.4)
    expected = tiny.logits(bundle, ids)
    artifact.save(bundle, tmp_path / "m", {"label": "ShortGPT"}, {})
    loaded = artifact.load(tmp_path / "m")
    assert loaded.geometry == bundle.geometry
    assert torch.allclose(tiny.logits(loaded, ids), expected, atol=2e-2 * float(expected.abs().max()))
    whole = deeper(family)
    assert (engine.serve(loaded) is None) == (engine.serve(whole) is None), (loaded.refused, whole.refused)
    assert len(sample.complete(loaded, "ab", 4)) >= 2


def test_it_is_exported_once_it_is_rounded(tmp_path):
    """The other formats describe all blocks by one config, which a model of fewer blocks still has."""
    ids = tiny.ids(3)
    bundle = compressed("qwen2", [("shortgpt", {"removed": 0.5}), ("rtn", {"bits": 4, "group_size": 32})])
    export.write(bundle, tmp_path / "out", "gptq_v2")
    read, expected = export.read(tmp_path / "out"), tiny.logits(bundle, ids)
    assert len(read.geometry.layers) == len(bundle.geometry.layers) == 1
    assert torch.allclose(tiny.logits(read, ids), expected, atol=2e-2 * float(expected.abs().max()))


@pytest.mark.parametrize(
    "step",
    [
        ("gptq", {"bits": 4, "group_size": 16}),
        ("wanda", {"sparsity": 0.5}),
        ("lora", {"rank": 2, "train_tokens": 1_024, "learning_rate": 0.01}),
        ("llm_pruner", dict(get("llm_pruner").tiny)),
        ("gkd", dict(get("gkd").tiny)),
    ],
    ids=lambda step: step[0],
)
def test_other_steps_may_follow(step):
    bundle, ids = deeper(), torch.arange(8 * 32).view(8, 32) % 7
    before = tiny.logits(keep_blocks(bundle, depth.choose(bundle, ids, 2, "influence").kept), ids)
    outcome = cut(bundle, step, windows=ids, removed=0.4)
    after = tiny.logits(bundle, ids)
    assert len(bundle.geometry.layers) == len(arch.blocks(bundle.module)) <= 3
    assert bool(torch.isfinite(after).all()) and not torch.equal(after, before)
    assert "blocks_by_influence" in {note.code for note in outcome.notes}


def test_it_follows_an_uncompressed_model_or_a_cut_one_only():
    bundle = deeper()
    recipe = tuple((get(name), get(name).params()) for name in ("rtn", "shortgpt"))
    with pytest.raises(BadChain, match="can't follow"):
        calibrate.compress(bundle, recipe, tiny.ids(4))
    bundle = deeper()
    cut(bundle, ("shortgpt", {"removed": 0.3}), removed=0.4)
    assert len(bundle.geometry.layers) == 2


def test_what_is_not_possible_is_said():
    with pytest.raises(CalibrationError, match="needs calibration windows"):
        calibrate.compress(deeper(), ((SHORT, SHORT.params()),), None)
    with pytest.raises(BadParam, match="influence, angular, contiguous, taylor, random"):
        SHORT.params.parse({"order": "even"})
    with pytest.raises(BadParam, match=r"0.0 to 0.9"):
        SHORT.params.parse({"removed": 1.0})
