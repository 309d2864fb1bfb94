"""Cuts a matrix into its groups, for methods that fit numbers to each group alone."""

from __future__ import annotations

from torch import Tensor


def groups_as_rows(weight: Tensor, group_size: int) -> list[Tensor]:
    """The groups of weight [out, in] as [out * groups, size].

    First come all whole groups, then, if it is short, the last group of every row.
    """
    n = weight.shape[1]
    size = n if group_size == -1 else group_size
    whole = n - n % size
    parts = [weight[:, :whole].reshape(-1, size)] if whole else []
    return parts + ([weight[:, whole:]] if n > whole else [])
