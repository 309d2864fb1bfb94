"""Estimates a run before anything is loaded: bytes, bits, peak memory, seconds, and whether it fits.

Sizes come from each method's `cost` over the shapes of the model's linears. Seconds come from this machine's
speed (`host.profile`) and the operations of each stage. A size is good to a few percent, a time to a factor
of about two.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from dataclasses import dataclass

from compression import hub, importing, models
from compression.architectures import ARCHITECTURES
from compression.base import (
    CompressionError,
    Cost,
    LinearMethod,
    Method,
    ModelMethod,
    ModelUnavailable,
    Params,
    StudentMethod,
    TableMethod,
    TrainingMethod,
    handed_on,
)
from compression.bundle import Geometry, LayerGeometry
from compression.catalogue import CATALOGUE, unknown
from evaluation import host as machine
from evaluation.spec import RunSpec

PROCESS_BYTES = 450_000_000  # memory of Python with torch and transformers, before a model is loaded
# forward passes over the calibration tokens, by a method's stream
PASSES = {"original": 1.0, "block": 2.0, "compressed": 1.2, "both": 3.0}
EFFICIENCY = 0.75  # the share of the measured matrix product's speed that a forward pass reaches
GENERATED_STEPS = 48  # decode steps of the text check, four texts at once
# the latency stage takes as long as this many steps of transformers' own loop in float32
LATENCY_STEPS = 80
PACKING_BYTES_PER_SECOND = 4e8  # speed of bringing matrices into the kernels' tiles


@dataclass(frozen=True)
class Cut:
    """A block's sizes before and after a recipe that cuts heads and channels, known before the run."""

    before: LayerGeometry  # sizes of the first block that is cut
    after: LayerGeometry
    blocks: int  # how many blocks are cut
    of: int  # of how many
    alike: bool  # whether all cut blocks end with the sizes `after`; otherwise these are the mean
    same: tuple[float, float]  # between these two stops of the main knob, the same number of heads goes


@dataclass(frozen=True)
class Estimate:
    """What a run will cost."""

    file_bytes: int
    baseline_file_bytes: int
    weight_bits: float
    peak_bytes: int
    seconds: float
    fits: bool
    open_ended: bool = False  # whether more is stored beside these bytes; only calibration tells how much
    reason: str = ""  # why it doesn't fit, as a code; "" if it fits
    available_bytes: int = 0
    # bytes of a quantized key-value cache; 0 if the cache holds the type that the model computes in
    cache_bytes_per_token: int = 0
    cut: Cut | None = None  # None if no step cuts heads or channels out of blocks


_asked: dict[str, Geometry] = {}  # sizes of hub models that are on no disk yet, as the hub gave them


def remember(model: str, geometry: Geometry) -> None:
    """Let the estimate know the sizes of a hub model that isn't downloaded (evaluation/running/scales.py)."""
    if len(_asked) >= 256:
        _asked.pop(next(iter(_asked)))
    _asked[model] = geometry


def geometry_for(model: str) -> Geometry:
    """A model's sizes, from the catalogue or its config on this disk.

    Raises ModelUnavailable if neither has them, or if the model's folder can't be loaded as it is;
    UnsupportedModel for an architecture that isn't supported.
    """
    if model in CATALOGUE:
        return CATALOGUE[model].geometry
    found = models.geometry(model) or _asked.get(model)
    if found is None:
        if not hub.is_id(model):
            raise unknown(model)
        raise ModelUnavailable(
            f"{model} is not on this disk yet; its size is known once the run has begun",
            code="size_unknown",
            name=model,
        )
    return found


@functools.lru_cache(256)
def _shapes(geometry: Geometry, after: Geometry) -> Counter[tuple[str, tuple[int, int], tuple[int, int]]]:
    """How many of the blocks' linears there are of each (role, shape (out, in), shape after pruning)."""
    with importing:
        from compression.arch import linear_shapes

    before = {(role, layer): shape for role, layer, shape in linear_shapes(geometry)}
    left = {(role, layer): shape for role, layer, shape in linear_shapes(after)}
    places = before | left  # blocks may be removed, or a student may have more of them
    return Counter((place[0], before.get(place, (0, 0)), left.get(place, (0, 0))) for place in places)


def _after(spec: RunSpec, geometry: Geometry) -> Geometry:
    """The model's sizes after a recipe."""
    for method, params in spec.methods:
        if isinstance(method, StudentMethod) and params.student:
            geometry = geometry_for(params.student)
        else:
            geometry = method.geometry_after(geometry, params)
    return geometry


@dataclass(frozen=True)
class _Sizes:
    """What a recipe stores of a model, in bytes, and what its parts cost."""

    costs: list  # (count, *_cost) of each kind of matrix
    weights: int  # number of weights in the original's linears
    matrices: int  # the same and the tables' (embedding and head)
    packed: float  # bytes of the linears as stored
    original: float  # bytes of the original's file
    file: float
    table: Cost | None  # cost of a token table that a method stores


def _states(spec: RunSpec, geometry: Geometry, wide: int) -> int:
    """Bytes that a calibration keeps in memory.

    They are the current block's input, its attention's output, and its linears' outputs as far as there is
    room.
    """
    with importing:
        from compression.inputs import ROOM

    tokens = spec.calibration_tokens if spec.needs_calibration else 0
    streams = {method.reads(params) for method, params in spec.methods if method.collects(params)}
    again, copies = "compressed" in streams, 3 if "both" in streams else 2
    remembered = 2 * tokens * wide * max(layer.feed_forward for layer in geometry.layers) if again else 0
    return copies * tokens * wide * geometry.hidden + min(ROOM, remembered)


def _sizes(spec: RunSpec, geometry: Geometry, after: Geometry) -> _Sizes:
    shapes, tables = _shapes(geometry, after), 1 if geometry.tied else 2
    costs = [(count, *_cost(spec, *shape)) for shape, count in shapes.items()]
    weights = sum(count * o * i for (_, (o, i), _), count in shapes.items())
    norms = 2 * after.hidden * (2 * len(after.layers) + 1)
    if ARCHITECTURES[after.architecture].positions:
        norms += 2 * after.positions * after.hidden
    packed = sum(count * size for count, size, _, _, _ in costs)
    rounded = after.table_parameters * (
        2 if spec.table_bits == 16 or spec.is_original else (spec.table_bits + 0.25) / 8
    )
    stored = _stored_table(spec, geometry)
    table_bytes = tables * rounded if stored is None else stored.bytes + (tables - 1) * rounded
    matrices = weights + tables * geometry.table_parameters
    original = 2 * matrices + norms
    file = original if spec.is_original else int(packed + table_bytes + norms)
    return _Sizes(costs, weights, matrices, packed, original, file, stored)


def estimate(spec: RunSpec) -> Estimate:
    """The cost of a run on this machine. Raises ModelUnavailable if the model's sizes aren't known."""
    geometry = geometry_for(spec.model)
    after = _after(spec, geometry)
    wide = 4  # bytes of a number: a processor computes in float32
    sizes = _sizes(spec, geometry, after)
    tables = 1 if geometry.tied else 2
    # both are in memory while they are timed: the original's 16-bit tiles and the compressed model
    beside = 2 * sizes.matrices + sizes.file
    states = _states(spec, geometry, wide)
    # memory of methods that work on the whole model at once
    held = (
        sum(count * peak for count, _, _, _, peak in sizes.costs)
        + tables * _trained_table(spec, geometry).peak_bytes
    )
    working = max(
        max([c[2] for c in sizes.costs] + ([sizes.table.peak_bytes] if sizes.table else [])) + states, held
    )
    peak = int(PROCESS_BYTES + wide * sizes.matrices + max(working, beside) + 300e6)
    available = machine.available_bytes()
    fits = peak <= available
    return Estimate(
        file_bytes=int(sizes.file),
        baseline_file_bytes=int(sizes.original),
        weight_bits=8 * sizes.packed / sizes.weights,
        peak_bytes=peak,
        seconds=sum(stage_seconds(spec).values()),
        fits=fits,
        open_ended=any(
            m.open_ended(p) for m, p in spec.methods if isinstance(m, LinearMethod) and m.open_ended
        ),
        reason="" if fits else "memory",
        available_bytes=available,
        cache_bytes_per_token=after.kv_cache_bytes_per_token(bits, spec.cache_keys, spec.window)
        if (bits := spec.stored_cache_bits) < 16
        else 0,
        cut=cut_of(spec, geometry),
    )


def cut_of(spec: RunSpec, geometry: Geometry) -> Cut | None:
    """The cut of the first step that removes heads and channels from blocks; None if no step does."""
    for method, params in spec.methods:
        if isinstance(method, StudentMethod):
            return None
        after = method.geometry_after(geometry, params)
        places = zip(geometry.layers, after.layers, strict=False)
        changed = [i for i, (was, then) in enumerate(places) if was != then]
        if changed and len(after.layers) == len(geometry.layers):
            return _cut(method, params, geometry, after, changed)
        geometry = after
    return None


def _cut(method: Method, params: Params, before: Geometry, after: Geometry, changed: list[int]) -> Cut:
    first, name = changed[0], method.main_param
    left = after.layers[first]
    stops = [getattr(params, name)] if name else []
    if name:
        field = next(f for f in method.params.describe() if f["name"] == name)
        count = round((field["hi"] - field["lo"]) / field["step"])
        for k in range(count + 1):
            value = round(field["lo"] + k * field["step"], 6)
            found = method.geometry_after(before, dataclasses.replace(params, **{name: value})).layers[first]
            if (found.heads, found.kv_heads) == (left.heads, left.kv_heads):
                stops.append(value)
    return Cut(
        before=before.layers[first],
        after=left,
        blocks=len(changed),
        of=len(before.layers),
        alike=getattr(params, "ranking", "block") == "block",
        same=(min(stops), max(stops)) if stops else (0.0, 0.0),
    )


def stored(spec: RunSpec, geometry: Geometry) -> tuple[int, float, Geometry]:
    """What a recipe stores of any model of these sizes.

    Gives (bytes of the file, bits per weight of the original's linears, the model's sizes after the recipe).
    """
    after = _after(spec, geometry)
    sizes = _sizes(spec, geometry, after)
    return int(sizes.file), 8 * sizes.packed / sizes.weights, after


def _stored_table(spec: RunSpec, geometry: Geometry) -> Cost | None:
    """The cost of a token table that a step of the recipe stores; None if no step does."""
    shape = geometry.vocabulary, geometry.table_parameters // geometry.vocabulary
    costs = [
        method.table_cost(shape, params, geometry.tied)
        for method, params in spec.methods
        if isinstance(method, TableMethod)
    ]
    return costs[0] if costs else None


def _trained_table(spec: RunSpec, geometry: Geometry) -> Cost:
    """The cost of training a student's token table, as that of a matrix; nothing if no step trains it."""
    shape = geometry.vocabulary, geometry.table_parameters // geometry.vocabulary
    costs = [
        m.cost_of(shape, p, spec.calibration_tokens, "table")
        for m, p in spec.methods
        if isinstance(m, StudentMethod) and m.trains_table
    ]
    return Cost(0, sum(c.flops for c in costs), max((c.peak_bytes for c in costs), default=0))


def _cost(
    spec: RunSpec, role: str, shape: tuple[int, int], then: tuple[int, int]
) -> tuple[float, int, float, int]:
    """The cost of a chain of steps on one matrix of a shape.

    It is (stored bytes, peak bytes, operations, bytes held while a method works on the whole model). A step
    may cut the matrix down to the shape `then`. If one step prunes and a later step rounds the kept weights,
    the share and the width multiply: half of the weights in 4 bits take 2 bits a weight, and the mask.
    """
    out, n = shape
    size, peak, flops, held = 2.0 * out * n, 0, 0.0, 0
    kept = 1.0
    before: dict = {}
    for i, (method, params) in enumerate(spec.methods):
        if isinstance(method, TableMethod):  # it leaves linears as they are, and may run the model on a text
            flops += method.cost_of(shape, params, spec.calibration_tokens, role).flops
            continue
        if isinstance(method, ModelMethod):
            cost = method.cost_of(shape, params, spec.calibration_tokens, role)
            held, flops = max(held, cost.peak_bytes), flops + cost.flops
            out, n = shape = then if method.reshaped else shape
            if method.reshaped:
                size = 2.0 * out * n
                if not size:  # its block is gone, so later steps never see it
                    break
            # a method that inherits an earlier step's codes leaves the stored bytes as they are
            elif method.stores and not (method.inherits and before.keys() >= set(method.inherits)):
                size = cost.bytes
            elif isinstance(method, TrainingMethod) and method.adds and method.adds(params, spec.methods[:i]):
                size += cost.bytes
            continue
        linear = isinstance(method, LinearMethod)
        if linear and method.converted_cost and before.keys() >= set(method.inherits):
            cost = method.converted_cost(shape, params, spec.calibration_tokens)
        else:
            cost = method.cost_of(shape, params, spec.calibration_tokens, role)
        before = handed_on(params)
        peak, flops = max(peak, cost.peak_bytes), flops + cost.flops
        # a pruning step; its own cost counts the mask, and the kept values in 16 bits or as codes (SparseGPT)
        if linear and method.kept_share:
            kept, size = method.kept_share(params), cost.bytes
        # an earlier step pruned, and this one rounds: a mask, codes of the kept weights alone, and the grid
        elif linear and kept < 1.0 and method.rounds_what_stays:
            size = (
                out * -(-n // 8) + kept * out * n * params.bits / 8 + cost.bytes - out * n * params.bits / 8
            )
        else:
            size = cost.bytes
    return size, peak, flops, held


def stage_seconds(spec: RunSpec) -> dict[str, float]:
    """Seconds of each stage on this machine; {} if the model's sizes aren't known."""
    try:
        geometry = geometry_for(spec.model)
        after = _after(spec, geometry)
    except CompressionError:
        return {}
    speed = machine.profile()
    flops_per_second = EFFICIENCY * speed.gflops * 1e9
    shapes = _shapes(geometry, after)
    weights, table = sum(n * o * i for (_, (o, i), _), n in shapes.items()), geometry.table_parameters
    tokens = spec.tokens or 300_000
    forward = 2 * (weights + table) * tokens / flops_per_second
    decode = 4 * (weights + table) / (speed.gbytes_per_second * 0.5e9)  # a step of transformers in float32
    packing = 2 * (weights + table) / PACKING_BYTES_PER_SECOND
    loading = 1.0 + 4 * (weights + table) / 1e9
    texts = packing + GENERATED_STEPS * decode * 0.3
    plan = {"load": loading, "baseline": forward * 1.2 + texts}
    if spec.is_original:
        plan["latency"] = LATENCY_STEPS * decode + packing
        return {stage: machine.pace() * seconds for stage, seconds in plan.items()}
    passes = sum(PASSES[m.reads(p)] for m, p in spec.methods if m.collects(p))
    walk = passes * 2 * weights * spec.calibration_tokens / flops_per_second
    walk += 2 * (weights + table) * _planned_tokens(spec, sum(shapes.values())) / flops_per_second
    stored = _stored_table(spec, geometry)
    own = sum(count * _cost(spec, *shape)[2] for shape, count in shapes.items()) + (
        stored.flops if stored else 0
    )
    own += _trained_table(spec, geometry).flops
    plan |= {
        "compress": walk + own / flops_per_second + 2.0,
        "save": 1.0,
        "evaluate": forward * 1.5 + texts,
        "latency": loading + LATENCY_STEPS * decode + 3 * packing,
    }
    return {stage: machine.pace() * seconds for stage, seconds in plan.items()}


def _planned_tokens(spec: RunSpec, linears: int) -> float:
    """Tokens that methods send through the whole model before their first linear."""
    return sum(
        m.planner.tokens(p, linears, spec.calibration_tokens)
        for m, p in spec.methods
        if isinstance(m, LinearMethod) and m.planner and m.plans(p)
    )


def path(spec: RunSpec) -> list[tuple[float, int]]:
    """(value, file bytes) at each stop of the last method's main knob, for the page's ghost line."""
    method, params = spec.methods[-1]
    if method.main_param is None:
        return []
    field = next(f for f in method.params.describe() if f["name"] == method.main_param)
    geometry = geometry_for(spec.model)
    steps = round((field["hi"] - field["lo"]) / field["step"])
    out = []
    for k in range(steps + 1):
        value = type(field["default"])(round(field["lo"] + k * field["step"], 6))
        recipe = (*spec.recipe[:-1], (method.name, params.json() | {field["name"]: value}))
        then = dataclasses.replace(spec, recipe=recipe)
        out.append((value, int(_sizes(then, geometry, _after(then, geometry)).file)))
    return out
