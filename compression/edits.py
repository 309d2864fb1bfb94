"""Builds edits and notes for methods of several families.

An `Edit` (base.py) is what a method returns; the driver applies it to the model.
"""

from __future__ import annotations

from compression.base import Edit, Note, Site
from compression.packed.base import Packed


def stored(site: Site, packed: Packed, notes: tuple[Note, ...] = (), **figures: float) -> Edit:
    """An edit that replaces one linear."""
    return Edit(linears={site.path: packed}, notes=notes, figures={site.path: figures} if figures else {})


def short_group_note(site: Site, group_size: int) -> tuple[Note, ...]:
    """A note that the last group of each row is short; () if it isn't."""
    rest = site.weight.shape[1] % group_size if group_size > 0 else 0
    if not rest:
        return ()
    return (
        Note("short_group", {"in_features": site.weight.shape[1], "group_size": group_size, "last": rest}),
    )


def damping_note(site: Site, asked: float, used: float) -> tuple[Note, ...]:
    """A note that H was damped more than asked (`second_order.inverse_factor`)."""
    if used == asked:
        return ()
    return (Note("damping_raised", {"layer": site.path, "from": asked, "to": used}),)
