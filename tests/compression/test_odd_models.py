"""Models whose layers aren't alike: calibration sees what the model sees, and every way to write gives its
logits or declines."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from compression import arch, calibrate, engine, get, inputs, sample
from compression.architectures import ARCHITECTURES
from compression.base import CalibrationError
from compression.grids import fit
from compression.packed.activations import ActivationRule
from compression.packed.grouped_int import GroupedInt
from compression.packed.linear import CompressedLinear
from compression.surgery import set_submodule
from kernels import cpu
from tests import odd, tiny

c_kernels = pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler here")
EXACT = 1e-5  # of the largest value


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def written(forward, ids):
    """The logits that a function gives as the text is written: [b, places, vocabulary]."""
    return torch.stack([forward(part) for part in ids.split(odd.PARTS, 1)], 1)


@torch.no_grad()
def states_of(bundle, ids):
    """What enters each block, and what leaves the last one, in the model's own forward pass."""
    blocks, seen = arch.blocks(bundle.module), []

    def take(block, args, kwargs):
        return seen.append(args[0] if args else kwargs["hidden_states"])

    handles = [block.register_forward_pre_hook(take, with_kwargs=True) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(lambda block, args, out: seen.append(out)))
    bundle.module(input_ids=ids, use_cache=False)
    [handle.remove() for handle in handles]
    return seen


@pytest.mark.parametrize("name", [*odd.ODD, *tiny.FAMILIES])
def test_every_block_is_replayed_on_what_the_model_gives_it(name, monkeypatch):
    """Batches of 2, 2 and 1 windows, longer than the sliding window."""
    monkeypatch.setattr(inputs, "TOKENS_PER_BATCH", 80)
    bundle, ids = (
        (odd.made(name).bundle, odd.made(name).ids)
        if name in odd.ODD
        else (tiny.bundle(name), tiny.ids(5, 40))
    )
    expected, replay = states_of(bundle, ids), inputs.capture(bundle, ids)
    assert [len(batch) for batch in replay.batches] == [2, 2, 1]
    for block, states in zip(arch.blocks(bundle.module), expected, strict=False):
        assert relative(torch.cat(replay.batches), states) < EXACT
        replay.advance(block)
    assert relative(torch.cat(replay.batches), expected[-1]) < EXACT


@pytest.mark.parametrize("name", odd.ODD)
def test_the_loop_writes_what_the_model_says(name):
    """Past the window, past the length at which angles change."""
    made = odd.made(name)
    assert relative(written(sample.transformers_stepper(made.bundle), made.ids), made.logits) < EXACT


@c_kernels
@pytest.mark.parametrize("name", odd.ODD)
def test_the_step_writes_what_the_model_says_or_declines(name):
    made, declined = odd.made(name), odd.ODD[name][2]
    if declined:
        assert engine.serve(made.bundle) is None and declined in made.bundle.refused
        return
    assert engine.serve(made.bundle) is not None, made.bundle.refused
    session = engine.decoder(made.bundle, torch.float32).session(5, 40)
    assert relative(written(session.run, made.ids), made.logits) < EXACT


@pytest.mark.parametrize("name", [name for name, (*_, why) in odd.ODD.items() if "window" in why])
def test_a_cache_of_few_bits_past_the_window(name):
    """The window is the masks' matter; codes of all tokens are kept. What is left is the rounding to 8
    bits."""
    made = odd.made(name)
    bundle = dataclasses.replace(made.bundle, cache_bits=8)
    assert relative(written(sample.transformers_stepper(bundle), made.ids), made.logits) < 0.05


def test_windows_of_one_token():
    bundle, ids = odd.made("windows in turns").bundle, tiny.ids(7, 1)
    expected, replay = states_of(bundle, ids), inputs.capture(bundle, ids)
    for block in arch.blocks(bundle.module):
        replay.advance(block)
    assert relative(torch.cat(replay.batches), expected[-1]) < EXACT


def test_a_passage_calls_its_block_as_the_model_does():
    """Methods that train a block: any number of windows, each layer with its own masks."""
    bundle, ids = odd.made("windows in turns").bundle, tiny.ids(3, 40)
    states, calls = states_of(bundle, ids), inputs.single_calls(bundle, ids)
    for i, block in enumerate(arch.blocks(bundle.module)):
        passage = inputs.Passage(block, [states[i]], [states[i + 1]], calls[block])
        for some in (slice(0, 1), slice(0, 3)):
            assert (
                relative(passage.run(states[i][some], dict(block.named_parameters())), states[i + 1][some])
                < EXACT
            )


def test_equal_calls_are_kept_once(monkeypatch):
    monkeypatch.setattr(inputs, "TOKENS_PER_BATCH", 80)
    made = odd.made("windows in turns")
    first, second, last = inputs.capture(made.bundle, made.ids).calls
    assert first is second and last is not first


def hidden_from_arguments(bundle):
    """Each block adds what the model's loop left beside it; no argument says so."""
    for block in arch.blocks(bundle.module):
        block.beside = 0.0
        block.forward = lambda *args, own=block.forward, block=block, **kwargs: (
            own(*args, **kwargs) + block.beside
        )

    def leave(module, args):
        for block in arch.blocks(bundle.module):
            block.beside += 1.0

    arch.backbone(bundle.module).register_forward_pre_hook(leave)


def twice_the_first(bundle):
    """A loop that runs its first block twice."""
    blocks = list(arch.blocks(bundle.module))
    bundle.module.model.layers = nn.ModuleList([blocks[0], *blocks])
    bundle.module.config.num_hidden_layers = 3


@pytest.mark.parametrize(
    "change, said",
    [
        (hidden_from_arguments, "last block's output differs"),
        (twice_the_first, "isn't called next"),
        (lambda b: setattr(b.module.config, "num_hidden_layers", 1), "1 of 2 blocks are called"),
    ],
)
def test_a_model_that_cannot_be_replayed_is_refused(change, said):
    bundle = odd.fresh("llama", {}).bundle
    change(bundle)
    with pytest.raises(CalibrationError, match=said) as error:
        calibrate.compress(bundle, ((get("gptq"), get("gptq").params(bits=4, group_size=16)),), tiny.ids(4))
    assert error.value.code == "replay_differs"


def test_no_window_is_refused():
    with pytest.raises(CalibrationError, match="at least 1"):
        inputs.capture(odd.made("biases").bundle, tiny.ids(1)[:0])


def test_a_factor_does_not_go_into_a_norm_without_weights():
    made = odd.fresh(*odd.ODD["norms without weights"][:2])
    outcome = calibrate.compress(made.bundle, ((get("smoothquant"), get("smoothquant").params()),), made.ids)
    assert "no_weight" in {note.facts.get("reason") for note in outcome.notes}


def test_sizes_are_those_that_the_family_reads():
    """A name that only other families read changes nothing."""
    for name in ("names that OPT's code doesn't read", "names that GPT-2's code doesn't read"):
        sizes = odd.made(name).bundle.geometry.layers[0]
        assert (sizes.heads, sizes.kv_heads, sizes.head_size) == (4, 4, 12)
        assert sizes == arch.geometry_of(odd.made(name).bundle.module.config).layers[0]


# --- the trial of a new decoder ---


def other_order(model):
    return dataclasses.replace(model, layers=model.layers[::-1])


def other_norm(model):
    first = dataclasses.replace(
        model.layers[0], attention=dataclasses.replace(model.layers[0].attention, bias=None)
    )
    return dataclasses.replace(model, layers=(first, *model.layers[1:]))


@c_kernels
@pytest.mark.parametrize(
    "family, change",
    [
        ("llama", lambda m: dataclasses.replace(m, eps=1000 * m.eps)),
        ("llama", lambda m: dataclasses.replace(m, scaling=1.05 * m.scaling)),
        ("llama", lambda m: dataclasses.replace(m, activation="gelu")),
        ("llama", lambda m: dataclasses.replace(m, sine=-m.sine)),
        ("llama", lambda m: dataclasses.replace(m, parallel=True)),
        ("qwen3", other_order),
        ("opt", lambda m: dataclasses.replace(m, offset=m.offset - 1)),
        ("opt-post-norm", lambda m: dataclasses.replace(m, post_norm=False)),
        ("gpt2", lambda m: dataclasses.replace(m, activation="relu")),
        ("gpt_neox", other_norm),
    ],
)
def test_a_wrong_step_is_found_out(family, change, monkeypatch):
    bundle = odd.fresh(family, {}).bundle
    assert engine.serve(bundle) is not None, bundle.refused
    engine.forget(bundle)
    right = engine._made
    monkeypatch.setattr(engine, "_made", lambda *args: engine.Decoder(change(right(*args).model)))
    assert engine.serve(bundle) is None and "logits differ from the model's by" in bundle.refused
    assert len(list(sample.generate(bundle, tiny.ids(1, 4), 3))) == 3, "the model's own loop writes"


@c_kernels
@pytest.mark.parametrize("rule", [None, ActivationRule(group=32), ActivationRule()])
def test_what_is_compressed_or_rounded_passes_the_trial(rule, monkeypatch):
    """Also with float16 and bfloat16 beside it, and a cache of 4 bits; a gross error is found out in spite of
    the rounding."""
    bundle = odd.fresh("llama", {}).bundle
    for path, role, _ in arch.linears(bundle.module):
        if role != "down":
            linear = bundle.module.get_submodule(path)
            grid = fit(linear.weight, 4, 16, False)
            packed = GroupedInt.encode(grid.round(linear.weight), grid)
            packed.activations = rule
            set_submodule(bundle.module, path, CompressedLinear(packed, linear.bias))
    for dtype in ("float16", "bfloat16"):
        bundle.source["dtype"], bundle.cache_bits = dtype, 4
        engine.forget(bundle)
        assert engine.serve(bundle) is not None and bundle.decoder.model.cache_bits == 4, bundle.refused
    right = engine._made
    engine.forget(bundle)
    monkeypatch.setattr(
        engine, "_made", lambda *args: engine.Decoder(dataclasses.replace(right(*args).model, parallel=True))
    )
    assert engine.serve(bundle) is None and "differ" in bundle.refused


@c_kernels
def test_two_who_ask_at_once_get_one_decoder():
    bundle, found = odd.fresh("llama", {}).bundle, []
    threads = [threading.Thread(target=lambda: found.append(engine.serve(bundle))) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert found[0] is not None and all(decoder is found[0] for decoder in found)
    assert not any("forward" in vars(part) for part in bundle.module.modules())


@c_kernels
def test_the_trial_leaves_no_trace():
    bundle = odd.fresh("gpt2", {}).bundle
    before, state = tiny.logits(bundle, tiny.ids(2)), torch.get_rng_state()
    engine.serve(bundle)
    assert torch.equal(tiny.logits(bundle, tiny.ids(2)), before) and torch.equal(torch.get_rng_state(), state)
    assert not any("forward" in vars(part) for part in bundle.module.modules())


# --- what the step knows ---


class OwnNorm(nn.LayerNorm):
    pass


class OwnLinear(nn.Linear):
    pass


def put(path, part):
    return lambda b: b.module.set_submodule(path, part)


@c_kernels
@pytest.mark.parametrize(
    "family, change, said",
    [
        ("opt", put("model.decoder.layers.1.final_layer_norm", OwnNorm(48)), "class OwnNorm"),
        ("llama", put("model.layers.1.input_layernorm", nn.LayerNorm(48)), "class LayerNorm"),
        ("llama", put("model.layers.1.mlp.act_fn", nn.Tanh()), "class Tanh"),
        ("llama", put("model.layers.1.mlp.act_fn", nn.ReLU()), "differ in their activation"),
        ("llama", put("model.layers.0.self_attn.q_proj", OwnLinear(48, 48, bias=False)), "class OwnLinear"),
        ("llama", put("lm_head", OwnLinear(48, 260, bias=False)), "class OwnLinear"),
        ("llama", put("model.embed_tokens", nn.Embedding(260, 48, max_norm=1.0)), "bounds the norm"),
        ("llama", put("lm_head", nn.Linear(48, 300, bias=False)), "the head is"),
        ("llama", lambda b: setattr(b.module.model.norm, "variance_epsilon", 1e-3), "epsilon"),
        (
            "gpt_neox",
            lambda b: setattr(b.module.gpt_neox.layers[1], "use_parallel_residual", False),
            "side by side",
        ),
        (
            "opt",
            lambda b: setattr(b.module.model.decoder.layers[1], "do_layer_norm_before", False),
            "norms come first",
        ),
        (
            "qwen3",
            lambda b: setattr(b.module.model.layers[1].self_attn, "sliding_window", 4),
            "sliding window",
        ),
        ("llama", lambda b: setattr(b.module.config, "num_hidden_layers", 1), "the model runs 1"),
        ("llama", lambda b: setattr(b.module.config, "is_causal", False), "causal"),
        (
            "llama",
            lambda b: setattr(b.module.model.layers[0], "forward", b.module.model.layers[0].forward),
            "function of its own",
        ),
        (
            "llama",
            lambda b: b.module.model.layers[0].register_forward_hook(lambda m, a, out: 1.5 * out),
            "logits differ",
        ),
    ],
)
def test_what_the_step_does_not_know_is_declined(family, change, said):
    bundle = odd.fresh(family, {}).bundle
    bundle.module.requires_grad_(False)
    change(bundle)
    assert engine.serve(bundle) is None and said in bundle.refused


@c_kernels
def test_every_activation_is_the_librarys_or_declined():
    """Behind a gate and without one."""
    served = set()
    for family, places in (("llama", "model.layers.{}.mlp.act_fn"), ("gpt2", "transformer.h.{}.mlp.act")):
        bundle, ids = odd.fresh(family, {}).bundle, tiny.ids(1, 12)
        for name in ACT2FN:
            for layer in range(2):
                bundle.module.set_submodule(places.format(layer), ACT2FN[name].eval().requires_grad_(False))
            engine.forget(bundle)
            if engine.serve(bundle) is None:
                assert "which the step doesn't know" in bundle.refused
                continue
            found = engine.decoder(bundle, torch.float32).session(1, 12).run(ids)
            assert relative(found, tiny.logits(bundle, ids)[:, -1]) < EXACT, name
            served.add(name)
    assert served >= {
        "gelu",
        "gelu_accurate",
        "gelu_fast",
        "gelu_new",
        "gelu_python",
        "gelu_pytorch_tanh",
        "relu",
        "silu",
        "swish",
    }
    assert not served & {"gelu_10", "quick_gelu", "relu2", "relu6", "tanh", "mish", "linear", "leaky_relu"}


@c_kernels
def test_a_setting_of_a_later_version_is_declined_unless_it_stands_at_its_default(monkeypatch):
    bundle, row = odd.fresh("llama", dict(attention_bias=True)).bundle, ARCHITECTURES["llama"]
    less = {name: field for name, field in row.fields.items() if name != "attention_bias"}
    monkeypatch.setitem(ARCHITECTURES, "llama", dataclasses.replace(row, fields=less))
    assert engine.serve(odd.fresh("llama", {}).bundle) is not None
    assert engine.serve(bundle) is None and "attention_bias = True" in bundle.refused
