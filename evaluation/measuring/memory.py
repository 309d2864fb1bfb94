"""Counts a model's sizes from its tensors, and reads its memory from the system; never from a formula."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from compression import arch
from compression.bundle import Bundle, Geometry
from compression.packed.base import Packed
from compression.packed.linear import CompressedLinear, CompressedTable
from compression.packed.low_rank import LowRank
from compression.packed.sum import Sum


def resident_bytes(module: nn.Module) -> int:
    """Bytes of all live tensors of a model, with the tiles that kernels read; shared storage counts once."""
    tiles = [
        t
        for m in module.modules()
        if isinstance(m, Packed) and m._plan is not None
        for t in m._plan.all_tensors()
    ]
    storages = {}
    for tensor in [*module.parameters(), *module.buffers(), *tiles]:
        if not tensor.is_meta:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def sizes(bundle: Bundle, ids: Tensor) -> dict[str, float]:
    """Bytes as stored, parameters, bytes in memory, and bytes of the key-value cache for each token.

    ids: some tokens [n, length] int64 that the model can read.
    """
    from compression import artifact

    return {
        "stored_bytes": artifact.stored_bytes(bundle),
        "parameters": sum({p.data_ptr(): p.numel() for p in bundle.module.parameters()}.values()),
        "resident_weight_bytes": resident_bytes(bundle.module),
        "kv_cache_bytes_per_token": cache_bytes(bundle, ids),
    }


def cache_bytes(bundle: Bundle, ids: Tensor) -> int:
    """Bytes that one token adds to the key-value cache, read from a real cache.

    If keys share a scale by channel, it is the average over a usual length.
    """
    from compression import kv_cache, sample

    cache = sample.new_cache(bundle)
    tokens = kv_cache.usual_length(ids.shape[1]) if bundle.cache_keys == "channel" else 8
    ids = ids[:1, :tokens].to(bundle.device)
    with torch.no_grad():
        bundle.module(input_ids=ids, logits_to_keep=1, **kv_cache.handed(bundle.module, cache))
    tensors = [
        t for layer in cache.layers for t in (getattr(layer, "stored", None) or (layer.keys, layer.values))
    ]
    return sum(t.numel() * t.element_size() for t in tensors) // ids.shape[1]


def matrices(module: nn.Module, original: Geometry) -> dict[str, float]:
    """The sizes of the blocks' matrices.

    They are the bytes as stored, the bytes of the original matrices in 16 bits, the share of the original's
    numbers that is left, and the stored bits per weight. Numbers in removed places don't count as left; two
    thin factors count their own numbers.

    Bits per weight are stored bits divided by the number of the original's weights, even if some were cut
    out. A matrix that isn't compressed has 16 bits.
    """
    linears = [module.get_submodule(path) for path, _, _ in arch.linears(module)]
    packed = [m.packed for m in linears if isinstance(m, CompressedLinear)]
    plain = sum(m.weight.numel() for m in linears if isinstance(m, nn.Linear))
    weights = sum(out * n for _, _, (out, n) in arch.linear_shapes(original))
    stored = sum(p.stored_bytes() for p in packed) + 2 * plain
    return {
        "weight_bits_per_weight": 8 * stored / weights,
        "matrix_bytes": stored,
        "dense_matrix_bytes": 2 * weights,
        "matrix_weights": weights,
        "kept_weights": sum(map(kept_weights, packed)) + plain,
    }


def kept_weights(packed: Packed) -> int:
    """How many numbers a format holds of a matrix.

    Places that its mask removes don't count. Two thin factors count their own numbers.
    """
    if isinstance(packed, LowRank):
        return packed.u.numel() + packed.v.numel()
    if isinstance(packed, Sum):
        return kept_weights(packed.first)
    mask, (out, n) = packed.mask(), packed.shape
    return out * n - (0 if mask is None else int(mask.sum()))


def kernels_used(module: nn.Module) -> list[str]:
    """Names of the kernels that serve a model's compressed matrices, most used first; [] if none is."""
    packed = [m.packed for m in module.modules() if isinstance(m, (CompressedLinear, CompressedTable))]
    names = [p.kernel for p in packed]
    return sorted(set(names), key=lambda n: -names.count(n))


def has_plain(module: nn.Module) -> bool:
    """True if some matrix of the blocks is an ordinary linear."""
    return any(isinstance(module.get_submodule(path), nn.Linear) for path, _, _ in arch.linears(module))


def peak_bytes() -> int | None:
    """The most memory that the process has held since `reset_peak` or its start; None where unknown."""
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
    """Start the peak anew.

    False where the system doesn't allow it; the peak then still counts from the process's start.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return True
    except OSError:
        return False
