"""Finds recipes that fit into a memory, with their known quality, before anything is downloaded or run.

    found = plan(geometry, Need(memory_bytes=8e9, context=8_192), model="llama-3.1-8b", results=[])
    found[0].recipe, found[0].need_bytes, found[0].fits, found[0].known

Bytes follow from the model's sizes, as in an estimate. They hold for every model of known sizes. Quality
doesn't follow from sizes. It is taken from a result of the same model and the same recipe: a result that was
measured here or imported, else a published one. If there is none, the quality isn't known, and no number is
shown in its place.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from compression.bundle import Geometry
from compression.catalogue import CATALOGUE, OFFLINE_MODEL
from evaluation import ROOT
from evaluation.running.estimate import PROCESS_BYTES, stored
from evaluation.spec import Result, RunSpec

Recipe = tuple[tuple[str, dict], ...]
PUBLISHED = ROOT / "assets" / "published.json"
TABLE_BITS: Literal[16] = 16  # papers and the shipped results leave the token tables in 16 bits

# what is tried for every model, each method with its defaults
CANDIDATES: tuple[Recipe, ...] = (
    (("none", {}),),
    (("rtn", {"bits": 8}),),
    (("llm_int8", {}),),
    (("smoothquant", {}),),
    (("gptq", {"bits": 6}),),
    (("gptq", {"bits": 5}),),
    (("gptq", {"bits": 4}),),
    (("awq", {"bits": 4}),),
    (("nf4", {}),),
    (("hqq", {"bits": 4}),),
    (("spqr", {"bits": 4}),),
    (("gptq", {"bits": 3}),),
    (("awq", {"bits": 3}),),
    (("spqr", {"bits": 3}),),
    (("owq", {"bits": 3}),),
    (("gptq", {"bits": 2}),),
    (("sparsegpt", {"sparsity": 0.5}),),
    (("sparsegpt", {"pattern": "2:4"}),),
    (("wanda", {"pattern": "2:4"}), ("gptq", {"bits": 4})),
    (("shortgpt", {"removed": 0.2}),),
    (("svd_llm", {"removed": 0.2}),),
)


@dataclass(frozen=True)
class Source:
    """A maker's document that states a figure, by its title."""

    title: str
    url: str


@dataclass(frozen=True)
class Machine:
    """A machine that people have: its memory in bytes, and how fast it reads that memory in bytes a second.

    Both are the maker's own figures, each with the document that states it. A machine without such a document
    isn't listed. A gigabyte counts as 1e9 here, so that a few per cent stay free.
    """

    key: str
    title: str
    memory_bytes: float
    bandwidth: float
    memory_source: Source
    bandwidth_source: Source


def _machine(
    key: str, title: str, gigabytes: float, rate: float, memory: Source, bandwidth: Source
) -> Machine:
    """rate: gigabytes a second."""
    return Machine(key, title, gigabytes * 1e9, rate * 1e9, memory, bandwidth)


_APPLE, _NVIDIA = "https://www.apple.com/newsroom", "https://www.nvidia.com"
PI_5 = Source(
    "Raspberry Pi, Introducing: Raspberry Pi 5! (32 bits at 4,267 MT/s)",
    "https://www.raspberrypi.com/news/introducing-raspberry-pi-5/",
)
M2 = Source(
    "Apple Newsroom, 6 June 2022, Apple unveils M2",
    f"{_APPLE}/2022/06/apple-unveils-m2-with-breakthrough-performance-and-capabilities/",
)
MACBOOK_AIR = Source("Apple, MacBook Air (M2, 2022), Tech Specs", "https://support.apple.com/111867")
M4 = Source(
    "Apple Newsroom, 7 May 2024, Apple introduces M4 chip", f"{_APPLE}/2024/05/apple-introduces-m4-chip/"
)
MAC_MINI = Source(
    "Apple Newsroom, 29 October 2024, Apple's new Mac mini",
    f"{_APPLE}/2024/10/apples-new-mac-mini-is-more-mighty-more-mini-and-built-for-apple-intelligence/",
)
ORIN = Source(
    "NVIDIA Technical Blog, Jetson Orin Nano Developer Kit Gets a “Super” Boost, table 1",
    "https://developer.nvidia.com/blog/nvidia-jetson-orin-nano-developer-kit-gets-a-super-boost/",
)
T4 = Source(
    "NVIDIA T4 product brief (PB-09256-001), table 2, Memory Specifications",
    f"{_NVIDIA}/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-product-brief.pdf",
)
L4 = Source("NVIDIA L4 Tensor Core GPU, Product Specifications", f"{_NVIDIA}/en-us/data-center/l4/")
ADA = Source(
    "NVIDIA Ada GPU Architecture (white paper), table of the GeForce RTX 4090",
    "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
)
A100 = Source(
    "NVIDIA A100 datasheet, column A100 80GB SXM",
    f"{_NVIDIA}/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf",
)
H200 = Source("NVIDIA H200 GPU, Specifications", f"{_NVIDIA}/en-us/data-center/h200/")

MACHINES = (
    _machine("pi5", "Raspberry Pi 5, 8 GB", 8, 17, PI_5, PI_5),
    _machine("m2", "Apple M2, 8 GB", 8, 100, MACBOOK_AIR, M2),
    _machine("m4", "Apple M4, 16 GB", 16, 120, MAC_MINI, M4),
    _machine("orin-nano", "Jetson Orin Nano Super, 8 GB", 8, 102, ORIN, ORIN),
    _machine("t4", "NVIDIA T4, 16 GB", 16, 320, T4, T4),
    _machine("l4", "NVIDIA L4, 24 GB", 24, 300, L4, L4),
    _machine("rtx4090", "GeForce RTX 4090, 24 GB", 24, 1008, ADA, ADA),
    _machine("a100", "NVIDIA A100 SXM, 80 GB", 80, 2039, A100, A100),
    _machine("h200", "NVIDIA H200, 141 GB", 141, 4800, H200, H200),
)


@dataclass(frozen=True)
class Need:
    """What a model is wanted for.

    memory_bytes: what weights, keys and values and the program may take together. context: tokens that the
    model shall remember. cache_bits: bits of its keys and values. bandwidth: bytes a second that the machine
    reads; 0 if it isn't known.
    """

    memory_bytes: float
    context: int
    cache_bits: Literal[16, 8, 4] = 16
    bandwidth: float = 0.0


@dataclass(frozen=True)
class Known:
    """What is known about the quality of a recipe on one model: its perplexity over the original's.

    where: the text and its window. source: a paper, or the processor that a result was measured on. stderr:
    0 if the source gives none. run: the id of a stored result; "" for a paper.
    """

    kind: Literal["measured", "published", "original"]
    ratio: float
    stderr: float = 0.0
    where: str = ""
    source: str = ""
    url: str = ""
    run: str = ""


@dataclass(frozen=True)
class Option:
    """One recipe on one model.

    tokens_per_second: no machine of this bandwidth is faster; None if the bandwidth isn't known. elsewhere:
    the recipe's result on the model that comes with the program; it only orders options of unknown quality.
    """

    recipe: Recipe
    file_bytes: int
    weight_bits: float
    cache_bytes: int
    need_bytes: int
    fits: bool
    tokens_per_second: float | None
    known: Known | None
    elsewhere: Known | None = None


_ORDER = {"original": 0, "measured": 1, "published": 2}


def plan(geometry: Geometry, need: Need, model: str = "", results: Iterable[Result] = ()) -> list[Option]:
    """Every candidate. Recipes that fit come first, and among these the recipes of known quality.

    Measured results come before published ones, because their protocols differ; both are ordered by their
    ratio. Recipes of unknown quality follow, in the order that they have on OFFLINE_MODEL. results: stored
    results.
    """
    stored_results = list(results)
    known = published(model) | measured(model, stored_results)
    elsewhere = measured(OFFLINE_MODEL, stored_results)
    recipes = dict.fromkeys(_key(r) for r in CANDIDATES) | dict.fromkeys(published(model))
    options = [
        _option(json.loads(key), geometry, need, known.get(key), elsewhere.get(key)) for key in recipes
    ]
    return sorted(options, key=_rank)


def _rank(option: Option) -> tuple:
    kind = _ORDER[option.known.kind] if option.known else len(_ORDER)
    found = option.known or option.elsewhere
    return (not option.fits, kind, found is None, found.ratio if found else 0.0, -option.file_bytes)


def _option(
    steps: Sequence, geometry: Geometry, need: Need, known: Known | None, elsewhere: Known | None = None
) -> Option:
    spec = _spec(steps)
    file_bytes, weight_bits, after = stored(spec, geometry)
    cache = need.context * after.kv_cache_bytes_per_token(need.cache_bits)
    needed = file_bytes + cache + PROCESS_BYTES
    # a token reads every weight and the whole cache once; of an untied token table it reads one row
    read = file_bytes + cache - (0 if after.tied else 2 * after.table_parameters)
    return Option(
        recipe=spec.recipe,
        file_bytes=file_bytes,
        weight_bits=weight_bits,
        cache_bytes=cache,
        need_bytes=needed,
        fits=needed <= need.memory_bytes,
        tokens_per_second=need.bandwidth / read if need.bandwidth else None,
        known=Known("original", 1.0) if spec.keeps_weights else known,
        elsewhere=elsewhere,
    )


def _key(steps: Iterable) -> str:
    """A recipe with every default filled in, as text; equal recipes have equal texts."""
    return json.dumps(_spec(steps).recipe, sort_keys=True)


def _spec(steps: Iterable) -> RunSpec:
    """A recipe as a run; its sizes depend on no model's name."""
    return RunSpec("planned", tuple((name, values) for name, values in steps), table_bits=TABLE_BITS)


@functools.cache
def published(model: str) -> dict[str, Known]:
    """Recipes of a catalogue model -> what a paper has published of it."""
    return {
        _key(steps): Known(
            "published",
            perplexity / row["original"],
            where=f"{row['text']}, {row['window']}",
            source=row["source"],
            url=row["url"],
        )
        for row in json.loads(PUBLISHED.read_text("utf-8"))
        if model in row["models"]
        for steps, perplexity in row["perplexity"]
    }


def measured(model: str, results: Iterable[Result]) -> dict[str, Known]:
    """Recipes of a model -> its stored result over the most tokens.

    Only results with the plan's settings count: token tables in 16 bits, exact activations, an unquantized
    cache.
    """
    found: dict[str, tuple[int, Known]] = {}
    for result in results:
        spec, ratio = result.spec, result.metrics.get("perplexity_ratio")
        plain = (spec.table_bits, spec.activations, spec.cache_bits) == (TABLE_BITS, "exact", 16)
        if result.status != "ok" or spec.model != model or ratio is None or not plain:
            continue
        tokens = int(result.metrics.get("evaluated_tokens", 0))
        key = json.dumps(spec.recipe, sort_keys=True)
        if key not in found or tokens > found[key][0]:
            found[key] = (
                tokens,
                Known(
                    "measured",
                    ratio,
                    result.metrics.get("perplexity_ratio_stderr", 0.0),
                    f"{spec.text}, {spec.window}",
                    result.environment.get("processor", ""),
                    run=result.id,
                ),
            )
    return {key: known for key, (_, known) in found.items()}


def largest(
    need: Need, recipe: Recipe = (("gptq", {"bits": 4}),), count: int = 3
) -> list[tuple[str, Option]]:
    """The largest models of the catalogue that fit with one recipe: (name, option), the largest first."""
    options = [
        (e, _option(recipe, e.geometry, need, published(e.name).get(_key(recipe))))
        for e in CATALOGUE.values()
    ]
    fitting = sorted(((e, o) for e, o in options if o.fits), key=lambda pair: -pair[0].parameters)
    return [(e.name, o) for e, o in fitting[:count]]
