"""Fixtures of the Triton kernels' tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that was never written holds NaN (99 as an integer)."""
    real = torch.empty

    def empty(*size, **options):
        fresh = real(*size, **options)
        return fresh.fill_(float("nan") if fresh.is_floating_point() else 99)

    monkeypatch.setattr(torch, "empty", empty)


@pytest.fixture
def small_tiles(monkeypatch):
    """A word or a few at a time, so that small matrices take several turns of the loops (and the interpreter
    fewer programs)."""
    from kernels.gpu import binary_coded, codebook, decode, grouped_int

    for module in (binary_coded, codebook, grouped_int):
        monkeypatch.setattr(
            module, "few_tiles", lambda tokens: decode.few_tiles(tokens) | {"BN": 32, "BW": 8}
        )
    monkeypatch.setattr(binary_coded, "FEW_ROWS", {})
    monkeypatch.setattr(binary_coded, "look_tiles", lambda mu: {"MU": mu, "BN": 16, "BR": 4} | decode.LAUNCH)
