"""A pretended graphics card: its tensors are computed on the processor, and what CUDA refuses raises DeviceMix.

    with Card() as card:
        bundle = models.load(folder, "card")
    print(card.operations, card.synchronisations)

PyTorch lets a backend be written in Python (torch.utils.backend_registration). This one registers the device
"card". A tensor there is a `OnCard`, which holds a processor's tensor. Each operation goes through `_perform`,
which refuses what CUDA refuses (operands on two devices, a processor's random generator), computes on the
processor, and counts. It needs no compiler and no card, and it says nothing about speed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "card"
# advanced indexing takes indices of either device
INDEXING = {
    f"aten::{name}" for name in ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
}
MOVING = {"aten::copy_", "aten::_to_copy", "aten::copy"}
# the host waits for the card, because it needs a number or a size from it
WAITING = {
    f"aten::{name}"
    for name in ("_local_scalar_dense", "nonzero", "equal", "unique_consecutive", "_unique2", "masked_select")
}
# no kernel is launched: only shapes and strides change
VIEWS = {
    f"aten::{name}"
    for name in (
        *(
            "view",
            "_unsafe_view",
            "reshape",
            "t",
            "transpose",
            "permute",
            "expand",
            "slice",
            "select",
            "split",
        ),
        *("split_with_sizes", "unsqueeze", "squeeze", "detach", "alias", "as_strided", "unbind", "diagonal"),
        *("unfold", "chunk", "narrow", "movedim", "_reshape_alias", "lift_fresh"),
    )
}


class DeviceMix(RuntimeError):
    """CUDA would have refused this operation."""


class _Backend:
    """What PyTorch asks a device's module for."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Operations here take their random numbers from the processor's default generator."""

    def device_count(self) -> int:
        return 1

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


@functools.cache
def device() -> torch.device:
    """The pretended card. Raises ImportError where PyTorch has no backends in Python."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(NAME, _Backend())
    return torch.device(NAME, 0)


# PyTorch counts its devices at the first gradient, so the card is registered when tests are collected
with contextlib.suppress(ImportError):
    device()


@dataclass
class Counts:
    """launches: operations that aren't views. synchronisations: how often the host waited for a number.
    down, up: copies from the card and to it."""

    launches: int = 0
    synchronisations: int = 0
    down: int = 0
    up: int = 0


_counts = Counts()


class OnCard(torch.Tensor):
    """A tensor on the card; `inner` is the processor's tensor that holds its numbers."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device(),
            requires_grad=False,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _perform(func, args, kwargs or {})

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, new):
        if not isinstance(new, OnCard):
            raise DeviceMix(f".data of a tensor on the card was set to a tensor on {new.device}")
        torch.Tensor.data.__set__(self, new)
        self.inner = new.inner

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert a tensor on the card to numpy. Use Tensor.cpu()")

    def __array__(self, *args, **kwargs):
        raise TypeError("can't convert a tensor on the card to numpy. Use Tensor.cpu()")

    def tolist(self):
        _counts.synchronisations += 1
        return self.inner.tolist()

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            with torch.no_grad():
                copied = OnCard(self.inner.clone(memory_format=torch.preserve_format))
            copied.requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copied._is_param = True
            memo[id(self)] = copied
        return memo[id(self)]

    def __repr__(self):
        return f"OnCard({self.inner!r})"


class Card(TorchDispatchMode):
    """While it is entered, tensors can be made on the card; `counts` holds what was done since."""

    counts: Counts

    def __enter__(self):
        device()
        self.counts = _fresh()
        # else PyTorch lifts literals such as torch.tensor(1) to a device of its choice
        self._lifts = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *raised):
        torch._C._set_only_lift_cpu_tensors(self._lifts)
        return super().__exit__(*raised)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _perform(func, args, kwargs or {})

    def again(self) -> Counts:
        """Count from zero; returns the new counts."""
        self.counts = _fresh()
        return self.counts


def _fresh() -> Counts:
    global _counts
    _counts = Counts()
    return _counts


def _perform(func, args: tuple, kwargs: dict[str, Any]):
    name, written, sets = _schema(func)
    if name == "aten::_fused_sdp_choice":
        return 0  # the plain mathematics of attention
    operands = list(_operands((args, tuple(kwargs.values()))))
    cards = any(isinstance(operand, OnCard) for operand in operands)
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    if not cards and target != NAME:
        return func(*args, **kwargs)
    if cards and name not in MOVING:
        _refuse_mixed(func, name, args, operands)
    result_on_card = cards if target is None else target == NAME
    if name == "aten::copy_":
        result_on_card = isinstance(args[0], OnCard)
    if result_on_card and any(isinstance(operand, torch.Generator) for operand in operands):
        raise DeviceMix(f"{func}: a generator of the processor, and a result on the card")
    _count(name, operands, cards, result_on_card)
    moved = {key: _inner(value) for key, value in kwargs.items()}
    if target == NAME:
        moved["device"] = torch.device("cpu")
    given = func(*_inner(list(args)), **moved)
    return _outer(given, args, kwargs, written, sets, result_on_card)


@functools.cache
def _schema(func) -> tuple[str, dict[str, tuple[int, str]], tuple[tuple[str, ...], ...]]:
    """(name, {alias set: the argument that is written in place}, the alias sets of each result)."""
    schema = func._schema
    written = {
        alias: (place, argument.name)
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
        for alias in argument.alias_info.after_set
    }
    sets = tuple(
        tuple(r.alias_info.after_set) if r.alias_info is not None and r.alias_info.is_write else ()
        for r in schema.returns
    )
    return schema.name, written, sets


def _operands(values) -> Iterator[torch.Tensor | torch.Generator]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _operands(value)
        elif isinstance(value, torch.Tensor | torch.Generator):
            yield value


def _refuse_mixed(func, name: str, args: tuple, operands: list) -> None:
    """Raise DeviceMix if an operand lies on the processor; a number without dimensions may."""
    away = [
        o
        for o in operands
        if isinstance(o, torch.Tensor) and not isinstance(o, OnCard) and o.dim() and o.device.type != "meta"
    ]
    if away and name in INDEXING and isinstance(args[0], OnCard):
        values = args[2] if len(args) > 2 else None
        away = [o for o in away if o is values]
    if away:
        shapes = [tuple(o.shape) for o in operands if isinstance(o, torch.Tensor)]
        raise DeviceMix(f"{func}: operands on the card and on {away[0].device}; shapes {shapes}")


def _count(name: str, operands: list, cards: bool, result_on_card: bool) -> None:
    masks = any(isinstance(o, OnCard) and o.dtype in (torch.bool, torch.uint8) for o in operands[1:])
    _counts.launches += name not in VIEWS
    _counts.synchronisations += name in WAITING or (name in INDEXING and masks)
    if name == "aten::_to_copy" and cards != result_on_card:
        _counts.down += cards
        _counts.up += not cards


def _inner(value):
    if isinstance(value, OnCard):
        return value.inner
    return type(value)(map(_inner, value)) if type(value) in (list, tuple) else value


def _outer(given, args, kwargs, written, sets, on_card: bool):
    """The results as tensors on the card; one that is an argument, written in place, is that argument."""

    def wrapped(value, aliases=()):
        for alias in aliases:
            if alias in written:
                place, name = written[alias]
                return kwargs[name] if name in kwargs else args[place]
        if isinstance(value, list | tuple):
            return type(value)(wrapped(part) for part in value)
        return OnCard(value) if on_card and isinstance(value, torch.Tensor) else value

    if isinstance(given, tuple) and len(sets) == len(given) > 1:
        return tuple(wrapped(value, aliases) for value, aliases in zip(given, sets, strict=True))
    return wrapped(given, sets[0] if isinstance(given, torch.Tensor) else ())
