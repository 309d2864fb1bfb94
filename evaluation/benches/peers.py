"""Compares our methods with the best-kept public implementations: `make compare-peers`, or

    python -m evaluation peers --peers .venv-peers/bin/python [--text FILE --calibration FILE]
                               [--only gptq-4 nf4 ...]
    python -m evaluation peers --authors DIR [--only owq-3 ...]

The two sides of a pair compress the same weights with the same settings, in float32, from the same
calibration windows. Theirs runs in an environment of its own (evaluation/benches/peers.txt). Each side has a
process of its own; they run one after the other, with the same threads. The same code then measures both
models on the same windows, each in its own library's form, so that the ratio of two perplexities has a paired
standard error. pairs.py declares the pairs, packages.py has the other side of each.

The first pair compresses nothing: its ratio must be 1, or the two sides don't measure the same. Where the
result depends on chance in the calibration, a pair is drawn several times and the mean counts.

With --authors, OWQ and SpQR are compared instead, matrix by matrix, with their authors' code in that folder
(authors.py).

It writes assets/results/bench/peers.json; with --only, those rows of it. A row names its machine and how many
of its cores were busy with other work; seconds that were taken beside much other work say little. Exit code 1
if a perplexity of ours is more than 2 % above theirs, or if a side failed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import geometric_mean, stdev

from evaluation import ROOT
from evaluation.benches.pairs import CONTROL, PAIRS, Pair

TABLE = ROOT / "assets" / "results" / "bench" / "peers.json"
WORST = 1.02  # the largest ratio of our perplexity to theirs that is accepted
CONTROL_ERROR = 1e-3
TIMEOUT_SECONDS = 3_600

NOT_COMPARED = {
    "zeroquant": "DeepSpeed has it as training inside its own engine, with no way to hand it windows",
    "lut_gemm": "its kernels are for CUDA only; after another step its numbers are that step's, and "
    "its own fit is held against the papers' formulas",
}


# --- one side of a pair, in a process of its own ---


def side(which: str, name: str, job: Path, draw: int) -> None:
    """Compress the job's model one way and measure it.

    It writes <name>.<which>.safetensors (losses) and .json into `job`. draw: how many of the last calibration
    windows are left out.
    """
    import torch
    from safetensors.torch import load_file, save_file

    from compression.likelihood import losses

    asked = json.loads((job / "job.json").read_text("utf-8"))
    windows = load_file(job / "windows.safetensors")
    pair = PAIRS[name]
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(0)
    bundle = (_our_model if which == "ours" else _their_model)(asked["model"])
    calibration = windows["calibration"][: pair.windows]
    seconds = (_ours if which == "ours" else _theirs)(pair, bundle, calibration[: len(calibration) - draw])
    start = time.perf_counter()
    found = {"losses": losses(bundle, windows["evaluation"])}
    save_file(found, job / f"{name}.{which}.safetensors")
    packages = ("torch", "transformers", *([pair.package] if which == "theirs" else []))
    about = {
        "compress_seconds": seconds,
        "evaluate_seconds": time.perf_counter() - start,
        "versions": {package: version(package) for package in packages},
    }
    (job / f"{name}.{which}.json").write_text(json.dumps(about), "utf-8")


def _our_model(folder: str):
    from compression import models
    from kernels import cpu

    bundle = models.load(folder)
    cpu.wait()
    return bundle


def _their_model(folder: str):
    """The same folder as transformers loads it; a Bundle only so that the same code can measure it."""
    import torch
    from transformers import AutoModelForCausalLM

    from compression import arch
    from compression.bundle import Bundle

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
    ).eval()
    return Bundle(model.requires_grad_(False), None, arch.geometry_of(model.config), folder)


def _ours(pair: Pair, bundle, calibration) -> float:
    import compression
    from compression import calibrate
    from evaluation.benches.shipped import recipe

    steps = [
        (compression.get(name), compression.get(name).params.parse(values))
        for name, values in recipe(pair.ours)
    ]
    return calibrate.compress(bundle, steps, calibration).seconds


def _theirs(pair: Pair, bundle, calibration) -> float:
    """Compress with their package, and return the seconds that it took.

    The model is in evaluation mode: bitsandbytes' 8-bit layer doesn't round its inputs in training mode.
    """
    start = time.perf_counter()
    bundle.module = pair.theirs(bundle.module, calibration, **pair.settings).eval()
    return time.perf_counter() - start


# --- the comparison ---


def compare(name: str, job: Path, pythons: dict[str, str], threads: int) -> dict:
    """Both sides of a pair, one after the other: a row of the table.

    If a side failed, the row has `failed` (side -> its last words).
    """
    pair, start, others = PAIRS[name], time.perf_counter(), _work_of_others()
    drawn = [_draw(name, job, pythons, threads, draw) for draw in range(pair.draws)]
    beside = (_work_of_others() - others) / (time.perf_counter() - start)
    row = {
        "name": name,
        "package": pair.package,
        "recipe": pair.ours,
        "settings": pair.settings,
        "cores_beside": round(max(0.0, beside), 3),
    }
    row |= {"windows": pair.windows} if pair.windows else {}
    return row | (drawn[0] if pair.draws == 1 else joined(drawn))


def joined(drawn: list[dict]) -> dict:
    """Several draws of a pair as one row: geometric means, with the standard error over the draws.

    The times are those of the first draw.
    """
    if failed := next((found for found in drawn if "failed" in found), None):
        return failed
    ratios = [found["ratio"] for found in drawn]
    error = stdev(map(math.log, ratios)) / math.sqrt(len(ratios))
    sides = {
        which: drawn[0][which] | {"perplexity": geometric_mean(found[which]["perplexity"] for found in drawn)}
        for which in ("ours", "theirs")
    }
    return (
        drawn[0]
        | sides
        | {"draws": ratios, "ratio": geometric_mean(ratios), "ratio_stderr": geometric_mean(ratios) * error}
    )


def _draw(name: str, job: Path, pythons: dict[str, str], threads: int, draw: int) -> dict:
    """The results of both sides on one draw of calibration windows.

    They are both sides' figures and their ratio, or the error of the side that failed.
    """
    from safetensors.torch import load_file

    from evaluation.measuring.perplexity import perplexity, ratio

    about, found, failed = {}, {}, {}
    for which, python in pythons.items():
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
        }
        command = [
            python,
            "-m",
            "evaluation.benches.peers",
            "--side",
            which,
            "--name",
            name,
            "--job",
            str(job),
            "--draw",
            str(draw),
        ]
        try:
            done = subprocess.run(
                command, cwd=job, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
            )
            words = (
                (done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"])
                if done.returncode
                else []
            )
        except subprocess.TimeoutExpired:
            words = [f"no result after {TIMEOUT_SECONDS} s"]
        if words:
            failed[which] = words[0]
            continue
        about[which] = json.loads((job / f"{name}.{which}.json").read_text("utf-8"))
        found[which] = load_file(job / f"{name}.{which}.safetensors")["losses"]
    sides = {which: about[which] | {"perplexity": perplexity(losses)[0]} for which, losses in found.items()}
    if failed:
        return sides | {"failed": failed}
    value, error = ratio(found["ours"], found["theirs"])
    return sides | {
        "ratio": value,
        "ratio_stderr": None if error != error else error,
        "seconds_ratio": about["ours"]["compress_seconds"] / max(about["theirs"]["compress_seconds"], 1e-9),
    }


def _work_of_others() -> float:
    """Seconds that this machine's cores have worked for other processes.

    This process and its children that have ended don't count.
    """
    import psutil

    all_work, own = psutil.cpu_times(), os.times()
    return all_work.user + all_work.system + getattr(all_work, "nice", 0.0) - sum(own[:4])


def verdict(rows: list[dict]) -> list[str]:
    """What is wrong with the table, one line for each problem; [] if all is well."""
    wrong = [
        f"{row['name']}, {which}: {words}" for row in rows for which, words in row.get("failed", {}).items()
    ]
    for row in (row for row in rows if "ratio" in row):
        if row["name"] == CONTROL:
            if abs(row["ratio"] - 1) > CONTROL_ERROR:
                wrong.append(
                    f"the two sides don't measure the same: the original differs by {row['ratio'] - 1:+.2%}"
                )
        elif row["ratio"] > WORST:
            wrong.append(
                f"{row['name']}: ours is {row['ratio'] - 1:.2%} worse; at most {WORST - 1:.0%} is allowed"
            )
    return wrong


def prepare(job: Path, own: argparse.Namespace, threads: int) -> dict:
    """Prepare model and windows for both sides; returns what the table says about them."""
    from safetensors.torch import save_file

    from compression import models, texts

    folder = models.prepare(own.model)
    tokenizer = models.tokenizer_of(own.model)
    evaluated = texts.load_text(own.text, "evaluation")
    calibration = texts.load_text(own.calibration, "calibration")
    texts.check_disjoint(evaluated, calibration)
    cut = {
        "evaluation": texts.windows(evaluated, tokenizer, "raw", own.window, own.tokens, "evaluation"),
        "calibration": texts.windows(
            calibration, tokenizer, "raw", own.window, own.calibration_tokens, "calibration"
        ),
    }
    save_file({name: windows.ids for name, windows in cut.items()}, job / "windows.safetensors")
    (job / "job.json").write_text(json.dumps({"model": str(folder), "threads": threads}), "utf-8")
    return {
        "model": own.model,
        "weights_hash": models.describe_source(own.model, folder)["weights_hash"],
        "protocol": cut["evaluation"].protocol_id,
        "calibration": cut["calibration"].protocol_id,
    }


def main(argv: list[str]) -> int:
    from compression.catalogue import OFFLINE_MODEL
    from evaluation.benches import authors
    from evaluation.spec import BUILTIN_TEXT

    parser = argparse.ArgumentParser(prog="python -m evaluation peers", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--peers", default=str(ROOT / ".venv-peers" / "bin" / "python"), help="the peers' Python"
    )
    parser.add_argument("--model", default=OFFLINE_MODEL)
    parser.add_argument("--text", default=BUILTIN_TEXT, help="text to measure on")
    parser.add_argument("--calibration", default=BUILTIN_TEXT, help="text to calibrate on")
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--calibration-tokens", type=int, default=32_768)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument(
        "--authors",
        type=Path,
        metavar="DIR",
        help="compare OWQ and SpQR with the clones of the authors' code in this folder",
    )
    parser.add_argument(
        "--only", nargs="+", choices=(*PAIRS, *authors.LOOPS), help="some rows only; the table's others stay"
    )
    parser.add_argument("--out", type=Path, help=f"default {TABLE.relative_to(ROOT)}")
    for name in ("side", "name", "job", "draw"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    own = parser.parse_args(argv)
    if own.side:
        side(own.side, own.name, Path(own.job), int(own.draw))
        return 0
    offered = authors.LOOPS if own.authors else PAIRS
    if strange := [name for name in own.only or () if name not in offered]:
        parser.error(f"--only {strange[0]} is no row of this comparison; choose from {', '.join(offered)}")
    if own.authors:
        return beside_authors(own)
    if not Path(own.peers).is_file():
        print(f"error: no Python at {own.peers}; run make compare-peers, or give --peers", file=sys.stderr)
        return 2
    from evaluation import host

    threads, rows, out = host.threads(), [], own.out or TABLE
    with tempfile.TemporaryDirectory(prefix="peers-") as place, host.timing_lock() as alone:
        about, here = prepare(Path(place), own, threads), {"environment": host.environment(), "alone": alone}
        # the sides run in a folder of their own, so paths must be absolute
        pythons = {"ours": sys.executable, "theirs": os.path.abspath(own.peers)}
        for name in own.only or PAIRS:
            rows.append(compare(name, Path(place), pythons, threads) | here)
            print(_line(rows[-1]), flush=True)
            table = merged(out, about, rows) | {"worst": WORST, "not_compared": NOT_COMPARED}
            # written after every pair, since all of them take hours
            out.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", "utf-8")
    wrong = verdict(rows)
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


def beside_authors(own: argparse.Namespace) -> int:
    """Compare OWQ and SpQR with their authors' code, and write the rows into the table.

    Exit code 1 if their code failed, or if ours leaves more error.
    """
    from compression import models, texts
    from evaluation.benches import authors

    bundle = models.load(own.model)
    calibration = texts.load_text(own.calibration, "calibration")
    cut = texts.windows(
        calibration, bundle.tokenizer, "raw", own.window, own.calibration_tokens, "calibration"
    )
    given, out, rows = authors.matrices(bundle, cut.ids), own.out or TABLE, []
    about = {
        "model": own.model,
        "weights_hash": bundle.source["weights_hash"],
        "calibration": cut.protocol_id,
    }
    with tempfile.TemporaryDirectory(prefix="authors-") as place:
        authors.save(given, Path(place))
        for name in own.only or authors.LOOPS:
            rows.append(authors.compare(name, given, Path(place), own.authors))
            print(authors.line(rows[-1]), flush=True)
            table = json.loads(out.read_text("utf-8")) if out.is_file() else {}
            table["authors"] = authors.merged(table.get("authors", {}), about, rows)
            out.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", "utf-8")
    wrong = [f"{row['name']}: {row['failed']}" for row in rows if "failed" in row]
    wrong += [
        f"{row['name']}: ours leaves {row['ratio'] - 1:.2%} more error"
        for row in rows
        if row.get("ratio", 0) > WORST
    ]
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


def merged(file: Path, about: dict, rows: list[dict]) -> dict:
    """The table with these rows, in the order of PAIRS.

    Rows in `file` stay if they were measured on the same weights and texts.
    """
    old = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    same = all(old.get(k) == about[k] for k in ("weights_hash", "protocol", "calibration"))
    by_name = {row["name"]: row for row in (old["rows"] if same else [])} | {row["name"]: row for row in rows}
    # the rows of the other comparison, which has its own texts
    beside = {"authors": old["authors"]} if "authors" in old else {}
    return about | {"rows": [by_name[name] for name in PAIRS if name in by_name]} | beside


def _line(row: dict) -> str:
    if "failed" in row:
        return f"{row['name']:<18} failed: {row['failed']}"
    ours, theirs, error = row["ours"], row["theirs"], row["ratio_stderr"] or 0
    return (
        f"{row['name']:<18} ours {ours['perplexity']:8.3f}  {row['package']:<14} {theirs['perplexity']:8.3f} "
        f" ratio {row['ratio']:.4f} +- {error:.4f}  seconds {ours['compress_seconds']:.1f} and "
        f"{theirs['compress_seconds']:.1f}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
