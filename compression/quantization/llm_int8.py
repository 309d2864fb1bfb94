"""LLM.int8(): weights and activations in 8 bits, except for the few activations that are too large for it.

A product of integers needs integers on both sides. In large models a few features of the hidden state are far
larger than the rest; one such value stretches the 8-bit ruler of its token until everything else rounds to
zero. LLM.int8() takes these values out: whatever is 6 or larger is multiplied as it is, all the rest as int8
with int32 sums. That needs no calibration, because outliers are recognised while the model runs.

Dettmers, Lewis, Belkada, Zettlemoyer 2022, arXiv 2208.07339, section 3: weights have one scale an output row,
activations one a token (vector-wise quantization), 127 codes on each side of zero, so that -128 never occurs.
With O the outlier features (equation 8),
    Y = X_O W_O + diag(c_x) (int8(X) int8(W)) diag(c_w)
In the paper, one token that reaches the threshold in a feature takes this feature out for all tokens of the
call (`decomposition` "column"). By default a token takes out only its own values ("token"). With one token at
a time both are the same. With many tokens they differ: by column a token's result depends on the other tokens
of the call, and by token the other tokens' ordinary values in an outlier column are rounded, which the paper
leaves exact. The weights that meet outliers are read back from int8, as bitsandbytes does. By column they may
stay in 16 bits as in the paper (`outlier_weights` 16): a column that reaches the threshold anywhere in a
calibration text is stored in 16 bits. Outliers in any other column are multiplied by its int8 weights. A
threshold of 0 turns the decomposition off, as in bitsandbytes.

The paper has two forms of int8(X) (section 2.1, table 1). "Absmax", of equation 8, runs from -max to max;
"zeropoint" runs from a token's least to its largest value. If a token's largest value has no counterpart of
the other sign, as after a gated activation, zeropoint's steps are up to half as wide. Small models gain most
(table 1, vector-wise at 125M parameters: perplexity 25.72 instead of 35.84, the original 25.65), and the
models that one tries first here are small. So the default is zeropoint. It costs one more number a row, the
sum of its weights. bitsandbytes, the authors' code, has absmax alone. Turn the zero point off to see what
bitsandbytes will give.

Deviations. (1) The default is by token, with a zero point and no 16-bit weights. (2) The paper does not say
how its 16-bit columns of W are found, and bitsandbytes keeps all of W in 16 bits or none. Here calibration
finds them once. Their inputs are never rounded, and the scales of the other weights don't count them. (3)
Scales are stored in 16 bits. (4) The decode step that runs whole layers in one call can't round by column;
such a model runs through transformers' own loop, and a note says so. The threshold is absolute: small models
may have no activation that reaches it, and then this is plain int8.

Cost: one pass over the weights; 8 bits a weight and 16 a row, and 16 more a weight for columns in 16 bits,
with a forward pass over the calibration text to find them. Large activations make it slower than plain int8.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from compression.base import Cost, Edit, LinearMethod, Params, Site, Stats, param
from compression.edits import stored
from compression.packed.activations import ActivationRule
from compression.packed.base import Packed
from compression.packed.columns import Columns
from compression.packed.grid import Grid
from compression.packed.grouped_int import GroupedInt
from compression.packed.sum import Sum
from kernels.bits import row_bytes


@dataclass(frozen=True)
class LlmInt8Params(Params):
    """Which inputs count as too large."""

    threshold: float = param(
        6.0, "Activations of this size or larger are multiplied as they are; 0: none are.", lo=0.0, hi=1e6
    )
    zero_point: bool = param(
        True,
        "Codes run from a token's least to its largest activation: finer steps than -max to max.",
        label="always",
    )
    decomposition: str = param(
        "token",
        "What is too large leaves the 8 bits for its own token, or its whole column for all tokens of the "
        "call (the paper).",
        choices=("token", "column"),
        level="advanced",
    )
    outlier_weights: int = param(
        8,
        "Bits of the weights that meet outlier columns; 16 (the paper) learns from calibration "
        "which ones those are.",
        choices=(8, 16),
        unit="bits",
        level="advanced",
        when={"decomposition": "column"},
    )


def cost(shape: tuple[int, int], params, tokens: int) -> Cost:
    """Bytes of codes and row scales; a few operations a weight.

    Columns in 16 bits aren't counted, because only calibration tells how many there are.
    """
    out, n = shape
    return Cost(bytes=out * row_bytes(n, 8) + 2 * out, flops=8.0 * out * n, peak_bytes=12 * out * n)


def vector_wise(weight: Tensor) -> GroupedInt:
    """weight [out, in] in int8 with one scale a row: largest |weight| / 127."""
    grid = Grid.make(weight.shape, 8, -1, weight.abs().amax(1, keepdim=True) / 127, None)
    return GroupedInt.encode(grid.round(weight), grid)


def keeps_weights(params: LlmInt8Params) -> bool:
    """Whether outlier columns keep their weights in 16 bits."""
    return params.decomposition == "column" and params.outlier_weights == 16 and params.threshold > 0


def apart(weight: Tensor, outliers: Tensor) -> Packed:
    """weight [out, in] with the columns `outliers` bool [in] in 16 bits and the others in int8.

    The scales of the others don't count the outlier columns.
    """
    rest = vector_wise(weight.masked_fill(outliers, 0))
    return Sum(rest, Columns.encode(weight, outliers.nonzero().flatten())) if bool(outliers.any()) else rest


def compress(site: Site, stats: Stats, params: LlmInt8Params) -> Edit:
    """Quantize the weight [out, in] of one linear, and set how its inputs are rounded while it runs."""
    by_column = params.decomposition == "column" and params.threshold > 0
    packed: Packed
    if keeps_weights(params):
        assert stats.max_abs is not None
        packed = apart(site.weight, stats.max_abs >= params.threshold)
    else:
        packed = vector_wise(site.weight)
    packed.activations = ActivationRule(
        8, threshold=params.threshold or None, zero_point=params.zero_point, by_column=by_column
    )
    return stored(site, packed)


METHOD = LinearMethod(
    name="llm_int8",
    title="LLM.int8()",
    family="quantization",
    paper="https://arxiv.org/abs/2208.07339",
    params=LlmInt8Params,
    compress=compress,
    cost=cost,
    stores="grouped_int",
    open_ended=keeps_weights,
    stats=lambda params: frozenset({"max_abs"}) if keeps_weights(params) else frozenset(),
    stream="original",
    after=frozenset({"dense"}),
    essay=__doc__,
)
