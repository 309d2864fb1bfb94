"""Turns figures into words: sizes, ratios, times, grades and verdicts, in the language of the page.

Every sentence stands in assets/i18n/<language>.json. This file holds only thresholds, and the way figures are
rounded to two or three digits.
"""

from __future__ import annotations

import functools
import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from compression.judged import MEASURES, Measure
from evaluation import ROOT
from evaluation.declared import methods
from evaluation.measuring import judging
from evaluation.measuring.metrics import METRICS
from evaluation.spec import Result
from evaluation.verdict import Difference

LANGUAGES = ("en", "zh-Hant")
I18N = ROOT / "assets" / "i18n"

# a grade holds up to this multiple of the original's perplexity
GRADES = (
    (1.01, "same"),
    (1.05, "about"),
    (1.15, "slightly"),
    (1.5, "clearly"),
    (4.0, "much"),
    (math.inf, "broken"),
)
BROKEN = GRADES[-2][0]  # beyond this multiple a model is of no use
NOTICEABLE = 1.01  # below this multiple nobody notices a difference
# Parameters that need no words of their own: a step's name has words for them whatever the method, or they
# only end a training. A method declares further ones itself (`label` of compression/base.py, param).
NAMED = (
    "bits",
    "sparsity",
    "pattern",
    "removed",
    "kept",
    "rank",
    "quantize",
    "group_size",
    "rounding",
    "round",
    "student",
    "kv_bits",
    "activation_bits",
    "train_minutes",
)
# prefixes of strings that come with a method, a metric or a tab, and may wait for their translation
MAY_WAIT = ("method.", "param.", "value.", "metric.", "app.tab.", "tab.")
# prefixes of strings that only the server uses; LINKS are strings of its errors that the scripts use too
SERVER_ONLY = (
    "note.",
    "stage.",
    "unit.",
    "status.",
    "grade.",
    "verdict.",
    "stored.",
    "recipe.",
    "prompt.",
    "error.",
)
LINKS = "error.link_"
# parts of a protocol's id (compression/texts.py) -> their words, `protocol.<key>`
PROTOCOL_PARTS = {
    "window": r"window (\d+)",
    "tokens": r"(\d+) tokens",
    "no_start": r"no start token",
    "start": r"start token once",
    "tokenizer": r"tokenizer (\w+)",
}
MANY = 4.0  # a larger change is told as a multiple, not in per cent
SPEED_MARGIN = 0.05  # rates that differ by less are called equal


@functools.cache
def table(language: str) -> dict[str, str]:
    """All strings of a language, by key.

    Strings of a method, a metric or a tab that nobody has translated yet are in English, and marked as such.
    """
    own = strings(language)
    return own | {key: own["untranslated"].format(text=strings("en")[key]) for key in untranslated(language)}


def shown(language: str) -> dict[str, str]:
    """The strings that the page's scripts need. All others reach the page inside the server's answers."""
    return {k: v for k, v in table(language).items() if k.startswith(LINKS) or not k.startswith(SERVER_ONLY)}


def strings(language: str) -> dict[str, str]:
    """The strings of a language's own file."""
    return json.loads((I18N / f"{language}.json").read_text("utf-8"))


def untranslated(language: str) -> list[str]:
    """Keys of the strings of methods, metrics and tabs that exist in English only."""
    return [k for k in strings("en").keys() - strings(language).keys() if k.startswith(MAY_WAIT)]


def described(name: str) -> dict:
    """A method's description; {} if a stored run's method no longer exists."""
    return methods().get(name, {"full": {}, "params": ()})


def essay(name: str, language: str) -> str:
    """A method's essay.

    The English one is the method's own docstring. It is shown, with a mark, if there is no translation.
    """
    english = methods()[name]["essay"]
    if language == "en":
        return english
    return essays(language).get(name) or table(language)["untranslated"].format(text=english)


@functools.cache
def essays(language: str) -> dict[str, str]:
    """The translated essays of a language."""
    return json.loads((I18N / f"essays.{language}.json").read_text("utf-8"))


def digits(number: float, n: int = 3) -> str:
    """`n` significant digits without an exponent: 0.0123, 1.02, 98.4, 1,230."""
    if number == 0 or not math.isfinite(number):
        return "0" if number == 0 else "∞"
    rounded = float(f"{number:.{n - 1}e}")
    return f"{rounded:,.{max(0, n - 1 - math.floor(math.log10(abs(rounded))))}f}"


def grade(ratio: float, stderr: float | None = None) -> str:
    """The code that says how good a compressed model is compared with its original.

    A difference within twice its standard error counts as none. Whether one compressed model is better than
    another is a verdict (verdict.py).
    """
    if stderr and abs(ratio - 1) <= 2 * stderr and ratio < GRADES[1][0]:
        return "same"
    return next(code for limit, code in GRADES if ratio <= limit)


class Words:
    """All words of the page in one language."""

    def __init__(self, language: str):
        self.language = language if language in LANGUAGES else LANGUAGES[0]
        self.table = table(self.language)

    def __call__(self, key: str, /, **facts) -> str:
        """A string with its {facts} filled in; facts that a sentence doesn't name are ignored."""
        return self.table[key].format_map(_Facts(facts))

    def has(self, key: str) -> bool:
        return key in self.table

    def many(self, key: str, n: int, /, **facts) -> str:
        """A string for `n` things, which it names {n}."""
        return self(self.form(key, n), n=f"{n:,}", **facts)

    def form(self, key: str, n: object) -> str:
        """The key of a string for `n` things: `<key>.one` if n is 1 and the language has such a form."""
        one = f"{key}.one"
        return one if n == 1 and self.has(one) else key

    def size(self, n: float) -> str:
        """Bytes in decimal units."""
        for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
            if n >= scale:
                return f"{digits(n / scale, 3 if n / scale >= 100 else 2)}\u00a0{unit}"
        return f"{n:.0f}\u00a0B"

    def millions(self, n: float) -> str:
        """A count in millions."""
        return self("unit.million", n=digits(n / 1e6, 3))

    def smaller(self, original: float, now: float) -> str:
        """ "3.2x smaller"."""
        ratio = original / now
        return (
            self("same_size")
            if 0.99 < ratio < 1.01
            else self("smaller" if ratio > 1 else "larger", times=digits(max(ratio, 1 / ratio), 2))
        )

    def speed(self, original: float, now: float) -> str:
        """ "1.2x faster", "2.1x slower" or "as fast"."""
        ratio = now / original
        if abs(ratio - 1) < SPEED_MARGIN:
            return self("as_fast")
        return self("faster" if ratio > 1 else "slower", times=digits(max(ratio, 1 / ratio), 2))

    def share(self, x: float) -> str:
        """0.934 -> "93 %", and never 100 % for less than all."""
        percent = 100 * x
        shown = min(percent, 99.9) if percent < 100 else percent
        return f"{digits(shown, 3 if 99 < shown < 100 else 2)} %" if 0 < shown < 100 else f"{shown:.0f} %"

    def verdict(self, found: Difference, measure: str = "") -> str:
        """ "better: −24 ± 1.6 %": the verdict, and the change of perplexity with its 95 % interval.

        Changes of many times are written as "× 6.2". With a measure of compression/judged.py the change is
        one of that measure: "better: +12 ± 6.1 points".
        """
        change = self._moved(found, MEASURES[measure]) if measure else self._times(found)
        return self("verdict.told", verdict=self(f"verdict.{found.word}"), change=change)

    def helped(self, found: Difference, *, measure: str = "", training: bool = False) -> str:
        """Whether a method helped, beside its control: "26 % worse than its control: ...".

        measure: what the method optimises, if not perplexity. training: the other run is the same without the
        training.
        """
        key = f"card.verdict{'.training' if training else ''}.{found.word}"
        if found.word == "unclear":
            return self(key)
        if measure:
            one = MEASURES[measure]
            change = digits(abs(found.mean) * (1 if one.unit == "nats" else 100), 2)
            change = self("unit.nats" if one.unit == "nats" else "unit.points", n=change)
            return self(f"{key}.measure", name=self(f"metric.{measure}"), change=change)
        return self(key, change=self.percent(found.ratio))

    def percent(self, ratio: float) -> str:
        """By how much a perplexity differs: "26 %", or "5.3x" for a change of many times."""
        if 1 / MANY < ratio < MANY:
            return f"{digits(100 * abs(ratio - 1), 2)} %"
        return f"{digits(max(ratio, 1 / ratio), 2)}×"

    def change(self, ratio: float) -> str:
        """ "5 % higher", "5 % lower", "equal"."""
        percent = self.percent(ratio)
        if abs(ratio - 1) < 0.005:
            return self("change.none")
        return self("change.higher" if ratio > 1 else "change.lower", percent=percent)

    def _moved(self, found: Difference, measure: Measure) -> str:
        """A change of a measure with its interval. Shares change by points."""
        scale = 1 if measure.unit == "nats" else 100
        mean = scale * (found.mean if measure.better == "low" else -found.mean)
        n = f"{'−' if mean < 0 else '+'}{digits(abs(mean), 2)}"
        if math.isfinite(found.margin):
            n += f" ± {digits(scale * found.margin, 2)}"
        return self("unit.nats" if measure.unit == "nats" else "unit.points", n=n)

    @staticmethod
    def _times(found: Difference) -> str:
        """A change of perplexity in per cent with its interval, or as a multiple."""
        ratio, margin = found.ratio, found.ratio_margin
        if 1 / MANY < ratio < MANY:
            change = f"{'+' if ratio >= 1 else '−'}{digits(100 * abs(ratio - 1), 2)}"
            return change + (f" ± {digits(100 * margin, 2)} %" if math.isfinite(margin) else " %")
        return f"{'×' if ratio > 1 else '÷'} {digits(max(ratio, 1 / ratio), 2)}"

    def judged(self, result: Result, control: Result | None = None) -> list[list[str]]:
        """Sentences on each quantity that a run's method optimises: figure, control, chance level.

        The control was trained in the same run, or is the run `control` if it got the same questions.
        """
        out = []
        for measure, one in judging.of(result).items():
            facts = {
                "name": self(f"metric.{measure}"),
                "after": self.with_error(measure, judging.figures([one])),
                "before": self.figure(measure, statistics.fmean(one.before)),
                "asked": self.many(f"unit.{MEASURES[measure].asks}", len(one.after)),
            }
            parts = [self("card.judged", **facts)]
            found = judging.within(measure, [result])
            if found is None and control is not None:
                found = judging.beside(measure, [result], [control])
            if found is not None:
                parts.append(self("card.judged.control", verdict=self.verdict(found, measure)))
            if one.chance is not None:
                beside = self.verdict(judging.against(one, one.chance), measure)
                chance = self.figure(measure, one.chance)
                parts.append(self("card.judged.chance", chance=chance, verdict=beside))
            out.append(parts)
        return out

    def seconds(self, s: float) -> str:
        """ "41 s", "3 min", "2 h"."""
        if s < 100:
            return self("seconds", n=digits(s, 2) if s < 10 else f"{s:.0f}")
        return self("minutes", n=f"{s / 60:.0f}") if s < 5400 else self("hours", n=digits(s / 3600, 2))

    def figure(self, key: str, x: float, n: int = 3) -> str:
        """A metric's value in `n` significant digits with its unit."""
        unit = METRICS[key].unit
        if unit == "bytes":
            return self.size(x)
        if unit == "share":
            return self.share(x)
        if unit == "points":
            return self("unit.points", n=digits(100 * x, n).replace("-", "−"))
        if unit == "seconds":
            return self.seconds(x)
        forms = {"ratio": "×", "ms": " ms", "nats": "", "": ""}
        if unit in forms:
            return f"{digits(x, n)}{forms[unit]}"
        return self(f"unit.{unit}", n=f"{x:,.0f}" if unit == "tokens" and x >= 100 else digits(x, n))

    def with_error(self, key: str, m: Mapping) -> str:
        """A metric's value among `m` with its standard error, if there is one: "29.4 ± 1.2"."""
        own, spread = self.figure(key, m[key]), m.get(METRICS[key].error)
        return f"{own} {self('card.error', x=self.figure(key, spread, 2))}" if spread else own

    def method(self, name: str) -> str:
        return self(f"method.{name}") if self.has(f"method.{name}") else name

    def knob(self, name: str, x) -> str:
        """A parameter's value in a label: "4 bits", "50 % removed", "group 64"."""
        if name in ("sparsity", "removed", "kept"):
            return self(f"value.{name}", v=f"{100 * x:.0f} %")
        if name == "group_size":
            return self("value.row") if x == -1 else self("value.group_size", v=x)
        return self(f"value.{name}", v=x) if self.has(f"value.{name}") else f"{name} {x}"

    def groups(self, n: int) -> str:
        """How many parts of a matrix share a scale; 0: each row has one scale."""
        return self("value.row") if n == 0 else self.many("value.parts", n)

    def step(self, name: str, values: Mapping, long: bool = False) -> str:
        """One method with its main knob: "GPTQ 4 bits"; long: "GPTQ, 4 bits, group 64".

        A plain code book goes by the name of its table.
        """
        values = dict(values)
        # such a step rounds nothing: weights stay in 16 bits
        if values.get("quantize") is False or values.get("round") is False:
            values = {k: v for k, v in values.items() if k not in ("bits", "group_size")}
        parts = []
        if values.get("pattern", "unstructured") != "unstructured":
            parts.append(str(values["pattern"]))
            values.pop("sparsity", None)
        if values.get("student"):
            values.pop("kept", None)
            parts.append(self("value.student", v=Path(str(values["student"])).name))
        parts += [
            self.knob(k, values[k]) for k in ("sparsity", "removed", "kept", "rank", "bits") if k in values
        ]
        if "kv_bits" in values:  # one string for the bits of weights, inputs and cache
            parts = [
                self("value.w_a_kv", w=values["bits"], a=values["activation_bits"], kv=values["kv_bits"])
            ]
        # one string for the bits of feed-forward and attention weights, of all inputs, and of q, k, v
        if "attention_bits" in values:
            weights = dict.fromkeys((values["bits"], values["attention_bits"]))
            rounded = values.get("activations") != "exact"
            inputs = ("8/16" if values.get("qkv_inputs") == "exact" else "8") if rounded else "16"
            parts = [self("value.w_a", w="/".join(map(str, weights)), a=inputs)]
            parts += [self.groups(values["groups"])] if long else []
        if long and "group_size" in values:
            parts.append(self.knob("group_size", values["group_size"]))
        title, choices = self.method(name), []
        for p in described(name)["params"]:
            if p["label"] == "title" and p["name"] in values:
                title = self(f"value.{values[p['name']]}")
            elif p["label"] == "choice" and values.get(p["name"], p["default"]) != p["default"]:
                choices.append(self(f"value.{values[p['name']]}"))
        parts += choices
        if values.get("round") is False:
            parts.append(self("value.unrounded"))
        if values.get("rounding") is False:
            return self("method.factors", method=title)
        return (self("comma") if long else " ").join([title, self("comma").join(parts)] if parts else [title])

    def settings(self, name: str, values: Mapping) -> list[str]:
        """The settings that a step's name leaves out.

        They are its main knob if no string names it, every parameter that isn't at its default, and
        parameters that are always named. A full budget goes by that name.
        """
        method, out = described(name), []

        def holds(when):
            return all(values.get(k, v) == v for k, v in when.items())

        budget = method["full"] if all(values.get(k) == v for k, v in method["full"].items()) else {}
        if budget:
            out.append(self("budget.full"))
        for p in method["params"]:
            key = p["name"]
            named = key in NAMED or p["label"] in ("named", "title", "choice")
            if named or key in budget or key not in values:
                continue
            always = (p["main"] and values.get("rounding", True)) or (
                p["label"] == "always" and holds(p["when"])
            )
            if values[key] != p["default"] or always:
                out.append(f"{self(f'param.{key}').lower()} {self.choice(values[key])}")
        return out

    def choice(self, value) -> str:
        """A parameter's value: "on", "off", a choice's words, a number."""
        if isinstance(value, bool):
            return self("on" if value else "off")
        if type(value) is int:
            return f"{value:,}"
        return self(f"value.{value}") if self.has(f"value.{value}") else str(value)

    def recipe(self, recipe, long: bool = False, cache_bits: int = 16, cache_keys: str = "token") -> str:
        """A chain of methods in words, with the bits of its key-value cache if it is quantized.

        long: with every setting.
        """
        cache = self(f"recipe.cache.{cache_keys}", bits=cache_bits)
        if cache_bits < 16 and all(name == "none" for name, _ in recipe):
            return self("recipe.cache.original", cache=cache)

        def named(name, values):
            return self("comma").join([self.step(name, values, True), *self.settings(name, values)])

        chain = self("then").join((named if long else self.step)(name, values) for name, values in recipe)
        return chain if cache_bits == 16 else self("recipe.cache", recipe=chain, cache=cache)

    def protocol(self, protocol_id: str) -> str:
        """How a run was measured, from its protocol's id: "window 512 · 32768 tokens" in the reader's words.

        A part that nobody has words for, such as a file's name, stays as it is.
        """
        return " · ".join(map(self._part, protocol_id.split(" · ")))

    def _part(self, part: str) -> str:
        for key, pattern in PROTOCOL_PARTS.items():
            if found := re.fullmatch(pattern, part):
                return self(f"protocol.{key}", n=found[1] if pattern.count("(") else "")
        return part

    def kernels(self, names: Sequence[str]) -> str:
        """The kernels of a timing in the reader's words; what has no words stays as it is."""
        return ", ".join(map(self._kernel, names))

    def _kernel(self, name: str) -> str:
        """ "grouped integers, int8 activations (C, AVX2)": what stands before the bracket has words."""
        what, bracket, by = name.partition(" (")
        parts = [self.table.get(f"kernel.{part}", part) for part in what.split(", ")]
        return self("comma").join(parts) + bracket + by

    def run(self, row: Mapping, long: bool = False) -> str:
        """A run from the table of runs: the title that a person gave it, else its recipe in words."""
        recipe = self.recipe(row["recipe"], long, row.get("cache_bits", 16), row.get("cache_keys", "token"))
        title = row.get("title") or ""
        return f"{title} ({recipe})" if title and long else title or recipe

    def note(self, note: Mapping) -> str:
        """A note's sentence. A note with an unknown code is shown as it is, not hidden."""
        return self._coded("note", note.get("code", ""), note.get("facts", {}), note.get("code", ""))

    def error(self, error: Mapping) -> dict[str, str]:
        """What happened, what it means, what to do, and which button does it.

        An error with an unknown code shows its own message.
        """
        code = error.get("code") or "error"
        known = code if self.has(f"error.{code}.what") else "error"
        facts = self.facts(error.get("facts") or {}) | {"message": error.get("message", "")}
        keys = {p: f"error.{known}.{p}" for p in ("what", "means", "do")}
        if "need_bytes" in facts and self.has(f"{keys['what']}.need"):
            keys["what"] += ".need"
        parts = {p: self(key, **facts) for p, key in keys.items() if self.has(key)}
        return parts | {
            "act": self.table.get(f"error.{known}.act", "retry"),
            "details": error.get("message", ""),
        }

    def _coded(self, kind: str, code: str, facts: Mapping, otherwise: str) -> str:
        key = self.form(f"{kind}.{code}", facts.get("count"))
        return self(key, **self.facts(facts)) if self.has(key) else otherwise

    def facts(self, facts: Mapping) -> dict:
        """Facts ready for a sentence.

        Byte counts become sizes, methods and parameters get their names, numbers are rounded.
        """
        out = {}
        for name, x in facts.items():
            if name.endswith("bytes") and isinstance(x, (int, float)):
                x = self.size(x)
            elif name == "method":
                x = self.method(str(x))
            elif isinstance(x, float):
                x = digits(x)
            elif type(x) is int and abs(x) >= 1000:
                x = f"{x:,}"
            out[name] = x
        return out


class _Facts(dict):
    def __missing__(self, name: str) -> str:
        return "?"
