"""Exported models, read by a loader that was written from the formats' description alone (section 9), not
from our code."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from compression import NAMES, arch, artifact, calibrate, export, get, models
from compression.base import BadParam, CompressionError, ModelUnavailable
from compression.packed.activations import ActivationRule
from compression.packed.grid import Grid
from compression.packed.grouped_int import GroupedInt
from compression.packed.linear import CompressedLinear
from compression.surgery import set_submodule
from tests import tiny
from tests.compression.test_adapter import adapted
from tests.compression.test_structure import shrunk

SIZES = {  # loaders of GPTQ checkpoints take multiples of 32 only
    "llama": dict(
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
    ),
    "qwen2": dict(
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        tie_word_embeddings=True,
    ),
    "opt": dict(
        hidden_size=64, ffn_dim=96, num_attention_heads=4, num_hidden_layers=2, word_embed_proj_dim=32
    ),
    "gpt2": dict(n_embd=64, n_head=4, n_layer=2),
    "gpt_neox": dict(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_hidden_layers=2),
}


@functools.cache
def folder(family):
    from transformers import AutoConfig, AutoModelForCausalLM

    place = Path(tempfile.mkdtemp(prefix=f"wide-{family}-"))
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        family,
        vocab_size=tiny.VOCABULARY,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=257,
        max_position_embeddings=256,
        **SIZES[family],
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    model.save_pretrained(place)
    tiny.tokenizer().save_pretrained(place)
    return str(place)


def compressed(family, recipe, base=folder, **more):
    """Whatever isn't compressed is rounded to float16 as the file holds it, so that logits can be held
    against each other."""
    bundle = models.load(base(family))
    calibrate.compress(bundle, [(get(n), get(n).params.parse(p)) for n, p in recipe], tiny.ids(8), **more)
    for name, tensor in bundle.module.state_dict().items():
        if ".packed." not in name:
            tensor.copy_(tensor.half())
    return bundle


# --- the independent loader: numpy, one value at a time in the descriptions' own words ---


def slots(words, bits, count):
    """Values along the first axis of int32 `words`: for 2, 4 and 8 bits word r, bits [j b, j b + b) hold
    value r * (32 / b) + j; for 3 bits value k lies at bits [3k, 3k + 3) of each 96-bit triple."""
    # Python's integers hold a triple
    words = words.view(np.uint32).astype(np.uint64 if bits != 3 else object)
    out = np.zeros((count, *words.shape[1:]), dtype=np.int64)
    for i in range(count):
        if bits == 3:
            t, k = divmod(i, 32)
            out[i] = (words[3 * t] + words[3 * t + 1] * 2**32 + words[3 * t + 2] * 2**64) // 2 ** (3 * k) % 8
        else:
            r, j = divmod(i, 32 // bits)
            out[i] = words[r] // np.uint64(2 ** (j * bits)) % np.uint64(2**bits)
    return out


def gptq_weight(t, about):
    """[out, in] of one layer: scales[g_idx] * (q - z)."""
    bits, (n,), out = about["bits"], t["g_idx"].shape, t["scales"].shape[1]
    q, z = slots(t["qweight"], bits, n), slots(t["qzeros"].T, bits, out).T
    z = z + (1 if about["checkpoint_format"] == "gptq" else 0)
    return (t["scales"].astype(np.float32)[t["g_idx"]] * (q - z[t["g_idx"]]).astype(np.float32)).T


def compressed_tensors_weight(t, about):
    args = about["config_groups"]["group_0"]["weights"]
    if about["format"] == "int-quantized":
        return t["weight"].astype(np.float32) * t["weight_scale"].astype(np.float32)
    bits, (out, n) = args["num_bits"], t["weight_shape"]
    q = slots(t["weight_packed"].T, bits, n).T - 2 ** (bits - 1)
    groups = np.arange(n) // (args["group_size"] or n)
    z = np.zeros((out, groups.max() + 1), dtype=np.int64)
    if not args["symmetric"]:
        z = slots(t["weight_zero_point"], bits, out) - 2 ** (bits - 1)
    return t["weight_scale"].astype(np.float32)[:, groups] * (q - z[:, groups]).astype(np.float32)


def loaded(place):
    """({layer: weight [out, in]}, every other tensor, quantization config)."""
    about = json.loads((place / "config.json").read_text())["quantization_config"]
    tensors = load_file(place / "model.safetensors")
    gptq = about["quant_method"] == "gptq"
    mark = "qweight" if gptq else "weight_scale"
    layers = {}
    for path in [name.removesuffix(f".{mark}") for name in tensors if name.endswith(f".{mark}")]:
        names = [n for n in tensors if n.rpartition(".")[0] == path and not n.endswith(".bias")]
        own = {name.removeprefix(f"{path}."): tensors.pop(name) for name in names}
        layers[path] = (gptq_weight if gptq else compressed_tensors_weight)(own, about)
    return layers, tensors, about


def ours(bundle, path):
    """Our weight for a layer of the file, fused layers put together by the families' own descriptions."""

    def dense(p):
        return bundle.module.get_submodule(p).packed.dequantize().numpy()

    if path.endswith("attn.c_attn"):  # rows [q | k | v]
        return np.concatenate([dense(f"{path}.{x}") for x in "qkv"])
    if path.endswith("query_key_value"):  # row (3 h + x) * size + d
        parts, heads = [dense(f"{path}.{x}") for x in "qkv"], bundle.module.config.num_attention_heads
        size = len(parts[0]) // heads
        return np.stack([parts[x][h * size + d] for h in range(heads) for x in range(3) for d in range(size)])
    return dense(path)


def in_transformers(place, layers, rest, conv1d):
    """A plain checkpoint with the loaded weights, opened by transformers."""
    from transformers import AutoModelForCausalLM, logging

    logging.disable_progress_bar()
    plain = Path(tempfile.mkdtemp(prefix="plain-"))
    config = json.loads((place / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    dense = {f"{path}.weight": np.ascontiguousarray(w.T if conv1d else w) for path, w in layers.items()}
    save_file(dense | rest, plain / "model.safetensors", metadata={"format": "pt"})
    return AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, attn_implementation="sdpa").eval()


def check(bundle, place, tolerance=2e-5):
    """The file's weights are ours to the bit, its logits ours, and `read` brings the formats back."""
    layers, rest, about = loaded(place)
    linears = {path for path, _, _ in arch.linears(bundle.module)}
    assert len(layers) == len({p.rpartition(".")[0] if p[-2:] in (".q", ".k", ".v") else p for p in linears})
    for path, weight in layers.items():
        assert np.array_equal(weight, ours(bundle, path)), path
    again = export.read(place)
    for path in linears:
        a, b = bundle.module.get_submodule(path).packed, again.module.get_submodule(path).packed
        assert a.full_config() == b.full_config() and a.state_dict().keys() == b.state_dict().keys()
        assert all(torch.equal(a.state_dict()[k], b.state_dict()[k]) for k in a.state_dict())
    tokens, model = tiny.ids(2), in_transformers(place, layers, rest, bundle.geometry.architecture == "gpt2")
    with torch.no_grad():
        theirs = model(input_ids=tokens).logits
    assert (theirs - tiny.logits(bundle, tokens)).abs().max() < tolerance
    assert (tiny.logits(again, tokens) - tiny.logits(bundle, tokens)).abs().max() < tolerance
    return about


CASES = {
    **{f"rtn {b} bits": ("rtn", {"bits": b, "group_size": 32}) for b in (2, 3, 4, 8)},
    "symmetric row": ("rtn", {"bits": 4, "group_size": -1, "symmetric": True}),
    "row of 8 bits": ("rtn", {"bits": 8, "group_size": -1}),
    "gptq": ("gptq", {"bits": 4, "group_size": 16}),
    "awq": ("awq", {"bits": 4, "group_size": 32}),
    "scattered": ("gptq", {"bits": 4, "group_size": 16, "static_groups": False}),
    "scattered symmetric": ("gptq", {"bits": 2, "group_size": 32, "static_groups": False, "symmetric": True}),
}


def fits(form, name):
    return CASES[name][1]["bits"] in export.BITS[form] and (
        form != "compressed-tensors" or "scattered" not in name
    )


@pytest.mark.parametrize(
    "form, name", [(form, name) for form in export.BITS for name in CASES if fits(form, name)]
)
def test_every_grid_is_read_back(form, name, tmp_path):
    method, params = CASES[name]
    bundle = compressed("llama", [(method, params)])
    if form == "gptq":
        lift_zeros(bundle)
    export.write(bundle, tmp_path / "out", form)
    about = check(bundle, tmp_path / "out")
    symmetric = params.get("symmetric", False)
    if form == "compressed-tensors":
        args = about["config_groups"]["group_0"]["weights"]
        assert (args["num_bits"], args["symmetric"]) == (params["bits"], symmetric) and about["ignore"] == [
            "lm_head"
        ]
        assert args["strategy"] == ("channel" if params["group_size"] == -1 else "group")
    else:
        expected = {
            "bits": params["bits"],
            "group_size": params["group_size"],
            "sym": symmetric,
            "desc_act": "scattered" in name,
            "checkpoint_format": form,
            "quant_method": "gptq",
            "lm_head": False,
        }
        assert expected.items() <= about.items()
        assert json.loads((tmp_path / "out" / "quantize_config.json").read_text()) == about


def lift_zeros(bundle):
    """No zero point of 0: what version 1 needs."""
    for m in bundle.module.modules():
        if isinstance(m, CompressedLinear) and m.packed.grid.zero is not None:
            g = m.packed.grid
            grid = Grid.make(
                g.shape, g.bits, g.group_size, g.scale, g.zero_points().clamp_min(1), g.group_index
            )
            m.packed = GroupedInt(m.packed.codes, grid)


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("form", ["gptq_v2", "compressed-tensors"])
def test_every_family(family, form, tmp_path):
    """Fused q, k, v in the family's order, biases, Conv1D, tied and untied heads, names as in the hub's
    files."""
    bundle = compressed(family, [("gptq", {"group_size": 16, "static_groups": form != "gptq_v2"})])
    if (family, form) == ("gpt2", "compressed-tensors"):
        with pytest.raises(export.CannotExport, match="Conv1D"):
            export.write(bundle, tmp_path / "out", form)
        assert not (tmp_path / "out").exists()
        return
    size, notes = export.write(bundle, tmp_path / "out", form)
    assert size == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert [note.code for note in notes] == ([] if form == "gptq_v2" else ["export_unpacked"]), (
        "asymmetric: said how it opens"
    )
    about = check(bundle, tmp_path / "out")
    layers, rest, _ = loaded(tmp_path / "out")
    original = load_file(Path(folder(family)) / "model.safetensors")
    assert set(original) == {f"{path}.weight" for path in layers} | set(rest), "named as in the hub's files"
    assert all(np.array_equal(t, original[name].astype(np.float16)) for name, t in rest.items())
    if (family, form) == ("opt", "compressed-tensors"):
        assert about["ignore"] == ["lm_head", "model.decoder.project_in", "model.decoder.project_out"]


def test_smoothquant_is_int_quantized(tmp_path):
    bundle = compressed("llama", [("smoothquant", {})])
    export.write(bundle, tmp_path / "out", "compressed-tensors")
    assert torch.equal(
        tiny.logits(export.read(tmp_path / "out"), tiny.ids(2)), tiny.logits(bundle, tiny.ids(2))
    )
    about = check(bundle, tmp_path / "out", tolerance=0.1)  # the plain model rounds no inputs
    inputs = about["config_groups"]["group_0"]["input_activations"]
    assert about["format"] == "int-quantized" and (
        inputs["strategy"],
        inputs["dynamic"],
        inputs["num_bits"],
    ) == ("token", True, 8)


def test_rounded_tables_go_back_to_16_bits_and_it_is_said(tmp_path):
    for family in ("qwen2", "gpt_neox"):  # tied, untied
        bundle = compressed(family, [("rtn", {"group_size": 32})], table_bits=8)
        _, notes = export.write(bundle, tmp_path / "out")
        assert [note.code for note in notes] == ["tables_as_16_bits"]
        check(bundle, tmp_path / "out", tolerance=1e-2)


def spoil(bundle, what):
    """A bundle whose last linear can't go."""
    path = arch.linears(bundle.module)[-1][0]
    linear = bundle.module.get_submodule(path)
    if what == "dense":
        set_submodule(bundle.module, path, torch.nn.Linear(linear.in_features, linear.out_features))
    elif what == "input scale":
        linear.input_scale = torch.ones(linear.in_features)
    elif what == "other bits":
        w = linear.packed.dequantize()
        grid = Grid.make(w.shape, 8, 32, linear.packed.grid.scale, None)
        linear.packed = GroupedInt.encode(grid.round(w), grid)
    else:
        linear.packed.activations = what
    return bundle


RTN = [("rtn", {"bits": 4, "group_size": 32})]
REFUSED = {  # name -> (bundle, form, part of the message)
    "pruned": (lambda: compressed("llama", [("magnitude", {"sparsity": 0.5}), *RTN]), "gptq_v2", "bitmask"),
    "2:4": (
        lambda: compressed("llama", [("magnitude", {"pattern": "2:4"})]),
        "compressed-tensors",
        "two_four",
    ),
    "low rank": (lambda: compressed("llama", [("svd", {"removed": 0.3})]), "gptq_v2", "low_rank"),
    "original": (lambda: models.load(folder("llama")), "gptq_v2", "not compressed"),
    "one dense": (lambda: spoil(compressed("llama", RTN), "dense"), "gptq_v2", "not compressed"),
    "5 bits": (lambda: compressed("llama", [("rtn", {"bits": 5})]), "gptq_v2", "2, 3, 4, 8"),
    "3 bits": (lambda: compressed("llama", [("rtn", {"bits": 3})]), "compressed-tensors", "2, 4, 8"),
    "factor": (lambda: spoil(compressed("llama", RTN), "input scale"), "gptq_v2", "factor"),
    "mixed": (lambda: spoil(compressed("llama", RTN), "other bits"), "gptq_v2", "differ"),
    "rounded inputs": (lambda: compressed("llama", RTN, activations="int8"), "gptq_v2", "rounds its inputs"),
    "4 bits, rounded inputs": (
        lambda: compressed("llama", RTN, activations="int8"),
        "compressed-tensors",
        "rounds its inputs",
    ),
    "one rounded input": (
        lambda: spoil(
            compressed("llama", [("rtn", {"bits": 8, "group_size": -1, "symmetric": True})]), ActivationRule()
        ),
        "compressed-tensors",
        "differ",
    ),
    "one scale for all tokens": (
        lambda: compressed("llama", [("smoothquant", {"activations": "tensor"})]),
        "compressed-tensors",
        "token by token",
    ),
    "awq behind a GELU": (
        lambda: compressed("gpt2", [("awq", {"group_size": 32})]),
        "gptq_v2",
        "at run time",
    ),
    "odd width": (lambda: compressed("llama", RTN, tiny.folder), "gptq_v2", "multiples of 32"),
    "scattered": (
        lambda: compressed("llama", [("gptq", {"group_size": 16, "static_groups": False})]),
        "compressed-tensors",
        "scattered",
    ),
    "short group": (
        lambda: compressed("llama", [("rtn", {"bits": 4, "group_size": 80})]),
        "compressed-tensors",
        "whole groups",
    ),
    "zero of 0 in version 1": (
        lambda: compressed("llama", [("rtn", {"bits": 2, "group_size": 16})]),
        "gptq",
        "gptq_v2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_place_is_refused_with_the_reason(name, tmp_path):
    make, form, reason = REFUSED[name]
    with pytest.raises(export.CannotExport, match=reason):
        export.write(make(), tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_export_is_refused(tmp_path):
    with pytest.raises(ModelUnavailable, match="no GPTQ or compressed-tensors"):
        export.read(folder("llama"))
    export.write(compressed("llama", RTN), tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.scales"]
    save_file(tensors, file)
    with pytest.raises(ModelUnavailable, match="up_proj.*scales.*missing"):
        export.read(tmp_path / "out")


def test_a_published_symmetric_file_has_the_middle_as_its_zero_whatever_it_says(tmp_path):
    """Symmetric files with 7 under the name of version 2 are about; their zero point is 8 all the same."""
    bundle = compressed("llama", [("rtn", {"bits": 4, "group_size": 32, "symmetric": True})])
    export.write(bundle, tmp_path / "out", "gptq_v2")
    file = tmp_path / "out" / "model.safetensors"
    tensors = {
        k: np.full_like(t, 0x77777777) if k.endswith("qzeros") else t for k, t in load_file(file).items()
    }
    save_file(tensors, file)
    path = arch.linears(bundle.module)[0][0]
    assert torch.equal(
        export.read(tmp_path / "out").module.get_submodule(path).packed.dequantize(),
        bundle.module.get_submodule(path).packed.dequantize(),
    )


def test_the_folder_has_what_a_loader_looks_for(tmp_path):
    bundle = compressed("llama", RTN)
    base = Path(bundle.source["folder"])
    (base / "LICENSE").write_text("the licence of the base model")
    export.write(bundle, tmp_path / "out", label="Round to nearest bits 4")
    (base / "LICENSE").unlink()
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert {
        "config.json",
        "tokenizer.json",
        "LICENSE",
        "NOTICE.txt",
        "README.md",
        "quantize_config.json",
    } <= names
    assert "Round to nearest bits 4" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    assert str(base) not in "".join(f.read_text() for f in (tmp_path / "out").glob("*.[jmt][sdx]*"))


def run(*words):
    from evaluation.commands.export import main

    return main([str(word) for word in words])


def test_the_command_line_tells_why_it_refuses(tmp_path, capsys):
    artifact.save(compressed("llama", [("svd", {"removed": 0.3})]), tmp_path / "artifact", {})
    assert run(tmp_path / "artifact", tmp_path / "out", "--tokens", 0) == 1
    assert "low_rank" in capsys.readouterr().err
    assert run("no-such-artifact", tmp_path / "out", "--tokens", 0) == 1
    artifact.save(compressed("llama", RTN), tmp_path / "artifact", {"label": "four bits"})
    assert run(tmp_path / "artifact", tmp_path / "out", "--tokens", 0, "--format", "gptq_v2") == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
        and "perplexity" not in found
    )


@pytest.mark.model
def test_the_real_model_measures_the_same_from_its_export(offline_model, tmp_path, capsys):
    bundle = models.load(offline_model)
    calibrate.compress(bundle, [(get("rtn"), get("rtn").params())], None)
    artifact.save(bundle, tmp_path / "artifact", {"label": "Round to nearest bits 4"})
    for form in ("gptq_v2", "compressed-tensors"):
        assert (
            run(tmp_path / "artifact", tmp_path / "out", "--format", form, *("--tokens", 64, "--window", 64))
            == 0
        )
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["perplexity_read_back"] == pytest.approx(found["perplexity"], rel=1e-6)
        assert [note["code"] for note in found["notes"]] == ([] if form == "gptq_v2" else ["export_unpacked"])


# what of a method's parameters decides how its result is stored: name -> values
STORED = {
    "bits": (2, 3, 4, 5, 8),
    "group_size": (-1, 16, 32, 80),
    "symmetric": (True, False),
    "static_groups": (False,),
    "activations": ("token", "dynamic_tensor", "tensor", "exact"),
    "weights": ("tensor",),
    "attention": (True,),
    "rounding": (False,),
    "quantize": (False, True),
    "round": (False,),
    "merge": (True, False),
    "outliers": (0.0, 0.01),
    "threshold": (0.0,),
    "zero_point": (True, False),
    "columns": (True,),
    "double": (False,),
    "groups": (1, 2),
    "pattern": ("2:4",),
}


def variants(name):
    """The method's tiny parameters, and these with one of STORED changed."""
    method = get(name)
    known = {p["name"]: p for p in method.params.describe()}
    for key, value in [("", None), *((k, v) for k, values in STORED.items() for v in values if k in known)]:
        try:
            values = dict(method.tiny) | ({key: value} if key else {})
            method.params.parse(values)
        except BadParam:
            continue
        yield values


def offered_and_written(bundle, place):
    """What a saved model is offered in, and what it can be written in."""
    artifact.save(bundle, place / "model", {})
    written = []
    for form in export.FORMS:
        try:
            export.write(bundle, place / form, form)
        except export.CannotExport:
            continue
        written.append(form)
    return export.offers(place / "model"), [form for form in written if form != "gptq"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_offered_is_what_is_written(name, tmp_path):
    """A button for a format appears only where the model can go there, and everywhere where it can."""
    for number, values in enumerate(variants(name)):
        try:
            bundle = compressed("llama", [(name, values)])
        except CompressionError:
            continue  # the chain or the model doesn't take this setting
        offered, written = offered_and_written(bundle, tmp_path / str(number))
        assert offered == written, values


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("table_bits", [16, 8])
def test_a_family_is_offered_what_is_written(family, table_bits, tmp_path):
    """Conv1D, fused q, k and v, tied and untied heads, a rounded table."""
    for values in ({"group_size": 16}, {"group_size": 16, "static_groups": False}):
        bundle = compressed(family, [("gptq", values)], table_bits=table_bits)
        offered, written = offered_and_written(bundle, tmp_path / str(len(values)))
        assert offered == written and "gptq_v2" in offered


@pytest.mark.parametrize(
    "recipe, forms",
    [
        ([("awq", {"rounding": False}), ("gptq", {"group_size": 16})], ["gptq_v2", "compressed-tensors"]),
        ([("gptq", {"group_size": 16}), ("lut_gemm", {})], []),
        ([("wanda", {"pattern": "2:4"}), ("gptq", {"group_size": 16})], []),
    ],
)
def test_a_chain_is_offered_what_is_written(recipe, forms, tmp_path):
    assert offered_and_written(compressed("llama", recipe), tmp_path) == (forms, forms)


def test_an_adapter_is_offered_where_another_program_can_have_its_base(tmp_path):
    """Not where heads and channels of the base were cut out."""
    for name, bundle, forms in (("whole", None, ["peft"]), ("cut", shrunk("llama"), [])):
        assert offered_and_written(adapted("llama", bundle=bundle), tmp_path / name) == (forms, forms), name


def test_what_the_page_offers_for_8_bits_of_activations(tmp_path):
    """compressed-tensors has a place for inputs that are rounded token by token, and for no other rule."""
    expected = {"token": ["compressed-tensors"], "dynamic_tensor": [], "tensor": []}
    for rule, forms in expected.items():
        bundle = compressed("llama", [("smoothquant", {"activations": rule})])
        assert offered_and_written(bundle, tmp_path / rule) == (forms, forms), rule
    bundle = compressed("llama", [("llm_int8", {})])
    assert offered_and_written(bundle, tmp_path / "llm_int8") == ([], []), "outliers stay exact"
