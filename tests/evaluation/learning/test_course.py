"""Every lesson of Learn: its data is what the maker makes today, bears out the lesson's claim and is small; its
words exist in each language and every fact in them comes from somewhere."""

from __future__ import annotations

import json
import re

import pytest

from evaluation.learning import course
from evaluation.learning.lesson import DATA, ClaimGone, drawn
from evaluation.learning.lessons import NAMES
from evaluation.learning.survey import SYSTEMS
from evaluation.page import words

LESSONS = course.lessons()
LARGEST_BYTES = 30_000
WIDE = 10**5  # a lesson's data keeps five digits, so that a whole number from here on may be a rounded one
EVERYWHERE = {"title", "idea", "lead", "why", "source"}  # words that a lesson's page and the contents need
CALL = re.compile(r"(?<![\w.$])t\(")
LITERAL = re.compile(r"'([^']*)'|`([^`]*)`")


def folder(name):
    return DATA / "lessons" / name


def stored(name):
    return json.loads((folder(name) / "data.json").read_text("utf-8"))


def spoken(name):
    """{language: words} of a lesson."""
    return {
        language: json.loads((folder(name) / f"{language}.json").read_text("utf-8"))
        for language in words.LANGUAGES
    }


# --- data ---


def differences(old, new, place="data", largest=0.0):
    """Where two data differ by more than another processor's rounding: a line each.

    Whole numbers must be equal. Others may differ by 2e-3 of their size, or 1e-4 of the largest beside them.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        if old.keys() != new.keys():
            return [f"{place}: keys {sorted(old.keys() ^ new.keys())}"]
        return [line for key in old for line in differences(old[key], new[key], f"{place}.{key}")]
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return [f"{place}: {len(old)} values are {len(new)} now"]
        largest = max((abs(v) for v in old if _number(v)), default=0.0)
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{place}[{i}]", largest)]
    if _number(old) and _number(new):
        whole = isinstance(old, int) and isinstance(new, int) and max(abs(old), abs(new)) < WIDE
        room = 0 if whole else max(2e-3 * abs(old), 1e-4 * largest)
        return [] if abs(old - new) <= room else [f"{place}: {old} is {new} now"]
    return [] if old == new else [f"{place}: {old!r} is {new!r} now"]


def _number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.parametrize(
    "old, new, same",
    [
        ({"a": 1.0}, {"a": 1.0019}, True),
        ({"a": 1.0}, {"a": 1.003}, False),
        ({"a": 7}, {"a": 8}, False),
        ({"a": 5_000_000}, {"a": 5_000_100}, True),
        ([1.0, 1e-6], [1.0, 9e-5], True),
        ([1.0, 0.1], [1.0, 0.11], False),
        ([1, 2], [1, 3], False),
        ([1], [1, 2], False),
        ({"a": 1}, {"b": 1}, False),
        ({"a": "x"}, {"a": "y"}, False),
        ({"a": [True]}, {"a": [False]}, False),
    ],
)
def test_what_counts_as_different(old, new, same):
    assert (differences(old, new) == []) is same


@pytest.fixture(scope="module")
def real():
    return course.Real()


@pytest.mark.model
@pytest.mark.parametrize("name", NAMES)
def test_data_is_what_the_maker_makes_today(name, real, offline_model):
    assert differences(stored(name), course.made(LESSONS[name], real)) == []


@pytest.mark.parametrize("name", NAMES)
def test_stored_data_bears_out_the_claim(name):
    for one in drawn(stored(name)):  # whatever the seed
        LESSONS[name].check(one)


def test_what_a_seed_may_show():
    """A draw takes the place of the data, fact by fact."""
    data = {"facts": {"row": 1, "n": 2}, "w": [1], "rest": 0, "draws": [{"w": [5]}, {"facts": {"row": 3}}]}
    first = {"facts": {"row": 1, "n": 2}, "w": [1], "rest": 0}
    assert drawn(data) == [first, first | {"w": [5]}, first | {"facts": {"row": 3, "n": 2}}]
    assert drawn(first) == [first]


def flat(value):
    """Data in which every number with a fraction is 1: nothing is larger than anything else, all is equal."""
    if isinstance(value, dict):
        return {key: flat(v) for key, v in value.items()}
    if isinstance(value, list):
        return [flat(v) for v in value]
    return 1.0 if isinstance(value, float) else value


def uneven(data):
    """Data in which no fact has kept its ratio to another."""
    pairs = enumerate(data["facts"].items(), 2)
    return data | {"facts": {key: v * i if isinstance(v, float) else v for i, (key, v) in pairs}}


def gone(name, data):
    try:
        LESSONS[name].check(data)
    except ClaimGone:
        return True
    return False


@pytest.mark.parametrize("name", NAMES)
def test_a_claim_can_fail(name):
    assert gone(name, flat(stored(name))) or gone(name, uneven(stored(name)))


@pytest.mark.parametrize("name", NAMES)
def test_data_is_small(name):
    assert (folder(name) / "data.json").stat().st_size <= LARGEST_BYTES


# --- the survey ---


def test_the_map_is_that_of_todays_lessons_and_results(real):
    assert differences(json.loads((DATA / "map.json").read_text("utf-8")), course.survey_map(real)) == []


def test_every_system_has_one_lesson():
    placed = [system for lesson in LESSONS.values() for system in lesson.systems]
    assert len(placed) == len(set(placed))
    assert set(placed) == set(SYSTEMS)


# --- words ---


def facts(sentence):
    return set(re.findall(r"\{(\w+)\}", sentence))


@pytest.mark.parametrize("name", NAMES)
def test_both_languages_say_the_same(name):
    first, *others = spoken(name).values()
    for other in others:
        assert other.keys() == first.keys()
        assert {k: facts(v) for k, v in other.items()} == {k: facts(v) for k, v in first.items()}


@pytest.mark.parametrize("name", NAMES)
def test_no_word_is_missing_or_idle(name):
    data, own = stored(name), spoken(name)["en"]
    asked = data.get("question") or {}
    needed = EVERYWHERE | {f"try.{i}" for i in range(len(data.get("tries", [])))}
    needed |= {"question"} if asked else set()
    needed |= {f"option.{option}" for option in asked.get("options", asked.get("items", []))}
    needed |= {f"unit.{asked['unit']}"} if "unit" in asked else set()
    assert needed <= own.keys()
    known = [key for key, _ in calls(script(name))] + [*needed, "teach"]
    patterns = [re.compile(re.sub(r"\\\$\\\{.*?\\\}", ".+", re.escape(key))) for key in known]
    idle = {key for key in own if not any(pattern.fullmatch(key) for pattern in patterns)}
    idle -= {key for key in own if f"'{key}'" in script(name)}  # a key may come by a variable
    assert not idle, "no sentence of the script uses these"


@pytest.mark.parametrize("name", NAMES)
def test_every_fact_comes_from_the_data_or_from_the_script(name):
    given = set(stored(name).get("facts", {}))
    passed = [(re.compile(re.sub(r"\\\$\\\{.*?\\\}", ".+", re.escape(k))), p) for k, p in calls(script(name))]
    for key, sentence in spoken(name)["en"].items():
        found = set(given)
        if key.startswith("unit."):
            found.add("n")
        for pattern, own in passed:
            if pattern.fullmatch(key):
                found |= own
        assert facts(sentence) <= found, f"{name}: {key}"


def script(name):
    return (folder(name) / "lesson.js").read_text("utf-8")


def calls(source):
    """(key, names of the facts passed) of each t(...) in a script; a key's `${...}` stands for anything."""
    found = []
    for call in CALL.finditer(source):
        first, *rest = arguments(source, call.end())
        passed = {name for part in rest for name in keys(part, source)}
        found += [(a or b, passed) for a, b in LITERAL.findall(first)]
    return found


def arguments(source, begin):
    """The arguments of a call whose opening bracket stands before `begin`, as text."""
    depth, quote, start, found = 0, "", begin, []
    for i in range(begin, len(source)):
        c = source[i]
        if quote:
            quote = "" if c == quote else quote
        elif c in "'`\"":
            quote = c
        elif c in "([{":
            depth += 1
        elif c in ")]}":
            if depth == 0:
                return [*found, source[start:i]]
            depth -= 1
        elif c == "," and depth == 0:
            found.append(source[start:i])
            start = i + 1
    raise AssertionError("a call that never ends")


def keys(part, source=""):
    """The names of an object literal: {a: 1, b} -> a, b; or of those that the script gives to that variable."""
    inside = part.strip()
    if inside.isidentifier():
        literals = re.finditer(rf"\b{inside} = (?=\{{)", source)
        return {name for found in literals for name in keys(source[found.end() :])}
    if not inside.startswith("{"):
        return set()
    return {own.split(":")[0].strip() for own in arguments(inside, 1)} - {""}


def test_calls_of_a_script_are_found():
    source = "const q = {v: 1}; t('z', q); t('a', {n: f(x, y), m}); kit.text(1); t(`b.${k}`); t(x ? 'c' : 'd', {list: q.map((m, i) => `(${i})`)})"
    assert calls(source) == [
        ("z", {"v"}),
        ("a", {"n", "m"}),
        ("b.${k}", set()),
        ("c", {"list"}),
        ("d", {"list"}),
    ]
