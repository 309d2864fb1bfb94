"""What enters the linears of a block: hidden states carried from block to block, and sums over them.

Nothing here knows a method. The driver (calibrate.py) asks for the statistics of one group at a time and moves on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compression import arch
from compression.base import CalibrationError, Stats
from compression.bundle import Bundle
from compression.packed.linear import CompressedLinear

TOKENS_PER_BATCH = 2_048
ROOM = 1 << 30  # bytes of outputs remembered within a block, beside as much again as what enters it; the rest is computed again
STRIPS = 4  # a Gram matrix is symmetric: it is multiplied strip by strip, each from the diagonal on


class _Reached(Exception):
    """The block came as far as the group's input; no failure."""


class BlockInputs:
    """The hidden states that enter the current block, in batches, with the block's other arguments."""

    def __init__(self, batches: list[Tensor], arguments: dict[int, tuple[tuple, dict]]):
        self.batches = batches  # [b, window, hidden] each
        self.arguments = arguments  # batch size -> (args, kwargs) of a block, hidden states left out
        self.settled: dict[nn.Module, list] = {}  # what won't change in the block -> its outputs by batch, from the first on
        self.room = 0  # bytes that may still be remembered

    def run(self, block: nn.Module, batch: int) -> Tensor:
        """The block's output for a batch; what is settled runs once and answers from memory after that."""
        hidden = self.batches[batch]
        args, kwargs = self.arguments[hidden.shape[0]]
        handles = []
        for part, outputs in self.settled.items():
            if batch < len(outputs):
                part.forward = lambda *args, kept=outputs[batch], **kwargs: kept
            else:
                handles.append(part.register_forward_hook(lambda part, args, out: self._remember(part, batch, out)))
        try:
            out = block(hidden, *args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
            for part in self.settled:
                part.__dict__.pop("forward", None)
        return out[0] if isinstance(out, tuple) else out

    def settle(self, block: nn.Module, done: set[nn.Module]) -> None:
        """From now on the linears in `done`, and the parts of the block that have no others, give what they give now."""
        if not self.settled:
            self.room = ROOM + sum(map(_bytes, self.batches))
        for part in block.children():
            own = _linears(part)
            for settled in [part] if own and done.issuperset(own) else [linear for linear in own if linear in done]:
                self.settled.setdefault(settled, [])

    def unsettle(self) -> None:
        self.settled.clear()

    def _remember(self, part: nn.Module, batch: int, out) -> None:
        """Keep a part's output for a batch if there is room; what is inside the part will not be asked again."""
        if len(self.settled[part]) != batch or _bytes(out) > self.room:
            return
        self.settled[part].append(out)
        self.room -= _bytes(out)
        for inside in _linears(part):
            outputs = self.settled.get(inside, [])
            if inside is not part and batch < len(outputs):
                self.room += _bytes(outputs[batch])
                outputs[batch] = None

    def until(self, block: nn.Module, linear: nn.Module, names: frozenset, check: Callable) -> Stats:
        """Statistics of what enters `linear`; each run of the block ends there."""
        collector = _Collector(names)

        def hook(module, args):
            collector.add(args[0])
            raise _Reached

        handle = linear.register_forward_pre_hook(hook)
        try:
            for batch in range(len(self.batches)):
                check()
                try:
                    self.run(block, batch)
                except _Reached:
                    continue
                raise CalibrationError(f"{type(block).__name__} never called {linear}; it can't be calibrated")
        finally:
            handle.remove()
        return collector.stats()

    def observe(self, block: nn.Module, linears: list[nn.Module], names: frozenset, check: Callable) -> list[Stats]:
        """Statistics of what enters each of `linears` in one pass; then stands at the next block's inputs."""
        collectors = [_Collector(names) for _ in linears]
        handles = [
            linear.register_forward_pre_hook(lambda module, args, c=c: c.add(args[0]))
            for linear, c in zip(linears, collectors, strict=True)
        ]
        try:
            self.advance(block, check)
        finally:
            for handle in handles:
                handle.remove()
        return [c.stats() for c in collectors]

    def advance(self, block: nn.Module, check: Callable = lambda: None) -> None:
        """Replace the inputs by the block's outputs."""
        for batch in range(len(self.batches)):
            check()
            self.batches[batch] = self.run(block, batch)


@dataclass(frozen=True)
class Passage:
    """An uncompressed block with what enters and what leaves it, for methods that train a block to do as it did."""

    block: nn.Module
    inputs: list[Tensor]  # [b, window, hidden] each
    targets: list[Tensor]
    arguments: dict[int, tuple[tuple, dict]]  # batch size -> (args, kwargs) of the block, hidden states left out

    def run(self, hidden: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """The block's output with these parameters for hidden states [b, window, hidden], b up to the largest batch captured."""
        size = max(self.arguments)
        first = lambda t: t[: len(hidden)] if isinstance(t, Tensor) and t.dim() and len(t) == size else t  # noqa: E731
        args, kwargs = self.arguments[size]
        kwargs = {k: tuple(map(first, v)) if isinstance(v, tuple) else first(v) for k, v in kwargs.items()}
        out = torch.func.functional_call(self.block, parameters, (hidden, *map(first, args)), kwargs)
        return out[0] if isinstance(out, tuple) else out


def capture(bundle: Bundle, windows: Tensor) -> BlockInputs:
    """What enters the first block for windows [n, window] of token ids."""
    first = arch.blocks(bundle.module)[0]
    batches: list[Tensor] = []
    arguments: dict[int, tuple[tuple, dict]] = {}

    def hook(module, args, kwargs):
        kwargs = dict(kwargs)
        hidden, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
        batches.append(hidden.detach())
        arguments.setdefault(hidden.shape[0], (args, kwargs))
        raise _Reached

    handle = first.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        for ids in split(windows):
            try:
                arch.backbone(bundle.module)(input_ids=ids.to(bundle.device), use_cache=False)
            except _Reached:
                pass
    finally:
        handle.remove()
    return BlockInputs(batches, arguments)


def _linears(part: nn.Module) -> list[nn.Module]:
    return [m for m in part.modules() if isinstance(m, (nn.Linear, CompressedLinear))]


def _bytes(out) -> int:
    """Of a tensor, or of those in a tuple."""
    return sum(t.nbytes for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor))


def gram(x: Tensor) -> Tensor:
    """X^T X [in, in] of x [tokens, in] on and below the diagonal, what is above may be missing."""
    n = x.shape[1]
    out, edge = x.new_zeros(n, n), -(-n // STRIPS)
    for start in range(0, n, edge):
        torch.mm(x[:, start:].T, x[:, start : start + edge], out=out[start:, start : start + edge])
    return out


def split(windows: Tensor) -> Iterator[Tensor]:
    """Windows [n, window] in batches of about TOKENS_PER_BATCH tokens."""
    return iter(windows.split(max(1, TOKENS_PER_BATCH // windows.shape[1])))


class _Collector:
    """Running sums over the tokens that enter one group of linears, in fp32."""

    def __init__(self, names: frozenset):
        self.names, self.tokens, self.sums = names, 0, {}

    def add(self, x: Tensor) -> None:
        x = x.detach().reshape(-1, x.shape[-1]).float()
        self.tokens += x.shape[0]
        for name in self.names:
            new = _SUMS[name](x)
            if name not in self.sums:
                self.sums[name] = new
            elif name == "max_abs":
                torch.maximum(self.sums[name], new, out=self.sums[name])
            else:
                self.sums[name] += new

    def stats(self) -> Stats:
        means = {n: s / self.tokens if n in ("mean_abs", "mean") else s for n, s in self.sums.items()}
        if "gram" in means:
            lower = means["gram"].tril()
            means["gram"] = lower + lower.tril(-1).T
        return Stats(tokens=self.tokens, **means)


_SUMS: dict[str, Callable[[Tensor], Tensor]] = {
    "gram": gram,
    "sum_sq": lambda x: x.square().sum(0),
    "mean_abs": lambda x: x.abs().sum(0),
    "max_abs": lambda x: x.abs().amax(0),
    "mean": lambda x: x.sum(0),
}
