"""The decode step in one call: transformers' logits for every family, in every format, at any length."""

from __future__ import annotations

import threading

import pytest
import torch

from compression import arch, calibrate, engine, get, sample
from compression.packed.activations import ActivationRule
from compression.packed.linear import CompressedLinear
from compression.surgery import set_submodule
from kernels import cpu
from kernels.grouped_int import groups_of
from tests import tiny
from tests.compression.packed.test_packed import BOOK, pruned_half, pruned_two_four

pytestmark = pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler here")
EXACT = 1e-5  # of the largest logit; transformers' own sums differ by less


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def equals_transformers(family, dtype=torch.float32, tolerance=EXACT):
    """A prompt of three texts at once, and the same tokens one by one."""
    bundle = tiny.bundle(family)
    decoder, ids = engine.decoder(bundle, dtype), tiny.ids(3, 40)
    expected = tiny.logits(bundle, ids)
    assert relative(decoder.session(3, 64).run(ids), expected[:, -1]) < tolerance
    session = decoder.session(1, 64)
    assert max(relative(session.run(ids[:1, i : i + 1]), expected[:1, i]) for i in range(40)) < tolerance


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_it_is_the_model(family):
    equals_transformers(family)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_weights_are_the_rounded_model(dtype):
    bundle = tiny.bundle("qwen3")
    decoder, ids = engine.decoder(bundle, dtype), tiny.ids(1, 20)
    for module in bundle.module.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            module.weight.data = module.weight.to(dtype).float()
    assert relative(decoder.session(1, 20).run(ids), tiny.logits(bundle, ids)[:, -1]) < EXACT


def formats():
    """A format for a linear, by name: each takes the weight [out, in]."""
    from compression.grids import fit
    from compression.packed.binary_coded import BinaryCoded
    from compression.packed.bitmask import Bitmask
    from compression.packed.codebook import CodeBook
    from compression.packed.columns import Columns
    from compression.packed.dense import Dense
    from compression.packed.grouped_int import GroupedInt
    from compression.packed.low_rank import LowRank
    from compression.packed.outliers import Outliers
    from compression.packed.sum import Sum
    from compression.packed.two_four import TwoFour
    from tests.compression.packed.test_packed import real

    def ints(w, bits, group=16):
        grid = fit(w, bits, group, False)
        return GroupedInt.encode(grid.round(w), grid)

    def coded(base, w):
        grid = fit(w, 4, 16, False)
        return base.with_codes(grid.round(w), grid)

    def planes(w):
        alpha = w.abs().mean(1).view(1, -1, 1).expand(1, -1, groups_of(w.shape[1], 32))
        return BinaryCoded.encode((w > 0)[None], alpha, None, 32)

    def columns(w):
        return Columns.encode(w, torch.arange(1, w.shape[1], 9))

    def scattered(w):
        index = torch.randperm(w.shape[1], generator=torch.Generator().manual_seed(0)).argsort() // 16
        return Sum(real(3, level_bits=3, index=index, w=w), Outliers.encode(w, w.abs() > 0.05))

    def exact_planes(w):
        alpha = w.abs().mean(1).view(1, -1, 1).expand(2, -1, groups_of(w.shape[1], 32))
        return BinaryCoded.encode(
            torch.stack([w > 0, w > 0.02]), alpha, 0.3 * alpha[0], 32, exact_offset=True
        )

    def low_rank(w):
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        return LowRank.encode(u[:, :8] * s[:8], v[:8])

    return {
        "2 bits": lambda w: ints(w, 2),
        "3 bits": lambda w: ints(w, 3),
        "4 bits": lambda w: ints(w, 4),
        "8 bits": lambda w: ints(w, 8, -1),
        "codebook": lambda w: CodeBook.encode(w, BOOK, 16),
        "planes": planes,
        "bitmask": lambda w: Bitmask.encode(w, pruned_half(w)),
        "bitmask 4 bits": lambda w: coded(Bitmask.encode(w, pruned_half(w)), w),
        "2:4": lambda w: TwoFour.encode(w, pruned_two_four(w)),
        "2:4 4 bits": lambda w: coded(TwoFour.encode(w, pruned_two_four(w)), w),
        "low rank": low_rank,
        "dense": Dense.encode,
        "outliers": lambda w: Sum(ints(w, 3), Outliers.encode(w, w.abs() > 0.05)),
        "adapter": lambda w: Sum(ints(w, 4), low_rank(w)),
        "real zeros": lambda w: real(4, 64, w=w),
        "two levels": lambda w: real(3, level_bits=3, w=w),
        "scattered levels": scattered,
        "columns": columns,
        "ints and columns": lambda w: Sum(ints(w, 3), columns(w)),
        "8 bits and columns": lambda w: Sum(ints(w, 8, -1), columns(w)),
        "exact planes": exact_planes,
        "nested codebook": lambda w: CodeBook.encode(w, BOOK, 16, nested=True),
    }


def with_formats(family, names, rule):
    """A model whose linears take the named formats in turn."""
    bundle, made = tiny.bundle(family), formats()
    for i, (path, _, _) in enumerate(arch.linears(bundle.module)):
        linear = bundle.module.get_submodule(path)
        packed = made[names[i % len(names)]](linear.weight.detach())
        packed.activations = rule
        set_submodule(bundle.module, path, CompressedLinear(packed, linear.bias))
    return bundle


RULES = {"exact": None, "int8-32": ActivationRule(group=32), "int8-token": ActivationRule(),
         "static": ActivationRule(static=0.05)}  # fmt: skip


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", [*formats(), "mixed"])
def test_every_format_in_the_step_is_the_format_in_the_loop(name, rule, monkeypatch):
    """transformers' loop over PyTorch's route against the step; in int8 a rounding may fall the other way."""
    names = list(formats()) if name == "mixed" else [name]
    if rule and rule.group and "scattered levels" in names:
        names.remove("scattered levels")  # not by C: its tiles' neighbours are none in the input
        if not names:
            return
    same_in_step_and_loop(names, rule, monkeypatch)


@pytest.mark.parametrize("names", [["8 bits"], ["8 bits", "dense", "8 bits and columns"]])
@pytest.mark.parametrize("threshold", [0.5, 2.0, 1e9])
def test_activations_beyond_a_threshold_in_the_step(names, threshold, monkeypatch):
    same_in_step_and_loop(names, ActivationRule(threshold=threshold), monkeypatch)


def test_a_threshold_that_a_format_does_not_take_is_told():
    with pytest.raises(engine.CannotServe, match="grouped_int"):
        engine.decoder(with_formats("llama", ["4 bits"], ActivationRule(threshold=2.0)))


def same_in_step_and_loop(names, rule, monkeypatch):
    bundle, ids = with_formats("qwen3", names, rule), tiny.ids(2, 24)
    assert cpu.wait() is not None
    session = engine.decoder(bundle, torch.float32).session(2, 32)
    found = [session.run(ids[:, :20]), *(session.run(ids[:, i : i + 1]) for i in range(20, 24))]
    for module in bundle.module.modules():
        if isinstance(module, CompressedLinear):
            module.packed._plan = None
    monkeypatch.setattr(cpu, "library", lambda: None)
    expected = tiny.logits(bundle, ids)
    for i, logits in enumerate(found):
        assert relative(logits, expected[:, 19 + i]) < (EXACT if rule is None else 0.02)


def test_compressed_tables_and_input_scales():
    bundle = tiny.bundle("llama")
    calibrate.compress(bundle, ((get("rtn"), get("rtn").params(bits=4, group_size=16)),), None, table_bits=8)
    for i, (path, _, _) in enumerate(arch.linears(bundle.module)):
        linear = bundle.module.get_submodule(path)
        linear.input_scale = 1 + 0.1 * torch.randn(
            linear.in_features, generator=torch.Generator().manual_seed(i)
        )
    ids = tiny.ids(1, 30)
    assert relative(engine.decoder(bundle).session(1, 30).run(ids), tiny.logits(bundle, ids)[:, -1]) < EXACT


@pytest.mark.parametrize("rule", [None, ActivationRule(group=32)])
@pytest.mark.parametrize("kind", ["tensor_train", "svd"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_tables_of_chains_and_of_thin_products(family, kind, rule):
    bundle, ids = tiny.bundle(family), tiny.ids(3, 20)
    params = get("tensorgpt").params(rank=2, head="cores", kind=kind)
    calibrate.compress(bundle, ((get("tensorgpt"), params),), None)
    arch.embedding(bundle.module)[1].packed.activations = rule
    expected, session = tiny.logits(bundle, ids), engine.decoder(bundle, torch.float32).session(1, 20)
    tolerance = EXACT if rule is None or not bundle.geometry.tied else 0.02
    assert (
        relative(engine.decoder(bundle, torch.float32).session(3, 20).run(ids), expected[:, -1]) < tolerance
    )
    assert max(relative(session.run(ids[:1, i : i + 1]), expected[:1, i]) for i in range(20)) < tolerance


def test_generation_takes_the_step_and_says_the_same(monkeypatch):
    bundle, ids = tiny.bundle("llama"), tiny.ids(2, 10)
    found = torch.stack(list(sample.generate(bundle, ids, 20)), 1)
    assert bundle.decoder is not None
    monkeypatch.setattr(engine, "serve", lambda bundle: None)
    assert torch.equal(found, torch.stack(list(sample.generate(bundle, ids, 20)), 1))


def test_compressing_forgets_the_old_step():
    bundle, ids = tiny.bundle("llama"), tiny.ids(1, 10)
    list(sample.generate(bundle, ids, 1))
    before = bundle.decoder
    calibrate.compress(bundle, ((get("rtn"), get("rtn").params(bits=2, group_size=16)),), None)
    list(sample.generate(bundle, ids, 1))
    assert before is not None and bundle.decoder is not before


def test_a_model_that_serves_alone_gives_its_weights_up():
    bundle, ids = tiny.bundle("llama"), tiny.ids(1, 10)
    expected = list(sample.generate(bundle, ids, 5))
    decoder = engine.serve_alone(bundle)
    assert all(p.is_meta for p in bundle.module.parameters()) and decoder.bytes > 0
    assert list(sample.generate(bundle, ids, 5)) == expected


def test_2000_tokens_without_drift():
    """One token at a time to the full context, against one forward pass without a cache."""
    config = dict(tiny.CONFIGS["llama"], max_position_embeddings=2048)
    bundle = tiny.bundle("llama")
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", vocab_size=260, **config), attn_implementation="sdpa"
    ).eval()
    bundle = type(bundle)(module, bundle.tokenizer, arch.geometry(module), "long")
    ids = tiny.ids(1, 2048)
    expected, session, worst = (
        tiny.logits(bundle, ids),
        engine.decoder(bundle, torch.float32).session(1, 2048),
        0.0,
    )
    session.run(ids[:, :48])
    for i in range(48, 2048):
        logits = session.run(ids[:, i : i + 1])
        worst = max(worst, relative(logits, expected[:, i]))
    assert session.length == 2048 and worst < 1e-4
    with pytest.raises(ValueError, match="holds 2048"):
        session.run(ids[:, :1])


@pytest.mark.parametrize(
    "break_it, said",
    [
        (lambda b: b.module.train(), "trained"),
        (
            lambda b: setattr(b.module.config, "layer_types", ["full_attention", "sliding_attention"]),
            "sliding window",
        ),
        (lambda b: setattr(b.module.model.rotary_emb, "rope_type", "dynamic"), "length of the text"),
        (lambda b: setattr(b.module.model.layers[1].self_attn, "scaling", 3.0), "layers differ"),
    ],
)
def test_what_it_cannot_run_is_refused_with_the_reason(break_it, said):
    bundle = tiny.bundle("qwen3")
    break_it(bundle)
    with pytest.raises(engine.CannotServe, match=said):
        engine.decoder(bundle)
    assert engine.serve(bundle) is None and said in bundle.refused


def test_bad_calls():
    session = engine.decoder(tiny.bundle("llama")).session(1, 20)
    with pytest.raises(ValueError, match="vocabulary has 260"):
        session.run(torch.tensor([[260]]))
    with pytest.raises(ValueError, match="this session takes 1"):
        session.run(tiny.ids(2, 4))
    with pytest.raises(ValueError, match="holds 20"):
        session.run(tiny.ids(1, 21))


@pytest.mark.parametrize(
    "names", [["low rank"], ["adapter"], ["low rank", "low rank", "adapter", "4 bits"]], ids=" ".join
)
def test_low_rank_products_that_follow_each_other_share_their_rooms_safely(names):
    """Their middles take two rooms in turns, with one barrier each: whoever is slow, the logits are those of
    one thread."""
    decoder = engine.serve(with_formats("llama", names, None))
    ids = torch.randint(0, 256, (1, 140), generator=torch.Generator().manual_seed(1))
    found = []
    for threads in (1, 2, 4):
        session = decoder.session(1, 160)
        found.append(
            [
                session.run(ids[:, :20], threads),
                *(session.run(ids[:, i : i + 1], threads) for i in range(20, 140)),
            ]
        )
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_eight_sessions_in_eight_threads():
    decoder, ids = engine.decoder(tiny.bundle("llama"), torch.float32), tiny.ids(8, 30)
    expected, wrong = [decoder.session(1, 30).run(ids[i : i + 1]) for i in range(8)], []

    def work(i):
        for _ in range(5):
            session = decoder.session(1, 30)
            session.run(ids[i : i + 1, :25])
            for k in range(25, 30):
                logits = session.run(ids[i : i + 1, k : k + 1])
            if relative(logits, expected[i]) > EXACT:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert wrong == []


def test_torch_compile_takes_the_kernels_into_its_graph():
    bundle, ids = tiny.bundle("llama"), tiny.ids(2)
    calibrate.compress(bundle, ((get("rtn"), get("rtn").params(bits=4, group_size=16)),), None, table_bits=8)
    assert cpu.wait() is not None
    expected = tiny.logits(bundle, ids)
    compiled = torch.compile(bundle.module, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert relative(compiled(input_ids=ids, use_cache=False).logits, expected) < EXACT


@pytest.mark.model
def test_the_real_model(offline_model):
    from compression import models

    bundle = models.load(offline_model)
    ids = bundle.tokenizer(
        "The tower of Pisa leans because the ground under it is soft on one side.", return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        expected = bundle.module(input_ids=ids).logits[:, -1]
    assert relative(engine.decoder(bundle, torch.float32).session(1, 64).run(ids), expected) < 1e-4
    rounded = engine.decoder(bundle).session(1, 64).run(ids)
    assert int(rounded.argmax()) == int(expected.argmax()) and relative(rounded, expected) < 0.01
