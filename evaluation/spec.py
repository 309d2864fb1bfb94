"""The request of a run (RunSpec), its result (Result), and the key under which the result is found again."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from typing import Any, Literal

import compression
from compression.base import (
    BadParam,
    Method,
    ModelMethod,
    StudentMethod,
    TableMethod,
    TrainingMethod,
    canonical,
    handed_on,
)
from evaluation import declared
from evaluation.program import code as program_code

METRICS_VERSION = 1  # 1: the first definition of every metric

PRESETS: dict[str, dict[str, Any]] = {  # tokens for calibration and evaluation; None: the whole text
    "quick": {"calibration_tokens": 8_192, "tokens": 8_192, "window": 512, "table_bits": 16},
    "standard": {"calibration_tokens": 32_768, "tokens": 32_768, "window": 512, "table_bits": 16},
    "paper": {"calibration_tokens": 128 * 2_048, "tokens": None, "window": 2_048, "table_bits": 16},
}
# the named texts of compression/texts.py
TEXTS = BUILTIN_TEXT, WIKITEXT, UNICODE_TEXT = "builtin", "wikitext-2", "unicode"
# what a method may read: also conversations, through the model's chat template
CALIBRATIONS = (*TEXTS, "dialogue")
# how the page measures a new run unless told otherwise, and how the shipped results were measured
FIRST: dict[str, Any] = {
    **PRESETS["standard"],
    "preset": "standard",
    "text": WIKITEXT,
    "calibration": WIKITEXT,
    "protocol": "raw",
}
# the same where the hub can't be reached and has never been
OFFLINE: dict[str, Any] = {
    **PRESETS["quick"],
    "preset": "quick",
    "text": BUILTIN_TEXT,
    "calibration": BUILTIN_TEXT,
    "protocol": "raw",
}
TEXT_CHOICES = f"{', '.join(TEXTS)} or a file"
CALIBRATION_CHOICES = (
    f"{', '.join(CALIBRATIONS)} (for models with a chat template), a text file, or "
    "conversations in a .jsonl file"
)

LONGEST_NAME = 4_096  # of a model, a text or a file
LARGEST = 2**32 - 1  # seed or count of tokens

Status = Literal["ok", "failed", "oom", "cancelled", "interrupted", "running", "queued"]


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides a run's numbers, except timings."""

    model: str
    # (method, params) in order; (("none", {}),) leaves the weights as they are
    recipe: tuple[tuple[str, dict], ...]
    calibration: str = BUILTIN_TEXT
    calibration_tokens: int = 8_192
    text: str = BUILTIN_TEXT
    protocol: Literal["paper", "raw"] = "raw"
    window: int = 512
    tokens: int | None = 8_192  # None: the whole text
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    activations: Literal["exact", "int8"] = "exact"
    table_bits: Literal[16, 8, 4] = 8
    cache_bits: Literal[16, 8, 4, 2] = 16  # of the key-value cache; 16: what the model computes in
    # which keys share a scale (compression/kv_cache.py)
    cache_keys: Literal["token", "channel"] = "token"
    preset: str = "quick"  # where the defaults came from; no part of the key
    # gives a method by its name, in place of compression.get: a stored run is read without importing its
    # methods (declared.get)
    look: InitVar[Callable[[str], Any] | None] = None

    def __post_init__(self, look: Callable[[str], Any] | None):
        steps = tuple((name, dict(values)) for name, values in self.recipe)
        if not steps:
            raise BadParam("the recipe is empty; give at least one method", name="recipe")
        parsed = []
        before: dict[str, Any] = {}
        for name, values in steps:
            method = (look or compression.get)(name)
            values = values | {k: before[k] for k in method.inherits if k in before}
            params = method.params.parse(values)
            before = handed_on(params)
            parsed.append((name, params.json()))
        object.__setattr__(self, "recipe", tuple(parsed))
        for name in ("model", "calibration", "text"):
            _check_name(name, getattr(self, name))
        for name, allowed in _ALLOWED.items():
            if type(getattr(self, name)) is not type(allowed[0]) or getattr(self, name) not in allowed:
                raise BadParam(
                    f"{name} = {getattr(self, name)!r}; allowed: {', '.join(map(str, allowed))}",
                    name=name,
                    got=getattr(self, name),
                    allowed=", ".join(map(str, allowed)),
                )
        for name, low in (("calibration_tokens", 1), ("window", 2), ("tokens", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is None and name == "tokens":
                continue
            if type(value) is not int or not low <= value <= LARGEST:
                raise BadParam(
                    f"{name} = {value!r}; allowed: a whole number, {low} to {LARGEST}",
                    name=name,
                    got=value,
                    allowed=f"{low} to {LARGEST}",
                )
        if self.tokens is not None and self.tokens < self.window:
            raise BadParam(
                f"tokens = {self.tokens} is less than one window of {self.window}; "
                f"give at least {self.window} tokens or a shorter window",
                name="tokens",
                got=self.tokens,
                allowed=f">= {self.window}",
            )
        if self.cache_bits == 2 and self.cache_keys != "channel":
            raise BadParam(
                "cache_bits = 2 with cache_keys = 'token'; 2 bits hold keys only with a scale for each "
                "channel: give cache_keys = channel, or 4 bits",
                name="cache_bits",
                got=2,
                allowed="16, 8, 4",
            )
        if self.cache_bits == 16:
            object.__setattr__(self, "cache_keys", "token")
        if self.keeps_weights:  # then also those of the tables, and what multiplies them
            object.__setattr__(self, "table_bits", 16)
            object.__setattr__(self, "activations", "exact")

    @functools.cached_property
    def methods(self) -> tuple:
        """[(Method, Params), ...] in order."""
        return tuple((compression.get(n), compression.get(n).params.parse(v)) for n, v in self.recipe)

    @property
    def trainings(self) -> list[tuple[TrainingMethod, Any]]:
        """The steps that train; a recipe without any imports no method."""
        if not any(declared.get(name).trains for name, _ in self.recipe):
            return []
        return [(m, p) for m, p in self.methods if isinstance(m, TrainingMethod) and m.trains(p)]

    @property
    def keeps_weights(self) -> bool:
        return all(name == "none" for name, _ in self.recipe)

    @property
    def is_original(self) -> bool:
        """Whether nothing is done to the model, neither to its weights nor to its cache."""
        return self.keeps_weights and self.cache_bits == 16

    @property
    def stored_cache_bits(self) -> int:
        """Bits of the compressed model's key-value cache: the run's own, or those a method trains for."""
        trained = [m.cache_bits(p) for m, p in self.trainings if m.cache_bits]
        return self.cache_bits if self.cache_bits < 16 else (trained or [16])[-1]

    @property
    def needs_calibration(self) -> bool:
        return any(m.needs_calibration(p) for m, p in self.methods)

    @property
    def students(self) -> tuple[str, ...]:
        """The other models that the recipe trains in place of this one."""
        return tuple(p.student for m, p in self.methods if isinstance(m, StudentMethod) and p.student)

    @property
    def reshapes(self) -> bool:
        """Whether a step may change the model's sizes."""
        return any(isinstance(m, ModelMethod) and m.reshaped for m, _ in self.methods)

    @property
    def compresses_tables(self) -> bool:
        """Whether the embedding or the head may be stored in another format than 16 bits."""
        return self.table_bits < 16 or any(isinstance(m, TableMethod) for m, _ in self.methods)

    @property
    def training_tokens(self) -> int:
        """Tokens of text that the recipe's training takes, held-out tokens included; 0 without training."""
        taken = max((m.reads_tokens(p) for m, p in self.trainings), default=0)
        return taken + max(self.window * 4, taken // 7) if taken else 0

    def control(self) -> RunSpec | None:
        """The control: the same training of a model that lost nothing; None if that is the same run.

        It has the recipe's training steps with their method off, or alone, and without the steps whose
        integers they would keep.
        """
        if not self.trainings:
            return None
        if any(m.control for m, _ in self.trainings):
            after = (*self.methods[1:], (None, None))
            swapped = tuple(
                (_has_control(m) and m.control(p)) or step
                for step, (m, p), (then, _) in zip(self.recipe, self.methods, after, strict=True)
                if not (_has_control(then) and then.inherits and handed_on(p).keys() >= set(then.inherits))
            )
            found = dataclasses.replace(self, recipe=swapped)
            return None if found.recipe == self.recipe else found
        return self._part(trains=True)

    def without_training(self) -> RunSpec | None:
        """The recipe without its training; None if nothing trains, or if nothing else is done."""
        if not self.trainings:
            return None
        if any(m.compresses for m, _ in self.trainings):
            swapped = tuple(
                (m.name, p.json() | ({"train_tokens": 0} if _both(m) else {})) for m, p in self.methods
            )
            found = dataclasses.replace(self, recipe=swapped)
            return None if found.recipe == self.recipe else found
        return self._part(trains=False)

    def _part(self, trains: bool) -> RunSpec | None:
        steps = tuple(
            step for step, (m, p) in zip(self.recipe, self.methods, strict=True) if m.trains(p) is trains
        )
        return dataclasses.replace(self, recipe=steps) if 0 < len(steps) < len(self.recipe) else None

    def original(self) -> RunSpec:
        """The run that measures the uncompressed model in this run's protocol.

        Its seed doesn't matter: it only draws calibration windows.
        """
        return dataclasses.replace(self, recipe=(("none", {}),), cache_bits=16, cache_keys="token", seed=0)

    def json(self) -> dict:
        return dataclasses.asdict(self) | {"recipe": [[n, v] for n, v in self.recipe]}

    @classmethod
    def parse(cls, values: dict, look: Callable[[str], Any] | None = None) -> RunSpec:
        """The run that `json` describes."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := set(values) - known:
            raise BadParam(f"unknown run field {sorted(unknown)}; allowed: {', '.join(sorted(known))}")
        return cls(**values | {"recipe": tuple((n, v) for n, v in values["recipe"])}, look=look)

    def identity(self) -> str:
        """Hash of what the visitor asked, known before model and texts are read.

        Two equal requests share one run by it.
        """
        return self._identity

    @functools.cached_property
    def _identity(self) -> str:
        return _digest(self._essence())

    def question(self, fingerprint: dict) -> str:
        """Hash of the run with the content of what it reads.

        Two runs with the same hash ask for the same numbers. fingerprint: {"model": hash of the weights,
        "text": hash, "calibration": hash or "", "dtype": compute dtype, ...}.
        """
        named = {"model", "text", "calibration"}  # not the path of a file but its content matters
        essence = {k: v for k, v in self._essence().items() if k not in named}
        return _digest(essence | {"fingerprint": fingerprint, "metrics": METRICS_VERSION})

    def key(self, fingerprint: dict) -> str:
        """Hash of the question and of the code that answers it: the name of the answer's artifact."""
        return _digest([self.question(fingerprint), program_code()])

    def _essence(self) -> dict:
        fields = self.json()
        for ignored in (
            "preset",
            "device",
            *(["cache_bits"] if self.cache_bits == 16 else []),
            *(["cache_keys"] if self.cache_keys == "token" else []),
        ):
            del fields[ignored]
        fields["recipe"] = [[m.name, p.effective()] for m, p in self.methods]
        if not self.needs_calibration:
            del fields["calibration"], fields["calibration_tokens"]
        return fields


def _has_control(method: Method | None) -> bool:
    return isinstance(method, TrainingMethod) and method.control is not None


def _both(method: Method) -> bool:
    """Whether a method both trains and compresses."""
    return isinstance(method, TrainingMethod) and method.compresses


def _check_name(name: str, value: Any) -> None:
    """Raises BadParam for a value that can't be the name of a model, a text or a file."""
    try:
        if (
            isinstance(value, str)
            and len(value) <= LONGEST_NAME
            and "\0" not in value
            and value.encode("utf-8") is not None
        ):
            return
    except UnicodeEncodeError:
        pass  # half of a surrogate pair, or a file's name in another encoding
    raise BadParam(
        f"{name} = {value!r:.100}; allowed: whole characters, at most {LONGEST_NAME}",
        name=name,
        got=f"{value!r:.100}",
        allowed=f"whole characters, at most {LONGEST_NAME}",
    )


_ALLOWED = {
    "protocol": ("paper", "raw"),
    "device": ("auto", "cpu", "cuda"),
    "activations": ("exact", "int8"),
    "table_bits": (16, 8, 4),
    "cache_bits": (16, 8, 4, 2),
    "cache_keys": ("token", "channel"),
    "preset": tuple(PRESETS),
}


@dataclass(frozen=True)
class Result:
    """What a run gave. A missing metric is absent, never a number."""

    key: str
    spec: RunSpec
    status: Status
    metrics: dict[str, float] = field(default_factory=dict)
    timings: list[dict] = field(default_factory=list)  # one per (processor, threads, kernel, versions)
    notes: list[dict] = field(default_factory=list)  # {"code", "facts"}
    series: dict[str, list] = field(default_factory=dict)  # curves
    layers: list[dict] = field(default_factory=list)  # per-layer figures
    # values of the quantities that its method optimises, a dict for each (compression.judged.Judged as JSON)
    judged: list[dict] = field(default_factory=list)
    error: dict = field(default_factory=dict)  # {"code", "message", "facts"} of a run that isn't ok
    protocol_id: str = ""  # results of two protocols are never compared on one axis
    environment: dict = field(default_factory=dict)
    fingerprint: dict = field(default_factory=dict)
    model: dict = field(default_factory=dict)  # Bundle.source, for the card
    artifact: str = ""  # the name of its folder under the store's artifacts; "" if there is none
    control_key: str = ""
    code: str = ""  # the program that gave it (program.code)
    # numbers that tell whether later code still gives this result (evaluation/running/witness.py)
    witness: dict = field(default_factory=dict)
    id: str = ""  # the run's id, given by the runner (a key may have failed runs before its ok one)
    created: float = field(default_factory=time.time)

    def json(self) -> dict:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"spec": self.spec.json()}

    @classmethod
    def parse(cls, values: dict) -> Result:
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(
            **{k: v for k, v in values.items() if k in known} | {"spec": RunSpec.parse(values["spec"])}
        )


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:20]
