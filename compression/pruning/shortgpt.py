"""ShortGPT: remove whole decoder blocks, those that change the hidden states least.

A decoder block adds something to what it reads. The paper finds that in many models some blocks add so
little that the state behind them points where it pointed before. ShortGPT measures that on a text and removes
the blocks that do least. What is left is an ordinary model with fewer blocks: smaller on disk and in memory,
with a smaller key-value cache, and with less to compute for every token. The price is quality. A training
afterwards (`shortgpt + lora`) is a step of its own.

Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", arXiv
2403.03853. The block influence of block i is (equation 1), over tokens t,

    BI_i = 1 - E_t [ h_(i,t) . h_(i+1,t) / (|h_(i,t)| |h_(i+1,t)|) ]

where h_i is what enters block i and h_(i+1) what leaves it. The blocks with the lowest influence go, all at
once. `order` contiguous is the criterion of Gromov et al. 2024, "The Unreasonable Ineffectiveness of the
Deeper Layers", arXiv 2403.17887: n neighbours go, and they begin at the block l whose

    d_l = E_t [ arccos( cos(h_(l,t), h_(l+n,t)) ) ] / pi

is least. `order` angular takes this distance over each block by itself, and the lowest go, neighbours or not.

`order` taylor is the criterion of Kim et al. 2024, "Shortened LLaMA: A Simple Depth Pruning for Large
Language Models", arXiv 2402.02834 (Taylor+): a block's importance is the sum of |g w| over all weights w of
its matrices, g the gradient of the language-model loss on ten texts of 128 tokens. They never rank their
first four and last two of 32 blocks; here these are the first eighth and the last sixteenth of the depth,
which go only when no other block is left. `order` random draws the blocks: the control, of which several
draws are needed.

Deviations: (1) the state behind the last block is taken before the final norm, because that norm stays. (2)
Gromov et al. take the last token of each text; we take every token, because our texts are few. (3) They train
the model afterwards; here that is a step of its own. (4) At least one block stays.

Cost: one forward pass over at most 8,192 tokens of the calibration text. `order` taylor: forward and backward
passes over 1,280 tokens, and gradients of all matrices in 32 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compression import arch, depth
from compression.base import Context, Cost, Edit, ModelMethod, Note, Params, param
from compression.bundle import Bundle, Geometry
from compression.pruning.gradients import gradients, texts

ORDERS = ("influence", "angular", "contiguous", "taylor", "random")
SAMPLES, SAMPLE_TOKENS = 10, 128  # texts of the gradient
FIRST, LAST = 4 / 32, 2 / 32  # shares of the depth that the gradient's order spares


@dataclass(frozen=True)
class ShortgptParams(Params):
    """How many blocks go, and which."""

    removed: float = param(
        0.2,
        "Share of the decoder blocks that is removed, rounded to whole blocks.",
        lo=0.0,
        hi=0.9,
        step=0.05,
        main=True,
        ends=("original", "few blocks left"),
    )
    order: str = param(
        "influence",
        "Which blocks go: those that turn the hidden states least (by cosine or angle), the run of "
        "neighbours over which they turn least, those on whose weights the loss depends least, or chance.",
        choices=ORDERS,
        label="choice",
    )


def count(total: int, removed: float) -> int:
    """How many of `total` blocks go; at least one stays."""
    return min(total - 1, round(total * removed))


def reshaped(geometry: Geometry, params: ShortgptParams) -> Geometry:
    """The model's sizes afterwards.

    Only the run decides which blocks go. If an earlier step left blocks of several sizes, these are the sizes
    without the last blocks.
    """
    layers = geometry.layers
    return replace(geometry, layers=layers[: len(layers) - count(len(layers), params.removed)])


def dependence(bundle: Bundle, context: Context) -> Tensor:
    """How much the loss depends on each block, float64 [blocks]: the sum of |g w| over its matrices.

    g is the mean gradient on `SAMPLES` texts of context.windows, fewer if they hold fewer.
    """
    assert context.windows is not None
    length = min(SAMPLE_TOKENS, context.windows.shape[1])
    held = len(context.windows) * (context.windows.shape[1] // length)
    places = [(path, layer) for path, _, layer in arch.linears(bundle.module)]
    ids = texts(context.windows, min(SAMPLES, held), length)
    found = gradients(bundle, [path for path, _ in places], ids, context)
    total = torch.zeros(len(bundle.geometry.layers), dtype=torch.float64)
    for path, layer in places:
        weight = bundle.module.get_submodule(path).weight.detach()
        total[layer] += float((found.first.pop(path) * weight).abs().double().sum())
    return total


def spared(importances: Tensor) -> Tensor:
    """The importances [blocks] with those of the first eighth and the last sixteenth above all others."""
    total = len(importances)
    first, last = round(total * FIRST), round(total * LAST)
    above = importances.clone()
    above[:first] += importances.sum()
    above[total - last :] += importances.sum()
    return above


def choose(bundle: Bundle, context: Context, gone: int, order: str) -> depth.Choice:
    """Which `gone` blocks go."""
    total = len(bundle.geometry.layers)
    if order == "taylor":
        return depth.without(total, depth.least(spared(dependence(bundle, context)), gone), order)
    if order == "random":
        drawn = torch.randperm(total, generator=torch.Generator().manual_seed(context.seed))[:gone]
        return depth.without(total, sorted(drawn.tolist()), order)
    return depth.choose(bundle, context.windows, gone, order, context.recorder)


def compress(bundle: Bundle, context: Context, params: ShortgptParams) -> Edit:
    """Choose the blocks that stay, by a measurement on context.windows [n, window]."""
    gone = count(len(bundle.geometry.layers), params.removed)
    if not gone:
        asked = {"percent": round(100 * params.removed, 1), "of": len(bundle.geometry.layers)}
        return Edit(notes=(Note("no_block_removed", asked),) if params.removed else ())
    assert context.windows is not None, "ModelMethod.reads_windows asks for them"
    found = choose(bundle, context, gone, params.order)
    return Edit(blocks=found.kept, notes=(found.note(),))


def cost(shape: tuple[int, int], params: ShortgptParams, tokens: int) -> Cost:
    """The passes of the measurement; the matrix stays in 16 bits."""
    out, n = shape
    if params.removed == 0 or params.order == "random":
        return Cost(bytes=2 * out * n, flops=0.0)
    if params.order == "taylor":
        passed = min(tokens, SAMPLES * SAMPLE_TOKENS)
        return Cost(bytes=2 * out * n, flops=6.0 * passed * out * n, peak_bytes=4 * out * n)
    return Cost(bytes=2 * out * n, flops=2.0 * min(tokens, depth.MEASURED) * out * n)


METHOD = ModelMethod(
    name="shortgpt",
    title="ShortGPT",
    family="pruning",
    paper="https://arxiv.org/abs/2403.03853",
    params=ShortgptParams,
    compress=compress,
    cost=cost,
    reads_windows=True,
    reshaped=reshaped,
    identity={"removed": 0.0},
    tiny={"removed": 0.5},
    essay=__doc__,
)
