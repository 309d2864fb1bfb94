"""What rounding is: a group of real weights, a ruler of 2^bits marks, and what one outlier does to a group.

The browser rounds the shipped weights itself, by the formulas of compression/quantization/rtn.py.
Perplexities are those of stored results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compression.catalogue import CATALOGUE, OFFLINE_MODEL
from evaluation.learning.lesson import Lesson, Real, attempt, claim

if TYPE_CHECKING:
    from torch import Tensor

PATH = "model.layers.10.mlp.down_proj"
WEIGHTS = 256  # of a row around its largest weight
ROWS = 4  # those with the largest weights
BITS = (8, 4, 3, 2)
WORDS = CATALOGUE[OFFLINE_MODEL].geometry.vocabulary


def make(real: Real) -> dict:
    """A stretch of one real row, and what rounding the whole model costs at 8, 4, 3 and 2 bits."""
    weight = real.weight(PATH)
    first, *others = (_stretch(weight[row], row) for row in weight.abs().amax(1).topk(ROWS).indices.tolist())
    measured = {bits: real.perplexity(f"rtn --bits {bits}") for bits in BITS}
    return first | {
        "facts": first["facts"]
        | {"original": real.perplexity("none"), **{f"bits{bits}": value for bits, value in measured.items()}},
        "draws": others,
        "question": {
            "kind": "number",
            "lo": 25,
            "hi": 1000,
            "log": True,
            "start": 100,
            "answer": measured[3],
            "error": 1.96 * real.error("rtn --bits 3"),
        },
        "tries": [
            attempt([("rtn", {"bits": 3})], run=real.id("rtn --bits 3"), event="shown"),
            attempt([("rtn", {"bits": 8})], run=real.id("rtn --bits 8"), event="shown"),
        ],
    }


def _stretch(weight: Tensor, row: int) -> dict:
    """The weights of a row [in] around its largest."""
    begin = min(max(int(weight.abs().argmax()) - WEIGHTS // 2, 0), len(weight) - WEIGHTS) // 64 * 64
    return {"facts": {"row": row, "begin": begin}, "weights": weight[begin : begin + WEIGHTS]}


def check(data: dict) -> None:
    """8 bits cost nothing that one would notice; each bit fewer costs more than the one before."""
    facts = data["facts"]
    claim(facts["bits8"] < 1.01 * facts["original"], "8 bits are no longer free")
    claim(facts["bits4"] / facts["bits8"] < facts["bits3"] / facts["bits4"], "the third bit costs most")
    claim(facts["bits2"] > WORDS, "a model of 2 bits no longer wavers between more words than there are")
    claim(facts["bits3"] > 3 * facts["original"], "3 bits no longer break the model")
    claim(max(map(abs, data["weights"])) > 6 * _middle(data["weights"]), "the row has no outlier")


def _middle(weights: list[float]) -> float:
    return sorted(map(abs, weights))[len(weights) // 2]


LESSON = Lesson("rounding", (), make, check)
