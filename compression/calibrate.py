"""The one driver: it walks a model's blocks, collects statistics, calls the method and applies its edit.

One step of a recipe runs over the whole model before the next step, which then calibrates on its result. How
the inputs are collected within a step depends on the method's `stream`:

compressed  The groups of a block (linears that share an input) are visited in the order of the data flow. The
            block runs only as far as the group's input, and the group is compressed. The run for the next
            group passes through the compressed group (GPTQ's "true sequential").
block       All groups of a block are observed in one pass before any of them is compressed. The next block
            still gets the output of the compressed block.
original    Every input comes from the uncompressed model, in one pass.
both        "block" and "original" beside each other, each with its own hidden states.

A method may look at the whole model before its first linear (`LinearMethod.planner`). It then says what each
linear gets in place of the run's parameters, for example another share. It may also reorder channels, in a
way that changes nothing that the model computes.

With "compressed" a block runs once for each group, but only the new part is computed. The outputs of linears
that are already compressed are kept, and so is the output of a part whose linears are all compressed. For
example, once q, k, v and o are done, the attention's output is kept and answers the later runs. So all runs
of a block together cost little more than one forward pass.

Memory, for all windows: the input of the current block, the output of its attention, and at most
`inputs.ROOM` bytes of outputs of its linears. On top come the sums of the groups that are observed together:
one group with "compressed", a block's groups with the others. A Gram matrix takes 4 * in^2 bytes.

A method of scope "block" gets all groups of a block at once. Their inputs come from the uncompressed model.
It also learns where a factor on the inputs can be folded, for example into the norm before q, k and v. It
returns one edit for the block. Windows are full, so padding never enters a sum. Every block is called as the
model itself calls it; inputs.py checks that before anything is compressed.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compression import arch, attention, engine, structure
from compression.base import (
    BadChain,
    Block,
    BlockMethod,
    CalibrationError,
    Context,
    Edit,
    Group,
    LinearMethod,
    Method,
    ModelMethod,
    Note,
    Params,
    Site,
    Stats,
    StudentMethod,
    TableMethod,
    TrainingMethod,
    UnsupportedLayer,
)
from compression.bundle import Bundle
from compression.inputs import BlockInputs, Passage, capture, single_calls
from compression.judged import Judged
from compression.packed.activations import ActivationRule
from compression.packed.linear import CompressedLinear, CompressedTable
from compression.recorder import QUIET, Recorder
from compression.surgery import compress_tables, put_tables, set_submodule
from compression.teacher import TextTeacher

# a matrix whose largest magnitude lies between these is stored as it is (`unit_of`)
SMALLEST, LARGEST = 2.0**-6, 2.0**13
ACTIVATION_GROUP = 32  # inputs that share a scale if a run asks for int8 activations


@dataclass
class Outcome:
    """What compressing did: notes for the reader, one row for each linear, seconds.

    judged: values of what the last step optimises. Every step changes the model, so the values of an earlier
    step no longer hold.
    """

    notes: list[Note] = field(default_factory=list)
    layers: list[dict] = field(default_factory=list)
    seconds: float = 0.0
    series: dict[str, list] = field(default_factory=dict)  # curves, e.g. "training"
    judged: list[Judged] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)  # name -> content, saved beside the model


def compress(
    bundle: Bundle,
    recipe: Sequence[tuple[Method, Params]],
    windows: Tensor | None,
    *,
    table_bits: int = 16,
    activations: str = "exact",
    cache_bits: int = 16,
    cache_keys: str = "token",
    recorder: Recorder = QUIET,
    training: Tensor | None = None,
) -> Outcome:
    """Compress `bundle.module` in place.

    windows: calibration token ids [n, window], None if no method needs them. training: the token ids that a
    training method reads (default: `windows`).

    Raises BadChain, UnsupportedLayer, CalibrationError from the methods, and Cancelled.
    """
    start = time.perf_counter()
    outcome = Outcome()
    check_tables(recipe)
    engine.forget(bundle)
    for number, (method, params) in enumerate(recipe, 1):
        if method.needs_calibration(params) and windows is None:
            raise CalibrationError(
                f"{method.name} needs calibration windows; none were given", code="no_calibration"
            )
        facts = {"method": method.name, "step": number, "steps": len(recipe)}

        def with_step(event, facts=facts):
            return event | {"facts": facts | event.get("facts", {})}

        trains = training is not None and method.trains(params)
        read = training if trains else windows
        outcome.judged = []
        walk = _Walk(bundle, method, params, read, outcome, recorder.telling(with_step))
        with torch.no_grad():
            walk.walk()
    if table_bits < 16:
        recorder.progress("tables", 0, 1, bits=table_bits)
        outcome.notes.extend(compress_tables(bundle, table_bits))
    if cache_bits < 16:
        bundle.cache_bits, bundle.cache_keys = cache_bits, cache_keys
        engine.forget(bundle)
    if activations == "int8":
        for module in bundle.module.modules():
            own = isinstance(module, (CompressedLinear, CompressedTable))
            if own and module.packed.activations is None:  # a method's own rule stays
                module.packed.activations = ActivationRule(bits=8, group=ACTIVATION_GROUP)
    outcome.seconds = time.perf_counter() - start
    return outcome


def check_tables(recipe: Sequence[tuple[Method, Params]]) -> None:
    """Raises BadChain for a recipe that would store the token embedding twice."""
    names = [method.name for method, _ in recipe if isinstance(method, TableMethod)]
    if len(names) > 1:
        raise BadChain(
            f"{names[1]} can't follow {names[0]}: both store the token embedding. Drop one of the two steps.",
            method=names[1],
            format="an embedding that is stored already",
            allowed="a table in 16 bits",
        )


class _Walk:
    """One step of a recipe over all blocks."""

    def __init__(self, bundle, method: Method, params: Params, windows, outcome: Outcome, recorder: Recorder):
        self.bundle, self.method, self.params, self.windows = bundle, method, params, windows
        self.outcome, self.recorder = outcome, recorder
        self.module, self.stats = bundle.module, method.collects(params)
        self.blocks = arch.blocks(bundle.module)
        self.own: Mapping[str, Params] = {}  # path -> params in place of the run's

    def walk(self) -> None:
        if isinstance(self.method, LinearMethod):
            self.linears()
        elif isinstance(self.method, BlockMethod):
            self.block_by_block()
        else:
            self.model()

    def model(self) -> None:
        assert isinstance(self.method, ModelMethod)
        if self.method.reshaped or isinstance(self.method, TrainingMethod):
            for path, _, _ in arch.linears(self.module):
                self._previous(path)
        bundle, context = self.bundle, Context(self.windows, self.recorder)
        if isinstance(self.method, StudentMethod):
            made = self.method.student(self.bundle, context, self.params)
            assert made.bundle is not None
            bundle = made.bundle
            self.outcome.notes.extend(made.notes)
            whole = self.method.learns_from(self.params) == "model"
            teacher = self.bundle if whole else TextTeacher(self.bundle)
            context = Context(self.windows, self.recorder, teacher)
        self._apply(self.method.compress(bundle, context, self.params))

    def block_by_block(self) -> None:
        inputs, calls = capture(self.bundle, self.windows), single_calls(self.bundle, self.windows)
        total, rules = len(self.blocks), []
        for layer, block in enumerate(self.blocks):
            self.recorder.progress("compress", layer, total)
            paths = arch.groups(self.module, layer)
            before = list(inputs.batches)
            collected = inputs.observe(block, self._paths_to_modules(paths), self.stats, self._check)
            groups = []
            for i, (group, stats) in enumerate(zip(paths, collected, strict=True)):
                sites = tuple(self._site(layer, path, role) for path, role in group)
                groups.append(Group(sites, stats, *arch.fold(self.module, layer, i)))
            passage = Passage(block, before, inputs.batches, calls[block])
            whole = Block(layer, total, tuple(groups), passage, self.recorder)
            edit = self.method.compress(whole, self.params)
            self._apply(edit)
            rules += [edit.attention] if edit.attention else []
        # only now, because the recorded calls hold masks for the attention that the blocks had until here
        if rules:
            self.bundle.attention = tuple(rules)
            attention.install(self.module, rules)
        self.recorder.progress("compress", total, total)

    def plan(self) -> Mapping[str, Params]:
        """Let the method look at the whole model, and apply what it reorders. Gives path -> params."""
        assert isinstance(self.method, LinearMethod)
        if not self.method.plans(self.params):
            return {}
        assert self.method.planner is not None
        for path, _, _ in arch.linears(self.module):
            self._previous(path)
        context = Context(self.windows, self.recorder)
        found = self.method.planner.find(self.bundle, context, self.params)
        self._apply(found.edit)
        return found.params

    def linears(self) -> None:
        assert isinstance(self.method, LinearMethod)
        self.own = self.plan()
        stream = self.method.reads(self.params)
        inputs = capture(self.bundle, self.windows) if self.stats else None
        originals = BlockInputs(list(inputs.batches), inputs.calls) if inputs and stream == "both" else None
        total = len(self.blocks)
        for layer, block in enumerate(self.blocks):
            self.recorder.progress("compress", layer, total)
            groups = arch.groups(self.module, layer)
            last = layer == total - 1
            if inputs is None:
                for group in groups:
                    self._compress(layer, group, Stats(tokens=0))
            elif stream != "compressed":
                entered = list(inputs.batches) if stream != "original" else None
                firsts = self._paths_to_modules(groups)
                collected = inputs.observe(block, firsts, self.stats, self._check)
                if originals is not None:
                    before = originals.observe(block, firsts, self.stats, self._check)
                    collected = [
                        dataclasses.replace(s, original=o) for s, o in zip(collected, before, strict=True)
                    ]
                for group, stats in zip(groups, collected, strict=True):
                    self._compress(layer, group, stats)
                if entered and not last:
                    inputs.batches = entered
                    inputs.advance(block, self._check)
            else:
                done: set[nn.Module] = set()
                for group in groups:
                    self._compress(
                        layer, group, inputs.until(block, self._first(group), self.stats, self._check)
                    )
                    done |= {self.module.get_submodule(path) for path, _ in group}
                    inputs.keep_outputs(block, done)
                if not last:
                    inputs.advance(block, self._check)
                inputs.drop_outputs()
        self.recorder.progress("compress", total, total)

    def _first(self, group) -> nn.Module:
        return self.module.get_submodule(group[0][0])

    def _paths_to_modules(self, groups) -> list[nn.Module]:
        return [self._first(group) for group in groups]

    def _check(self) -> None:
        self.recorder.check("compressing")

    def _compress(self, layer: int, group, stats: Stats) -> None:
        for path, role in group:
            self._check()
            site = self._site(layer, path, role)
            unit = 1.0 if site.previous is not None else unit_of(site.weight)
            params = self.own.get(path, self.params)
            self._apply(self.method.compress(in_units(site, unit), stats, params), unit)

    def _site(self, layer: int, path: str, role: str) -> Site:
        self._previous(path)
        return site_of(self.module, path, role, layer)

    def _previous(self, path: str) -> None:
        """Raises BadChain if an earlier step stored that linear in a form that the method doesn't accept."""
        linear = self.module.get_submodule(path)
        previous = linear.packed if isinstance(linear, CompressedLinear) else None
        if previous is not None and previous.format not in self.method.after:
            allowed = ", ".join(sorted(self.method.after)) or "an uncompressed model only"
            raise BadChain(
                f"{self.method.name} can't follow a step that stored {path} as {previous.format}; "
                f"it accepts: {allowed}. Change the order or drop one step.",
                method=self.method.name,
                format=previous.format,
                allowed=allowed,
            )

    def _apply(self, edit: Edit, unit: float = 1.0) -> None:
        """Put an edit into the model.

        unit: the number by which the edit's linears and new biases were divided before (`unit_of`).
        """
        self.outcome.notes.extend(edit.notes)
        self.outcome.series |= edit.series
        self.outcome.judged.extend(edit.judged)
        self.outcome.files |= edit.files
        self.bundle.cache_bits = edit.cache_bits or self.bundle.cache_bits
        if edit.bundle is not None:
            self.module = self.bundle.module = edit.bundle.module.requires_grad_(False).eval()
            self.bundle.tokenizer = edit.bundle.tokenizer
            self.bundle.geometry = edit.bundle.geometry
            self.bundle.attention = ()
            # the teacher's decoder goes; it answered questions or drew texts
            engine.forget(self.bundle)
            return
        places = {path: (role, layer) for path, role, layer in arch.linears(self.module)}
        scales = {path: t for path, t in edit.tensors.items() if path.endswith(".input_scale")}
        biases = {
            path: edit.tensors[f"{path}.bias"] * unit
            for path in edit.linears
            if f"{path}.bias" in edit.tensors
        }
        for path, tensor in edit.tensors.items():
            owner, _, name = path.rpartition(".")
            if path in scales or (owner in biases and name == "bias"):
                continue
            target = getattr(self.module.get_submodule(owner), name)
            if target is None:
                raise UnsupportedLayer(
                    f"{owner} has no {name}; only a linear that the same edit replaces may be given one",
                    got=path,
                )
            target.data = tensor.to(target)
        for path, packed in edit.linears.items():
            old = self.module.get_submodule(path)
            bias = biases.get(path, old.bias)
            bias = None if bias is None else bias.detach().to(self.module.dtype, copy=True)
            scale = scales.get(f"{path}.input_scale", getattr(old, "input_scale", None))
            if unit != 1.0:
                scale = unit * (
                    torch.ones(packed.shape[1], dtype=self.module.dtype, device=old.weight.device)
                    if scale is None
                    else scale
                )
            set_submodule(self.module, path, CompressedLinear(packed, bias, scale))
            role, layer = places[path]
            self._record(edit, path, packed.bits_per_weight(), layer=layer, role=role, format=packed.format)
        if edit.table is not None:
            path = arch.embedding(self.module)[0]
            put_tables(self.bundle, edit.table, edit.head)
            self._record(edit, path, edit.table.bits_per_weight(), role="embedding", format=edit.table.format)
        if edit.kept or edit.width:
            self._cut(edit)
        if edit.blocks:
            self._cut_blocks(edit)

    def _cut_blocks(self, edit: Edit) -> None:
        """Take whole blocks out of the model; nothing is stored of their matrices."""
        gone = [row for row in arch.linears(self.module) if row[2] not in edit.blocks]
        structure.cut_depth(self.module, edit.blocks)
        self.bundle.geometry = arch.geometry(self.module)
        for path, role, layer in gone:
            self._record(edit, path, 0.0, layer=layer, role=role, format="cut")

    def _cut(self, edit: Edit) -> None:
        """Cut heads and channels out of the model, and update the model's sizes."""
        touched = [
            (path, role, layer)
            for path, role, layer in arch.linears(self.module)
            if edit.width or layer in edit.kept
        ]
        before = {path: self.module.get_submodule(path).weight.numel() for path, _, _ in touched}
        structure.cut(self.module, edit.kept)
        if edit.width:
            structure.cut_width(self.module, edit.width)
        self.bundle.geometry = arch.geometry(self.module)
        for path, role, layer in touched:
            bits = 16.0 * self.module.get_submodule(path).weight.numel() / before[path]
            self._record(edit, path, bits, layer=layer, role=role, format="cut")

    def _record(self, edit: Edit, path: str, bits: float, **place) -> None:
        """Add a row to the outcome: a matrix, the bits that it takes now, and the method's own figures."""
        row = {"path": path, "method": self.method.name, "bits_per_weight": bits}
        self.outcome.layers.append(row | place | dict(edit.figures.get(path, {})))


def site_of(module: nn.Module, path: str, role: str, layer: int) -> Site:
    """One linear of the model as a method sees it."""
    linear = module.get_submodule(path)
    previous = linear.packed if isinstance(linear, CompressedLinear) else None
    weight = (linear.weight if previous is None else previous.dequantize()).detach().float().clone()
    beside = [(r, module.get_submodule(p)) for group in arch.groups(module, layer) for p, r in group]
    shapes = {r: (m.out_features, m.in_features) for r, m in beside}
    return Site(path, role, layer, len(arch.blocks(module)), weight, linear.bias, previous, shapes)


def unit_of(weight: Tensor) -> float:
    """The power of two by which a matrix is divided before it is stored, usually 1.

    Scales and factors in 16 bits hold 0.00006 to 65,504. A matrix whose largest magnitude lies far outside is
    divided by about that magnitude. Dividing by a power of two rounds nothing.
    """
    largest = float(weight.abs().amax()) if weight.numel() else 0.0
    return 1.0 if largest == 0 or SMALLEST <= largest <= LARGEST else 2.0 ** math.floor(math.log2(largest))


def in_units(site: Site, unit: float) -> Site:
    """The site with its weight and bias divided by `unit`."""
    if unit == 1.0:
        return site
    return dataclasses.replace(
        site, weight=site.weight / unit, bias=None if site.bias is None else site.bias / unit
    )
