"""What to protect: of 40 real columns that are rounded to 3 bits, which three to keep as they are.

The browser takes a choice's error from the shipped products of the columns' errors. The choices of AWQ, OWQ
and SpQR are made here by their own criteria (compression/quantization/). Perplexities are those of stored
results.
"""

from __future__ import annotations

import itertools

import torch

from compression.quantization.owq import OwqParams, sensitivity
from compression.quantization.rtn import fit
from compression.second_order import inverse_factor
from evaluation.learning.lesson import Lesson, Real, attempt, claim

PATH, COLUMNS, KEPT, BITS = "model.layers.2.mlp.down_proj", 40, 3, 3
WHOLE = "model.layers.12.self_attn.q_proj"  # a matrix whose error a few loud inputs make


def make(real: Real) -> dict:
    """Products of the errors of the first 40 columns, and what each method would keep of them."""
    weight, inputs = real.weight(PATH), real.inputs(PATH)[:, :COLUMNS]
    difference, gram, products = _rounding(weight, inputs)
    loud, size = inputs.abs().mean(0), weight[:, :COLUMNS].square().mean(0).sqrt()
    hurt = sensitivity(weight, _gram(real.inputs(PATH)), OwqParams(bits=BITS, tuning="minmax"))[:COLUMNS]
    chosen = {name: _top(score, KEPT) for name, score in (("size", size), ("awq", loud), ("owq", hurt))}
    best = max(itertools.combinations(range(COLUMNS), KEPT), key=lambda c: removed(products, c))
    single = _single_weights(difference, gram)
    shares = {name: removed(products, c) for name, c in (chosen | {"best": best}).items()}
    shares["spqr"] = 100 * (1 - _error(difference.masked_fill(single, 0), gram) / _error(difference, gram))
    apart = COLUMNS - KEPT
    pairs = float(products.sum() - products.trace()) * (apart - 1) / (COLUMNS - 1)
    shares["chance"] = 100 - (float(products.trace()) + pairs) * apart / COLUMNS
    return {
        "facts": {
            "columns": COLUMNS,
            "kept": KEPT,
            "rows": len(weight),
            "singles": int(single.sum()),
            **_one_per_cent(real),
            "best": shares["best"],
            **{
                name: real.perplexity(recipe)
                for name, recipe in (
                    ("original", "none"),
                    ("rtn3", "rtn --bits 3 --group_size 128"),
                    ("awq3", "awq --bits 3"),
                    ("gptq3", "gptq --bits 3 --group_size -1"),
                    ("owq3", "owq --bits 3"),
                    ("gptq4", "gptq --bits 4 --group_size -1"),
                    ("spqr3", "spqr --bits 3"),
                )
            },
        },
        "loud": loud,
        "peaks": gram.diagonal().sqrt(),
        "size": size,
        "products": [products[i, j] for i in range(COLUMNS) for j in range(i + 1)],
        "chosen": chosen | {"best": list(best)},
        "single": single.sum(0),
        "removed": shares,
        "question": {"kind": "figure", "unit": "percent", "answer": shares["best"], "best": shares["best"]},
        "tries": [
            attempt([("owq", {"bits": 3})], run=real.id("owq --bits 3"), event="shown"),
            attempt([("spqr", {"bits": 3})], run=real.id("spqr --bits 3"), event="shown"),
        ],
    }


def removed(products: torch.Tensor, columns: tuple[int, ...] | list[int]) -> float:
    """Per cent of the error that goes if these columns stay as they are; products [n, n] sum up to 100."""
    kept = list(columns)
    return float(2 * products[kept].sum() - products[kept][:, kept].sum())


def _gram(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.T @ inputs / len(inputs)


def _rounding(weight: torch.Tensor, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(W - Q(W) of the inputs' columns, their Gram matrix, the part of the error of each pair of columns).

    Q rounds row by row, all columns of the weight together. The parts sum up to 100.
    """
    ruler = fit(weight, BITS, -1, False)
    difference = (weight - ruler.decode(ruler.round(weight)))[:, : inputs.shape[1]]
    gram = _gram(inputs)
    products = gram * (difference.T @ difference)
    return difference, gram, 100 * products / products.sum()


def _error(difference: torch.Tensor, gram: torch.Tensor) -> float:
    return float(((difference @ gram) * difference).sum())


def _top(score: torch.Tensor, count: int) -> list[int]:
    return sorted(score.topk(count).indices.tolist())


def _single_weights(difference: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """bool [out, columns]: single weights that cost as many bits as the columns, largest ((w - w') / U_cc)^2.

    A single weight takes 32 bits, since its place is stored too, and a weight of a column 16.
    """
    factor, _ = inverse_factor(gram, 0.01)
    score = (difference / factor.diagonal().float()).square()
    found = torch.zeros(difference.numel(), dtype=torch.bool)
    found[score.flatten().topk(KEPT * len(difference) // 2).indices] = True
    return found.view_as(difference)


def _one_per_cent(real: Real) -> dict[str, float]:
    """Of a whole matrix: the share of the error that goes with 1 % of its inputs, loudest or largest."""
    weight, inputs = real.weight(WHOLE), real.inputs(WHOLE)
    _, _, products = _rounding(weight, inputs)
    count = round(weight.shape[1] / 100)
    loudest, largest = (_top(t, count) for t in (inputs.abs().mean(0), weight.square().sum(0)))
    return {
        "whole": weight.shape[1],
        "one": count,
        "loudest": removed(products, loudest),
        "largest": removed(products, largest),
    }


def check(data: dict) -> None:
    """Loudness beats size, squares beat the average, single weights beat columns."""
    facts, share = data["facts"], data["removed"]
    claim(share["awq"] > share["size"], "loud inputs aren't better protected than large weights")
    claim(
        share["owq"] > 1.2 * share["awq"],
        "the average of the inputs is as good a guide as their squares here",
    )
    claim(share["spqr"] > share["best"], "single weights don't beat the best columns")
    claim(share["owq"] > 3 * share["chance"], "OWQ's choice isn't far better than chance")
    claim(facts["loudest"] > 50 > 5 > facts["largest"], "1 % loud inputs don't make most of the error")
    claim(facts["awq3"] < 0.75 * facts["rtn3"], "AWQ doesn't help at 3 bits")
    claim(facts["owq3"] < 0.75 * facts["gptq3"], "OWQ doesn't help at 3 bits")
    claim(facts["spqr3"] < facts["gptq4"], "SpQR's 3 bits don't beat GPTQ's 4 bits a row")


LESSON = Lesson("protect", ("awq", "owq", "spqr"), make, check)
