"""LLM.int8(): weights and activations in 8 bits, except for the few activations that are too large for it.

A product of integers needs integers on both sides. In large models a few features of the hidden state are far larger
than the rest; one such value stretches the 8-bit ruler of its token until everything else rounds to zero. LLM.int8()
takes these values out: whatever is 6 or larger is multiplied as it is, all the rest as int8 with int32 sums. That needs no
calibration, because outliers are recognised while the model runs.

Dettmers, Lewis, Belkada, Zettlemoyer 2022, arXiv 2208.07339, section 3: weights have one scale an output row, activations
one a token (vector-wise quantization), 127 codes on each side of zero, so that -128 never occurs. With O the outlier
features (equation 8),
    Y = X_O W_O + diag(c_x) (int8(X) int8(W)) diag(c_w)
Weights are kept in int8 alone and their outlier columns are read back from there (bitsandbytes' mode); the paper's
16-bit copy of W_O is not stored. A threshold of 0 turns the decomposition off, as in bitsandbytes.

The paper has two forms of int8(X) (section 2.1, table 1). "Absmax", of equation 8, runs from -max to max; "zeropoint" runs
from a token's least to its largest value. A token whose largest value has no counterpart of the other sign, as behind a
gated activation, then has steps up to half as wide. Small models gain most (table 1, vector-wise at 125M parameters:
perplexity 25.72 instead of 35.84, the original 25.65), and the models first tried here are small: the default is zeropoint. It
costs one more number a row, the sum of its weights. bitsandbytes, the authors' code, has absmax alone: to foretell what it
will make of a model, turn the zero point off.

Deviation: the paper takes a feature out for all tokens of a batch as soon as one of them reaches the threshold; here each
token decides for itself. With one token at a time it is the same; with many, a token's result no longer depends on
which others are beside it, and ordinary values beside an outlier are rounded where the paper leaves them. Scales are
stored in 16 bits. The threshold is absolute: small models may have no activation that reaches it, and then this is plain
int8.

Cost: one pass over the weights; 8 bits a weight and 16 a row. Large activations make it slower than plain int8.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from compression.base import Cost, Edit, Method, Params, Site, Stats, param
from compression.packed.activations import ActivationRule
from compression.packed.grid import Grid
from compression.packed.grouped_int import GroupedInt
from compression.quantization.grids import stored
from kernels.bits import row_bytes


@dataclass(frozen=True)
class LlmInt8Params(Params):
    """What counts as too large."""

    threshold: float = param(6.0, "Activations of this size or larger are multiplied as they are; 0: none are.", lo=0.0, hi=1e6)
    zero_point: bool = param(True, "Codes run from a token's least to its largest activation: finer steps than -max to max.")


def cost(shape: tuple[int, int], params, tokens: int) -> Cost:
    """Bytes of codes and row scales; a few operations a weight."""
    out, n = shape
    return Cost(bytes=out * row_bytes(n, 8) + 2 * out, flops=8.0 * out * n, peak_bytes=12 * out * n)


def vector_wise(weight: Tensor) -> GroupedInt:
    """weight [out, in] in int8, one scale a row: largest |weight| / 127."""
    grid = Grid.make(weight.shape, 8, -1, weight.abs().amax(1, keepdim=True) / 127, None)
    return GroupedInt.encode(grid.round(weight), grid)


def compress(site: Site, stats: Stats, params: LlmInt8Params) -> Edit:
    """Quantize the weight [out, in] of one linear and set how its inputs are rounded while it runs."""
    packed = vector_wise(site.weight)
    packed.activations = ActivationRule(bits=8, threshold=params.threshold or None, zero_point=params.zero_point)
    return stored(site, packed)


METHOD = Method(
    name="llm_int8",
    title="LLM.int8()",
    family="quantization",
    paper="https://arxiv.org/abs/2208.07339",
    params=LlmInt8Params,
    compress=compress,
    cost=cost,
    after=frozenset({"dense"}),
    essay=__doc__,
)
