"""LoRAPrune: the adapter that repairs the model also shows which heads and channels can go.

LLM-Pruner takes the gradient of every weight once, cuts, and repairs afterwards. LoRAPrune cuts while it
repairs. It trains an adapter beside the frozen weights. The training's effect on the adapter shows how a
training would change the weights. So no gradient of a large matrix is ever needed. Heads and channels fade
out a few at a time, and the adapter learns to do without them before they are gone. In the end adapter and
weights are added up and the matrices are cut.

Zhang et al. 2023, "LoRAPrune: Structured Pruning Meets Low-Rank Parameter-Efficient Fine-Tuning", arXiv
2305.18403. The adapter is B A, with the gradients dB and dA. In place of the weight's gradient stands the
change of the product in one step of descent,

    G = B A - (B - dB)(A - dA) = dB A + B dA - dB dA.

A weight's importance is |G (W + c B A)| with c = alpha / r. A structure's importance is the sum over its rows
of q, k, v, gate, up and its columns of o, down; each matrix's sums are divided by their length first. It is
averaged over the steps (0.9 old, 0.1 new). The first tenth of the training hides nothing. Then the share of
hidden structures rises by p(t) = p (1 - (1 - t)^3), and in the last tenth it is exactly the asked share. A
hidden structure stays hidden. Each block ranks its own structures; the first tenth of the blocks and the last
block stay whole.

Deviations. (1) Importance is the absolute value, as in the authors' code; the paper squares it. (2) A hidden
head or channel is set to 0 where it enters o or down, not where it leaves q, k, v, gate and up. This is the
same function, and it also works if query heads share keys. (3) The authors' last mask stays below the asked
share; ours reaches it. (4) Masks are chosen anew every 4 steps instead of 10, because a short training has
few. (5) The text is the calibration text. (6) Whole heads are counted as in LLM-Pruner. `magnitude` takes
|W + c B A| alone, without a gradient: the control.

Cost: a training step takes three forward passes, and two thin products a matrix for the importance.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from compression import arch
from compression.adapted import Adapted, adapt, release
from compression.base import BUDGET_MINUTES, BadParam, Context, Cost, Edit, TrainingMethod, param
from compression.bundle import Bundle
from compression.pruning.structured import (
    StructuredParams,
    choose,
    forgotten,
    note_of_cut,
    pruned_layers,
    reshaped,
)
from compression.structure import AXES, Kept, lanes
from compression.training import Budget, from_text, language_loss, train

MEMORY = 0.9  # share of the old importance that is kept at each step
WARM_UP, COOL_DOWN = 0.1, 0.1  # shares of the training before the first mask and after the last one


@dataclass(frozen=True)
class LoraPruneParams(StructuredParams):
    """How much is removed, and the training that decides and repairs."""

    guide: str = param(
        "adapter",
        "What tells how much a structure matters: the adapter's values and gradients, or size alone.",
        choices=("adapter", "magnitude"),
        label="choice",
    )
    rank: int = param(
        8, "Columns of the adapter's two thin matrices.", lo=1, hi=128, step=1, level="advanced"
    )
    lora_alpha: float = param(
        16.0,
        "The adapter's product is multiplied by this over the rank.",
        lo=0.1,
        hi=1024.0,
        level="advanced",
    )
    train_tokens: int = param(
        65_536, "Training ends after this many tokens.", label="always", lo=1, hi=100_000_000
    )
    train_minutes: float = param(
        20.0, "Or after this many minutes, whichever comes first.", lo=0.1, hi=10_000.0
    )
    learning_rate: float = param(5e-4, "Highest step size of AdamW.", lo=1e-7, hi=1.0, level="advanced")
    mask_every: int = param(
        4, "Steps between two choices of what is hidden.", lo=1, hi=1_000, level="advanced"
    )


def stand_in(a: Tensor, b: Tensor, da: Tensor, db: Tensor) -> Tensor:
    """G [out, in] for an adapter b [out, r] a [r, in] and its gradients: dB A + B dA - dB dA."""
    return db @ a + (b - db) @ da


def hidden_share(share: float, removed: float) -> float:
    """How much is hidden when `share` of the training is done.

    It is 0 until the warm-up's end, and `removed` from the cool-down on.
    """
    through = (share - WARM_UP) / (1 - WARM_UP - COOL_DOWN)
    return removed * (1 - (1 - min(max(through, 0.0), 1.0)) ** 3)


class Pruner:
    """Watches the adapters of the blocks that may be cut. It keeps their importances and growing masks."""

    def __init__(self, bundle: Bundle, adapters: dict[str, Adapted], params: LoraPruneParams):
        self.bundle, self.params, self.steps = bundle, params, 0
        self.layers = list(pruned_layers(len(bundle.geometry.layers), params)) if params.removed else []
        self.adapters = {  # layer -> role -> Adapted
            layer: {
                role: adapters[path] for group in arch.groups(bundle.module, layer) for path, role in group
            }
            for layer in self.layers
        }
        self.scores: dict[int, dict[str, Tensor]] = {layer: {} for layer in self.layers}
        self.shown = {
            layer: {"o": self._all(layer, "o"), "down": self._all(layer, "down")} for layer in self.layers
        }
        self.kept: dict[int, Kept] = {}
        self.handles = [
            self.adapters[layer][role].register_forward_pre_hook(
                lambda module, args, layer=layer, role=role: (args[0] * self.shown[layer][role].to(args[0]),)
            )
            for layer in self.layers
            for role in ("o", "down")
        ]

    def _all(self, layer: int, role: str) -> Tensor:
        return torch.ones(self.adapters[layer][role].base.in_features)

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()

    def watch(self, share: float) -> None:
        """Called before each training step: measure importance, and hide as many structures as are due."""
        for layer in self.layers:
            for role, adapter in self.adapters[layer].items():
                new = self._measure(layer, role, adapter)
                old = self.scores[layer].get(role)
                self.scores[layer][role] = new if old is None else MEMORY * old + (1 - MEMORY) * new
        self.steps += 1
        removed = hidden_share(share, self.params.removed)
        if removed and (self.steps % self.params.mask_every == 0 or removed == self.params.removed):
            self.hide(removed)

    def finish(self) -> bool:
        """Hide the full share, whenever the training ended. Returns True if anything can be hidden."""
        if self.layers and not self.steps:
            raise BadParam(
                "no step was trained, so nothing tells what to remove; give the training more minutes",
                name="train_minutes",
                got=self.params.train_minutes,
                allowed="enough for one step",
            )
        self.hide(self.params.removed)
        return bool(self.layers)

    @torch.no_grad()
    def _measure(self, layer: int, role: str, adapter: Adapted) -> Tensor:
        """Importance of each row or column of one matrix that belongs to a structure, [n]."""
        weight = (adapter.base.weight.float() + adapter.scale * (adapter.b @ adapter.a)).abs()
        if self.params.guide == "adapter":
            weight *= stand_in(adapter.a, adapter.b, adapter.a.grad, adapter.b.grad).abs()
        what, axis = AXES[role]
        score = weight.sum(1 - axis).cpu()
        size = 1 if what == "channels" else self.bundle.geometry.layers[layer].head_size
        return score / score.view(-1, size).sum(1).norm().clamp_min(1e-30)

    def hide(self, removed: float) -> None:
        """Hide this share of every block's structures. Those that are hidden already stay hidden."""
        for layer in self.layers:
            sizes = self.bundle.geometry.layers[layer]
            scores = forgotten(self.scores[layer], self.kept.get(layer), sizes)
            kept = choose(scores, sizes, dataclasses.replace(self.params, removed=removed))
            self.kept[layer] = kept
            for role, index in (
                ("o", lanes(torch.tensor(kept.heads), sizes.head_size)),
                ("down", torch.tensor(kept.channels)),
            ):
                self.shown[layer][role] = torch.zeros_like(self.shown[layer][role]).index_fill_(0, index, 1.0)


def compress(bundle: Bundle, context: Context, params: LoraPruneParams) -> Edit:
    """Train adapters on context.windows [n, window] while heads and channels fade out.

    Returns the merged weights and what stays.
    """
    adapters = adapt(bundle, params.rank, params.lora_alpha / params.rank, context.seed)
    pruner = Pruner(bundle, adapters, params)

    def loss(ids):
        return language_loss(bundle, ids)

    try:
        course = train(
            [p for adapter in adapters.values() for p in (adapter.a, adapter.b)],
            loss,
            *from_text(context.windows, loss, context.seed),
            Budget(params.train_tokens, params.train_minutes),
            rate=params.learning_rate,
            before_step=pruner.watch,
            finish=pruner.finish,
            recorder=context.recorder,
        )
    finally:
        pruner.close()
        release(bundle, adapters)
    notes = course.notes("lora_prune")
    if pruner.kept:
        notes += (note_of_cut(bundle.geometry, reshaped(bundle.geometry, params), pruner.layers),)
    merged = {f"{path}.weight": adapter.stored(merge=True) for path, adapter in adapters.items()}
    return Edit(tensors=merged, kept=pruner.kept, notes=notes, series={"training": course.curve})


def cost(shape: tuple[int, int], params: LoraPruneParams, tokens: int) -> Cost:
    """The cost of one matrix before pruning: the passes and the thin products; stored in 16 bits."""
    out, n = shape
    return Cost(
        bytes=2 * out * n, flops=6.0 * params.train_tokens * out * n, peak_bytes=16 * params.rank * (out + n)
    )


def control(params: LoraPruneParams) -> tuple[str, dict] | None:
    """The same training and cut, guided by size alone; None if it is that already."""
    if params.guide == "magnitude":
        return None
    return "lora_prune", params.json() | {"guide": "magnitude"}


METHOD = TrainingMethod(
    name="lora_prune",
    title="LoRAPrune",
    family="pruning",
    paper="https://arxiv.org/abs/2305.18403",
    params=LoraPruneParams,
    compress=compress,
    cost=cost,
    reshaped=reshaped,
    control=control,
    tiny={"protect_first": 0.0, "protect_last": 0.0, "rank": 2, "train_tokens": 1_024, "mask_every": 1},
    # two passes over 20,000 pieces of 512 tokens, masks chosen anew every ten steps
    full={
        "rank": 8,
        "learning_rate": 1e-4,
        "mask_every": 10,
        "train_tokens": 20_480_000,
        "train_minutes": BUDGET_MINUTES,
    },
    essay=__doc__,
)
