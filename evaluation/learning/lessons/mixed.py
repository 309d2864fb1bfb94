"""Bits where they count: three parts of the model, three widths each, and a budget of bytes.

All 27 choices are measured: KL(original || rounded) on the first tokens of the calibration text, with each
part's matrices rounded to nearest in groups of 64. No value is fitted or added up from others, so the best
choice in the table is really the best. Measuring takes some 200 seconds of one core. So a stored table is
kept as long as two of its choices, measured again, give the stored values.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compression import arch, texts
from compression.base import Stats
from compression.bundle import Bundle
from compression.calibrate import site_of
from compression.inputs import BlockInputs, capture
from compression.likelihood import head_of, logit_chunks, vocabulary_of
from compression.packed.base import Packed
from compression.quantization import rtn
from evaluation.learning.lesson import DATA, Lesson, Real, attempt, claim
from evaluation.measuring.divergence import kl_divergence
from evaluation.spec import BUILTIN_TEXT

PARTS = ("last", "attention", "feed_forward")  # the last block; the two kinds of parts of all other blocks
WIDTHS = (3, 4, 8)
CHOICES = tuple(itertools.product(WIDTHS, repeat=len(PARTS)))
TOKENS, WINDOW = 1_024, 256
BUDGET = 3.74  # bits a weight, rulers not counted
WITNESS = ((8, 4, 3), (4, 4, 3))  # what is measured again; both share the run to the last block
AGREES = 2e-3  # relative
ATTENTION = ("q", "k", "v", "o")


def make(real: Real) -> dict:
    """The table, and the best choice within the budget."""
    parts = parts_of(real)
    sizes = [[_bytes(real, paths, bits) for bits in WIDTHS] for paths in parts.values()]
    weights = [sum(real.weight(path).numel() for path, _, _ in paths) for paths in parts.values()]
    table = stored()
    if table is None or not agrees(real, table):
        table = measured(real)
    budget = int(sum(weights) * (BUDGET + _ruler_bits(weights, sizes)) / 8)
    best = best_of(table, sizes, budget)
    at = {"kind": "figure", "unit": "nats", "answer": table[best]}
    recipe = [("rtn", {"bits": 3})]
    return {
        "facts": {
            "tokens": TOKENS,
            "budget": budget / 1e6,
            "all3": table[3, 3, 3],
            "all4": table[4, 4, 4],
            "best": table[best],
            "dearest": table[3, 3, 4],
            "sum_off": 100 * max(abs(_sum(table, choice) / table[choice] - 1) for choice in CHOICES),
            **{f"share_{part}": 100 * n / sum(weights) for part, n in zip(PARTS, weights, strict=True)},
            **{f"best_{part}": bits for part, bits in zip(PARTS, best, strict=True)},
        },
        "widths": WIDTHS,
        "weights": weights,
        "bytes": sizes,
        "kl": [table[choice] for choice in CHOICES],
        "budget": budget,
        "question": at,
        "tries": [
            attempt(recipe, run=real.id("rtn --bits 3"), event="shown"),
            attempt([("spqr", {"bits": 3})], run=real.id("spqr --bits 3"), event="shown"),
        ],
    }


def parts_of(real: Real) -> dict[str, list[tuple[str, str, int]]]:
    """The linears (path, role, layer) of each part."""
    linears = arch.linears(real.bundle.module)
    last = max(layer for _, _, layer in linears)
    found: dict[str, list] = {part: [] for part in PARTS}
    for path, role, layer in linears:
        part = "last" if layer == last else "attention" if role in ATTENTION else "feed_forward"
        found[part].append((path, role, layer))
    return found


def rounded(bundle: Bundle, path: str, role: str, layer: int, bits: int) -> Packed:
    """A linear rounded to nearest."""
    site = site_of(bundle.module, path, role, layer)
    return rtn.compress(site, Stats(tokens=0), rtn.RtnParams(bits=bits)).linears[path]


def _bytes(real: Real, paths: list, bits: int) -> int:
    """Bytes of a part in that width; matrices of one shape take the same."""
    sizes: dict[tuple, int] = {}
    total = 0
    for path, role, layer in paths:
        shape = tuple(real.weight(path).shape)
        if shape not in sizes:
            sizes[shape] = rounded(real.bundle, path, role, layer, bits).stored_bytes()
        total += sizes[shape]
    return total


def _ruler_bits(weights: list[int], sizes: list[list[int]]) -> float:
    """Bits a weight that scales and zero points take at the smallest width."""
    return 8 * sum(own[0] for own in sizes) / sum(weights) - WIDTHS[0]


@torch.no_grad()
def measured(real: Real, choices: Sequence[tuple[int, ...]] = CHOICES) -> dict[tuple[int, ...], float]:
    """Mean KL(original || rounded) in nats a token, of each choice.

    Choices that differ in the last block alone share the run through the blocks before it.
    """
    text = texts.load_text(BUILTIN_TEXT, "calibration")
    ids = texts.windows(text, real.bundle.tokenizer, "raw", WINDOW, TOKENS, "calibration").ids
    entering = capture(real.bundle, ids)
    *before, last = arch.blocks(real.bundle.module)
    found: dict[tuple[int, ...], float] = {}

    def advanced() -> BlockInputs:
        inputs = BlockInputs(list(entering.batches), entering.calls)
        for block in before:
            inputs.advance(block)
        return inputs

    original = list(_logits(real.bundle, advanced(), last))
    with _widths(real) as put:
        for others, same in itertools.groupby(sorted(choices, key=_later), key=_later):
            put("feed_forward", others[0])
            put("attention", others[1])
            inputs = advanced()
            for choice in same:
                put("last", choice[0])
                rows = zip(original, _logits(real.bundle, inputs, last), strict=True)
                found[choice] = float(torch.cat([kl_divergence(a, b) for a, b in rows]).double().mean())
    return found


def _later(choice: tuple[int, ...]) -> tuple[int, ...]:
    return choice[:0:-1]


def _logits(bundle: Bundle, inputs: BlockInputs, last: nn.Module) -> Iterator[Tensor]:
    """Logits [rows, vocabulary] of all tokens but each window's last, from what enters the last block."""
    norm = arch.final_norm(bundle.module) or nn.Identity()
    for batch in range(len(inputs.batches)):
        for hidden in norm(inputs.run(last, batch)):
            for _, part in logit_chunks(head_of(bundle), hidden[:-1], vocabulary_of(bundle)):
                yield part


@contextmanager
def _widths(real: Real) -> Iterator[Callable[[str, int], None]]:
    """Gives put(part, bits), which rounds a part; at the end the model is as it was."""
    parts, module = parts_of(real), real.bundle.module
    original = {path: real.weight(path) for paths in parts.values() for path, _, _ in paths}
    now: dict[str, int] = {}

    def put(part: str, bits: int) -> None:
        if now.get(part) == bits:
            return
        now[part] = bits
        for path, role, layer in parts[part]:
            weight = module.get_submodule(path).weight
            weight.data = original[path]
            weight.data = rounded(real.bundle, path, role, layer, bits).dequantize().to(weight.dtype)

    try:
        yield put
    finally:
        for path, data in original.items():
            module.get_submodule(path).weight.data = data


def stored() -> dict[tuple[int, ...], float] | None:
    """The table as it is stored; None if there is none of these choices."""
    file = DATA / "lessons" / "mixed" / "data.json"
    if not file.is_file():
        return None
    data = json.loads(file.read_text("utf-8"))
    if data["widths"] != list(WIDTHS) or len(data["kl"]) != len(CHOICES):
        return None
    return dict(zip(CHOICES, data["kl"], strict=True))


def agrees(real: Real, table: Mapping[tuple[int, ...], float]) -> bool:
    """Whether the choices of WITNESS still come out as the table has them."""
    return all(abs(now / table[choice] - 1) < AGREES for choice, now in measured(real, WITNESS).items())


def _sum(table: Mapping[tuple[int, ...], float], choice: tuple[int, ...]) -> float:
    """The divergences of each part alone, added up: the part in its width, the others in the largest."""
    least = (WIDTHS[-1],) * len(PARTS)
    alone = [(*least[:i], bits, *least[i + 1 :]) for i, bits in enumerate(choice)]
    return sum(table[one] - table[least] for one in alone) + table[least]


def best_of(table: Mapping[tuple[int, ...], float], sizes: list[list[int]], budget: int) -> tuple[int, ...]:
    """The choice with the smallest divergence whose bytes fit."""

    def size(choice: tuple[int, ...]) -> int:
        return sum(own[WIDTHS.index(bits)] for own, bits in zip(sizes, choice, strict=True))

    return min((choice for choice in CHOICES if size(choice) <= budget), key=lambda choice: table[choice])


def check(data: dict) -> None:
    """A mix beats a larger file, and the last block is worth more bits than its size suggests."""
    table = dict(zip(CHOICES, data["kl"], strict=True))
    best = best_of(table, data["bytes"], data["budget"])
    claim(table[best] == data["question"]["answer"], "the answer isn't the best choice in the table")
    claim(best == (8, 4, 3), f"the best choice is {best} now; the words say 8, 4 and 3 bits")
    claim(table[best] < 0.9 * table[3, 3, 4], "a fourth bit for the largest part is as good as the mix")
    claim(table[best] < 0.7 * table[3, 3, 3], "the mix is hardly better than 3 bits everywhere")
    claim(data["weights"][0] < 0.05 * sum(data["weights"]), "the last block isn't small")


LESSON = Lesson("mixed", (), make, check)
