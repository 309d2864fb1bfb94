"""What is read of a stored run without importing its methods is what the methods themselves say."""

from __future__ import annotations

import dataclasses
import json

import pytest

import compression
from compression import NAMES
from compression.base import BadParam, handed_on
from evaluation import declared
from evaluation.spec import RunSpec
from tests.compression import template_method


def outcome(params, values: dict):
    """The parameters as JSON, or what is wrong with them."""
    try:
        found = params.parse(values)
    except BadParam as error:
        return str(error).partition(": ")[2] or str(error), error.facts
    return found.json(), found.effective(), handed_on(found)


def odd_values(about: dict) -> list:
    """Values of a parameter inside its bounds, at them and beyond them, and of other types."""
    bounds = [v for v in (about["lo"], about["hi"]) if v is not None]
    beyond = [v + step for v in bounds for step in (-1, 0, 1)]
    return [
        *beyond,
        *(about["choices"] or ()),
        not about["default"],
        about["default"],
        "x",
        "true",
        3,
        0.3,
        None,
    ]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_taken_and_refused_alike(name):
    method, light = compression.get(name), declared.get(name)
    assert (light.name, light.family, light.inherits) == (name, method.family, method.inherits)
    assert light.adds == bool(getattr(method, "adds", None))
    known = [method.params.parse(dict(values)) for values in ({}, method.tiny, method.full)]
    assert light.trains == any(map(method.trains, known))
    assert light.params.describe() == method.params.describe()
    cases = [{}, dict(method.tiny), dict(method.full), dict(method.identity or {}), {"nosuch": 1}]
    cases += [{p["name"]: v} for p in method.params.describe() for v in odd_values(p)]
    for values in cases:
        assert outcome(light.params, values) == outcome(method.params, values), values


@pytest.mark.parametrize(
    "values",
    [{"pattern": "2:4", "allocation": "owl"}, {"permute": True}, {"pattern": "2:4", "permute": True}],
)
@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
def test_what_two_parameters_forbid_together_is_refused_alike(name, values):
    light, method = declared.get(name), compression.get(name)
    assert outcome(light.params, values) == outcome(method.params, values)
    assert (len(outcome(light.params, values)) == 2) == (
        values.get("pattern") != "2:4" or "allocation" in values
    )


def test_a_stored_recipe_is_the_same_run():
    """Defaults are filled in, and what an earlier step decides is handed on, whoever declares the methods."""
    recipes = (
        (("gptq", {"bits": 3}), ("peqa", {})),
        (("rtn", {"bits": 4}), ("lut_gemm", {})),
        (("wanda", {"pattern": "2:4"}), ("gptq", {}), ("lora", {"merge": False})),
    )
    for recipe in recipes:
        whole = RunSpec("m", recipe)
        read = RunSpec.parse(json.loads(json.dumps(whole.json())), declared.get)
        assert read == whole and read.identity() == whole.identity() and read.methods == whole.methods
        assert RunSpec("m", recipe, look=declared.get) == whole
        assert dataclasses.replace(read, seed=1) == dataclasses.replace(whole, seed=1)


def test_a_method_that_is_not_listed_yet_is_imported_and_an_unknown_one_refused(monkeypatch):
    monkeypatch.setitem(compression.NAMES, "even", template_method.__name__)
    assert declared.get("even").params.describe() == template_method.METHOD.params.describe()
    with pytest.raises(BadParam, match="unknown method 'gptqq'.*Did you mean 'gptq'"):
        declared.get("gptqq")
