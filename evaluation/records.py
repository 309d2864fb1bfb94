"""Reads and writes a result as a file: one JSON object that says its version.

A record is checked completely before any other code reads it. So the code that draws the page may rely on
every type, and no number is infinite or NaN. A record of an older version is brought up to date step by step
(`STEPS`). A record of a newer version, or of any other shape, raises OddRecord with the reason in one line.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from compression.base import CompressionError
from compression.judged import Judged
from evaluation import declared
from evaluation.spec import Result, RunSpec, Status

# Version 2 added the version itself, and for a running or waiting run the program that it belongs to. Version
# 3 added the code that gave the result, and its witness. Version 4 added the values of the quantities that
# the method optimises.
VERSION = 4
LARGEST_FILE_BYTES = 64_000_000
LARGEST_NUMBER = 1e18
NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}"  # of a run or an artifact: never a path, never hidden


class OddRecord(ValueError):
    """A record that can't be used; the message says why in one line."""


class NotFinite(CompressionError):
    """A figure of a result is NaN or infinite. Facts: name."""

    code = "figure_not_finite"


Name = Annotated[str, Field(pattern=f"^{NAME}$")]
Number = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]
Short = Annotated[str, Field(max_length=5_000)]
_more = ConfigDict(extra="allow", strict=True)


@with_config(ConfigDict(extra="forbid", strict=True))
class _Note(TypedDict):
    code: Short
    facts: dict[str, Any]


@with_config(ConfigDict(extra="forbid", strict=True))
class _Error(TypedDict, total=False):
    code: Short
    message: str
    facts: dict[str, Any]


@with_config(_more)
class _Machine(TypedDict, total=False):
    processor: Short
    threads: int


@with_config(_more)
class _Limit(TypedDict, total=False):
    share_of_read_bandwidth: Number | None


@with_config(_more)
class _Way(TypedDict):
    time_per_output_token_ms: Annotated[Number, Field(gt=0)]


@with_config(_more)
class _Ways(TypedDict, total=False):
    original: _Way
    original_float32: _Way
    compressed: _Way
    transformers: _Way


class _Timing(_Ways):
    host: _Machine
    kernel: list[Short]
    limit: _Limit
    loop: Short


@with_config(_more)
class _Layer(TypedDict, total=False):
    path: Short
    role: Short
    format: Short


@with_config(ConfigDict(extra="forbid", strict=True))
class _Judged(TypedDict):
    measure: Short
    asked: Short
    before: list[Number]
    after: list[Number]
    control: list[Number]
    clusters: list[int]
    chance: Number | None


class _Record(BaseModel):
    """The shape of a record of this version, except its spec, which RunSpec checks."""

    model_config = ConfigDict(extra="forbid", strict=True)
    version: Literal[4]
    owner: str
    id: Name
    key: Short
    spec: dict[str, Any]
    status: Status
    created: Annotated[float, Field(ge=0, le=2e11)]
    metrics: dict[str, Number]
    timings: list[_Timing]
    notes: list[_Note]
    series: dict[str, list]
    layers: list[_Layer]
    judged: list[_Judged]
    error: _Error
    protocol_id: Short
    environment: _Machine
    fingerprint: dict[str, Any]
    model: dict[str, Any]
    artifact: Name | Literal[""]
    control_key: Short
    code: Short
    witness: dict[str, Any]


_EMPTY = {
    f.name: f.default_factory()
    for f in dataclasses.fields(Result)
    if f.default_factory is not dataclasses.MISSING
}
_EMPTY |= {f.name: f.default for f in dataclasses.fields(Result) if f.default is not dataclasses.MISSING}
_Curve = TypeAdapter(list[tuple[Number, Number | None, Number | None]], config=ConfigDict(strict=False))


def _from_1(values: dict) -> dict:
    """Version 1 to 2.

    Version 1 said neither its version nor which program a run belongs to. Fields that had a default could be
    missing, and it could hold fields that no longer exist. Its first timings had neither a limit nor a loop.
    """
    names = {f.name for f in dataclasses.fields(Result)}
    known = _EMPTY | {"created": 0.0} | {k: v for k, v in values.items() if k in names}
    timings = [{"limit": {}, "loop": "transformers"} | timing for timing in known["timings"]]
    return known | {"version": 2, "owner": "", "timings": timings}


def _from_2(values: dict) -> dict:
    """Version 2 to 3. Version 2 didn't say what code gave a result: it is shown, and never given again."""
    return {"code": "", "witness": {}} | values | {"version": 3}


def _from_3(values: dict) -> dict:
    """Version 3 to 4. Version 3 knew only figures that every model has."""
    return {"judged": []} | values | {"version": 4}


# version -> the function that brings a record of it to the next version
STEPS: dict[int, Callable[[dict], dict]] = {1: _from_1, 2: _from_2, 3: _from_3}


def content(result: Result, owner: str = "") -> bytes:
    """A record's file. Raises NotFinite, with the figure's name, if a figure is NaN or infinite."""
    values = result.json() | {"version": VERSION, "owner": owner}
    for name, x in _numbers(values):
        if not math.isfinite(x):
            raise NotFinite(f"{name} is {x}: the run has no result", name=name)
    return json.dumps(values, allow_nan=False, default=str).encode()


def _numbers(x: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every float in a JSON value: (its path, the number)."""
    if isinstance(x, float):
        yield name, x
    elif isinstance(x, dict | list | tuple):
        for key, y in x.items() if isinstance(x, dict) else enumerate(x):
            yield from _numbers(y, f"{name}.{key}".removeprefix("."))


def parse(data: bytes) -> tuple[Result, str]:
    """(result, the program that it belongs to while it runs) from a record's file. Raises OddRecord."""
    try:
        values = json.loads(data.decode("utf-8"), parse_constant=_refuse, parse_int=_whole, parse_float=_real)
        if not isinstance(values, dict):
            raise OddRecord(f"a record is an object, and this is a {type(values).__name__}")
        # half of a surrogate pair is no character, and breaks every page that shows it
        json.dumps(values, ensure_ascii=False).encode("utf-8")
        values = _brought_up(values)
        _Record.model_validate(values)
        owner = values.pop("owner")
        del values["version"]
        result = Result(**values | {"spec": RunSpec.parse(values["spec"], declared.get)})
        _check(result)
        return result, owner
    except OddRecord:
        raise
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise OddRecord(f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"[:200]) from None
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError, OverflowError) as error:
        raise OddRecord(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from None


def _brought_up(values: dict) -> dict:
    version = values.get("version", 1)
    if type(version) is not int or version < 1:
        raise OddRecord(f"its version is {version!r}"[:100])
    if version > VERSION:
        raise OddRecord(f"it is of version {version}, and this program reads up to {VERSION}")
    for step in range(version, VERSION):
        values = STEPS[step](values)
    return values


def _check(result: Result) -> None:
    """What types alone don't say: figures that the page divides by, and figures that it shows together."""
    m = result.metrics
    for name, x in m.items():
        if x <= 0 and name.endswith(
            ("bytes", "perplexity", "perplexity_ratio", "tokens_per_second", "parameters")
        ):
            raise OddRecord(f"metrics.{name} = {x}")
        if name.startswith("baseline_") and name.removeprefix("baseline_") not in m:
            raise OddRecord(f"metrics has {name} and no {name.removeprefix('baseline_')}")
    parts = [name in m for name in ("kept_weights", "matrix_weights", "dense_matrix_bytes", "matrix_bytes")]
    if any(parts) and not all(parts):
        raise OddRecord("metrics has not all of the matrices' figures")
    measures = [Judged.parse(found).measure for found in result.judged]
    if len(set(measures)) < len(measures):
        raise OddRecord(f"judged twice by one of {measures}")
    for name in ("training", "warm_up"):
        rows = _Curve.validate_python(result.series.get(name, []))
        if rows and all(held_out is None for _, _, held_out in rows):
            raise OddRecord(f"series.{name} has no held-out loss")


def _refuse(word: str) -> None:
    raise OddRecord(f"it holds {word}, which is no number")


def _whole(digits: str) -> int:
    if len(digits) > 19:
        raise OddRecord(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _real(digits: str) -> float:
    x = float(digits)
    if not abs(x) <= LARGEST_NUMBER:
        raise OddRecord(f"it holds the number {digits[:30]}")
    return x
