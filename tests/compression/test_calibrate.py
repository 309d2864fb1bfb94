"""The driver: replay equals the model, groups see what they should, edits land, chains hold."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

from compression import arch, calibrate, get, inputs
from compression.base import BadChain, CalibrationError, Cancelled, Edit, Stats, UnsupportedLayer
from compression.grids import fit
from compression.inputs import capture
from compression.packed.dense import Dense
from compression.packed.grouped_int import GroupedInt
from compression.packed.linear import CompressedLinear, TableHead
from compression.recorder import Recorder
from tests import tiny


def steps(*names, **params):
    return tuple((get(n), get(n).params.parse(dict(get(n).tiny) | params)) for n in names)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_replaying_untouched_blocks_equals_the_forward_pass(family):
    """Gate L: the walk's hidden states are the model's own."""
    bundle, tokens = tiny.bundle(family), tiny.ids(5)
    seen = {}
    blocks = arch.blocks(bundle.module)

    def note(block, args, kwargs):
        seen[list(blocks).index(block)] = args[0] if args else kwargs["hidden_states"]

    for block in blocks:
        block.register_forward_pre_hook(note, with_kwargs=True)
    tiny.logits(bundle, tokens)
    expected = dict(seen)
    with torch.no_grad():
        inputs = capture(bundle, tokens)
        for i, block in enumerate(blocks):
            assert torch.allclose(torch.cat(inputs.batches), expected[i], atol=1e-6)
            inputs.advance(block)


class Spy:
    """A method that keeps its statistics and rounds each linear."""

    def __init__(self, stream):
        self.stats = []
        names = frozenset({"gram", "sum_sq", "mean_abs", "max_abs", "mean"})
        self.method = dataclasses.replace(
            get("rtn"), name="spy", stats=names, stream=stream, compress=self.compress
        )

    def compress(self, site, stats, params):
        self.stats.append((site.path, stats))
        grid = fit(site.weight, 2, 16, False)
        return Edit(linears={site.path: GroupedInt.encode(grid.round(site.weight), grid)})

    def run(self, bundle, tokens):
        calibrate.compress(bundle, ((self.method, get("rtn").params()),), tokens)
        return dict(self.stats)


def inputs_of(bundle, path, tokens):
    """What enters a linear in a full forward pass, [tokens, in]."""
    caught = []
    handle = bundle.module.get_submodule(path).register_forward_pre_hook(
        lambda m, a: caught.append(a[0].reshape(-1, a[0].shape[-1]))
    )
    tiny.logits(bundle, tokens)
    handle.remove()
    return caught[0]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_original_stream_sees_the_uncompressed_model(family):
    bundle, tokens = tiny.bundle(family), tiny.ids(5)
    expected = {path: inputs_of(bundle, path, tokens) for path, _, _ in arch.linears(bundle.module)}
    found = Spy("original").run(bundle, tokens)
    for path, x in expected.items():
        stats = found[path]
        assert stats.tokens == tokens.numel()
        assert torch.allclose(stats.gram, x.T @ x, rtol=1e-4, atol=1e-4)
        assert torch.allclose(stats.sum_sq, stats.gram.diagonal(), rtol=1e-4)
        assert torch.allclose(stats.mean_abs, x.abs().mean(0), rtol=1e-4, atol=1e-6)
        assert torch.allclose(stats.mean, x.mean(0), rtol=1e-3, atol=1e-5)
        assert torch.equal(stats.max_abs, x.abs().amax(0)) or torch.allclose(
            stats.max_abs, x.abs().amax(0), rtol=1e-5
        )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_compressed_stream_sees_everything_before_it_compressed(family):
    """True sequential, checked from outside: the statistics of a linear are those of the finished model's own
    inputs, for all that flows into it was compressed before it was looked at."""
    bundle, tokens = tiny.bundle(family), tiny.ids(5)
    found = Spy("compressed").run(bundle, tokens)
    for path, _, _ in arch.linears(bundle.module):
        x = inputs_of(bundle, path, tokens)
        assert torch.allclose(found[path].gram, x.T @ x, rtol=1e-3, atol=1e-3), path


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_block_stream_sees_its_own_block_as_it_was(family):
    """As Wanda's authors collect: the blocks before are compressed, nothing within the block is."""
    bundle, fresh, tokens = tiny.bundle(family), tiny.bundle(family), tiny.ids(5)
    found = Spy("block").run(bundle, tokens)
    done, blocks = arch.blocks(bundle.module), arch.blocks(fresh.module)
    for layer in range(len(blocks)):
        for path in (path for path, _, of in arch.linears(fresh.module) if of == layer):
            x = inputs_of(fresh, path, tokens)
            assert torch.allclose(found[path].gram, x.T @ x, rtol=1e-3, atol=1e-3), path
        blocks[layer] = done[layer]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_both_streams_beside_each_other_are_what_each_is_alone(family):
    tokens = tiny.ids(5)
    both, block, original = (
        Spy(stream).run(tiny.bundle(family), tokens) for stream in ("both", "block", "original")
    )
    for path, found in both.items():
        assert torch.allclose(found.gram, block[path].gram, rtol=1e-4, atol=1e-4)
        assert torch.allclose(found.original.gram, original[path].gram, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(block[path].gram, original[path].gram, rtol=1e-2)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_compressed_linear_multiplies_every_window_once(family, monkeypatch):
    """What is settled is remembered: however many partial runs a block has, none computes a product again."""
    seen, forward = Counter(), CompressedLinear.forward
    monkeypatch.setattr(
        CompressedLinear,
        "forward",
        lambda self, x: seen.update({self: x[..., 0].numel()}) or forward(self, x),
    )
    bundle, tokens = tiny.bundle(family), tiny.ids(5)
    calibrate.compress(bundle, steps("gptq"), tokens)
    last = len(arch.blocks(bundle.module)) - 1
    for path, _, layer in arch.linears(bundle.module):
        count = seen[bundle.module.get_submodule(path)]
        assert count == tokens.numel() or (layer == last and count == 0), path


@pytest.mark.parametrize("room", [-(1 << 40), 20_000, 100_000])
def test_without_room_to_remember_the_statistics_are_the_same(room, monkeypatch):
    monkeypatch.setattr(inputs, "TOKENS_PER_BATCH", 64)
    found = Spy("compressed").run(tiny.bundle(), tiny.ids(7))
    monkeypatch.setattr(inputs, "ROOM", room)
    again = Spy("compressed").run(tiny.bundle(), tiny.ids(7))
    assert all(torch.equal(stats.gram, again[path].gram) for path, stats in found.items())


def test_settled_parts_leave_no_trace():
    bundle = tiny.bundle()
    calibrate.compress(bundle, steps("gptq"), tiny.ids(4))
    assert not any(
        "forward" in m.__dict__ or m._forward_hooks or m._forward_pre_hooks for m in bundle.module.modules()
    )


def test_statistics_do_not_depend_on_batching(monkeypatch):
    bundle, tokens = tiny.bundle(), tiny.ids(7)
    found = Spy("compressed").run(bundle, tokens)
    monkeypatch.setattr(inputs, "TOKENS_PER_BATCH", 64)
    again = Spy("compressed").run(tiny.bundle(), tokens)
    for path, stats in found.items():
        assert torch.allclose(stats.gram, again[path].gram, rtol=1e-4, atol=1e-4)


def test_the_whole_model_is_replaced_and_bits_are_told():
    bundle = tiny.bundle()
    outcome = calibrate.compress(bundle, steps("rtn"), None)
    linears = arch.linears(bundle.module)
    assert all(isinstance(bundle.module.get_submodule(p), CompressedLinear) for p, _, _ in linears)
    assert [row["path"] for row in outcome.layers] == [p for p, _, _ in linears]
    assert all(4 < row["bits_per_weight"] < 6.5 for row in outcome.layers)


def test_tables_are_rounded_once_and_shared():
    bundle = tiny.bundle("llama")
    before = arch.embedding(bundle.module)[1].weight.clone()
    calibrate.compress(bundle, steps("rtn"), None, table_bits=8)
    table, head = arch.embedding(bundle.module)[1], arch.head(bundle.module)[1]
    assert isinstance(head, TableHead)
    found = table.rows(torch.arange(tiny.VOCABULARY))
    assert 0 < (found - before).abs().max() < before.abs().max() / 64
    x = torch.randn(3, 48)
    assert torch.allclose(head(x), x @ found.T, atol=1e-4)


def test_bad_chains_name_the_formats():
    with pytest.raises(BadChain, match="svd can't follow.*grouped_int"):
        calibrate.compress(tiny.bundle(), steps("rtn", "svd"), None)


def test_calibration_is_demanded():
    with pytest.raises(CalibrationError, match="needs calibration"):
        calibrate.compress(tiny.bundle(), steps("gptq"), None)


def test_cancel_is_heard_between_linears():
    asked = iter([False] * 3 + [True] * 100)
    with pytest.raises(Cancelled):
        calibrate.compress(
            tiny.bundle(), steps("rtn"), None, recorder=Recorder(cancelled=lambda: next(asked))
        )


def test_progress_counts_the_layers():
    events = []
    calibrate.compress(tiny.bundle(), steps("rtn"), None, recorder=Recorder(events.append))
    assert [e["done"] for e in events if e["stage"] == "compress"] == [0, 1, 2]


def test_int8_activations_become_part_of_the_format():
    plain, rounded = tiny.bundle(), tiny.bundle()
    calibrate.compress(plain, steps("rtn"), None)
    calibrate.compress(rounded, steps("rtn"), None, activations="int8")
    tokens = tiny.ids(2)
    difference = (tiny.logits(plain, tokens) - tiny.logits(rounded, tokens)).abs().max()
    assert 1e-6 < difference < 0.5
    packed = arch.blocks(rounded.module)[0].self_attn.q_proj.packed
    assert packed.full_config()["activations"] == {"bits": 8, "group": 32}


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gpt_neox"])
def test_an_edit_may_give_a_linear_a_bias(family):
    """Where it had none as where it had one; elsewhere nothing changes."""
    bundle, tokens = tiny.bundle(family), tiny.ids(2)
    path, out = next(
        (p, bundle.module.get_submodule(p).out_features)
        for p, role, i in arch.linears(bundle.module)
        if role == "v"
    )
    other, new = tiny.bundle(family), torch.linspace(-1, 1, out)
    linear = other.module.get_submodule(path)
    linear.bias = torch.nn.Parameter(new.clone(), requires_grad=False)
    packed = Dense.encode(linear.weight)
    linear.weight.data = packed.dequantize()

    def compress(site, stats, params):
        return Edit(linears={path: packed}, tensors={f"{path}.bias": new}) if site.path == path else Edit()

    method = dataclasses.replace(get("rtn"), name="spy", compress=compress)
    calibrate.compress(bundle, ((method, get("rtn").params()),), None)
    replaced = bundle.module.get_submodule(path)
    assert torch.equal(replaced.bias, new) and replaced.bias.data_ptr() != new.data_ptr()
    assert torch.allclose(tiny.logits(bundle, tokens), tiny.logits(other, tokens), atol=1e-5)


def test_a_new_bias_without_a_new_linear_is_refused():
    def compress(site, stats, params):
        return Edit(tensors={f"{site.path}.bias": torch.zeros(len(site.weight))})

    method = dataclasses.replace(get("rtn"), name="spy", compress=compress)
    with pytest.raises(UnsupportedLayer, match=r"q_proj has no bias"):
        calibrate.compress(tiny.bundle("llama"), ((method, get("rtn").params()),), None)


def test_stats_of_an_empty_collector_are_not_invented():
    assert Stats(tokens=0).gram is None


@pytest.mark.parametrize(
    "family, method, params",
    [("llama", "rtn", {"bits": 8}), ("gpt2", "pca", {}), ("opt", "gptq", {"bits": 3})],
)
@pytest.mark.parametrize("power", [-10, 16])
def test_a_matrix_of_tiny_or_huge_numbers_is_compressed_as_one_of_usual_numbers(
    family, method, params, power
):
    """2^power times the weights and biases gives 2^power times what comes out of each linear."""
    tokens, made = tiny.ids(4), []
    for factor in (1.0, 2.0**power):
        bundle = tiny.bundle(family)
        paths = [path for path, _, layer in arch.linears(bundle.module) if layer == 0]
        for path in paths:
            linear = bundle.module.get_submodule(path)
            linear.weight.mul_(factor)
            if linear.bias is not None:
                linear.bias.mul_(factor)
        spy = dataclasses.replace(get(method), stats=frozenset(), compress=_with_plain_stats(get(method)))
        calibrate.compress(
            bundle, ((spy, get(method).params.parse(dict(get(method).tiny) | params)),), tokens
        )
        made.append([bundle.module.get_submodule(path) for path in paths])
    for usual, odd in zip(*made, strict=True):
        x = torch.randn(3, usual.in_features, generator=tiny.seeded())
        wanted = usual(x)
        # float16's digits
        assert float((odd(x) / 2.0**power - wanted).abs().max()) < 2e-3 * float(wanted.abs().max())


def _with_plain_stats(method):
    """The method on inputs that are the same whatever the model's weights are."""

    def compress(site, stats, params):
        n = site.weight.shape[1]
        x = torch.randn(4 * n, n, generator=tiny.seeded())
        plain = Stats(len(x), x.T @ x, x.square().sum(0), x.abs().mean(0), x.abs().amax(0), x.mean(0))
        return method.compress(site, plain, params)

    return compress
