"""Measures a model: one pass over the windows feeds every metric of likelihood and divergence.

The original is measured once in each protocol, and leaves in the store's baseline folder: its final hidden
states, its token losses, its short-context states and its greedy continuations. The hidden states are
float32; its logits are rebuilt from them a few rows at a time, so that nothing of vocabulary size is kept.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from compression.base import CompressionError, Note
from compression.bundle import Bundle
from compression.disk import check_room
from compression.likelihood import head_of, hidden_states, logit_chunks, token_losses, vocabulary_of
from compression.packed.linear import TableHead
from compression.recorder import QUIET, Recorder
from compression.sample import fitted, generate
from compression.texts import Windows
from evaluation.measuring import divergence, generation
from evaluation.measuring import perplexity as ppl
from kernels.home import write

SHORT_CONTEXT, SHORT_WINDOWS = 32, 32
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 4, 32, 48


@dataclass
class Baseline:
    """The original's cached measurements in one protocol."""

    hidden: Tensor  # [n, window, hidden] float32, mapped from disk
    losses: Tensor  # [n, window - 1]
    short_hidden: Tensor  # [windows, 32, hidden]; no windows if the model or the text is shorter than 32
    texts: list[list[int]]  # greedy continuations
    head: nn.Module  # the original's own head

    @classmethod
    def load(cls, folder: Path, head: nn.Module) -> Baseline | None:
        """Read what a run of the original left in `folder`; None if it isn't there."""
        from safetensors.torch import load_file

        if not (folder / INDEX).is_file():
            return None
        index = json.loads((folder / INDEX).read_text("utf-8"))
        if (folder / "hidden.f32").stat().st_size != 4 * math.prod(index["shape"]):
            return None  # the file was cut short: reading a mapped file beyond its end would kill the process
        small = load_file(folder / "small.safetensors")
        # "c": what is written to it would stay in memory, so that a file that may only be read can be mapped
        hidden = _mapped(folder / "hidden.f32", index["shape"], "c")
        return cls(hidden, small["losses"], small["short_hidden"], index["texts"], head)


INDEX = "index.json"  # written last: a folder with it is complete


def _mapped(file: Path, shape: list[int], mode: Literal["c", "r+"]) -> Tensor:
    """A float32 tensor that lives in a file, so that a long text's states don't fill the memory.

    numpy maps it, because torch.from_file takes no name that the locale can't write.
    """
    return torch.from_numpy(np.memmap(file, np.float32, mode, shape=tuple(shape)))


def _reserved(file: Path, size: int) -> Path:
    """An empty file whose room on the disk is reserved.

    If a mapped file found no room while it is written, the process would be killed.
    """
    check_room(file, size)
    with file.open("wb") as opened:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(opened.fileno(), 0, size)
        else:
            opened.truncate(size)
    return file


def _leave(folder: Path, shape, losses: Tensor, short_hidden: Tensor, texts: list[list[int]]) -> None:
    from safetensors.torch import save_file

    save_file({"losses": losses, "short_hidden": short_hidden}, folder / "small.safetensors")
    write(folder / INDEX, json.dumps({"shape": list(shape), "texts": texts}).encode())


class OriginalHead(nn.Module):
    """The original's head, used beside a compressed model.

    It keeps 16-bit weights, and widens a block of the vocabulary at a time.
    """

    BLOCK = 8_192

    def __init__(self, head: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.register_buffer("weight", head.weight.detach().to(dtype))  # [vocabulary, hidden]
        self.bias = head.bias

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x @ part.to(x.dtype).T for part in self.weight.split(self.BLOCK)], -1)
        return y if self.bias is None else y + self.bias


def left_out(positions: int, windows: Windows) -> list[Note]:
    """Notes on what `measure` can't measure over these windows, or only in part.

    positions: how many tokens the model can read.
    """
    notes = []
    if _short_windows(positions, windows) == 0:
        notes.append(Note("no_short_context", {"need": SHORT_CONTEXT}))
    prompt, new = fitted(positions, windows.ids.shape[1], PROMPT_TOKENS, NEW_TOKENS)
    if (prompt, new) != (PROMPT_TOKENS, NEW_TOKENS):
        notes.append(Note("continuations_shortened", {"prompt": prompt, "new": new}))
    return notes


def measure(
    bundle: Bundle,
    windows: Windows,
    baseline: Baseline | None,
    *,
    record: Path | None = None,
    recorder: Recorder = QUIET,
) -> tuple[dict[str, float], dict[str, list]]:
    """(metrics, series) of a model over windows.

    With a baseline they also have everything that compares with the original. record: the folder to leave a
    baseline in, for a run of the original.
    """

    def check():
        recorder.check("measuring")

    n, window = windows.ids.shape
    total = n + 2
    states = None
    if record:
        record.mkdir(parents=True, exist_ok=True)
        shape = [n, window, _width(bundle)]
        states = _mapped(_reserved(record / "hidden.f32", 4 * math.prod(shape)), shape, "r+")
    losses, hits, same, kl = torch.empty(n, window - 1), 0, 0, torch.empty(n, window - 1)
    for start, hidden in hidden_states(bundle, windows.ids):
        for i, one in enumerate(hidden, start):
            check()
            if states is not None:
                states[i] = one.float().cpu()
            reference = (baseline.hidden[i], baseline.head) if baseline else None
            losses[i], kl_i, hits_i, same_i = _window(bundle, one, windows.ids[i], reference)
            if not bool(torch.isfinite(losses[i]).all()):
                raise CompressionError(
                    f"the model's predictions are not finite in window {i}: it is broken at these settings; "
                    f"choose more bits or remove less",
                    code="broken_model",
                    window=i,
                )
            hits += hits_i
            if kl_i is not None:
                kl[i], same = kl_i, same + same_i
            recorder.progress("evaluate", i + 1, total)
    metrics = _likelihood(losses, hits, windows)
    series = {"window_losses": [round(x, 5) for x in losses.mean(1).tolist()]}
    if baseline:
        metrics |= _comparison(losses, kl.flatten(), same, baseline)
    check()
    short_hidden, short = _short(bundle, windows, baseline)
    metrics |= short
    recorder.progress("generate", n + 1, total)
    check()
    texts = continuations(bundle, windows, check)
    metrics |= _texts(texts, baseline)
    recorder.progress("generate", total, total)
    if record and states is not None:
        _leave(record, states.shape, losses, short_hidden, texts)
    return metrics, series


def _width(bundle: Bundle) -> int:
    """Width of the final hidden states (OPT-350M projects them down before the head)."""
    head = head_of(bundle)
    return head.table.packed.shape[1] if isinstance(head, TableHead) else head.in_features


def _window(bundle: Bundle, hidden: Tensor, ids: Tensor, reference) -> tuple[Tensor, Tensor | None, int, int]:
    """One window's figures from its final states [window, hidden].

    They are (losses, kl, right next tokens, tokens on which both models agree).
    """
    head, vocabulary, targets = head_of(bundle), vocabulary_of(bundle), ids[1:].to(hidden.device)
    losses = torch.empty(len(targets))
    kl = torch.empty(len(targets)) if reference else None
    hits = same = 0
    for rows, logits in logit_chunks(head, hidden[:-1], vocabulary):
        losses[rows] = token_losses(logits, targets[rows]).cpu()
        top = logits.argmax(-1)
        hits += int((top == targets[rows]).sum())
        if reference and kl is not None:
            original = reference[1](reference[0][rows].to(hidden)).float()
            kl[rows] = divergence.kl_divergence(original, logits).cpu()
            same += int((top == original.argmax(-1)).sum())
    return losses, kl, hits, same


def _likelihood(losses: Tensor, hits: int, windows: Windows) -> dict[str, float]:
    value, error = ppl.perplexity(losses)
    accuracy, accuracy_error = ppl.rate_and_error(hits, losses.numel())
    found = {
        "perplexity": value,
        "perplexity_stderr": error,
        "next_token_accuracy": accuracy,
        "next_token_accuracy_stderr": accuracy_error,
        "bits_per_byte": ppl.bits_per_byte(losses, windows.scored_bytes),
        "evaluated_tokens": windows.ids.numel(),
    }
    return _known(found)


def _known(found: dict[str, float]) -> dict[str, float]:
    """The metrics without standard errors that a single window can't give.

    Any other number that isn't finite stays, and the run fails by it.
    """
    return {k: v for k, v in found.items() if not (k.endswith("_stderr") and math.isnan(v))}


def _comparison(losses: Tensor, kl: Tensor, same: int, baseline: Baseline) -> dict[str, float]:
    ratio, ratio_error = ppl.ratio(losses, baseline.losses)
    rate, rate_error = ppl.rate_and_error(same, kl.numel())
    found = {
        "baseline_perplexity": ppl.perplexity(baseline.losses)[0],
        "perplexity_ratio": ratio,
        "perplexity_ratio_stderr": ratio_error,
        "same_top_token_rate": rate,
        "same_top_token_rate_stderr": rate_error,
    } | {f"kl_divergence_{k}": v for k, v in divergence.summary(kl).items()}
    return _known(found)


def _short_windows(positions: int, windows: Windows) -> int:
    """How many contexts of 32 tokens are measured in these windows."""
    return min(SHORT_WINDOWS, windows.ids.numel() // SHORT_CONTEXT) if positions >= SHORT_CONTEXT else 0


def _short(bundle: Bundle, windows: Windows, baseline: Baseline | None) -> tuple[Tensor, dict[str, float]]:
    """Final states on contexts of 32 tokens, and how far they are from the original's.

    Both are empty if there is no such context.
    """
    count = _short_windows(bundle.geometry.positions, windows)
    if count == 0:
        return torch.empty(0, SHORT_CONTEXT, _width(bundle)), {}
    ids = windows.ids.flatten()[: count * SHORT_CONTEXT].view(count, SHORT_CONTEXT)
    hidden = torch.cat([h.float().cpu() for _, h in hidden_states(bundle, ids)])
    if baseline is None:
        return hidden, {}
    kl, same = [], 0
    for one, reference in zip(hidden, baseline.short_hidden, strict=True):
        ids_of_no_use = torch.zeros(SHORT_CONTEXT, dtype=torch.int64)
        _, kl_one, _, same_one = _window(
            bundle, one.to(bundle.device), ids_of_no_use, (reference, baseline.head)
        )
        kl.append(kl_one)
        same += same_one
    flat = torch.cat(kl)
    return hidden, {
        "short_context_kl_divergence_mean": float(flat.double().mean()),
        "short_context_same_top_token_rate": same / flat.numel(),
    }


def continuations(
    bundle: Bundle, windows: Windows, check: Callable[[], None] = lambda: None
) -> list[list[int]]:
    """Greedy continuations of prompts cut from the evaluation text, all in one batch.

    They are shorter if the model can't read that many tokens.
    """
    prompt, new = fitted(bundle.geometry.positions, windows.ids.shape[1], PROMPT_TOKENS, NEW_TOKENS)
    steps = []
    for token in generate(bundle, windows.ids[:PROMPTS, :prompt], new):
        check()
        steps.append(token)
    return torch.stack(steps, 1).tolist()


def _texts(texts: list[list[int]], baseline: Baseline | None) -> dict[str, float]:
    long_enough = len(texts[0]) >= generation.NGRAM  # fewer tokens can't repeat anything
    found = {"repeat_rate": sum(map(generation.repeat_rate, texts)) / len(texts)} if long_enough else {}
    if baseline and long_enough:
        found["baseline_repeat_rate"] = sum(map(generation.repeat_rate, baseline.texts)) / len(baseline.texts)
    if baseline:
        parted = [generation.first_difference(a, b) for a, b in zip(texts, baseline.texts, strict=True)]
        found["first_difference_tokens"] = sum(parted) / len(parted)
    return found
