"""The stages of a run, in their order. Each takes the request and what earlier stages gave.

read_texts            texts are found and cut into windows     -> Read
load                  weights are read                         -> Loaded
measure_original      the original's figures, once             -> Original
compress_and_compare  compress, save, measure, time            -> Result
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from compression import texts
from compression.base import CompressionError, Note, StudentMethod
from compression.bundle import Bundle
from compression.judged import Judged
from compression.recorder import Recorder
from evaluation import host
from evaluation.measuring import judging, memory
from evaluation.running import provenance, timing, witness
from evaluation.running.clock import Clock
from evaluation.running.reading import Reading, read
from evaluation.spec import Result, RunSpec
from evaluation.store import Store
from kernels import cpu
from kernels import home as place

if TYPE_CHECKING:
    from compression.calibrate import Outcome
    from evaluation.measuring.measure import Baseline

NOTES_OF_THE_ORIGINAL = frozenset(
    {
        "already_rounded",
        "recomputed_buffers",
        "window_shortened",
        "machine_shared",
        "machine_busy",
        "plain_loop",
        "no_short_context",
        "continuations_shortened",
        "timing_shortened",
        "no_timing",
        "special_tokens_as_text",
    }
)


@dataclass(frozen=True)
class Order:
    """The request, and how to carry it out; the same for every stage.

    held: locks on folders that nobody may remove until the record is written. nudges: the seeds of the
    witness (witness.py).
    """

    spec: RunSpec
    store: Store
    clock: Clock
    held: contextlib.ExitStack
    recorder: Recorder
    allow_paths: bool
    timings: bool
    again: bool
    nudges: tuple[int, ...]

    def answered(self, spec: RunSpec, fingerprint: dict) -> Result | None:
        """The newest stored answer to the same question that this program would give too."""
        question = spec.question(fingerprint)
        for r in reversed(self.store.own()):
            usable = r.status == "ok" and (r.spec.is_original or self.store.has_artifact(r))
            if usable and r.spec.question(r.fingerprint) == question and provenance.holds(r, self.store):
                return r
        return None


@dataclass(frozen=True)
class Read:
    """The texts of a run, and the windows that were cut from them."""

    text: texts.Text
    calibration: texts.Text | None
    windows: Reading


@dataclass(frozen=True)
class Loaded:
    """The loaded model, and what was true of it before compression. Compressing changes it in place.

    fingerprint: hashes of everything that the numbers depend on.
    """

    bundle: Bundle
    config: dict
    device: str
    dtype: str
    seconds: float
    fingerprint: dict
    notes: tuple[Note, ...]

    @property
    def original_fingerprint(self) -> dict:
        """What the original's measurement depends on. No text that a method reads is part of it."""
        return {k: v for k, v in self.fingerprint.items() if k != "template"} | {"calibration": ""}


@dataclass
class Original:
    """The original's result. baseline: what the compressed model is compared with, None after that."""

    result: Result
    baseline: Baseline | None


@dataclass
class Found:
    """What the stages have found out about the compressed model. Every stage after compressing adds to it."""

    metrics: dict[str, float] = field(default_factory=dict)
    series: dict[str, list] = field(default_factory=dict)
    timings: list[dict] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    layers: list[dict] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)


def read_texts(order: Order) -> Read:
    """Find what the run reads, before a weight is loaded.

    Raises if a name is unknown, a file is no text, or a text is too short.
    """
    from compression import models

    spec, paths = order.spec, order.allow_paths
    text = texts.load_text(spec.text, "evaluation", paths)
    calibration = None
    for name in spec.students:
        models.prepare(name, order.recorder.emit, paths)
    if spec.needs_calibration:
        calibration = texts.load_text(spec.calibration, "calibration", paths)
        texts.check_disjoint(text, calibration)
    models.prepare(spec.model, order.recorder.emit, paths)
    geometry = models.geometry(spec.model)
    assert geometry is not None, "it was prepared"
    positions = min(g.positions for g in (geometry, *map(models.geometry, spec.students)) if g)
    tokenizer = models.tokenizer_of(spec.model)
    return Read(
        text, calibration, read(spec, tokenizer, geometry, positions, text, calibration, order.timings)
    )


def load(order: Order, read: Read) -> Loaded:
    """Read the weights. Meanwhile the C kernels are built, if they aren't yet."""
    import torch

    from compression import models

    spec, device = order.spec, host.device(order.spec.device)
    # threads beyond a container's share of processors only wait
    torch.set_num_threads(min(torch.get_num_threads(), host.threads()))
    cpu.library()
    host.profile(again=True)
    start = time.perf_counter()
    bundle = models.load(spec.model, device, emit=order.recorder.emit, allow_paths=order.allow_paths)
    dtype = str(next(bundle.module.parameters()).dtype).removeprefix("torch.")
    seconds = time.perf_counter() - start
    if cpu.status() == "being built":
        order.clock.stage("kernels")
    cpu.wait()  # so that one set of kernels serves the whole run
    source, notes = bundle.source, []
    if source.get("rounded"):
        facts = {"format": source["rounded"], "bytes": source["publisher_bytes"]}
        notes.append(Note("already_rounded", facts))
    if source.get("recomputed"):
        notes.append(Note("recomputed_buffers", {"count": source["recomputed"]}))
    fingerprint = {
        "model": source["weights_hash"],
        "config": source["config_hash"],
        "text": read.text.hash,
        "dtype": dtype,
        "calibration": read.calibration.hash if read.calibration else "",
        "protocol": read.windows.evaluation.protocol_id,
        "words": models.words_hash(spec.model),
    }
    if device != "cpu":  # a card's sums round otherwise
        fingerprint["device"] = device
    if spec.students:
        fingerprint["students"] = [models.content_hash(name) for name in spec.students]
    if read.windows.template:
        fingerprint["template"] = read.windows.template
    memory.reset_peak()
    config = bundle.module.config.to_dict()
    return Loaded(bundle, config, device, dtype, seconds, fingerprint, tuple(notes))


def measure_original(order: Order, read: Read, loaded: Loaded) -> Original:
    """The original's result in this protocol; it is measured now if the store doesn't have it."""
    from compression import arch
    from evaluation.measuring.measure import Baseline, OriginalHead

    spec, fingerprint = order.spec.original(), loaded.original_fingerprint
    head = arch.head(loaded.bundle.module)[1]
    found = None if order.again else order.answered(spec, fingerprint)
    key = found.key if found else spec.key(fingerprint)
    folder = order.store.baseline_folder(hashlib.sha256(key.encode()).hexdigest()[:20])
    order.held.enter_context(place.held(folder))
    if found is None or Baseline.load(folder, head) is None:
        found = _measured_original(order, read, loaded, key, folder)
    if order.spec.compresses_tables:  # the original's head keeps its published type beside such a table
        head = OriginalHead(head, _publishers_dtype(loaded.bundle))
    elif order.spec.reshapes:  # pruning may change the head itself
        head = OriginalHead(head, head.weight.dtype)
    baseline = Baseline.load(folder, head)
    if baseline is None:
        raise CompressionError("another program removed the original's measurements meanwhile; run again")
    return Original(found, baseline)


def _measured_original(order: Order, read: Read, loaded: Loaded, key: str, folder) -> Result:
    """Measure the original, keep what compressed models are compared with, and store its result."""
    from compression import artifact
    from evaluation.measuring.measure import measure

    start = time.perf_counter()
    order.clock.stage("baseline")
    bundle, windows = loaded.bundle, read.windows.evaluation
    with place.whole(folder) as record:
        metrics, series = measure(bundle, windows, None, record=record, recorder=order.recorder)
    order.held.enter_context(place.held(folder))  # this folder is a new one, not the one held before
    seconds = time.perf_counter() - start
    sizes = memory.sizes(bundle, windows.ids)
    found = Found(metrics | sizes | {"evaluate_seconds": seconds, "load_seconds": loaded.seconds}, series)
    found.metrics |= {
        "file_bytes": sizes["stored_bytes"],
        "weight_bits_per_weight": 8.0 * artifact.storage_dtype(bundle).itemsize,
        "model_bits_per_parameter": 8 * sizes["stored_bytes"] / sizes["parameters"],
    }
    if peak := memory.peak_bytes():
        found.metrics["peak_memory_bytes"] = peak
    if order.timings and order.spec.is_original:
        found.timings, notes = timing.timed(None, bundle, windows.ids.flatten())
        found.notes += notes
        for entry in found.timings:
            found.metrics |= entry["original"]
    return order.store.put(_result(order, read, loaded, key, found, original=True))


def _publishers_dtype(bundle: Bundle):
    import torch

    widths = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    return widths.get(bundle.source["dtype"], torch.float32)


def compress(order: Order, read: Read, loaded: Loaded) -> Outcome:
    """Compress the loaded model in place."""
    from compression import calibrate, models

    spec, bundle = order.spec, loaded.bundle
    for method, params in spec.methods:  # a student is measured on the original's tokens
        if isinstance(method, StudentMethod) and params.student:
            models.check_tokenizer(bundle, params.student)
    order.clock.stage("compress")
    return calibrate.compress(
        bundle,
        spec.methods,
        read.windows.calibration,
        table_bits=spec.table_bits,
        activations=spec.activations,
        cache_bits=spec.cache_bits,
        cache_keys=spec.cache_keys,
        recorder=order.recorder,
        training=read.windows.training,
    )


def compress_and_compare(order: Order, read: Read, loaded: Loaded, original: Original) -> Result:
    """Compress the loaded model, save it, measure it beside the original, time both."""
    from compression import artifact

    spec, bundle, key = order.spec, loaded.bundle, order.spec.key(loaded.fingerprint)
    geometry = bundle.geometry
    outcome = compress(order, read, loaded)
    found = Found(notes=list(outcome.notes), layers=outcome.layers, judged=outcome.judged)
    if small := _small_scales(bundle.module):
        found.notes.append(Note("small_scales", {"count": small}))
    order.clock.stage("save")
    protocol = read.windows.evaluation.protocol_id
    about = {"recipe": spec.json()["recipe"], "label": label(spec), "protocol": protocol}
    with order.store.making(key) as folder:
        file_bytes = artifact.save(bundle, folder, about, outcome.files)
        order.held.enter_context(place.held(folder))
        found.metrics = {
            "load_seconds": loaded.seconds,
            "file_bytes": file_bytes,
            "compress_seconds": outcome.seconds,
        } | judging.figures(outcome.judged)
        _compare(order, read, loaded, original, geometry, found)
        if order.timings:
            _time(order, read, loaded, original, found)
    if removed := order.store.keep_within_budget(key):
        found.notes.append(Note("old_artifacts_removed", {"count": len(removed)}))
    found.series |= outcome.series
    result = _result(order, read, loaded, key, found)
    order.clock.end()
    source = {"calibration": read.calibration.source if read.calibration else ""}
    return dataclasses.replace(result, artifact=key, model=result.model | source)


def _compare(order: Order, read: Read, loaded: Loaded, original: Original, geometry, found: Found) -> None:
    """Measure the compressed model beside the original, whose sizes were `geometry`."""
    from compression import engine
    from evaluation.measuring.measure import measure

    bundle, before, windows = loaded.bundle, original.result.metrics, read.windows.evaluation
    sizes, held = memory.sizes(bundle, windows.ids), memory.matrices(bundle.module, geometry)
    engine.prepare(bundle)  # it has been saved: from here on it is only run
    start = time.perf_counter()
    order.clock.stage("evaluate")
    metrics, found.series = measure(bundle, windows, original.baseline, recorder=order.recorder)
    peak = memory.peak_bytes()
    found.metrics |= metrics | held
    found.metrics |= {
        "evaluate_seconds": time.perf_counter() - start,
        "baseline_file_bytes": before["file_bytes"],
        "model_bits_per_parameter": 8 * sizes["stored_bytes"] / before["parameters"],
        "resident_weight_bytes": memory.resident_bytes(bundle.module),
        "baseline_resident_weight_bytes": before["resident_weight_bytes"],
        "kv_cache_bytes_per_token": sizes["kv_cache_bytes_per_token"],
        "baseline_kv_cache_bytes_per_token": before["kv_cache_bytes_per_token"],
    }
    if peak:
        found.metrics["peak_memory_bytes"] = peak
    plain = [name for name in memory.kernels_used(bundle.module) if name.endswith("(PyTorch)")]
    if plain:  # matrices that neither the C kernels nor Triton multiply
        found.notes.append(Note("plain_kernel", {"kernel": plain[0]}))


def _time(order: Order, read: Read, loaded: Loaded, original: Original, found: Found) -> None:
    """Time the compressed model beside the original, which is loaded again."""
    from compression import models

    order.clock.stage("latency")
    original.baseline = None  # its memory is needed to load the original itself
    beside = models.load(order.spec.model, loaded.device, allow_paths=order.allow_paths)
    found.timings, notes = timing.timed(
        loaded.bundle,
        beside,
        read.windows.evaluation.ids.flatten(),
        tell=partial(order.recorder.progress, "latency"),
    )
    found.notes += notes
    for entry in found.timings:
        found.metrics |= entry["compressed"]
        found.metrics |= {f"baseline_{k}": v for k, v in entry["original"].items()}


def _result(
    order: Order, read: Read, loaded: Loaded, key: str, found: Found, original: bool = False
) -> Result:
    """The record of a run that succeeded. original: it measured the original, whoever asked for it."""
    spec = order.spec.original() if original else order.spec
    notes = [n.json() for n in (*read.windows.notes, *loaded.notes, *found.notes)]
    notes = list({repr(n): n for n in notes}.values())
    if original:
        text = read.text.name
        notes = [
            n for n in notes if n["code"] in NOTES_OF_THE_ORIGINAL and n["facts"].get("name", text) == text
        ]
    again = partial(witness.of_run, spec)
    return Result(
        key=key,
        spec=spec,
        status="ok",
        metrics=found.metrics,
        timings=found.timings,
        notes=notes,
        series=found.series,
        layers=list(found.layers),
        judged=[one.json() for one in found.judged],
        protocol_id=f"{read.windows.evaluation.protocol_id} · {loaded.dtype}",
        fingerprint=loaded.original_fingerprint if original else loaded.fingerprint,
        environment=host.environment(),
        model={k: v for k, v in loaded.bundle.source.items() if k != "folder"},
        code=provenance.code(),
        witness=witness.witness(again, witness.small_config(loaded.config, spec), order.nudges),
    )


def _small_scales(module) -> int:
    """How many matrices have weights too small for float16 scales.

    Such a matrix has its smallest possible scale in more than one of twenty places, so codes lose digits.
    """
    import torch

    floor = torch.finfo(torch.float16).smallest_normal
    scales = [
        t
        for name, t in module.named_buffers()
        if name.endswith("grid.scale") and t.dtype == torch.float16 and not t.is_meta
    ]
    return sum(float((t == floor).float().mean()) > 0.05 for t in scales)


def label(spec: RunSpec) -> str:
    """A run's recipe in a few words, e.g. "Wanda sparsity 0.5, then GPTQ bits 4"."""
    steps = []
    for method, params in spec.methods:
        main = method.main_param
        steps.append(f"{method.title} {main} {getattr(params, main)}" if main else method.title)
    cache = ""
    if spec.cache_bits < 16:
        way = " by channel" if spec.cache_keys == "channel" else ""
        cache = f", cache {spec.cache_bits} bits{way}"
    return ", then ".join(steps) + cache
