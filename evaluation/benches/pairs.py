"""The pairs that peers.py compares: a recipe of ours, and the same with a public package.

`same` says for each pair what is the same on both sides, and what isn't.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from evaluation.benches import packages

CONTROL = "original"  # the pair that compresses nothing


@dataclass(frozen=True)
class Pair:
    """One comparison: a recipe of ours, as the command line takes it, and a function of packages.py."""

    ours: str
    package: str
    theirs: Callable
    settings: dict = field(default_factory=dict)
    windows: int | None = None  # calibration windows for both sides; None: all
    draws: int = 1  # how often both calibrate: on all windows, then on all but the last, and so on
    same: str = ""  # what is alike on both sides, and what isn't


# draws of a pruned pair: its model is so broken that last digits decide which 2 % of its weights are removed,
# and this changes its perplexity by 4 %
DRAWS = 4
FEW = 8  # llm-compressor's AWQ runs a block 60 times over its windows: 64 windows take hours on a processor

ROW8 = {"bits": 8, "symmetric": True, "int8_inputs": True}

MINMAX = "asymmetric, ranges from the smallest to the largest weight"
GPTQ = (
    "damping 0.01, blocks of 128 columns, columns by loudness on grids that are fitted before "
    "the first; the package's defaults"
)
AWQ = "20 exponents; theirs measures the error behind attention and feed-forward, ours at the linears"
CLIPS = (
    f"{AWQ}; not alike: ours also cuts ranges, which the package can't, and theirs puts the "
    "weights into the factors too (duo_scaling)"
)
UNCLIPPED = f"{AWQ}; no ranges are cut, factors from the inputs alone"
W8A8 = "symmetric, a scale a row, inputs a scale a token as they come"
PRUNED = "half of each matrix goes"
BLOCKS = "absmax of blocks of 64"
AWQ_4, AWQ_3 = ({"bits": bits, "group_size": 64, "awq": True} for bits in (4, 3))

PAIRS = {
    CONTROL: Pair(
        "none",
        "transformers",
        packages.unchanged,
        same="nothing is compressed: both sides measure the original",
    ),
    "rtn-4": Pair(
        "rtn --bits 4 --group_size 64",
        "llmcompressor",
        packages.llm_compressor,
        {"bits": 4, "group_size": 64},
        same=MINMAX,
    ),
    "gptq-4": Pair(
        "gptq --bits 4 --group_size 64",
        "llmcompressor",
        packages.llm_compressor,
        {"bits": 4, "group_size": 64, "gptq": True},
        same=f"{MINMAX}; {GPTQ}",
    ),
    "gptq-4-row": Pair(
        "gptq --bits 4 --group_size -1",
        "llmcompressor",
        packages.llm_compressor,
        {"bits": 4, "gptq": True},
        same=f"{MINMAX}; {GPTQ}",
    ),
    "gptq-3": Pair(
        "gptq --bits 3 --group_size 64",
        "llmcompressor",
        packages.llm_compressor,
        {"bits": 3, "group_size": 64, "gptq": True},
        same=f"{MINMAX}; {GPTQ}",
    ),
    "gptq-4-symmetric": Pair(
        "gptq --bits 4 --group_size 64 --symmetric true",
        "llmcompressor",
        packages.llm_compressor,
        {"bits": 4, "group_size": 64, "gptq": True, "symmetric": True},
        same=f"symmetric; {GPTQ}",
    ),
    "awq-4": Pair(
        "awq --bits 4 --group_size 64", "llmcompressor", packages.llm_compressor, AWQ_4, FEW, same=CLIPS
    ),
    "awq-3": Pair(
        "awq --bits 3 --group_size 64", "llmcompressor", packages.llm_compressor, AWQ_3, FEW, same=CLIPS
    ),
    "awq-4-unclipped": Pair(
        "awq --bits 4 --group_size 64 --clip false",
        "llmcompressor",
        packages.llm_compressor,
        AWQ_4 | {"duo_scaling": False},
        FEW,
        same=UNCLIPPED,
    ),
    "awq-3-unclipped": Pair(
        "awq --bits 3 --group_size 64 --clip false",
        "llmcompressor",
        packages.llm_compressor,
        AWQ_3 | {"duo_scaling": False},
        FEW,
        same=UNCLIPPED,
    ),
    "w8a8": Pair("smoothquant --smooth false", "llmcompressor", packages.llm_compressor, ROW8, same=W8A8),
    "smoothquant": Pair(
        "smoothquant --alpha 0.5",
        "llmcompressor",
        packages.llm_compressor,
        ROW8 | {"alpha": 0.5},
        same=f"{W8A8}; alpha",
    ),
    "smoothquant-0.8": Pair(
        "smoothquant --alpha 0.8",
        "llmcompressor",
        packages.llm_compressor,
        ROW8 | {"alpha": 0.8},
        same=f"{W8A8}; alpha",
    ),
    "wanda": Pair(
        "wanda --sparsity 0.5",
        "llmcompressor",
        packages.llm_compressor_pruning,
        {"sparsity": 0.5, "update": False},
        same=f"{PRUNED}, what stays is left as it is",
    ),
    "wanda-2of4": Pair(
        "wanda --pattern 2:4",
        "llmcompressor",
        packages.llm_compressor_pruning,
        {"pattern": "2:4", "update": False},
        draws=DRAWS,
        same=f"{PRUNED}, what stays is left as it is",
    ),
    "sparsegpt": Pair(
        "sparsegpt --sparsity 0.5",
        "llmcompressor",
        packages.llm_compressor_pruning,
        {"sparsity": 0.5},
        same=f"{PRUNED}, what stays makes up for it; masks for 128 columns at a time, damping 0.01",
    ),
    "sparsegpt-2of4": Pair(
        "sparsegpt --pattern 2:4",
        "llmcompressor",
        packages.llm_compressor_pruning,
        {"pattern": "2:4"},
        same=f"{PRUNED}, what stays makes up for it; damping 0.01",
    ),
    "nf4": Pair(
        "nf4 --table nf4",
        "bitsandbytes",
        packages.bitsandbytes_4bit,
        {"table": "nf4"},
        same=f"{BLOCKS}, scales: theirs 32 bits, ours 16",
    ),
    "nf4-double": Pair(
        "nf4 --table nf4 --double true",
        "bitsandbytes",
        packages.bitsandbytes_4bit,
        {"table": "nf4", "double": True},
        same=f"{BLOCKS}, scales in 8 bits, 256 share one",
    ),
    "fp4": Pair(
        "nf4 --table fp4",
        "bitsandbytes",
        packages.bitsandbytes_4bit,
        {"table": "fp4"},
        same=f"{BLOCKS}, scales: theirs 32 bits, ours 16",
    ),
    "llm_int8": Pair(
        "llm_int8 --threshold 6.0 --zero_point false",
        "bitsandbytes",
        packages.bitsandbytes_8bit,
        {"threshold": 6.0},
        same="absmax a row and a token, the threshold",
    ),
    "hqq-4": Pair(
        "hqq --bits 4 --group_size 64",
        "hqq",
        packages.hqq,
        {"bits": 4},
        same="groups of 64 inputs, a whole first zero",
    ),
    "hqq-3": Pair(
        "hqq --bits 3 --group_size 64 --round_zero false",
        "hqq",
        packages.hqq,
        {"bits": 3},
        same="groups of 64 inputs, a first zero that isn't rounded",
    ),
}
