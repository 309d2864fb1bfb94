"""Computes what a model predicts over token windows, without ever holding all logits.

A window of 512 tokens has 512 x vocabulary logits: 311 MB for a vocabulary of 151,936. So the final hidden
states are computed in batches, and logits only for a few rows at a time (`logit_chunks`). An evaluation then
takes at most 300 MB beside the model.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from compression import arch
from compression.bundle import Bundle
from compression.kv_cache import read

TOKENS_PER_BATCH = 2_048
LOGITS_BYTES = 24_000_000  # one copy of a chunk's logits in float32; the metrics hold about five


def final_states(bundle: Bundle, ids: Tensor) -> Tensor:
    """Final hidden states [b, window, hidden] of ids [b, window]; differentiable.

    Keys and values are as the model's cache gives them back.
    """
    cache = bundle.new_cache() if bundle.cache_bits < 16 else None
    return read(arch.backbone(bundle.module), ids, cache)


@torch.no_grad()
def hidden_states(bundle: Bundle, ids: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Final hidden states of windows [n, window], batch by batch.

    Gives (index of the batch's first window, states [b, window, hidden]).
    """
    step = max(1, TOKENS_PER_BATCH // ids.shape[1])
    for start in range(0, len(ids), step):
        batch = ids[start : start + step].to(bundle.device)
        yield start, final_states(bundle, batch)


def rows_per_chunk(vocabulary: int) -> int:
    """How many tokens' logits make one chunk."""
    return max(1, LOGITS_BYTES // (4 * vocabulary))


@torch.no_grad()
def logit_chunks(head: nn.Module, hidden: Tensor, vocabulary: int) -> Iterator[tuple[slice, Tensor]]:
    """(rows, float32 logits [rows, vocabulary]) over hidden [tokens, hidden]."""
    step = rows_per_chunk(vocabulary)
    for start in range(0, len(hidden), step):
        rows = slice(start, min(start + step, len(hidden)))
        yield rows, head(hidden[rows]).float()


def head_of(bundle: Bundle) -> nn.Module:
    """The module that turns final hidden states into logits."""
    return arch.head(bundle.module)[1]


def vocabulary_of(bundle: Bundle) -> int:
    """The head's width, with the rows that pad the vocabulary."""
    return bundle.geometry.vocabulary


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats of targets [n] under float32 logits [n, vocabulary]."""
    return torch.logsumexp(logits, -1) - logits.gather(-1, targets[:, None]).squeeze(-1)


@torch.no_grad()
def losses(bundle: Bundle, ids: Tensor) -> Tensor:
    """Token losses [n, window - 1] in nats over windows [n, window]."""
    out = torch.empty(len(ids), ids.shape[1] - 1)
    head, vocabulary = head_of(bundle), vocabulary_of(bundle)
    for start, hidden in hidden_states(bundle, ids):
        for i, states in enumerate(hidden, start):
            targets = ids[i, 1:].to(states.device)
            for rows, logits in logit_chunks(head, states[:-1], vocabulary):
                out[i, rows] = token_losses(logits, targets[rows]).cpu()
    return out
