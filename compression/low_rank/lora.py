"""LoRA: a thin trained correction beside frozen weights. Here it wins back quality that a compression cost.

Training a compressed model in full would undo the compression: removed weights come back, integers become
fractions. LoRA freezes the stored matrix W and trains only two thin matrices beside it, y = W x + (alpha / r)
B A x. A [r, in] is drawn at random and B [out, r] is zero, so training starts from exactly the compressed
model. At rank 8 the adapter has about two percent of the weights. After pruning, quantization or
factorisation LoRA is the usual recovery. On the original model it is the control: it shows what the same
training does where nothing had been lost.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, equation 3. Where the
product B A goes depends on the format of W. It is added to a dense matrix. A sparse matrix with 16-bit values
is trained under its mask, W + M * (alpha / r) B A, and the masked product is added to it, so that every
removed place stays empty. (Adding a product that was trained without the mask would make the matrix dense
again.) A factorised matrix gets r more columns in each factor. Integers and code books would have to be
rounded anew, so there the adapter is kept apart in 16 bits, and its bytes are counted. `merge` off keeps it
apart everywhere.

Deviations. The text is the calibration text, never the evaluated one. The recovery recipes of LLM-Pruner and
SVD-LLM train two epochs on 50,000 instructions, which takes a graphics card. The best state on held-out
windows is kept, which may be the start. The short budget needs a higher rate (5e-4) than the recipes' 1e-4.
`dropout` leaves out this share of the adapter's inputs, drawn anew for each token, and scales the others up;
it is 0 by default. `answers_only` takes the loss of the answers alone in a text of dialogues or instructions,
as QLoRA's authors do (compression/answers.py says how answers are found).

Cost: a training step is three forward passes; only the adapters have gradients and moments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from compression import adapted
from compression.adapted import Adapted, release
from compression.answers import Answers
from compression.base import BUDGET_MINUTES, Context, Cost, Edit, Note, Params, TrainingMethod, param
from compression.bundle import Bundle
from compression.packed.base import Packed
from compression.packed.low_rank import LowRank
from compression.packed.sum import Sum
from compression.training import Budget, adamw, from_text, language_loss, train

TARGETS = {
    "all": ("q", "k", "v", "o", "gate", "up", "down"),
    "attention": ("q", "k", "v", "o"),
    "q and v": ("q", "v"),
}


@dataclass(frozen=True)
class LoraParams(Params):
    """The adapter, its training, and where the adapter ends up."""

    rank: int = param(
        8,
        "Columns of the two thin matrices.",
        lo=1,
        hi=128,
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
    targets: str = param("all", "Which matrices get an adapter.", choices=tuple(TARGETS), level="advanced")
    merge: bool = param(True, "Take the adapter into the weights where their format allows it.")
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


def adapt(bundle: Bundle, params: LoraParams, seed: int) -> dict[str, Adapted]:
    """Put an adapter at every target of the model, in place: path -> Adapted. `release` undoes it."""
    return adapted.adapt(
        bundle,
        params.rank,
        params.lora_alpha / params.rank,
        seed,
        roles=TARGETS[params.targets],
        masked=params.merge,
        dropout=params.dropout,
    )


def compress(bundle: Bundle, context: Context, params: LoraParams, optimizer: Callable = adamw) -> Edit:
    """Train adapters on context.windows [n, window]; return the model's linears with them.

    optimizer: makes the optimizer (training.py). Raises CalibrationError if only answers count and there are
    none.
    """
    if params.train_tokens == 0:
        return Edit()
    answers = Answers(bundle.tokenizer) if params.answers_only else None
    windows = context.windows if answers is None else answers.windows(context.windows)

    def loss(ids):
        return language_loss(bundle, ids, None if answers is None else answers.counted(ids))

    adapters = adapt(bundle, params, context.seed)
    try:
        course = train(
            [p for adapter in adapters.values() for p in (adapter.a, adapter.b)],
            loss,
            *from_text(windows, loss, context.seed),
            Budget(params.train_tokens, params.train_minutes),
            rate=params.learning_rate,
            optimizer=optimizer,
            recorder=context.recorder,
        )
    finally:
        release(bundle, adapters)
    notes = course.notes("lora")
    if course.best >= course.before:  # the untrained state was best: the model stays as it is
        notes += (Note("training_no_gain", {"method": "lora"}),)
        return Edit(notes=notes, series={"training": course.curve})
    results = {path: adapter.stored(params.merge) for path, adapter in adapters.items()}
    apart = {p: r for p, r in results.items() if isinstance(r, (Sum, LowRank))}
    if apart:
        added = sum(2 * params.rank * sum(r.shape) for r in apart.values())
        notes += (Note("adapter_apart", {"count": len(apart), "bytes": added}),)
    return Edit(
        linears={p: r for p, r in results.items() if isinstance(r, Packed)},
        tensors={f"{p}.weight": r for p, r in results.items() if isinstance(r, Tensor)},
        notes=notes,
        series={"training": course.curve},
    )


def cost(shape: tuple[int, int], params: LoraParams, tokens: int) -> Cost:
    """Bytes of the adapter beside the matrix; forward, backward and the adapter's own products."""
    out, n = shape
    return Cost(
        bytes=2 * params.rank * (out + n),
        flops=6.0 * params.train_tokens * out * n,
        peak_bytes=16 * params.rank * (out + n),
    )


def stays_apart(params: LoraParams, before: tuple) -> bool:
    """Whether the adapter's bytes come on top of what the earlier steps, [(Method, Params), ...], stored."""
    loose = all(
        method.family in ("original", "pruning") and "bits" not in chosen.effective()
        for method, chosen in before
    )
    return not (params.merge and loose)


METHOD = TrainingMethod(
    name="lora",
    title="LoRA",
    family="low_rank",
    paper="https://arxiv.org/abs/2106.09685",
    params=LoraParams,
    compress=compress,
    cost=cost,
    adds=stays_apart,
    after=frozenset(
        {
            "dense",
            "grouped_int",
            "affine_int",
            "bitmask",
            "two_four",
            "low_rank",
            "codebook",
            "binary_coded",
            "columns",
            "sum",
        }
    ),
    identity={"train_tokens": 0},
    tiny={"rank": 2, "train_tokens": 256, "learning_rate": 0.01},
    # the recovery of LLM-Pruner and SVD-LLM: two passes over 50,000 instructions of at most 256 tokens
    full={
        "rank": 8,
        "lora_alpha": 16.0,
        "learning_rate": 1e-4,
        "train_tokens": 25_600_000,
        "train_minutes": BUDGET_MINUTES,
    },
    essay=__doc__,
)
