"""What a config.json says, checked before anything is done with it.

`TABLE` declares each family's fields: type, bounds, default, other names, and whether the field changes what
the model computes. Only declared fields ever reach transformers. A field that asks for a feature which isn't
handled here is refused (`NEVER`); any other is bookkeeping and is left out. No torch: the page reads configs
too.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compression.base import ModelUnavailable, UnsupportedModel, canonical
from compression.bundle import Geometry, LayerGeometry
from compression.folder import Folder, shown

CONFIG = "config.json"
REQUIRED = object()  # a default: there is none
ACTIVATIONS = (
    "silu",
    "swish",
    "relu",
    "relu2",
    "relu6",
    "gelu",
    "gelu_new",
    "gelu_fast",
    "gelu_python",
    "gelu_pytorch_tanh",
    "gelu_python_tanh",
    "gelu_accurate",
    "gelu_10",
    "quick_gelu",
    "tanh",
    "sigmoid",
    "mish",
    "laplace",
    "leaky_relu",
    "hardswish",
    "linear",
    "sqrtsoftplus",
)
KINDS = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Field:
    """One field of a config. kind: int, float, bool, word, ids, kinds. lo, hi: inclusive bounds."""

    kind: str
    default: Any = REQUIRED
    lo: float = 0
    hi: float = 0
    choices: tuple[str, ...] = ()
    also: tuple[str, ...] = ()  # other names of the field in files
    empty: bool = False  # null is a value of its own
    forward: bool = True  # changes what the model computes


def _size(hi: int, default: Any = REQUIRED, **more) -> Field:
    return Field("int", default, 1, hi, **more)


def _flag(default: bool, **more) -> Field:
    return Field("bool", default, **more)


def _share(default: float) -> Field:
    """A probability that only training looks at."""
    return Field("float", default, 0.0, 1.0, forward=False)


LAYERS, WIDTH, WIDE, HEADS, WORDS, POSITIONS, MASKED = (
    1_024,
    65_536,
    1_048_576,
    4_096,
    4_194_304,
    100_000_000,
    16_384,
)
EPS = ("float", 1e-12, 0.1)

_COMMON = {
    "vocab_size": _size(WORDS),
    "use_cache": _flag(True, forward=False),
    "bos_token_id": Field("ids", None, empty=True, forward=False),
    "eos_token_id": Field("ids", None, empty=True, forward=False),
    "pad_token_id": Field("ids", None, empty=True, forward=False),
}
_SIZES = _COMMON | {
    "hidden_size": _size(WIDTH),
    "num_hidden_layers": _size(LAYERS),
    "num_attention_heads": _size(HEADS),
    "initializer_range": _share(0.02),
}
_GATED = _SIZES | {
    "intermediate_size": _size(WIDE),
    "hidden_act": Field("word", "silu", choices=ACTIVATIONS),
    "rms_norm_eps": Field("float", 1e-6, *EPS[1:]),
    "attention_dropout": _share(0.0),
    "tie_word_embeddings": _flag(False),
}
_QWEN = _GATED | {
    "max_position_embeddings": _size(POSITIONS, 32_768),
    "num_key_value_heads": _size(HEADS, 32, empty=True),
    "use_sliding_window": _flag(False),
    "sliding_window": _size(POSITIONS, 4_096, empty=True),
    "max_window_layers": Field("int", 28, 0, POSITIONS),
    "layer_types": Field("kinds", None, choices=KINDS, empty=True),
}
TABLE: dict[str, dict[str, Field]] = {
    "llama": _GATED
    | {
        "max_position_embeddings": _size(POSITIONS, 2_048),
        "num_key_value_heads": _size(HEADS, None, empty=True),
        "head_dim": _size(WIDTH, None, empty=True),
        "attention_bias": _flag(False),
        "mlp_bias": _flag(False),
        # how it was cut for training; the sums are the same
        "pretraining_tp": Field("int", 1, 0, 1_024, empty=True, forward=False),
        "bos_token_id": Field("ids", 1, empty=True, forward=False),
        "eos_token_id": Field("ids", 2, empty=True, forward=False),
    },
    "qwen2": _QWEN | {"head_dim": _size(WIDTH, None, empty=True)},
    "qwen3": _QWEN | {"head_dim": _size(WIDTH, 128), "attention_bias": _flag(False)},
    "opt": _COMMON
    | {
        "hidden_size": _size(WIDTH),
        "num_hidden_layers": _size(LAYERS),
        "num_attention_heads": _size(HEADS),
        "ffn_dim": _size(WIDE),
        "max_position_embeddings": _size(POSITIONS, 2_048),
        "word_embed_proj_dim": _size(WIDTH, None, empty=True),
        "activation_function": Field("word", "relu", choices=ACTIVATIONS),
        "do_layer_norm_before": _flag(True),
        "_remove_final_layer_norm": _flag(False),
        "enable_bias": _flag(True),
        "layer_norm_elementwise_affine": _flag(True),
        "tie_word_embeddings": _flag(True),
        "dropout": _share(0.1),
        "attention_dropout": _share(0.0),
        "layerdrop": _share(0.0),
        "init_std": _share(0.02),
        "pad_token_id": Field("ids", 1, empty=True, forward=False),
        "bos_token_id": Field("ids", 2, empty=True, forward=False),
        "eos_token_id": Field("ids", 2, empty=True, forward=False),
    },
    "gpt2": _COMMON
    | {
        "n_embd": _size(WIDTH, also=("hidden_size",)),
        "n_layer": _size(LAYERS, also=("num_hidden_layers",)),
        "n_head": _size(HEADS, also=("num_attention_heads",)),
        # each layer holds a mask of its square
        "n_positions": _size(MASKED, 1_024, also=("max_position_embeddings",)),
        "n_inner": _size(WIDE, None, empty=True),
        "activation_function": Field("word", "gelu_new", choices=ACTIVATIONS),
        "layer_norm_epsilon": Field("float", 1e-5, *EPS[1:]),
        "scale_attn_weights": _flag(True),
        "scale_attn_by_inverse_layer_idx": _flag(False),
        "reorder_and_upcast_attn": _flag(False),
        "tie_word_embeddings": _flag(True),
        "resid_pdrop": _share(0.1),
        "embd_pdrop": _share(0.1),
        "attn_pdrop": _share(0.1),
        "initializer_range": _share(0.02),
        "bos_token_id": Field("ids", 50_256, empty=True, forward=False),
        "eos_token_id": Field("ids", 50_256, empty=True, forward=False),
    },
    "gpt_neox": _SIZES
    | {
        "intermediate_size": _size(WIDE),
        "hidden_act": Field("word", "gelu", choices=ACTIVATIONS),
        "max_position_embeddings": _size(POSITIONS, 2_048),
        "layer_norm_eps": Field("float", 1e-5, *EPS[1:]),
        "use_parallel_residual": _flag(True),
        "attention_bias": _flag(True),
        "tie_word_embeddings": _flag(False),
        "attention_dropout": _share(0.0),
        "hidden_dropout": _share(0.0),
        "classifier_dropout": _share(0.1),
        "bos_token_id": Field("ids", 0, empty=True, forward=False),
        "eos_token_id": Field("ids", 2, empty=True, forward=False),
    },
}
NEVER = {  # field -> the values under which it asks for nothing
    "is_causal": (None, True),
    "add_cross_attention": (None, False),
    "is_encoder_decoder": (None, False),
    "use_bidirectional_attention": (None, False),
    "per_layer_config": (None, {}, []),
    "pruned_heads": (None, {}, []),
}

ROTARY = {  # family -> (top-level name of theta, of the rotated share, the share's default)
    "llama": ("rope_theta", "partial_rotary_factor", 1.0),
    "qwen2": ("rope_theta", "partial_rotary_factor", 1.0),
    "qwen3": ("rope_theta", "partial_rotary_factor", 1.0),
    "gpt_neox": ("rotary_emb_base", "rotary_pct", 0.25),
}
WHOLE = ("llama", "qwen2", "qwen3")  # families whose every channel is rotated
THETA = Field("float", 10_000.0, 1.0, 1e15)
_FACTOR = Field("float", REQUIRED, 0.01, 1e6)
_PLAIN = Field("float", None, 0.0, 1e6, empty=True)
ROPES: dict[str, dict[str, Field]] = {
    "default": {},
    "linear": {"factor": _FACTOR},
    "dynamic": {
        "factor": _FACTOR,
        "original_max_position_embeddings": Field("int", None, 1, POSITIONS, empty=True),
    },
    "yarn": {
        "factor": _FACTOR,
        "attention_factor": _PLAIN,
        "beta_fast": _PLAIN,
        "beta_slow": _PLAIN,
        "mscale": _PLAIN,
        "mscale_all_dim": _PLAIN,
        "truncate": Field("bool", None, empty=True),
    },
    "longrope": {
        "short_factor": Field("numbers", REQUIRED, 1e-3, 1e6),
        "long_factor": Field("numbers", REQUIRED, 1e-3, 1e6),
        "factor": Field("float", None, 0.01, 1e6, empty=True),
        "attention_factor": _PLAIN,
    },
    "llama3": {
        "factor": _FACTOR,
        "low_freq_factor": Field("float", REQUIRED, 1e-6, 1e6),
        "high_freq_factor": Field("float", REQUIRED, 1e-6, 1e6),
    },
}


@dataclass(frozen=True)
class Described:
    """What a config says, in the table's words."""

    family: str
    values: Mapping[str, Any]  # for transformers' class of that family
    geometry: Geometry
    forward: Mapping[str, Any]  # what changes the model's output, each thing said in one way

    @property
    def hash(self) -> str:
        """Equal for two configs exactly if they describe the same computation."""
        return hashlib.sha256(canonical(self.forward).encode()).hexdigest()

    def config(self):
        """The transformers config. Raises ModelUnavailable for a combination that the library itself
        refuses."""
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        values = {k: dict(v) if isinstance(v, dict) else v for k, v in self.values.items()}
        return CONFIG_MAPPING[self.family](**values)


def read(folder: Folder) -> Described:
    """The checked config of a model's folder. Raises ModelUnavailable or UnsupportedModel."""
    if not folder.has(CONFIG):
        raise folder.error("no_config", "has no config.json, so its architecture is unknown")
    return describe(folder.json(CONFIG), folder)


def describe(config: Mapping[str, Any], folder: Folder) -> Described:
    """What the JSON object `config` says; `folder` names the model in messages."""
    family = config.get("model_type")
    if not isinstance(family, str) or family not in TABLE:
        got = shown(family) if isinstance(family, str) else "no type"
        raise UnsupportedModel(
            f"{folder.name} is of type {got!r}; supported: {', '.join(TABLE)}. Choose a model of one of "
            "these families.",
            got=got,
            allowed=", ".join(TABLE),
        )
    check_promises(config, folder)
    read = {name: _take(config, name, field, folder) for name, field in TABLE[family].items()}
    described = _sizes(family, read, folder)
    values = {
        name: read[name]
        for name, field in TABLE[family].items()
        if read[name] is not None or field.default is not None
    }
    forward = {name: read[name] for name, field in TABLE[family].items() if field.forward}
    if family in ROTARY:
        size = described.layers[0].head_size
        values["rope_parameters"] = forward["rope"] = _rope(config, family, size, described.positions, folder)
    _windows(forward, values)
    for name, value in (
        ("num_key_value_heads", described.layers[0].kv_heads),
        ("head_dim", described.layers[0].head_size),
        ("n_inner", described.layers[0].feed_forward),
        ("word_embed_proj_dim", described.embedding or described.hidden),
    ):
        if name in forward:
            forward[name] = value
    pad = values.get("pad_token_id")
    values["pad_token_id"] = pad if type(pad) is int and 0 <= pad < described.vocabulary else None
    values["architectures"] = _architectures(config, folder)
    return Described(family, values, described, forward | {"model_type": family})


def check_promises(config: Mapping[str, Any], folder: Folder) -> None:
    """Refuse what a config says the model is and this program doesn't read: rounded weights, code of its own,
    odd features."""
    if config.get("quantization_config"):
        about = config["quantization_config"]
        method = shown(about.get("quant_method", "unknown") if isinstance(about, Mapping) else about, 40)
        raise folder.error(
            "quantized_model",
            f"holds weights that are compressed already ({method}); give the original model",
            method=method,
        )
    if config.get("auto_map"):
        raise folder.error(
            "needs_code",
            "is defined by program code of its own (auto_map in config.json), and no code from a model's "
            "folder is ever run; choose a model that needs none",
            file=CONFIG,
        )
    for field, allowed in NEVER.items():
        if field in config and not any(
            config[field] is a or (config[field] == a and type(config[field]) is type(a)) for a in allowed
        ):
            raise folder.error(
                "model_feature",
                f"has {field} = {shown(config[field], 40)!r} in config.json, which is not handled here; "
                "choose another model",
                field=field,
                got=shown(config[field], 40),
            )


def _take(config: Mapping[str, Any], name: str, field: Field, folder: Folder, where: str = "") -> Any:
    """The value of a field, or its default. Raises ModelUnavailable for another type or a value beyond the
    bounds."""
    given = [n for n in (name, *field.also) if n in config]
    if not given or (config[given[0]] is None and not field.empty):
        if field.default is REQUIRED:
            raise _odd(folder, where + name, None, "a value must be given")
        return field.default
    value = config[given[0]]
    if any(config[n] != value for n in given[1:]):
        raise _odd(folder, where + given[1], config[given[1]], f"{given[0]} says {shown(value, 40)}")
    if value is None:
        return None
    kinds = {"int": int, "bool": bool, "word": str}
    if field.kind in kinds and type(value) is not kinds[field.kind]:
        raise _odd(folder, where + name, value, f"type {kinds[field.kind].__name__}")
    if field.kind == "float" and not _finite(value):
        raise _odd(folder, where + name, value, "a finite number")
    if field.kind in ("int", "float") and not field.lo <= value <= field.hi:
        raise _odd(folder, where + name, value, f"{field.lo:g} to {field.hi:g}")
    if field.kind == "ids" and not _are_ids(value):
        raise _odd(folder, where + name, value, "a token's number, or up to 64 of them")
    if field.kind == "numbers" and not (
        isinstance(value, list)
        and len(value) <= WIDTH
        and all(_finite(v) and field.lo <= v <= field.hi for v in value)
    ):
        raise _odd(folder, where + name, value, f"a list of numbers from {field.lo:g} to {field.hi:g}")
    if field.kind == "kinds" and not (
        isinstance(value, list) and len(value) <= LAYERS and all(v in field.choices for v in value)
    ):
        raise _odd(folder, where + name, value, f"a list of {', '.join(field.choices)}")
    if field.kind == "word" and value not in field.choices:
        raise _odd(folder, where + name, value, ", ".join(field.choices))
    return float(value) if field.kind == "float" else value


def _finite(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 1 << 53)


def _are_ids(value: Any) -> bool:
    several = value if isinstance(value, list) else [value]
    return len(several) <= 64 and all(type(v) is int and -1 <= v < 1 << 31 for v in several)


def _odd(folder: Folder, field: str, got: Any, allowed: str) -> ModelUnavailable:
    said = "nothing" if got is None else repr(shown(got, 40)) if isinstance(got, str) else shown(got, 40)
    return folder.error(
        "bad_config",
        f"has {field} = {said} in config.json; allowed: {allowed}. Correct the file, or fetch it again.",
        field=field,
        got=said,
        allowed=allowed,
    )


def _sizes(family: str, read: Mapping[str, Any], folder: Folder) -> Geometry:
    """The sizes, after what they ask of each other."""
    hidden, heads = (
        read.get("hidden_size") or read["n_embd"],
        read.get("num_attention_heads") or read["n_head"],
    )
    layers, positions = (
        read.get(a) or read[b]
        for a, b in (("num_hidden_layers", "n_layer"), ("max_position_embeddings", "n_positions"))
    )
    kv_heads = read.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise _odd(folder, "num_key_value_heads", kv_heads, f"a divisor of num_attention_heads = {heads}")
    if hidden % heads and not (family in ("qwen2", "qwen3") and read.get("head_dim")):
        raise _odd(
            folder,
            "n_head" if family == "gpt2" else "num_attention_heads",
            heads,
            f"a divisor of the width {hidden}",
        )
    head_size = read.get("head_dim") or hidden // heads
    if family in WHOLE and head_size % 2:
        raise _odd(folder, "head_dim", head_size, "an even number, since channels are rotated in pairs")
    wide = read.get("ffn_dim") or read.get("intermediate_size") or read.get("n_inner") or 4 * hidden
    kinds = read.get("layer_types")
    if kinds is not None and len(kinds) != layers:
        raise _odd(folder, "layer_types", f"{len(kinds)} entries", f"{layers}, one a layer")
    if kinds and "sliding_attention" in kinds and not (read["use_sliding_window"] and read["sliding_window"]):
        raise _odd(
            folder,
            "sliding_window",
            read["sliding_window"] if read["use_sliding_window"] else None,
            "a number of positions (with use_sliding_window = true), since layer_types names "
            "sliding_attention",
        )
    projected = read.get("word_embed_proj_dim") or hidden
    layer = LayerGeometry(heads, kv_heads, head_size, wide)
    return Geometry(
        family,
        hidden,
        read["vocab_size"],
        positions,
        read["tie_word_embeddings"],
        (layer,) * layers,
        projected if projected != hidden else 0,
    )


def _windows(forward: dict[str, Any], values: dict[str, Any]) -> None:
    """Say which layers look at a window in one way: by layer_types and its length, or not at all."""
    if "layer_types" not in forward:
        return
    use, length, first = (
        forward.pop("use_sliding_window"),
        forward.pop("sliding_window"),
        forward.pop("max_window_layers"),
    )
    layers = values["num_hidden_layers"]
    slides = use and length is not None
    kinds = forward["layer_types"] or [KINDS[bool(slides and i >= first)] for i in range(layers)]
    forward["layer_types"] = kinds if KINDS[1] in kinds else None
    forward["sliding_window"] = length if KINDS[1] in kinds else None


def _rope(
    config: Mapping[str, Any], family: str, head_size: int, positions: int, folder: Folder
) -> dict[str, Any]:
    """The rotary parameters in transformers' present form, from where files of any age keep them."""
    theta, share, default = ROTARY[family]
    found = []
    for place in ("rope_scaling", "rope_parameters"):
        given = config.get(place)
        if given is None or given == {}:
            continue
        if not isinstance(given, Mapping):
            raise _odd(folder, place, given, "an object with rope_type")
        found.append((place, given))
    both = [
        _rope_from(given, config, f"{place}.", theta, share, default, positions, folder)
        for place, given in found
    ]
    if len(both) == 2 and both[0] != both[1]:
        raise _odd(
            folder,
            "rope_scaling",
            "other values than rope_parameters",
            "the same in both, or only one of them",
        )
    rope = both[0] if both else _rope_from({}, config, "", theta, share, default, positions, folder)
    turned = int(head_size * rope["partial_rotary_factor"])
    if family in WHOLE and rope["partial_rotary_factor"] != 1.0:
        raise folder.error(
            "model_feature",
            f"has {share} = {rope['partial_rotary_factor']:g} in config.json, which {family} doesn't "
            "compute; choose another model",
            field=share,
            got=f"{rope['partial_rotary_factor']:g}",
        )
    if turned < 2 or (rope["rope_type"] == "dynamic" and turned < 4):
        raise _odd(
            folder,
            share,
            rope["partial_rotary_factor"],
            f"a share that leaves a few of a head's {head_size} channels",
        )
    for name in ("short_factor", "long_factor"):
        if name in rope and len(rope[name]) != turned // 2:
            raise _odd(
                folder,
                f"rope_scaling.{name}",
                f"{len(rope[name])} numbers",
                f"{turned // 2}, one a pair of channels",
            )
    if rope["rope_type"] == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        raise _odd(
            folder, "rope_scaling.high_freq_factor", rope["high_freq_factor"], "more than low_freq_factor"
        )
    if family in WHOLE:
        del rope["partial_rotary_factor"]
    return rope


def _rope_from(
    given: Mapping,
    config: Mapping,
    where: str,
    theta: str,
    share: str,
    default: float,
    positions: int,
    folder: Folder,
) -> dict[str, Any]:
    kind = given.get("rope_type", given.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPES or any(isinstance(v, Mapping) for v in given.values()):
        raise folder.error(
            "model_feature",
            f"has the rotary type {shown(kind, 40)!r} in config.json; known: {', '.join(ROPES)}. "
            "Choose another model.",
            field="rope_type",
            got=shown(kind, 40),
        )
    out = {"rope_type": kind}
    tops = {
        "rope_theta": (theta, THETA),
        "partial_rotary_factor": (share, Field("float", default, 1e-6, 1.0)),
    }
    if kind not in ("default", "linear", "dynamic"):
        tops["original_max_position_embeddings"] = (
            "original_max_position_embeddings",
            Field("int", positions, 1, POSITIONS),
        )
    for name, (top, field) in tops.items():
        inside = _take(given, name, field, folder, where) if given.get(name) is not None else None
        outside = _take(config, top, field, folder) if config.get(top) is not None else None
        if inside is not None and outside is not None and inside != outside:
            raise _odd(folder, top, outside, f"{inside:g} as in {where}{name}, or nothing")
        out[name] = next((v for v in (inside, outside) if v is not None), field.default)
    for name, field in ROPES[kind].items():
        if (value := _take(given, name, field, folder, where)) is not None:
            out[name] = value
    return out


def _architectures(config: Mapping[str, Any], folder: Folder) -> list[str] | None:
    given = config.get("architectures")
    if given is None:
        return None
    if (
        not isinstance(given, list)
        or len(given) > 16
        or not all(isinstance(name, str) and len(name) < 200 for name in given)
    ):
        raise _odd(folder, "architectures", given, "a list of class names")
    return given
