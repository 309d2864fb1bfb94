"""A compressed model on disk: save it, load it without the app.

    from compression import artifact, sample

    bundle = artifact.load("my-model-4-bits")
    print(sample.complete(bundle, "The capital of France is"))

The folder holds

    model.safetensors    every stored tensor once: packed buffers, and the rest (norms, biases, tables) in 16 bits
    compression.json     which module has which format, the recipe, the base model, its licence; each block's heads and
                         channels where they aren't config.json's
    config.json, tokenizer files, LICENSE*, NOTICE.txt, README.md; files of a method's own (a task's scales, a teacher's answers)

Loading builds the architecture from config.json with empty weights, puts an empty format at every path that
compression.json names, and fills all of it from the file.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from compression import arch, structure
from compression.base import ModelUnavailable
from compression.bundle import Bundle, LayerGeometry
from compression.disk import check_room
from compression.engine import storage_dtype
from compression.models import is_path
from compression.packed import from_config
from compression.packed.linear import CompressedLinear, CompressedTable, TableHead
from compression.surgery import set_submodule
from kernels.dense import choose_float32
from kernels.home import whole

MANIFEST, WEIGHTS = "compression.json", "model.safetensors"
VERSION = 1
LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def save(bundle: Bundle, folder: Path | str, about: dict, files: Mapping[str, bytes] | None = None) -> int:
    """Write the model to `folder` (created; replaced if it exists) and return the bytes of model.safetensors.

    about: JSON for the manifest and the README, e.g. {"recipe": [...], "label": "GPTQ, 4 bits"}. files: name -> content, put
    beside them. The folder appears whole or not at all: everything is written to a temporary neighbour first.
    """
    check_room(folder, stored_bytes(bundle) + sum(map(len, (files or {}).values())))
    with whole(folder) as temporary:
        for name, content in (files or {}).items():
            (temporary / name).write_bytes(content)
        return _write(bundle, temporary, about)


def _write(bundle: Bundle, folder: Path, about: dict) -> int:
    from safetensors.torch import save_file

    module = bundle.module
    storage = storage_dtype(bundle)
    save_file(stored_tensors(module, storage), folder / WEIGHTS, metadata={"format": "pt"})
    module.config.save_pretrained(folder)
    bundle.tokenizer.save_pretrained(folder)
    source = {k: v for k, v in bundle.source.items() if k != "folder"}
    manifest = {
        "version": VERSION, "base": Path(bundle.name).name if is_path(bundle.name) else bundle.name, "source": source, "modules": _modules(module),
        "storage_dtype": str(storage).removeprefix("torch."), "cache_bits": bundle.cache_bits, "about": about,
    }  # fmt: skip
    if bundle.geometry.layers != arch.geometry_of(module.config).layers:
        manifest["geometry"] = [dataclasses.asdict(sizes) for sizes in bundle.geometry.layers]
    if bundle.geometry.hidden != arch.geometry_of(module.config).hidden:
        manifest["width"] = bundle.geometry.hidden
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), "utf-8")
    write_licence(bundle, folder, about.get("label", "compressed"), HOW_TO_LOAD)
    return (folder / WEIGHTS).stat().st_size


def stored_tensors(module: nn.Module, storage: torch.dtype) -> dict[str, torch.Tensor]:
    """What the file holds: packed buffers as they are, other floating tensors in `storage`, tied tensors once."""
    out, seen = {}, set()
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        out[name] = (tensor.to(storage) if _computes(name, tensor) else tensor).contiguous()
    return out


def stored_bytes(bundle: Bundle) -> int:
    """Bytes of what `save` would write, counted from the tensors (the file adds a header of some kilobytes)."""
    wide, seen, total = storage_dtype(bundle).itemsize, set(), 0
    for name, tensor in bundle.module.state_dict().items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            total += tensor.numel() * (wide if _computes(name, tensor) else tensor.element_size())
        seen.add(tensor.data_ptr())
    return total


def _computes(name: str, tensor: torch.Tensor) -> bool:
    """True for what the model computes with directly; a format's own tensors keep their stored dtype."""
    return tensor.is_floating_point() and ".packed." not in f".{name}"


def _modules(module: nn.Module) -> dict[str, dict]:
    out = {}
    for path, m in module.named_modules():
        if isinstance(m, CompressedLinear):
            out[path] = {"kind": "linear", "packed": m.packed.full_config(), "bias": m.bias is not None,
                         "input_scale": m.input_scale is not None}  # fmt: skip
        elif isinstance(m, CompressedTable):
            out[path] = {"kind": "table", "packed": m.packed.full_config()}
        elif isinstance(m, TableHead):
            out[path] = {"kind": "head"}
    return out


HOW_TO_LOAD = """Load it with Compression Explorer's packages `compression` and `kernels` on the path:

```python
from compression import artifact, sample
bundle = artifact.load("this-folder")
print(sample.complete(bundle, "The capital of France is"))
```
"""


def write_licence(bundle: Bundle, folder: Path, label: str, how_to_load: str) -> None:
    """The base model's licence, what was done to it, and a README."""
    base = bundle.source.get("folder")
    for pattern in LICENCE_FILES if base else ():
        for file in Path(base).glob(pattern):
            shutil.copy2(file, folder / file.name)
    licence = bundle.source.get("licence") or "see the base model's page"
    origin = bundle.source.get("id") or Path(bundle.name).name
    (folder / "NOTICE.txt").write_text(
        f"This folder holds a modified copy of {origin} (licence of the base model: {licence}).\n"
        f"Modification: {label}, by Compression Explorer. The base model's licence and terms apply.\n",
        "utf-8",
    )
    (folder / "README.md").write_text(f"# {origin}, {label}\n\nLicence of the base model: {licence}. {how_to_load}", "utf-8")


def load(folder: Path | str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Bundle:
    """Read a folder that `save` wrote. dtype: what the model computes in. Raises ModelUnavailable for a broken folder."""
    from safetensors.torch import load_file

    folder = Path(folder)
    if not (folder / MANIFEST).is_file() or not (folder / WEIGHTS).is_file():
        raise ModelUnavailable(f"{folder.name} is no compressed model: {MANIFEST} or {WEIGHTS} is missing",
                               code="artifact_missing", name=folder.name)  # fmt: skip
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    if manifest["version"] != VERSION:
        raise ModelUnavailable(f"{folder.name} has format version {manifest['version']}; this program reads {VERSION}. "
                               "Compress the model again.", code="artifact_version", name=folder.name)  # fmt: skip
    tensors = load_file(folder / WEIGHTS, device=device)
    source = manifest["source"] | {"kind": "artifact", "folder": str(folder)}
    module = empty(folder, dtype, manifest.get("geometry"), manifest.get("width"))
    bundle = assemble(folder, module, manifest["modules"], tensors, manifest["base"], source, device)
    bundle.cache_bits = manifest.get("cache_bits", 16)
    return bundle


def empty(folder: Path, dtype: torch.dtype, layers: list[dict] | None = None, width: int | None = None) -> nn.Module:
    """The architecture of the folder's config.json in the normal form, its weights undefined.

    layers: the sizes of each block (LayerGeometry as JSON), width: channels of the residual stream, where they aren't the config's.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights():
        module = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False), attn_implementation="sdpa", dtype=dtype, trust_remote_code=False)
    arch.normalise(module)
    if layers:
        now, then = arch.geometry(module).layers, (LayerGeometry(**sizes) for sizes in layers)
        structure.cut(module, {i: structure.first(*sizes) for i, sizes in enumerate(zip(now, then, strict=True))})
    if width:
        structure.cut_width(module, range(width))
    return module


def assemble(folder: Path, module: nn.Module, modules: dict[str, dict], tensors: dict[str, torch.Tensor], name: str, source: dict,
             device: str) -> Bundle:  # fmt: skip
    """A Bundle from an empty model, the formats at their places (`_modules`) and every tensor by its name."""
    from transformers import AutoTokenizer

    if device == "cpu":
        choose_float32()
    dtype, geometry = module.dtype, arch.geometry(module)
    _place(module, modules, dtype)
    tensors = {name: t.to(dtype) if _computes(name, t) else t for name, t in tensors.items()}
    missing, unexpected = module.load_state_dict(tensors, strict=False, assign=True)
    if isinstance(arch.embedding(module)[1], nn.Embedding):
        module.tie_weights()
        missing = [name for name in missing if not (geometry.tied and name == arch.head(module)[0] + ".weight")]
    if missing or unexpected:
        raise ModelUnavailable(f"{folder.name} doesn't fit its config: missing {missing[:3]}, unexpected {unexpected[:3]}",
                               code="artifact_broken", name=folder.name)  # fmt: skip
    module.to(device).eval().requires_grad_(False)
    return Bundle(module, AutoTokenizer.from_pretrained(folder, trust_remote_code=False), geometry, name, source)


def _place(module: nn.Module, modules: dict[str, dict], dtype: torch.dtype) -> None:
    """Put the empty formats where the manifest says."""
    for path, entry in modules.items():
        if entry["kind"] == "linear":
            packed = from_config(entry["packed"])
            out_features, in_features = packed.shape
            bias = torch.empty(out_features, dtype=dtype) if entry["bias"] else None
            scale = torch.empty(in_features, dtype=dtype) if entry["input_scale"] else None
            set_submodule(module, path, CompressedLinear(packed, bias, scale))
        elif entry["kind"] == "table":
            set_submodule(module, path, CompressedTable(from_config(entry["packed"]), dtype))
    for path, entry in modules.items():
        if entry["kind"] == "head":
            table = next(m for m in module.modules() if isinstance(m, CompressedTable))
            set_submodule(module, path, TableHead(table))
