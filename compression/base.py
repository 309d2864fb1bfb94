"""The words every method speaks: parameters, methods, sites, statistics, edits, costs, notes and errors.

A method is a frozen record (`LinearMethod` and the others) whose `compress` function chooses numbers. It
receives a `Site` (one linear layer) with the `Stats` of that layer's inputs, or a `Block` of them, and
returns an `Edit` that the driver applies. It never walks a model, never multiplies and never measures.

The error tree, each class with a stable `code` that the page translates:

    CompressionError
      BadParam            a parameter's type, range or choice
      BadChain            a step that can't follow the step before it
      UnsupportedModel    an architecture that the data table lacks
      UnsupportedLayer    a layer whose type or shape a method can't handle
      ModelUnavailable    unknown name, gated, offline, too large, unsafe file
      TextUnavailable     unknown text, unreadable, too short
      CalibrationError    statistics that a method can't use (not finite, not positive definite)
      Cancelled           somebody pressed Stop
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from compression.bundle import Bundle, Geometry
    from compression.packed.base import Packed
    from compression.recorder import Recorder
    from compression.structure import Kept


class CompressionError(Exception):
    """Base of all errors that a visitor may cause. `code` is stable, `facts` are the numbers and names in
    it."""

    code = "error"

    def __init__(self, message: str, *, code: str | None = None, **facts: Any):
        super().__init__(message)
        self.code = code or self.code
        self.facts = facts


class BadParam(CompressionError, ValueError):
    code = "bad_param"


class BadChain(CompressionError, ValueError):
    code = "bad_chain"


class UnsupportedModel(CompressionError):
    code = "unsupported_model"


class UnsupportedLayer(CompressionError):
    code = "unsupported_layer"


class ModelUnavailable(CompressionError):
    code = "model_unavailable"


class TextUnavailable(CompressionError):
    code = "text_unavailable"


class CalibrationError(CompressionError):
    code = "calibration"


class CannotExport(CompressionError):
    """The model, or a layer of it, has no place in the format."""

    code = "cannot_export"


class Cancelled(CompressionError):
    code = "cancelled"


@dataclass(frozen=True)
class Note:
    """Something the reader must know about a result, as a stable code and its numbers (translated by the
    page)."""

    code: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def json(self) -> dict:
        return {"code": self.code, "facts": dict(self.facts)}


def param(
    default,
    help: str,
    *,
    lo=None,
    hi=None,
    step=None,
    choices: tuple | None = None,
    suggest: tuple | None = None,
    unit: str | None = None,
    ends: tuple[str, str] | None = None,
    main: bool = False,
    label: Literal["", "named", "title", "choice", "always"] = "",
    level: Literal["basic", "advanced"] = "basic",
    when: Mapping[str, Any] | None = None,
):
    """Declare one parameter: widget, flag, check, help text and cache key are generated from this line.

    lo, hi: inclusive bounds; lo = -1 means that -1 stands for the whole (a whole row), and 0 is no value
    then. step: values are lo + k * step (numbers counted from 0 when lo is negative). choices: the only
    values. suggest: values that a menu offers; others within the bounds are allowed too. ends: words for the
    two ends of the main knob. main: the method's large knob (one per method).

    label: how a run's name tells the value. "": the full name does where it isn't the default. "always": the
    full name does, because two runs that differ in it are not alike (groups, activations, budget). "choice":
    the short name does too where it isn't the default. "title": the method goes by the choice's name.
    "named": the page has words for it (evaluation/page/words.py).

    when: other parameter -> value; the parameter has no effect, and is left out of the key, unless all hold.
    A parameter that the method doesn't have counts as holding.
    """
    meta = dict(
        help=help,
        lo=lo,
        hi=hi,
        step=step,
        choices=choices,
        suggest=suggest,
        unit=unit,
        ends=ends,
        main=main,
        label=label,
        level=level,
        when=dict(when or {}),
    )
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Params:
    """Base of every method's parameters: a frozen dataclass whose fields are made by `param`."""

    def __post_init__(self):
        for f in dataclasses.fields(self):
            _check(
                type(self).__name__.removesuffix("Params").lower(),
                f,
                getattr(self, f.name),
                self._type(f.name),
            )

    @classmethod
    @functools.cache
    def _type(cls, name: str) -> type:
        hint = typing.get_type_hints(cls)[name]
        return (
            next(t for t in typing.get_args(hint) if t is not type(None))
            if isinstance(hint, types.UnionType)
            else hint
        )

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Params:
        """Build from strings or JSON values, with the field's type. Raises BadParam for unknown or ill-typed
        values."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        out = {}
        for name, value in values.items():
            if name not in known:
                allowed = ", ".join(known) or "none"
                raise BadParam(f"unknown parameter {name!r}; allowed: {allowed}", name=name, allowed=allowed)
            out[name] = _convert(name, value, cls._type(name))
        return cls(**out)

    @classmethod
    def describe(cls) -> list[dict]:
        """The declarations as JSON: name, type, default and everything given to `param`."""
        return [
            {
                "name": f.name,
                "type": cls._type(f.name).__name__,
                "default": f.default,
                **{k: list(v) if isinstance(v, tuple) else v for k, v in f.metadata.items()},
            }
            for f in dataclasses.fields(cls)
        ]

    def json(self) -> dict:
        return dataclasses.asdict(self)

    def effective(self) -> dict:
        """The parameters that have an effect (those whose `when` holds), for the cache key."""
        values = self.json()
        return {
            f.name: values[f.name]
            for f in dataclasses.fields(self)
            if all(values.get(k, v) == v for k, v in f.metadata["when"].items())
        }


P = TypeVar("P", bound=Params)


def _convert(name: str, value, kind: type):
    if not isinstance(value, str) or kind is str:
        return float(value) if kind is float and type(value) is int else value
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if value.lower() not in words:
            raise BadParam(
                f"{name} = {value!r}; allowed: true or false", name=name, got=value, allowed="true, false"
            )
        return words[value.lower()]
    try:
        return kind(value)
    except ValueError:
        raise BadParam(
            f"{name} = {value!r} is not a {kind.__name__}", name=name, got=value, allowed=kind.__name__
        ) from None


def _check(owner: str, f: dataclasses.Field, value, kind: type) -> None:
    m = f.metadata
    right_type = type(value) is kind or (kind is float and type(value) is int)
    if not right_type or (kind is float and not math.isfinite(value)):
        allowed = f"a finite {kind.__name__}" if kind is float else f"type {kind.__name__}"
    elif m["choices"] and value not in m["choices"]:
        allowed = ", ".join(str(c) for c in m["choices"])
    elif (m["lo"] is not None and value < m["lo"]) or (m["hi"] is not None and value > m["hi"]):
        allowed = f"{m['lo']} to {m['hi']}"
    elif kind is int and m["lo"] == -1 and value == 0:
        allowed = f"-1 (the whole row) or 1 to {m['hi']}"
    elif kind is int and m["step"] and value >= 0 and (value - max(m["lo"], 0)) % m["step"]:
        allowed = f"{m['lo']} to {m['hi']} in steps of {m['step']}"
    else:
        return
    unit = f" {m['unit']}" if m["unit"] else ""
    raise BadParam(
        f"{owner}: {f.name} = {value!r}{unit}; allowed: {allowed}. {m['help']}",
        name=f.name,
        got=value,
        allowed=allowed,
    )


@dataclass(frozen=True)
class Stats:
    """What the driver collected about the inputs X [tokens, in] of one linear (fp32 sums; padding never
    counts)."""

    tokens: int
    gram: Tensor | None = None  # X^T X [in, in], raw sum
    sum_sq: Tensor | None = None  # sum of squares [in]
    mean_abs: Tensor | None = None  # mean |x| [in]
    max_abs: Tensor | None = None  # max |x| [in]
    mean: Tensor | None = None  # mean x [in]


# Minutes of a full budget, a week: its tokens end it. A method's defaults are its short budget: minutes on a
# processor, enough to see what the method does and not what it can do. The full one has the authors' tokens,
# step sizes, ranks and lengths as far as they are known and our bounds allow; where the authors trained with
# data that we can't bring along, their number of tokens is taken from the calibration text. A step takes
# 1,024 tokens, so that there are more and smaller ones than theirs. Methods that don't train have none.
BUDGET_MINUTES = 10_000.0

STATS = frozenset({"gram", "sum_sq", "mean_abs", "max_abs", "mean"})


@dataclass(frozen=True)
class Site:
    """One linear layer as a method sees it."""

    path: str  # "model.layers.0.self_attn.q_proj"
    role: str  # q, k, v, o, gate, up, down
    layer: int
    layers: int
    weight: Tensor  # [out, in] float32, a copy
    bias: Tensor | None
    previous: Packed | None  # the format that an earlier step of the chain stored, None for a fresh linear
    # role -> (out, in) of its block's linears, {} if unknown
    block: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Linears of a block that share one input."""

    sites: tuple[Site, ...]
    stats: Stats
    fold: Any = None  # arch.Fold: where a factor on the input's channels can go; None if nowhere
    unfoldable: str = ""  # why there is none: "post_norm", "activation", "no_weight"


@dataclass(frozen=True)
class Block:
    """One decoder block as a method of scope "block" sees it, its groups in data-flow order."""

    layer: int
    layers: int
    groups: tuple[Group, ...]
    # for methods that train, else None: the inputs.Passage of the uncompressed block, and who watches
    inputs: Any = None
    recorder: Recorder | None = None

    @property
    def sites(self) -> list[Site]:
        return [site for group in self.groups for site in group.sites]


@dataclass(frozen=True)
class Cost:
    """What compressing one linear costs, before doing it."""

    bytes: int  # stored bytes of the result
    flops: float  # of the method itself, forward passes not counted
    peak_bytes: int = 0  # temporary memory beyond weights and activations
    train_steps: int = 0


@dataclass(frozen=True)
class Edit:
    """What a method returns. The driver alone applies it."""

    # path -> format that replaces the linear's weight
    linears: Mapping[str, Packed] = field(default_factory=dict)
    # changed norms, biases (new ones too), "<path>.input_scale"
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    bundle: Bundle | None = None  # takes the model's place: a student
    # layer -> the heads and channels that stay; the rest is cut out
    kept: Mapping[int, Kept] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # path -> per-layer figures
    series: Mapping[str, list] = field(default_factory=dict)  # curves, e.g. "training"
    # replaces the token embedding, and a head that shares it unless `head` is given
    table: Packed | None = None
    head: Packed | None = None  # replaces the head's weight
    # name -> content, saved beside the model (texts, task files)
    files: Mapping[str, bytes] = field(default_factory=dict)
    # channels of the residual stream that stay, () for all; the rest is cut out of the whole model
    width: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()  # numbers of the decoder blocks that stay, () for all; the rest is cut out
    cache_bits: int | None = None  # the key-value cache that the model was made for
    # of scope "block": the attention.Int8Attention by which the block's attention rounds
    attention: Any = None


@dataclass(frozen=True)
class Context:
    """What a model-scoped method is given beside the bundle."""

    # [n, window] token ids: the text to train on or to calibrate on, None where the method reads none
    windows: Tensor | None
    recorder: Recorder
    teacher: Any = None  # as StudentMethod.teacher says

    @property
    def seed(self) -> int:
        return self.recorder.seed


@dataclass(frozen=True, kw_only=True)
class Method(Generic[P]):
    """What every method declares. Its record, one of those below, says what `compress` is given."""

    name: str  # == file name == command == key in results
    title: str
    family: str  # quantization, pruning, low_rank, distillation, original
    paper: str
    params: type[P]
    compress: Callable[..., Edit]
    cost: Callable[..., Cost]  # (shape [out, in] of one linear, params, calibration tokens)
    # the format in which it stores a linear that no step stored before; "" where linears stay dense
    stores: str = ""
    after: frozenset[str] = frozenset()  # formats of an earlier step that it accepts
    # names of its params that an earlier step decides which stored integers, for the method keeps these
    inherits: tuple[str, ...] = ()
    shown_first: bool = False  # of its family, on the page
    full: Mapping[str, Any] = field(default_factory=dict)  # params of the full budget, see `BUDGET_MINUTES`
    identity: Mapping | None = None  # params under which nothing changes
    tiny: Mapping = field(default_factory=dict)  # params for seconds on a random model
    essay: str = ""  # the file's docstring

    def collects(self, params: P) -> frozenset[str]:
        """The statistics (of STATS) that it needs with these params."""
        return frozenset()

    def needs_calibration(self, params: P) -> bool:
        """Whether it reads a text."""
        return bool(self.collects(params))

    def cost_of(self, shape: tuple[int, int], params: P, tokens: int, role: str) -> Cost:
        """What compressing one linear [out, in] of that role costs."""
        return self.cost(shape, params, tokens)

    def geometry_after(self, geometry: Geometry, params: P) -> Geometry:
        """The sizes that it leaves of a model."""
        return geometry

    @property
    def main_param(self) -> str | None:
        return next((f.name for f in dataclasses.fields(self.params) if f.metadata["main"]), None)

    def describe(self) -> dict:
        """The method as JSON, for `--list --json` and assets/methods.json."""
        return {
            "name": self.name,
            "family": self.family,
            "title": self.title,
            "paper": self.paper,
            "calibration": self.needs_calibration(self.params()),
            "after": sorted(self.after),
            "main": self.main_param,
            "essay": self.essay.strip(),
            "params": self.params.describe(),
            "stores": self.stores or "dense",
            "first": self.shown_first,
            "full": dict(self.full),
        }


@dataclass(frozen=True, kw_only=True)
class LinearMethod(Method[P]):
    """Compresses one linear after another: compress(site, stats, params)."""

    stats: frozenset[str] | Callable[[P], frozenset[str]] = frozenset()  # what it needs of STATS
    # whose inputs it sees: "compressed", all before its group compressed; "block", the blocks before, its own
    # block as it was; "original", the uncompressed model
    stream: Literal["compressed", "block", "original"] = "compressed"
    # of a method that removes weights one by one: the share of them that stays
    kept_share: Callable[[P], float] | None = None
    # of a converter: `cost` where it takes over what an earlier step stored
    converted_cost: Callable[..., Cost] | None = None

    def collects(self, params: P) -> frozenset[str]:
        return self.stats(params) if callable(self.stats) else self.stats

    @property
    def rounds_what_stays(self) -> bool:
        """Whether it rounds the weights that a pruning step left and keeps that step's mask."""
        return "bitmask" in self.after


@dataclass(frozen=True, kw_only=True)
class BlockMethod(Method[P]):
    """Compresses a decoder block at a time, whose inputs come from the uncompressed model: compress(block,
    params). Its `cost` also takes the linear's role."""

    stats: frozenset[str]  # what it needs of STATS
    stream: ClassVar[str] = "original"

    def collects(self, params: P) -> frozenset[str]:
        return self.stats

    def cost_of(self, shape: tuple[int, int], params: P, tokens: int, role: str) -> Cost:
        return self.cost(shape, params, tokens, role)


@dataclass(frozen=True, kw_only=True)
class ModelMethod(Method[P]):
    """Changes the model as a whole: compress(bundle, context, params)."""

    # the sizes after a method that cuts heads, channels or blocks out
    reshaped: Callable[[Geometry, P], Geometry] | None = None
    reads_windows: bool = False  # whether it needs windows of the calibration text
    # raises what `compress` would raise of windows [n, window] that are too few or too short for it
    fits: Callable[[P, Tensor], None] | None = None

    def needs_calibration(self, params: P) -> bool:
        return self.reads_windows

    def geometry_after(self, geometry: Geometry, params: P) -> Geometry:
        return self.reshaped(geometry, params) if self.reshaped else geometry


@dataclass(frozen=True, kw_only=True)
class TableMethod(ModelMethod[P]):
    """Stores the token embedding and leaves linears alone."""

    # ((vocabulary, width), params, tied) -> Cost of all that it stores, None where the table stays as it is
    table_cost: Callable[..., Cost | None]


@dataclass(frozen=True, kw_only=True)
class TrainingMethod(ModelMethod[P]):
    """Trains, for `train_tokens` and `train_minutes` of its params, on windows of the calibration text."""

    own_text: bool = False  # it trains on text that it makes itself instead
    compresses: bool = False  # it compresses too: `train_tokens` 0 leaves something to compare with
    # params -> (method, params) of the same training with its own idea off, None if there is no such
    control: Callable[[P], tuple[str, Mapping] | None] | None = None
    # (params, steps before) -> whether what it stores comes on top of what those stored
    adds: Callable[[P, tuple], bool] | None = None
    cache_bits: Callable[[P], int] | None = None  # of the key-value cache that it trains the model for

    def needs_calibration(self, params: P) -> bool:
        return not self.own_text


@dataclass(frozen=True, kw_only=True)
class StudentMethod(TrainingMethod[P]):
    """Trains a student, another model or some of this one's layers, that takes the model's place: compress
    gets it as the bundle. Its `cost` also takes the linear's role; its params name another model by
    `student`."""

    # makes it: student(model, context, params) gives an Edit with it as the bundle, and notes on it
    student: Callable[[Bundle, Context, P], Edit]
    measures: Callable[[P], bool]  # whether making it needs windows of a text
    # what the student learns from: the model itself as a Bundle (white box), or a TextTeacher, which answers
    # in strings and shows nothing else (black box)
    teacher: Literal["model", "text"]
    trains_table: bool = False  # whether `cost` of the role "table" counts the token table, trained too

    def needs_calibration(self, params: P) -> bool:
        return super().needs_calibration(params) or self.measures(params)

    def cost_of(self, shape: tuple[int, int], params: P, tokens: int, role: str) -> Cost:
        return self.cost(shape, params, tokens, role)


def handed_on(params: Params) -> dict:
    """What a step decides for a next one that keeps its integers: its parameters that have an effect, none
    where it rounds nothing."""
    values = params.effective()
    return {} if values.get("rounding") is False else values


def canonical(value: Any) -> str:
    """One JSON text for equal values: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
