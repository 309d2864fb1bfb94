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

is least.

Deviations: (1) the state behind the last block is taken before the final norm, because that norm stays. (2)
Gromov et al. take the last token of each text; we take every token, because our texts are few. (3) They train
the model afterwards; here that is a step of its own. (4) At least one block stays.

Cost: one forward pass over at most 8,192 tokens of the calibration text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from compression import depth
from compression.base import Context, Cost, Edit, ModelMethod, Params, param
from compression.bundle import Bundle, Geometry


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
        "Which blocks go: those that turn the hidden states least, or the run of neighbours over which the "
        "states turn least.",
        choices=depth.ORDERS,
        label="choice",
    )


def count(total: int, removed: float) -> int:
    """How many of `total` blocks go; at least one stays."""
    return min(total - 1, round(total * removed))


def reshaped(geometry: Geometry, params: ShortgptParams) -> Geometry:
    """The model's sizes afterwards. Which blocks go is known in the run only; where an earlier step left
    blocks of several sizes, these are the sizes without the last ones."""
    layers = geometry.layers
    return replace(geometry, layers=layers[: len(layers) - count(len(layers), params.removed)])


def compress(bundle: Bundle, context: Context, params: ShortgptParams) -> Edit:
    """Which blocks stay, measured on context.windows [n, window]."""
    gone = count(len(bundle.geometry.layers), params.removed)
    if not gone:
        return Edit()
    assert context.windows is not None, "ModelMethod.reads_windows asks for them"
    found = depth.choose(bundle, context.windows, gone, params.order, context.recorder)
    return Edit(blocks=found.kept, notes=(found.note(),))


def cost(shape: tuple[int, int], params: ShortgptParams, tokens: int) -> Cost:
    """A forward pass over what the blocks are measured on; stored in 16 bits."""
    out, n = shape
    passed = min(tokens, depth.MEASURED) if params.removed else 0
    return Cost(bytes=2 * out * n, flops=2.0 * passed * out * n)


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
