"""SmoothQuant: 8-bit weights and 8-bit activations, after the loud channels have been evened out.

Multiplying in whole numbers is fast, but activations are hard to round: a few input channels are up to a hundred times louder
than the rest, and one ruler for all of them leaves the quiet ones nothing. The channels stay loud for every token, so
SmoothQuant divides each by a fixed factor and multiplies the weights of that channel by the same: the product does not
change, part of the difficulty moves to the weights, which are easy to round. The division goes into the norm before, so it
is free. alpha says how much moves: 0 leaves the activations as they are, 1 makes all their channels equally loud.

Paper: Xiao et al. 2022, arXiv 2211.10438. For the matrices behind a norm (queries, keys, values; gate and up)
    s_j = max |X_j|^alpha / max |W_j|^(1 - alpha)                                          (eq. 4)
over the calibration tokens and over all matrices that share the input. As in the authors' code the attention's output matrix
and the feed-forward's second one are rounded without being smoothed. Then symmetric 8 bits. The paper's three levels (table 2) all
have one scale for a whole weight matrix; they differ in the activations' scale, max |x| / 127: for each token when it comes (O1), for
all tokens when they come (O2), or fixed beforehand from the calibration text (O3). `weights` "tensor" with `activations` "token" is O1
and with "tensor" O3. The product is of integers.

Deviations. (1) The default gives every row of a weight its own scale, max |w| / 127, which is finer than any of the paper's levels and
costs 16 bits a row; the authors' later code has it too. (2) O2 is missing. (3) The products inside attention stay in floats; the paper
multiplies them as 8-bit integers at all three levels. (4) alpha starts at the paper's 0.5; the authors take 0.8 for LLaMA and 0.85 for
Llama 2 and 3. (5) OPT-350M's norms feed the residual too, so nothing is smoothed there and a note says so; the authors' code would
change the model. A fixed scale for what enters a gated feed-forward's second matrix must hold that layer's rare very loud values, and
most others then round to zero: on the offline model it more than doubles the perplexity. With `rounding` off only the factors are
applied, and a next step may round the weights (GPTQ).

Cost: one forward pass over the calibration tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compression.base import Block, Cost, Edit, Method, Params, param
from compression.packed.activations import ActivationRule
from compression.packed.grid import Grid, store_scale
from compression.packed.grouped_int import GroupedInt
from compression.quantization.folding import folded, skipped
from kernels.bits import row_bytes

SMOOTHED = ("q", "k", "v", "gate", "up")
LEAST = 1e-5


@dataclass(frozen=True)
class SmoothQuantParams(Params):
    """How much moves from activations to weights, and what shares a scale."""

    alpha: float = param(0.5, "Share of the loudness that moves into the weights.", lo=0.0, hi=1.0, step=0.05, main=True,
                         ends=("in activations", "in weights"))  # fmt: skip
    activations: str = param("token", "What shares one activation scale: each token by itself, or all of them, fixed beforehand.",
                             choices=("token", "tensor"), level="advanced", when={"rounding": True})  # fmt: skip
    weights: str = param("row", "What shares one weight scale: each row by itself, or the whole matrix (the paper).",
                         choices=("row", "tensor"), level="advanced", when={"rounding": True})  # fmt: skip
    smooth: bool = param(True, "Off: round to 8 bits without evening out, to compare.", level="advanced")
    rounding: bool = param(True, "Off: only move the factors, for a next step to round.", level="advanced")


def cost(shape: tuple[int, int], params, tokens: int) -> Cost:
    """Bytes of 8-bit codes and a scale a row; a few operations a weight."""
    out, n = shape
    size = out * row_bytes(n, 8) + 2 * out
    return Cost(bytes=size if params.rounding else 2 * out * n, flops=8.0 * out * n, peak_bytes=12 * out * n)


def smoothing(max_abs: Tensor, weights: list[Tensor], alpha: float) -> Tensor:
    """s [in] of eq. 4 for inputs with max |X_j| = max_abs [in] and all matrices [out, in] that share them."""
    largest = torch.stack([w.abs().amax(0) for w in weights]).amax(0).clamp_min(LEAST)
    return (max_abs.clamp_min(LEAST).pow(alpha) / largest.pow(1 - alpha)).clamp_min(LEAST)


def int8(weight: Tensor, shared: str = "row") -> GroupedInt:
    """weight [out, in] in symmetric 8 bits with scale max |w| / 127 a row, or of the whole matrix (shared "tensor"), stored in each row."""
    largest = weight.abs().amax(1, keepdim=True)
    scale = store_scale((largest if shared == "row" else largest.amax().expand_as(largest)) / 127)
    codes = torch.round(weight / scale.float()).clamp_(-127, 127) + 128
    return GroupedInt.encode(codes.to(torch.uint8), Grid.make(weight.shape, 8, -1, scale, None))


def compress(block: Block, params: SmoothQuantParams) -> Edit:
    """Smooth and round the linears of one block."""
    chosen = [i for i, g in enumerate(block.groups) if params.smooth and g.sites[0].role in SMOOTHED]
    fixed = [i for i in chosen if block.groups[i].fold is None]
    factors = {}
    for i in set(chosen) - set(fixed):
        group = block.groups[i]
        factors[i] = smoothing(group.stats.max_abs, [site.weight for site in group.sites], params.alpha)
    weights, tensors = folded(block, factors)
    notes = skipped(block, fixed)
    if not params.rounding:
        return Edit(tensors=tensors | {f"{path}.weight": w for path, w in weights.items()}, notes=notes)
    linears = {}
    for i, group in enumerate(block.groups):
        loudest = group.stats.max_abs / factors.get(i, 1.0)
        static = max(float(loudest.max()), 1e-30) / 127 if params.activations == "tensor" else None
        for site in group.sites:
            packed = int8(weights[site.path], params.weights)
            packed.activations = ActivationRule(bits=8, static=static)
            linears[site.path] = packed
    return Edit(linears, tensors, notes=notes)


METHOD = Method(
    name="smoothquant",
    title="SmoothQuant",
    family="quantization",
    paper="https://arxiv.org/abs/2211.10438",
    params=SmoothQuantParams,
    compress=compress,
    cost=cost,
    scope="block",
    stats=frozenset({"max_abs"}),
    stream="original",
    tiny={"alpha": 0.5},
    essay=__doc__,
)
