"""Measures the error that each method leaves in each layer's outputs: `python -m evaluation layers`.

    ||(W - W') X||^2 / ||W X||^2

for the linears of every tenth block of the offline model. X is what enters the linear in the uncompressed
model on the calibration text. All methods see the same X, so their order is free of the noise that a
perplexity has.

The errors are written to assets/results/bench/layers.json, with a witness of each recipe (witness.py). A row
that the code still gives isn't measured again. Tests check the orders that the papers claim.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from compression import arch, calibrate
from compression.base import Block, BlockMethod, Group, Method, Params
from compression.bundle import Bundle
from compression.inputs import capture
from compression.second_order import output_error
from evaluation import ROOT
from evaluation.benches import shipped
from evaluation.running import witness
from evaluation.spec import WIKITEXT, RunSpec

EVERY = 10  # every tenth block is measured
FILE = ROOT / "assets" / "results" / "bench" / "layers.json"
RECIPES = (
    "rtn --bits 3 --group_size -1",
    "gptq --bits 3 --group_size -1",
    "gptq --bits 3 --group_size -1 --tuning mse",
    "owq --bits 3 --tuning minmax",
    "owq --bits 3",
    "rtn --bits 4 --group_size -1",
    "gptq --bits 4 --group_size -1",
    "spqr --bits 3",
    "rtn --bits 3 --group_size 128",
    "awq --bits 3",
    "rtn --bits 4 --group_size 128",
    "awq --bits 4",
    "hqq --bits 3 --iterations 0",
    "hqq --bits 3",
    "nf4",
    "nf4 --table fp4",
    "svd --removed 0.2",
    "asvd --removed 0.2 --allocation uniform",
    "svd_llm --removed 0.2",
    "pca --removed 0.2",
    "magnitude --sparsity 0.5",
    "wanda --sparsity 0.5",
    "sparsegpt --sparsity 0.5",
    "wanda --pattern 2:4",
    "sparsegpt --pattern 2:4",
)


@torch.no_grad()
def layer_errors(
    bundle: Bundle, windows: torch.Tensor, steps: Sequence[tuple[str, Method, Params]]
) -> dict[str, dict]:
    """name -> {"errors": {path: error}, "bits_per_weight": mean over weights}; the bundle isn't changed."""
    names = frozenset({"gram"}).union(*(method.collects(params) for _, method, params in steps))
    inputs, blocks = capture(bundle, windows), arch.blocks(bundle.module)
    found: dict[str, Any] = {name: {"errors": {}, "bits": 0.0} for name, _, _ in steps}
    weights = 0
    for layer, block in enumerate(blocks):
        paths = arch.groups(bundle.module, layer)
        if layer % EVERY:
            inputs.advance(block)
            continue
        collected = inputs.observe(
            block, [bundle.module.get_submodule(g[0][0]) for g in paths], names, lambda: None
        )
        groups = []
        for i, (members, stats) in enumerate(zip(paths, collected, strict=True)):
            sites = tuple(calibrate.site_of(bundle.module, path, role, layer) for path, role in members)
            groups.append(Group(sites, stats, *arch.fold(bundle.module, layer, i)))
        weights += sum(s.weight.numel() for g in groups for s in g.sites)
        for name, method, params in steps:
            edits = (
                [method.compress(Block(layer, len(blocks), tuple(groups)), params)]
                if isinstance(method, BlockMethod)
                else None
            )
            for group in groups:
                for site in group.sites:
                    edit = edits[0] if edits else method.compress(site, group.stats, params)
                    packed = edit.linears[site.path]
                    error = edit.figures.get(site.path, {}).get("output_error")
                    if error is None:
                        error = output_error(site.weight, packed.dequantize(), group.stats.gram)
                    found[name]["errors"][site.path] = error
                    found[name]["bits"] += 8.0 * packed.stored_bytes()
    return {
        name: {"errors": f["errors"], "bits_per_weight": f["bits"] / weights} for name, f in found.items()
    }


def numbers(recipe: str, config: Mapping, nudge: int) -> dict[str, float]:
    """The numbers that the code gives for a row on a small model (witness.py)."""
    steps = [(recipe, *spec_of(recipe).methods[0])]
    row = layer_errors(witness.model(config, nudge), witness.windows(witness.CALIBRATED), steps)
    return row[recipe]["errors"] | {"bits": row[recipe]["bits_per_weight"]}


def why_stale(recipe: str, rows: Mapping[str, dict]) -> list[str]:
    """Where the code differs from the stored row, a line for each difference; [] if the row is fresh."""
    return witness.differences(partial(numbers, recipe), rows.get(recipe, {}).get("witness", {}))


def spec_of(recipe: str) -> RunSpec:
    return RunSpec(shipped.OFFLINE_MODEL, shipped.recipe(recipe))


def main(argv: list[str]) -> int:
    from compression import models, texts

    parser = argparse.ArgumentParser(prog="python -m evaluation layers", description=__doc__.split("\n")[0])
    parser.add_argument("--calibration", default=WIKITEXT, help="calibration text")
    parser.add_argument("--tokens", type=int, default=32_768)
    own = parser.parse_args(argv)
    bundle = models.load(shipped.OFFLINE_MODEL)
    config = bundle.module.config.to_dict()
    text = texts.load_text(own.calibration, "calibration")
    windows = texts.windows(text, bundle.tokenizer, "raw", 512, own.tokens, "calibration").ids
    stored = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {"tokens": own.tokens, "methods": {}}
    known = stored["methods"] if stored["tokens"] == own.tokens else {}
    stale = [recipe for recipe in RECIPES if why_stale(recipe, known)]
    found = layer_errors(bundle, windows, [(recipe, *spec_of(recipe).methods[0]) for recipe in stale])
    for recipe, row in found.items():
        row["witness"] = witness.witness(
            partial(numbers, recipe), witness.small_config(config, spec_of(recipe))
        )
    table = {recipe: found.get(recipe) or known[recipe] for recipe in RECIPES}
    FILE.write_text(json.dumps({"tokens": own.tokens, "methods": table}, indent=1) + "\n", "utf-8")
    for recipe, f in table.items():
        errors = torch.tensor(list(f["errors"].values()))
        print(
            f"{recipe:<36} {f['bits_per_weight']:.3f} bits, error {errors.mean():.5f} mean, "
            f"{errors.log().mean().exp():.5f} geometric"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
