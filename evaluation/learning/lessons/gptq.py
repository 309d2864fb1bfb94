"""GPTQ by hand: 8 by 8 real weights, and the columns still to come that make up for each rounded column.

The browser does the sums of compression/second_order.py (inverse_factor, compensate) and of
compression/quantization/rtn.py on the shipped weights and the Gram matrix of their inputs. Perplexities are
those of stored results.
"""

from __future__ import annotations

import torch

from compression.quantization.gptq import GptqParams, gptq
from compression.quantization.rtn import fit
from evaluation.learning.lesson import Lesson, Real, attempt, claim

PATH = "model.layers.5.self_attn.o_proj"
BEGIN = 328  # of 8 neighbouring inputs of one attention head; they move together
SIZE, BITS = 8, 3
FIRST = (0, 16, 128, 216, 304, 472)  # the first row of each patch


def make(real: Real) -> dict:
    """Eight rows' weights of eight inputs, the inputs' Gram matrix, and 3 bits without and with making up."""
    inputs = real.inputs(PATH)[:, BEGIN : BEGIN + SIZE]
    weight = real.weight(PATH)[:, BEGIN : BEGIN + SIZE]
    gram = inputs.T @ inputs / len(inputs)
    first, *others = (_patch(weight[row : row + SIZE], gram, row) for row in FIRST)
    return first | {
        "facts": first["facts"]
        | {
            "begin": BEGIN,
            "end": BEGIN + SIZE - 1,
            "original": real.perplexity("none"),
            "rtn": real.perplexity("rtn --bits 3"),
            "gptq": real.perplexity("gptq --bits 3"),
            "rtn4": real.perplexity("rtn --bits 4"),
            "gptq4": real.perplexity("gptq --bits 4"),
        },
        "gram": gram,
        "draws": others,
        "question": {
            "kind": "number",
            "lo": 25,
            "hi": 100,
            "step": 0.5,
            "start": real.perplexity("rtn --bits 3"),
            "answer": real.perplexity("gptq --bits 3"),
            "error": 1.96 * real.error("gptq --bits 3"),
        },
        "tries": [
            attempt([("gptq", {"bits": 3})], run=real.id("gptq --bits 3"), event="shown"),
            attempt([("rtn", {"bits": 3})], run=real.id("rtn --bits 3"), event="shown"),
        ],
    }


def _patch(weight: torch.Tensor, gram: torch.Tensor, row: int) -> dict:
    """A patch of eight rows from that row on, and how its errors change by making up."""
    nearest, made_up = _errors(weight, gram)
    return {
        "facts": {
            "first": row,
            "last": row + SIZE - 1,
            "patch": 100 * made_up[0] / nearest[0],
            "further": made_up[1] / nearest[1],
        },
        "weights": weight,
    }


def _errors(weight: torch.Tensor, gram: torch.Tensor) -> tuple[tuple[float, float], tuple[float, float]]:
    """((error of the outputs, of the weights) of rounding to nearest, the same of GPTQ) in 3 bits a row."""
    ruler = fit(weight, BITS, -1, False)
    codes, grid, _, _ = gptq(weight, gram, GptqParams(bits=BITS, group_size=-1, act_order=False))
    differences = [weight - ruler.decode(ruler.round(weight)), weight - grid.decode(codes)]
    first, second = [(float(((d @ gram) * d).sum()), float(d.square().sum())) for d in differences]
    return first, second


def check(data: dict) -> None:
    """Making up lowers the error of the outputs, moves weights further, and helps the model."""
    facts = data["facts"]
    claim(facts["patch"] < 60, "making up doesn't halve the patch's error by far any more")
    claim(facts["further"] > 1, "the made-up weights aren't further from the originals any more")
    claim(facts["gptq"] < 0.75 * facts["rtn"], "GPTQ doesn't take a quarter off rounding's perplexity")
    claim(facts["gptq4"] < facts["rtn4"], "GPTQ doesn't beat rounding at 4 bits")


LESSON = Lesson("gptq", ("gptq",), make, check)
