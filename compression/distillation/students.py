"""Students: smaller models that distillation trains.

A student keeps some of its teacher's decoder blocks, evenly spaced with the first and the last among them,
and all of its embedding, final norm and head. At first it predicts badly, but it really is smaller and
faster. A student may also be another model with the same tokenizer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

from torch import nn

from compression import arch
from compression.base import Params, param
from compression.bundle import Bundle, Geometry
from compression.sample import stop_like


@dataclass(frozen=True)
class StudentParams(Params):
    """Who the student is. Base of every distillation method's parameters."""

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


def reshaped(geometry: Geometry, params: StudentParams) -> Geometry:
    """The student's sizes."""
    if params.student:
        from compression.catalogue import CATALOGUE

        return CATALOGUE[params.student].geometry if params.student in CATALOGUE else geometry
    return replace(
        geometry,
        layers=tuple(
            geometry.layers[i] for i in spaced(len(geometry.layers), count(len(geometry.layers), params.kept))
        ),
    )


def make(teacher: Bundle, params: StudentParams, same_tokenizer: bool = True) -> Bundle:
    """A student of that teacher, with weights of its own.

    Raises BadParam for another model with another tokenizer, unless `same_tokenizer` is False. If only texts
    pass between the two models, each can read them in its own way.
    """
    if params.student:
        return _other(teacher, params.student, same_tokenizer)
    total = len(arch.blocks(teacher.module))
    return keep_blocks(teacher, spaced(total, count(total, params.kept)))


def keep_blocks(teacher: Bundle, chosen: list[int]) -> Bundle:
    """A copy of the model with only these blocks."""
    path, blocks = arch.of(teacher.module).blocks, arch.blocks(teacher.module)
    teacher.module.set_submodule(path, nn.ModuleList(blocks[i] for i in chosen))
    try:
        module = copy.deepcopy(teacher.module)
    finally:
        teacher.module.set_submodule(path, blocks)
    config = module.config
    config.num_hidden_layers = len(chosen)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in chosen]
    for number, block in enumerate(arch.blocks(module)):
        for part in block.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = number
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
