"""SmoothQuant: 8-bit weights and 8-bit activations, after the loud channels have been evened out.

Multiplying in whole numbers is fast, but activations are hard to round. A few input channels are up to a
hundred times louder than the rest, and with one scale for all channels the quiet ones round to zero. The same
channels are loud for every token. So SmoothQuant divides each channel by a fixed factor and multiplies the
weights of this channel by the same factor. The product does not change, and part of the difficulty moves to
the weights, which are easy to round. The division goes into the norm before, so it is free. alpha says how
much moves: 0 leaves the activations as they are, 1 makes all their channels equally loud.

Paper: Xiao et al. 2022, arXiv 2211.10438. For the matrices behind a norm (queries, keys, values; gate and up)
    s_j = max |X_j|^alpha / max |W_j|^(1 - alpha)                                          (eq. 4)
over the calibration tokens and over all matrices that share the input. As in the authors' code the
attention's output matrix and the feed-forward's second one are rounded without being smoothed. Then symmetric
8 bits. The product is of integers.

The paper's three levels (table 2) all have one scale for a whole weight matrix (`weights` "tensor") and
multiply in 8 bits inside attention too (`attention`). They differ in the activations' scale, max |x| / 127.
O1: each token has its own scale, computed when it comes (`activations` "token"). O2: all tokens of a call
share one scale, computed when they come ("dynamic_tensor"). O3: all tokens share one scale that the
calibration text fixes beforehand ("tensor"). With O2 a token's result depends on the other tokens of the
call. The text is measured some 2,048 tokens at a time, and their loudest value sets the scale. A chat writes
one token at a time, so each has its own scale, as with O1. A fixed scale may stop short of the maximum:
`percentile` 99.9 clips the loudest thousandth of the values and leaves the others finer steps. `search` tries
eleven alphas for each group of matrices that share an input, on at most 2,048 calibration tokens. It takes
the alpha with which the rounded matrices give the least squared error, much as Intel's neural-compressor
does.

Inside attention, queries, keys and values are rounded after the rotary positions, and probabilities to 127
steps. With fixed scales that is the authors' int8 attention for OPT. A scale for each token of the values
would not fit a sum over tokens, so with "token" it goes into the probabilities before these are rounded. The
whole numbers are multiplied as floats, which gives the same sums and no speed.

Deviations. (1) The default gives every row of a weight its own scale, max |w| / 127, which is finer than any
of the paper's levels and costs 16 bits a row; the authors' later code has it too. (2) By default attention
multiplies floats. (3) alpha starts at the paper's 0.5; the authors take 0.8 for LLaMA and 0.85 for Llama 2
and 3. (4) The search is not the paper's, which tries a few alphas for the whole model. neural-compressor
minimises the error of a whole block or of each layer; here it is each group, from the uncompressed model's
inputs. (5) OPT-350M's norms feed the residual too, so nothing is smoothed there and a note says so; the
authors' code would change the model. (6) The decode step that runs whole layers in one call does neither O2
nor 8 bits inside attention; such a model runs through transformers' own loop, and a note says so. (7) For
models with rotary positions the authors only simulate: they round queries and keys before the rotation, as
the matrices give them, and leave the probabilities in floats.

A fixed scale for what enters a gated feed-forward's second matrix must hold that layer's rare very loud
values, and most others then round to zero: on the offline model it more than doubles the perplexity. With
`rounding` off only the factors are applied, and a next step may round the weights (GPTQ).

Cost: one forward pass over the calibration tokens; one more for `search`, for a percentile and for
attention's fixed scales (two with a percentile).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from compression import attention
from compression.attention import Int8Attention
from compression.base import Block, BlockMethod, CalibrationError, Cost, Edit, Group, Params, param
from compression.packed.activations import ActivationRule
from compression.packed.grid import Grid, store_scale
from compression.packed.grouped_int import GroupedInt
from compression.quantization.folding import folded, skipped
from compression.quantization.zeroquant import name_in_block
from kernels.bits import row_bytes

SMOOTHED = ("q", "k", "v", "gate", "up")
LEAST = 1e-5
ALPHAS = tuple(k / 10 for k in range(11))  # the values that a search tries
SAMPLE = 2_048  # the most tokens on which it compares them
BINS = 1 << 16  # bins between 0 and the largest magnitude, for a percentile


@dataclass(frozen=True)
class SmoothQuantParams(Params):
    """How much moves from activations to weights, and what shares a scale."""

    alpha: float = param(
        0.5,
        "Share of the loudness that moves into the weights.",
        lo=0.0,
        hi=1.0,
        step=0.05,
        main=True,
        ends=("in activations", "in weights"),
        when={"search": False},
    )
    search: bool = param(
        False,
        "Choose alpha for each group of matrices: of 0, 0.1 .. 1 the one with the least error of "
        "what they give.",
        level="advanced",
        when={"smooth": True},
    )
    activations: str = param(
        "token",
        "What shares one activation scale: each token by itself, all tokens of a call as they come, or all "
        "of them, fixed beforehand.",
        choices=("token", "dynamic_tensor", "tensor"),
        label="always",
        level="advanced",
        when={"rounding": True},
    )
    percentile: float = param(
        100.0,
        "A fixed scale reaches to this percentile of the calibration's magnitudes; what is above is cut.",
        lo=90.0,
        hi=100.0,
        suggest=(99.0, 99.9, 99.99, 100.0),
        unit="%",
        level="advanced",
        when={"rounding": True, "activations": "tensor"},
    )
    weights: str = param(
        "row",
        "What shares one weight scale: each row by itself, or the whole matrix (the paper).",
        choices=("row", "tensor"),
        label="always",
        level="advanced",
        when={"rounding": True},
    )
    attention: bool = param(
        False,
        "Multiply in 8 bits inside attention too, with scales as the activations have them (the paper).",
        level="advanced",
        when={"rounding": True},
    )
    smooth: bool = param(True, "Off: round to 8 bits without evening out, to compare.", level="advanced")
    rounding: bool = param(True, "Off: only move the factors, for a next step to round.", level="advanced")


def cost(shape: tuple[int, int], params, tokens: int, role: str = "up") -> Cost:
    """Bytes of 8-bit codes and a scale a row.

    A few operations a weight, and two products of the sample for each alpha that is tried.
    """
    out, n = shape
    size = out * row_bytes(n, 8) + 2 * out
    tried = 2 * 2.0 * min(tokens, SAMPLE) * len(ALPHAS) if params.search and params.smooth else 0.0
    return Cost(
        bytes=size if params.rounding else 2 * out * n, flops=(8.0 + tried) * out * n, peak_bytes=12 * out * n
    )


def smoothing(max_abs: Tensor, weights: list[Tensor], alpha: float) -> Tensor:
    """s [in] of eq. 4 for inputs with max |X_j| = max_abs [in] and all matrices [out, in] that share them."""
    largest = torch.stack([w.abs().amax(0) for w in weights]).amax(0).clamp_min(LEAST)
    return (max_abs.clamp_min(LEAST).pow(alpha) / largest.pow(1 - alpha)).clamp_min(LEAST)


def int8(weight: Tensor, shared: str = "row") -> GroupedInt:
    """weight [out, in] in symmetric 8 bits.

    The scale is max |w| / 127 of each row; or, with shared "tensor", of the whole matrix, stored in each row.
    """
    largest = weight.abs().amax(1, keepdim=True)
    scale = store_scale((largest if shared == "row" else largest.amax().expand_as(largest)) / 127)
    codes = torch.round(weight / scale.float()).clamp_(-127, 127) + 128
    return GroupedInt.encode(codes.to(torch.uint8), Grid.make(weight.shape, 8, -1, scale, None))


def rule_of(activations: str, reach: float) -> ActivationRule:
    """How inputs are rounded. reach: the largest magnitude that a fixed scale holds."""
    return ActivationRule(
        8,
        static=max(reach, 1e-30) / 127 if activations == "tensor" else None,
        per_tensor=activations == "dynamic_tensor",
    )


def best_alpha(
    x: Tensor, max_abs: Tensor, weights: list[Tensor], activations: str, percentile: float, shared: str
) -> float:
    """The alpha of ALPHAS with the least error; of equal ones the smallest.

    The error is the sum over the matrices W of ||x W^T - r(x / s) r(W s)^T||^2, where r rounds as the model
    will. x [tokens, in]: a sample of the inputs. max_abs [in]: their maxima over all tokens. weights: [out,
    in] each.
    """
    exact, errors = [x @ w.T for w in weights], []
    for alpha in ALPHAS:
        s = smoothing(max_abs, weights, alpha)
        even = x / s
        reach = float((max_abs / s).max()) if percentile == 100 else Magnitudes.of(even).reach(percentile)
        even = rule_of(activations, reach)(even)
        errors.append(
            sum(
                float((even @ int8(w * s, shared).dequantize().T - y).square().sum())
                for w, y in zip(weights, exact, strict=True)
            )
        )
    return ALPHAS[min(range(len(ALPHAS)), key=errors.__getitem__)]


@dataclass
class Magnitudes:
    """How often each magnitude occurs, in 65,536 equal bins from 0 to `largest`; none may be larger."""

    largest: float
    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))

    @classmethod
    def of(cls, x: Tensor) -> Magnitudes:
        found = cls(float(x.abs().max()))
        found.add(x)
        return found

    def add(self, x: Tensor) -> None:
        """Count x, of any shape."""
        if self.largest > 0:
            self.counts += torch.histc(x.detach().float().abs(), BINS, 0, self.largest).cpu().double()

    def reach(self, percentile: float) -> float:
        """The least upper end of a bin below which at least `percentile` percent of the magnitudes lie."""
        if percentile == 100 or self.largest == 0:
            return self.largest
        below = self.counts.cumsum(0)
        return self.largest * (int((below < percentile / 100 * below[-1]).sum()) + 1) / BINS


def look(
    block: Block,
    inputs: Mapping[int, Callable[[Tensor], None]],
    heads: Callable[[Tensor, Tensor, Tensor], None] | None,
) -> None:
    """Run the uncompressed block over its calibration inputs once more.

    The functions in `inputs` are called with what enters these groups, and `heads` with what enters the
    products inside attention. Raises CalibrationError for a block that comes without its inputs.
    """
    passage = block.inputs
    if passage is None:
        raise CalibrationError(
            f"block {block.layer} came without its calibration inputs; search, percentile and attention "
            "need them"
        )
    with ExitStack() as stack:
        for number, see in inputs.items():
            first = passage.block.get_submodule(
                name_in_block(block.groups[number].sites[0].path, block.layer)
            )
            stack.callback(
                first.register_forward_pre_hook(lambda part, args, see=see: see(args[0].detach())).remove
            )
        if heads is not None:
            stack.enter_context(attention.watched(passage.block, heads))
        for hidden in passage.inputs:
            passage.run(hidden, {})


def sampled(block: Block, numbers: list[int]) -> dict[int, Tensor]:
    """About SAMPLE inputs [tokens, in] of each of these groups, evenly spaced over the calibration text."""
    every = max(1, block.groups[0].stats.tokens // SAMPLE)
    kept: dict[int, list[Tensor]] = {number: [] for number in numbers}

    def see(number: int, x: Tensor) -> None:
        kept[number].append(x.flatten(0, -2)[::every].float())

    look(block, {number: partial(see, number) for number in numbers}, None)
    return {n: torch.cat(parts)[:SAMPLE] for n, parts in kept.items()}


def reaches(block: Block, largest: list[float], factors: Mapping[int, Tensor], params) -> list[float]:
    """The magnitude that each group's fixed scale holds. largest: each group's largest magnitude."""
    if params.activations != "tensor" or params.percentile == 100:
        return largest
    counted = [Magnitudes(most * (1 + 1e-6)) for most in largest]
    see = {i: lambda x, i=i: counted[i].add(x.float() / factors.get(i, 1.0)) for i in range(len(largest))}
    look(block, see, None)
    return [c.reach(params.percentile) for c in counted]


def inside(block: Block, params) -> Int8Attention | None:
    """How the block's attention rounds; None if it multiplies floats."""
    if not params.attention:
        return None
    if params.activations != "tensor":
        return Int8Attention(params.activations)
    largest, counted = [0.0, 0.0, 0.0], None

    def see(*parts: Tensor) -> None:
        for i, x in enumerate(parts):
            if counted is None:
                largest[i] = max(largest[i], float(x.abs().max()))
            else:
                counted[i].add(x)

    look(block, {}, see)
    if params.percentile < 100:
        counted = [Magnitudes(most) for most in largest]
        look(block, {}, see)
        largest = [c.reach(params.percentile) for c in counted]
    query, key, value = (max(most, 1e-30) / 127 for most in largest)
    return Int8Attention("tensor", (query, key, value))


def compress(block: Block, params: SmoothQuantParams) -> Edit:
    """Smooth and round the linears of one block, and what its attention multiplies."""
    chosen = [i for i, g in enumerate(block.groups) if params.smooth and g.sites[0].role in SMOOTHED]
    fixed = [i for i in chosen if block.groups[i].fold is None]
    smoothed = [i for i in chosen if i not in fixed]
    alphas = dict.fromkeys(smoothed, params.alpha)
    if params.search and smoothed:
        alphas = {
            i: best_alpha(
                x,
                block.groups[i].stats.max_abs,
                _weights(block.groups[i]),
                params.activations,
                params.percentile,
                params.weights,
            )
            for i, x in sampled(block, smoothed).items()
        }
    factors = {
        i: smoothing(block.groups[i].stats.max_abs, _weights(block.groups[i]), alpha)
        for i, alpha in alphas.items()
    }
    weights, tensors = folded(block, factors)
    notes = skipped(block, fixed)
    figures = (
        {site.path: {"alpha": alpha} for i, alpha in alphas.items() for site in block.groups[i].sites}
        if params.search
        else {}
    )
    if not params.rounding:
        return Edit(tensors=tensors | {f"{path}.weight": w for path, w in weights.items()}, notes=notes)
    linears = {}
    largest = [
        float((group.stats.max_abs / factors.get(i, 1.0)).max()) for i, group in enumerate(block.groups)
    ]
    for group, reach in zip(block.groups, reaches(block, largest, factors, params), strict=True):
        for site in group.sites:
            packed = int8(weights[site.path], params.weights)
            packed.activations = rule_of(params.activations, reach)
            linears[site.path] = packed
    return Edit(linears, tensors, notes=notes, figures=figures, attention=inside(block, params))


def _weights(group: Group) -> list[Tensor]:
    return [site.weight for site in group.sites]


METHOD = BlockMethod(
    name="smoothquant",
    title="SmoothQuant",
    family="quantization",
    paper="https://arxiv.org/abs/2211.10438",
    params=SmoothQuantParams,
    compress=compress,
    cost=cost,
    stores="grouped_int",
    stats=frozenset({"max_abs"}),
    tiny={"alpha": 0.5},
    essay=__doc__,
)
