"""Loud channels: why activations are harder to round than weights, and what three methods do about it.

Maxima of real inputs and weights, channel by channel. The browser moves them by SmoothQuant's equation 4
(compression/quantization/smoothquant.py, smoothing). Errors of the whole 8-bit product are measured here
with the methods' own functions.
"""

from __future__ import annotations

from typing import Any

import torch

from compression.packed.activations import ActivationRule
from compression.quantization.llm_int8 import apart
from compression.quantization.smoothquant import int8, smoothing
from evaluation.learning.lesson import Lesson, Real, attempt, claim

BLOCK = "model.layers.12.self_attn"  # the clearest loud channel among the inputs that a norm gives
MATRICES = ("q_proj", "k_proj", "v_proj")
THRESHOLDS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
ALPHAS = tuple(k / 20 for k in range(21))
RULES = {"tensor": ActivationRule(8, per_tensor=True), "token": ActivationRule(8)}
PAPER = 6.0


def make(real: Real) -> dict:
    """Maxima of 576 channels, and the error of the product for each threshold and each alpha."""
    x = real.inputs(f"{BLOCK}.{MATRICES[0]}")
    weights = [real.weight(f"{BLOCK}.{name}") for name in MATRICES]
    loud = x.abs().amax(0)
    errors = {name: _errors(x, weights, loud, rule) for name, rule in RULES.items()}
    token = errors["token"]
    at = THRESHOLDS.index(PAPER)
    middle = float(loud.median())
    return {
        "facts": {
            "channels": len(loud),
            "tokens": len(x),
            "times": float(loud.max()) / middle,
            "loudest": int(loud.argmax()),
            "apart": int((loud >= PAPER).sum()),
            "removed": 100 * (1 - token["thresholds"][at] / token["plain"]),
            "steps": middle / (float(loud.max()) / 127),
            "smooth": 100 * (1 - token["alphas"][ALPHAS.index(0.5)] / token["plain"]),
            "shared": errors["tensor"]["plain"] / token["plain"],
            "original": real.perplexity("none"),
            "llm_int8": real.perplexity("llm_int8"),
            "smoothquant": real.perplexity("smoothquant"),
            "zeroquant": real.perplexity("zeroquant --bits 8"),
        },
        "inputs": loud,
        "weights": torch.stack([w.abs().amax(0) for w in weights]).amax(0),
        "thresholds": THRESHOLDS,
        "alphas": ALPHAS,
        "errors": errors,
        "question": {
            "kind": "number",
            "lo": 0,
            "hi": 100,
            "step": 1,
            "start": 10,
            "unit": "percent",
            "answer": 100 * (1 - token["thresholds"][at] / token["plain"]),
        },
        "tries": [
            attempt([("llm_int8", {})], run=real.id("llm_int8"), event="shown"),
            attempt([("smoothquant", {})], run=real.id("smoothquant"), event="shown"),
        ],
    }


def _errors(
    x: torch.Tensor, weights: list[torch.Tensor], loud: torch.Tensor, rule: ActivationRule
) -> dict[str, Any]:
    """||X W^T - r(X) r(W)^T||^2 / ||X W^T||^2 in per cent: plain, for each threshold, and for each alpha."""
    exact = [x @ w.T for w in weights]
    total = sum(float(y.square().sum()) for y in exact)

    def error(inputs: torch.Tensor, rounded: list[torch.Tensor]) -> float:
        pairs = zip(rounded, exact, strict=True)
        return 100 * sum(float((inputs @ w.T - y).square().sum()) for w, y in pairs) / total

    def split(threshold: float) -> float:
        kept = loud >= threshold
        inputs = torch.where(kept, x, rule(x.masked_fill(kept, 0)))
        return error(inputs, [apart(w, kept).dequantize() for w in weights])

    def smooth(alpha: float) -> float:
        s = smoothing(loud, weights, alpha)
        return error(rule(x / s), [int8(w * s).dequantize() for w in weights])

    return {
        "plain": error(rule(x), [int8(w).dequantize() for w in weights]),
        "thresholds": [split(t) for t in THRESHOLDS],
        "alphas": [smooth(a) for a in ALPHAS],
    }


def check(data: dict) -> None:
    """One loud channel makes most of the error; both remedies take most of it away; tokens apart help."""
    facts, token, tensor = data["facts"], data["errors"]["token"], data["errors"]["tensor"]
    claim(facts["apart"] == 1 and facts["times"] > 15, "there isn't one loud channel")
    claim(facts["removed"] > 80, "the loud channel doesn't make most of the error")
    claim(facts["smooth"] > 80, "evening out at 0.5 doesn't remove most of the error")
    claim(token["plain"] < 0.75 * tensor["plain"], "a ruler for each token doesn't help")
    best = min(range(len(ALPHAS)), key=token["alphas"].__getitem__)
    claim(0.25 < ALPHAS[best] < 0.95, "the best alpha is at an end")
    after = max(facts["llm_int8"], facts["smoothquant"], facts["zeroquant"])
    claim(after < 1.06 * facts["original"], "8-bit products cost this model more than 6 %")


LESSON = Lesson("channels", ("llm_int8", "zeroquant", "smoothquant"), make, check)
