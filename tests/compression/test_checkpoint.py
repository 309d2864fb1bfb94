"""What is loaded is what the files say, or nothing: hostile and broken folders, names of other programs,
equal numbers."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from compression import arch, configs, models
from compression.architectures import ARCHITECTURES
from compression.base import CompressionError
from compression.folder import Folder
from evaluation.running.estimate import geometry_for
from tests import hostile, tiny
from tests.hostile import CASES

REFUSED = [name for name, case in CASES.items() if case.code]


class Asked(io.StringIO):
    """A standard input that nobody may read."""

    def readline(self, *args):
        raise AssertionError("somebody asked on standard input")

    read = readline


@pytest.fixture(autouse=True)
def silence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Asked())
    yield
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_words(name, tmp_path):
    case = CASES[name]
    place = case.build(tmp_path / "m")
    with pytest.raises(CompressionError) as error:
        models.load(str(place))
    assert error.value.code == case.code, str(error.value)
    assert len(str(error.value)) < 700 and error.value.facts
    assert not list(tmp_path.rglob(f"*{hostile.MARK}"))


@pytest.mark.parametrize("name", [n for n in CASES if not CASES[n].code])
def test_it_loads_and_gives_the_models_own_numbers(name, tmp_path):
    case = CASES[name]
    bundle = models.load(str(case.build(tmp_path / "m")))
    assert not list(tmp_path.rglob(f"*{hostile.MARK}"))
    with torch.no_grad():
        expected = tiny.original(case.family)(tiny.ids(2)).logits
    assert torch.allclose(tiny.logits(bundle, tiny.ids(2)), expected, atol=2e-5)
    assert bool(bundle.source.get("recomputed")) is name.endswith(("masks in the file", "angles in the file"))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_table_knows_every_field_that_the_library_reads(family):
    """A field that transformers' class has and the table lacks would be left out silently."""
    config = tiny.original(family).config
    base = {
        "transformers_version",
        "architectures",
        "output_hidden_states",
        "return_dict",
        "dtype",
        "chunk_size_feed_forward",
        "is_encoder_decoder",
        "id2label",
        "label2id",
        "problem_type",
        "_name_or_path",
        "model_type",
        "rope_parameters",
        "_attn_implementation",
        "tie_encoder_decoder",
    }
    known = set(ARCHITECTURES[config.model_type].fields) | set(configs.NEVER) | base
    fields = {f.name for f in dataclasses.fields(config) if not f.name.startswith("summary_")}
    assert fields - known <= {"output_attentions", "is_decoder"}
    described = configs.read(Folder(tiny.folder(family)))
    assert described.geometry == arch.geometry_of(config)


EDITS = [
    ("llama", {"rms_norm_eps": 1e-3}),
    ("llama", {"rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}}),
    ("llama", {"hidden_act": "gelu"}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("gpt2", {"scale_attn_weights": False}),
    ("opt", {"activation_function": "gelu"}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "layer_types": None}),
]


@pytest.mark.parametrize("family, edit", EDITS)
def test_the_hash_of_a_config_follows_the_computation_alone(family, edit, tmp_path):
    place = tmp_path / "m"
    shutil.copytree(tiny.folder(family), place)
    first = models.content_hash(str(place))
    found = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(
        json.dumps(dict(reversed(found.items())) | {"use_cache": False, "note": 1, "dtype": "bfloat16"})
    )
    assert models.content_hash(str(place)) == first
    (place / "config.json").write_text(json.dumps(found | edit))
    assert models.content_hash(str(place)) != first


def test_old_and_new_places_of_rotary_parameters_are_one(tmp_path):
    place = tmp_path / "m"
    shutil.copytree(tiny.folder("llama"), place)
    found = json.loads((place / "config.json").read_text())
    first = configs.read(Folder(place)).hash
    del found["rope_parameters"]
    for more in (
        {},
        {"rope_theta": 10_000},
        {"rope_scaling": None, "rope_theta": 10_000.0},
        {"rope_scaling": {"type": "default"}},
    ):
        (place / "config.json").write_text(json.dumps(found | more))
        assert configs.read(Folder(place)).hash == first, more


def test_a_file_replaced_with_equal_size_and_date_has_another_hash(tmp_path):
    place = tmp_path / "m"
    shutil.copytree(tiny.folder("llama"), place)
    file, before = place / "model.safetensors", models.weights_hash(str(place))
    stat, raw = file.stat(), bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert models.weights_hash(str(place)) != before


def test_the_dtype_is_the_files_own(tmp_path):
    change = hostile.both(
        hostile.tensors(lambda t: {k: v.bfloat16() for k, v in t.items()}), hostile.config(dtype=...)
    )
    assert models.load(str(hostile.Case(None, change).build(tmp_path / "m"))).source["dtype"] == "bfloat16"


def test_a_snapshot_of_the_hubs_cache_is_made_of_links(tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(Path(tiny.folder("llama")).iterdir())):
        shutil.copy(file, blobs / str(i))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(i))
    assert models.load(str(snapshot)).geometry.architecture == "llama"


def test_half_a_snapshot_is_not_in_the_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--some--one" / "snapshots" / "0123"
    place.parent.mkdir(parents=True)
    CASES["shards"].build(place)
    assert models.on_disk("some/one") == place
    (place / "model-00002-of-00002.safetensors").unlink()
    assert models.on_disk("some/one") is None


def test_a_text_is_cut_into_the_same_tokens_each_time(tmp_path):
    """A tokenizer's dropout, like a model's, is for training."""
    place = CASES["as it is"].build(tmp_path / "m")
    vocabulary = json.loads((place / hostile.TOKENIZER).read_text())["model"]["vocab"] | {"ab": 258}
    hostile.tokenizer_json(model={"vocab": vocabulary, "merges": [["a", "b"]], "dropout": 0.5})(place)
    assert models.tokenizer_of(str(place))("ab" * 50)["input_ids"] == [258] * 50


@pytest.mark.parametrize(
    "name", ["1e9 layers", "unknown family", "negative layers", "config as a pipe", "wrong vocabulary"]
)
def test_an_estimate_reads_no_worse(name, tmp_path):
    if name == "wrong vocabulary":
        # seen when it is loaded
        assert geometry_for(str(CASES[name].build(tmp_path / "m"))).vocabulary == 300
        return
    with pytest.raises(CompressionError) as error:
        geometry_for(str(CASES[name].build(tmp_path / "m")))
    assert error.value.code == CASES[name].code


@pytest.mark.parametrize(
    "name",
    ["a" * 5000, "a\0b", "../x/y" * 300, "owner/na me", "owner/..", "-o/x", "o/x.git", "a/b/c", "擁有/模型"],
)
def test_odd_names_reach_nothing(name):
    with pytest.raises(CompressionError) as error:
        models.load(name)
    assert error.value.code == "unknown_model" and len(str(error.value)) < 1500
