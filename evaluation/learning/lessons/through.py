"""Training through the rounding: a staircase has no slope, so the gradient pretends that it has one.

The browser rounds eight real rows by the formula of compression/quantization/llm_qat.py (eq. 2 of LLM-QAT's
paper, without storing the scale in 16 bits) and lowers the error of their outputs on real inputs, straight
through; or it fits a scale a row and leaves the codes, as PEQA does. Memory is counted from the sizes of the
catalogue. Perplexities are those of stored results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compression.catalogue import OFFLINE_MODEL
from evaluation.benches.gates import EVEN_QAT, LORA, QLORA, TRAINED
from evaluation.learning.lesson import Lesson, Real, attempt, claim

if TYPE_CHECKING:
    from torch import Tensor

PATH, ROWS, COLUMNS = "model.layers.20.self_attn.o_proj", 8, slice(192, 240)
BITS = (4, 3, 2)
STEPS, RATE = 80, 0.1
LARGE = "llama-2-7b-hf"
SCALES = f"peqa --bits 3 {TRAINED}"
BEFORE = {
    "qat": "llm_qat --bits 4 --kv_bits 4 --train_tokens 0",
    "peqa": "peqa --bits 3 --train_tokens 0",
    "qlora": "nf4 --double true",
}
AFTER = {"qat": EVEN_QAT, "peqa": SCALES, "qlora": QLORA}
TRAINING = {"train_tokens": 16384, "train_minutes": 120}


def make(real: Real) -> dict:
    """Eight rows with what their inputs do together, two models' sizes, and what training brought."""
    import torch

    weights = real.weight(PATH)[:ROWS, COLUMNS]
    inputs = real.inputs(PATH)[:, COLUMNS].double()
    gram = inputs.T @ inputs / len(inputs)
    before = {f"{name}_before": real.perplexity(words) for name, words in BEFORE.items()}
    after = {f"{name}_after": real.perplexity(words) for name, words in AFTER.items()}
    return {
        "facts": {
            "original": real.perplexity("none"),
            **before,
            **after,
            "lora": real.perplexity(LORA),
            "scales_only": real.perplexity(f"peqa --bits 3 --round false {TRAINED}"),
            "rows": ROWS,
            "columns": weights.shape[1],
        },
        "weights": weights,
        # the lower triangle: the matrix is symmetric
        "gram": [row[: i + 1] for i, row in enumerate(gram)],
        "steepest": float(torch.linalg.eigvalsh(gram)[-1]),
        "models": [_sizes(name) for name in (OFFLINE_MODEL, LARGE)],
        "question": {
            "kind": "number",
            "lo": 25,
            "hi": 150,
            "log": True,
            "start": before["qat_before"],
            "answer": after["qat_after"],
            "error": 1.96 * real.error(EVEN_QAT),
        },
        "tries": [
            attempt(
                [("llm_qat", {"bits": 4, "kv_bits": 4, "train_tokens": 8192, "train_minutes": 120})],
                run=real.id(EVEN_QAT),
                event="shown",
            ),
            attempt([("qlora", TRAINING)], run=real.id(QLORA), event="shown"),
        ],
    }


def _sizes(name: str) -> dict:
    """A catalogue model's numbers, and how many bytes its matrices take as NF4."""
    import compression
    from compression import arch, catalogue

    entry = catalogue.CATALOGUE[name]
    shapes = [shape for _, _, shape in arch.linear_shapes(entry.geometry)]
    frozen = compression.get("nf4")
    double = frozen.params(double=True)
    return {
        "name": entry.title.replace(" (offline)", ""),
        "parameters": entry.parameters,
        "linears": sum(out * n for out, n in shapes),
        "edges": sum(out + n for out, n in shapes),
        "rounded_bytes": sum(frozen.cost(shape, double, 0).bytes for shape in shapes),
    }


def row_codes(weights: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Whole codes of rows on a grid that is centred on zero, and each row's scale: LLM-QAT's eq. 2."""
    scale = weights.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (weights / scale).round(), scale


def descent(weights: Tensor, gram: Tensor, steepest: float, bits: int) -> list[float]:
    """Error of the rounded rows' outputs in percent, before each straight-through step and after the last."""
    whole, latent, seen = ((weights @ gram) * weights).sum(), weights.clone(), []
    for step in range(STEPS + 1):
        codes, scale = row_codes(latent, bits)
        off = codes * scale - weights
        towards = off @ gram
        seen.append(100 * float((towards * off).sum() / whole))
        latent = latent - RATE * (1 - step / STEPS) / steepest * towards
    return seen


def scales_alone(weights: Tensor, gram: Tensor, bits: int) -> float:
    """The same error where the codes stay and each row has the scale that suits its inputs best."""
    codes, _ = row_codes(weights, bits)
    scale = ((codes @ gram) * weights).sum(1, keepdim=True) / ((codes @ gram) * codes).sum(1, keepdim=True)
    off = scale * codes - weights
    return 100 * float(((off @ gram) * off).sum() / ((weights @ gram) * weights).sum())


def symmetric(triangle: list[list[float]]) -> Tensor:
    """The whole matrix of a lower triangle."""
    import torch

    n = len(triangle)
    lower = torch.tensor([row + [0.0] * (n - len(row)) for row in triangle])
    return lower + lower.tril(-1).T


def check(data: dict) -> None:
    """Straight-through training lowers the error, more than scales do; each training brought something."""
    import torch

    facts, weights, gram = data["facts"], torch.tensor(data["weights"]), symmetric(data["gram"])
    for bits in BITS:
        course = descent(weights, gram, data["steepest"], bits)
        scales = scales_alone(weights, gram, bits)
        claim(min(course) < 0.65 * course[0], f"training brings little at {bits} bits")
        claim(min(course) < scales < course[0], f"scales alone aren't between at {bits} bits")
    for name in BEFORE:
        claim(facts[f"{name}_after"] < facts[f"{name}_before"], f"training {name} brings nothing")
    claim(facts["qat_after"] > 1.5 * facts["original"], "LLM-QAT comes near to the original")
    claim(facts["peqa_after"] > 5 * facts["original"], "PEQA's model isn't broken any more")
    claim(facts["lora"] < facts["original"] < facts["qlora_after"], "QLoRA isn't between")
    claim(facts["scales_only"] < facts["original"], "training doesn't learn the text any more")
    large = data["models"][1]
    claim(12 * large["parameters"] > 10 * large["rounded_bytes"], "QLoRA's memory is no small part")


LESSON = Lesson("through", ("llm_qat", "peqa", "qlora"), make, check)
