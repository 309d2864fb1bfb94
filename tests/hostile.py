"""Hostile and broken model folders, each with the code of the error that must come of it.

    for name, case in CASES.items():
        case.build(place)        # `place` is a new folder; code None: it must load and give the model's own
                                 numbers
        ...models.load(str(place)) raises an error whose code is case.code

Every case is a whole small model (tests/tiny.py) with one thing wrong. The campaign (tests/soak) tries them
too.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests import tiny

WEIGHTS, INDEX, CONFIG, TOKENIZER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "tokenizer.json",
)
MARK = "code-has-run"  # the file that a folder's program code would leave behind
CODE = f'open(__file__ + ".{MARK}", "w").close()\nraise SystemExit("code of the folder has run")\n'


@dataclass(frozen=True)
class Case:
    """What is wrong, and what must be said. code None: nothing is; the model loads."""

    code: str | None
    change: Callable[[Path], None]
    family: str = "llama"

    def build(self, place: Path) -> Path:
        """The folder `place`, made from the tiny model of the family."""
        shutil.copytree(tiny.folder(self.family), place)
        self.change(place)
        return place


def config(**values) -> Callable[[Path], None]:
    """Fields of config.json set; ... removes one."""

    def change(place: Path) -> None:
        found = json.loads((place / CONFIG).read_text()) | values
        (place / CONFIG).write_text(json.dumps({k: v for k, v in found.items() if v is not ...}))

    return change


def tokenizer_config(**values) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        file = place / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def tokenizer_json(**values) -> Callable[[Path], None]:
    """Parts of tokenizer.json set; `model` is added to and not replaced."""

    def change(place: Path) -> None:
        found = json.loads((place / TOKENIZER).read_text())
        model = found["model"] | values.pop("model", {})
        (place / TOKENIZER).write_text(json.dumps(found | values | {"model": model}))

    return change


def rope(**values) -> Callable[[Path], None]:
    return config(rope_parameters={"rope_theta": 10_000.0, "rope_type": "default"} | values)


def tensors(change: Callable[[dict], object], file: str = WEIGHTS) -> Callable[[Path], None]:
    """The weights changed, in place or by what `change` returns."""

    def apply(place: Path) -> None:
        found = load_file(place / WEIGHTS)
        made = change(found)
        found = made if isinstance(made, dict) else found
        save_file(
            {k: v.clone().contiguous() for k, v in found.items()}, place / file, metadata={"format": "pt"}
        )

    return apply


def put(file: str, content: bytes | str | dict) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        text = json.dumps(content) if isinstance(content, dict) else content
        (place / file).unlink(missing_ok=True)
        (place / file).write_bytes(text if isinstance(text, bytes) else text.encode())

    return change


def without(*files: str) -> Callable[[Path], None]:
    return lambda place: [(place / f).unlink() for f in files] and None


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        for step in changes:
            step(place)

    return change


def instead(file: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        (place / file).unlink(missing_ok=True)
        make(place / file)

    return change


def _bind(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's name must be short
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(path.name)
    finally:
        os.chdir(here)


def _outside(path: Path) -> None:
    other = path.parent.with_name(path.parent.name + "-elsewhere")
    other.mkdir(exist_ok=True)
    shutil.copy(Path(tiny.folder("llama")) / path.name, other)
    path.symlink_to(other / path.name)


def _shards(edit: Callable[[Path, dict], object] = lambda place, places: None) -> Callable[[Path], None]:
    """Two shards and an index; edit(place, weight_map) may then spoil them."""

    def change(place: Path) -> None:
        found = load_file(place / WEIGHTS)
        names, files = sorted(found), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
        places = {n: files[i % 2] for i, n in enumerate(names)}
        for f in files:
            save_file({n: found[n] for n in names if places[n] == f}, place / f, metadata={"format": "pt"})
        (place / WEIGHTS).unlink()
        edit(place, places)
        (place / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))

    return change


def _header(edit: Callable[[dict], object]) -> Callable[[Path], None]:
    """The header of the weights' file changed by hand, its tensors left."""

    def change(place: Path) -> None:
        raw = (place / WEIGHTS).read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8 : 8 + size])
        edit(header)
        text = json.dumps(header).encode()
        (place / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])

    return change


def _first(header: dict) -> dict:
    return next(v for k, v in header.items() if k != "__metadata__")


def _raw(edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda place: (place / WEIGHTS).write_bytes(edit((place / WEIGHTS).read_bytes())) and None


def _vocabulary(extra: int) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        found = json.loads((place / TOKENIZER).read_text())
        found["added_tokens"].append(
            {
                "id": 258 + extra,
                "content": "<odd>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        )
        found["model"]["vocab"]["<odd>"] = 258 + extra
        (place / TOKENIZER).write_text(json.dumps(found))

    return change


def _ran(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    """Program code in the folder, under every name that such code usually has."""
    files = (
        "modeling_own.py",
        "configuration_own.py",
        "tokenization_own.py",
        "processing_own.py",
        "setup.py",
        "__init__.py",
    )
    return both(*(put(f, CODE) for f in files), *changes)


HEAD, NORM, Q = "lm_head.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"
AUTO = {
    "AutoConfig": "configuration_own.OwnConfig",
    "AutoModelForCausalLM": "modeling_own.Own",
    "AutoTokenizer": "tokenization_own.Own",
}

CASES: dict[str, Case] = {
    # --- loads ---
    "as it is": Case(None, lambda place: None),
    "shards": Case(None, _shards()),
    "config of unknown bookkeeping": Case(
        None, config(unsloth_version="2", _attn_implementation="flash_attention_2", foo=[1], use_cache=False)
    ),
    "no dtype": Case(None, config(dtype=..., torch_dtype=...)),
    "equal head in the file": Case(
        None, tensors(lambda t: {**t, HEAD: t["model.embed_tokens.weight"].clone()})
    ),
    "only the head of two tied": Case(
        None,
        tensors(
            lambda t: {
                **{k: v for k, v in t.items() if "embed" not in k},
                HEAD: t["model.embed_tokens.weight"],
            }
        ),
    ),
    "names of the backbone alone": Case(
        None, tensors(lambda t: {k.removeprefix("model."): v for k, v in t.items()})
    ),
    "gpt2: names of the backbone alone": Case(
        None, tensors(lambda t: {k.removeprefix("transformer."): v for k, v in t.items()}), "gpt2"
    ),
    "opt: names of the backbone alone": Case(
        None, tensors(lambda t: {k.removeprefix("model."): v for k, v in t.items()}), "opt"
    ),
    "neox: old name of the head": Case(
        None, tensors(lambda t: {k.replace("lm_head.", "embed_out."): v for k, v in t.items()}), "gpt_neox"
    ),
    "gpt2: masks in the file": Case(
        None,
        tensors(
            lambda t: (
                t
                | {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 256, 256).tril() for i in (0, 1)}
                | {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
            )
        ),
        "gpt2",
    ),
    "neox: masks in the file": Case(
        None,
        tensors(
            lambda t: (
                t
                | {
                    "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool).tril(),
                    "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
                }
            )
        ),
        "gpt_neox",
    ),
    "angles in the file": Case(
        None,
        tensors(
            lambda t: (
                t | {"model.layers.1.self_attn.rotary_emb.inv_freq": 1e4 ** (-torch.arange(0, 12, 2) / 12)}
            )
        ),
    ),
    "a million positions": Case(None, config(max_position_embeddings=1_000_000)),
    "stop list": Case(None, config(eos_token_id=[257, 3, -1])),
    # --- what config says and what the file holds disagree ---
    "untied, no head": Case("missing_tensors", config(tie_word_embeddings=False)),
    "tied, another head": Case(
        "heads_differ", tensors(lambda t: t | {HEAD: torch.randn_like(t["model.embed_tokens.weight"])})
    ),
    "a tensor missing": Case("missing_tensors", tensors(lambda t: {k: v for k, v in t.items() if k != Q})),
    "all norms missing": Case(
        "missing_tensors", tensors(lambda t: {k: v for k, v in t.items() if "norm" not in k})
    ),
    "no tensor at all": Case("missing_tensors", tensors(lambda t: {"model.norm.weight": t[NORM]})),
    "more layers in config": Case("layers_differ", config(num_hidden_layers=3)),
    "fewer layers in config": Case("layers_differ", config(num_hidden_layers=1)),
    "a layer missing": Case(
        "layers_differ", tensors(lambda t: {k: v for k, v in t.items() if ".layers.0." not in k})
    ),
    "reward model": Case("unexpected_tensors", tensors(lambda t: t | {"score.weight": torch.randn(1, 48)})),
    "value head": Case(
        "unexpected_tensors", tensors(lambda t: t | {"v_head.summary.weight": torch.randn(1, 48)})
    ),
    "adapter's prefix": Case(
        "unexpected_tensors", tensors(lambda t: {f"base_model.model.{k}": v for k, v in t.items()})
    ),
    "adapter's matrices": Case(
        "unexpected_tensors",
        tensors(lambda t: t | {Q.replace("weight", "lora_A.weight"): torch.randn(4, 48)}),
    ),
    "another prefix": Case("unexpected_tensors", tensors(lambda t: {f"module.{k}": v for k, v in t.items()})),
    "biases that config denies": Case(
        "unexpected_tensors", tensors(lambda t: t | {Q.replace("weight", "bias"): torch.randn(48)})
    ),
    "biases that config asks for": Case("missing_tensors", config(attention_bias=True)),
    "wrong vocabulary": Case("tensor_shape", config(vocab_size=300)),
    "wrong width of the feed-forward": Case("tensor_shape", config(intermediate_size=96)),
    "wrong heads": Case("tensor_shape", config(num_key_value_heads=4)),
    "wrong head size": Case("tensor_shape", config(head_dim=16)),
    "transposed": Case(
        "tensor_shape",
        tensors(
            lambda t: t | {"model.layers.0.mlp.up_proj.weight": t["model.layers.0.mlp.up_proj.weight"].T}
        ),
    ),
    "two names of one tensor": Case("tensor_twice", tensors(lambda t: t | {"norm.weight": t[NORM]})),
    "neox: both names of the head": Case(
        "tensor_twice",
        tensors(
            lambda t: (
                t
                | dict.fromkeys(
                    ("embed_out.weight", HEAD),
                    next(v for k, v in t.items() if k in ("embed_out.weight", HEAD)),
                )
            )
        ),
        "gpt_neox",
    ),
    "integers": Case("tensor_type", tensors(lambda t: t | {Q: t[Q].mul(100).to(torch.int8)})),
    "float8": Case("tensor_type", tensors(lambda t: t | {Q: t[Q].to(torch.float8_e4m3fn)})),
    "not a number": Case("not_finite", tensors(lambda t: t[Q].__setitem__((3, 3), float("nan")))),
    "infinity": Case("not_finite", tensors(lambda t: t[NORM].__setitem__(0, float("-inf")))),
    "angles of another base": Case(
        "buffer_differs",
        tensors(lambda t: t | {"model.rotary_emb.inv_freq": 100.0 ** (-torch.arange(0, 12, 2) / 12)}),
    ),
    "gpt2: a mask of another kind": Case(
        "buffer_differs",
        tensors(lambda t: t | {"transformer.h.0.attn.bias": torch.ones(1, 1, 256, 256)}),
        "gpt2",
    ),
    "mixture of experts": Case(
        "unexpected_tensors",
        tensors(lambda t: t | {"model.layers.0.mlp.experts.0.up_proj.weight": torch.randn(8, 48)}),
    ),
    # --- compressed already, adapters, other files ---
    "bitsandbytes": Case(
        "quantized_model", config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    ),
    "awq": Case("quantized_model", config(quantization_config={"quant_method": "awq", "bits": 4})),
    "fp8": Case("quantized_model", config(quantization_config={"quant_method": "fp8"})),
    "mxfp4": Case("quantized_model", config(quantization_config={"quant_method": "mxfp4"})),
    "quantization of another form": Case("quantized_model", config(quantization_config="yes")),
    "gptq without a config": Case(
        "unexpected_tensors",
        tensors(lambda t: {k.replace("proj.weight", "proj.qweight"): v for k, v in t.items()}),
    ),
    "scales beside": Case("unexpected_tensors", tensors(lambda t: t | {Q + "_scale": torch.ones(1)})),
    "our own": Case("already_compressed", put("compression.json", "{}")),
    "an adapter beside": Case("adapter_folder", put("adapter_config.json", {"peft_type": "LORA"})),
    "an adapter alone": Case(
        "adapter_folder",
        both(
            without(WEIGHTS, CONFIG), put("adapter_config.json", {}), put("adapter_model.safetensors", b"x")
        ),
    ),
    "pickles only": Case("no_safetensors", both(without(WEIGHTS), put("pytorch_model.bin", b"\x80\x04."))),
    "gguf only": Case("gguf_only", both(without(WEIGHTS), put("model.gguf", b"GGUF"))),
    "another name": Case(
        "no_weights", lambda place: (place / WEIGHTS).rename(place / "weights.safetensors") and None
    ),
    "no files": Case("no_safetensors", without(WEIGHTS)),
    # --- files ---
    "pointer of git lfs": Case(
        "pointer_file", put(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    ),
    "pointer of git annex": Case("pointer_file", put(WEIGHTS, "/annex/objects/SHA256E-s1--0.safetensors\n")),
    "config as a pointer": Case("pointer_file", put(CONFIG, "version https://git-lfs.github.com/spec/v1\n")),
    "web page": Case("web_page", put(WEIGHTS, "<!DOCTYPE html><html>Not found</html>")),
    "empty": Case("cut_file", put(WEIGHTS, b"")),
    "cut in the tensors": Case("cut_file", _raw(lambda raw: raw[:-1000])),
    "cut in the header": Case("cut_file", _raw(lambda raw: raw[:300])),
    "longer": Case("not_safetensors", _raw(lambda raw: raw + bytes(64))),
    "noise": Case("not_safetensors", put(WEIGHTS, bytes(range(256)) * 64)),
    "giant header": Case("not_safetensors", _raw(lambda raw: struct.pack("<Q", 1 << 60) + raw[8:])),
    "header no JSON": Case(
        "not_safetensors", put(WEIGHTS, struct.pack("<Q", 16) + b"{" + b"!" * 15 + bytes(64))
    ),
    "header of nested lists": Case(
        "not_safetensors",
        put(WEIGHTS, struct.pack("<Q", 200_006) + b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    ),
    "overlap": Case(
        "not_safetensors",
        _header(
            lambda h: _first(h).__setitem__(
                "data_offsets", [4, 4 + _first(h)["data_offsets"][1] - _first(h)["data_offsets"][0]]
            )
        ),
    ),
    "negative shape": Case("not_safetensors", _header(lambda h: _first(h).__setitem__("shape", [-1, 2]))),
    "enormous shape": Case(
        "not_safetensors", _header(lambda h: _first(h).__setitem__("shape", [1 << 47, 1 << 47]))
    ),
    "unknown type": Case("not_safetensors", _header(lambda h: _first(h).__setitem__("dtype", "Q4"))),
    "pipe": Case("no_file_there", instead(WEIGHTS, os.mkfifo)),
    "folder": Case("no_file_there", instead(WEIGHTS, os.mkdir)),
    "socket": Case("no_file_there", instead(WEIGHTS, _bind)),
    "device": Case("outside_folder", instead(WEIGHTS, lambda p: p.symlink_to("/dev/zero"))),
    "config as a pipe": Case("no_file_there", instead(CONFIG, os.mkfifo)),
    "config as a device": Case("outside_folder", instead(CONFIG, lambda p: p.symlink_to("/dev/zero"))),
    "tokenizer as a pipe": Case("no_file_there", instead(TOKENIZER, os.mkfifo)),
    "template as a pipe": Case("no_file_there", instead("chat_template.jinja", os.mkfifo)),
    "generation config as a pipe": Case("no_file_there", instead("generation_config.json", os.mkfifo)),
    "link to elsewhere": Case("outside_folder", instead(WEIGHTS, _outside)),
    "link to nowhere": Case("file_missing", instead(WEIGHTS, lambda p: p.symlink_to("gone.safetensors"))),
    # --- the index ---
    "a shard missing": Case(
        "missing_shards", _shards(lambda place, m: (place / "model-00002-of-00002.safetensors").unlink())
    ),
    "no index": Case("missing_shards", both(_shards(), without(INDEX))),
    "index that names elsewhere": Case(
        "outside_folder", _shards(lambda place, m: m.__setitem__(Q, "../other/model.safetensors"))
    ),
    "index of an absolute path": Case(
        "outside_folder", _shards(lambda place, m: m.__setitem__(Q, "/etc/passwd"))
    ),
    "index of a pickle": Case(
        "outside_folder", _shards(lambda place, m: m.__setitem__(Q, "pytorch_model.bin"))
    ),
    "index of another type": Case("bad_index", both(_shards(), put(INDEX, {"weight_map": ["a"]}))),
    "index puts a tensor elsewhere": Case(
        "bad_index", _shards(lambda place, m: m.__setitem__(Q, next(f for f in m.values() if f != m[Q])))
    ),
    "index names a tensor more": Case("bad_index", _shards(lambda place, m: m.__setitem__("ghost", m[Q]))),
    "index names a tensor less": Case("bad_index", _shards(lambda place, m: m.pop(Q))),
    "a shard that the index doesn't name": Case(
        "stray_shards",
        _shards(lambda place, m: shutil.copy(place / m[Q], place / "model-00003-of-00003.safetensors")),
    ),
    "shards beside the whole": Case(
        "stray_shards",
        lambda place: shutil.copy(place / WEIGHTS, place / "model-00001-of-00002.safetensors") and None,
    ),
    "a tensor in two files": Case(
        "tensor_twice",
        _shards(
            lambda place, m: save_file(
                {**load_file(place / m[Q]), **load_file(place / next(f for f in m.values() if f != m[Q]))},
                place / m[Q],
            )
        ),
    ),
    # --- the config ---
    "1e9 layers": Case("bad_config", config(num_hidden_layers=1_000_000_000)),
    "1e9 heads": Case("bad_config", config(num_attention_heads=1_000_000_000)),
    "1e9 wide": Case("bad_config", config(hidden_size=1_000_000_000)),
    "no layers": Case("bad_config", config(num_hidden_layers=0)),
    "negative layers": Case("bad_config", config(num_hidden_layers=-2)),
    "layers in words": Case("bad_config", config(num_hidden_layers="2")),
    "layers as a list": Case("bad_config", config(num_hidden_layers=[2])),
    "half a layer": Case("bad_config", config(num_hidden_layers=2.0)),
    "true layers": Case("bad_config", config(num_hidden_layers=True)),
    "no width": Case("bad_config", config(hidden_size=None)),
    "widths under another name": Case("bad_config", config(hidden_size=..., dim=48)),
    "heads that don't divide": Case("bad_config", config(num_attention_heads=5)),
    "key heads that don't divide": Case("bad_config", config(num_key_value_heads=3)),
    "odd head size": Case("bad_config", config(head_dim=13)),
    "epsilon in words": Case("bad_config", config(rms_norm_eps="1e-5")),
    "epsilon no number": Case("bad_config", config(rms_norm_eps=float("nan"))),
    "epsilon of a thousand": Case("bad_config", config(rms_norm_eps=1000.0)),
    "tie in words": Case("bad_config", config(tie_word_embeddings="false")),
    "tie as a number": Case("bad_config", config(tie_word_embeddings=0)),
    "unknown activation": Case("bad_config", config(hidden_act="os.system")),
    "endless theta": Case("bad_config", rope(rope_theta=float("inf"))),
    "negative theta": Case("bad_config", rope(rope_theta=-1.0)),
    "two thetas": Case("bad_config", config(rope_theta=100.0)),
    "rotary without its factor": Case("bad_config", rope(rope_type="linear")),
    "rotary factor in words": Case("bad_config", rope(rope_type="linear", factor="2")),
    "rotary lists too short": Case(
        "bad_config", rope(rope_type="longrope", short_factor=[1.0], long_factor=[1.0])
    ),
    "rotary as a list": Case("bad_config", config(rope_parameters=[1])),
    "unknown rotary": Case("model_feature", rope(rope_type="evil")),
    "rotary of a part": Case("model_feature", rope(partial_rotary_factor=0.5)),
    "not causal": Case("model_feature", config(is_causal=False)),
    "layers of their own": Case("model_feature", config(per_layer_config={"0": {"hidden_size": 8}})),
    "gpt2: cross attention": Case("model_feature", config(add_cross_attention=True), "gpt2"),
    "gpt2: 1e6 positions": Case("bad_config", config(n_positions=1_000_000), "gpt2"),
    "qwen: kinds of layers unknown": Case(
        "bad_config", config(layer_types=["full_attention", "evil"]), "qwen2"
    ),
    "qwen: too few kinds": Case("bad_config", config(layer_types=["full_attention"]), "qwen2"),
    "stop in words": Case("bad_config", config(eos_token_id="</s>")),
    "generation config in words": Case("bad_config", put("generation_config.json", {"eos_token_id": ["x"]})),
    "generation config with NaN": Case("bad_json", put("generation_config.json", b'{"temperature": NaN}')),
    "generation config beyond all numbers": Case(
        "bad_json", put("generation_config.json", b'{"temperature": 1e999}')
    ),
    "config of 2 MB": Case("file_too_big", put(CONFIG, b" " * 2_000_000)),
    "config no JSON": Case("bad_json", put(CONFIG, b"{'model_type': 'llama'}")),
    "config a list": Case("bad_json", put(CONFIG, b"[]")),
    "config twice": Case("bad_json", put(CONFIG, b'{"model_type": "llama", "model_type": "gpt2"}')),
    "config nested deep": Case("bad_json", put(CONFIG, b"[" * 100_000)),
    "no config": Case("no_config", without(CONFIG)),
    "unknown family": Case("unsupported_model", config(model_type="mistral")),
    "family of another type": Case("unsupported_model", config(model_type={"a": 1})),
    "no family": Case("unsupported_model", config(model_type=...)),
    # --- code ---
    "code in config": Case("needs_code", _ran(config(auto_map=AUTO))),
    "code of an unknown family": Case("unsupported_model", _ran(config(auto_map=AUTO, model_type="own"))),
    "code in the tokenizer": Case(
        "needs_code",
        _ran(put("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}})),
    ),
    "code in the processor": Case(
        "needs_code",
        _ran(put("processor_config.json", {"auto_map": {"AutoProcessor": "processing_own.Own"}})),
    ),
    "code, and a wish to trust it": Case(None, _ran(config(trust_remote_code=True, custom_code=True))),
    # --- the tokenizer ---
    "no tokenizer": Case("no_tokenizer", without(TOKENIZER)),
    "an id beyond the table": Case("tokenizer_beyond", _vocabulary(1000)),
    "a start token beyond the table": Case(
        "tokenizer_beyond",
        tokenizer_json(
            post_processor={
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "<s>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [5000], "tokens": ["<s>"]}},
            }
        ),
    ),
    "tokenizer no JSON": Case("bad_json", put(TOKENIZER, b"{")),
    "tokenizer empty": Case("cut_file", put(TOKENIZER, b"")),
    "tokenizer of nothing": Case("bad_tokenizer", put(TOKENIZER, {"model": None})),
    "tokenizer that needs a package": Case(
        "tokenizer_needs", both(without(TOKENIZER), put("tokenizer.model", b"\x0a\x09"))
    ),
    "tokenizer settings of a wrong type": Case("bad_tokenizer", tokenizer_config(model_max_length="x")),
    "template of a wrong type": Case("bad_tokenizer", tokenizer_config(chat_template=5)),
    "tokenizer class that is none": Case(
        None, tokenizer_config(tokenizer_class="os.system", tokenizer_file="/etc/passwd")
    ),
    "a length that is no number": Case("bad_json", tokenizer_config(model_max_length=float("nan"))),
    "an empty template": Case(None, tokenizer_config(chat_template="")),
    "template of 2 MB": Case("file_too_big", put("chat_template.jinja", b" " * 2_000_000)),
}
