"""Adapters as PEFT loads them: PEFT itself, around the plain model, is the oracle."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from compression import adapter, artifact, calibrate, export, get
from compression.base import CannotExport
from compression.low_rank import lora
from compression.packed.linear import CompressedLinear
from tests import tiny

WORDS = tiny.ids(24, 16)
TRAINED = {"rank": 3, "train_tokens": 512, "learning_rate": 0.02}


def adapted(family, targets="all", bundle=None):
    """A tiny model with an adapter kept apart whose B is no longer zero. bundle: this one in its place."""
    bundle = bundle or tiny.bundle(family)
    adapters = lora.adapt(bundle, lora.LoraParams(rank=3, targets=targets), seed=0)
    draw = torch.Generator().manual_seed(1)
    for path, found in adapters.items():
        torch.nn.init.normal_(found.b, std=0.3, generator=draw)
        bundle.module.set_submodule(path, CompressedLinear(found.stored(merge=False), found.base.bias))
    return bundle


def in_peft(base, folder):
    """PEFT's model: the adapter in `folder` on a plain transformers model."""
    from peft import PeftModel

    return PeftModel.from_pretrained(base, folder).eval()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_peft_computes_the_same(family, tmp_path):
    bundle, ids = adapted(family), tiny.ids(2, 12)
    size, notes = export.write(bundle, tmp_path / "adapter", "peft", "tiny adapter")
    assert size == (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size and notes == ()
    base = copy.deepcopy(tiny.original(family))  # PEFT changes it in place
    with torch.no_grad():
        before = base(input_ids=ids).logits
        theirs = in_peft(base, tmp_path / "adapter")(input_ids=ids).logits
    ours = tiny.logits(bundle, ids)
    assert (theirs - ours).abs().max() < 2e-3, (
        "the plain model's weights are in 32 bits, ours beside the adapter in 16"
    )
    assert (before - ours).abs().max() > 20 * (theirs - ours).abs().max(), "the adapter does something"
    about = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert about["r"] == about["lora_alpha"] == 3 and about["rank_pattern"] == about["alpha_pattern"]
    assert set(about["rank_pattern"].values()) == ({9} if family in ("gpt2", "gpt_neox") else set())


def test_an_adapter_of_some_matrices_and_what_is_refused(tmp_path):
    bundle = adapted("llama", "q and v")
    export.write(bundle, tmp_path / "some", "peft")
    about = json.loads((tmp_path / "some" / "adapter_config.json").read_text("utf-8"))
    assert {path.rpartition(".")[2] for path in about["target_modules"]} == {"q_proj", "v_proj"}
    with pytest.raises(CannotExport, match="adapt all of them"):
        export.write(adapted("gpt2", "q and v"), tmp_path / "never", "peft")
    with pytest.raises(CannotExport, match="merge off"):
        export.write(tiny.bundle(), tmp_path / "never", "peft")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    "base, said",
    [
        ({}, "bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True"),
        ({"table": "fp4", "double": False}, "bnb_4bit_quant_type='fp4', bnb_4bit_use_double_quant=False"),
        ({"group_size": 16}, "the model as it was compressed before"),  # bitsandbytes has groups of 64 alone
    ],
)
def test_a_saved_model_offers_its_adapter_and_says_its_base(tmp_path, base, said):
    bundle = tiny.bundle()
    method = get("qlora")
    calibrate.compress(bundle, [(method, method.params(**TRAINED | base))], WORDS)
    artifact.save(bundle, tmp_path / "model", {"label": "QLoRA"})
    assert export.offers(tmp_path / "model") == [adapter.FORM]
    export.write(artifact.load(tmp_path / "model"), tmp_path / "adapter", adapter.FORM, "QLoRA")
    assert said in (tmp_path / "adapter" / "README.md").read_text("utf-8")
