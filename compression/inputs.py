"""What enters the linears of a block: hidden states carried from block to block, and sums over them.

Nothing here knows a method. The driver (calibrate.py) asks for the statistics of one group at a time and
moves on.

Blocks differ in what the model gives them: one looks at a sliding window, its neighbour at all tokens. So
every block is replayed with its own masks, angles and positions, of every batch. They are taken from the
model's own loop, whose blocks are stood in for meanwhile: each notes its arguments and passes its input on,
so that this costs almost nothing. Before anything else one window goes through the model itself and through
the replay, and the two must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from compression import arch
from compression.base import CalibrationError, Stats
from compression.bundle import Bundle
from compression.packed.linear import CompressedLinear
from compression.surgery import instead

TOKENS_PER_BATCH = 2_048
# bytes of outputs remembered within a block, beside as much again as what enters it; the rest is computed
# again
ROOM = 1 << 30
STRIPS = 4  # a Gram matrix is symmetric: it is multiplied strip by strip, each from the diagonal on
AGREES = 1e-4  # by so much of its largest value may a replayed hidden state differ from the model's own


class _Reached(Exception):
    """The run came as far as it has to; no failure."""


class Call(NamedTuple):
    """How the model calls a block: all arguments but the hidden states."""

    args: tuple
    kwargs: Mapping[str, Any]


class BlockInputs:
    """The hidden states that enter the current block, in batches, and how the model calls each block for each
    batch."""

    def __init__(self, batches: list[Tensor], calls: list[dict[nn.Module, Call]]):
        self.batches = batches  # [b, window, hidden] each
        self.calls = calls  # of each batch: block -> its call
        # what won't change in the block -> its outputs by batch, from the first on
        self.settled: dict[nn.Module, list] = {}
        self.room = 0  # bytes that may still be remembered

    def run(self, block: nn.Module, batch: int) -> Tensor:
        """The block's output for a batch; what is settled runs once and answers from memory after that."""
        hidden = self.batches[batch]
        call = self.calls[batch][block]
        with ExitStack() as stack:
            for part, outputs in self.settled.items():
                if batch < len(outputs):
                    stack.enter_context(instead(part, lambda *args, kept=outputs[batch], **kwargs: kept))
                else:
                    handle = part.register_forward_hook(
                        lambda part, args, out: self._remember(part, batch, out)
                    )
                    stack.callback(handle.remove)
            return _states(block(hidden, *call.args, **call.kwargs))

    def settle(self, block: nn.Module, done: set[nn.Module]) -> None:
        """From now on the linears in `done`, and the parts of the block that have no others, give what they
        give now."""
        if not self.settled:
            self.room = ROOM + sum(map(_bytes, self.batches))
        for part in block.children():
            own = _linears(part)
            for settled in (
                [part] if own and done.issuperset(own) else [linear for linear in own if linear in done]
            ):
                self.settled.setdefault(settled, [])

    def unsettle(self) -> None:
        self.settled.clear()

    def _remember(self, part: nn.Module, batch: int, out) -> None:
        """Keep a part's output for a batch if there is room; what is inside the part will not be asked
        again."""
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
                raise CalibrationError(
                    f"{type(block).__name__} never called {linear}; it can't be calibrated"
                )
        finally:
            handle.remove()
        return collector.stats()

    def observe(
        self, block: nn.Module, linears: list[nn.Module], names: frozenset, check: Callable
    ) -> list[Stats]:
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
    """An uncompressed block with what enters and what leaves it, for methods that train a block to do as it
    did."""

    block: nn.Module
    inputs: list[Tensor]  # [b, window, hidden] each
    targets: list[Tensor]
    call: Call  # of this block for a single window

    def run(self, hidden: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """The block's output with these parameters for hidden states [b, window, hidden] of any number of
        whole windows.

        A single window's masks and angles have a first axis of 1, and so hold for all.
        """
        arguments = (hidden, *self.call.args)
        return _states(torch.func.functional_call(self.block, parameters, arguments, dict(self.call.kwargs)))


@torch.no_grad()
def capture(bundle: Bundle, windows: Tensor) -> BlockInputs:
    """What enters the first block for windows [n, window] of token ids, and how the model calls every block.

    Raises CalibrationError without windows, and where a replay doesn't give what the model itself gives.
    """
    if not len(windows):
        raise CalibrationError(
            "no window of calibration text; give at least 1", code="too_little_text", got=0, allowed=1
        )
    _check_replay(bundle, windows[:1])
    batches: list[Tensor] = []
    calls: list[dict[nn.Module, Call]] = []
    latest: dict[int, dict[nn.Module, Call]] = {}  # batch size -> the calls of the last batch of that size
    for ids in split(windows):
        hidden, new = _called(bundle, ids)
        known = latest.get(len(ids))  # equal ones are kept once
        latest[len(ids)] = new = (
            known if known is not None and _same(list(known.values()), list(new.values())) else new
        )
        batches.append(hidden)
        calls.append(new)
    return BlockInputs(batches, calls)


def follow(bundle: Bundle, ids: Tensor, seen: Callable[[int, Tensor], None]) -> None:
    """Run ids [b, window] through the model's own blocks. seen(i, [b, window, hidden]) is told what enters
    block i, block by block, and at last what leaves the last block, as number `blocks`."""
    blocks = list(arch.blocks(bundle.module))

    def entering(number: int) -> Callable:
        return lambda block, args, kwargs: seen(number, _split_call(args, kwargs)[0])

    with ExitStack() as stack, torch.no_grad():
        for number, block in enumerate(blocks):
            hook = block.register_forward_pre_hook(entering(number), with_kwargs=True)
            stack.callback(hook.remove)
        last = blocks[-1].register_forward_hook(lambda block, args, out: seen(len(blocks), _states(out)))
        stack.callback(last.remove)
        _run_backbone(bundle, ids)


def single_calls(bundle: Bundle, windows: Tensor) -> dict[nn.Module, Call]:
    """How the model calls each block for one window as long as those of windows [n, window]."""
    return _called(bundle, windows[:1])[1]


@torch.no_grad()
def _called(bundle: Bundle, ids: Tensor) -> tuple[Tensor, dict[nn.Module, Call]]:
    """(what enters the first block [b, window, hidden], block -> how the model calls it) for ids [b, window].

    Raises CalibrationError where the model's loop isn't one block after the other, each on what the one
    before gave.
    """
    blocks = list(arch.blocks(bundle.module))
    calls: dict[nn.Module, Call] = {}
    states: list[Tensor] = []

    def stand_in(block: nn.Module) -> Callable:
        def forward(*args, **kwargs):
            hidden, call = _split_call(args, kwargs)
            number = len(calls)
            if (
                number == len(blocks)
                or block is not blocks[number]
                or (states and not _same(hidden, states[0]))
            ):
                raise _differs(
                    f"block {number + 1} of {len(blocks)} isn't called next, or not on what the one "
                    "before gave"
                )
            calls[block] = call
            states[:] = [hidden]
            if len(calls) == len(blocks):
                raise _Reached
            return hidden

        return forward

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(instead(block, stand_in(block)))
        _run_backbone(bundle, ids)
    if len(calls) < len(blocks):
        raise _differs(f"{len(calls)} of {len(blocks)} blocks are called")
    return states[0].detach(), calls


def _check_replay(bundle: Bundle, ids: Tensor) -> None:
    """Raises CalibrationError where ids [1, window] don't leave the replayed blocks as they leave the model's
    own."""
    blocks, own = list(arch.blocks(bundle.module)), []
    handle = blocks[-1].register_forward_hook(lambda block, args, out: own.append(_states(out)))
    try:
        _run_backbone(bundle, ids)
    finally:
        handle.remove()
    hidden, calls = _called(bundle, ids)
    replay = BlockInputs([hidden], [calls])
    for block in blocks:
        replay.advance(block)
    expected, found = own[0].float(), replay.batches[0].float()
    room = AGREES * float(expected.nan_to_num().abs().max())  # what is not a number is for others to find
    if not torch.allclose(found, expected, rtol=0, atol=room, equal_nan=True):
        raise _differs(
            f"the last block's output differs by up to {float((found - expected).abs().max()):.3g}"
        )


def _run_backbone(bundle: Bundle, ids: Tensor) -> None:
    try:
        arch.backbone(bundle.module)(input_ids=ids.to(bundle.device), use_cache=False)
    except _Reached:
        pass


def _differs(what: str) -> CalibrationError:
    return CalibrationError(
        f"the blocks can't be replayed one by one as the model runs them: {what}. Choose a method "
        "without calibration.",
        code="replay_differs",
        what=what,
    )


def _split_call(args: tuple, kwargs: dict) -> tuple[Tensor, Call]:
    """(hidden states, the rest) of what a block was called with."""
    if args:
        return args[0], Call(args[1:], kwargs)
    return kwargs["hidden_states"], Call(
        (), {name: value for name, value in kwargs.items() if name != "hidden_states"}
    )


def _states(out) -> Tensor:
    """The hidden states of what a block returned."""
    return out[0] if isinstance(out, tuple) else out


def _same(a, b) -> bool:
    """Whether two arguments are equal, tensors within tuples, lists and dicts included."""
    if a is b:
        return True
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    return type(a) is type(b) and a == b


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
        self.names, self.tokens = names, 0
        self.sums: dict[str, Tensor] = {}

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
