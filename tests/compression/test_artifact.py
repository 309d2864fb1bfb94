"""A compressed model on disk: the same logits in a fresh load, whole or not at all, with its licence."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest
import torch

from compression import arch, artifact, calibrate, get, models, sample
from compression.base import ModelUnavailable
from tests import hostile, tiny

RECIPES = {
    "gptq": (("gptq", {"bits": 3, "group_size": 16}),),
    "act-order index": (("gptq", {"bits": 4, "group_size": 16, "static_groups": False}),),
    "wanda 2:4 + gptq": (("wanda", {"pattern": "2:4"}), ("gptq", {"bits": 4, "group_size": 16})),
    "magnitude": (("magnitude", {"sparsity": 0.5}),),
    "svd_llm": (("svd_llm", {"removed": 0.3}),),
    "pca, new biases": (("pca", {"removed": 0.3}),),
    "none": (("none", {}),),
}


def compressed(recipe, family="llama", **more):
    bundle = tiny.bundle(family)
    steps = tuple((get(n), get(n).params.parse(p)) for n, p in recipe)
    calibrate.compress(bundle, steps, tiny.ids(8), **more)
    return bundle


@pytest.mark.parametrize("name", RECIPES)
def test_round_trip_gives_the_same_logits(name, tmp_path):
    bundle = compressed(RECIPES[name])
    size = artifact.save(bundle, tmp_path / "model", {"label": name})
    again = artifact.load(tmp_path / "model")
    tokens = tiny.ids(3)
    difference = (tiny.logits(again, tokens) - tiny.logits(bundle, tokens)).abs().max()
    assert difference < 6e-3, "norms and tables are stored in 16 bits, everything packed bit for bit"
    counted = artifact.stored_bytes(bundle)
    assert (
        size == (tmp_path / "model" / "model.safetensors").stat().st_size
        and counted < size < counted + 20_000
    )
    for path, _, _ in arch.linears(bundle.module):
        before, after = bundle.module.get_submodule(path), again.module.get_submodule(path)
        if hasattr(before, "packed"):
            assert torch.equal(before.packed.dequantize(), after.packed.dequantize())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_with_rounded_tables_and_activations(family, tmp_path):
    bundle = compressed(RECIPES["gptq"], family, table_bits=8, activations="int8")
    artifact.save(bundle, tmp_path / "model", {})
    again = artifact.load(tmp_path / "model")
    difference = (tiny.logits(again, tiny.ids(3)) - tiny.logits(bundle, tiny.ids(3))).abs().max()
    assert difference < 2e-2


@pytest.mark.parametrize("name", [n for n in hostile.CASES if not hostile.CASES[n].code])
def test_whatever_loads_can_be_saved_and_loads_again(name, tmp_path):
    bundle = models.load(str(hostile.CASES[name].build(tmp_path / "m")))
    rounding = get("rtn")
    calibrate.compress(bundle, ((rounding, rounding.params(bits=8, group_size=16)),), None)
    artifact.save(bundle, tmp_path / "saved", {})
    again = artifact.load(tmp_path / "saved")
    difference = (tiny.logits(again, tiny.ids(3)) - tiny.logits(bundle, tiny.ids(3))).abs().max()
    assert difference < 6e-3 and sample.stop_ids(again) == sample.stop_ids(bundle)
    assert again.tokenizer.chat_template == bundle.tokenizer.chat_template


def test_a_second_save_of_a_loaded_model_is_the_same_file(tmp_path):
    """Nothing is rounded twice."""
    artifact.save(compressed(RECIPES["gptq"], table_bits=8), tmp_path / "a", {})
    artifact.save(artifact.load(tmp_path / "a"), tmp_path / "b", {})
    a, b = ((tmp_path / n / "model.safetensors").read_bytes() for n in "ab")
    assert a == b


def test_three_lines_load_it_without_the_app(tmp_path):
    artifact.save(compressed(RECIPES["gptq"]), tmp_path / "model", {})
    code = (
        "from compression import artifact, sample\n"
        f"bundle = artifact.load({str(tmp_path / 'model')!r})\n"
        "print(repr(sample.complete(bundle, 'The capital', 5)))\n"
        "import sys; assert 'gradio' not in sys.modules and 'evaluation' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("'The capital")


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    bundle = compressed(RECIPES["gptq"])
    artifact.save(bundle, tmp_path / "model", {"label": "first"})

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifact.beside, "write", full)
    with pytest.raises(OSError):
        artifact.save(bundle, tmp_path / "model", {"label": "second"})
    assert [f.name for f in tmp_path.iterdir()] == ["model"]
    assert json.loads((tmp_path / "model" / "compression.json").read_text())["about"] == {"label": "first"}


def test_damage_and_other_versions_are_told(tmp_path):
    folder = tmp_path / "model"
    artifact.save(compressed(RECIPES["gptq"]), folder, {})
    manifest = json.loads((folder / "compression.json").read_text())
    (folder / "compression.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(ModelUnavailable) as error:
        artifact.load(folder)
    assert error.value.code == "artifact_version"
    with pytest.raises(ModelUnavailable):
        artifact.load(tmp_path / "nowhere")


def test_licence_and_origin_travel_along(tmp_path):
    bundle = compressed(RECIPES["gptq"])
    from pathlib import Path

    base = Path(bundle.source["folder"])
    (base / "LICENSE").write_text("the licence of the base model")
    artifact.save(bundle, tmp_path / "model", {"label": "GPTQ bits 3"})
    (base / "LICENSE").unlink()
    assert (tmp_path / "model" / "LICENSE").read_text() == "the licence of the base model"
    notice = (tmp_path / "model" / "NOTICE.txt").read_text()
    assert Path(bundle.name).name in notice or bundle.name in notice
    readme = (tmp_path / "model" / "README.md").read_text()
    assert (
        "artifact.load" in readme
        and str(base) not in readme + notice + (tmp_path / "model" / "compression.json").read_text()
    )


def test_only_originals_are_compressed(tmp_path):
    from compression import models

    artifact.save(compressed(RECIPES["gptq"]), tmp_path / "model", {})
    with pytest.raises(ModelUnavailable) as error:
        models.load(str(tmp_path / "model"))
    assert error.value.code == "already_compressed"
