"""The command line of `python -m evaluation.run`; flags of a method come from its declared parameters.

METHOD [--PARAM VALUE ...] [+ METHOD ...] [run flags] [--json]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import compression
from compression.base import BadParam
from compression.catalogue import OFFLINE_MODEL
from evaluation.spec import BUILTIN_TEXT, PRESETS, Result, RunSpec
from evaluation.store import Store

RUN_FLAGS = (  # (flag, type, help); presets fill those that aren't given
    ("model", str, "catalogue name, hub id or local folder"),
    ("calibration", str, "calibration text: builtin, wikitext-2 or a file"),
    ("calibration-tokens", int, "tokens for calibration"),
    ("text", str, "evaluation text: builtin, wikitext-2 or a file"),
    ("protocol", str, "paper or raw"),
    ("window", int, "tokens in a window"),
    ("tokens", int, "tokens for evaluation"),
    ("seed", int, "seed"),
    ("activations", str, "exact or int8"),
    ("table-bits", int, "bits of embedding and head: 16, 8 or 4"),
    ("cache-bits", int, "bits of the key-value cache: 16, 8 or 4"),
    ("device", str, "cpu, cuda or auto"),
)
EPILOG = "Methods: " + ", ".join(compression.NAMES) + ". Chain them with +, e.g. wanda --sparsity 0.5 + gptq --bits 4."


def main(argv: list[str]) -> int:
    """Returns the exit code: 0 for status ok, 2 for bad arguments, 1 for anything else."""
    if "--worker" in argv:
        from evaluation.worker import serve

        return serve()
    try:
        own, steps = split(argv)
        if own.list:
            from compression import calibrate

            methods = [compression.get(name) for name in compression.NAMES]
            listing = [method.describe() | {"stores": calibrate.stored_format(method)} for method in methods]
            print(json.dumps(listing, indent=1, ensure_ascii=False) if own.json else _names(listing))
            return 0
        spec = request(own, steps)
    except (BadParam, argparse.ArgumentError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from evaluation.run import run

    home = Path(own.out) if own.out else None
    try:
        if home:
            home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"error: --out {own.out}: {error.strerror}", file=sys.stderr)
        return 2
    result = run(spec, _progress, store=Store(home), again=own.again, timings=not own.no_timings)
    print(json.dumps(result.json(), ensure_ascii=False) if own.json else _summary(result), flush=True)
    if result.status != "ok":
        print(f"{result.status}: {result.error.get('message', '')}", file=sys.stderr)
    return 0 if result.status == "ok" else 1


class _Parser(argparse.ArgumentParser):
    """Errors as exceptions, so that the exit code and the wording are ours."""

    def error(self, message: str):
        raise BadParam(message)


def split(argv: list[str]) -> tuple[argparse.Namespace, list[tuple[str, dict[str, str]]]]:
    """(run flags, [(method, {param: text}), ...]). Raises BadParam."""
    parser = _Parser(prog="python -m evaluation.run", description=__doc__.split("\n")[0], epilog=EPILOG, allow_abbrev=False)
    for flag, kind, words in RUN_FLAGS:
        parser.add_argument(f"--{flag}", type=kind, help=words)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="quick", help="how many tokens (default quick)")
    parser.add_argument("--out", help="folder for the result, the compressed model and caches")
    parser.add_argument("--again", action="store_true", help="run even if the store has the answer")
    parser.add_argument("--no-timings", action="store_true", help="leave out the latency stage")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--list", action="store_true", help="list the methods and their parameters")
    if argv and argv[0] in ("-h", "--help"):
        parser.print_help(sys.stderr)
    own, rest = parser.parse_known_args(argv)
    steps: list[tuple[str, dict[str, str]]] = []
    fresh, i = True, 0
    while i < len(rest):
        word = rest[i]
        if word == "+":
            fresh, i = True, i + 1
        elif fresh and not word.startswith("--"):
            compression.get(word)
            steps.append((word, {}))
            fresh, i = False, i + 1
        elif word.startswith("--") and steps:
            name, equals, value = word.removeprefix("--").partition("=")
            if not equals:
                if i + 1 >= len(rest):
                    raise BadParam(f"{word} needs a value")
                value, i = rest[i + 1], i + 1
            steps[-1][1][name.replace("-", "_")] = value
            i += 1
        else:
            raise BadParam(f"unexpected argument {word!r}; {EPILOG}")
    if not steps and not own.list:
        raise BadParam(f"no method given. {EPILOG}")
    return own, steps


def request(own: argparse.Namespace, steps: list[tuple[str, dict[str, str]]]) -> RunSpec:
    """The RunSpec that the arguments describe; what isn't given comes from the preset."""
    given = {flag.replace("-", "_"): getattr(own, flag.replace("-", "_")) for flag, _, _ in RUN_FLAGS}
    given = {k: v for k, v in given.items() if v is not None}
    fields = {"model": OFFLINE_MODEL, "text": BUILTIN_TEXT, "calibration": BUILTIN_TEXT, "preset": own.preset}
    fields |= PRESETS[own.preset] | {"protocol": "paper" if own.preset == "paper" else "raw"}
    if "tokens" in given and "window" not in given:
        fields["window"] = min(fields["window"], max(given["tokens"], 2))
    return RunSpec(recipe=tuple(steps), **fields | given)


def _progress(event: dict) -> None:
    left = f", about {event['seconds_left']:.0f} s left" if event.get("seconds_left") else ""
    print(f"{event['stage']} {event.get('done', 0)}/{event.get('total', 1)}{left}", file=sys.stderr, flush=True)


def _names(listing: list[dict]) -> str:
    return "\n".join(f"{m['name']:<12} {m['family']:<14} {m['title']}" for m in listing)


def _summary(result: Result) -> str:
    lines = [f"{result.status}  {result.spec.model}  {result.protocol_id}"]
    for name, value in sorted(result.metrics.items()):
        lines.append(f"  {name:<40} {value:,.6g}")
    for timing in result.timings[-1:]:
        lines.append(f"  multiplied by {', '.join(timing['kernel'])}; {timing['loop']}")
        if share := timing["limit"].get("share_of_read_bandwidth"):
            lines.append(f"  a step reads its weights at {share:.0%} of the memory bandwidth measured beside it")
        ways = [f"{name} {figures['time_per_output_token_ms']:.2f}" for name, figures in timing.items()
                if isinstance(figures, dict) and "time_per_output_token_ms" in figures]  # fmt: skip
        lines.append(f"  milliseconds a token: {', '.join(ways)}")
    lines += [f"  note: {n['code']} {n['facts']}" for n in result.notes]
    return "\n".join(lines)
