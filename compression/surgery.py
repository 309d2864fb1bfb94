"""Puts formats in the places of a model's linears, its token embedding and its head.

It can also replace a part's forward function for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from compression import arch
from compression.base import Note
from compression.bundle import Bundle
from compression.grids import fit
from compression.packed.base import Packed
from compression.packed.grouped_int import GroupedInt
from compression.packed.linear import CompressedLinear, CompressedTable, TableHead

TABLE_GROUP = 64


def compress_tables(bundle: Bundle, bits: int) -> list[Note]:
    """Store the embedding and the head in `bits` bits, per row in groups of 64; a tied pair is stored once.

    A table that a method has stored already stays as it is, and a note says so.
    """
    table, head = arch.embedding(bundle.module)[1], arch.head(bundle.module)[1]
    fresh = isinstance(table, nn.Embedding)
    own_head = isinstance(head, nn.Linear) and not bundle.geometry.tied
    put_tables(
        bundle,
        _round_rows(table.weight, bits) if fresh else None,
        _round_rows(head.weight, bits) if own_head else None,
    )
    return [] if fresh else [Note("table_kept", {"bits": bits, "format": table.packed.format})]


def put_tables(bundle: Bundle, table: Packed | None, head: Packed | None) -> None:
    """Put these formats in the places of the embedding and the head.

    A tied head without a format of its own reads the table.
    """
    module = bundle.module
    (table_path, old_table), (head_path, old_head) = arch.embedding(module), arch.head(module)
    if table is not None:
        compressed = CompressedTable(table, old_table.weight.dtype, arch.embedding_scale(module))
        set_submodule(module, table_path, compressed)
        if bundle.geometry.tied and head is None:
            set_submodule(module, head_path, TableHead(compressed))
    if head is not None:
        set_submodule(module, head_path, CompressedLinear(head, old_head.bias))


def _round_rows(weight: Tensor, bits: int) -> GroupedInt:
    weight = weight.detach().float()
    grid = fit(weight, bits, TABLE_GROUP, symmetric=True)
    return GroupedInt.encode(grid.round(weight), grid)


def set_submodule(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at `path` of `root`, in the old module's training mode."""
    module.train(root.training)
    root.set_submodule(path, module)


@contextmanager
def instead(part: nn.Module, forward: Callable) -> Iterator[None]:
    """For a while, `forward` is called in place of the part's own forward function."""
    before = vars(part).get("forward")
    part.forward = forward
    try:
        yield
    finally:
        if before is None:
            del part.forward
        else:
            part.forward = before
