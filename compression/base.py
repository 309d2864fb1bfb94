"""The records that every method uses: parameters, methods, sites, statistics, edits, costs, notes and errors.

A method is a frozen record (`LinearMethod` and the others) whose `compress` function computes new weights. It
gets a `Site` (one linear layer) with the `Stats` of that layer's inputs, or a `Block` of them, and returns an
`Edit` that the driver applies. A method never walks a model, never multiplies stored weights and never
measures.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from compression.bundle import Bundle, Geometry
    from compression.judged import Judged
    from compression.packed.base import Packed
    from compression.recorder import Recorder
    from compression.structure import Kept


class CompressionError(Exception):
    """Base of all errors that a visitor may cause.

    `code` is stable; `facts` are the numbers and names in the message.
    """

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
    """The model, or a layer of it, can't be written in the format."""

    code = "cannot_export"


class Cancelled(CompressionError):
    code = "cancelled"


@dataclass(frozen=True)
class Note:
    """Something that a reader must know about a result: a stable code and its numbers.

    The page translates it.
    """

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
    only: Mapping[str, Sequence] | None = None,
    because: str = "",
):
    """Declare one parameter. Its widget, flag, check, help text and cache key are generated from this line.

    lo, hi: inclusive bounds. lo = -1 means that -1 stands for the whole (e.g. a whole row); 0 is then not
    allowed. step: values are lo + k * step (counted from 0 when lo is negative). choices: the only values.
    suggest: values that a menu offers; others within the bounds are allowed too. ends: words for the two ends
    of the main knob. main: this is the method's large knob (one per method).

    label: how a run's name shows the value.
      ""        the full name shows it unless it is the default.
      "always"  the full name always shows it, because runs that differ in it are not comparable (groups,
                activations, budget).
      "choice"  the short name shows it too, unless it is the default.
      "title"   the method goes by the choice's name.
      "named"   the page has words for it (evaluation/page/words.py).

    when: other parameter -> value. This parameter has an effect only if each of these parameters has the
    value given here; otherwise it is left out of the cache key. A condition on a parameter that the method
    doesn't have counts as met.

    only: other parameter -> values. This parameter may differ from its default only if each of these
    parameters has one of the values given here. because: the reason, for the error message.
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
    if only:
        meta |= dict(only={name: list(values) for name, values in only.items()}, because=because)
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Params:
    """The base class of every method's parameters: a frozen dataclass whose fields are made by `param`."""

    def __post_init__(self):
        owner, values = type(self).__name__.removesuffix("Params").lower(), self.json()
        for f in dataclasses.fields(self):
            _check(owner, f, values[f.name], self._type(f.name))
        for f in dataclasses.fields(self):
            _check_beside(owner, f, values)

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
        """Build from strings or JSON values, converted to each field's type.

        Raises BadParam for a name that is unknown or a value that can't be converted.
        """
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
        """The declarations as JSON: name, type, default and everything that `param` was given."""
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
        """The parameters that have an effect, because their `when` is met; they go into the cache key."""
        values = self.json()
        return {
            f.name: values[f.name]
            for f in dataclasses.fields(self)
            if all(values.get(k, v) == v for k, v in f.metadata["when"].items())
        }


P = TypeVar("P", bound=Params)
Teacher = Literal["model", "text"]


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


def _check_beside(owner: str, f: dataclasses.Field, values: Mapping[str, Any]) -> None:
    """Whether a value may stand beside the other parameters' values (`only` of `param`)."""
    if values[f.name] == f.default:
        return
    for other, allowed in f.metadata.get("only", {}).items():
        if values[other] not in allowed:
            raise BadParam(
                f"{owner}: {f.name} = {values[f.name]!r} with {other} = {values[other]!r}: "
                f"{f.metadata['because']}. Choose {f.name} = {f.default!r}, or {other} = "
                f"{' or '.join(map(repr, allowed))}.",
                name=f.name,
                got=values[f.name],
                allowed=f.default,
            )


@dataclass(frozen=True)
class Stats:
    """What the driver collected about the inputs X [tokens, in] of one linear.

    The sums are in float32, and padding never counts.
    """

    tokens: int
    gram: Tensor | None = None  # X^T X [in, in], raw sum
    sum_sq: Tensor | None = None  # sum of squares [in]
    mean_abs: Tensor | None = None  # mean |x| [in]
    max_abs: Tensor | None = None  # max |x| [in]
    mean: Tensor | None = None  # mean x [in]
    # the same statistics of the uncompressed model's inputs, for a method of stream "both"
    original: Stats | None = None


# A method's default parameters are its short budget: minutes on a processor, enough to see what the method
# does, not the best that it can do. The full budget has the authors' tokens, step sizes, ranks and lengths,
# as far as they are known and our bounds allow. If the authors trained with data that we can't ship, the same
# number of tokens is taken from the calibration text. Our training steps take 1,024 tokens, so there are more
# and smaller steps than the authors have. Methods that don't train have no full budget. Its tokens end a full
# budget: the limit in minutes is a week.
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
    # role -> (out, in) of the linears in its block, {} if unknown
    block: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Linears of a block that share one input."""

    sites: tuple[Site, ...]
    stats: Stats
    fold: Any = None  # arch.Fold: where a factor on the input's channels can be folded into; None if nowhere
    unfoldable: str = ""  # why there is no such place: "post_norm", "activation", "no_weight"


@dataclass(frozen=True)
class Block:
    """One decoder block as a method of scope "block" sees it. Its groups are in data-flow order."""

    layer: int
    layers: int
    groups: tuple[Group, ...]
    # for methods that train: the inputs.Passage of the uncompressed block, and the recorder; else None
    inputs: Any = None
    recorder: Recorder | None = None

    @property
    def sites(self) -> list[Site]:
        return [site for group in self.groups for site in group.sites]


@dataclass(frozen=True)
class Cost:
    """The cost of compressing one linear, known before it is done."""

    bytes: int  # stored bytes of the result
    flops: float  # of the method itself, without forward passes
    peak_bytes: int = 0  # temporary memory beyond weights and activations


@dataclass(frozen=True)
class Edit:
    """What a method returns. The driver alone applies it."""

    # path -> the format that replaces the linear's weight
    linears: Mapping[str, Packed] = field(default_factory=dict)
    # changed norms, biases (new ones too), "<path>.input_scale"
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    bundle: Bundle | None = None  # a student that takes the model's place
    # layer -> the heads and channels that stay; the others are cut out
    kept: Mapping[int, Kept] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # path -> per-layer figures
    series: Mapping[str, list] = field(default_factory=dict)  # curves, e.g. "training"
    judged: tuple[Judged, ...] = ()  # values of the quantities that the method optimises (judged.py)
    # replaces the token embedding, and a head that shares it unless `head` is given
    table: Packed | None = None
    head: Packed | None = None  # replaces the head's weight
    # name -> content, saved beside the model (texts, task files)
    files: Mapping[str, bytes] = field(default_factory=dict)
    # channels of the residual stream that stay, () if all do; the others are cut out of the whole model
    width: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()  # numbers of the decoder blocks that stay, () for all; the rest is cut out
    cache_bits: int | None = None  # the key-value cache that the model was made for
    # from a method of scope "block": the attention.Int8Attention that rounds in the block's attention
    attention: Any = None


@dataclass(frozen=True)
class Context:
    """What the driver gives a method of the whole model, beside the bundle."""

    # token ids [n, window] to train on or to calibrate on; None if the method reads none
    windows: Tensor | None
    recorder: Recorder
    teacher: Any = None  # as StudentMethod.learns_from says

    @property
    def seed(self) -> int:
        return self.recorder.seed


@dataclass(frozen=True)
class Plan:
    """What a method of single linears found out about the whole model before its first linear."""

    # path of a linear -> the params that it gets in place of the run's
    params: Mapping[str, Any] = field(default_factory=dict)
    edit: Edit = field(default_factory=Edit)  # applied first; it changes nothing that the model computes


@dataclass(frozen=True)
class Planner(Generic[P]):
    """How a method of single linears looks at the whole model first."""

    find: Callable[[Bundle, Context, P], Plan]
    # (params, number of linears, calibration tokens) -> tokens that `find` sends through the whole model
    tokens: Callable[[P, int, int], float]
    # params -> whether there is anything to look for
    wanted: Callable[[P], bool]


Stream = Literal["compressed", "block", "original", "both"]


@dataclass(frozen=True, kw_only=True)
class Method(Generic[P]):
    """What every method declares. The subclasses below say what `compress` is given."""

    name: str  # == file name == command == key in results
    title: str
    family: str  # quantization, pruning, low_rank, distillation, original
    paper: str
    params: type[P]
    compress: Callable[..., Edit]
    cost: Callable[..., Cost]  # (shape [out, in] of one linear, params, calibration tokens)
    # the format in which it stores a linear that no step stored before; "" if linears stay dense
    stores: str = ""
    after: frozenset[str] = frozenset()  # formats of an earlier step that it accepts
    # for a method that keeps the integer codes of an earlier step: the names of its own parameters whose
    # values the earlier step decides, for example "bits"
    inherits: tuple[str, ...] = ()
    shown_first: bool = False  # the page shows it first of its family
    full: Mapping[str, Any] = field(default_factory=dict)  # params of the full budget, see `BUDGET_MINUTES`
    identity: Mapping | None = None  # params with which the method changes nothing
    tiny: Mapping = field(default_factory=dict)  # params with which it takes seconds on a random model
    essay: str = ""  # the file's docstring, which the page shows

    def collects(self, params: P) -> frozenset[str]:
        """The statistics (names in STATS) that it needs with these params."""
        return frozenset()

    def needs_calibration(self, params: P) -> bool:
        """Whether it reads a text."""
        return bool(self.collects(params))

    def cost_of(self, shape: tuple[int, int], params: P, tokens: int, role: str) -> Cost:
        """What compressing one linear [out, in] of a role costs."""
        return self.cost(shape, params, tokens)

    def trains(self, params: P) -> bool:
        """Whether it trains with these params."""
        return False

    def geometry_after(self, geometry: Geometry, params: P) -> Geometry:
        """The sizes that a model has after this method."""
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
            "inherits": list(self.inherits),
            "adds": bool(getattr(self, "adds", None)),
            "trains": isinstance(self, TrainingMethod),
            "idle": list(self.inherits),  # parameters without effect after a step that decides them
        }


@dataclass(frozen=True, kw_only=True)
class LinearMethod(Method[P]):
    """Compresses one linear after another: compress(site, stats, params)."""

    stats: frozenset[str] | Callable[[P], frozenset[str]] = frozenset()  # the statistics that it needs
    # the state of the model that its inputs come from. "compressed": every group before this one is
    # compressed. "block": only the blocks before this one are compressed. "original": nothing is compressed.
    # "both": "block", with the statistics of "original" beside it (Stats.original).
    stream: Stream | Callable[[P], Stream] = "compressed"
    planner: Planner[P] | None = None  # looks at the whole model before the first linear
    # for a method that removes single weights: the share of them that stays
    kept_share: Callable[[P], float] | None = None
    # for a converter: the `cost` of taking over the numbers that an earlier step stored
    converted_cost: Callable[..., Cost] | None = None
    # whether only the calibration text tells how much is stored beside the codes; `cost` then leaves it out,
    # and its bytes are the least possible
    open_ended: Callable[[P], bool] | None = None

    def collects(self, params: P) -> frozenset[str]:
        return self.stats(params) if callable(self.stats) else self.stats

    def reads(self, params: P) -> Stream:
        """Which model its inputs come from with these params."""
        return self.stream(params) if callable(self.stream) else self.stream

    def plans(self, params: P) -> bool:
        """Whether it looks at the whole model first."""
        return self.planner is not None and self.planner.wanted(params)

    def needs_calibration(self, params: P) -> bool:
        return super().needs_calibration(params) or self.plans(params)

    def describe(self) -> dict:
        """The method as JSON. A converter uses none of its parameters after a step whose numbers it keeps."""
        idle = {"idle": [p["name"] for p in self.params.describe()]} if self.converted_cost else {}
        return super().describe() | idle

    @property
    def rounds_what_stays(self) -> bool:
        """Whether it keeps the mask of an earlier pruning step, and rounds only the weights that stayed."""
        return "bitmask" in self.after


@dataclass(frozen=True, kw_only=True)
class BlockMethod(Method[P]):
    """Compresses one decoder block at a time: compress(block, params).

    The block's inputs come from the uncompressed model. Its `cost` also takes the linear's role.
    """

    stats: frozenset[str]  # the statistics (names in STATS) that it needs

    def collects(self, params: P) -> frozenset[str]:
        return self.stats

    def reads(self, params: P) -> Stream:
        """Which model its inputs come from."""
        return "original"

    def cost_of(self, shape: tuple[int, int], params: P, tokens: int, role: str) -> Cost:
        return self.cost(shape, params, tokens, role)


@dataclass(frozen=True, kw_only=True)
class ModelMethod(Method[P]):
    """Changes the model as a whole: compress(bundle, context, params)."""

    # for a method that cuts out heads, channels or blocks: the sizes afterwards
    reshaped: Callable[[Geometry, P], Geometry] | None = None
    reads_windows: bool = False  # whether it needs windows of the calibration text
    # raises what `compress` would raise for windows [n, window] that are too few or too short
    fits: Callable[[P, Tensor], None] | None = None

    def needs_calibration(self, params: P) -> bool:
        return self.reads_windows

    def geometry_after(self, geometry: Geometry, params: P) -> Geometry:
        return self.reshaped(geometry, params) if self.reshaped else geometry


@dataclass(frozen=True, kw_only=True)
class TableMethod(ModelMethod[P]):
    """Stores the token embedding and leaves linears alone."""

    # ((vocabulary, width), params, tied) -> Cost of all that it stores; None if the table stays as it is
    table_cost: Callable[..., Cost | None]


@dataclass(frozen=True, kw_only=True)
class TrainingMethod(ModelMethod[P]):
    """Trains, for `train_tokens` and `train_minutes` of its params, on windows of the calibration text."""

    # params -> tokens of the calibration text that its training takes; 0 if it makes its text itself.
    # None: as many as it trains on
    text_tokens: Callable[[P], int] | None = None
    # whether it compresses too; then a run with `train_tokens` 0 is worth comparing with
    compresses: bool = False
    # params -> (method, params) of the control, which trains in the same way but without what is special to
    # this method. For example, plain fine-tuning is the control of distillation. None: there is no control
    control: Callable[[P], tuple[str, Mapping] | None] | None = None
    # (params, earlier steps) -> whether it stores something on top of what those steps stored
    adds: Callable[[P, tuple], bool] | None = None
    # params -> bits of the key-value cache that the model is trained for
    cache_bits: Callable[[P], int] | None = None

    def trains(self, params: P) -> bool:
        return True

    def reads_tokens(self, params: Any) -> int:
        """How many tokens of the calibration text its training takes with these params."""
        return self.text_tokens(params) if self.text_tokens else params.train_tokens

    def needs_calibration(self, params: P) -> bool:
        return self.text_tokens is None or self.text_tokens(params) > 0


@dataclass(frozen=True, kw_only=True)
class TrainedTableMethod(TableMethod[P], TrainingMethod[P]):
    """Stores the token embedding, and trains what it stored if its params have `train_tokens`."""

    reads: Callable[[P], bool]  # whether it reads a text, to train on or to weigh tokens by

    def trains(self, params: P) -> bool:
        return params.train_tokens > 0  # type: ignore[attr-defined]

    def needs_calibration(self, params: P) -> bool:
        return self.reads(params)


@dataclass(frozen=True, kw_only=True)
class StudentMethod(TrainingMethod[P]):
    """Trains a student that takes the model's place; `compress` gets the student as the bundle.

    The student is another model, or some of this model's layers. The method's `cost` also takes the linear's
    role. Its params name another model by `student`.
    """

    # student(model, context, params) gives an Edit with the student as its bundle, and notes on the student
    student: Callable[[Bundle, Context, P], Edit]
    measures: Callable[[P], bool]  # whether making the student needs windows of a text
    # what the student learns from, or params -> it. "model": this model as a Bundle (white box). "text": a
    # TextTeacher, which answers in strings and shows nothing else (black box).
    teacher: Teacher | Callable[[P], Teacher]
    trains_table: bool = False  # whether it trains the token table; `cost` of the role "table" counts it

    def needs_calibration(self, params: P) -> bool:
        return super().needs_calibration(params) or self.measures(params)

    def learns_from(self, params: P) -> Teacher:
        """What the student learns from with these params."""
        return self.teacher(params) if callable(self.teacher) else self.teacher

    def cost_of(self, shape: tuple[int, int], params: P, tokens: int, role: str) -> Cost:
        return self.cost(shape, params, tokens, role)


def handed_on(params: Params) -> dict:
    """The parameters that a step fixes for a later step which keeps its integer codes, e.g. {"bits": 4, ...}.

    They are all its parameters that have an effect; {} if it rounds nothing.
    """
    values = params.effective()
    return {} if values.get("rounding") is False else values


def canonical(value: Any) -> str:
    """One JSON text for equal values: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
