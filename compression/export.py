"""Writes a compressed model in formats that other programs load, and reads it back.

    from compression import artifact, export

    export.write(artifact.load("my-model-4-bits"), "my-model-gptq", "gptq_v2")
    bundle = export.read("my-model-gptq")

A model can be exported if every linear of its blocks has integers on a uniform grid, w = scale * (code -
zero), with whole-number zero points. That is the format GroupedInt, as rounding, GPTQ, AWQ or SmoothQuant
store it. Sparse, low-rank, code-book and mixed formats have no place in these files. They are refused with
the reason, and so is everything that a loader would read wrongly. All other tensors are float16, or float32
if float16 can't hold a value. Configs and tokenizers are written for transformers 4 and 5 alike
(elsewhere.py).

    gptq_v2, gptq        a GPTQ checkpoint (GPTQModel, vLLM, AutoGPTQ). For each linear [out, in]
                           qweight int32 [in * bits / 32, out]    qzeros int32 [groups, out * bits / 32]
                           scales float16 [groups, out]           g_idx int32 [in]
                         Version 2 stores zero points as they are. Version 1 stores zero - 1 and has no place
                         for 0; GPTQModel takes its asymmetric files only if it wrote them itself.
    compressed-tensors   (vLLM, transformers) pack-quantized:
                           weight_packed int32 [out, in * bits / 32]    weight_scale float16 [out, groups]
                           weight_shape int64 [2]
                           weight_zero_point int32 [out * bits / 32, groups] unless symmetric
                         and int-quantized where inputs are rounded to 8 bits token by token: weight int8,
                         weight_scale.

All of them pack as kernels/bits.py does (value k at bits [b k, b k + b) of a little-endian stream), in words
of 32 bits: along `in` for codes and along `out` for zero points. compressed-tensors has packed 3 bits in two
ways, so 3 bits aren't exported to it. Its version 0.19 gave up groups that are scattered over the inputs
(act-order without static groups). An adapter beside frozen weights is exported alone, for PEFT (adapter.py).

If a family fuses q, k and v, the file has the fused layer. Rows are independent, so rows of codes, scales and
zero points are put together in the family's own order. GPT-2's layers are Conv1D. A GPTQ checkpoint stores
them as if they were linears; compressed-tensors knows only linears.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compression import adapter, arch, artifact, beside, checkpoint, configs, elsewhere, headers
from compression.base import CannotExport, ModelUnavailable, Note
from compression.bundle import Bundle
from compression.folder import Folder
from compression.packed.activations import ActivationRule
from compression.packed.grid import Grid
from compression.packed.grouped_int import GroupedInt
from compression.packed.linear import CompressedLinear, CompressedTable
from kernels.bits import pack, unpack
from kernels.home import whole

BITS = {"gptq_v2": (2, 3, 4, 8), "gptq": (2, 3, 4, 8), "compressed-tensors": (2, 4, 8)}
FORMS = (*BITS, adapter.FORM)
DTYPE = torch.float16  # of scales and uncompressed tensors: loaders of these formats compute in it
BY_TOKEN = ActivationRule(bits=8)
LOADERS = {
    "gptq_v2": "a program that reads GPTQ checkpoints of version 2, such as GPTQModel",
    "gptq": "a program that reads GPTQ checkpoints, such as GPTQModel or vLLM",
    "compressed-tensors": "transformers and the package compressed-tensors, or with vLLM",
}

# transformers expects a layer's zero points unpacked and refuses the file, so its config asks for dequantised
# weights on loading
UNPACKED = (
    "Its zero points are asymmetric: transformers 5 with compressed-tensors 0.19 or newer opens it and "
    "dequantises it on loading; transformers 4 can't. For that take symmetric weights, or gptq_v2."
)


@dataclass(frozen=True)
class Scheme:
    """The settings that all layers of a file share."""

    form: str
    bits: int
    group_size: int
    symmetric: bool
    scattered: bool  # groups are not runs of neighbouring inputs
    rule: ActivationRule | None = None


@dataclass(frozen=True)
class Layer:
    """A linear as the file has it: one of ours, or q, k and v put together."""

    codes: Tensor  # uint8 [out, in], one a byte
    grid: Grid
    bias: Tensor | None  # [out]


def offers(folder: Path | str) -> list[str]:
    """The formats in which `write` writes the model that artifact.save put into `folder`.

    Its manifest and its config are read, no weights. Of the two versions of GPTQ it names the newer one.
    Raises ModelUnavailable for a folder that isn't as it was saved.
    """
    files = Folder(folder)
    manifest, config = artifact.described(files), configs.read(files).config()
    return [form for form in FORMS if form != "gptq" and not refusal(manifest, config, form)]


def write(
    bundle: Bundle, folder: Path | str, form: str = "gptq_v2", label: str = "compressed"
) -> tuple[int, tuple[Note, ...]]:
    """Write `bundle` to `folder`, which appears whole or not at all.

    Returns (bytes of model.safetensors, notes for the reader). form: one of FORMS. label: what was done to
    the model, for its README. Raises CannotExport with the reason.
    """
    from safetensors.torch import save_file

    if form not in FORMS:
        raise CannotExport(f"format {form!r}; allowed: {', '.join(FORMS)}")
    module, config = bundle.module, bundle.module.config
    if why := refusal(artifact.parts(bundle), config, form):
        raise CannotExport(why)
    if form == adapter.FORM:
        return adapter.write(bundle, folder, label)
    found = {
        path: [(part, module.get_submodule(part)) for part in parts]
        for path, parts in arch.file_linears(config)
    }
    scheme = _scheme([linear for parts in found.values() for _, linear in parts], form)
    encode, describe = (_gptq, _about_gptq) if form.startswith("gptq") else (_compressed, _about_compressed)
    tensors, notes = _rest(bundle)
    for path, parts in found.items():
        layer = _joined(path, [linear for _, linear in parts], arch.fused_heads(config))
        own = encode(path, layer, scheme) | ({} if layer.bias is None else {"bias": _narrow(layer.bias)})
        tensors |= {f"{path}.{name}": t.contiguous() for name, t in own.items()}
    about = describe(scheme, module)
    if "dequantize" in about:
        notes += (Note("export_unpacked"),)
    if broken := [
        name for name, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())
    ]:
        raise CannotExport(
            f"{', '.join(broken[:3])} ({len(broken)} tensors) hold infinities or values that are no numbers; "
            "the model is broken as it is"
        )
    wider = [name for name, t in tensors.items() if t.dtype == torch.float32]
    wide = "float32" if wider else "float16"
    if wider:
        notes += (Note("export_in_float32", {"name": wider[0], "count": len(wider)}),)
    with whole(folder) as temporary:
        save_file(tensors, temporary / artifact.WEIGHTS, metadata={"format": "pt"})
        beside.write(
            bundle,
            temporary,
            label,
            f"Load it with {LOADERS[form]}.{' ' + UNPACKED if 'dequantize' in about else ''}\n",
        )
        elsewhere.tokenizer(temporary)
        elsewhere.write(
            temporary / "config.json", elsewhere.config(module, wide) | {"quantization_config": about}
        )
        if form.startswith("gptq"):
            elsewhere.write(temporary / "quantize_config.json", about)
        size = (temporary / artifact.WEIGHTS).stat().st_size
    return size, notes


def read(folder: Path | str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Bundle:
    """The model in a folder that `write` made, its linears as GroupedInt again. Raises ModelUnavailable."""
    files, folder = Folder(folder), Path(folder)
    said = files.json(configs.CONFIG) if files.has(configs.CONFIG) else {}
    # the model that is read is no longer in that format
    scheme = _read_scheme(folder, said.pop("quantization_config", None) or {})
    weights = headers.read(files)
    module = artifact.empty(configs.describe(said, files), dtype)
    config, decode = module.config, _from_gptq if scheme.form.startswith("gptq") else _from_compressed
    tensors = {name: checkpoint.read(weights, entry) for name, entry in weights.entries.items()}
    modules = {}
    for path, parts in arch.file_linears(config):
        own = {
            name.removeprefix(f"{path}."): tensors.pop(name)
            for name in list(tensors)
            if name.startswith(f"{path}.")
        }
        try:
            layer = decode(own, scheme)
        except (KeyError, ValueError, RuntimeError, IndexError) as error:
            raise _broken(
                folder, f"{path}: {error} is missing" if isinstance(error, KeyError) else f"{path}: {error}"
            ) from None
        rows = (
            arch.split(torch.arange(len(layer.codes)), arch.fused_heads(config))
            if len(parts) > 1
            else [slice(None)]
        )
        for part, r in zip(parts, rows, strict=True):
            packed = _rows(layer, r)
            packed.activations, biased = scheme.rule, layer.bias is not None
            modules[part] = {
                "kind": "linear",
                "packed": packed.full_config(),
                "bias": biased,
                "input_scale": False,
            }
            tensors |= {f"{part}.packed.{name}": t for name, t in packed.state_dict().items()}
            tensors |= {f"{part}.bias": layer.bias[r]} if layer.bias is not None else {}
    tensors = {arch.from_file(arch.of(module), name): t for name, t in tensors.items()}
    source = {"kind": "export", "id": folder.name, "dtype": "float16", "licence": "", "folder": str(folder)}
    return artifact.assemble(files, module, modules, tensors, folder.name, source, device)


# --- from our tensors to the file's, and back ---


def _rest(bundle: Bundle) -> tuple[dict[str, Tensor], tuple[Note, ...]]:
    """Every tensor outside the blocks' linears, tied ones once.

    They are in float16, or in float32 if they must be. A rounded table is written back in 16 bits.
    """
    own = {
        path: m
        for path, m in bundle.module.named_modules()
        if isinstance(m, (CompressedLinear, CompressedTable))
    }
    stored = {
        name: _narrow(t) if t.is_floating_point() else t
        for name, t in artifact.stored_tensors(bundle.module, torch.float32).items()
    }
    tensors = {name: t for name, t in stored.items() if not any(name.startswith(f"{path}.") for path in own)}
    blocks = arch.of(bundle.module).blocks
    tables = {path: m for path, m in own.items() if not path.startswith(f"{blocks}.")}
    for path, table in tables.items():
        tensors[f"{path}.weight"] = _narrow(table.packed.dequantize())
    row = arch.of(bundle.module)
    tensors = {arch.to_file(row, name): t for name, t in tensors.items()}
    return tensors, (Note("tables_as_16_bits"),) if tables else ()


def _narrow(tensor: Tensor) -> Tensor:
    """A tensor in float16, or in float32 if float16 can't hold one of its values."""
    half = tensor.to(DTYPE)
    return half if bool(torch.isfinite(half).all()) else tensor.float()


def _joined(path: str, linears: list[CompressedLinear], heads: int | None) -> Layer:
    """One linear; or q, k and v, fused as the family fuses them."""
    packed = [_integers(linear) for linear in linears]
    grids = [p.grid for p in packed]
    if any(not torch.equal(_index(g), _index(grids[0])) for g in grids):
        raise CannotExport(f"{path} fuses matrices whose groups lie differently; compress with static groups")
    codes = torch.cat([unpack(p.codes, p.grid.bits, p.shape[1]) for p in packed])
    order = torch.arange(len(codes))
    order = arch.join(list(order.chunk(3)), heads) if len(linears) > 1 else order
    scale, zero = (torch.cat(t)[order] for t in ([g.scale for g in grids], [g.zero_points() for g in grids]))
    bias = None if linears[0].bias is None else torch.cat([m.bias for m in linears])[order]
    first = grids[0]
    grid = Grid.make(
        (len(codes), first.shape[1]), first.bits, first.group_size, scale, zero, first.group_index
    )
    return Layer(codes[order], grid, bias)


def _integers(linear: CompressedLinear) -> GroupedInt:
    """The stored form of a linear that `refusal` lets through."""
    assert isinstance(linear.packed, GroupedInt)
    return linear.packed


def _rows(layer: Layer, rows: Tensor | slice) -> GroupedInt:
    """Some rows of a layer in our own format."""
    g, codes = layer.grid, layer.codes[rows]
    zero = None if g.zero is None else g.zero_points()[rows]
    return GroupedInt.encode(
        codes, Grid.make(codes.shape, g.bits, g.group_size, g.scale[rows], zero, g.group_index)
    )


def _index(grid: Grid) -> Tensor:
    """The group of each input, int32 [in]."""
    n = grid.shape[1]
    runs = torch.arange(n, dtype=torch.int32, device=grid.scale.device) // (
        n if grid.group_size == -1 else grid.group_size
    )
    return runs if grid.group_index is None else grid.group_index.int()


# --- what can be exported ---


def refusal(parts: Mapping[str, Any], config, form: str) -> str:
    """Why a model of these parts can't be written in a format; "" if it can.

    parts: as artifact.parts says and a manifest holds. config: the model's transformers config. Parts say how
    matrices are stored and not their numbers. `write` alone sees infinities, and the zero points of 0 for
    which version 1 of GPTQ has no place.
    """
    modules, row = parts["modules"], arch.of_config(config)
    if "geometry" in parts or "width" in parts:
        return (
            "heads or channels were cut out of some blocks, and these formats describe all blocks by one "
            "config; keep the model in its own format"
        )
    if form == adapter.FORM:
        return adapter.refusal(modules, config)
    if form == "compressed-tensors" and row.transposed:
        return "GPT-2's layers are Conv1D, and compressed-tensors knows linears only; take gptq_v2"
    if parts.get("attention"):
        return (
            "attention multiplies 8-bit integers, which these formats don't say; keep the model in its "
            "own format"
        )
    linears = [path for _, own in arch.file_linears(config) for path in own]
    if why := next(filter(None, (_refused(path, modules.get(path), form) for path in linears)), ""):
        return why
    packed = [modules[path]["packed"] for path in linears]
    kinds = sorted({(p["grid"]["bits"], p["grid"]["group_size"]) for p in packed})
    if len(kinds) > 1 or len({json.dumps(p["activations"], sort_keys=True) for p in packed}) > 1:
        return (
            f"the layers differ in (bits, group size) {kinds} or in how inputs are rounded; "
            "a file has one setting for all of them"
        )
    tables = [path for path in modules if not path.startswith(f"{row.blocks}.")]
    tables = [path for path in tables if modules[path]["kind"] != "head"]
    if len(tables) > 1 and arch.geometry_of(config).tied:
        return "the head has a table of its own, and this model's config says that it shares the embedding's"
    return ""


def _refused(path: str, entry: Mapping[str, Any] | None, form: str) -> str:
    """Why a linear of the blocks can't be written in a format; "" if it can.

    entry: what the manifest says of it; None if it is not compressed.
    """
    if entry is None:
        return f"{path} is not compressed; these files need every linear of the blocks to be compressed"
    packed = entry["packed"]
    if packed["format"] != GroupedInt.format:
        return (
            f"{path} is stored as {packed['format']}, for which {form} has no place; it takes integers "
            "on a uniform grid only: rtn, gptq, awq or smoothquant, without pruning before them"
        )
    if entry["input_scale"]:
        return f"the inputs of {path} are multiplied by a factor at run time, which no loader of {form} does"
    grid, (out, n) = packed["grid"], packed["shape"]
    bits, size, rounded = grid["bits"], grid["group_size"], packed["activations"] is not None
    if bits not in BITS[form]:
        return f"{path} has {bits} bits; {form} takes {', '.join(map(str, BITS[form]))}"
    if form.startswith("gptq"):
        if rounded:
            return (
                f"{path} rounds its inputs, and {form} stores weights only; run with exact "
                "activations, or take compressed-tensors"
            )
        if n % 32 or out % 32:
            return f"{path} is {out} x {n}; loaders of {form} take multiples of 32 only"
        return ""
    plain = bits == 8 and size == -1 and grid["symmetric"]
    if rounded and not (packed["activations"] == {"bits": BY_TOKEN.bits} and plain):
        return (
            f"{path} rounds its inputs; compressed-tensors takes that for symmetric 8 bits a row and "
            "inputs rounded token by token"
        )
    if grid["indexed"]:
        return (
            f"{path} has scattered groups, which compressed-tensors gave up; take gptq_v2, or "
            "compress with static groups"
        )
    if size > 0 and n % size:
        return (
            f"{path} has {n} inputs, no multiple of the group size {size}; compressed-tensors needs "
            "whole groups"
        )
    return ""


def _scheme(linears: list[CompressedLinear], form: str) -> Scheme:
    """The settings that all linears share, which `refusal` has seen."""
    packed = [_integers(linear) for linear in linears]
    grids, first = [p.grid for p in packed], packed[0]
    return Scheme(
        form,
        first.grid.bits,
        first.grid.group_size,
        symmetric=all(g.zero is None for g in grids),
        scattered=any(g.group_index is not None for g in grids),
        rule=first.activations,
    )


# --- the two layouts ---


def words(values: Tensor, bits: int) -> Tensor:
    """uint8 [rows, n] -> int32 [rows, ceil(n bits / 32)]: each row's stream of bits in words."""
    size = -(-values.shape[1] * bits // 32) * 4
    stream = pack(values, bits)
    return F.pad(stream, (0, max(size - stream.shape[1], 0)))[:, :size].contiguous().view(torch.int32)


def values(words: Tensor, bits: int, n: int) -> Tensor:
    """The inverse of `words`: uint8 [rows, n]."""
    return unpack(words.contiguous().view(torch.uint8), bits, n)


def _gptq(path: str, layer: Layer, scheme: Scheme) -> dict[str, Tensor]:
    grid, bits = layer.grid, scheme.bits
    if scheme.form == "gptq" and not bool(grid.zero_points().all()):
        raise CannotExport(
            f"{path} has a zero point of 0, which version 1 (it stores zero - 1) can't hold; take gptq_v2"
        )
    zero = grid.zero_points() - (1 if scheme.form == "gptq" else 0)
    return {
        "qweight": words(layer.codes, bits).T,
        "qzeros": words(zero.T, bits),
        "scales": grid.scale.T,
        "g_idx": _index(grid),
    }


def _from_gptq(own: dict[str, Tensor], scheme: Scheme) -> Layer:
    bits, n, out = scheme.bits, len(own["g_idx"]), own["scales"].shape[1]
    zero = values(own["qzeros"], bits, out).T.int() + (1 if scheme.form == "gptq" else 0)
    return _layer(
        values(own["qweight"].T, bits, n), own["scales"].T, zero, own["g_idx"], own.get("bias"), scheme
    )


def _compressed(path: str, layer: Layer, scheme: Scheme) -> dict[str, Tensor]:
    grid, bits = layer.grid, scheme.bits
    if scheme.rule is not None:
        return {"weight": (layer.codes.int() - 128).to(torch.int8), "weight_scale": grid.scale}
    own = {
        "weight_packed": words(layer.codes, bits),
        "weight_scale": grid.scale,
        "weight_shape": torch.tensor(grid.shape),
    }
    return own | ({} if scheme.symmetric else {"weight_zero_point": words(grid.zero_points().T, bits).T})


def _from_compressed(own: dict[str, Tensor], scheme: Scheme) -> Layer:
    scale, bits = own["weight_scale"], scheme.bits
    if scheme.rule is not None:
        return _layer((own["weight"].int() + 128).to(torch.uint8), scale, None, None, own.get("bias"), scheme)
    out, n = own["weight_shape"].tolist()
    zero = None if scheme.symmetric else values(own["weight_zero_point"].T, bits, out).T
    return _layer(values(own["weight_packed"], bits, n), scale, zero, None, own.get("bias"), scheme)


def _layer(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    index: Tensor | None,
    bias: Tensor | None,
    scheme: Scheme,
) -> Layer:
    """A layer from a file's tensors. A symmetric grid's zero point is 2^(bits-1), whatever the file says."""
    zero = None if scheme.symmetric else zero
    if zero is not None and int(zero.max()) >= 1 << scheme.bits:
        raise ValueError(f"a zero point of {int(zero.max())} takes more than {scheme.bits} bits")
    grid = Grid.make(codes.shape, scheme.bits, scheme.group_size, scale, zero)
    if index is not None and not torch.equal(index.int(), _index(grid)):
        grid = Grid.make(codes.shape, scheme.bits, scheme.group_size, scale, zero, index)
    return Layer(codes, grid, bias)


def _about_gptq(scheme: Scheme, module: nn.Module) -> dict:
    return {
        "quant_method": "gptq",
        "checkpoint_format": scheme.form,
        "format": scheme.form,
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "sym": scheme.symmetric,
        "desc_act": scheme.scattered,
        "lm_head": False,
        "meta": {"quantizer": ["compression-explorer"]},
    }


def _about_compressed(scheme: Scheme, module: nn.Module) -> dict:
    kept = [path for path, m in module.named_modules() if isinstance(m, nn.Linear)]
    head = arch.head(module)[0]
    renamed = arch.to_file(arch.of(module), f"{head}.").removesuffix(".")
    row = scheme.group_size == -1
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "dynamic": False,
        "strategy": "channel" if row else "group",
        "group_size": None if row else scheme.group_size,
    }
    form, inputs = "pack-quantized", None
    if scheme.rule is not None:
        form = "int-quantized"
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "format": form}
    unpacked = {} if scheme.symmetric or form != "pack-quantized" else {"dequantize": True}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": sorted({*kept, head, renamed} - {""}),
    } | unpacked


def _read_scheme(folder: Path, about: dict) -> Scheme:
    """The inverse of the two functions above. Raises ModelUnavailable for settings that aren't known."""
    if about.get("quant_method") == "gptq":
        form = about.get("checkpoint_format") or about.get("format", "gptq")
        if form in BITS and about["bits"] in BITS[form]:
            return Scheme(form, about["bits"], about["group_size"], about["sym"], about["desc_act"])
    groups = list(about.get("config_groups", {}).values())
    if (
        about.get("quant_method") == "compressed-tensors"
        and len(groups) == 1
        and groups[0]["weights"].get("actorder") != "group"
    ):
        w, rule = groups[0]["weights"], BY_TOKEN if groups[0].get("input_activations") else None
        return Scheme("compressed-tensors", w["num_bits"], w["group_size"] or -1, w["symmetric"], False, rule)
    raise _broken(folder, "its config names no GPTQ or compressed-tensors setting that is known here")


def _broken(folder: Path, why: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{folder.name} can't be read back: {why}", code="artifact_broken", name=folder.name
    )
