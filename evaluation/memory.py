"""Sizes and memory, counted from tensors and read from the system; never from a formula."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import nn

from compression.packed.base import Packed
from compression.packed.linear import CompressedLinear, CompressedTable


def resident_bytes(module: nn.Module) -> int:
    """Bytes of all live tensors of a model, the tiles that the kernels read included, shared storage once."""
    tiles = [t for m in module.modules() if isinstance(m, Packed) and m._plan is not None for t in m._plan.all_tensors()]
    storages = {}
    for tensor in [*module.parameters(), *module.buffers(), *tiles]:
        if not tensor.is_meta:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def weight_bits(module: nn.Module) -> float | None:
    """Stored bits per weight over the compressed matrices of the blocks, None if there are none; where only the token table is
    compressed, the blocks' own 16.

    Divides by the original matrices' counts (a format keeps its matrix's shape).
    """
    packed = [m.packed for m in module.modules() if isinstance(m, CompressedLinear)]
    if not packed:
        return 16.0 if any(isinstance(m, CompressedTable) for m in module.modules()) else None
    weights = sum(p.shape[0] * p.shape[1] for p in packed)
    return 8 * sum(p.stored_bytes() for p in packed) / weights


def kernels_used(module: nn.Module) -> list[str]:
    """Names of the kernels that serve a model's compressed matrices, most used first."""
    packed = [m.packed for m in module.modules() if isinstance(m, (CompressedLinear, CompressedTable))]
    names = [p.kernel for p in packed]
    return sorted(set(names), key=lambda n: -names.count(n)) or ["dense (PyTorch)"]


def peak_bytes() -> int | None:
    """The process's resident high-water mark since it started or since `reset_peak`, None where unknown."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> bool:
    """Start the high-water mark anew; False where the system doesn't allow it (then it counts from the start)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return True
    except OSError:
        return False
