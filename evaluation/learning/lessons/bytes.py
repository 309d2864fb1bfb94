"""The same bytes, four families: what each does to fit into a file, and what the four files are worth.

The browser counts, from the model's sizes, how many bits, weights, layers or factors fit into so many bytes,
as the methods store them (compression/packed). Stored results are the nearest in size that the families have.
"""

from __future__ import annotations

from compression.catalogue import OFFLINE_MODEL
from evaluation import recorded
from evaluation.benches.gates import DISTILLED
from evaluation.learning.lesson import Lesson, Real, attempt, claim

FILES = {
    "quantization": "rtn --bits 8",
    "pruning": "sparsegpt --sparsity 0.5",
    "distillation": f"gkd {DISTILLED}",
    "low_rank": "svd_llm --removed 0.2",
}
ITEMS = ("low_rank", "distillation", "quantization", "pruning")  # as the learner first sees them
ASKED = ("gravity", "water", "sum")
GROUP = 64  # weights that share a scale in the rounded file


def make(real: Real) -> dict:
    """Four results with their sizes, and their recorded answers where there are."""
    from compression import arch
    from compression.catalogue import CATALOGUE

    geometry = CATALOGUE[OFFLINE_MODEL].geometry
    weights = sum(out * n for _, _, (out, n) in arch.linear_shapes(geometry))
    found = {family: real.result(words) for family, words in FILES.items()}
    worth = {family: result.metrics["perplexity"] for family, result in found.items()}
    original = real.result("none")
    return {
        "facts": {
            "original": original.metrics["perplexity"],
            "weights": {"en": f"{weights / 1e6:.0f} million", "zh-Hant": f"{weights / 1e8:.2f} 億"},
            **{f"{family}_mb": r.metrics["file_bytes"] / 1e6 for family, r in found.items()},
            **worth,
        },
        "sizes": {
            "weights": weights,
            "rest_bytes": original.metrics["file_bytes"] - 2 * weights,
            "layers": len(geometry.layers),
            "group": GROUP,
        },
        "files": {family: result.metrics["file_bytes"] for family, result in found.items()},
        "answers": _answers(real),
        "question": {
            "kind": "order",
            "items": list(ITEMS),
            "answer": sorted(range(len(ITEMS)), key=lambda i: worth[ITEMS[i]]),
            "values": [worth[item] for item in ITEMS],
        },
        "tries": [
            attempt([("rtn", {"bits": 8})], run=real.id(FILES["quantization"]), tab="chat", event="answered"),
            attempt(
                [("svd_llm", {"removed": 0.2})], run=real.id(FILES["low_rank"]), tab="explore", event="shown"
            ),
        ],
    }


def _answers(real: Real) -> list[dict]:
    """What the original and the families' models wrote to each question, as far as it was recorded."""
    points, texts = recorded.read(), {prompt.name: prompt.text for prompt in recorded.PROMPTS}
    models = {"original": "none"} | FILES
    return [
        {
            "question": texts[name],
            "said": {
                family: points[real.id(words)]["answers"][name]["text"]
                for family, words in models.items()
                if real.id(words) in points
            },
        }
        for name in ASKED
    ]


def check(data: dict) -> None:
    """Rounding's file is the smallest and the best; each of the others is larger and worse."""
    facts, files = data["facts"], data["files"]
    order = [data["question"]["items"][i] for i in data["question"]["answer"]]
    claim(order == list(FILES), f"the order is now {', '.join(order)}")
    claim(sorted(files, key=files.__getitem__) == order, "a better file isn't a smaller one any more")
    claim(facts["quantization"] < 1.01 * facts["original"], "8 bits cost something")
    claim(facts["pruning"] > 1.5 * facts["original"], "half of the weights cost little")
    claim(max(files.values()) < 1.4 * min(files.values()), "the files aren't of about equal size")
    claim({"original", "quantization"} <= data["answers"][0]["said"].keys(), "nothing was recorded")


LESSON = Lesson("bytes", (), make, check)
