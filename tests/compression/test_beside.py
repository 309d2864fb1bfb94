"""What goes along with the weights, and what older programs look for in an export."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import pytest
import torch

from compression import artifact, beside, calibrate, elsewhere, export, get, models, sample
from tests import tiny

SEVERAL = {"default": "default {{ messages[0].content }}", "rag": "rag {{ messages[0].content }}"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A compressed model whose folder had a generation config, templates, licences and things that look like
    licences."""
    from transformers import AutoConfig, AutoModelForCausalLM

    place = tmp_path_factory.mktemp("base") / "model"
    sizes = dict(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    rope = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
    config = AutoConfig.for_model(
        "llama",
        vocab_size=tiny.VOCABULARY,
        eos_token_id=257,
        max_position_embeddings=256,
        rope_parameters=rope,
        **sizes,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(place)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = SEVERAL
    tokenizer.save_pretrained(place)
    (place / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [257, 7, 9], "do_sample": False, "temperature": 0.6})
    )
    for name in ("LICENSE", "license.txt", "LICENCE.md", "USE_POLICY.md", "NOTICE.txt", "Notice"):
        (place / name).write_text(f"{name} of the base\n")
    os.symlink("/etc/passwd", place / "LICENSE-elsewhere")
    os.mkfifo(place / "NOTICE-pipe")
    (place / "LICENSES").mkdir()
    loaded = models.load(str(place))
    calibrate.compress(loaded, [(get("rtn"), get("rtn").params.parse({"bits": 4, "group_size": 32}))], None)
    return loaded


@pytest.mark.parametrize("form", ["artifact", "gptq_v2", "compressed-tensors", "export of an artifact"])
def test_it_goes_along(bundle, tmp_path, form):
    out = tmp_path / "out"
    if form == "artifact":
        artifact.save(bundle, out, {"label": "4 bits"})
    elif form == "export of an artifact":
        artifact.save(bundle, tmp_path / "own", {"label": "4 bits"})
        export.write(artifact.load(tmp_path / "own"), out, "gptq_v2", "4 bits")
    else:
        export.write(bundle, out, form, "4 bits")
    again = artifact.load(out) if form == "artifact" else export.read(out)
    assert sample.stop_ids(again) == sample.stop_ids(bundle) == {257, 7, 9}
    assert again.tokenizer.chat_template == SEVERAL
    names = {f.name for f in out.iterdir()}
    assert names >= {"LICENSE", "license.txt", "LICENCE.md", "USE_POLICY.md", "Notice"} and not names & {
        "LICENSE-elsewhere",
        "NOTICE-pipe",
        "LICENSES",
    }
    notice = (out / "NOTICE.txt").read_text()
    assert (
        notice.startswith(beside.OURS)
        and notice.count(beside.OURS) == 1
        and notice.endswith("NOTICE.txt of the base\n")
    )
    assert torch.equal(again.module.model.rotary_emb.inv_freq, bundle.module.model.rotary_emb.inv_freq)


def test_an_export_says_it_where_both_versions_look(bundle, tmp_path):
    export.write(bundle, tmp_path / "out", "compressed-tensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (
        config["architectures"] == ["LlamaForCausalLM"]
        and config["dtype"] == config["torch_dtype"] == "float16"
    )
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 500.0
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert (
        config["quantization_config"]["dequantize"] is True
        and "transformers 5" in (tmp_path / "out" / "README.md").read_text()
    )
    words = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert words["tokenizer_class"] == "PreTrainedTokenizerFast" and not set(words) & set(elsewhere.NEWER)


def test_the_old_names_of_a_family():
    config = elsewhere.config(tiny.original("gpt_neox"), "float16")
    assert (
        config["rotary_emb_base"] == config["rope_parameters"]["rope_theta"]
        and config["rotary_pct"] == config["rope_parameters"]["partial_rotary_factor"]
    )


def test_values_beyond_float16_stay(bundle, tmp_path):
    own = dataclasses.replace(bundle, module=__import__("copy").deepcopy(bundle.module))
    with torch.no_grad():
        own.module.model.norm.weight.fill_(1.08e6)
    _, notes = export.write(own, tmp_path / "out", "gptq_v2")
    assert [n.code for n in notes] == ["export_in_float32"] and notes[0].facts["name"] == "model.norm.weight"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    assert float(export.read(tmp_path / "out").module.model.norm.weight[0]) == pytest.approx(1.08e6)
    with torch.no_grad():
        own.module.model.norm.weight[3] = float("nan")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(export.CannotExport, match="model.norm.weight"):
        export.write(own, tmp_path / "out", "gptq_v2")
    assert not (tmp_path / "out").exists()
