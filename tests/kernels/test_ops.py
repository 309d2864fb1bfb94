"""Every op's entry (kernels.OPS) names things that exist, and its examples come out of every route."""

from __future__ import annotations

import re

import pytest
import torch

import kernels
from compression.packed import FORMATS, format_class
from kernels import cpu
from kernels.cpu import plans, selftest


def examples(op):
    return kernels.part(op, "examples")(35, 75, torch.Generator().manual_seed(0))


def matrix(op, columns, operands):
    return kernels.part(op, "reference")(torch.eye(columns), *operands).T


@pytest.mark.parametrize("op", [op for op, entry in kernels.OPS.items() if not entry.like])
def test_the_pytorch_route_is_the_formula(op):
    for name, columns, operands in examples(op):
        x = torch.randn(3, columns, generator=torch.Generator().manual_seed(1))
        expected, size = x @ matrix(op, columns, operands).T, x.abs() @ matrix(op, columns, operands).abs().T
        assert (kernels.part(op)(x, *operands) - expected).abs().max() <= 1e-5 * size.max(), name


def test_kinds_are_the_header_s_and_every_kind_has_an_op():
    """A sum is of formats, not of an op's operands; every other kind is named by the op that makes it."""
    listed = re.search(r"#define KINDS\(KIND\)(.*?)\n#define", plans.PLAN_H, re.DOTALL)[1]
    assert list(plans.KINDS) == re.findall(r"KIND\((\w+),", listed)
    named = {kind for entry in kernels.OPS.values() for kind in entry.kinds}
    assert named == set(plans.KINDS) - {"SUM"}
    assert set(plans.TILES) == set(kernels.OPS)


@pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler here")
def test_the_self_test_sees_every_kind_and_every_grid():
    cpu.wait()
    seen = [plan for _, plan, _ in selftest.cases()]
    parts = [p for plan in seen for p in (plan, *plan.parts)]
    assert {p.kind for p in parts} == set(plans.KINDS) and {p.grids for p in parts} == set(plans.GRIDS)
    for op, entry in kernels.OPS.items():
        assert {p.kind for p in parts if p.op == (entry.like or op)} & set(entry.kinds)


def test_every_format_names_its_class_and_its_op():
    for name, entry in FORMATS.items():
        assert format_class(name).format == name and (entry.op in kernels.OPS or name == "sum")
