"""Thin matrices: a real weight as two thin factors, and the word table as chains of small cores.

For every rank it shows the error of the factors in the weight and in the layer's outputs, for plain SVD
(compression/low_rank/svd.py) and for SVD with known inputs (svd_llm.py). The second method is fitted to other
tokens than the tokens on which both are measured. Stored results show where the word table breaks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compression.low_rank.rank import rank_for
from compression.low_rank.svd_llm import output_basis
from evaluation.learning.lesson import Lesson, Real, attempt, claim

PATH = "model.layers.10.self_attn.q_proj"
TOKENS, FITTED = 2_048, 1_536  # SVD-LLM is fitted to the first FITTED tokens; the others are measured
STEP = 8  # between two ranks
REMOVED = 0.2
KNOWN, PLAIN = f"svd_llm --removed {REMOVED}", f"svd --removed {REMOVED}"
TABLE = {  # how the word table is stored
    "input": "tensorgpt",
    "both_4": "tensorgpt --rank 4 --head cores",
    "both_6": "tensorgpt --head cores",
    "both_11": "tensorgpt --rank 11 --head cores",
    "svd": "tensorgpt --kind svd --head cores",
}


def make(real: Real) -> dict:
    """The spectrum of a weight, what each rank loses, and the stored results of the word table."""
    weight, x = real.weight(PATH).double(), real.inputs(PATH, TOKENS).double()
    known, measured = (part.T @ part / len(part) for part in (x[:FITTED], x[FITTED:]))
    left, spectrum, _ = torch.linalg.svd(weight)
    best = output_basis(weight, known, len(weight))
    rank = rank_for(tuple(weight.shape), REMOVED)
    return {
        "facts": {
            "rank": rank,
            "even": rank_for(tuple(weight.shape), 0.0),
            "known_tokens": FITTED,
            "tokens": TOKENS - FITTED,
            "original": real.perplexity("none"),
            "svd": _about(real.perplexity(PLAIN)),
            "svd_llm": real.perplexity(KNOWN),
            "input_6": real.perplexity(TABLE["input"]),
            "both_6": _about(real.perplexity(TABLE["both_6"])),
        },
        "shape": list(weight.shape),
        "step": STEP,
        "spectrum": spectrum,
        "plain": lost(weight, left, measured),
        "known": lost(weight, best, measured),
        "table": {name: _stored(real, words) for name, words in TABLE.items()},
        "question": {
            "kind": "number",
            "lo": 20,
            "hi": 1e6,
            "log": True,
            "start": 5_000,
            "answer": real.perplexity(KNOWN),
            "error": 1.96 * real.error(KNOWN),
        },
        "tries": [
            attempt([("svd_llm", {"removed": REMOVED})], run=real.id(KNOWN), event="shown"),
            attempt([("tensorgpt", {"rank": 6})], run=real.id(TABLE["input"]), event="shown"),
        ],
    }


def lost(weight: Tensor, basis: Tensor, gram: Tensor) -> Tensor:
    """||(W - U_r U_r^T W) X||^2 / ||W X||^2 for the ranks r = STEP, 2 STEP, ... of a basis U [out, out]."""
    powers = (basis.T @ weight @ gram @ weight.T @ basis).diagonal()
    total = powers.sum()
    return torch.stack([powers[rank:].sum() / total for rank in range(STEP, len(powers) + 1, STEP)])


def _about(value: float) -> float:
    """A large number as it is said in a sentence: with two digits."""
    return float(f"{value:.2g}")


def _stored(real: Real, words: str) -> dict:
    """How large the table is beside 16 bits, how far its vectors are off, and what the model is worth."""
    result = real.result(words)
    row = next(row for row in result.layers if row["role"] == "embedding")
    return {
        "share": row["bits_per_weight"] / 16,
        "off": row["relative_error"],
        "bytes": result.metrics["file_bytes"],
        "perplexity": result.metrics["perplexity"],
    }


def check(data: dict) -> None:
    """A weight isn't thin; who knows the inputs loses far less at the same rank; a thin word table breaks."""
    facts, table, at = data["facts"], data["table"], data["facts"]["rank"] // STEP - 1
    claim(data["plain"][at] > 3 * data["known"][at], "knowing the inputs hardly helps at that rank")
    squares = [s * s for s in data["spectrum"]]
    half = sum(squares[len(squares) // 4 :]) / sum(squares)
    claim(half > 0.2, "the weight is thin: a quarter of the directions hold four fifths of it")
    claim(facts["svd"] > 100 * facts["original"], "plain SVD doesn't break the model any more")
    claim(
        1.5 * facts["original"] < facts["svd_llm"] < facts["svd"] / 100, "SVD-LLM isn't in between any more"
    )
    claim(table["both_6"]["perplexity"] > 10 * table["input"]["perplexity"], "the head reads chains well")
    order = [table[name]["perplexity"] for name in ("both_4", "both_6", "both_11")]
    claim(order == sorted(order, reverse=True), "more threads don't keep more")
    claim(table["input"]["perplexity"] > 2 * facts["original"], "a thin input table costs little")


LESSON = Lesson("thin", ("lora", "tensorgpt"), make, check)
