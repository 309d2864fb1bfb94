"""Defines a lesson, and gives lessons the real weights, inputs and stored results that they show.

A lesson's data is JSON that a browser can draw without a server:

    {"facts": {name: number},       numbers for the lesson's sentences
     "question": {...},             what the learner answers first (assets/learn/question.js says the kinds)
     "tries": [{...}],              what to do on the live page; `attempt` makes one
     "draws": [{...}],              other data in its place, e.g. another row, of which a seed in the address
                                    chooses one (assets/learn/seed.js); facts that a draw doesn't name stay
     ...}                           whatever the figure needs
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from compression.catalogue import OFFLINE_MODEL
from evaluation import ROOT
from evaluation.benches import shipped
from evaluation.spec import Result

DATA = ROOT / "assets" / "learn"
DIGITS = 5  # significant digits that a lesson's data keeps


class ClaimGone(Exception):
    """A sentence of a lesson isn't true of its data any more."""


@dataclass(frozen=True)
class Lesson:
    """One page of Learn.

    name: of its file and its folder. systems: names of the survey's systems that have their place here
    (survey.py). make: makes its data from real weights and results. check: raises ClaimGone if a sentence of
    the lesson isn't true of its data.
    """

    name: str
    systems: tuple[str, ...]
    make: Callable[[Real], dict[str, Any]]
    check: Callable[[dict[str, Any]], None]


def claim(holds: bool, words: str) -> None:
    """Raise ClaimGone with these words unless it holds."""
    if not holds:
        raise ClaimGone(words)


def drawn(data: dict[str, Any]) -> list[dict[str, Any]]:
    """All that a lesson shows under one seed or another: its data, and the same with each draw in place."""
    first = {key: value for key, value in data.items() if key != "draws"}
    return [first] + [
        first | draw | {"facts": first["facts"] | draw.get("facts", {})} for draw in data.get("draws", [])
    ]


class Real:
    """The offline model and the stored results, loaded when a lesson asks for them."""

    def result(self, words: str, group: str = "gates", seed: int = 0) -> Result:
        """The stored result of a recipe in words, e.g. "gptq --bits 4". Raises ClaimGone if there is none."""
        for asked, spec in shipped.named(group):
            if asked == words and spec.seed == seed:
                found = shipped.stored(shipped.RESULTS / shipped.file_name(spec, group))
                if found is not None and found.status == "ok":
                    return found
        raise ClaimGone(f"no stored result of {words!r} ({group}, seed {seed})")

    def id(self, words: str, group: str = "gates", seed: int = 0) -> str:
        """The id under which that result is shown on the page."""
        spec = self.result(words, group, seed).spec
        return shipped.result_id(spec, group)

    def perplexity(self, words: str, group: str = "gates", seed: int = 0) -> float:
        """Perplexity of that result."""
        return self.result(words, group, seed).metrics["perplexity"]

    def error(self, words: str, group: str = "gates") -> float:
        """Standard error of that perplexity."""
        return self.result(words, group).metrics["perplexity_stderr"]

    @functools.cached_property
    def bundle(self):
        """The offline model in float32. Its weights were rounded to 4 bits by its publisher."""
        import torch

        from compression import models

        return models.load(OFFLINE_MODEL, dtype=torch.float32)

    def weight(self, path: str):
        """A linear's weight [out, in] in float32, e.g. of "model.layers.10.mlp.down_proj"."""
        return self.bundle.module.get_submodule(path).weight.detach()

    @functools.cached_property
    def _inputs(self) -> dict[tuple[str, int], Any]:
        return {}

    def inputs(self, path: str, tokens: int = 512):
        """What a linear gets on the first tokens of the built-in calibration text, [tokens, in] float32."""
        import torch

        from compression import texts
        from evaluation.spec import BUILTIN_TEXT

        if (path, tokens) not in self._inputs:
            text = texts.load_text(BUILTIN_TEXT, "calibration")
            cut = texts.windows(text, self.bundle.tokenizer, "raw", tokens, tokens, "calibration")

            def reached(module, args):
                self._inputs[path, tokens] = args[0].detach().reshape(-1, args[0].shape[-1])
                raise _Reached

            hook = self.bundle.module.get_submodule(path).register_forward_pre_hook(reached)
            try:
                with torch.no_grad():
                    self.bundle.module(cut.ids[:1])
            except _Reached:  # the parts after this linear need not run
                pass
            finally:
                hook.remove()
        return self._inputs[path, tokens]


class _Reached(Exception):
    """The run has come as far as it has to. This is no failure."""


def attempt(recipe: Sequence[tuple[str, dict]] = (), **more: Any) -> dict[str, Any]:
    """Something to do on the live page: the knobs of a recipe, a run to look at, a tab to open.

    more: run (a result's id), tab, family, event ("shown", "answered" or "opened": what the page must see
    before the try counts as done).
    """
    command = " + ".join(
        " ".join([method, *(f"--{k} {v}" for k, v in values.items())]) for method, values in recipe
    )
    said = {"command": f"python -m evaluation run {command}"} if recipe else {}
    return {"recipe": [[method, dict(values)] for method, values in recipe], **said, **more}


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """JSON data with its floats cut to so many significant digits; whole numbers stay."""
    if isinstance(value, dict):
        return {str(k): rounded(v, digits) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v, digits) for v in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ClaimGone(f"a lesson's data holds {value}")
        cut = float(f"{value:.{digits}g}")
        return int(cut) if cut.is_integer() and abs(cut) < 1e15 else cut
    if hasattr(value, "tolist"):
        return rounded(value.tolist(), digits)
    return value
