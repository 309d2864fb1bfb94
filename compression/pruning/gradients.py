"""Computes gradients of the language-model loss on a few short texts. They rank structures and blocks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from compression.base import CalibrationError, Context, TextUnavailable
from compression.bundle import Bundle


def texts(windows: Tensor, count: int, length: int) -> Tensor:
    """`count` pieces [count, length], evenly spread over windows [n, window] of token ids.

    Raises TextUnavailable if the windows hold fewer.
    """
    pieces = windows[:, : windows.shape[1] // length * length].reshape(-1, length)
    if len(pieces) < count:
        raise TextUnavailable(
            f"the calibration windows hold {len(pieces)} pieces of {length} tokens; {count} are asked for. "
            "Ask for fewer or shorter samples, or for more calibration tokens.",
            code="text_too_short",
            name="calibration",
            tokens=windows.numel(),
            need=count * length,
        )
    return pieces[torch.arange(count) * len(pieces) // count]


class Gradients:
    """Sums over the texts of the gradient (`first`) and of the squared gradient (`second`).

    Both are by path, float32 [out, in]; empty if they aren't wanted.
    """

    def __init__(self, first: bool, second: bool):
        self.wanted = {"first": first, "second": second}
        self.first: dict[str, Tensor] = {}
        self.second: dict[str, Tensor] = {}

    def take(self, path: str, weight: Tensor) -> None:
        """Add the gradient that the backward pass left at a weight, and free it there."""
        assert weight.grad is not None
        gradient, weight.grad = weight.grad.float(), None
        for name, value in (("first", lambda: gradient), ("second", gradient.square)):
            if self.wanted[name]:
                into = getattr(self, name)
                into[path] = into[path].add_(value()) if path in into else value()


def gradients(
    bundle: Bundle,
    paths: Iterable[str],
    ids: Tensor,
    context: Context,
    *,
    first: bool = True,
    second: bool = False,
) -> Gradients:
    """Mean gradients of the loss over the texts of ids [n, length], for the weights at `paths`.

    Each text is its own label. first, second: whether the gradient and its square are wanted. Raises
    CalibrationError if they aren't finite.
    """
    found, module = Gradients(first, second), bundle.module
    weights = {path: module.get_submodule(path).weight for path in paths}
    handles = []
    try:
        for path, weight in weights.items():

            def take(w, path=path):
                return found.take(path, w)

            handles.append(weight.requires_grad_().register_post_accumulate_grad_hook(take))
        for done, text in enumerate(ids):
            context.recorder.progress("compress", done, len(ids))
            context.recorder.check("taking gradients")
            text = text[None].to(bundle.device)
            with torch.enable_grad():
                module(input_ids=text, labels=text, use_cache=False).loss.backward()
    finally:
        for handle in handles:
            handle.remove()
        for weight in weights.values():
            weight.requires_grad_(False).grad = None
    context.recorder.progress("compress", len(ids), len(ids))
    for sums in (found.first, found.second):
        for total in sums.values():
            total /= len(ids)
            if not bool(torch.isfinite(total).all()):
                raise CalibrationError(
                    "the gradients on the calibration text are not finite; use another text",
                    code="gram_not_finite",
                )
    return found
