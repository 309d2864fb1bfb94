"""Writes an adapter without its frozen weights, as a folder that PEFT loads.

A training with `lora` (merge off) or `qlora` leaves such an adapter beside the frozen weights.

    from peft import PeftModel

    model = PeftModel.from_pretrained(base, "my-adapter")

For each adapted linear [out, in] of the blocks, in adapter_model.safetensors, float32:

    base_model.model.<path>.lora_A.weight [r, in]    base_model.model.<path>.lora_B.weight [out, r]

The adapter's scale is already multiplied into the factors, its square root into each. So lora_alpha equals
the rank. If a family fuses q, k and v, their three adapters become one adapter of three times the rank. Its A
has the three A on top of each other. Its B has the three B as blocks on the diagonal, with rows in the
family's own order. The base model is not in the folder. The folder's README says which base the adapter was
trained on; on another base the result is another model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from compression import arch, beside, elsewhere
from compression.base import Note
from compression.bundle import Bundle
from compression.packed.base import Packed
from compression.packed.codebook import TABLES, CodeBook
from compression.packed.dense import Dense
from compression.packed.linear import CompressedLinear
from compression.packed.low_rank import LowRank
from kernels.home import whole

FORM = "peft"
WHOLE = "the original model in 16 bits: `AutoModelForCausalLM.from_pretrained({base!r})`"
IN_4_BITS = (
    "the original model in 4 bits, by bitsandbytes: `AutoModelForCausalLM.from_pretrained({base!r}, "
    "quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type={table!r}, "
    "bnb_4bit_use_double_quant={double}))`"
)
OTHER = "the model as it was compressed before the training; the measurements hold on that base alone"
BITSANDBYTES_GROUP = 64  # weights that share a scale in bitsandbytes


def refusal(modules: Mapping[str, dict], config) -> str:
    """Why a model of these parts (artifact.parts) has no adapter to export; "" if it has one.

    config: the model's transformers config.
    """
    held = {path: m for path, m in modules.items() if m["kind"] == "linear"}
    if not held or not all(
        m["packed"]["format"] == "sum" and m["packed"]["second"]["format"] == "low_rank"
        for m in held.values()
    ):
        return (
            "no adapter stands beside these weights; a training with `lora` (merge off) or `qlora` leaves one"
        )
    if any(m["input_scale"] for m in held.values()):
        return "the base multiplies its inputs by a factor at run time, which no other program's base does"
    for path, parts in arch.file_linears(config):
        count = sum(part in held for part in parts)
        if 0 < count < len(parts):
            return (
                f"{path} holds q, k and v in one matrix, and only {count} of them have an adapter; "
                "adapt all of them"
            )
    return ""


def write(bundle: Bundle, folder: Path | str, label: str) -> tuple[int, tuple[Note, ...]]:
    """Write the adapter to `folder`, which appears whole or not at all. `refusal` must have returned "".

    Returns (bytes of the file, no notes).
    """
    from safetensors.torch import save_file

    config, thin = bundle.module.config, {}
    found = {path: m.packed for path, m in bundle.module.named_modules() if isinstance(m, CompressedLinear)}
    for path, parts in arch.file_linears(config):
        if held := [found[part].second for part in parts if part in found]:
            thin[path] = _joined(held, arch.fused_heads(config))
    tensors = {
        f"base_model.model.{path}.lora_{name}.weight": t
        for path, two in thin.items()
        for name, t in zip("AB", two, strict=True)
    }
    ranks = {path: len(a) for path, (a, _) in thin.items()}
    rank = min(ranks.values())
    wide = {path: r for path, r in ranks.items() if r != rank}
    about = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": bundle.source.get("id"),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(thin),
        "rank_pattern": wide,
        "alpha_pattern": wide,
        "fan_in_fan_out": arch.of_config(config).transposed,
    }
    bases = {_base(p.first, bundle.source.get("id")) for p in found.values()}
    base = bases.pop() if len(bases) == 1 else OTHER
    with whole(folder) as temporary:
        file = temporary / "adapter_model.safetensors"
        save_file(tensors, file, metadata={"format": "pt"})
        (temporary / "adapter_config.json").write_text(
            json.dumps(about, indent=2, sort_keys=True) + "\n", "utf-8"
        )
        beside.write(bundle, temporary, label, f"An adapter for PEFT. Its base is {base}.\n")
        elsewhere.tokenizer(temporary)
        size = file.stat().st_size
    return size, ()


def _base(first: Packed, name: str | None) -> str:
    """What an adapter was trained on, and how to load it, in words."""
    if isinstance(first, Dense):
        return WHOLE.format(base=name)
    if isinstance(first, CodeBook) and first.group_size == BITSANDBYTES_GROUP:
        for table, values in TABLES.items():
            if torch.equal(first.table.cpu(), torch.tensor(values)):
                return IN_4_BITS.format(base=name, table=table, double=first.absmax is not None)
    return OTHER


def _joined(adapters: list[LowRank], heads: int | None) -> tuple[Tensor, Tensor]:
    """(A [r, in], B [out, r]) of one linear, or of q, k and v as the family's fused linear."""
    b = torch.block_diag(*(p.u.float() for p in adapters))
    rows = torch.arange(len(b))
    order = arch.join(list(rows.chunk(3)), heads) if len(adapters) > 1 else rows
    return torch.cat([p.v.float() for p in adapters]).contiguous(), b[order].contiguous()
