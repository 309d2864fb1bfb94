"""Parameters: what is refused, in which words, and what ends in the key."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from compression import NAMES, get
from compression.base import BadParam, Params, param


@dataclass(frozen=True)
class Toy(Params):
    bits: int = param(4, "Bits.", lo=2, hi=8, main=True)
    group: int = param(64, "Group.", lo=-1, hi=256, step=16)
    share: float = param(0.5, "Share.", lo=0.0, hi=0.95)
    mode: str = param("a", "Mode.", choices=("a", "b"))
    order: bool = param(True, "Order.", when={"mode": "a"})


@pytest.mark.parametrize(
    "values, words",
    [
        ({"bits": 0}, ("bits", "0", "2 to 8")),
        ({"bits": 17}, ("bits", "17", "2 to 8")),
        ({"bits": 4.0}, ("bits", "4.0", "int")),
        ({"bits": True}, ("bits", "True", "int")),
        ({"bits": "four"}, ("bits", "four", "int")),
        ({"group": 40}, ("group", "40", "steps of 16")),
        ({"group": 0}, ("group", "0", "-1 (the whole row)")),
        ({"share": 1.0}, ("share", "1.0", "0.0 to 0.95")),
        ({"share": float("nan")}, ("share", "nan", "finite")),
        ({"mode": "c"}, ("mode", "c", "a, b")),
        ({"order": "perhaps"}, ("order", "perhaps", "true")),
        ({"colour": 1}, ("colour", "bits, group")),
    ],
)
def test_refusals_name_the_value_and_what_is_allowed(values, words):
    with pytest.raises(BadParam) as error:
        Toy.parse(values)
    for word in words:
        assert word in str(error.value)
    assert error.value.code == "bad_param"


def test_strings_become_the_declared_type():
    toy = Toy.parse({"bits": "3", "group": "-1", "share": "0.25", "order": "false"})
    assert toy == Toy(bits=3, group=-1, share=0.25, order=False)


def test_a_parameter_without_effect_stays_out_of_the_key():
    assert "order" in Toy().effective()
    assert "order" not in Toy(mode="b").effective()


def test_declarations_survive_json():
    assert json.loads(json.dumps(Toy.describe())) == Toy.describe()
    assert Toy.parse(json.loads(json.dumps(Toy(bits=3).json()))) == Toy(bits=3)


def test_unknown_method_suggests_the_nearest():
    with pytest.raises(BadParam, match="Did you mean 'gptq'"):
        get("gptk")


def test_methods_are_imported_by_one_thread_at_a_time(monkeypatch):
    """Two threads that import transformers for the first time at once can see it half made: "cannot import
    name ..."."""
    inside, most = [], []

    def slow(path):
        inside.append(path)
        most.append(len(inside))
        time.sleep(0.02)
        inside.pop()
        return SimpleNamespace(METHOD=path)

    monkeypatch.setattr("importlib.import_module", slow)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(get, ["rtn", "lora", "wanda"])) == [NAMES["rtn"], NAMES["lora"], NAMES["wanda"]]
    assert most == [1, 1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_file_names(name):
    method = get(name)
    assert method.name == name == NAMES[name].rpartition(".")[2]
    assert method.title and method.paper is not None and len(method.essay) > 100
    assert json.loads(json.dumps(method.describe())) == method.describe()
    one_size = name in ("none", "nf4", "llm_int8")  # no knob from small to large: their bits are fixed
    assert sum(f["main"] for f in method.params.describe()) == (0 if one_size else 1)
