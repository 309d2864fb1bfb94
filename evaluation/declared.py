"""What each method declares, read from assets/methods.json: no method is imported, and no torch.

The page reads stored runs before anything is computed, and an import of torch takes it seconds. `make docs`
writes the file from the methods themselves, and a test holds the two equal. A method that isn't in the file
yet is imported.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from typing import Any

import compression
from compression.base import Params, param
from evaluation import ROOT

FILE = ROOT / "assets" / "methods.json"
TYPES: dict[str, type] = {kind.__name__: kind for kind in (int, float, bool, str)}


@dataclass(frozen=True)
class Declared:
    """A method as far as a stored recipe needs it; the fields are those of compression.base.Method."""

    name: str
    family: str
    adds: bool  # whether it stores something on top of what the steps before it stored
    inherits: tuple[str, ...]
    trains: bool  # whether it trains, at least with some params
    params: type[Params]


@functools.cache
def methods() -> dict[str, dict]:
    """Every method's description (Method.describe) by name."""
    return {m["name"]: m for m in json.loads(FILE.read_text("utf-8"))}


def get(name: str) -> Declared:
    """What the method of that name declares. Raises BadParam with the nearest names if there is none."""
    return _listed(name) if name in methods() else _declared(compression.get(name).describe())


@functools.cache
def _listed(name: str) -> Declared:
    return _declared(methods()[name])


def _declared(description: dict[str, Any]) -> Declared:
    name, fields = description["name"], []
    for about in description["params"]:
        known = {k: v for k, v in about.items() if k not in ("name", "type")}
        for key in ("choices", "suggest", "ends"):
            known[key] = known[key] and tuple(known[key])
        fields.append((about["name"], TYPES[about["type"]], param(**known)))
    params = dataclasses.make_dataclass(f"{name}Params", fields, bases=(Params,), frozen=True)
    adds, inherits, trains = description["adds"], tuple(description["inherits"]), description["trains"]
    return Declared(name, description["family"], adds, inherits, trains, params)
