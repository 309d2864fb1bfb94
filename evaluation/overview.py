"""The README's table of methods, from stored results:

    python -m evaluation.overview             write the tables into README.md
    python -m evaluation.overview --rates     first time every method's decode step here, side by side with the original
    python -m evaluation.overview --rates "wanda --pattern 2:4" ...     these alone; the others of this machine stay

Sizes, perplexity and divergence come from assets/results (gates-*.json: 32k tokens, `make measure`). Decode rates come from
assets/results/bench/rates.json, timed on the machines that it names, with the bytes that a step reads; the README shows those
of the first machine that has them all. A speed depends on the format and not on the numbers in it, so each model is compressed
with few calibration and training tokens for that. Another table sets each method that was calibrated on a text of the kind that it
is measured on beside itself, calibrated on a text of another kind (gates-*.json and calibration-*.json); the last one sets public
implementations beside ours (peers.json there, `make compare-peers`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation import peers, shipped
from evaluation.provenance import ROOT
from evaluation.spec import Result, RunSpec
from evaluation.words import Words

README, RATES = ROOT / "README.md", ROOT / "assets" / "results" / "bench" / "rates.json"
PEERS_HEAD = (
    "settings",
    "other program",
    "alike, and not",
    "perplexity, ours",
    "perplexity, theirs",
    "ratio",
    "seconds, ours",
    "seconds, theirs",
)
AUTHORS_HEAD = (
    "settings",
    "authors' code",
    "alike, and not",
    "error left, ours over theirs",
    "lowest and highest",
    "kept by both",
)
NO_AUTHORS = "Not measured yet: `python -m evaluation.peers --authors DIR`.\n"
TEXTS_HEAD = (
    "method",
    "weights, bits each",
    "perplexity, WikiText-2",
    "KL, WikiText-2",
    "perplexity, Python's help",
    "KL, Python's help",
    "perplexity, help over WikiText-2",
)
NO_TEXTS = "Not measured yet: `python -m evaluation.shipped calibration`.\n"
QUIET = 0.1  # cores busy with other work up to which seconds are shown
HEAD = (
    "method",
    "weights, bits each",
    "whole model, bits a parameter",
    "file",
    "perplexity",
    "KL",
    "same top",
    "tokens a second, times the original's",
)
TOKENS = {"calibration": 2_048, "train_tokens": 512}  # where only speed counts
FEWER_BYTES = (  # recipes that promise speed with their bytes; timed beside the gates
    "llm_pruner --removed 0.25", "svd_llm --removed 0.5", "wanda --pattern 2:4", "wanda --sparsity 0.5",
    "sparsegpt --sparsity 0.5 --quantize true",
)  # fmt: skip


def results(group: str = "gates", folder: Path | None = None) -> dict[str, Result]:
    """The measured runs of a group by file name, in the order in which `shipped` names them, without those that only tests read.
    folder: where the files lie, default assets/results."""
    found = {}
    for spec in shipped.specs(group, ladder=False):
        file = (folder or shipped.RESULTS) / shipped.file_name(spec, group)
        if file.is_file():
            found[file.stem] = Result.parse(json.loads(file.read_text("utf-8")))
    return found


def label(spec: RunSpec) -> str:
    """The recipe in words, with the parameters that differ from their defaults."""
    return Words("en").recipe(spec.recipe, True, spec.cache_bits) + (f", seed {spec.seed}" if spec.seed else "")


def row(result: Result, rate: dict | None) -> list[str]:
    """One line of the table. rate: tokens a second, its own and the original's beside it."""
    m, words = result.metrics, Words("en")
    original = result.spec.is_original
    return [
        label(result.spec),
        f"{m['weight_bits_per_weight']:.2f}",
        f"{m['model_bits_per_parameter']:.2f}",
        words.size(m["file_bytes"]),
        f"{m['perplexity']:.4g} ± {m['perplexity_stderr']:.2g}" if m["perplexity"] < 1e4 else "> 10,000",
        "" if original else f"{m['kl_divergence_mean']:.3f}",
        "" if original else words.share(m["same_top_token_rate"]),
        "" if rate is None else f"{rate['tokens_per_second'] / rate['original_tokens_per_second']:.2f}",
    ]


def table(group: str) -> str:
    """A group's table in Markdown; without its last column where no machine has every rate, since one with holes tells little."""
    measured = results(group).values()
    names = [spoken_recipe(r.spec) for r in measured]
    rates = next((m["rates"] for m in machines() if m["rates"].keys() >= set(names)), {})
    lines = [HEAD, ["---"] * len(HEAD), *(row(r, rates.get(name)) for r, name in zip(measured, names, strict=True))]
    if not rates:
        lines = [line[:-1] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def same_but_text(a: Result, b: Result) -> bool:
    """Whether two runs are one recipe on the same weights, measured on the same windows, and read other calibration texts."""
    asked = [dataclasses.replace(r.spec, calibration="", text="", preset="quick") for r in (a, b)]
    return asked[0] == asked[1] and a.protocol_id == b.protocol_id and a.fingerprint["model"] == b.fingerprint["model"] and (
        a.fingerprint["calibration"] != b.fingerprint["calibration"])  # fmt: skip


def text_ratio(other: Result, usual: Result) -> tuple[float, float]:
    """(perplexity of `other` over that of `usual`, standard error), paired over the windows that both were measured on.

    Raises ValueError where something else than the calibration text differs.
    """
    import torch

    from evaluation.perplexity import ratio

    if not same_but_text(other, usual):
        raise ValueError(
            f"{other.id} and {usual.id} differ in more than their calibration text, or not in it; measure both again"
        )
    return ratio(*(torch.tensor(r.series["window_losses"])[:, None] for r in (other, usual)))


def texts_table(folder: Path | None = None) -> str:
    """Each recipe of shipped.ELSEWHERE calibrated on both texts, in Markdown; one that lacks a side is left out."""
    usual, lines, words = results("gates", folder), [TEXTS_HEAD, ["---"] * len(TEXTS_HEAD)], Words("en")
    for name, other in results("calibration", folder).items():
        beside = usual.get(name.replace("calibration-", "gates-", 1))
        if beside is None:
            continue
        value, error = text_ratio(other, beside)
        sides = [
            f(r.metrics)
            for r in (beside, other)
            for f in (
                lambda m: f"{m['perplexity']:.4g} ± {m['perplexity_stderr']:.2g}",
                lambda m: f"{m['kl_divergence_mean']:.3f}",
            )
        ]
        bits = f"{other.metrics['weight_bits_per_weight']:.2f}"
        lines.append([words.recipe(other.spec.recipe, True), bits, *sides, f"{value:.3f} ± {error:.3f}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) if len(lines) > 2 else NO_TEXTS


def peers_table() -> str:
    """Public implementations beside ours, in Markdown; seconds only where the machine had nothing else to do."""
    lines = [PEERS_HEAD, ["---"] * len(PEERS_HEAD)]
    for row in json.loads(peers.TABLE.read_text("utf-8"))["rows"] if peers.TABLE.is_file() else ():
        if "ratio" not in row:
            continue
        quiet = row.get("cores_beside", 9) <= QUIET
        seconds = [f"{row[side]['compress_seconds']:.0f}" if quiet else "" for side in ("ours", "theirs")]
        fewer = f", {row['windows']} windows" if "windows" in row else f", mean of {len(row['draws'])}" if "draws" in row else ""
        lines.append([
            f"`{row['recipe']}`{fewer}", row["package"], _alike(row["name"]),
            f"{row['ours']['perplexity']:.2f}", f"{row['theirs']['perplexity']:.2f}",
            f"{row['ratio']:.4f} ± {row['ratio_stderr'] or 0:.4f}", *seconds,
        ])  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _alike(name: str) -> str:
    """What the settings of a stored pair mean, "" for one that is no longer compared."""
    return peers.PAIRS[name].same if name in peers.PAIRS else ""


def authors_table(file: Path | None = None) -> str:
    """The authors' own loops beside ours, a row a recipe over all matrices, in Markdown. file: default peers.json."""
    file = file or peers.TABLE
    found = json.loads(file.read_text("utf-8")).get("authors", {}).get("rows", ()) if file.is_file() else ()
    lines = [AUTHORS_HEAD, ["---"] * len(AUTHORS_HEAD)]
    for row in found:
        each = list(row["matrices"].values())
        ratios = sorted(f["ratio"] for f in each)
        if "weak_columns" in each[0]:
            kept = f"{sum(f['weak_in_common'] for f in each)} of {sum(f['weak_columns'] for f in each)} weak columns"
        else:
            shares = [100 * sum(f[f"outlier_share_{side}"] for f in each) / len(each) for side in ("ours", "theirs")]
            kept = "{:.2f} and {:.2f} % outliers, ours and theirs".format(*shares)
        at = f" at {row['commit'][:8]}" if row["commit"] else ""
        lines.append([
            f"`{row['recipe']}`", f"[{row['repository'].removeprefix('https://github.com/')}]({row['repository']}){at}", row["same"],
            f"{row['ratio']:.4f}", f"{ratios[0]:.4f} and {ratios[-1]:.4f} of {len(each)} matrices", kept,
        ])  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) if len(lines) > 2 else NO_AUTHORS


TABLES = {
    "methods": lambda: table("gates"),
    "texts": texts_table,
    "domain": lambda: table("domain"),
    "peers": peers_table,
    "authors": authors_table,
}  # name of a pair of marks in the README -> what stands between them


def written(readme: str) -> str:
    """README text with each table between its two marks."""
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        before, rest = readme.split(begin)
        readme = before + begin + make() + end + rest.split(end)[1]
    return readme


def spoken_recipe(spec: RunSpec) -> str:
    """A name of what is stored, however long it was trained."""
    steps = tuple((name, {k: v for k, v in values.items() if k != "train_tokens" or v == 0}) for name, values in spec.recipe)
    return label(dataclasses.replace(spec, recipe=steps, seed=0))


def rated(words: str) -> RunSpec:
    """A recipe as it is timed."""
    steps, fields = shipped.asked(words)
    return RunSpec(shipped.OFFLINE_MODEL, steps, **{"table_bits": 16} | fields)


def machines() -> list[dict]:
    """The stored rates, an entry a processor: host, prompt_tokens, rates by recipe."""
    return json.loads(RATES.read_text("utf-8")) if RATES.is_file() else []


def rates(asked: Sequence[str] = ()) -> list[dict]:
    """The stored entries and this machine's with the decode rates of these recipes (default: every gate), each next to the original
    in one process, and the bytes that a step reads."""
    from compression import calibrate, engine, models, texts
    from evaluation import host, latency
    from kernels import cpu

    cpu.wait()
    original = models.load(shipped.OFFLINE_MODEL)
    windows = texts.windows(
        texts.load_text("builtin", "calibration"), original.tokenizer, "raw", 512, TOKENS["calibration"], "calibration"
    ).ids
    prompt = windows.flatten()[: latency.PROMPT_TOKENS][None]
    moved = lambda bundle: decoder.bytes_per_token if (decoder := engine.serve(bundle)) else None  # noqa: E731
    found: dict[str, dict] = {}
    specs = [result.spec for result in results().values()] + [rated(words) for words in FEWER_BYTES]
    for spec in [rated(words) for words in asked] or specs:
        name = spoken_recipe(spec)
        if name in found:
            continue
        short = tuple((m, v | {"train_tokens": TOKENS["train_tokens"]} if "train_tokens" in v else v) for m, v in spec.recipe)
        bundle = models.load(shipped.OFFLINE_MODEL)
        calibrate.compress(bundle, dataclasses.replace(spec, recipe=short).methods, windows, table_bits=spec.table_bits,
                           activations=spec.activations, cache_bits=spec.cache_bits)  # fmt: skip
        ways = latency.ways(None if spec.is_original else bundle, original)
        timed = latency.compare({k: v for k, v in ways.items() if k in ("compressed", "original")}, prompt)
        beside, own = timed["original"], timed.get("compressed", timed["original"])
        found[name] = {
            "tokens_per_second": own["decode_tokens_per_second"],
            "original_tokens_per_second": beside["decode_tokens_per_second"],
            "bytes_per_token": moved(bundle), "original_bytes_per_token": moved(original),
        }  # fmt: skip
        print(name, found[name], flush=True)
    about = {"host": host.environment(), "prompt_tokens": prompt.shape[1]}
    name = about["host"]["processor"]
    others, here = (
        [m for m in machines() if m["host"]["processor"] != name],
        [m for m in machines() if m["host"]["processor"] == name],
    )
    kept = here[0]["rates"] if asked and here and all(here[0][k] == v for k, v in about.items()) else {}
    return [*others, about | {"rates": kept | found}]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m evaluation.overview", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--rates", nargs="*", metavar="RECIPE", help="time decode steps first, of every method (half an hour) or of these"
    )
    asked = parser.parse_args(argv).rates
    if asked is not None:
        RATES.write_text(json.dumps(rates(asked), indent=1) + "\n", "utf-8")
    README.write_text(written(README.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
