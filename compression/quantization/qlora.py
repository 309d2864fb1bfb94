"""QLoRA: the model frozen in 4 bits, and thin 16-bit adapters at every linear trained through it.

Fine-tuning a large model costs memory mostly for its frozen weights. QLoRA stores these as NF4 (the method
`nf4`): 16 values placed like quantiles of a bell curve, a scale for each 64 weights, and the scales in 8 bits
themselves, 4.127 bits a weight in all. A matrix is rebuilt when it is multiplied, and the gradient passes
through it to a LoRA adapter (the method `lora`), y = deq(W) x + (alpha / r) B A x. The adapters learn the
text's domain, and they make up for the rounding. The result is the NF4 matrix with the two thin matrices
beside it. Adding them to the integers would round them anew. Adding them to the original weights would give
another model than the trained one.

Dettmers, Pagnoni, Holtzman, Zettlemoyer 2023, arXiv 2305.14314, equations 5 and 6; adapters at all linear
layers of the blocks, which the paper finds necessary. Here the two halves are the project's own `nf4` and
`lora`, one after the other: the chain `nf4 + lora` with the same settings gives the same model to the bit.

Deviations. (1) Rank 8 where the paper takes 64: on a model of a hundred million 64 would be larger than the
rounded weights. (2) The step size is 5e-4 (the paper's 2e-4 is for thousands of steps), the schedule rises
and falls, dropout is 0 (the paper's: 0.1 up to 13 billion weights, 0.05 beyond) and all tokens count
(`answers_only`: the answers of dialogues, as the paper's loss). (3) The compute type is the model's own,
float32 on a processor. (4) The paged optimizer is bitsandbytes' and for graphics cards: the adapters' moments
lie in memory that moves to the host when a long batch needs the card's. A processor has one memory and
nothing to page. (5) The 8-bit scales' own scale and mean are 32-bit floats, as in bitsandbytes. The text is
the calibration text: give one of the domain that the model is to learn, and evaluate on another part of it.

The control is LoRA on the original weights with the same adapters, tokens and seed; the paper's claim is that
the two end equal. Its own table has NF4 with double quantization at the level of 16-bit fine-tuning, FP4
about a point below.

Cost: a step takes three forward passes, and rebuilds each matrix forward and backward; only the adapters have
gradients and moments.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

import compression
from compression import arch
from compression.base import (
    BUDGET_MINUTES,
    Context,
    Cost,
    Edit,
    Note,
    Params,
    Site,
    Stats,
    TrainingMethod,
    param,
)
from compression.bundle import Bundle
from compression.packed.base import Packed
from compression.packed.linear import CompressedLinear
from compression.quantization import nf4
from compression.quantization.nf4 import Nf4Params
from compression.training import adamw


@dataclass(frozen=True)
class QloraParams(Params):
    """The frozen base, the adapters, and their training."""

    rank: int = param(
        8,
        "Columns of the two thin matrices.",
        lo=1,
        hi=64,
        step=1,
        main=True,
        ends=("small adapter", "large adapter"),
    )
    lora_alpha: float = param(
        16.0,
        "The adapter's product is multiplied by this over the rank.",
        lo=0.1,
        hi=1024.0,
        level="advanced",
    )
    table: str = param(
        "nf4",
        "The 16 values: quantiles of a bell curve (nf4) or 4-bit floats (fp4).",
        choices=("nf4", "fp4"),
        label="choice",
    )
    group_size: int = param(
        64,
        "Weights that share one scale; a multiple of 16, or -1 for a whole row.",
        lo=-1,
        hi=4096,
        step=16,
        suggest=(-1, 32, 64, 128),
        level="advanced",
    )
    double: bool = param(True, "Double quantization: scales are 8-bit codes themselves.")
    train_tokens: int = param(
        32_768, "Training ends after this many tokens.", label="always", lo=0, hi=100_000_000
    )
    train_minutes: float = param(
        10.0, "Or after this many minutes, whichever comes first.", lo=0.1, hi=10_000.0
    )
    learning_rate: float = param(5e-4, "Highest step size of AdamW.", lo=1e-7, hi=1.0, level="advanced")
    dropout: float = param(
        0.0,
        "Share of the adapter's inputs that is left out at random in each training step.",
        lo=0.0,
        hi=0.9,
        level="advanced",
    )
    answers_only: bool = param(
        False,
        "Train on the answers of a text of dialogues alone: what follows ### Assistant: or ### Response:.",
        level="advanced",
    )
    paged: bool = param(
        True,
        "On a graphics card, AdamW's moments move to the host's memory when the card's runs short "
        "(bitsandbytes).",
        level="advanced",
    )


@functools.lru_cache(256)
def base_params(params: QloraParams) -> Nf4Params:
    """The parameters of the frozen half."""
    return Nf4Params(table=params.table, group_size=params.group_size, double=params.double)


@functools.lru_cache(256)
def adapter_params(params: QloraParams) -> Params:
    """The parameters of the trained half: every linear, kept apart if the base is rounded."""
    return compression.get("lora").params(
        rank=params.rank,
        lora_alpha=params.lora_alpha,
        train_tokens=params.train_tokens,
        train_minutes=params.train_minutes,
        learning_rate=params.learning_rate,
        dropout=params.dropout,
        answers_only=params.answers_only,
    )


def freeze(bundle: Bundle, params: QloraParams) -> Edit:
    """Store every linear of the blocks in 4 bits, in place, and return what was stored."""
    linears: dict[str, Packed] = {}
    notes: tuple[Note, ...] = ()
    layers = len(arch.blocks(bundle.module))
    for path, role, layer in list(arch.linears(bundle.module)):
        base = bundle.module.get_submodule(path)
        packed = getattr(base, "packed", None)
        weight = (base.weight if packed is None else packed.dequantize()).detach().float()
        edit = nf4.compress(
            Site(path, role, layer, layers, weight, base.bias, packed), Stats(tokens=0), base_params(params)
        )
        linears, notes = {**linears, **edit.linears}, notes + edit.notes
        bias = None if base.bias is None else base.bias.detach().clone()
        stored = CompressedLinear(edit.linears[path], bias, getattr(base, "input_scale", None))
        bundle.module.set_submodule(path, stored.train(base.training))
    return Edit(linears, notes=notes)


def paged_adamw(parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """AdamW whose moments are in unified memory of card and host (section 3, "paged optimizers").

    Raises ImportError.
    """
    from bitsandbytes.optim import PagedAdamW32bit

    return PagedAdamW32bit(parameters, lr=rate, weight_decay=0.0)


def optimizer_for(device: torch.device, params: QloraParams) -> tuple[Callable, tuple[Note, ...]]:
    """(a function that makes the optimizer, notes): only a graphics card has pages."""
    if not params.paged or device.type != "cuda":
        return adamw, ()
    if importlib.util.find_spec("bitsandbytes") is None:
        return adamw, (Note("paging_missing", {}),)
    return paged_adamw, ()


def compress(bundle: Bundle, context: Context, params: QloraParams) -> Edit:
    """Freeze the model in 4 bits and train adapters beside it on context.windows [n, window]."""
    frozen = freeze(bundle, params)
    optimizer, optimizer_notes = optimizer_for(bundle.device, params)
    trained = compression.get("lora").compress(bundle, context, adapter_params(params), optimizer)
    notes = tuple(
        Note(n.code, n.facts | {"method": "qlora"}) if "method" in n.facts else n for n in trained.notes
    )
    return dataclasses.replace(
        trained, linears=frozen.linears | trained.linears, notes=frozen.notes + optimizer_notes + notes
    )


def cost(shape: tuple[int, int], params: QloraParams, tokens: int) -> Cost:
    """Bytes of the frozen half, and of the adapter if it is trained.

    Forward, backward and the rebuilt matrices.
    """
    base = nf4.cost(shape, base_params(params), tokens)
    adapter = compression.get("lora").cost(shape, adapter_params(params), tokens)
    return Cost(
        bytes=base.bytes + (adapter.bytes if params.train_tokens else 0),
        flops=base.flops + adapter.flops,
        peak_bytes=adapter.peak_bytes,
    )


def control(params: QloraParams) -> tuple[str, dict]:
    """The same adapters, tokens and seed on the original weights."""
    return "lora", adapter_params(params).json()


METHOD = TrainingMethod(
    name="qlora",
    title="QLoRA",
    family="quantization",
    paper="https://arxiv.org/abs/2305.14314",
    params=QloraParams,
    compress=compress,
    cost=cost,
    stores="sum",
    after=frozenset({"dense"}),
    control=control,
    compresses=True,
    tiny={"rank": 2, "group_size": 16, "train_tokens": 256, "learning_rate": 0.01},
    # section 4 and the published scripts: 1,875 steps of 16 conversations of about 528 tokens
    full={
        "rank": 64,
        "lora_alpha": 16.0,
        "learning_rate": 2e-4,
        "train_tokens": 15_840_000,
        "train_minutes": BUDGET_MINUTES,
    },
    essay=__doc__,
)
