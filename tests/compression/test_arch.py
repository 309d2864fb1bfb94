"""The normal form: the same outputs, every linear named, nothing shared that should not be."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from compression import arch, models, structure
from compression.architectures import ARCHITECTURES
from compression.base import UnsupportedLayer, UnsupportedModel
from tests import tiny


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_normal_form_gives_the_original_logits(family):
    """E12, K: split and fused layers compute the same; Conv1D and interleaved q, k, v are the traps."""
    tokens = tiny.ids(2)
    with torch.no_grad():
        expected = tiny.original(family)(input_ids=tokens).logits
    assert torch.allclose(tiny.logits(tiny.bundle(family), tokens), expected, atol=2e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_block_has_the_named_linears_and_no_other(family):
    bundle = tiny.bundle(family)
    gated = any("gate" in name for name, _ in tiny.original(family).named_modules())
    roles = ["q", "k", "v", "o", *(["gate"] if gated else []), "up", "down"]
    found = arch.linears(bundle.module)
    assert [role for _, role, layer in found if layer == 1] == roles
    inside = {
        id(m) for block in arch.blocks(bundle.module) for m in block.modules() if isinstance(m, nn.Linear)
    }
    assert inside == {id(bundle.module.get_submodule(path)) for path, _, _ in found} and inside
    assert not any(type(m).__name__ == "Conv1D" for m in bundle.module.modules())
    shapes = {(r, layer): shape for r, layer, shape in arch.linear_shapes(bundle.geometry)}
    for path, role, layer in found:
        assert tuple(bundle.module.get_submodule(path).weight.shape) == shapes[role, layer]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_tied_tables_share_storage_and_only_they(family):
    """E17, K."""
    bundle = tiny.bundle(family)
    table, head = arch.embedding(bundle.module)[1], arch.head(bundle.module)[1]
    assert (table.weight.data_ptr() == head.weight.data_ptr()) == bundle.geometry.tied
    pointers = [
        bundle.module.get_submodule(path).weight.data_ptr() for path, _, _ in arch.linears(bundle.module)
    ]
    assert len(set(pointers)) == len(pointers)


@pytest.mark.parametrize("heads", [None, 4])
def test_join_is_the_inverse_of_split(heads):
    fused = torch.randn(24, 5)
    parts = arch.split(fused, heads)
    assert [p.shape for p in parts] == [(8, 5)] * 3
    assert torch.equal(arch.join([p.T for p in parts], heads).T, fused)
    if heads:  # GPT-NeoX: rows [head][q, k, v][size]
        assert torch.equal(parts[0][:2], fused[:2]) and torch.equal(parts[1][:2], fused[2:4])


def test_other_architectures_are_refused_by_name(tmp_path):
    from transformers import BertConfig, BertModel

    BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="bert.*supported: llama"):
        models.load(str(tmp_path))


def test_an_unknown_layer_is_named():
    bundle = tiny.bundle("llama")
    arch.blocks(bundle.module)[0].extra = nn.Linear(4, 4)
    with pytest.raises(UnsupportedLayer, match="extra.*Linear"):
        arch.normalise(bundle.module)


def test_a_fused_layer_of_unequal_parts_is_refused(monkeypatch):
    """Phi-3's has fewer rows of k and v than of q; thirds of it would be wrong matrices."""
    bundle, row = tiny.bundle("gpt2"), ARCHITECTURES["gpt2"]
    sizes = dataclasses.replace(row.sizes, kv_heads="few")
    monkeypatch.setitem(ARCHITECTURES, "gpt2", dataclasses.replace(row, sizes=sizes))
    bundle.module.config.few = 2
    with pytest.raises(UnsupportedLayer, match="c_attn' fuses 4 query heads with 2 of keys"):
        arch.normalise(bundle.module)


@pytest.mark.parametrize("family", ["qwen3", "opt"])
def test_an_unknown_norm_is_named(family):
    """One that multiplies by 1 + w, say, would be folded into wrongly."""

    class OnePlus(nn.LayerNorm):
        pass

    bundle = tiny.bundle(family)
    row = arch.of(bundle.module)
    for path in (row.norms[0], *(row.head_norms or ())[:1]):
        fresh = tiny.bundle(family)
        arch.blocks(fresh.module)[1].set_submodule(path, OnePlus(4))
        with pytest.raises(UnsupportedLayer, match=f"OnePlus.*known: {row.norm.path}"):
            arch.normalise(fresh.module)


def test_only_the_table_knows_an_architecture_by_name():
    """Loading, folding, the estimate, the decode step, export and pruning read columns; names of models stand
    in the catalogue."""
    root = Path(arch.__file__).parent
    own = {*(root / "architectures").glob("*.py"), root / "catalogue.py"}
    for file in {*root.rglob("*.py"), *(root.parent / "evaluation").rglob("*.py")} - own:
        texts = (n.value for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.Constant))
        found = {text for text in texts if isinstance(text, str) and text in ARCHITECTURES}
        assert not found, f"{file.relative_to(root.parent)} names {found}"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_path_of_a_row_is_there(family):
    """In a model as transformers makes it: a misspelt column can't wait for the method that reads it."""
    module = tiny.original(family)
    row, block = arch.of(module), arch.blocks(module)[0]
    for path in (row.backbone, row.embedding, row.head, row.positions, row.rotary and row.rotary.path):
        assert path is None or module.get_submodule(path)
    for path in (row.attention, row.fused and row.fused.path, *row.norms, *(row.head_norms or ())):
        assert path is None or block.get_submodule(path)
    held = {name for part in block.modules() for name, _ in row.attributes if hasattr(part, name)}
    assert held == {name for name, _ in row.attributes} and {s for _, s in row.attributes} <= set(
        structure.SIZES
    )
    said = {row.activation, row.parallel, row.norm_first, *vars(row.sizes).values()} - {"", True, False}
    assert said <= set(row.fields)
    made = {arch.class_path(part) for part in module.modules()}
    assert row.classes <= made and {arch.class_path(n) for n in arch.all_norms(module)} == {row.norm.path}
