"""What to cut: 16 weights of a real row, of which half must go, and what a cut model saves.

The learner cuts by eye; magnitude, Wanda and SparseGPT cut the same row. The browser computes them by the
formulas of compression/pruning (patterns.py, sparsegpt.py) and compression/second_order.py. How much smaller
and faster a cut model is comes from stored results and from the stored bench.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from compression.base import Stats
from compression.pruning.patterns import kept_of, loud, lowest, lowest_in_groups
from compression.pruning.sparsegpt import SparsegptParams, sparsegpt
from compression.second_order import inverse_factor
from evaluation.learning.lesson import Lesson, Real, attempt, claim
from evaluation.page import points

PATH = "model.layers.10.self_attn.o_proj"
ROWS = (300, 37, 109, 224, 360, 429, 504, 523)  # here the three methods differ more than on most rows
BEGIN, WEIGHTS = 16, 16
CUT = WEIGHTS // 2
WANDA, SPARSEGPT, MAGNITUDE = (f"{name} --sparsity 0.5" for name in ("wanda", "sparsegpt", "magnitude"))
STRUCTURES = {
    "single": SPARSEGPT,
    "two_of_four": "sparsegpt --pattern 2:4",
    "heads": "llm_pruner --removed 0.25 --importance element1",
    "trained": "lora_prune --removed 0.25 --train_minutes 120",
    "blocks": "shortgpt --removed 0.2",
}


def make(real: Real) -> dict:
    """The rows with their inputs, the best cuts there are, and what five kinds of cutting save."""
    part = slice(BEGIN, BEGIN + WEIGHTS)
    weight, x = real.weight(PATH)[:, part], real.inputs(PATH)[:, part]
    gram = x.T @ x / len(x)
    means = {name: float(lost(weight, new, gram).mean()) for name, new in cut(weight, gram).items()}
    first, *others = (_row(weight, gram, row) for row in ROWS)
    return first | {
        "facts": first["facts"]
        | {
            "begin": BEGIN,
            "end": BEGIN + WEIGHTS - 1,
            "original": real.perplexity("none"),
            "magnitude": real.perplexity(MAGNITUDE),
            "wanda": real.perplexity(WANDA),
            "sparsegpt": real.perplexity(SPARSEGPT),
            **{f"mean_{name}": 100 * value for name, value in means.items()},
        },
        "gram": gram.flatten(),
        "structures": {name: _saved(real, words) for name, words in STRUCTURES.items()},
        "machines": [machine["processor"] for machine in points.machines()],
        "draws": others,
        "tries": [
            attempt([("wanda", {"sparsity": 0.5})], run=real.id(WANDA), event="shown"),
            attempt(
                [("sparsegpt", {"pattern": "2:4"})], run=real.id(STRUCTURES["two_of_four"]), event="shown"
            ),
        ],
    }


def _row(weight: Tensor, gram: Tensor, row: int) -> dict:
    """A row's weights, and its best cuts."""
    one = weight[row : row + 1]
    best = {pattern: _best(one, gram, pattern) for pattern in ("unstructured", "2:4")}
    return {
        "facts": {"row": row},
        "weights": one[0],
        "best": best,
        "question": {"kind": "figure", "unit": "lost", "answer": best["unstructured"]},
    }


def lost(weight: Tensor, new: Tensor, gram: Tensor) -> Tensor:
    """Each row's ||(w - w') X||^2 / ||w X||^2 [rows]; second_order.output_error row by row."""
    difference = weight - new
    return ((difference @ gram) * difference).sum(1) / ((weight @ gram) * weight).sum(1)


def cut(weight: Tensor, gram: Tensor, pattern: str = "unstructured") -> dict[str, Tensor]:
    """The rows of weight [rows, in] after each method's cut, each row by itself."""
    norms = loud(weight, Stats(tokens=1, sum_sq=gram.diagonal()))
    params = SparsegptParams(sparsity=0.5, pattern=pattern)

    def lowest_of(score: Tensor) -> Tensor:
        free = pattern == "unstructured"
        return lowest(score, score.shape[1] // 2) if free else lowest_in_groups(score, pattern)

    # the places of SparseGPT in a fixed pattern depend on what was removed before them, so it chooses them
    diagonal = inverse_factor(gram, params.damping)[0].diagonal()
    pruned = lowest_of((weight / diagonal).square()) if pattern == "unstructured" else None
    return {
        "magnitude": weight.masked_fill(lowest_of(weight.abs()), 0),
        "wanda": weight.masked_fill(lowest_of(norms), 0),
        "sparsegpt": sparsegpt(weight, gram, params, pruned)[0].to(weight.dtype),
    }


def _best(row: Tensor, gram: Tensor, pattern: str) -> float:
    """The smallest error in percent of all cuts of half of a row [1, in] that move no weight."""
    kept, of = (CUT, WEIGHTS) if pattern == "unstructured" else kept_of(pattern)
    group = list(itertools.combinations(range(of), of - kept))
    starts = range(0, WEIGHTS, of)
    gone = torch.tensor(
        [
            [start + place for start, places in zip(starts, chosen, strict=True) for place in places]
            for chosen in itertools.product(group, repeat=len(starts))
        ]
    )
    rows = row.expand(len(gone), -1)
    return 100 * float(lost(rows, rows.scatter(1, gone, 0.0), gram).min())


def _saved(real: Real, words: str) -> dict:
    """What is left of weights, bytes and time, as shares of the original's, and the perplexity."""
    name, metrics = real.id(words), real.result(words).metrics
    rates = [machine["rates"].get(name) for machine in points.machines()]
    return {
        "weights": metrics["kept_weights"] / metrics["matrix_weights"],
        "bytes": metrics["file_bytes"] / metrics["baseline_file_bytes"],
        "seconds": [original / own for own, original in rates] if all(rates) else [],
        "perplexity": metrics["perplexity"],
    }


def check(data: dict) -> None:
    """Inputs count, compensation helps; half of the weights is neither half of the bytes nor of the time."""
    facts, structures = data["facts"], data["structures"]
    gram = torch.tensor(data["gram"]).view(WEIGHTS, WEIGHTS)
    row = torch.tensor(data["weights"])[None]
    found = {name: 100 * float(lost(row, new, gram)) for name, new in cut(row, gram).items()}
    claim(found["magnitude"] > 3 * found["wanda"], "magnitude isn't much worse than Wanda on this row")
    claim(found["wanda"] > 1.5 * found["sparsegpt"], "moving weights gains little on this row")
    claim(
        facts["mean_magnitude"] > facts["mean_wanda"] > facts["mean_sparsegpt"],
        "the order on all rows changed",
    )
    claim(facts["magnitude"] > 3 * facts["wanda"], "magnitude doesn't break the model any more")
    claim(facts["wanda"] > facts["sparsegpt"] > facts["original"], "SparseGPT isn't the best of the three")
    for name in ("single", "two_of_four"):
        saved = structures[name]
        claim(saved["weights"] < saved["bytes"] < 1, f"{name}: as much of the file goes as of the weights")
        claim(bool(saved["seconds"]), f"{name}: there is no stored speed")
        claim(
            all(saved["weights"] < s < 1 for s in saved["seconds"]), f"{name}: time falls as the weights do"
        )
    claim(structures["heads"]["perplexity"] > structures["trained"]["perplexity"], "training doesn't help")


LESSON = Lesson("cutting", ("sparsegpt", "wanda", "lora_prune", "llm_pruner"), make, check)
