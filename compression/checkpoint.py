"""Reads a checkpoint's weights into a model, completely or not at all.

Every tensor of the files is used once, and every parameter gets its values from the files. `load` compares
what the config describes with what the files' headers hold before it takes any memory, and then reads tensor
by tensor. Names are those of transformers' modules, or names in files that it maps to them itself
(Architecture.prefix, .renamed).

Two parameters may share one tensor only if the config says so. If the files hold it under both names, the two
must be equal. Some published files carry tensors that follow from the config (Architecture.recomputed). They
are compared with the tensors that the model computes, and left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compression import arch
from compression.architectures import ARCHITECTURES, Architecture
from compression.configs import GENERATION, Described
from compression.folder import Folder, few, shown
from compression.headers import FLOATS, Entry, Headers

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.uint8,
}
FOREIGN = {  # a part of a tensor's name -> what kind of checkpoint has such tensors
    "lora_": "an adapter",
    "base_model.": "an adapter",
    "qweight": "compressed already (GPTQ or AWQ)",
    "qzeros": "compressed already (GPTQ or AWQ)",
    "weight_packed": "compressed already (compressed-tensors)",
    "weight_scale": "compressed already (8 or 4 bits)",
    "absmax": "compressed already (bitsandbytes)",
    "SCB": "compressed already (bitsandbytes)",
    "quant_map": "compressed already (bitsandbytes)",
    "score.": "a model that scores texts",
    "v_head": "a model that scores texts",
    "classifier": "a model that classifies texts",
    "vision": "a model that reads images",
    "experts": "a mixture of experts",
}


def build(described: Described, dtype: torch.dtype, device: str = "cpu") -> nn.Module:
    """The transformers model that a config describes, with undefined weights.

    device "meta" takes no memory.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = described.config()
    with torch.device(device), no_init_weights():
        return AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa", dtype=dtype, trust_remote_code=False
        )


def load(headers: Headers, described: Described, dtype: torch.dtype) -> tuple[nn.Module, list[str]]:
    """(the model in `dtype`, names of tensors that the model computes itself and the files carry too).

    Raises ModelUnavailable, which names the tensors that are missing or unexpected, that stand in the files
    twice, or that have another shape or type.
    """
    folder, row = headers.folder, ARCHITECTURES[described.architecture]
    names = _named(headers, row)
    _check_layers(folder, names, row, described)
    try:
        model = build(described, dtype, "meta")
    except Exception as why:  # values whose combination only the library knows to be wrong
        raise folder.error(
            "bad_config",
            f"has a config.json that no model can be built from: {shown(why, 200)}. Correct the file, or "
            "fetch it again.",
            field="config.json",
            got=shown(why, 200),
            allowed="",
        ) from None
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    carried = {name: kind for name in names if (kind := _recomputed(name, row)) and name not in expected}
    tied = (f"{row.embedding}.weight", f"{row.head}.weight") if described.geometry.tied else ()
    check(folder, {n: e for n, e in names.items() if n not in carried}, expected, tied)
    module = build(described, dtype)
    _fill(headers, module, {n: e for n, e in names.items() if n not in carried}, tied)
    for name, kind in carried.items():
        if not _agrees(read(headers, names[name]), kind, module, row):
            raise folder.error(
                "buffer_differs",
                f"holds {shown(name)} with other values than its config gives; correct config.json, or "
                "fetch the files again",
                names=shown(name),
            )
    return module, sorted(carried)


def _named(headers: Headers, row: Architecture) -> dict[str, Entry]:
    """The files' tensors by the names that the model's modules have."""
    found: dict[str, Entry] = {}
    stems = {
        path.removeprefix(row.prefix).split(".")[0]
        for path in (
            row.blocks,
            row.embedding,
            row.final,
            row.positions or row.final,
            row.rotary.path if row.rotary else row.final,
        )
    }
    for name, entry in headers.entries.items():
        ours = arch.from_file(row, name)
        if ours.split(".")[0] in stems:
            ours = row.prefix + ours
        if ours in found:
            raise headers.folder.error(
                "tensor_twice",
                f"holds {shown(ours)} twice, under two names; fetch the files again",
                names=shown(ours),
                count=1,
            )
        found[ours] = entry
    return found


def _check_layers(
    folder: Folder, names: Mapping[str, Entry], row: Architecture, described: Described
) -> None:
    pattern = re.compile(re.escape(row.blocks) + r"\.(\d{1,6})\.")
    found = {int(match[1]) for name in names if (match := pattern.match(name))}
    said = len(described.geometry.layers)
    if found and found != set(range(said)):
        have = max(found) + 1
        what = f"{have} layers" if len(found) == have else f"{len(found)} of {have} layers"
        raise folder.error(
            "layers_differ",
            f"has {said} layers by its config.json and {what} in its files; correct config.json, or fetch "
            "the files again",
            said=said,
            found=len(found),
        )


def _recomputed(name: str, row: Architecture) -> str:
    return next((kind for pattern, kind in row.recomputed if re.fullmatch(pattern, name)), "")


def check(
    folder: Folder,
    found: Mapping[str, Entry],
    expected: Mapping[str, tuple[int, ...]],
    tied: tuple[str, ...] = (),
) -> None:
    """Compare the files' tensors with the model's (name -> shape). tied: names of which one may be absent."""
    missing = [n for n in expected if n not in found and not (n in tied and any(t in found for t in tied))]
    unexpected = [n for n in found if n not in expected]
    if unexpected:
        kind = next((what for part, what in FOREIGN.items() if any(part in n for n in unexpected)), "")
        also = f" and lacks {few(missing)}" if missing else ""
        raise folder.error(
            "unexpected_tensors",
            f"holds {few(unexpected)}, which the model that config.json describes has no place for{also}."
            + (f" It looks like {kind}." if kind else "")
            + " Give a whole, original model.",
            names=few(unexpected),
            count=len(unexpected),
            kind=kind,
        )
    if missing:
        raise folder.error(
            "missing_tensors",
            f"lacks {few(missing)}; fetch the files again, or correct config.json",
            names=few(missing),
            count=len(missing),
        )
    for name, entry in found.items():
        if entry.shape != expected[name]:
            raise folder.error(
                "tensor_shape",
                f"holds {shown(name)} as {list(entry.shape)}, and its config.json describes "
                f"{list(expected[name])}; correct config.json, or fetch the files again",
                names=shown(name),
                got=str(list(entry.shape)),
                allowed=str(list(expected[name])),
            )
        if entry.dtype not in FLOATS:
            raise folder.error(
                "tensor_type",
                f"holds {shown(name)} as {entry.dtype}, not as floating-point numbers: it is compressed "
                "already, or no model; give the original model",
                names=shown(name),
                count=1,
                got=entry.dtype,
            )


def read(headers: Headers, entry: Entry, into: Tensor | None = None) -> Tensor:
    """The tensor of an entry as the file has it (booleans as bytes).

    into: a tensor of the same type and size that it is read into.
    """
    tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype]) if into is None else into
    if not tensor.numel():
        return tensor
    with headers.folder.open(entry.file) as stream:
        stream.seek(entry.start)
        view = memoryview(tensor.detach().view(-1).view(torch.uint8).numpy())
        at = 0
        while at < len(view):
            got = stream.readinto(view[at : at + (1 << 26)])
            if not got:
                raise headers.folder.error(
                    "cut_file",
                    f"has {entry.file}, which became shorter while it was read; fetch it again",
                    file=entry.file,
                    bytes=at,
                )
            at += got
    return tensor


def _fill(headers: Headers, module: nn.Module, names: Mapping[str, Entry], tied: tuple[str, ...]) -> None:
    """Put every tensor of the files into its place, and make sure that no place was left out."""
    folder, places = headers.folder, dict(module.named_parameters(remove_duplicate=False))
    first = next((n for n in tied if n in names), "")
    filled = set()
    # sorted so that the second of two tied tensors comes last
    for name, entry in sorted(names.items(), key=lambda item: item[0] in tied and item[0] != first):
        place = places[tied[0] if name in tied else name].data
        if name in tied and name != first:
            if (
                not torch.equal(read(headers, entry).to(place.dtype), place)
                or entry.dtype != names[first].dtype
            ):
                raise folder.error(
                    "heads_differ",
                    f"has a head of its own in {shown(name)}, and its config.json says that it is "
                    f"{shown(first)} (tie_word_embeddings); correct config.json",
                    names=shown(name),
                )
            continue
        if DTYPES[entry.dtype] == place.dtype and place.is_contiguous():
            read(headers, entry, place)
        else:
            place.copy_(read(headers, entry))
        check_finite(folder, name, place)
        filled.add(place.data_ptr())
    module.tie_weights()
    left = [
        n for n, p in module.named_parameters() if p.is_meta or (p.numel() and p.data_ptr() not in filled)
    ]
    if left or any(b.is_meta for b in module.buffers()):
        raise folder.error(
            "missing_tensors", f"gives no values for {few(left)}", names=few(left), count=len(left)
        )


def check_finite(folder: Folder, name: str, tensor: Tensor) -> None:
    """Raises ModelUnavailable for a tensor that holds infinity or NaN."""
    if (
        tensor.is_floating_point()
        and tensor.numel()
        and not all(bool(end.isfinite()) for end in tensor.aminmax())
    ):
        raise folder.error(
            "not_finite",
            f"holds {shown(name)} with values that are infinite or no numbers; fetch the files again",
            names=shown(name),
        )


def _agrees(tensor: Tensor, kind: str, module: nn.Module, row: Architecture) -> bool:
    """Whether a tensor that follows from the config agrees with the model.

    kind: as in Architecture.recomputed.
    A mask must hide the future, and a floor must be a very low number. A version is only one number, whatever
    its value. Angles must be the model's to 1 percent, because files keep them in few digits.
    """
    if kind == "version":
        return tensor.numel() == 1
    if kind == "floor":
        return tensor.numel() == 1 and float(tensor) < -9e3
    if kind == "mask":
        square = (
            tensor.reshape(tensor.shape[-2:])
            if tensor.dim() >= 2 and tensor.numel() == tensor.shape[-1] * tensor.shape[-2]
            else None
        )
        return (
            square is not None
            and square.shape[0] == square.shape[1]
            and torch.equal(square != 0, torch.ones_like(square).tril() != 0)
        )
    rotary = module.get_submodule(row.rotary.path)
    plain = rotary.compute_default_rope_parameters(module.config)[0]
    return any(
        tensor.shape == angles.shape and torch.allclose(tensor.float(), angles.float(), rtol=1e-2, atol=1e-7)
        for angles in (rotary.inv_freq, plain)
    )


def read_generation(folder: Folder, module: nn.Module) -> None:
    """Give the module what generation_config.json says, if there is one; above all, when to stop."""
    from transformers import GenerationConfig

    if not folder.has(GENERATION):
        return
    given, known = folder.json(GENERATION, finite=True), GenerationConfig().to_dict()
    try:
        for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
            several = given[name] if isinstance(given.get(name), list) else [given.get(name)]
            if (
                not all(v is None or (type(v) is int and -1 <= v < 1 << 31) for v in several)
                or len(several) > 64
            ):
                raise ValueError(f"{name} = {given[name]!r} is no token's number")
        module.generation_config = GenerationConfig.from_dict({k: v for k, v in given.items() if k in known})
    except Exception as why:  # the library may find anything wrong with it
        raise folder.error(
            "bad_config",
            f"has a {GENERATION} that can't be read: {shown(why, 200)}. Correct the file, or fetch it again.",
            field=GENERATION,
            got=shown(why, 100),
            allowed="what transformers writes",
        ) from None
