"""Collects what enters the linears of a block: hidden states go from block to block and are summed up.

Nothing here knows a method. The driver (calibrate.py) asks for the statistics of one group of linears at a
time and moves on.

A model calls its blocks with different arguments. For example, one block looks at a sliding window and its
neighbour at all tokens, so their masks differ. So each block is replayed with its own masks, angles and
positions, for every batch. They are recorded while the model's own loop runs over stand-ins for its blocks: a
stand-in notes its arguments and passes its input on, which costs almost nothing. Before anything else, one
window goes through the model itself and through the replay, and the two must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
# Outputs of a block's parts are kept as long as they take no more than this many bytes plus the bytes of the
# block's inputs. Outputs that don't fit are computed again.
ROOM = 1 << 30
STRIPS = 4  # a Gram matrix is symmetric: it is computed in this many strips, each up to the diagonal
AGREES = 1e-4  # a replayed hidden state may differ from the model's own by this share of the largest value


class _Reached(Exception):
    """The run has come as far as it has to. This is no failure."""


class Call(NamedTuple):
    """How the model calls a block: all arguments but the hidden states."""

    args: tuple
    kwargs: Mapping[str, Any]


class BlockInputs:
    """The hidden states that enter the current block, in batches, and how the model calls each block."""

    def __init__(self, batches: list[Tensor], calls: list[dict[nn.Module, Call]]):
        self.batches = batches  # [b, window, hidden] each
        self.calls = calls  # for each batch: block -> its call
        # part of the block whose output won't change -> its kept outputs, one for each batch
        self.kept: dict[nn.Module, list] = {}
        self.room = 0  # bytes of outputs that may still be kept

    def run(self, block: nn.Module, batch: int) -> Tensor:
        """The block's output for a batch.

        A part in `kept` runs once, and after that its kept output stands for it. If there was no room to keep
        the output, the part runs again.
        """
        hidden = self.batches[batch]
        call = self.calls[batch][block]
        with ExitStack() as stack:
            for part, outputs in self.kept.items():
                if batch < len(outputs):
                    stack.enter_context(instead(part, lambda *args, kept=outputs[batch], **kwargs: kept))
                else:
                    handle = part.register_forward_hook(lambda part, args, out: self._keep(part, batch, out))
                    stack.callback(handle.remove)
            return _states(block(hidden, *call.args, **call.kwargs))

    def keep_outputs(self, block: nn.Module, done: set[nn.Module]) -> None:
        """Keep the outputs of all parts of the block whose linears are all in `done`, from the next run on.

        If only some linears of a part are in `done`, keep the outputs of these linears. For example, once q,
        k and v are done, their three outputs are kept. Once o is done too, the attention's output is kept
        instead.
        """
        if not self.kept:
            self.room = ROOM + sum(map(_bytes, self.batches))
        for part in block.children():
            own = _linears(part)
            whole = own and done.issuperset(own)
            for finished in [part] if whole else [linear for linear in own if linear in done]:
                self.kept.setdefault(finished, [])

    def drop_outputs(self) -> None:
        self.kept.clear()

    def _keep(self, part: nn.Module, batch: int, out) -> None:
        """Keep a part's output for a batch if there is room.

        The kept outputs of linears inside the part are then dropped, because they are no longer needed.
        """
        if len(self.kept[part]) != batch or _bytes(out) > self.room:
            return
        self.kept[part].append(out)
        self.room -= _bytes(out)
        for inside in _linears(part):
            outputs = self.kept.get(inside, [])
            if inside is not part and batch < len(outputs):
                self.room += _bytes(outputs[batch])
                outputs[batch] = None

    def until(self, block: nn.Module, linear: nn.Module, names: frozenset, check: Callable) -> Stats:
        """Statistics of what enters `linear`. Each run of the block stops there."""
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
        """Statistics of what enters each of `linears`, in one pass. The block's outputs become the inputs."""
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
        """Replace the hidden states by the block's outputs."""
        for batch in range(len(self.batches)):
            check()
            self.batches[batch] = self.run(block, batch)


@dataclass(frozen=True)
class Passage:
    """An uncompressed block with its inputs and outputs.

    A method that trains a block uses it, so that the trained block gives the same outputs.
    """

    block: nn.Module
    inputs: list[Tensor]  # [b, window, hidden] each
    targets: list[Tensor]
    call: Call  # how the model calls this block for a single window

    def run(self, hidden: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """The block's output with these parameters for hidden states [b, window, hidden].

        b may be any number of whole windows: a single window's masks and angles have a first axis of 1, which
        holds for all of them.
        """
        arguments = (hidden, *self.call.args)
        return _states(torch.func.functional_call(self.block, parameters, arguments, dict(self.call.kwargs)))


@torch.no_grad()
def capture(bundle: Bundle, windows: Tensor) -> BlockInputs:
    """The hidden states that enter the first block for windows [n, window] of token ids.

    Raises CalibrationError if there is no window, and if the replayed blocks don't give the model's output.
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
        known = latest.get(len(ids))  # equal calls are kept once
        latest[len(ids)] = new = (
            known if known is not None and _same(list(known.values()), list(new.values())) else new
        )
        batches.append(hidden)
        calls.append(new)
    return BlockInputs(batches, calls)


def observed(
    bundle: Bundle, windows: Tensor, names: frozenset, check: Callable = lambda: None
) -> Iterator[tuple[int, Sequence[Sequence[tuple[str, str]]], list[Stats]]]:
    """(block, its groups of (path, role), the statistics of each group's input), block by block.

    The inputs are those of the model as it is, for windows [n, window] of token ids.
    """
    inputs = capture(bundle, windows)
    for layer, block in enumerate(arch.blocks(bundle.module)):
        groups = arch.groups(bundle.module, layer)
        firsts = [bundle.module.get_submodule(group[0][0]) for group in groups]
        yield layer, groups, inputs.observe(block, firsts, names, check)


def follow(bundle: Bundle, ids: Tensor, seen: Callable[[int, Tensor], None]) -> None:
    """Run ids [b, window] through the model's own blocks, and show the hidden states between them.

    seen(i, states [b, window, hidden]) is called with the states that enter block i, block by block. At last
    it is called with the states that leave the last block; i is then the number of blocks.
    """
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
    """How the model calls each block for a single window of the length of these windows [n, window]."""
    return _called(bundle, windows[:1])[1]


@torch.no_grad()
def _called(bundle: Bundle, ids: Tensor) -> tuple[Tensor, dict[nn.Module, Call]]:
    """(hidden states [b, window, hidden] that enter the first block, block -> its call) for ids [b, window].

    Raises CalibrationError if the model's loop doesn't run one block after the other, each on the output of
    the block before.
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
    """Raises CalibrationError if a replay on ids [1, window] doesn't give the model's own output."""
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
    room = AGREES * float(expected.nan_to_num().abs().max())  # finding NaN is not this function's task
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
    """(hidden states, the other arguments) of a call of a block."""
    if args:
        return args[0], Call(args[1:], kwargs)
    return kwargs["hidden_states"], Call(
        (), {name: value for name, value in kwargs.items() if name != "hidden_states"}
    )


def _states(out) -> Tensor:
    """The hidden states in what a block returned."""
    return out[0] if isinstance(out, tuple) else out


def _same(a, b) -> bool:
    """Whether two arguments are equal; tensors inside tuples, lists and dicts are compared too."""
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
    """Bytes of a tensor, or of the tensors in a tuple."""
    return sum(t.nbytes for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor))


def gram(x: Tensor) -> Tensor:
    """X^T X [in, in] of x [tokens, in], on and below the diagonal. Entries above it may be missing."""
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
