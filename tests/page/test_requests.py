"""Every question of the page, asked wrongly: the answer is words, never an exception."""

from __future__ import annotations

import json
import typing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compression.base import CompressionError
from compression.catalogue import OFFLINE_MODEL
from evaluation.page.classes import _Class, _hash
from evaluation.page.questions import Page
from evaluation.page.requests import QUESTIONS, Begin, Choices, Converse, spec_of, take
from evaluation.page.words import Words
from evaluation.running import estimate
from evaluation.store import SHIPPED, Store
from tests.page.stage import Script, Talk, store_run
from tests.soak import fuzz

TOKEN = "a" * 48
CHOICES = {"model": OFFLINE_MODEL, "recipe": [["gptq", {"bits": 4}]]}
CLASS = "AAAAAA"
RIGHT = {  # a right request to each question
    "front": {
        "lang": "zh-Hant",
        "model": OFFLINE_MODEL,
        "x": "file_bytes",
        "y": "perplexity",
        "settings": {"window": 512},
        "budget": 1e8,
        "selected": "mine",
    },
    "zoomed": {"model": OFFLINE_MODEL},
    "card": {"id": "mine"},
    "runs": {},
    "record": {"id": "mine"},
    "add": {"text": (SHIPPED / "gates-none.json").read_text("utf-8")},
    "delete": {"id": "spare"},
    "name": {"id": "mine", "visitor": TOKEN, "title": "My best", "note": "kept for the lecture"},
    "export_all": {},
    "essay": {"method": "gptq"},
    "plan": {"model": OFFLINE_MODEL, "memory_bytes": 8e9, "context": 4096},
    "weigh": {"choices": CHOICES},
    "begin": {"visitor": TOKEN, "choices": CHOICES, "again": True},
    "poll": {"id": "run-1", "visitor": TOKEN},
    "stop": {"id": "run-1"},
    "enough": {"id": "run-1"},
    "pack": {"id": "mine"},
    "sides": {"id": "mine"},
    "recorded": {"id": "mine", "prompt": "sum"},
    "converse": {
        "visitor": TOKEN,
        "id": "mine",
        "turn": 1,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 8,
        "temperature": 0,
    },
    "stop_chat": {"visitor": TOKEN},
    "class_open": {},
    "class_look": {"code": CLASS, "lesson": "rounding", "key": "key", "member": TOKEN},
    "class_guess": {"code": CLASS, "member": TOKEN, "lesson": "rounding", "guess": [2, 0, 1]},
    "class_lead": {"code": CLASS, "key": "key", "lesson": "rounding", "show": True, "close": False},
    "class_code": {"link": "http://localhost:7860/learn/?class=AAAAAA"},
}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=30),
    st.sampled_from(
        [
            10**400,
            -(10**30),
            float("nan"),
            float("inf"),
            "x" * 5000,
            "\ud800",
            "a\x00b",
            "../../etc",
            "__class__",
            [],
            {},
            {"a": {}},
            {3: 4},
            [[[[[[]]]]]],
            "/etc/passwd",
            "~",
            b"bytes",
            "",
            "\u202e",
            "mine",
            "run-1",
        ]
    ),
)
JSON = st.recursive(
    ODD, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3), max_leaves=6
)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("home"))
    page = Page(store, Script(store), Talk(), estimate.estimate, estimate.path)
    page.server = typing.cast(typing.Any, type("S", (), {"store": store}))
    for name in ("mine", "spare"):
        store_run(page.server, id=name, key=name)
    page.classes._classes[CLASS] = _Class(_hash("key"), float("inf"))
    return page


def asked(page, question, ask) -> dict:
    """The answer, which a browser must be able to read."""
    if question == "converse":
        *_, answer = page.converse(ask)
        assert answer["done"]
    else:
        answer = page.answer(question, ask)
    json.dumps(answer)
    return answer


def _put(ask: dict, path: tuple, value):
    """A copy of `ask` with `value` at `path`."""
    if not path:
        return value
    copy = dict(ask) if isinstance(ask, dict) else list(ask)
    copy[path[0]] = _put(copy[path[0]], path[1:], value)
    return copy


def places(ask, here=()):
    """Paths to everything in a request."""
    inner = ask.items() if isinstance(ask, dict) else enumerate(ask) if isinstance(ask, list) else ()
    return [here, *(p for key, x in inner for p in places(x, (*here, key)))]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_right_request_is_answered(page, question):
    answer = asked(page, question, RIGHT[question])
    assert not answer.get("error") or question == "poll", answer


@pytest.mark.parametrize("question", QUESTIONS)
def test_any_request_at_all_is_answered_in_words(page, question, pytestconfig):
    """A dozen for each question, forty in `make test-all`."""
    around = places(RIGHT[question])

    @settings(
        max_examples=40 if pytestconfig.getoption("--all") else 12,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(st.data())
    def ask(data):
        where = data.draw(st.sampled_from(around))
        wrong = _put(RIGHT[question], where, data.draw(JSON))
        if data.draw(st.booleans()) and isinstance(wrong, dict):
            wrong = wrong | data.draw(
                st.dictionaries(
                    st.sampled_from(["lang", "extra", "address", "visitor", "id", "_address"]),
                    JSON,
                    max_size=2,
                )
            )
        answer = asked(page, question, wrong)
        try:
            take(question, wrong)
        except CompressionError:
            assert 'class="error"' in answer["error"] and "Traceback" not in answer["error"]
        assert "went wrong" not in answer.get("error", ""), answer

    ask()


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(
    "wrong", [None, 3, "x", [], [{}], {"lang": []}, {"unknown": 1}, {"lang": "de"}], ids=str
)
def test_what_is_no_request_is_refused(page, question, wrong):
    answer = asked(page, question, wrong)
    assert answer["error"] and QUESTIONS[question].empty.keys() <= answer.keys()


@pytest.mark.parametrize(
    "question, where, value, code",
    [
        ("weigh", ("choices", "recipe"), CHOICES["recipe"] * 7, "bad_length"),
        ("weigh", ("choices", "recipe"), [], "bad_length"),
        ("weigh", ("choices", "model"), "x" * 5000, "bad_length"),
        ("weigh", ("choices", "recipe", 0, 1, "bits"), 2**53, "bad_request"),
        ("weigh", ("choices", "recipe", 0, 1), {f"p{i}": 1 for i in range(65)}, "bad_length"),
        ("converse", ("max_tokens",), 513, "bad_param"),
        ("converse", ("temperature",), 2.5, "bad_param"),
        ("converse", ("messages",), [{"role": "user", "content": "x" * 9000}] * 2, "bad_length"),
        ("converse", ("messages",), [{"role": "user", "content": "x"}] * 33, "bad_length"),
        ("converse", ("messages", 0, "role"), "tool", "bad_request"),
        ("begin", ("visitor",), "ann", "bad_request"),
        ("begin", ("visitor",), None, "bad_request"),
        ("poll", ("visitor",), "a b" * 8, "bad_request"),
    ],
)
def test_limits_have_words(page, question, where, value, code):
    with pytest.raises(CompressionError) as error:
        take(question, _put(RIGHT[question], where, value))
    assert (
        error.value.code == code
        and "?" not in Words("en").error({"code": code, "facts": error.value.facts})["what"]
    )


@pytest.mark.parametrize(
    "chain, said",
    [
        ([["wanda", {"sparsity": 0.5}], ["gptq", {"bits": 3}]], "smaller"),
        ([["gptq", {"bits": 2}], ["lut_gemm", {}]], "larger"),
        ([["gptq", {"bits": 3}]], ""),
    ],
)
def test_the_last_of_several_steps_says_what_it_changes(page, chain, said):
    told = asked(page, "weigh", {"choices": CHOICES | {"recipe": chain}})["second"]
    if not said:
        assert told == ""
        return
    sizes = [
        estimate.estimate(spec_of(Choices(**CHOICES | {"recipe": steps}), False))
        for steps in (chain[:1], chain)
    ]
    before, after = (Words("en").size(found.file_bytes) for found in sizes)
    assert said in told and f"{before} → {after}" in told


def test_a_token_is_kept_as_its_hash_alone(page):
    ask = take("begin", RIGHT["begin"], "192.0.2.1")
    assert ask.owner and TOKEN not in ask.owner and ask.address == "192.0.2.1"
    assert take("poll", {"id": "a"}).owner == take("poll", {"id": "a", "visitor": None}).owner == ""
    assert {Begin, Converse} == {
        q.schema
        for q in QUESTIONS.values()
        if "visitor" in q.schema.model_fields and q.schema.model_fields["visitor"].is_required()
    }
    page.runner.submitted.clear()
    asked(page, "begin", RIGHT["begin"])
    assert TOKEN not in json.dumps([r.json() for r in page.store.own()])


def test_a_public_page_reads_no_folder_of_the_server(page, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    public = Page(page.store, page.runner, page.chat, estimate.estimate, estimate.path, public=True)
    for question in ("weigh", "begin"):
        for where, value in (
            (("choices", "model"), str(tmp_path)),
            (("choices", "recipe"), [["gkd", {"student": str(tmp_path)}]]),
        ):
            assert "public page" in asked(public, question, _put(RIGHT[question], where, value))["error"]
        for text in ("text", "calibration"):
            ask = _put(RIGHT[question], ("choices",), CHOICES | {text: "secret"})
            assert "public page" in asked(public, question, ask)["error"]


def test_the_soak_knows_every_question():
    """All but the chat's, which streams and has a part of its own (tests/soak/chat.py)."""
    known = fuzz.questions({"model": "m"}, ["mine", "nosuch"], TOKEN, [])
    asked = {name if name.startswith("class_") else f"ask_{name}" for name in QUESTIONS}
    assert set(known) == asked - {"ask_converse"}
