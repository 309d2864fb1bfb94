"""A stored answer is given only while what it was measured on still lies there."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from compression import artifact, engine, models
from compression.texts import load_text
from evaluation import program
from evaluation.running.freshness import answers
from evaluation.spec import Result, RunSpec
from evaluation.store import Store
from tests import hostile, tiny


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home", shipped=None)


@pytest.fixture
def stored(tmp_path):
    """(folder of a model, a text, the stored answer that was measured on both)."""
    place, text = tmp_path / "m", tmp_path / "text.txt"
    shutil.copytree(tiny.folder("llama"), place)
    text.write_text("words of a text\n" * 50)
    spec = RunSpec(str(place), (("none", {}),), text=str(text), window=32, tokens=64)
    seen = {
        "model": models.weights_hash(str(place)),
        "config": models.config_hash(str(place)),
        "words": models.words_hash(str(place)),
        "text": load_text(str(text), "evaluation").hash,
    }
    return place, text, Result(key="", spec=spec, status="ok", fingerprint=seen, code=program.code())


def test_what_did_not_change_is_still_the_answer(stored, store):
    assert answers(stored[2], store)
    hostile.config(use_cache=False, note="bookkeeping")(stored[0])
    assert answers(stored[2], store)


@pytest.mark.parametrize(
    "change",
    [
        hostile.config(rms_norm_eps=1e-3),
        hostile.rope(rope_theta=100.0),
        hostile.config(hidden_act="gelu"),
        hostile.tensors(lambda t: t[hostile.NORM].mul_(1.01)),
        hostile.without("model.safetensors"),
        hostile.config(num_hidden_layers=10**9),
        hostile.config(eos_token_id=5),
        hostile.put("generation_config.json", {"eos_token_id": [5]}),
        hostile.put("chat_template.jinja", "{{ messages[0].content }}"),
        hostile.tokenizer_config(chat_template="{{ messages[0].content }}"),
        hostile.tokenizer_json(normalizer={"type": "Lowercase"}),
        shutil.rmtree,
    ],
)
def test_a_changed_folder_is_asked_anew(stored, store, change):
    change(stored[0])
    assert not answers(stored[2], store)


def test_a_changed_text_is_asked_anew(stored, store):
    stored[1].write_text("other words\n" * 50)
    assert not answers(stored[2], store)
    os.unlink(stored[1])
    assert not answers(stored[2], store)


def test_catalogue_models_that_are_not_here_stay_answered(store):
    assert answers(
        Result(
            key="",
            spec=RunSpec("gpt2", (("none", {}),)),
            status="ok",
            fingerprint={"model": "a", "text": "b"},
            code=program.code(),
        ),
        store,
    )


@pytest.mark.parametrize(
    "change, wide",
    [
        (lambda t: t[hostile.NORM].mul_(1.08e6), {hostile.NORM}),
        (
            lambda t: [t[n].mul_(2.0**-10) for n in t if n.endswith("q_proj.weight")],
            {hostile.Q, hostile.Q.replace(".0.", ".1.")},
        ),
    ],
)
def test_what_float16_does_not_hold_is_stored_wider_and_read_back_equal(change, wide, tmp_path):
    bundle = models.load(str(hostile.Case(None, hostile.tensors(change)).build(tmp_path / "m")))
    stored = artifact.stored_tensors(bundle.module, torch.float16)
    assert {name for name, t in stored.items() if t.dtype == torch.float32} == wide
    assert {t.dtype for name, t in stored.items() if name not in wide} == {torch.float16}
    bundle.module.load_state_dict(
        {
            name: t.to(stored[name].dtype).float()
            for name, t in bundle.module.state_dict().items()
            if name in stored
        },
        strict=False,
    )
    artifact.save(bundle, tmp_path / "saved", {})
    again = artifact.load(tmp_path / "saved")
    assert torch.equal(tiny.logits(again, tiny.ids(2)), tiny.logits(bundle, tiny.ids(2)))
    assert engine.stored_as(torch.zeros(3, 4), torch.float16) is torch.float16


def test_a_saved_model_with_a_byte_changed_anywhere_is_refused(tmp_path):
    from compression.base import ModelUnavailable

    place = tmp_path / "saved"
    artifact.save(tiny.bundle(), place, {"label": "x"})
    for file in sorted(place.iterdir()):
        raw = file.read_bytes()
        for at in {0, len(raw) // 3, len(raw) - 1}:
            file.write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
            with pytest.raises(ModelUnavailable) as error:
                artifact.load(place)
            assert error.value.code in (
                "artifact_changed",
                "artifact_broken",
                "artifact_version",
                "bad_json",
            ), file.name
        file.write_bytes(raw)
    (place / "chat_template.jinja").write_text("a stranger's template")
    with pytest.raises(ModelUnavailable, match="chat_template"):
        artifact.load(place)
    (place / "chat_template.jinja").unlink()
    manifest = json.loads((place / artifact.MANIFEST).read_text())
    for name in ("files", "sha256"):
        del manifest[name]
    (place / artifact.MANIFEST).write_text(json.dumps(manifest | {"version": 1}))
    assert artifact.load(place).source["unchecked"], "what an older version saved still loads"
    for odd in (
        {"width": 10**9},
        {"geometry": [{}]},
        {"modules": {"model.norm": {"kind": "linear", "packed": {}}}},
        {"cache_bits": 3},
    ):
        (place / artifact.MANIFEST).write_text(json.dumps(manifest | {"version": 1} | odd))
        with pytest.raises(ModelUnavailable) as error:
            artifact.load(place)
        assert error.value.code == "artifact_broken"


def test_tables_too_small_for_their_scales_are_told(tmp_path):
    from compression import calibrate
    from evaluation.running.stages import _small_scales

    small = hostile.tensors(lambda t: [t[n].mul_(2.0**-10) for n in t if n.endswith("embed_tokens.weight")])
    for change, count in ((lambda place: None, 0), (small, 1)):
        bundle = models.load(str(hostile.Case(None, change).build(tmp_path / str(count))))
        calibrate.compress(bundle, (), None, table_bits=8)
        assert _small_scales(bundle.module) == count
