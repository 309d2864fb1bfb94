"""The latency stage: times a compressed model beside the original, in one process.

Nothing else of ours computes meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from compression.base import Note
from compression.bundle import Bundle
from evaluation import host
from evaluation.measuring import memory


def timed(
    compressed: Bundle | None,
    original: Bundle,
    ids: Tensor,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[dict], list[Note]]:
    """(entries of `Result.timings`, notes).

    An entry says which machine it was, how it was timed, and the figures of each model. There is no entry for
    a model that can read too few tokens. compressed: None times the original alone. ids: tokens [n] int64
    that the models read. tell: takes (parts that are done, all parts).
    """
    from compression import engine
    from evaluation.measuring import latency

    positions = min(b.geometry.positions for b in (compressed, original) if b)
    length, new = latency.lengths(positions, len(ids))
    if not new:
        return [], []
    notes = []
    shown, name = (compressed, "compressed") if compressed else (original, "original")
    with host.timing_lock() as alone:
        if not alone:
            notes.append(Note("machine_shared", {}))
        ways = latency.ways(compressed, original, length + new)
        compared = latency.compare(ways, ids[:length][None], new_tokens=new, tell=tell)
        found = compared.figures
        limit = latency.share_of_limit(shown, found[name]["time_per_output_token_ms"] / 1e3)
    if compared.disturbed:
        notes.append(Note("machine_busy", {"waited": compared.waited, "drift": compared.drift}))
    if shown.refused:
        notes.append(Note("plain_loop", {"reason": shown.refused}))
    kernels = memory.kernels_used(compressed.module) if compressed else []
    if compressed is None or memory.has_plain(compressed.module):
        # matrices that aren't compressed are multiplied as the original's are
        kernels = ["16-bit weights, whole layers (C)" if engine.serve(shown) else "dense (PyTorch)", *kernels]
    entry = {
        "host": host.environment() | {"device": latency.device_name(shown)},
        "limit": limit,
        "kernel": kernels,
        "loop": "transformers" if shown.refused else "decode step (C)",
        "warm_ups": latency.WARM_UPS,
        "rounds": latency.ROUNDS,
        "prompt_tokens": length,
        "new_tokens": new,
        **found,
    }
    return [entry], notes
