"""Reads a model's config.json, and checks it before anything is done with it.

The table of architectures declares the fields of each: type, bounds, default, other names, and whether the
field changes what the model computes. Only declared fields ever reach transformers. A field that asks for a
feature which isn't handled here is refused (`NEVER`). All other fields are bookkeeping and are left out. No
torch: the page reads configs too.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compression.architectures import ARCHITECTURES, Architecture
from compression.architectures.declare import KINDS, LAYERS, POSITIONS, REQUIRED, WIDTH, Field, Rotary
from compression.base import ModelUnavailable, UnsupportedModel, canonical
from compression.bundle import Geometry
from compression.folder import Folder, shown

CONFIG, GENERATION = "config.json", "generation_config.json"
NEVER: dict[str, tuple] = {  # field -> the values with which it asks for nothing
    "is_causal": (None, True),
    "add_cross_attention": (None, False),
    "is_encoder_decoder": (None, False),
    "use_bidirectional_attention": (None, False),
    "per_layer_config": (None, {}, []),
    "pruned_heads": (None, {}, []),
}

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
    """What a config says, in the names of the table of architectures."""

    architecture: str  # key of ARCHITECTURES
    values: Mapping[str, Any]  # for transformers' class of that architecture
    geometry: Geometry
    forward: Mapping[str, Any]  # the values that change the model's output, each written in one way only

    @property
    def hash(self) -> str:
        """Equal for two configs if and only if they describe the same computation."""
        return hashlib.sha256(canonical(self.forward).encode()).hexdigest()

    def config(self):
        """The transformers config.

        Raises ModelUnavailable for a combination of values that the library itself refuses.
        """
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        values = {k: dict(v) if isinstance(v, dict) else v for k, v in self.values.items()}
        return CONFIG_MAPPING[self.architecture](**values)


def read(folder: Folder) -> Described:
    """The checked config of a model's folder. Raises ModelUnavailable or UnsupportedModel."""
    if not folder.has(CONFIG):
        raise folder.error("no_config", "has no config.json, so its architecture is unknown")
    return describe(folder.json(CONFIG), folder)


def describe(config: Mapping[str, Any], folder: Folder) -> Described:
    """What the JSON object `config` says. `folder` names the model in messages."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        got = shown(kind) if isinstance(kind, str) else "no type"
        raise UnsupportedModel(
            f"{folder.name} is of type {got!r}; supported: {', '.join(ARCHITECTURES)}. Choose a model "
            "of one of these architectures.",
            got=got,
            allowed=", ".join(ARCHITECTURES),
        )
    check_promises(config, folder)
    row = ARCHITECTURES[kind]
    read = {name: _take(config, name, field, folder) for name, field in row.fields.items()}
    described = _sizes(row, read, folder)
    values = {
        name: read[name]
        for name, field in row.fields.items()
        if read[name] is not None or field.default is not None
    }
    forward = {name: read[name] for name, field in row.fields.items() if field.forward}
    if row.rotary:
        size = described.layers[0].head_size
        values["rope_parameters"] = forward["rope"] = _rope(
            config, row.rotary, size, described.positions, folder
        )
    _windows(forward, values)
    for name, value in (
        (row.sizes.kv_heads, described.layers[0].kv_heads),
        (row.sizes.head_size, described.layers[0].head_size),
        (row.sizes.feed_forward, described.layers[0].feed_forward),
        (row.sizes.embedding, described.embedding or described.hidden),
    ):
        if name in forward:
            forward[name] = value
    pad = values.get("pad_token_id")
    values["pad_token_id"] = pad if type(pad) is int and 0 <= pad < described.vocabulary else None
    values["architectures"] = _architectures(config, folder)
    return Described(kind, values, described, forward | {"model_type": kind})


def check_promises(config: Mapping[str, Any], folder: Folder) -> None:
    """Refuse a config that says the model is something that this program doesn't read.

    E.g. compressed weights, code of its own, unknown features.
    """
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
    """The value of a field, or its default.

    Raises ModelUnavailable for a value of another type or beyond the bounds.
    """
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


def _sizes(row: Architecture, read: Mapping[str, Any], folder: Folder) -> Geometry:
    """The model's sizes, after a check that they fit each other."""
    names = row.sizes
    hidden, heads, layers = read[names.hidden], read[names.heads], read[names.layers]
    kv_heads = read.get(names.kv_heads) or heads
    if heads % kv_heads:
        raise _odd(folder, names.kv_heads, kv_heads, f"a divisor of {names.heads} = {heads}")
    if hidden % heads and not (names.free_heads and read.get(names.head_size)):
        raise _odd(folder, names.heads, heads, f"a divisor of the width {hidden}")
    head_size = read.get(names.head_size) or hidden // heads
    if row.rotary and row.rotary.whole and head_size % 2:
        raise _odd(folder, names.head_size, head_size, "an even number, since channels are rotated in pairs")
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
    return row.geometry(read.get)


def _windows(forward: dict[str, Any], values: dict[str, Any]) -> None:
    """Bring the sliding windows into one form: layer_types and the window's length, or neither."""
    if "layer_types" not in forward:
        return
    use = forward.pop("use_sliding_window")
    length = forward.pop("sliding_window")
    first = forward.pop("max_window_layers")
    layers = values["num_hidden_layers"]
    slides = use and length is not None
    kinds = forward["layer_types"] or [KINDS[bool(slides and i >= first)] for i in range(layers)]
    forward["layer_types"] = kinds if KINDS[1] in kinds else None
    forward["sliding_window"] = length if KINDS[1] in kinds else None


def _rope(
    config: Mapping[str, Any], row: Rotary, head_size: int, positions: int, folder: Folder
) -> dict[str, Any]:
    """The rotary parameters in transformers' present form. Files of any age keep them in several places."""
    share = row.share
    found = []
    for place in ("rope_scaling", "rope_parameters"):
        given = config.get(place)
        if given is None or given == {}:
            continue
        if not isinstance(given, Mapping):
            raise _odd(folder, place, given, "an object with rope_type")
        found.append((place, given))
    both = [_rope_from(given, config, f"{place}.", row, positions, folder) for place, given in found]
    if len(both) == 2 and both[0] != both[1]:
        raise _odd(
            folder,
            "rope_scaling",
            "other values than rope_parameters",
            "the same in both, or only one of them",
        )
    rope = both[0] if both else _rope_from({}, config, "", row, positions, folder)
    turned = int(head_size * rope["partial_rotary_factor"])
    if row.whole and rope["partial_rotary_factor"] != 1.0:
        raise folder.error(
            "model_feature",
            f"has {share} = {rope['partial_rotary_factor']:g} in config.json, which its architecture "
            "doesn't compute; choose another model",
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
    if row.whole:
        del rope["partial_rotary_factor"]
    return rope


def _rope_from(
    given: Mapping, config: Mapping, where: str, row: Rotary, positions: int, folder: Folder
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
        "rope_theta": (row.theta, THETA),
        "partial_rotary_factor": (row.share, Field("float", row.default_share, 1e-6, 1.0)),
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
