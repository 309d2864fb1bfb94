"""PEQA: starts as plain rounding, trains scales and nothing else, and its tasks go in and out of one set of
integers."""

from __future__ import annotations

import copy
import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compression import arch, artifact, calibrate, engine, get, sample, task_files
from compression.base import BadChain, Context
from compression.bundle import Geometry, LayerGeometry
from compression.catalogue import CATALOGUE
from compression.packed.linear import CompressedLinear
from compression.quantization.peqa import PeqaParams, adapt, compress, cost, integers, release
from compression.recorder import Recorder
from compression.training import language_loss
from evaluation.spec import RunSpec
from kernels.bits import unpack
from tests import chain_language, oracles, talk, tiny

WORDS = (torch.arange(64)[:, None] * 3 + torch.arange(32)) % 11  # a text with something to learn
OTHER = (torch.arange(64)[:, None] * 5 + 7 * torch.arange(32)) % 13
TRAINED = {"group_size": 16, "train_tokens": 3_000, "learning_rate": 0.02}


def steps(*recipe):
    return [(get(name), get(name).params.parse(values)) for name, values in recipe]


def tuned(text=WORDS, family="llama", **values):
    bundle = tiny.bundle(family)
    outcome = calibrate.compress(bundle, steps(("peqa", TRAINED | values)), text)
    return bundle, outcome


def packed_of(bundle):
    return {p: m.packed for p, m in bundle.module.named_modules() if isinstance(m, CompressedLinear)}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [-1, 16])
def test_untrained_it_is_plain_rounding(bits, group_size):
    """Against `rtn` to the bit, and against the definition, weight by weight."""
    weights = {
        p: m.weight.clone() for p, m in tiny.bundle().module.named_modules() if isinstance(m, torch.nn.Linear)
    }
    made = []
    for name in ("peqa", "rtn"):
        bundle = tiny.bundle()
        values = {"bits": bits, "group_size": group_size} | ({"train_tokens": 0} if name == "peqa" else {})
        calibrate.compress(bundle, steps((name, values)), WORDS)
        made.append(bundle)
    first, second = (b.module.state_dict() for b in made)
    assert set(first) == set(second) and all(torch.equal(first[k], second[k]) for k in first)
    path = "model.layers.1.mlp.down_proj"
    packed = packed_of(made[0])[path]
    codes, values = oracles.quantization.rtn(weights[path].numpy().astype(np.float64), bits, group_size)
    assert np.array_equal(unpack(packed.codes, bits, packed.shape[1]).numpy(), codes)
    assert np.allclose(packed.dequantize().numpy(), values, atol=1e-6)


def test_only_scales_are_trained_and_there_is_one_a_row():
    bundle = tiny.bundle()
    rows = sum(
        m.out_features
        for p, m in bundle.module.named_modules()
        if isinstance(m, torch.nn.Linear) and "layers" in p
    )
    scaled, _, _ = adapt(bundle, PeqaParams(bits=3))
    bundle.module.requires_grad_(False)
    for layer in scaled.values():
        layer.log_factor.requires_grad_(True)
    language_loss(bundle, WORDS[:4]).backward()
    learned = [p for p in bundle.module.parameters() if p.grad is not None]
    assert {id(p) for p in learned} == {id(s.log_factor) for s in scaled.values()}
    assert sum(p.numel() for p in learned) == rows and all(bool(p.grad.any()) for p in learned)
    release(bundle, scaled)
    assert not any(p.requires_grad for p in bundle.module.parameters())


@pytest.mark.parametrize("bits, group_size", [(4, -1), (2, -1), (3, 16)])
def test_the_gradient_of_a_scale_is_the_papers(bits, group_size):
    """dL/ds = sum over tokens of dL/dy times (W0 x) over the scale's group, one number at a time; d ln s
    makes it s dL/ds."""
    bundle = tiny.bundle()
    scaled, stored, _ = adapt(bundle, PeqaParams(bits=bits, group_size=group_size))
    path = "model.layers.0.mlp.up_proj"
    layer, grid = scaled[path], stored[path].grid
    x, probe = torch.randn(5, 48), torch.randn(5, 80)
    y = layer(x)
    (y * probe).sum().backward()
    assert torch.allclose(y, x @ stored[path].stored().T, atol=1e-5)
    codes = unpack(stored[path].codes, bits, 48).numpy().astype(np.float64)
    scale, zero, size = (
        grid.scale.double().numpy(),
        grid.zero_points().numpy().astype(np.float64),
        48 if group_size == -1 else 16,
    )
    expected = np.zeros(scale.shape)
    for i in range(80):
        for g in range(scale.shape[1]):
            for t in range(5):
                inside = sum(
                    (codes[i, j] - zero[i, g]) * float(x[t, j])
                    for j in range(g * size, min((g + 1) * size, 48))
                )
                expected[i, g] += float(probe[t, i]) * inside
    assert np.allclose(layer.log_factor.grad.numpy(), scale * expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4])
def test_training_moves_scales_and_leaves_every_integer(bits):
    start, _ = tuned(bits=bits, train_tokens=0)
    bundle, outcome = tuned(bits=bits)
    facts = next(n.facts for n in outcome.notes if n.code == "trained")
    assert facts["method"] == "peqa" and facts["best"] < 0.998 * facts["before"]
    assert outcome.series["training"][0][2] == facts["before"]

    def digest(t):
        return hashlib.sha256(t.numpy().tobytes()).hexdigest()

    for path, packed in packed_of(bundle).items():
        before = packed_of(start)[path]
        assert digest(packed.codes) == digest(before.codes) and digest(packed.grid.zero) == digest(
            before.grid.zero
        )
        assert not torch.equal(packed.grid.scale, before.grid.scale) and bool((packed.grid.scale > 0).all())
    assert task_files.codes_hash(packed_of(bundle)) == task_files.codes_hash(packed_of(start))


def test_what_was_judged_is_what_is_stored():
    """Scales are seen as they are stored: the held-out loss of the best state is that of the finished
    model."""
    bundle, outcome = tuned(bits=3, group_size=-1)
    facts = next(n.facts for n in outcome.notes if n.code == "trained")
    held = WORDS[7::8][:8]
    with torch.no_grad():
        found = sum(language_loss(bundle, w[None]).item() for w in held) / len(held)
    assert found == pytest.approx(facts["best"], abs=1e-4)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_learns_and_comes_back_from_disk(family, tmp_path):
    bundle, outcome = tuned(family=family, bits=3, train_tokens=3_000)
    facts = next(n.facts for n in outcome.notes if n.code == "trained")
    assert facts["best"] < facts["before"] and len(outcome.layers) == len(packed_of(bundle))
    artifact.save(bundle, tmp_path / "m", {"label": "PEQA"}, outcome.files)
    loaded = artifact.load(tmp_path / "m")
    before = tiny.logits(loaded, tiny.ids(2))
    assert torch.allclose(before, tiny.logits(bundle, tiny.ids(2)), atol=5e-3)  # 16-bit tables
    task_files.load(loaded, tmp_path / "m" / task_files.FILE)
    assert torch.equal(tiny.logits(loaded, tiny.ids(2)), before), "its own task changes nothing"


# --- after another step ---


@pytest.mark.parametrize(
    "step, values", [("gptq", {}), ("gptq", {"act_order": True, "static_groups": False}), ("awq", {})]
)
def test_another_steps_integers_stay_and_only_its_scales_are_trained(step, values):
    """2305.14152, equation 2, with the integers of another step: (s0 + Ds) W0, W0 and zero points as they
    were, untouched to the bit."""
    grid = {"bits": 3, "group_size": 16} | values
    start, bundle = tiny.bundle(), tiny.bundle()
    calibrate.compress(start, steps((step, grid)), WORDS)
    outcome = calibrate.compress(
        bundle,
        steps((step, grid), ("peqa", TRAINED | {"bits": 8, "group_size": 32, "train_tokens": 3_000})),
        WORDS,
    )
    facts = next(n.facts for n in outcome.notes if n.code == "trained")
    assert facts["best"] < 0.998 * facts["before"]
    with torch.no_grad():
        held = WORDS[7::8][:8]
        assert sum(language_loss(start, w[None]).item() for w in held) / len(held) == pytest.approx(
            facts["before"], abs=1e-4
        )
        assert sum(language_loss(bundle, w[None]).item() for w in held) / len(held) == pytest.approx(
            facts["best"], abs=1e-4
        )
    moved = 0
    for path, now in packed_of(bundle).items():
        before = packed_of(start)[path]
        old, new = before.state_dict(), now.state_dict()
        assert set(old) == set(new) and all(torch.equal(old[k], new[k]) for k in old if k != "grid.scale")
        moved += int((old["grid.scale"] != new["grid.scale"]).sum())
        # of a weight that isn't 0: its own scale's, whatever its code
        ratio = now.dequantize() / before.dequantize()
        spread_out = (new["grid.scale"].float() / old["grid.scale"].float())[:, _group(now)]
        assert torch.allclose(
            torch.nan_to_num(ratio, 1.0), torch.where(before.dequantize() == 0, 1.0, spread_out), rtol=1e-4
        )
    assert moved > 500 and task_files.codes_hash(packed_of(bundle)) == task_files.codes_hash(packed_of(start))


def _group(packed):
    """The group of each column."""
    index = packed.grid.group_index
    return torch.arange(packed.shape[1]) // packed.grid.group_size if index is None else index.long()


def test_after_plain_rounding_it_is_itself():
    first, second = tiny.bundle(), tiny.bundle()
    calibrate.compress(first, steps(("peqa", TRAINED | {"bits": 3})), WORDS)
    calibrate.compress(second, steps(("rtn", {"bits": 3, "group_size": 16}), ("peqa", TRAINED)), WORDS)
    states = [b.module.state_dict() for b in (first, second)]
    assert set(states[0]) == set(states[1]) and all(
        torch.equal(states[0][k], states[1][k]) for k in states[0]
    )


def test_a_chain_takes_over_bits_and_groups_and_its_control_rounds_nothing():
    spec = RunSpec(
        "a-model", (("gptq", {"bits": 3, "group_size": 128}), ("peqa", {"bits": 8, "train_tokens": 100}))
    )
    assert (spec.recipe[1][1]["bits"], spec.recipe[1][1]["group_size"]) == (3, 128)
    ((name, values),) = spec.control().recipe
    assert name == "peqa" and not values["round"] and values["group_size"] == 128
    # nothing was rounded yet
    factors = RunSpec("a-model", (("awq", {"rounding": False}), ("peqa", {"bits": 3})))
    assert factors.recipe[1][1]["bits"] == 3 and [n for n, _ in factors.control().recipe] == ["awq", "peqa"]


@pytest.mark.parametrize(
    "step, values, told", [("rtn", {"round": False}, "rounded already"), ("smoothquant", {}, "activations")]
)
def test_a_chain_that_makes_no_sense_is_refused(step, values, told):
    with pytest.raises(BadChain, match=told):
        calibrate.compress(tiny.bundle(), steps((step, {}), ("peqa", values)), WORDS)


# --- tasks ---


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(a model of task A, files of A and B, the same model tuned to B by itself)."""
    folder, made = tmp_path_factory.mktemp("tasks"), []
    for name, text in (("a", WORDS), ("b", OTHER)):
        bundle, outcome = tuned(text, bits=3)
        (folder / name).write_bytes(outcome.files[task_files.FILE])
        made.append(bundle)
    return made[0], folder / "a", folder / "b", made[1]


def test_tasks_go_in_and_out(two):
    bundle, a, b, alone = two
    bundle = copy.deepcopy(bundle)
    ids, codes = tiny.ids(2), {p: m.codes for p, m in packed_of(bundle).items()}
    first = tiny.logits(bundle, ids)
    task_files.load(bundle, b)
    second = tiny.logits(bundle, ids)
    task_files.load(bundle, a)
    assert torch.equal(tiny.logits(bundle, ids), first) and not torch.equal(first, second)
    assert torch.equal(second, tiny.logits(copy.deepcopy(alone), ids)), "the model that was trained on B"
    assert all(packed_of(bundle)[p].codes is t for p, t in codes.items())
    with torch.no_grad():

        def losses(text):
            return float(language_loss(bundle, text))

        own, other = losses(WORDS), losses(OTHER)
        task_files.load(bundle, b)
        assert losses(OTHER) < other and losses(WORDS) > own


def test_a_model_that_serves_takes_the_task_too(two):
    """Tiles and the decode step made from the old scales are of no use any more."""
    bundle, a, b, alone = two
    bundle = copy.deepcopy(bundle)
    ids = tiny.ids(1, 8)

    def said(m):
        return [int(t) for t in sample.generate(m, ids, 24)]

    first = said(bundle)
    engine.serve(bundle)
    task_files.load(bundle, b)
    assert said(bundle) == said(copy.deepcopy(alone))
    task_files.load(bundle, a)
    assert said(bundle) == first


def test_a_file_of_other_integers_is_refused_and_changes_nothing(two, tmp_path):
    a = two[1]
    for values, family in (
        ({"bits": 4}, "llama"),
        ({"bits": 3, "group_size": 32}, "llama"),
        ({"bits": 3}, "qwen2"),
    ):
        bundle, _ = tuned(family=family, train_tokens=0, **values)
        before = tiny.logits(bundle, tiny.ids(2))
        with pytest.raises(task_files.TaskRefused, match="other integers"):
            task_files.load(bundle, a)
        assert torch.equal(tiny.logits(bundle, tiny.ids(2)), before)
    (tmp_path / "broken").write_bytes(b"nothing")
    artifact.save(two[0], tmp_path / "m", {})
    for file in (tmp_path / "broken", tmp_path / "none", tmp_path / "m" / artifact.WEIGHTS):
        with pytest.raises(task_files.TaskRefused):
            task_files.load(two[0], file)
    served = copy.deepcopy(two[0])
    engine.prepare(served)
    if any(p.prepared for p in packed_of(served).values()):  # the C kernels serve here
        with pytest.raises(task_files.TaskRefused, match="serves already"):
            task_files.load(served, a)


def test_one_code_that_differs_is_noticed(two):
    bundle = copy.deepcopy(two[0])
    packed = packed_of(bundle)["model.layers.1.self_attn.o_proj"]
    packed.codes[3, 2] ^= 1
    with pytest.raises(task_files.TaskRefused, match="other integers"):
        task_files.load(bundle, two[1])


def test_the_file_holds_the_scales_and_nothing_else(two):
    scales = load_file(two[1])
    rows = {p: m.grid.scale for p, m in packed_of(two[0]).items()}
    assert set(scales) == set(rows) and all(torch.equal(scales[p], rows[p]) for p in rows)
    assert two[1].stat().st_size < 2 * sum(s.numel() for s in rows.values()) + 4_096


def test_a_task_weighs_what_the_paper_tells():
    """2 bytes a row: 311,040 for the 135M model, 2.72 MB for LLaMA-7B; b + (16 + b) / in bits a weight."""
    llama = Geometry("llama", 4096, 32_000, 2048, False, (LayerGeometry(32, 32, 128, 11_008),) * 32)
    small = next(
        e.geometry for e in CATALOGUE.values() if e.geometry.hidden == 576 and len(e.geometry.layers) == 30
    )
    rows = [sum(shape[0] for _, _, shape in arch.linear_shapes(g)) for g in (small, llama)]
    assert rows == [155_520, 1_359_872]
    for bits in (2, 3, 4):
        stored = cost((4096, 4096), PeqaParams(bits=bits), 0).bytes
        assert 8 * stored / 4096**2 == pytest.approx(bits + (16 + bits) / 4096)


@pytest.mark.parametrize("group_size", [-1, 16])
def test_stored_bytes_are_what_the_cost_promised(group_size):
    bundle, _ = tuned(bits=3, group_size=group_size, train_tokens=0)
    for packed in packed_of(bundle).values():
        assert packed.stored_bytes() == cost(packed.shape, PeqaParams(bits=3, group_size=group_size), 0).bytes
        assert torch.equal(integers(packed) * packed.grid.columns()[0], packed.stored())


# --- the control ---


def test_the_control_trains_as_many_factors_of_unrounded_weights():
    spec = RunSpec("a-model", (("peqa", {"bits": 2, "train_tokens": 100}),))
    off = spec.control().methods[0][1]
    assert off == PeqaParams(bits=2, round=False, train_tokens=100) and spec.control().control() is None
    assert spec.without_training().methods[0][1].train_tokens == 0
    bundle = tiny.bundle()
    before = tiny.logits(bundle, tiny.ids(2))
    scaled, stored, _ = adapt(bundle, PeqaParams(round=False, group_size=16))
    assert torch.equal(tiny.logits(bundle, tiny.ids(2)), before) and not stored
    release(bundle, scaled)
    held = {p: m.weight.clone() for p, m in bundle.module.named_modules() if isinstance(m, torch.nn.Linear)}
    outcome = calibrate.compress(bundle, steps(("peqa", TRAINED | {"round": False})), WORDS)
    facts = next(n.facts for n in outcome.notes if n.code == "trained")
    assert facts["best"] < facts["before"] and not outcome.files
    path = "model.layers.0.mlp.up_proj"
    ratio = (bundle.module.get_submodule(path).weight / held[path]).unflatten(1, (-1, 16))
    assert torch.allclose(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-4), "one factor a group"
    assert float((ratio - 1).abs().max()) > 1e-3


def test_no_gain_is_told_and_leaves_plain_rounding():
    start, _ = tuned(bits=4, train_tokens=0)
    bundle = tiny.bundle()
    outcome = calibrate.compress(
        bundle, steps(("peqa", TRAINED | {"bits": 4})), WORDS, recorder=Recorder(enough=lambda: True)
    )
    assert "training_no_gain" in {n.code for n in outcome.notes}
    states = (m.module.state_dict() for m in (bundle, start))
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))
    assert task_files.FILE in outcome.files


def test_the_same_seed_gives_the_same_file():
    bundle, texts = tiny.bundle(), Context(WORDS, Recorder(seed=3))
    made = [compress(bundle, texts, PeqaParams(**TRAINED)).files[task_files.FILE] for _ in range(2)]
    assert made[0] == made[1]


# --- what the paper claims, on a micro language ---


def test_scales_win_back_what_rounding_lost_and_take_up_another_domain(pytestconfig):
    same, other = (chain_language.text(2048, 5, dialect) for dialect in (0, 1))
    start, moved = {"train_tokens": 0}, {"train_tokens": 16_000, "learning_rate": 0.03}
    gains = []
    between = ((3, 60_000),) if pytestconfig.getoption("--all") else ()
    for bits, tokens in ((4, 60_000), *between, (2, 24_000)):
        tuned_here, found = {"train_tokens": tokens, "learning_rate": 5e-3}, {}
        for name, text, values in (
            ("rounded", same, start),
            ("tuned", same, tuned_here),
            ("moved", other, moved),
        ):
            if name == "moved" and bits == 3:
                continue
            bundle = chain_language.teacher()
            calibrate.compress(bundle, steps(("peqa", {"bits": bits} | values)), text)
            found[name] = [chain_language.perplexity(bundle, dialect=d) for d in (0, 1)]
        gains.append(found["rounded"][0] / found["tuned"][0])
        assert found["tuned"][0] < found["rounded"][0]
        assert bits == 3 or found["moved"][1] < 0.7 * found["rounded"][1]
    assert gains == sorted(gains), "the fewer bits, the more there is to win back"


# --- from end to end ---


def test_a_run_saves_its_task_and_the_chat_speaks_it(tmp_path, capsys):
    from evaluation.commands import task_files as command
    from evaluation.running.estimate import estimate
    from evaluation.running.run import run
    from evaluation.store import Store

    (tmp_path / "test.txt").write_text("".join(f"line {i} of a small text, {i * i}\n" for i in range(200)))
    (tmp_path / "valid.txt").write_text(
        "".join(f"line {i + 300} of a small text, {i**3}\n" for i in range(200))
    )
    store = Store(tmp_path / "home", shipped=None)
    results = []
    for tokens in (0, 4_096):
        values = TRAINED | {"bits": 3, "train_tokens": tokens}
        spec = RunSpec(
            tiny.folder("llama"),
            (("peqa", values),),
            text=str(tmp_path / "test.txt"),
            window=64,
            tokens=512,
            calibration=str(tmp_path / "valid.txt"),
            calibration_tokens=1024,
            table_bits=16,
        )
        results.append(run(spec, store=store, timings=False))
        assert results[-1].status == "ok", results[-1].error
    # a tiny model's header
    assert estimate(spec).file_bytes == pytest.approx(results[1].metrics["file_bytes"], rel=0.15)
    files = [store.artifact_folder(r.artifact) / task_files.FILE for r in results]
    text = ["--text", str(tmp_path / "test.txt"), "--tokens", "512", "--window", "64"]
    assert command.main([str(files[0].parent), str(files[1]), str(files[0]), *text, "--prompt", "line"]) == 0
    rows = json.loads(capsys.readouterr().out.strip().splitlines()[-1])["tasks"]
    assert [r["file"] for r in rows] == [None, str(files[1]), str(files[0])]
    assert rows[0]["perplexity"] == rows[2]["perplexity"] != rows[1]["perplexity"]
    assert rows[1]["perplexity"] == pytest.approx(results[1].metrics["perplexity"], rel=1e-3)
    assert rows[0]["text"].startswith("line")
    sides = {e["side"] for e in talk.said(store, results[0].id, "hello", max_tokens=4)}
    assert sides == {"original", "compressed"}
