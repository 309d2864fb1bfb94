"""Students: smaller models that distillation trains.

A student keeps some of its teacher's decoder blocks, and its whole embedding, final norm and head. How well
it works at first depends on which blocks stay. So all blocks are measured on the run's text
(compression/depth.py), and the blocks that change the hidden states least go. Or the student is another model
with the same tokenizer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from compression import arch, depth, structure
from compression.base import Context, Edit, Note, Params, param
from compression.bundle import Bundle, Geometry
from compression.sample import stop_like


@dataclass(frozen=True)
class StudentParams(Params):
    """The parameters that choose the student. Base of every distillation method's parameters."""

    kept: float = param(
        0.65,
        "Share of the teacher's layers that the student keeps.",
        lo=0.1,
        hi=1.0,
        step=0.05,
        main=True,
        ends=("small student", "as large as its teacher"),
        when={"student": ""},
    )
    layers: str = param(
        "influence",
        "Which layers stay: all but those that turn the hidden states least, all but the run of "
        "neighbours over which the states turn least, or evenly spaced ones.",
        choices=(*depth.ORDERS, "even"),
        label="choice",
        when={"student": ""},
        level="advanced",
    )
    student: str = param(
        "",
        "Another model as the student, with the same tokenizer: a catalogue name, a hub id or a folder. "
        "Empty: the teacher's own layers.",
        level="advanced",
    )


def spaced(total: int, kept: int) -> list[int]:
    """The numbers of `kept` of `total` blocks, evenly spaced, with the first and the last.

    They are round(linspace(0, total - 1, kept)).
    """
    return [0] if kept == 1 else [round(i * (total - 1) / (kept - 1)) for i in range(kept)]


def count(total: int, share: float) -> int:
    """How many of `total` blocks a student keeps."""
    return max(1, round(total * share))


def measures(params: StudentParams) -> bool:
    """StudentMethod.measures: whether the layers are chosen by what they do to a text."""
    return not params.student and params.layers != "even" and params.kept < 1.0


def measured(params: StudentParams, tokens: int) -> int:
    """On how many of a text's `tokens` the layers are measured."""
    return min(tokens, depth.MEASURED) if measures(params) else 0


def reshaped(geometry: Geometry, params: StudentParams) -> Geometry:
    """The student's sizes. Which layers stay is known in the run only; where an earlier step left layers of
    several sizes, these are the sizes of evenly spaced ones."""
    if params.student:
        from compression.catalogue import CATALOGUE

        return CATALOGUE[params.student].geometry if params.student in CATALOGUE else geometry
    return replace(
        geometry,
        layers=tuple(
            geometry.layers[i] for i in spaced(len(geometry.layers), count(len(geometry.layers), params.kept))
        ),
    )


def make(teacher: Bundle, context: Context, params: StudentParams, same_tokenizer: bool = True) -> Edit:
    """A student of that teacher, with weights of its own, as the Edit's bundle.

    Raises BadParam for another model with another tokenizer, unless `same_tokenizer` is False. If only texts
    pass between the two models, each can read them in its own way. Raises CalibrationError for windows that
    the layers can't be measured on.
    """
    total = len(teacher.geometry.layers)
    if params.student:
        student = _other(teacher, params.student, same_tokenizer)
        facts = {"layers": len(student.geometry.layers), "of": total, "name": Path(params.student).name}
        return Edit(bundle=student, notes=(Note("student_other", facts),))
    kept = count(total, params.kept)
    about = (Note("student_layers", {"layers": kept, "of": total}),)
    if kept == total or not measures(params):
        return Edit(bundle=keep_blocks(teacher, spaced(total, kept)), notes=about)
    assert context.windows is not None, "StudentMethod.measures asks for them"
    found = depth.choose(teacher, context.windows, total - kept, params.layers, context.recorder)
    return Edit(bundle=keep_blocks(teacher, found.kept), notes=(*about, found.note()))


def keep_blocks(teacher: Bundle, chosen: Sequence[int]) -> Bundle:
    """A copy of the model with only these blocks."""
    path, blocks = arch.of(teacher.module).blocks, arch.blocks(teacher.module)
    teacher.module.set_submodule(path, nn.ModuleList(blocks[i] for i in chosen))
    try:
        module = copy.deepcopy(teacher.module)
    finally:
        teacher.module.set_submodule(path, blocks)
    structure.renumber(module, chosen)
    return Bundle(module, teacher.tokenizer, arch.geometry(module), teacher.name, dict(teacher.source))


def _other(teacher: Bundle, name: str, same_tokenizer: bool) -> Bundle:
    from compression import models

    student = replace(
        models.load(name, str(teacher.device)),
        name=teacher.name,
        source=dict(teacher.source) | {"student": name},
    )
    if same_tokenizer:
        models.check_tokenizer(teacher, name)
        stop_like(student, teacher)
    return student
