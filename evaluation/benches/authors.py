"""Compares OWQ and SpQR with their authors' own code, one matrix at a time.

    python -m evaluation peers --authors DIR [--only owq-3 ...] [--calibration FILE --calibration-tokens N]

DIR holds clones of the authors' repositories (REPOSITORIES); none of their code is part of this project. Both
sides get the same float32 matrix of the model, the same Gram matrix of its inputs (from the uncompressed
model on a calibration text) and the same settings. `same` says what else is the same and what isn't. The
authors' code runs in a process of its own, on a processor. Its calls that only wait for a graphics card do
nothing if there is none.

Two things are compared: the error that is left in the layer's outputs, ||(W - W') X||^2 / ||W X||^2, and the
weights that both kept exactly: the weak columns, or the share of outliers.

The rows go into peers.json, under `authors`. A repository that is missing or doesn't run is reported, and the
others run all the same.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean

from evaluation import ROOT

# (block, role) of the compared matrices: small and large ones, plain and gated inputs
PLACES = ((2, "k"), (2, "v"), (15, "o"), (15, "down"))
WEAK = 2  # columns that OWQ keeps on both sides; the authors' code takes even numbers
# SpQR's outlier threshold, the authors' value for most models; ours is asked for the share that it gives
THRESHOLD = 0.2
TIMEOUT_SECONDS = 1_800
REPOSITORIES = {
    "owq": ("https://github.com/xvyaward/owq", "owq/recon.py"),
    "SpQR": ("https://github.com/Vahe1994/SpQR", "spqr_engine.py"),
}


# --- their side: weight [out, in], gram [in, in], settings -> (the rounded weight, what was kept) ---


def owq(weight, gram, *, bits: int, damping: float, act_order: bool, weak: int = WEAK):
    """The steps of the authors' main.py for one linear, with our H = X^T X.

    Also gives {"weak": the columns that were kept}.
    """
    from torch import nn

    loop = importlib.import_module("owq.recon").GPTQ_OWQ
    quant = importlib.import_module("owq.quant").Quantizer
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    found = loop(layer, n_out=weak)
    found.H, found.quantizer = gram.clone(), quant(bits, perchannel=True, sym=False, mse=True)
    first = quant(bits, perchannel=True, sym=False, mse=True)
    first.find_params(weight.clone(), weight=True, num=40)
    columns = found.hessian_sorting(
        actorder=act_order, frob_norm=(weight - first.quantize(weight)).pow(2).sum(dim=0)
    )
    found.quantizer.out_ids = columns
    found.fasterquant(percdamp=damping, groupsize=-1, actorder=act_order)
    return layer.weight.data, {"weak": sorted(columns.tolist())}


def spqr(
    weight,
    gram,
    *,
    bits: int,
    group_size: int,
    level_bits: int,
    damping: float,
    act_order: bool,
    threshold: float = THRESHOLD,
):
    """The authors' SPQRUtil on one linear. Also gives {"share": share of outliers}."""
    from torch import nn

    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    loop = importlib.import_module("spqr_engine").SPQRUtil(layer)
    loop.H = gram.clone()
    found = loop.quantize(
        bits=bits,
        groupsize=group_size,
        percdamp=damping,
        permutation_order="act_order" if act_order else "identity",
        perchannel=True,
        sym=False,
        round_zero=False,
        qq_scale_bits=level_bits,
        qq_zero_bits=level_bits,
        qq_groupsize=16,
        qq_zero_sym=False,
        outlier_relative_threshold=threshold,
        verbose=False,
    )
    return found.weight, {"share": float(found.unstructured_outlier_mask.float().mean())}


# --- our side: the same, given what their side kept ---


def our_owq(weight, gram, params, theirs: dict):
    from compression.packed.sum import Sum
    from compression.quantization.owq import owq as ours

    packed, _, _ = ours(weight, gram, params, len(theirs["weak"]))
    return packed.dequantize(), {"weak": packed.second.index.tolist() if isinstance(packed, Sum) else []}


def our_spqr(weight, gram, params, theirs: dict):
    import dataclasses

    from compression.packed.sum import Sum
    from compression.quantization.spqr import spqr as ours

    packed, _, _ = ours(weight, gram, dataclasses.replace(params, outliers=theirs["share"]))
    kept = len(packed.second.values) if isinstance(packed, Sum) else 0
    return packed.dequantize(), {"share": kept / weight.numel()}


@dataclass(frozen=True)
class Loop:
    """One comparison: our recipe, the clone with their code, a function for each side, and their settings.

    The settings go by our parameters' names.
    """

    ours: str
    folder: str
    our: Callable
    their: Callable
    settings: tuple[str, ...]  # our parameters whose values their code gets unchanged
    same: str


OWQ_SAME = (
    "a scale a row, range search, columns by sensitivity, damping 0.01, 2 weak columns each; they search 100 "
    "ranges a row and we 40, they leave the weak columns out of the range and we count them as 0"
)
SPQR_SAME = (
    "groups of 16 by loudness, 3-bit scales and zero points in runs of 16, leave-one-out fits, damping 0.01; "
    "ours gets the share of outliers that their threshold of 0.2 gave"
)
SPQR_SETTINGS = ("bits", "group_size", "level_bits", "damping", "act_order")

LOOPS = {
    "owq-3": Loop("owq --bits 3", "owq", our_owq, owq, ("bits", "damping", "act_order"), OWQ_SAME),
    "owq-4": Loop("owq --bits 4", "owq", our_owq, owq, ("bits", "damping", "act_order"), OWQ_SAME),
    "spqr-3": Loop("spqr --bits 3 --level_search false", "SpQR", our_spqr, spqr, SPQR_SETTINGS, SPQR_SAME),
    "spqr-4": Loop("spqr --bits 4 --level_search false", "SpQR", our_spqr, spqr, SPQR_SETTINGS, SPQR_SAME),
    "spqr-3-search": Loop("spqr --bits 3", "SpQR", our_spqr, spqr, SPQR_SETTINGS,
                          SPQR_SAME + "; not alike: ours also searches the codes of scales and zero points"),
}  # fmt: skip


def params_of(name: str):
    """The parameters of our recipe."""
    import compression
    from evaluation.benches.shipped import recipe

    ((method, values),) = recipe(LOOPS[name].ours)
    return compression.get(method).params.parse(values)


def settings(name: str) -> dict:
    """The settings of their side, with the values of our recipe."""
    params = params_of(name).json()
    return {key: params[key] for key in LOOPS[name].settings}


# --- the comparison ---


def matrices(bundle, windows) -> dict:
    """path -> (weight [out, in], gram [in, in]) of PLACES, with the inputs of the uncompressed model.

    If a model has no such block, its last block takes the place. The bundle isn't changed.
    """
    import torch

    from compression import arch, calibrate
    from compression.inputs import capture

    with torch.no_grad():
        inputs, blocks, found = capture(bundle, windows), arch.blocks(bundle.module), {}
        wanted = [(min(layer, len(blocks) - 1), role) for layer, role in PLACES]
        for layer, block in enumerate(blocks[: max(layer for layer, _ in wanted) + 1]):
            roles = {role for at, role in wanted if at == layer}
            groups = arch.groups(bundle.module, layer) if roles else []
            stats = inputs.observe(
                block,
                [bundle.module.get_submodule(g[0][0]) for g in groups],
                frozenset({"gram"}),
                lambda: None,
            )
            for group, seen in zip(groups, stats, strict=True):
                for path, role in group:
                    if role in roles:
                        found[path] = (
                            calibrate.site_of(bundle.module, path, role, layer).weight,
                            seen.gram.float(),
                        )
    return found


def save(given: dict, job: Path) -> None:
    """Write `matrices` for their side: matrices.safetensors in the folder `job`."""
    from safetensors.torch import save_file

    tensors = {
        f"{path}:{name}": t.clone()
        for path, pair in given.items()
        for name, t in zip(("weight", "gram"), pair, strict=True)
    }
    save_file(tensors, job / "matrices.safetensors")


def theirs(name: str, job: Path, folder: Path) -> None:
    """Run their side of a comparison, in this process.

    It reads matrices.safetensors, and writes <name>.safetensors and <name>.json.
    """
    import torch
    from safetensors.torch import load_file, save_file

    sys.path.insert(0, str(folder))
    if not torch.cuda.is_available():
        torch.cuda.synchronize = lambda *device: None
    given, rounded, kept = load_file(job / "matrices.safetensors"), {}, {}
    for path in sorted({key.rpartition(":")[0] for key in given}):
        with torch.no_grad():
            new, kept[path] = LOOPS[name].their(
                given[f"{path}:weight"], given[f"{path}:gram"], **settings(name)
            )
        rounded[path] = new.float().contiguous()
    save_file(rounded, job / f"{name}.safetensors")
    (job / f"{name}.json").write_text(json.dumps(kept), "utf-8")


def compare(name: str, given: dict, job: Path, authors: Path) -> dict:
    """A row: the error that both sides leave in each matrix. `failed` says in words why theirs didn't run."""
    from safetensors.torch import load_file

    from compression.second_order import output_error

    loop, params = LOOPS[name], params_of(name)
    address, file = REPOSITORIES[loop.folder]
    folder = authors / loop.folder
    row = {
        "name": name,
        "recipe": loop.ours,
        "repository": address,
        "settings": settings(name),
        "same": loop.same,
    }
    if not (folder / file).is_file():
        return row | {
            "failed": f"{loop.folder}/{file} isn't there; clone {address} into the folder that "
            "--authors names"
        }
    row["commit"] = _commit(folder)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "evaluation.benches.authors", name, str(job), str(folder.resolve())]
    try:
        done = subprocess.run(
            command, cwd=job, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return row | {"failed": f"no result after {TIMEOUT_SECONDS} s"}
    if done.returncode:
        return row | {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    rounded = load_file(job / f"{name}.safetensors")
    kept = json.loads((job / f"{name}.json").read_text("utf-8"))
    found = {}
    for path, (weight, gram) in given.items():
        new, own = loop.our(weight, gram, params, kept[path])
        ours, other = output_error(weight, new, gram), output_error(weight, rounded[path], gram)
        found[path] = {
            "ours": ours,
            "theirs": other,
            "ratio": ours / max(other, 1e-30),
            **_kept(own, kept[path]),
        }
    return row | {"matrices": found, "ratio": geometric_mean(f["ratio"] for f in found.values())}


def _kept(ours: dict, theirs: dict) -> dict:
    """Compare what both sides kept: weak columns in common and in all, or both outlier shares."""
    if "weak" in ours:
        return {
            "weak_columns": len(theirs["weak"]),
            "weak_in_common": len(set(ours["weak"]) & set(theirs["weak"])),
        }
    return {"outlier_share_ours": ours["share"], "outlier_share_theirs": theirs["share"]}


def _commit(folder: Path) -> str:
    """The clone's commit; "" if the folder is no clone."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def merged(old: dict, about: dict, rows: list[dict]) -> dict:
    """The new rows beside the old ones of the same weights and text, in the order of LOOPS."""
    kept = old.get("rows", []) if all(old.get(key) == value for key, value in about.items()) else []
    by_name = {row["name"]: row for row in (*kept, *(row for row in rows if "failed" not in row))}
    return about | {"rows": [by_name[name] for name in LOOPS if name in by_name]}


def line(row: dict) -> str:
    """A row as a line for the screen."""
    if "failed" in row:
        return f"{row['name']:<14} failed: {row['failed']}"
    each = ", ".join(
        f"{path.removeprefix('model.layers.')} {f['ours']:.5f}/{f['theirs']:.5f}"
        for path, f in row["matrices"].items()
    )
    return f"{row['name']:<14} error left, ours over theirs {row['ratio']:.4f}: {each}"


if __name__ == "__main__":
    asked = argparse.ArgumentParser(
        prog="python -m evaluation.benches.authors",
        description="Their side of one comparison; peers.py starts it.",
    )
    asked.add_argument("name", choices=tuple(LOOPS))
    asked.add_argument("job", type=Path)
    asked.add_argument("folder", type=Path)
    own = asked.parse_args()
    theirs(own.name, own.job, own.folder)
