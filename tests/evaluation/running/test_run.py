"""Runs from end to end on a tiny model: results, baselines and ends of every kind."""

from __future__ import annotations

import dataclasses
import errno
import html
import shutil

import pytest
import torch

from compression import artifact, likelihood
from evaluation.page.cards import run_card
from evaluation.page.words import Words
from evaluation.running import stages
from evaluation.running.clock import NOT_COMPUTED
from evaluation.running.run import run
from evaluation.running.stages import label
from evaluation.spec import RunSpec
from evaluation.store import Store
from kernels import cpu, home
from tests import hostile, tiny

REQUIRED = [
    "perplexity",
    "perplexity_stderr",
    "baseline_perplexity",
    "kl_divergence_mean",
    "kl_divergence_median",
    "kl_divergence_p90",
    "kl_divergence_p99",
    "kl_divergence_max",
    "same_top_token_rate",
    "short_context_kl_divergence_mean",
    "short_context_same_top_token_rate",
    "next_token_accuracy",
    "next_token_accuracy_stderr",
    "bits_per_byte",
    "repeat_rate",
    "first_difference_tokens",
    "weight_bits_per_weight",
    "model_bits_per_parameter",
    "file_bytes",
    "baseline_file_bytes",
    "resident_weight_bytes",
    "baseline_resident_weight_bytes",
    "peak_memory_bytes",
    "kv_cache_bytes_per_token",
    "time_to_first_token_ms",
    "baseline_time_to_first_token_ms",
    "time_per_output_token_ms",
    "baseline_time_per_output_token_ms",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "baseline_decode_tokens_per_second",
    "compress_seconds",
    "evaluate_seconds",
]


def spec(place, *recipe, **more):
    fields = dict(
        text=str(place / "test.txt"),
        calibration=str(place / "valid.txt"),
        window=64,
        tokens=1024,
        calibration_tokens=1024,
        table_bits=8,
    )
    return RunSpec(
        tiny.folder("llama"), recipe or (("gptq", {"bits": 4, "group_size": 16}),), **fields | more
    )


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home", shipped=None)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A store for tests that look at their own results alone: the original is measured once for all."""
    return Store(tmp_path_factory.mktemp("shared"), shipped=None)


@pytest.fixture(autouse=True)
def few_witnesses(request, monkeypatch):
    """Only the first test takes the witness of its run; what it is good for stands in test_witness.py."""
    if request.function is not test_a_run_measures_everything:
        monkeypatch.setattr(stages.witness, "witness", lambda *args: {})


def test_a_run_measures_everything(place, store):
    events = []
    result = run(spec(place), events.append, store=store)
    assert result.status == "ok", result.error
    missing = [k for k in REQUIRED if k not in result.metrics]
    assert not missing
    m = result.metrics
    assert m["file_bytes"] == (store.artifact_folder(result.artifact) / "model.safetensors").stat().st_size
    assert m["perplexity_ratio"] == pytest.approx(m["perplexity"] / m["baseline_perplexity"], rel=1e-6)
    assert m["kv_cache_bytes_per_token"] == 2 * 2 * 2 * 12 * 4, (
        "two layers, keys and values, two heads of 12, float32"
    )
    stages = dict.fromkeys(e["stage"] for e in events)
    assert [s for s in stages if s not in NOT_COMPUTED] == [  # the kernels may be built meanwhile
        "baseline",
        "compress",
        "tables",
        "save",
        "evaluate",
        "generate",
        "latency",
    ]
    assert all(e["seconds_left"] >= 0 for e in events)
    assert store.get_id(result.id) == result and store.get(result.key) == result
    loaded = artifact.load(store.artifact_folder(result.artifact))
    from compression import texts

    cut = texts.windows(
        texts.load_text(str(place / "test.txt"), "evaluation"),
        loaded.tokenizer,
        "raw",
        64,
        1024,
        "evaluation",
    )
    again = float(likelihood.losses(loaded, cut.ids).mean().exp())
    assert again == pytest.approx(m["perplexity"], rel=2e-3), (
        "the model on disk is the model that was measured"
    )


def test_a_timing_says_what_ran_and_what_the_dense_model_takes(place, store):
    if cpu.wait() is None:
        pytest.skip(cpu.status())
    for activations in ("exact", "int8"):
        timing = run(spec(place, activations=activations), store=store).timings[0]
        assert timing["kernel"] == [f"grouped integers, {activations} activations (C, {cpu.instructions()})"]
        assert timing["loop"] == "decode step (C)" and timing["warm_ups"] and timing["rounds"]
        ways = ("compressed", "original", "original_float32", "transformers")
        assert all(timing[way]["time_per_output_token_ms"] > 0 for way in ways)
        limit = timing["limit"]
        moved = limit["bytes_per_token"] / (timing["compressed"]["time_per_output_token_ms"] / 1e3)
        assert limit["share_of_read_bandwidth"] == pytest.approx(
            moved / (1e9 * limit["read_gbytes_per_second"])
        )


@pytest.mark.parametrize("bits", [8, 4])
def test_the_original_with_a_cache_of_few_bits(place, shared, bits):
    """Measured against the original, in what the cache loses, and stored as a model of its own."""
    result = run(spec(place, ("none", {}), cache_bits=bits), store=shared, timings=False)
    assert result.status == "ok", result.error
    m = result.metrics
    assert m["kv_cache_bytes_per_token"] == 2 * 2 * 2 * (12 * bits // 8 + 2)
    assert m["baseline_kv_cache_bytes_per_token"] == 2 * 2 * 2 * 12 * 4
    assert m["kl_divergence_mean"] > 0 and m["weight_bits_per_weight"] == 16
    assert artifact.load(shared.artifact_folder(result.artifact)).cache_bits == bits
    row = next(r for r in shared.rows() if r["id"] == result.id)
    assert Words("en").run(row) == f"original weights, cache in {bits} bits" and label(result.spec).endswith(
        f"cache {bits} bits"
    )
    card = run_card(Words("en"), result, shipped=False, artifact=True, here=False, chat=True)
    taken = [f"{m[k]:.0f}\u00a0B" for k in ("kv_cache_bytes_per_token", "baseline_kv_cache_bytes_per_token")]
    assert (
        f"A token of context takes {taken[0]} of cache ({bits} bits) instead of the original's {taken[1]}."
        in html.unescape(card)
    )


def test_without_kernels_the_result_says_so(place, store, monkeypatch):
    monkeypatch.setattr(cpu, "library", lambda: None)
    monkeypatch.setattr(cpu, "wait", lambda: None)
    result = run(spec(place), store=store)
    assert {n["code"] for n in result.notes} >= {"plain_kernel", "plain_loop"}
    assert result.timings[0]["loop"] == "transformers" and result.timings[0]["limit"] == {}
    assert result.timings[0]["kernel"] == ["dequantise-then-multiply (PyTorch)"]


def test_bits_per_weight_are_the_bytes_on_disk(place, shared):
    """E14."""
    from safetensors import safe_open

    result = run(spec(place), store=shared, timings=False)
    file = shared.artifact_folder(result.artifact) / "model.safetensors"
    with safe_open(file, "pt") as f:
        sizes = {
            k: f.get_tensor(k).numel() * f.get_tensor(k).element_size()
            for k in f.keys()
            if "layers" in k and "packed" in k
        }
    weights = (
        sum(o * i for o, i in [(48, 48), (24, 48), (24, 48), (48, 48), (80, 48), (80, 48), (48, 80)]) * 2
    )
    assert result.metrics["weight_bits_per_weight"] == pytest.approx(
        8 * sum(sizes.values()) / weights, rel=1e-9
    )


CUT = ("llm_pruner", {"protect_first": 0.0, "protect_last": 0.0, "samples": 4, "sample_tokens": 16})


@pytest.mark.parametrize(
    ("step", "left"),
    [
        (("wanda", {"sparsity": 0.5}), lambda w: 0.5 * w),
        (("sparsegpt", {"pattern": "2:4", "quantize": True}), lambda w: 0.5 * w),
        (("rtn", {"bits": 4}), lambda w: w),
    ],
)
def test_the_storage_truth(place, shared, step, left):
    """What is left, what it takes dense, and what it takes as it is stored; the card says it in words."""
    from evaluation.page.cards import run_card
    from evaluation.page.words import Words

    result = run(spec(place, step, table_bits=16), store=shared, timings=False)
    m, weights = result.metrics, 2 * (48 * 48 * 2 + 48 * 24 * 2 + 3 * 48 * 80)
    assert m["matrix_weights"] == weights and m["dense_matrix_bytes"] == 2 * weights
    assert m["kept_weights"] == pytest.approx(left(weights), rel=0.01)
    assert m["matrix_bytes"] * 8 / weights == pytest.approx(m["weight_bits_per_weight"])
    card = run_card(Words("en"), result, shipped=False, artifact=True, here=False, chat=False)
    assert ("weights are left" in card) == (m["kept_weights"] < weights)


def test_a_cut_model_is_measured_against_the_whole_one(place, store):
    """Both bit figures divide by the original's counts; it is multiplied as the original is, which is no
    fallback."""
    from evaluation.running.estimate import estimate

    cut, both = (
        run(spec(place, *steps, table_bits=16), store=store)
        for steps in ([CUT], [CUT, ("rtn", {"bits": 8, "group_size": 16})])
    )
    assert cut.status == both.status == "ok", (cut.error, both.error)
    whole = sum(o * i for o, i in [(48, 48), (24, 48), (24, 48), (48, 48), (80, 48), (80, 48), (48, 80)])
    left = sum(o * i for o, i in [(24, 48), (24, 48), (24, 48), (48, 24), (60, 48), (60, 48), (48, 60)])
    assert cut.metrics["weight_bits_per_weight"] == pytest.approx(16 * left / whole)
    assert both.metrics["weight_bits_per_weight"] < 0.65 * cut.metrics["weight_bits_per_weight"]
    for result in (cut, both):
        assert estimate(result.spec).weight_bits == pytest.approx(
            result.metrics["weight_bits_per_weight"], rel=0.02
        )
        assert "plain_kernel" not in {n["code"] for n in result.notes}
    assert [n["code"] for n in cut.notes if n["code"] == "structures_removed"] == ["structures_removed"]
    if cut.timings[0]["loop"] == "decode step (C)":
        assert cut.timings[0]["kernel"] == ["16-bit weights, whole layers (C)"]
        assert "16-bit weights, whole layers (C)" not in both.timings[0]["kernel"]


STUDENT = {"kept": 0.5, "train_tokens": 512, "prompt_tokens": 4, "response_tokens": 8}


@pytest.mark.parametrize("name", ["gkd", "minillm"])
def test_a_distilled_student_goes_all_the_way(place, shared, name, tmp_path):
    """Measured, saved, loaded, listed on the front, talked to, exported; half of the layers, half of the
    weights, half of the cache."""
    from compression import export, sample, texts
    from evaluation.measuring import judging, metrics
    from evaluation.page import pareto
    from evaluation.page.cards import run_card
    from evaluation.page.words import Words
    from evaluation.running.estimate import estimate

    told = []
    result = run(spec(place, (name, STUDENT), table_bits=16), told.append, store=shared)
    assert result.status == "ok", result.error
    assert not [k for k in REQUIRED if k not in result.metrics]
    m = result.metrics
    assert m["file_bytes"] < m["baseline_file_bytes"] and m["kv_cache_bytes_per_token"] == 2 * 2 * 12 * 4
    assert m["weight_bits_per_weight"] == 8 and m["kept_weights"] == m["matrix_weights"] / 2
    assert estimate(result.spec).weight_bits == 8 and estimate(result.spec).file_bytes == pytest.approx(
        m["file_bytes"], rel=0.05
    )
    notes = {n["code"]: n["facts"] for n in result.notes}
    assert notes["student_layers"] == {"layers": 1, "of": 2} and {
        "distilled",
        "divergences",
        "samples",
    } <= set(notes)
    assert any(e["stage"] == "train" for e in told)
    judged = judging.of(result)["own_reverse_kl"]
    assert len(judged.after) == len(judged.before) == 200
    assert m["own_reverse_kl"] == pytest.approx(notes["divergences"]["own_reverse_after"], rel=1e-5)

    loaded = artifact.load(shared.artifact_folder(result.artifact))
    cut = texts.windows(
        texts.load_text(str(place / "test.txt"), "evaluation"),
        loaded.tokenizer,
        "raw",
        64,
        1024,
        "evaluation",
    )
    assert float(likelihood.losses(loaded, cut.ids).mean().exp()) == pytest.approx(m["perplexity"], rel=2e-3)
    assert len(sample.complete(loaded, "line 1", 4)) > len("line 1")

    row = next(r for r in shared.rows() if r["id"] == result.id)
    assert metrics.value(row, "own_reverse_kl") == m["own_reverse_kl"] > 0
    assert row["family"] == "distillation" and metrics.value(row, "file_bytes") == m["file_bytes"]
    assert result.id in pareto.front(
        pareto.comparable([row], row["model"], pareto.comparison(row)), "file_bytes", "perplexity"
    )
    card = run_card(
        Words("en"), result, shipped=False, artifact=True, here=True, chat=True, relatives={"control": None}
    )
    assert "1 of its teacher" in card and "not by perplexity alone" in card and "50 % of the layers" in card
    for form in export.offers(shared.artifact_folder(result.artifact)):
        export.write(artifact.load(shared.artifact_folder(result.artifact)), tmp_path / form, form)

    rounded = run(
        spec(place, (name, STUDENT), ("rtn", {"bits": 8, "group_size": 16}), table_bits=16),
        store=shared,
        timings=False,
    )
    assert rounded.status == "ok", rounded.error
    assert rounded.metrics["file_bytes"] < m["file_bytes"]
    assert not rounded.judged and "own_reverse_kl" not in rounded.metrics, "another model than the judged one"


def test_another_model_may_be_the_student_by_its_content(place, shared, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(tiny.folder("qwen3"), other)
    values = {"student": str(other), "train_tokens": 0}
    result = run(spec(place, ("gkd", values), table_bits=16), store=shared, timings=False)
    assert result.status == "ok", result.error
    assert next(n["facts"] for n in result.notes if n["code"] == "student_other") == {
        "layers": 2,
        "of": 2,
        "name": "other",
    }
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    save_file({k: 1.01 * v for k, v in weights.items()}, other / "model.safetensors", {"format": "pt"})
    again = run(spec(place, ("gkd", values), table_bits=16), store=shared, timings=False)
    assert again.key != result.key, "the same name, another student"


def test_a_public_page_takes_no_student_from_its_own_disk(place, shared):
    found = {}
    for path in (tiny.folder("llama"), "/etc", "./models"):
        asked = dataclasses.replace(
            spec(place, ("gkd", {"student": path})), text="builtin", calibration="builtin", model="gpt2"
        )
        found[path] = run(asked, store=shared, allow_paths=False).error["code"]
    assert set(found.values()) == {"path_refused"}
    assert run(spec(place, ("gkd", {"student": "nosuch"})), store=shared).error["code"] == "unknown_model"


def test_the_original_is_measured_once_and_equals_itself(place, store, monkeypatch):
    first = run(spec(place, ("none", {})), store=store, timings=False)
    assert first.status == "ok" and first.spec.is_original and "kl_divergence_mean" not in first.metrics
    stages = []
    second = run(
        spec(place, ("rtn", {"bits": 8, "group_size": 16}), table_bits=16),
        lambda e: stages.append(e["stage"]),
        store=store,
        timings=False,
    )
    assert "baseline" not in stages
    assert second.metrics["baseline_perplexity"] == pytest.approx(first.metrics["perplexity"], rel=1e-9)
    assert second.metrics["kl_divergence_mean"] < 1e-3 and second.metrics["same_top_token_rate"] > 0.97


def test_a_table_of_chains_is_measured_like_any_other(place, store, monkeypatch):
    """No calibration; rounding tables doesn't apply to it; without the C kernels the result says what
    serves."""
    asked = spec(place, ("tensorgpt", {"rank": 2, "head": "cores"}))
    result = run(asked, store=store)
    assert result.status == "ok", result.error
    assert not [k for k in REQUIRED if k not in result.metrics]
    assert (
        result.metrics["weight_bits_per_weight"] == 16
        and result.metrics["file_bytes"] < result.metrics["baseline_file_bytes"]
    )
    assert [n["code"] for n in result.notes if n["code"] == "table_kept"] and result.layers[0][
        "role"
    ] == "embedding"
    monkeypatch.setattr(cpu, "library", lambda: None)
    monkeypatch.setattr(cpu, "wait", lambda: None)
    plain = run(asked, store=store, again=True)
    assert plain.status == "ok", plain.error
    assert {"plain_kernel", "plain_loop"} <= {n["code"] for n in plain.notes}
    assert plain.metrics["perplexity"] == pytest.approx(result.metrics["perplexity"], rel=1e-3)


def test_comparing_the_model_with_itself_gives_nothing(place, shared):
    """E16: no compression, exact zero divergence."""
    result = run(spec(place, ("wanda", {"sparsity": 0.0}), table_bits=16), store=shared, timings=False)
    assert result.metrics["kl_divergence_max"] == pytest.approx(0, abs=1e-6)
    assert result.metrics["same_top_token_rate"] == 1 and result.metrics["perplexity_ratio"] == pytest.approx(
        1, abs=1e-7
    )


def test_the_same_run_again_is_answered_from_the_store(place, store):
    first = run(spec(place), store=store, timings=False)
    stages = []
    again = run(spec(place), lambda e: stages.append(e["stage"]), store=store, timings=False)
    assert again.id == first.id and set(stages) <= set(NOT_COMPUTED)
    third = run(spec(place), store=store, timings=False, again=True)
    assert third.id != first.id
    assert len([r for r in store.own() if r.spec.is_original]) == 2, "the original is measured again too"
    assert {k: third.metrics[k] for k in ("perplexity", "kl_divergence_mean", "file_bytes")} == {
        k: first.metrics[k] for k in ("perplexity", "kl_divergence_mean", "file_bytes")
    }


def test_another_way_to_read_and_to_stop_is_another_run(place, store, tmp_path):
    """Equal weights, equal config: the model that is saved ends its answers as its own folder says."""
    folder = tmp_path / "m"
    shutil.copytree(tiny.folder("llama"), folder)
    asked = dataclasses.replace(spec(place), model=str(folder))
    first = run(asked, store=store, timings=False)
    hostile.put("generation_config.json", {"eos_token_id": [5, 257]})(folder)
    second = run(asked, store=store, timings=False)
    stops = [
        artifact.load(store.artifact_folder(r.artifact)).module.generation_config.eos_token_id
        for r in (first, second)
    ]
    assert first.id != second.id and stops == [257, [5, 257]]


def test_a_chain_stores_both_savings(place, shared):
    chained = run(
        spec(place, ("wanda", {"pattern": "2:4"}), ("gptq", {"bits": 4, "group_size": 16})),
        store=shared,
        timings=False,
    )
    dense = run(spec(place), store=shared, timings=False)
    assert chained.status == "ok", chained.error
    assert chained.metrics["file_bytes"] < dense.metrics["file_bytes"]
    assert {row["method"] for row in chained.layers} == {"wanda", "gptq"}


@pytest.mark.parametrize(
    "changes, code",
    [
        ({"text": "nosuchtext"}, "unknown_text"),
        ({"calibration": "same"}, "same_text"),
        ({"tokens": 999_936}, "text_too_short"),
        ({"recipe": (("rtn", {"bits": 4}), ("svd", {}))}, "bad_chain"),
        ({"device": "cuda"}, "no_gpu"),
        ({"model": "nosuch"}, "unknown_model"),
    ],
)
def test_a_visitors_mistakes_end_in_a_record(place, shared, changes, code):
    if code == "no_gpu" and torch.cuda.is_available():
        pytest.skip("a GPU is here")
    changed = dict(changes)
    if changed.get("calibration") == "same":
        changed["calibration"] = str(place / "test.txt")
    result = run(dataclasses.replace(spec(place), **changed), store=shared)
    assert (result.status, result.error["code"]) == ("failed", code), result.error
    assert result.error["message"] and shared.get_id(result.id) == result


def test_a_full_disk_is_told_and_leaves_no_half_model(place, store, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifact, "_write", full)
    result = run(spec(place), store=store, timings=False)
    assert (result.status, result.error["code"]) == ("failed", "disk_full")
    assert list((store.home / "artifacts").iterdir()) == []
    monkeypatch.undo()
    assert run(spec(place), store=store, timings=False).status == "ok"


def test_a_disk_that_fills_at_the_last_write_is_told(place, store, monkeypatch):
    run(spec(place, ("none", {})), store=store, timings=False)
    real = Store.put

    def full(self, result):
        if result.status == "ok" and result.artifact:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, result)

    monkeypatch.setattr(Store, "put", full)
    result = run(spec(place), store=store, timings=False)
    assert (result.status, result.error["code"]) == ("failed", "disk_full")
    assert not list((store.home / "artifacts").glob("*"))


def test_out_of_memory_is_its_own_end(place, store, monkeypatch):
    def greedy(*args, **kwargs):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate"
        )

    monkeypatch.setattr(stages, "compress_and_compare", greedy)
    result = run(spec(place), store=store)
    assert (result.status, result.error["code"]) == ("oom", "out_of_memory")


def test_a_broken_model_has_no_number(place, store, monkeypatch):
    """A perplexity that isn't finite is an error, not a point."""
    real = stages.compress_and_compare

    def poisoned(order, read, loaded, original):
        with torch.no_grad():
            loaded.bundle.module.model.norm.weight.fill_(float("nan"))
        return real(order, read, loaded, original)

    monkeypatch.setattr(stages, "compress_and_compare", poisoned)
    result = run(spec(place, ("rtn", {"bits": 4, "group_size": 16})), store=store)
    assert (result.status, result.error["code"]) == (
        "failed",
        "broken_model",
    ) and "perplexity" not in result.metrics


def test_nobody_removes_the_originals_measurements_while_its_record_is_made(place, store, monkeypatch):
    """A store that makes room between the two would leave the run without what it compares with."""
    removed, real = [], stages.memory.sizes

    def sizes(bundle, ids):
        removed.extend(home.remove_unused(folder) for folder in (store.home / "baselines").iterdir())
        return real(bundle, ids)

    monkeypatch.setattr(stages.memory, "sizes", sizes)
    assert run(spec(place), store=store, timings=False).status == "ok"
    assert removed and not any(removed)


def test_cancelling_says_so(place, store):
    result = run(spec(place), cancelled=lambda: True, store=store)
    assert (result.status, result.error["code"]) == ("cancelled", "cancelled")


def test_a_student_that_reads_otherwise_is_refused_before_it_is_trained(place, shared, tmp_path):
    """Its tokens are other words, and no figure of the original compares with them."""
    tiny.original("gpt2").save_pretrained(tmp_path / "other")
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["->"])
    tokenizer.save_pretrained(tmp_path / "other")
    result = run(
        spec(place, ("mt_cot", {"student": str(tmp_path / "other"), "teaching": "oracle"})),
        store=shared,
        timings=False,
    )
    assert (result.status, result.error["code"]) == (
        "failed",
        "bad_param",
    ) and "another tokenizer" in result.error["message"]
