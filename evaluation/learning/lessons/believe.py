"""Which number to believe: noise that two results share, and a perplexity that says nothing of likeness.

The browser compares stored losses of the same windows by the formulas of evaluation/verdict.py.
"""

from __future__ import annotations

import math

from evaluation.benches.gates import LORA
from evaluation.learning.lesson import Lesson, Real, attempt, claim
from evaluation.spec import Result
from evaluation.verdict import paired

RESULTS = {
    "smooth": "smoothquant",
    "plain": "smoothquant --smooth false",
    "svd": "svd_llm --removed 0.2",
    "rtn3": "rtn --bits 3",
    "search": "rtn --bits 4 --tuning mse",
    "rtn4": "rtn --bits 4",
    "lora": LORA,
    "rtn8": "rtn --bits 8",
}
JUDGED = (("smooth", "plain"), ("svd", "rtn3"), ("search", "rtn4"))
BESIDE = ("lora", "rtn8")
OTHER = "nf4 --double true"  # measured on two texts


def make(real: Real) -> dict:
    """The losses of every window, and the two numbers that tell how like the original a model is."""
    found = {name: real.result(words) for name, words in RESULTS.items()}
    return {
        "facts": {
            "original": real.perplexity("none"),
            "windows": len(found["lora"].series["window_losses"]),
            **{f"{name}_perplexity": r.metrics["perplexity"] for name, r in found.items()},
            **{f"{name}_stderr": r.metrics["perplexity_stderr"] for name, r in found.items()},
            "lora_same": 100 * found["lora"].metrics["same_top_token_rate"],
            "rtn8_same": 100 * found["rtn8"].metrics["same_top_token_rate"],
            "one_text": _more(real.result(OTHER)),
            "other_text": _more(real.result(OTHER, "domain")),
        },
        "models": {name: _model(r) for name, r in ({"original": real.result("none")} | found).items()},
        "pairs": [*JUDGED, BESIDE],
        "question": {"kind": "figure", "of": len(JUDGED)},
        "tries": [
            attempt(
                [("lora", {"train_tokens": 16384, "train_minutes": 120})], run=real.id(LORA), event="shown"
            ),
            attempt([("rtn", {"bits": 8})], run=real.id("rtn --bits 8"), event="shown"),
        ],
    }


def _model(result: Result) -> dict:
    same = {"kl_divergence_mean": 0.0, "same_top_token_rate": 1.0}  # of the original beside itself
    metrics = result.metrics | (same if result.spec.is_original else {})
    return {
        "family": result.spec.methods[0][0].family,
        "losses": result.series["window_losses"],
        "kl": metrics["kl_divergence_mean"],
        "same": 100 * metrics["same_top_token_rate"],
    }


def _more(result: Result) -> float:
    """Percent that a result's perplexity lies above the original's on the same text."""
    return 100 * (result.metrics["perplexity_ratio"] - 1)


def check(data: dict) -> None:
    """One pair is certain though its errors overlap, one unclear, one worse; LoRA is less like."""
    facts, models = data["facts"], data["models"]
    words = [paired(models[a]["losses"], models[b]["losses"]).word for a, b in JUDGED]
    claim(words == ["better", "unclear", "worse"], f"the pairs are now {', '.join(words)}")
    gap = {pair: abs(facts[f"{pair[0]}_perplexity"] - facts[f"{pair[1]}_perplexity"]) for pair in JUDGED}
    claim(gap[JUDGED[0]] < facts["smooth_stderr"], "the first pair's errors don't overlap")
    claim(gap[JUDGED[1]] > 5 * gap[JUDGED[0]], "the second pair doesn't lie further apart")
    lora, rounded = models["lora"], models["rtn8"]
    claim(facts["lora_perplexity"] < 0.95 * facts["original"], "LoRA isn't below the original")
    claim(paired(lora["losses"], rounded["losses"]).word == "better", "LoRA's perplexity isn't lower")
    claim(lora["kl"] > 10 * rounded["kl"] and lora["same"] < rounded["same"], "LoRA is as like the original")
    claim(facts["one_text"] > 2 * facts["other_text"], "the other text tells the same")
    for name, model in models.items():
        mean = sum(model["losses"]) / len(model["losses"])
        told = facts["original" if name == "original" else f"{name}_perplexity"]
        claim(math.isclose(math.exp(mean), told, rel_tol=1e-3), f"the windows of {name} give another number")


LESSON = Lesson("believe", (), make, check)
