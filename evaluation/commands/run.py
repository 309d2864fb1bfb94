"""The command line of `python -m evaluation run`; a method's flags come from its declared parameters.

    METHOD [--PARAM VALUE ...] [+ METHOD ...] [run flags] [--json]

A flag belongs to the method before it if that method declares it, else to the run. `METHOD --help` lists the
flags of a method.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import compression
from compression.base import BadParam, Method
from compression.catalogue import OFFLINE_MODEL
from evaluation import host, limits
from evaluation.page.words import Words
from evaluation.running import deaths
from evaluation.spec import BUILTIN_TEXT, CALIBRATION_CHOICES, PRESETS, TEXT_CHOICES, Result, RunSpec, Status
from evaluation.store import Store
from kernels.home import why_temporary

RUN_FLAGS = (  # (flag, type, help); presets fill those that aren't given
    ("model", str, "catalogue name, hub id or local folder"),
    ("calibration", str, f"calibration text: {CALIBRATION_CHOICES}"),
    ("calibration-tokens", int, "tokens for calibration"),
    ("text", str, f"evaluation text: {TEXT_CHOICES}"),
    ("protocol", str, "paper or raw"),
    ("window", int, "tokens in a window"),
    ("tokens", int, "tokens for evaluation"),
    ("seed", int, "seed"),
    ("activations", str, "exact or int8"),
    ("table-bits", int, "bits of embedding and head: 16, 8 or 4"),
    ("cache-bits", int, "bits of the key-value cache: 16, 8, 4, or 2 with keys by channel"),
    ("cache-keys", str, "what shares a scale among the cache's keys: token or channel"),
    ("device", str, "cpu, cuda or auto"),
    ("preset", str, "how many tokens: " + ", ".join(PRESETS) + " (default quick)"),
    (
        "budget",
        str,
        "what a training may take: short (minutes on a processor; default) or full (the paper's, "
        "for a graphics card)",
    ),
    ("out", str, "folder for the result, the compressed model and caches"),
)
BUDGETS = ("short", "full")
SWITCHES = (
    ("again", "run even if the store has the answer"),
    ("no-timings", "leave out the latency stage"),
    ("json", "print the result as one JSON object"),
    ("list", "list the methods; with --json also their parameters"),
    ("help", "this list, and the parameters of the methods that are named"),
)
EPILOG = (
    "Methods: "
    + ", ".join(compression.NAMES)
    + ". Chain them with +, e.g. wanda --sparsity 0.5 + gptq --bits 4."
)


def main(argv: list[str]) -> int:
    """Do a run. Returns the exit code: 0 for status ok, 2 for bad arguments, 1 for anything else."""
    for stream in (sys.stdout, sys.stderr):  # a terminal whose encoding has few characters
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        own, steps = split(argv)
        if own.help:
            print(
                "\n".join(
                    [_parser().format_help(), *(_method_help(compression.get(name)) for name, _ in steps)]
                )
            )
            return 0
        if own.list:
            listing = [compression.get(name).describe() for name in compression.NAMES]
            print(_json(listing, indent=1) if own.json else _names(listing))
            return 0
        spec = request(own, steps)
    except (BadParam, argparse.ArgumentError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from evaluation.running.run import run

    try:
        store = _store(own)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return _print(own, run(spec, _progress, store=store, again=own.again, timings=not own.no_timings))


def watched(argv: list[str]) -> int:
    """`main` in a process of its own, so that this one can say how it ended.

    Returns its exit code, 1 if it was killed.
    """
    if not hasattr(os, "fork") or not argv or {"--help", "-h", "--list"} & set(argv):
        return main(argv)
    kills, parent = limits.oom_kills(), os.getpid()
    child = os.fork()
    if child == 0:
        _leave_with(parent)
        for name in ("SIGTERM", "SIGHUP"):  # so that nothing half written stays
            signal.signal(getattr(signal, name), lambda number, frame: sys.exit(128 + number))
        return main(argv)
    for name in ("SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), lambda number, frame: os.kill(child, number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal tells the child itself
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else _died(argv, *deaths.of_exit(code, kills=kills))


def _leave_with(parent: int) -> None:
    """Ask the system to kill this process when its parent ends (Linux)."""
    try:
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:
        os._exit(3)


def _died(argv: list[str], status: Status, error: dict) -> int:
    """Write the record of a run that was killed, and print how it ended."""
    own, steps = split(argv)
    result = Result(
        key="", spec=request(own, steps), status=status, error=error, environment=host.environment()
    )
    try:
        store = _store(own)
        store.sweep()
        result = store.put(result)
    except OSError:
        pass  # the record can't be written: the end is only printed
    return _print(own, result)


def _store(own: argparse.Namespace) -> Store:
    """The store where results go. Raises OSError if the folder that was asked for can't be written."""
    store = Store(Path(own.out) if own.out else None)
    if own.out and store.read_only:
        raise OSError(f"--out {own.out} can't be written: {why_temporary(store.home)}")
    return store


def _json(x, **how) -> str:
    """JSON in characters that the terminal can show."""
    return json.dumps(
        x,
        ensure_ascii=not (sys.stdout.encoding or "").lower().startswith("utf"),
        default=str,
        allow_nan=False,
        **how,
    )


def _print(own: argparse.Namespace, result: Result) -> int:
    """Print a result; returns its exit code."""
    try:
        print(_json(result.json()) if own.json else _summary(result), flush=True)
    except OSError as error:
        print(f"error: the result can't be printed: {error.strerror}", file=sys.stderr)
        return 1
    if result.status != "ok":
        print(f"{result.status}: {result.error.get('message', '')}", file=sys.stderr)
    return 0 if result.status == "ok" else 1


class _Parser(argparse.ArgumentParser):
    """Raises errors as exceptions, so that the exit code and the wording are ours."""

    def error(self, message: str):
        raise BadParam(message)


def _parser() -> _Parser:
    """The parser of the run's own flags."""
    parser = _Parser(
        prog="python -m evaluation run",
        usage="%(prog)s METHOD [--PARAM VALUE ...] [+ METHOD ...] [run flags]",
        description="Compress a model, measure it, keep the result.",
        epilog=EPILOG,
        allow_abbrev=False,
        add_help=False,
    )
    for flag, kind, words in RUN_FLAGS:
        parser.add_argument(f"--{flag}", type=kind, help=words)
    for flag, words in SWITCHES:
        parser.add_argument(f"--{flag}", action="store_true", help=words)
    return parser


def _method_help(method: Method) -> str:
    """A method's parameters as flags, each with its help, its default and what is allowed."""
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False)
    group = parser.add_argument_group(f"{method.name} ({method.title}, {method.paper or 'no paper'})")
    for f in method.params.describe():
        allowed = (
            ", ".join(map(str, f["choices"]))
            if f["choices"]
            else f"{f['lo']} to {f['hi']}"
            if f["hi"] is not None
            else f["type"]
        )
        help_text = (
            f"{f['help']} Default {json.dumps(f['default'])}; "
            f"{'true or false' if f['type'] == 'bool' else allowed}."
        )
        group.add_argument(
            "--" + f["name"].replace("_", "-"), metavar=f["type"].upper(), help=help_text.replace("%", "%%")
        )
    return parser.format_help().strip()


def split(argv: list[str]) -> tuple[argparse.Namespace, list[tuple[str, dict[str, str]]]]:
    """(run flags, [(method, {param: text}), ...]). Raises BadParam."""
    ours, switches = {flag for flag, _, _ in RUN_FLAGS}, {flag for flag, _ in SWITCHES}
    steps: list[tuple[str, dict[str, str]]] = []
    rest, declared, fresh = [], set(), True
    missing = "\0"  # a value that no argument of a command can have
    words = iter("--help" if word == "-h" else word for word in argv)
    for word in words:
        flag, equals, value = word.removeprefix("--").partition("=")
        name = flag.replace("-", "_")
        if word == "+":
            fresh = True
        elif fresh and not word.startswith("--"):
            declared, fresh = {f["name"] for f in compression.get(word).params.describe()}, False
            steps.append((word, {}))
        elif not word.startswith("--") or not (steps or flag in ours | switches):
            raise BadParam(f"unexpected argument {word!r}; {EPILOG}")
        elif flag in switches and name not in declared:
            rest.append(word)
        elif not equals and (value := next(words, missing)) is missing:
            raise BadParam(f"{word} needs a value")
        elif name in declared or flag not in ours:
            steps[-1][1][name] = value
        else:
            rest.append(f"--{flag}={value}")
    own = _parser().parse_args(rest)
    if own.preset not in (None, *PRESETS):
        raise BadParam(
            f"--preset {own.preset!r}; allowed: {', '.join(PRESETS)}", name="preset", got=own.preset
        )
    if own.budget not in (None, *BUDGETS):
        raise BadParam(
            f"--budget {own.budget!r}; allowed: {', '.join(BUDGETS)}", name="budget", got=own.budget
        )
    if own.budget == "full" and steps and not any(compression.get(name).full for name, _ in steps):
        trained = [name for name in compression.NAMES if compression.get(name).full]
        raise BadParam(
            f"--budget full is for methods that train ({', '.join(trained)}); here --preset says "
            "how much is read",
            name="budget",
            got="full",
            allowed="short",
        )
    if not steps and not (own.list or own.help):
        raise BadParam(f"no method given. {EPILOG}")
    return own, steps


def request(own: argparse.Namespace, steps: list[tuple[str, dict[str, str]]]) -> RunSpec:
    """The RunSpec that the arguments describe; what isn't given comes from the preset and the budget."""
    if own.budget == "full":
        steps = [(name, compression.get(name).full | values) for name, values in steps]
    names = {f.name for f in dataclasses.fields(RunSpec)}
    given = {k: v for k, v in vars(own).items() if v is not None and k in names}
    preset = own.preset or "quick"
    fields: dict[str, Any] = {
        "model": OFFLINE_MODEL,
        "text": BUILTIN_TEXT,
        "calibration": BUILTIN_TEXT,
        "preset": preset,
        "protocol": "paper" if preset == "paper" else "raw",
        **PRESETS[preset],
    }
    if "tokens" in given and "window" not in given:
        fields["window"] = min(fields["window"], max(given["tokens"], 2))
    return RunSpec(recipe=tuple(steps), **fields | given)


def _progress(event: dict) -> None:
    left = f", about {event['seconds_left']:.0f} s left" if event.get("seconds_left") else ""
    print(
        f"{event['stage']} {event.get('done', 0)}/{event.get('total', 1)}{left}", file=sys.stderr, flush=True
    )


def _names(listing: list[dict]) -> str:
    return "\n".join(f"{m['name']:<16} {m['family']:<14} {m['title']}" for m in listing)


def _summary(result: Result) -> str:
    lines = [f"{result.status}  {result.spec.model}  {result.protocol_id}"]
    for name, value in sorted(result.metrics.items()):
        lines.append(f"  {name:<40} {value:,.6g}")
    lines += [f"  {' '.join(sentences)}" for sentences in Words("en").judged(result)]
    for timing in result.timings[-1:]:
        lines.append(f"  multiplied by {', '.join(timing['kernel'])}; {timing['loop']}")
        if share := timing["limit"].get("share_of_read_bandwidth"):
            lines.append(
                f"  a step reads its weights at {share:.0%} of the memory bandwidth measured beside it"
            )
        ways = [
            f"{name} {figures['time_per_output_token_ms']:.2f}"
            for name, figures in timing.items()
            if isinstance(figures, dict) and "time_per_output_token_ms" in figures
        ]
        lines.append(f"  milliseconds a token: {', '.join(ways)}")
    lines += [f"  note: {n['code']} {n['facts']}" for n in result.notes]
    return "\n".join(lines)
