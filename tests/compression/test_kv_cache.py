"""The key-value cache in few bits: codes by the definition, what attention sees, and the decode step that
keeps them in C."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from compression import arch, artifact, calibrate, engine, get, kv_cache, likelihood, sample
from compression.kv_cache import BITS, QuantizedCache, decode, encode, round_trip
from kernels import cpu
from tests import oracles, tiny

FEW = [b for b in BITS if b < 16]
c_kernels = pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler here")
EXACT = 1e-5  # of the largest logit, as in test_engine
A_CODE = {8: 2e-3, 4: 0.03}  # the same where sums of another order may round a value at a tie the other way


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def bundle_of(bits, family="llama", **config):
    """A tiny model whose cache has so many bits; config: other sizes than tiny's."""
    bundle = tiny.bundle(family)
    if config:
        torch.manual_seed(0)
        made = AutoConfig.for_model(family, vocab_size=tiny.VOCABULARY, **tiny.CONFIGS[family] | config)
        module = AutoModelForCausalLM.from_config(made, attn_implementation="sdpa").eval()
        bundle = type(bundle)(module, bundle.tokenizer, arch.geometry(module), "other sizes")
    bundle.cache_bits = bits
    return bundle


# --- the codes ---


def codes_by_hand(x, bits):
    """scale = max|x| / (2^(bits - 1) - 1) in 16 bits, codes the nearest multiples of it, ties to even: numpy,
    one row at a time."""
    top = 2 ** (bits - 1) - 1
    codes, scales = np.zeros(x.shape, np.int64), np.zeros((*x.shape[:-1], 1), np.float16)
    for place in np.ndindex(x.shape[:-1]):
        row = x[place].astype(np.float32)
        scale = np.float16(np.abs(row).max() / np.float32(top))
        scales[place] = scale
        if scale:
            codes[place] = np.clip(np.rint(row / np.float32(scale)), -top, top)
    return codes, scales


def samples(size=64):
    """Rows of every kind: usual ones, one loud channel, ties, zeros, scales below the smallest normal 16-bit
    number."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 3, 9, size, generator=g)
    rows[0, 0, :, size // 2] *= 40
    rows[0, 1] = torch.arange(size).float() - size // 2
    rows[0, 1, 0, 0] = 127.0
    rows[0, 2, 0] = 0
    rows[1, 0] *= 1e-5
    rows[1, 1] *= 1e-12
    return rows


@pytest.mark.parametrize("bits", FEW)
def test_codes_and_scales_are_the_definitions(bits):
    x = samples()
    codes, scale = encode(x, bits)
    by_hand, scales = codes_by_hand(x.numpy(), bits)
    assert scale.dtype == torch.float16 and np.array_equal(scale.numpy(), scales)
    if bits == 4:
        assert codes.dtype == torch.uint8 and codes.shape[-1] == 32
        low, high = (by_hand + 8)[..., ::2], (by_hand + 8)[..., 1::2]
        assert np.array_equal(codes.numpy(), low | high << 4), "two neighbours a byte, the first one low"
    else:
        assert codes.dtype == torch.int8 and np.array_equal(codes.numpy(), by_hand)
    assert np.array_equal(
        decode(codes, scale, bits, torch.float32).numpy(),
        by_hand.astype(np.float32) * scales.astype(np.float32),
    )


@pytest.mark.parametrize("bits", FEW)
def test_the_error_is_at_most_half_a_step(bits):
    """But for what the scale's own rounding to 16 bits takes: 2^-11 of the largest value, or half the
    smallest 16-bit number."""
    x = samples()
    scale = encode(x, bits)[1].float()
    top = 2 ** (bits - 1) - 1
    room = x.abs().amax(-1, keepdim=True) * 2**-11 + top * 2**-25
    assert bool(((round_trip(x, bits) - x).abs() <= scale / 2 + room).all())
    zero = torch.zeros(1, 1, 1, 8)
    assert torch.equal(round_trip(zero, bits), zero)


@pytest.mark.parametrize("bits", FEW)
def test_what_was_rounded_stays_as_it_is(bits):
    x = samples()[:1]
    x[0, 2, 0] = 1
    once = round_trip(x, bits)
    assert torch.equal(round_trip(once, bits), once)


@pytest.mark.parametrize("bits", FEW)
def test_the_gradient_passes_straight_through(bits):
    x = samples()[0].clone().requires_grad_()
    slope = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (round_trip(x, bits) * slope).sum().backward()
    assert torch.equal(x.grad, slope)


@pytest.mark.parametrize("bits", FEW)
def test_a_training_pass_sees_the_rounded_values_and_learns_through_them(bits):
    bundle, ids = bundle_of(bits), tiny.ids(2, 24)
    with torch.no_grad():
        expected = likelihood.final_states(bundle, ids)
    bundle.module.requires_grad_(True)
    states = likelihood.final_states(bundle, ids)
    assert torch.equal(states, expected)
    states.square().sum().backward()
    grads = {
        path: bundle.module.get_submodule(path).weight.grad
        for path, role, _ in arch.linears(bundle.module)
        if role in "kv"
    }
    assert grads and all(g is not None and float(g.abs().max()) > 0 for g in grads.values())


# --- the cache ---


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("bits", FEW)
def test_read_at_once_or_token_by_token(family, bits):
    """One pass over all of the text, the same cache filled step by step, and every value rounded where
    attention reads it."""
    bundle, ids = bundle_of(bits, family), tiny.ids(2, 20)
    module = bundle.module
    with torch.no_grad():
        whole = likelihood.final_states(bundle, ids)
        cache, backbone = bundle.new_cache(), arch.backbone(module)
        parts = [
            backbone(input_ids=part, **kv_cache.handed(backbone, cache)).last_hidden_state
            for part in (ids[:, :7], *ids[:, 7:].split(1, 1))
        ]
        plain = backbone(input_ids=ids, use_cache=False).last_hidden_state
    assert relative(torch.cat(parts, 1), whole) < A_CODE[bits]
    assert relative(whole, plain) > 1e-5, "it is another model"


@pytest.mark.parametrize("bits", FEW)
def test_bytes_a_token_are_what_the_cache_holds(bits):
    bundle, ids = bundle_of(bits), tiny.ids(3, 10)
    cache = bundle.new_cache()
    assert isinstance(cache, QuantizedCache)
    with torch.no_grad():
        arch.backbone(bundle.module)(input_ids=ids, **kv_cache.handed(bundle.module, cache))
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in layer.stored)
    assert held == 3 * 10 * bundle.geometry.kv_cache_bytes_per_token(bits)
    assert bundle.geometry.kv_cache_bytes_per_token(bits) == 2 * 2 * 2 * (12 * bits // 8 + 2), (
        "layers, keys and values, heads, a scale"
    )
    assert cache.get_seq_length() == 10


# --- in the decode step ---


@c_kernels
@pytest.mark.parametrize("bits", FEW)
@pytest.mark.parametrize("size", [2, 12, 64, 80])
def test_c_writes_the_same_codes(bits, size):
    library, x = cpu.wait(), samples(size).flatten(0, 2)
    codes, scale = encode(x, bits)
    for row, expected, its in zip(x.contiguous(), codes.view(torch.uint8), scale, strict=True):
        for stride in (1, 16):  # values lie one behind the other, keys 16 apart
            found = torch.full((len(expected) * stride,), 0xAA, dtype=torch.uint8)
            got = library.cache_encode(row.data_ptr(), size, bits, found.data_ptr(), stride)
            assert torch.equal(found[::stride], expected) and got == int(its.view(torch.int16)) & 0xFFFF
            assert bool((found.view(-1, stride)[:, 1:] == 0xAA).all()), "nothing between them is touched"


@c_kernels
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("bits", FEW)
def test_the_step_is_the_loop(family, bits):
    step_equals_loop(family, bits)


def step_equals_loop(family, bits):
    """Several sequences, a prompt and then token by token."""
    bundle, ids = bundle_of(bits, family), tiny.ids(3, 40)
    session, loop = engine.decoder(bundle, torch.float32).session(3, 40), sample.transformers_stepper(bundle)
    for part in (ids[:, :30], *ids[:, 30:].split(1, 1)):
        assert relative(session.run(part), loop(part)) < A_CODE[bits]


@c_kernels
@pytest.mark.parametrize("bits", FEW)
@pytest.mark.parametrize(
    "sizes", [dict(head_dim=64), dict(head_dim=80, num_key_value_heads=1), dict(head_dim=128)]
)
def test_grouped_heads_of_the_usual_sizes(bits, sizes):
    bundle, ids = bundle_of(bits, "qwen3", **sizes), tiny.ids(2, 36)
    session, loop = engine.decoder(bundle, torch.float32).session(2, 36), sample.transformers_stepper(bundle)
    for part in (ids[:, :33], *ids[:, 33:].split(1, 1)):
        assert relative(session.run(part), loop(part)) < A_CODE[bits]


@c_kernels
@pytest.mark.parametrize("bits", FEW)
def test_a_prompt_longer_than_a_batch_and_the_same_greedy_tokens(bits, monkeypatch):
    bundle = bundle_of(bits, "llama", max_position_embeddings=512)
    ids = tiny.ids(2, 300)
    assert ids.numel() > 256, "goes in in more than one call"
    engine.serve(bundle)
    bundle.decoder = engine.decoder(bundle, torch.float32)
    found = torch.stack(list(sample.generate(bundle, ids, 40)), 1)
    monkeypatch.setattr(engine, "serve", lambda bundle: None)
    assert torch.equal(found, torch.stack(list(sample.generate(bundle, ids, 40)), 1))


@c_kernels
@pytest.mark.parametrize("bits", FEW)
def test_the_sessions_cache_holds_the_loops_codes(bits):
    """Brought from the step's order into the loop's; a value at a tie may have been rounded the other way."""
    bundle, ids = bundle_of(bits, "qwen3", head_dim=32), tiny.ids(2, 40)
    session, loop = engine.decoder(bundle, torch.float32).session(2, 40), bundle.new_cache()
    session.run(ids)
    with torch.no_grad():
        arch.backbone(bundle.module)(input_ids=ids, **kv_cache.handed(bundle.module, loop))
    for mine, layer in zip(session._caches, loop.layers, strict=True):
        room, width = 48, 32 * bits // 8  # positions, bytes of a head
        keys = mine["keys"].view(2, 2, room // 16, width, 16).transpose(3, 4).reshape(2, 2, room, width)
        found = [
            keys,
            mine["key_scales"].view(2, 2, room, 1),
            mine["values"].view(2, 2, room, width),
            mine["value_scales"].view(2, 2, room, 1),
        ]
        for a, b in zip(found, layer.stored, strict=True):
            a = a[:, :, :40]
            if b.dtype == torch.float16:
                assert torch.allclose(a.float(), b.float(), rtol=2e-3)
            else:
                assert float((a != b.view(torch.uint8)).float().mean()) < 0.01


@c_kernels
def test_a_session_takes_as_much_less_memory_as_it_says():
    """Heads of 64: float32 is 256 bytes, 8 bits are 64 and a scale, 4 bits 32 and a scale."""
    taken = {
        bits: engine.decoder(bundle_of(bits, "qwen3", head_dim=64)).session(2, 160).bytes for bits in BITS
    }
    places = 2 * 2 * 2 * 2 * 160  # keys and values, layers, heads, sequences, positions
    assert taken == {16: 256 * places, 8: 66 * places, 4: 34 * places}
    few = bundle_of(4, "qwen3", head_dim=64)
    assert taken[4] == 2 * 160 * few.geometry.kv_cache_bytes_per_token(4)


@c_kernels
def test_neighbours_that_do_not_pair_are_refused():
    bundle = bundle_of(4, "opt", hidden_size=36, word_embed_proj_dim=36)
    assert bundle.geometry.layers[0].head_size == 9
    with pytest.raises(engine.CannotServe, match="two neighbours a byte; a head has 9"):
        engine.decoder(bundle)
    bundle.cache_bits = 8
    session, loop, ids = (
        engine.decoder(bundle, torch.float32).session(1, 20),
        sample.transformers_stepper(bundle),
        tiny.ids(1, 20),
    )
    assert relative(session.run(ids), loop(ids)) < A_CODE[8]


@c_kernels
@pytest.mark.parametrize("bits", FEW)
def test_a_stored_model_keeps_its_cache(bits, tmp_path):
    """Compressed, saved, loaded: its sessions hold codes, and it is what was compressed, but for what is
    stored in 16 bits."""
    bundle, ids = tiny.bundle("qwen3"), tiny.ids(1, 12)
    before = engine.serve(bundle)
    calibrate.compress(
        bundle, ((get("rtn"), get("rtn").params(bits=4, group_size=16)),), None, cache_bits=bits
    )
    artifact.save(bundle, tmp_path / "made", {"label": "a cache"})
    assert json.loads((tmp_path / "made" / "compression.json").read_text())["cache_bits"] == bits
    loaded = artifact.load(tmp_path / "made")
    found = [engine.serve(b) for b in (bundle, loaded)]
    assert all(d is not None and d is not before and d.model.cache_bits == bits for d in found), (
        bundle.refused
    )
    assert relative(found[0].session(1, 12).run(ids), found[1].session(1, 12).run(ids)) < 0.02
    assert found[1].session(1, 64).bytes < before.session(1, 64).bytes / 2


# --- keys by channel (KIVI) ---


@pytest.fixture
def short(monkeypatch):
    """Groups of 8 and 16 tokens that wait, so that little text is enough; a head of 12 leaves a short
    group."""
    monkeypatch.setattr(kv_cache, "GROUP", 8)
    monkeypatch.setattr(kv_cache, "RECENT", 16)


def by_channel(bits, family="llama"):
    bundle = bundle_of(bits, family)
    bundle.cache_keys = "channel"
    return bundle


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("n", [1, 8, 13, 32])
def test_packed_codes_come_back(bits, n):
    codes = torch.randint(0, 2**bits, (3, 2, n), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    packed = kv_cache.pack(codes, bits)
    assert packed.shape == (3, 2, -(-n * bits // 8)) and torch.equal(kv_cache.unpack(packed, bits, n), codes)
    assert int(packed[0, 0, 0]) & 2**bits - 1 == int(codes[0, 0, 0]), "the first one is the lowest"


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_every_token_sees_kivis_cache(bits, short):
    """Token by token against algorithm 1, with a loud channel among the keys, for which it was made."""
    g = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, 1, 40, 12, generator=g), torch.randn(2, 1, 40, 12, generator=g)
    keys[..., 5] = 30 + keys[..., 5]
    layer = kv_cache.ChannelLayer(bits)
    for t in range(40):
        found = layer.update(keys[:, :, t : t + 1], values[:, :, t : t + 1])
        assert layer.get_seq_length() == t + 1
        if t in (0, 14, 15, 16, 17, 31, 32, 39):
            expected = oracles.quantization.kivi(
                keys[1, 0, : t + 1].numpy(), values[1, 0, : t + 1].numpy(), bits, 8, 16
            )
            for a, b in zip(found, expected, strict=True):
                step = (b.max() - b.min()) / (2**bits - 1)
                assert np.abs(a[1, 0].numpy() - b).max() < 1.01 * step, "a tie may go the other way"
                assert np.mean(np.abs(a[1, 0].numpy() - b) > 1e-4 * np.abs(b).max()) < 0.01


def test_by_channel_a_loud_channel_costs_the_others_nothing(short):
    """The paper's section 3.1: one scale a token makes the quiet channels of a key zero."""
    keys = torch.randn(1, 1, 16, 12, generator=torch.Generator().manual_seed(1))
    keys[..., 5] += 30
    quiet = torch.arange(12) != 5
    layer = kv_cache.ChannelLayer(4)
    layer.update(keys, keys)
    found, _ = layer.update(keys[:, :, :1], keys[:, :, :1])

    def error(x):
        return float((x - keys)[..., quiet].square().mean())

    assert error(found[:, :, :16]) < 0.05 * error(round_trip(keys, 4))


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "qwen3"])
@pytest.mark.parametrize("bits", [4, 2])
def test_by_channel_read_at_once_or_token_by_token(family, bits, short):
    bundle, ids = by_channel(bits, family), tiny.ids(2, 40)
    with torch.no_grad():
        whole = likelihood.final_states(bundle, ids)
        plain = arch.backbone(bundle.module)(input_ids=ids, use_cache=False).last_hidden_state
        cache = bundle.new_cache()
        parts = [
            kv_cache.read(arch.backbone(bundle.module), part, cache)
            for part in (ids[:, :21], *ids[:, 21:].split(1, 1))
        ]
    assert relative(torch.cat(parts, 1), whole) < A_CODE[4]
    assert relative(whole, plain) > 1e-4 and relative(whole[:, :16], plain[:, :16]) < 1e-2, (
        "codes begin where 16 tokens are over"
    )
    stepper, last = sample.stepper(bundle, 2, 40), None
    for part in (ids[:, :30], *ids[:, 30:].split(1, 1)):
        last = stepper(part)
    expected = arch.head(bundle.module)[1](whole[:, -1])
    assert relative(last, expected) < A_CODE[4] and (bundle.refused or cpu.compiler() is None)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("tokens", [15, 16, 39])
def test_by_channel_the_bytes_are_what_the_cache_holds(bits, tokens, short):
    bundle = by_channel(bits)
    cache = bundle.new_cache()
    with torch.no_grad():
        kv_cache.read(arch.backbone(bundle.module), tiny.ids(3, tokens), cache)
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in layer.stored)
    assert held == 3 * 2 * 2 * kv_cache.channel_bytes(12, tokens, bits), "sequences, layers, heads"
    assert cache.get_seq_length() == tokens


def test_by_channel_in_numbers():
    """A head of 64 in 2 bits: 2 bits and 32 for each 32 values are 3 a value; the 64 tokens that wait on
    average have 16."""
    assert kv_cache.channel_bytes(64, 128, 2) == 2 * 128 * 64 * 3 // 8
    assert kv_cache.usual_length(512) == 448 and kv_cache.usual_length(100) == 100
    geometry = bundle_of(16).geometry
    size = geometry.layers[0].head_size
    expected = 2 * 2 * (kv_cache.channel_bytes(size, 384, 2) + 64 * 4 * size) // 448
    assert (
        geometry.kv_cache_bytes_per_token(2, "channel", 512)
        == expected
        < geometry.kv_cache_bytes_per_token(16)
    )


@c_kernels
def test_by_channel_the_step_declines_by_name():
    with pytest.raises(engine.CannotServe, match="scales by channel"):
        engine.decoder(by_channel(2))


def test_by_channel_no_gradient_is_promised(short):
    layer, x = kv_cache.ChannelLayer(4), torch.randn(1, 1, 4, 12, requires_grad=True)
    with torch.enable_grad(), pytest.raises(ValueError, match="takes no gradient"):
        layer.update(x, x)


def test_by_channel_a_stored_model_keeps_its_cache(tmp_path):
    bundle = tiny.bundle("qwen3")
    calibrate.compress(
        bundle, ((get("none"), get("none").params()),), None, cache_bits=2, cache_keys="channel"
    )
    artifact.save(bundle, tmp_path / "made", {"label": "a cache"})
    loaded = artifact.load(tmp_path / "made")
    assert (loaded.cache_bits, loaded.cache_keys) == (2, "channel") and loaded.new_cache().keys == "channel"
