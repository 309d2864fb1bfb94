"""Moves a factor from activations to weights without changing the model. AWQ and SmoothQuant share it.

A linear computes X W^T. For any positive s [in] that equals (X / s)(W diag(s))^T. If arch.fold names the norm
or the linear that computes X, 1/s is multiplied into its weights and costs nothing at run time.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from compression.base import Block, Note


def folded(block: Block, factors: Mapping[int, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(weights, tensors) of a block whose group i had its inputs divided by factors[i] [in].

    weights: path -> float32 [out, in] of every linear. tensors: changed norms and biases, and
    "<path>.input_scale" for linears whose input can't be divided earlier (after GELU). If channels repeat,
    the factors must come from `Fold.shared`.
    """
    weights = {site.path: site.weight for site in block.sites}
    tensors: dict[str, Tensor] = {}
    for number, s in factors.items():
        group = block.groups[number]
        for site in group.sites:
            weights[site.path] = weights[site.path] * s
            if group.fold is None:
                tensors[f"{site.path}.input_scale"] = 1 / s
        if group.fold is not None:
            path, divisor = group.fold.path, group.fold.rows(s)
            if path in weights:
                weights[path] = weights[path] / divisor[:, None]
            else:
                tensors[f"{path}.weight"] = group.fold.weight / divisor - group.fold.added
            if group.fold.bias is not None:
                tensors[f"{path}.bias"] = group.fold.bias / divisor
    return weights, tensors


def skipped(block: Block, numbers: list[int]) -> tuple[Note, ...]:
    """A note on the groups that could not be folded and why; once for a model."""
    groups = [block.groups[i] for i in numbers]
    if not groups or block.layer:
        return ()
    return (
        Note(
            "fold_skipped",
            {"roles": ", ".join(s.role for g in groups for s in g.sites), "reason": groups[0].unfoldable},
        ),
    )
