"""Which blocks go: the two measures against loops in 64 bits, the choice, and the cut."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from compression import arch, depth, get, inputs, kv_cache, structure
from compression.base import CalibrationError, Cancelled, Context, UnsupportedLayer
from compression.distillation import students
from compression.distillation.students import StudentParams
from compression.recorder import QUIET, Recorder
from tests import tiny


def deeper(family: str = "llama", blocks: int = 5):
    """A model of so many blocks: the tiny one's, each with weights of its own."""
    bundle = tiny.bundle(family)
    first = arch.blocks(bundle.module)[0]
    more = [copy.deepcopy(first) for _ in range(blocks)]
    draw = tiny.seeded(7)
    with torch.no_grad():
        for number, block in enumerate(more):
            for p in block.parameters():
                p.add_((0.02 + 0.03 * ((number * 3) % blocks)) * torch.randn(p.shape, generator=draw))
            for part in block.modules():
                if hasattr(part, "layer_idx"):
                    part.layer_idx = number
    config = bundle.module.config
    bundle.module.set_submodule(arch.of(bundle.module).blocks, nn.ModuleList(more))
    config.num_hidden_layers = blocks
    if getattr(config, "layer_types", None):
        config.layer_types = ["full_attention"] * blocks
    bundle.geometry = arch.geometry(bundle.module)
    return bundle


def states(bundle, ids):
    """What enters each block, and what leaves the last one before the final norm: float64 [tokens, hidden]
    each."""
    module = copy.deepcopy(bundle.module)
    if arch.final_norm(module) is not None:
        module.set_submodule(arch.of(module).final, nn.Identity())
    if arch.projections(module)[1] is not None:
        module.set_submodule(arch.of(module).projections[1], nn.Identity())
    with torch.no_grad():
        found = arch.backbone(module)(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    return [h.double().flatten(0, 1).numpy() for h in found]


def cos(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_influence_is_equation_1_of_the_paper(family):
    bundle, ids = deeper(family), tiny.ids(5, 24)
    h = states(bundle, ids)
    expected = [1 - sum(cos(a, b) for a, b in zip(h[i], h[i + 1], strict=True)) / len(h[i]) for i in range(5)]
    found = depth.over_blocks(bundle, ids, 1, depth.influence)
    assert np.allclose(found.numpy(), expected, atol=1e-6) and len(set(np.round(expected, 4))) == 5
    kept = sorted(sorted(range(5), key=expected.__getitem__)[2:])
    assert depth.choose(bundle, ids, 2, "influence").kept == tuple(kept)


@pytest.mark.parametrize("run", [1, 2, 4, 5])
def test_the_distance_over_a_run_is_the_papers_over_every_token(run):
    bundle, ids = deeper(), tiny.ids(5, 24)
    h = states(bundle, ids)
    expected = [
        sum(math.acos(cos(a, b)) / math.pi for a, b in zip(h[i], h[i + run], strict=True)) / len(h[i])
        for i in range(6 - run)
    ]
    found = depth.over_blocks(bundle, ids, run, depth.angular_distance)
    assert np.allclose(found.numpy(), expected, atol=1e-5)
    if run < 5:
        start = int(np.argmin(expected))
        assert depth.choose(bundle, ids, run, "contiguous").gone == tuple(range(start, start + run))


def test_the_measures_of_known_angles():
    a = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    b = torch.tensor([[5.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 1.0]])
    assert depth.influence(a, b).tolist() == pytest.approx([0, 1, 2, 1 - math.sqrt(0.5)])
    assert depth.angular_distance(a, b).tolist() == pytest.approx([0, 0.5, 1, 0.25])


@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f != "opt-post-norm"])
def test_a_block_that_does_nothing_has_no_influence_and_goes_first(family):
    """Where norms come first: a norm after the sum changes the states whatever the block adds."""
    bundle = deeper(family)
    silent = arch.blocks(bundle.module)[3]
    row, ids = arch.of(bundle.module), tiny.ids(4)
    with torch.no_grad():
        for role in ("o", "down"):
            for p in silent.get_submodule(row.roles[role]).parameters():
                p.zero_()
    before = tiny.logits(bundle, ids)
    found = depth.over_blocks(bundle, ids, 1, depth.influence)
    assert abs(float(found[3])) < 1e-12 and float(found.sort().values[1]) > 1e-4
    for order in depth.ORDERS:
        choice = depth.choose(bundle, ids, 1, order)
        assert choice.gone == (3,) and choice.kept == (0, 1, 2, 4)
    student = students.keep_blocks(bundle, choice.kept)
    assert torch.allclose(tiny.logits(student, ids), before, atol=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_cut_model_is_the_one_that_is_built_without_those_blocks(family):
    """Also with a cache, whose places go by the blocks' new numbers."""
    bundle, ids, kept = deeper(family), tiny.ids(3), [0, 2, 4]
    built = deeper(family, 3)
    for own, number in zip(arch.blocks(built.module), kept, strict=True):
        own.load_state_dict(arch.blocks(bundle.module)[number].state_dict())
    rest = {
        name: p for name, p in bundle.module.state_dict().items() if arch.of(bundle.module).blocks not in name
    }
    built.module.load_state_dict(rest, strict=False)
    expected = tiny.logits(built, ids)
    student = students.keep_blocks(bundle, kept)
    assert torch.equal(tiny.logits(student, ids), expected) and student.geometry == built.geometry
    assert len(arch.blocks(bundle.module)) == 5, "the teacher stays whole"
    structure.cut_depth(bundle.module, kept)
    assert torch.equal(tiny.logits(bundle, ids), expected)
    assert bundle.module.config.num_hidden_layers == 3
    cache = student.new_cache()
    with torch.no_grad():
        parts = [
            student.module(input_ids=part, **kv_cache.handed(student.module, cache)).logits
            for part in (ids[:, :20], ids[:, 20:])
        ]
    assert torch.allclose(torch.cat(parts, 1), expected, atol=1e-4)


def test_each_block_keeps_its_own_kind_of_attention():
    bundle = deeper("qwen2", 4)
    bundle.module.config.layer_types = ["full_attention", "sliding_attention"] * 2
    structure.cut_depth(bundle.module, [1, 2])
    assert bundle.module.config.layer_types == ["sliding_attention", "full_attention"]


def test_scores_that_are_divided_by_the_blocks_number_stay_what_they_were():
    """A saved model is made anew from its config, and divides by the new number."""
    from transformers import AutoModelForCausalLM

    bundle = deeper("gpt2", 4)
    bundle.module.config.scale_attn_by_inverse_layer_idx = True
    for number, block in enumerate(arch.blocks(bundle.module)):
        block.attn.scaling /= number + 1
    alone, x = copy.deepcopy(arch.blocks(bundle.module)[3]), torch.randn(2, 9, 48, generator=tiny.seeded())
    student = students.keep_blocks(bundle, [0, 3])
    moved = arch.blocks(student.module)[1]
    fresh = AutoModelForCausalLM.from_config(student.module.config)
    assert moved.attn.scaling == pytest.approx(fresh.transformer.h[1].attn.scaling)
    with torch.no_grad():
        a, b = (inputs._states(block(x)) for block in (alone, moved))
    assert (
        torch.allclose(a, b, atol=1e-5) and arch.blocks(bundle.module)[3].attn.scaling == alone.attn.scaling
    )


def test_few_states_are_held_and_batches_change_nothing(monkeypatch):
    bundle, ids = deeper(), tiny.ids(6, 16)
    whole = depth.over_blocks(bundle, ids, 2, depth.angular_distance)
    monkeypatch.setattr(inputs, "TOKENS_PER_BATCH", 16)
    assert torch.allclose(depth.over_blocks(bundle, ids, 2, depth.angular_distance), whole, atol=1e-9)
    assert depth.spread(ids, 32).tolist() == ids[[0, 3]].tolist() and len(depth.spread(ids, 3)) == 1


def test_equal_influences_go_from_the_front_and_words_tell_runs():
    assert depth.least(torch.tensor([0.5, 0.1, 0.1, 0.1, 0.9]), 2) == [1, 2]
    assert depth.nearest(torch.tensor([0.3, 0.2, 0.2]), 2) == [1, 2]
    assert depth.spans([2, 3, 4, 8]) == "2-4, 8" and depth.spans([]) == ""


def test_what_can_not_be_measured_or_cut_is_said():
    bundle = deeper()
    with pytest.raises(CalibrationError, match="at least 1"):
        depth.over_blocks(bundle, tiny.ids(0), 1, depth.influence)
    with pytest.raises(Cancelled):
        depth.over_blocks(bundle, tiny.ids(2), 1, depth.influence, Recorder(cancelled=lambda: True))
    with pytest.raises(UnsupportedLayer, match="at least one"):
        structure.cut_depth(bundle.module, [])
    with torch.no_grad():
        arch.embedding(bundle.module)[1].weight.fill_(math.inf)
    with pytest.raises(CalibrationError, match="not finite"):
        depth.over_blocks(bundle, tiny.ids(2), 1, depth.influence)


# --- students ---


@pytest.mark.parametrize("order", ["influence", "contiguous", "even"])
def test_a_student_has_the_blocks_that_its_order_chooses_and_says_so(order):
    bundle, ids = deeper(), tiny.ids(6)
    params = StudentParams(kept=0.6, layers=order)
    made = students.make(bundle, Context(ids, QUIET), params)
    kept = students.spaced(5, 3) if order == "even" else depth.choose(bundle, ids, 2, order).kept
    expected = students.keep_blocks(bundle, kept)
    assert torch.equal(tiny.logits(made.bundle, ids), tiny.logits(expected, ids))
    assert made.bundle.geometry == students.reshaped(bundle.geometry, params)
    told = {note.code: note.facts for note in made.notes}
    assert told.pop("student_layers") == {"layers": 3, "of": 5}
    gone = depth.spans([i for i in range(5) if i not in kept])
    code = {"influence": "blocks_by_influence", "contiguous": "blocks_contiguous"}.get(order)
    assert told == ({code: {"gone": gone, "count": 2, "of": 5}} if code else {})


def test_a_text_is_asked_for_where_layers_are_measured_or_a_student_is_warmed_up():
    """The black-box methods make their lessons themselves, so nothing else asks for a text."""
    method = get("mt_cot")
    for values, asks in (
        ({}, True),
        ({"layers": "contiguous", "warm_up": 0.0}, True),
        ({"layers": "even"}, True),
        ({"layers": "even", "warm_up": 0.0}, False),
        ({"kept": 1.0}, False),
        ({"student": "gpt2"}, False),
    ):
        assert method.needs_calibration(method.params.parse(values)) is asks
    assert get("gkd").needs_calibration(get("gkd").params.parse({"layers": "even"}))
    named = method.params.parse({"student": "gpt2", "layers": "even"})
    assert "layers" not in named.effective() and "layers" in method.params().effective()
