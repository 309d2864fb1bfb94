"""A run from request to result: load, measure the original once, compress, save, measure, time.

`run(spec)` is the one way that the command line, the page's worker and `make measure` take. It never raises
for what a visitor can cause: the Result says how it ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import time
from collections.abc import Callable
from functools import partial

from compression import texts
from compression.base import CompressionError, Note
from evaluation import host
from evaluation.measuring import memory
from evaluation.running import deaths, provenance, witness
from evaluation.running.clock import Clock
from evaluation.running.reading import read
from evaluation.spec import Result, RunSpec
from evaluation.store import Store
from kernels import cpu
from kernels import home as place

Emit = Callable[[dict], None]
OF_THE_ORIGINAL = (
    "already_rounded",
    "recomputed_buffers",
    "window_shortened",
    "machine_shared",
    "plain_loop",
    "no_short_context",
    # notes
    "continuations_shortened",
    "timing_shortened",
    "no_timing",
    "special_tokens_as_text",
)


def run(
    spec: RunSpec,
    emit: Emit = lambda event: None,
    cancelled: Callable[[], bool] = lambda: False,
    store: Store | None = None,
    *,
    allow_paths: bool = True,
    timings: bool = True,
    again: bool = False,
    run_id: str = "",
    enough: Callable[[], bool] = lambda: False,
    nudges: tuple[int, ...] = (),
) -> Result:
    """Do a run and return its Result, which is also put into the store.

    again: run even if the store has the answer. timings: False leaves out the latency stage. run_id: the id
    that the record gets. enough: turns true when a training should end and keep its best state. nudges: of
    its witness.
    """
    store = store or Store()
    started = time.time()
    with contextlib.ExitStack() as held:  # what nobody may remove until the record is written
        try:
            result = _Run(
                spec, emit, cancelled, store, allow_paths, timings, again, enough, held, nudges
            ).go()
        except Exception as error:
            result = Result(
                key="",
                spec=spec,
                status=deaths.status(error),
                error=deaths.describe(error, store.home),
                environment=host.environment(),
                created=started,
            )
        if result.id and result.status == "ok" and not run_id:
            return result  # the store's own answer
        result = dataclasses.replace(result, id=run_id or result.id or store.new_id())
        try:
            return store.put(result)
        except (OSError, CompressionError) as error:
            return _unkept(store, result, error)


def _unkept(store: Store, result: Result, why: Exception) -> Result:
    """What becomes of a result that can't be written: its artifact goes, unless an earlier run of the same
    key has it too."""
    if result.artifact and not any(
        r.artifact == result.artifact and r.status == "ok" for r in store.own() if r.id != result.id
    ):
        shutil.rmtree(store.artifact_folder(result.artifact), ignore_errors=True)
    failed = Result(
        key="",
        spec=result.spec,
        status="failed",
        error=deaths.describe(why, store.home),
        id=result.id,
        environment=result.environment,
        created=result.created,
    )
    try:
        return store.put(failed)
    except OSError:
        return failed


class _Run:
    """One run's stages in order; attributes are what later stages need."""

    def __init__(self, spec, emit, cancelled, store, allow_paths, timings, again, enough, holding, nudges):
        self.spec, self.cancelled, self.enough, self.store = spec, cancelled, enough, store
        self.allow_paths, self.timings, self.again, self.holding, self.nudges = (
            allow_paths,
            timings,
            again,
            holding,
            nudges,
        )
        self.clock = Clock(spec, emit)
        self.emit = self.clock.emit
        self.notes: list[Note] = []
        self.metrics: dict[str, float] = {}

    def go(self) -> Result:
        from compression import models

        spec = self.spec
        text = texts.load_text(spec.text, "evaluation", self.allow_paths)
        self.text = text.name
        calibration = None
        for name in spec.students:  # before any work: it may be unknown, or a path on a public page
            models.prepare(name, self.emit, self.allow_paths)
        if spec.needs_calibration:
            calibration = texts.load_text(spec.calibration, "calibration", self.allow_paths)
            texts.check_disjoint(text, calibration)
        models.prepare(spec.model, self.emit, self.allow_paths)
        geometry = models.geometry(spec.model)
        positions = min(g.positions for g in (geometry, *map(models.geometry, spec.students)))
        reading = read(
            spec, models.tokenizer_of(spec.model), geometry, positions, text, calibration, self.timings
        )
        self.windows, self.calibration, self.training = (
            reading.evaluation,
            reading.calibration,
            reading.training,
        )
        self.notes += reading.notes
        self._load()
        self.fingerprint = {
            "model": self.bundle.source["weights_hash"],
            "config": self.bundle.source["config_hash"],
            "text": text.hash,
            "dtype": self.dtype,
            "calibration": calibration.hash if calibration else "",
            "protocol": self.windows.protocol_id,
        } | ({"students": [models.content_hash(name) for name in spec.students]} if spec.students else {})
        self.fingerprint |= {"template": reading.template} if reading.template else {}
        if not self.again and (found := self._stored(spec, self.fingerprint)):
            return found
        self.baseline_result = self._original()
        if spec.is_original:
            return self.baseline_result
        return self._compressed(spec.key(self.fingerprint), calibration.source if calibration else "")

    def _load(self) -> None:
        import torch

        from compression import models

        device = self.spec.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise CompressionError(
                "device = 'cuda', but PyTorch sees no GPU here; use --device cpu", code="no_gpu"
            )
        # more than a container's share only wait
        torch.set_num_threads(min(torch.get_num_threads(), host.threads()))
        cpu.library()  # begins to build the kernels, if need be, while the model loads
        host.profile(again=True)
        self.device, start = device, time.perf_counter()
        self.bundle = models.load(self.spec.model, device, emit=self.emit, allow_paths=self.allow_paths)
        self.dtype = str(next(self.bundle.module.parameters()).dtype).removeprefix("torch.")
        self.metrics["load_seconds"] = time.perf_counter() - start
        cpu.wait()  # one run, one set of kernels
        source = self.bundle.source
        if source.get("rounded"):
            self.notes.append(
                Note("already_rounded", {"format": source["rounded"], "bytes": source["publisher_bytes"]})
            )
        if source.get("recomputed"):
            self.notes.append(Note("recomputed_buffers", {"count": source["recomputed"]}))
        self.config = self.bundle.module.config.to_dict()
        memory.reset_peak()

    def _stored(self, spec: RunSpec, fingerprint: dict) -> Result | None:
        """The newest answer to the same question that this program would give too."""
        question = spec.question(fingerprint)
        for r in reversed(self.store.own()):
            usable = r.status == "ok" and (r.spec.is_original or self.store.has_artifact(r))
            if usable and r.spec.question(r.fingerprint) == question and provenance.holds(r, self.store):
                return r
        return None

    def _of_original(self) -> dict:
        """What the original's measurement depends on: no text that a method reads."""
        return {k: v for k, v in self.fingerprint.items() if k != "template"} | {"calibration": ""}

    def _original(self) -> Result:
        """The original's result in this protocol, measured now if the store hasn't it."""
        from evaluation.measuring.measure import Baseline, OriginalHead, measure

        spec = self.spec.original()
        fingerprint = self._of_original()
        head = self._head()
        found = None if self.again else self._stored(spec, fingerprint)
        key = found.key if found else spec.key(fingerprint)
        folder = self.store.baseline_folder(hashlib.sha256(key.encode()).hexdigest()[:20])
        self.holding.enter_context(place.held(folder))
        if found is None or Baseline.load(folder, head) is None:
            start = time.perf_counter()
            self.clock.stage("baseline")
            with place.whole(folder) as record:
                metrics, series = measure(
                    self.bundle, self.windows, None, record=record, emit=self.emit, cancelled=self.cancelled
                )
            self.holding.enter_context(place.held(folder))
            metrics |= self._sizes() | {"evaluate_seconds": time.perf_counter() - start}
            metrics |= {"load_seconds": self.metrics["load_seconds"], "file_bytes": metrics["stored_bytes"]}
            peak = memory.peak_bytes()
            timings = []
            if peak:
                metrics["peak_memory_bytes"] = peak
            if self.timings and self.spec.is_original and (timings := self._time(None, self.bundle)):
                metrics |= timings[0]["original"]
            found = self.store.put(self._result(key, spec, metrics, series, timings=timings))
        if self.spec.compresses_tables:
            head = OriginalHead(head, self._head_dtype())
        elif any(method.reshaped for method, _ in self.spec.methods):  # a cut may reach the head itself
            head = OriginalHead(head, head.weight.dtype)
        self.baseline = Baseline.load(folder, head)
        if self.baseline is None:
            raise CompressionError("another program removed the original's measurements meanwhile; run again")
        return found

    def _head(self):
        from compression import arch

        return arch.head(self.bundle.module)[1]

    def _head_dtype(self):
        """The original's head beside the compressed model takes its publisher's width."""
        import torch

        return {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(
            self.bundle.source["dtype"], torch.float32
        )

    def _sizes(self) -> dict[str, float]:
        from compression import artifact

        return {
            "stored_bytes": artifact.stored_bytes(self.bundle),
            "parameters": sum({p.data_ptr(): p.numel() for p in self.bundle.module.parameters()}.values()),
            "resident_weight_bytes": memory.resident_bytes(self.bundle.module),
            "kv_cache_bytes_per_token": self._cache_bytes(),
        }

    def _cache_bytes(self) -> int:
        """Bytes that one token adds to the key-value cache, read from a real cache; with keys by channel on
        average over a usual length."""
        import torch

        from compression import kv_cache, sample

        cache = sample.new_cache(self.bundle)
        tokens = (
            kv_cache.usual_length(self.windows.ids.shape[1]) if self.bundle.cache_keys == "channel" else 8
        )
        ids = self.windows.ids[:1, :tokens].to(self.bundle.device)
        with torch.no_grad():
            self.bundle.module(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        tensors = [
            t
            for layer in cache.layers
            for t in (getattr(layer, "stored", None) or (layer.keys, layer.values))
        ]
        return sum(t.numel() * t.element_size() for t in tensors) // ids.shape[1]

    def _compressed(self, key: str, calibration_source: str) -> Result:
        from compression import artifact, calibrate
        from compression.distillation import students

        spec = self.spec
        # the windows are the original's tokens, and a student is measured on the same
        for method, params in spec.methods:
            if method.student and params.student:
                students.check_tokenizer(self.bundle, params.student)
        geometry = self.bundle.geometry
        self.clock.stage("compress")
        outcome = calibrate.compress(
            self.bundle,
            spec.methods,
            self.calibration,
            table_bits=spec.table_bits,
            activations=spec.activations,
            cache_bits=spec.cache_bits,
            cache_keys=spec.cache_keys,
            emit=self.emit,
            cancelled=self.cancelled,
            seed=spec.seed,
            training=self.training,
            enough=self.enough,
        )
        self.notes += outcome.notes
        if small := _small_scales(self.bundle.module):
            self.notes.append(Note("small_scales", {"count": small}))
        self.clock.stage("save")
        about = {"recipe": spec.json()["recipe"], "label": label(spec), "protocol": self.windows.protocol_id}
        with self.store.making(key) as folder:
            file_bytes = artifact.save(self.bundle, folder, about, outcome.files)
            self.holding.enter_context(place.held(folder))
            series, timings = self._compared(
                geometry, {"file_bytes": file_bytes, "compress_seconds": outcome.seconds}
            )
        removed = self.store.keep_within_budget(key)
        if removed:
            self.notes.append(Note("old_artifacts_removed", {"count": len(removed)}))
        result = self._result(
            key, spec, self.metrics, series | outcome.series, timings=timings, layers=outcome.layers
        )
        self.clock.end()
        model = result.model | {"calibration": calibration_source}
        return dataclasses.replace(result, artifact=key, model=model)

    def _compared(self, geometry, known: dict[str, float]) -> tuple[dict[str, list], list[dict]]:
        """(series, timings) of the compressed model beside the original, whose sizes were `geometry`; its
        metrics with those `known`."""
        from compression import engine
        from evaluation.measuring.measure import measure

        original = self.baseline_result.metrics
        sizes, held = self._sizes(), memory.matrices(self.bundle.module, geometry)
        engine.prepare(self.bundle)  # it is saved: from here on it is only multiplied
        start = time.perf_counter()
        self.clock.stage("evaluate")
        metrics, series = measure(
            self.bundle, self.windows, self.baseline, emit=self.emit, cancelled=self.cancelled
        )
        peak = memory.peak_bytes()
        self.metrics |= metrics | {
            **known,
            "evaluate_seconds": time.perf_counter() - start,
            **held,
            "baseline_file_bytes": original["file_bytes"],
            "model_bits_per_parameter": 8 * sizes["stored_bytes"] / original["parameters"],
            "resident_weight_bytes": memory.resident_bytes(self.bundle.module),
            "baseline_resident_weight_bytes": original["resident_weight_bytes"],
            "kv_cache_bytes_per_token": sizes["kv_cache_bytes_per_token"],
            "baseline_kv_cache_bytes_per_token": original["kv_cache_bytes_per_token"],
        }
        if peak:
            self.metrics["peak_memory_bytes"] = peak
        kernels = memory.kernels_used(self.bundle.module)
        if plain := [name for name in kernels if name.endswith("(PyTorch)")]:  # no C kernel and no Triton
            self.notes.append(Note("plain_kernel", {"kernel": plain[0]}))
        return series, self._side_by_side(kernels) if self.timings else []

    def _side_by_side(self, kernels: list[str]) -> list[dict]:
        from compression import models

        self.clock.stage("latency")
        self.baseline = None
        original = models.load(self.spec.model, self.device, allow_paths=self.allow_paths)
        timings = self._time(self.bundle, original, kernels)
        for timing in timings:
            self.metrics |= timing["compressed"] | {f"baseline_{k}": v for k, v in timing["original"].items()}
        return timings

    def _time(self, compressed, original, kernels: list[str] | None = None) -> list[dict]:
        """One entry of `Result.timings`: this host, how it was done, and each way's figures. None for a model
        that reads too little."""
        from compression import engine
        from evaluation.measuring import latency

        ids = self.windows.ids.flatten()
        length, new = latency.lengths(
            min(b.geometry.positions for b in (compressed, original) if b), len(ids)
        )
        if not new:
            return []

        with host.timing_lock() as alone:
            if not alone:
                self.notes.append(Note("machine_shared", {}))
            prompt = ids[:length][None]
            found = latency.compare(latency.ways(compressed, original, length + new), prompt, new_tokens=new)
            timed, name = (compressed, "compressed") if compressed else (original, "original")
            limit = latency.share_of_limit(timed, found[name]["time_per_output_token_ms"] / 1e3)
        if timed.refused:
            self.notes.append(Note("plain_loop", {"reason": timed.refused}))
        dense = "16-bit weights, whole layers (C)" if engine.serve(timed) else "dense (PyTorch)"
        # smaller matrices are multiplied as the original's are
        if compressed is None or memory.has_plain(compressed.module):
            kernels = [dense, *(kernels or ())]
        return [
            {
                "host": host.environment() | {"device": latency.device_name(timed)},
                "limit": limit,
                "kernel": kernels,
                "loop": "transformers" if timed.refused else "decode step (C)",
                "warm_ups": latency.WARM_UPS,
                "rounds": latency.ROUNDS,
                "prompt_tokens": length,
                "new_tokens": new,
                **found,
            }
        ]

    def _result(self, key, spec, metrics, series, timings=(), layers=()) -> Result:
        from compression import artifact

        source = {k: v for k, v in self.bundle.source.items() if k != "folder"}
        notes = list({repr(n.json()): n.json() for n in self.notes}.values())
        shared = (
            {"weight_bits_per_weight": 8.0 * artifact.storage_dtype(self.bundle).itemsize}
            if spec.is_original
            else {}
        )
        if spec.is_original:
            shared["model_bits_per_parameter"] = 8 * metrics["stored_bytes"] / metrics["parameters"]
            notes = [
                n
                for n in notes
                if n["code"] in OF_THE_ORIGINAL and n["facts"].get("name", self.text) == self.text
            ]
        seen = witness.witness(
            partial(witness.of_run, spec), witness.small_config(self.config, spec), self.nudges
        )
        return Result(
            key=key,
            spec=spec,
            status="ok",
            metrics=shared | metrics,
            timings=list(timings),
            notes=notes,
            series=series,
            layers=list(layers),
            protocol_id=f"{self.windows.protocol_id} · {self.dtype}",
            fingerprint=self._of_original() if spec.is_original else self.fingerprint,
            environment=host.environment(),
            model=source,
            code=provenance.code(),
            witness=seen,
        )


def _small_scales(module) -> int:
    """How many matrices have weights so small that more than one in twenty of their steps is float16's
    smallest (codes lose digits)."""
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
    return ", then ".join(steps) + (
        f", cache {spec.cache_bits} bits{' by channel' if spec.cache_keys == 'channel' else ''}"
        if spec.cache_bits < 16
        else ""
    )
