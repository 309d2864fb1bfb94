"""A new architecture needs its file, its line and a tiny configuration: the template, Gemma, is loaded, folded,
run by the decode step, saved and loaded again by the program as it stands, and gone again.

Its norms multiply by 1 + their weight, and its embedding has a factor. A program that doesn't know either
would give other logits, here or after a factor was folded into a norm.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from compression import arch, artifact, calibrate, engine, get, models, surgery
from compression.architectures import ARCHITECTURES
from compression.base import UnsupportedLayer
from tests import tiny
from tests.compression.architectures.template_architecture import GEMMA, TINY


@pytest.fixture
def gemma(monkeypatch):
    """A fresh tiny Gemma; its row and its configuration go when the test ends."""
    monkeypatch.setitem(ARCHITECTURES, "gemma", GEMMA)
    monkeypatch.setitem(tiny.CONFIGS, "gemma", TINY)
    return tiny.bundle("gemma")


def published(tokens):
    """Logits of the model as transformers computes it."""
    with torch.no_grad():
        return tiny.original("gemma")(input_ids=tokens).logits


def near(found, expected, share=2e-5):
    return (found - expected).abs().max() <= share * expected.abs().max()


def test_it_computes_what_transformers_computes(gemma):
    tokens = tiny.ids(2)
    assert near(tiny.logits(gemma, tokens), published(tokens))
    assert arch.embedding_scale(gemma.module) == pytest.approx(48**0.5)
    block = arch.blocks(gemma.module)[0]
    weight, fold = block.input_layernorm.weight, arch.fold(gemma.module, 0, 0)[0]
    assert torch.equal(fold.weight, 1 + weight) and fold.added == 1


@pytest.mark.parametrize("name", ["awq", "smoothquant"])
def test_a_factor_in_its_norms_leaves_the_logits(gemma, name):
    """(1 + w) / s is stored as (1 + w) / s - 1."""
    tokens, method = tiny.ids(8), get(name)
    values = {"bits": 3, "group_size": 16} if name == "awq" else {"alpha": 0.8}
    before = arch.blocks(gemma.module)[0].input_layernorm.weight.clone()
    outcome = calibrate.compress(
        gemma, ((method, method.params.parse(values | {"rounding": False})),), tokens
    )
    assert near(tiny.logits(gemma, tokens), published(tokens)) and not outcome.layers
    assert name == "awq" or not torch.equal(arch.blocks(gemma.module)[0].input_layernorm.weight, before)


def test_a_stored_table_keeps_the_factor_and_the_head_has_none(gemma, tmp_path):
    """A table in 8 bits moves the logits a little; without its factor they would be others altogether."""
    tokens = tiny.ids(2)
    surgery.compress_tables(gemma, 8)
    rounded = tiny.logits(gemma, tokens)
    assert near(rounded, published(tokens), 0.05)
    artifact.save(gemma, tmp_path / "model", {})
    again = artifact.load(tmp_path / "model")
    assert near(tiny.logits(again, tokens), rounded, 1e-3)


@pytest.mark.parametrize("table_bits", [16, 8])
def test_the_decode_step_writes_what_the_model_says(gemma, table_bits):
    """With a table as it comes and with a stored one; all tokens at once, and one by one."""
    if table_bits == 8:
        surgery.compress_tables(gemma, 8)
    decoder, ids = engine.decoder(gemma, torch.float32), tiny.ids(1, 12)
    expected = tiny.logits(gemma, ids)
    assert near(decoder.session(1, 16).run(ids), expected[:, -1], 1e-4)
    session = decoder.session(1, 16)
    assert all(near(session.run(ids[:, i : i + 1]), expected[:, i], 1e-4) for i in range(12))


def test_the_trial_of_the_decode_step_takes_it(gemma):
    assert engine.serve(gemma) is not None and gemma.refused == ""


def test_a_row_that_leaves_the_factor_out_is_refused(gemma, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "gemma", dataclasses.replace(GEMMA, embedding_scale=""))
    with pytest.raises(UnsupportedLayer, match="GemmaTextScaledWordEmbedding.*known: Embedding"):
        models.load(tiny.folder("gemma"))


@pytest.mark.parametrize("place", ["model.layers.1.pre_feedforward_layernorm", "model.layers.0.mlp.gate"])
@pytest.mark.parametrize("part", [nn.LayerNorm(48), nn.Embedding(3, 48)])
def test_a_part_with_weights_that_no_column_names_is_refused_by_its_place(gemma, place, part):
    """Gemma 2 has four norms in a block, and a mixture of experts has a gate: none may be passed over."""
    parent, _, name = place.rpartition(".")
    setattr(gemma.module.get_submodule(parent), name, part)
    with pytest.raises(UnsupportedLayer, match=f"{place}.*{type(part).__name__}.*known in a block: "):
        arch.normalise(gemma.module)


def test_it_is_gone_again():
    assert "gemma" not in ARCHITECTURES and "gemma" not in tiny.CONFIGS
