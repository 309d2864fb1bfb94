"""The rounding, the scales and the memory of the lesson in the browser, beside the project's own."""

from __future__ import annotations

import json

import pytest
import torch

import compression
from compression import arch
from compression.catalogue import CATALOGUE, OFFLINE_MODEL
from compression.quantization.llm_qat import rounded, row_codes, row_grid
from evaluation.learning.lessons import through
from tests.page.stage import ROOT

pytestmark = pytest.mark.browser
SHIPPED = json.loads((ROOT / "assets/learn/lessons/through/data.json").read_text("utf-8"))
# no weight lies near the middle between two marks, so that a scale stored in 16 bits rounds it alike
ROW = [0.9375, -0.28125, 0.09375, 0.40625, -0.71875, 0.03125, 0.15625, -0.59375]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_rounding_a_row(lesson, bits):
    got = lesson("through", "rounded", ROW, bits)
    weight = torch.tensor([ROW])
    scale, zero = row_grid(weight, bits, True)
    assert got["codes"] == row_codes(weight, bits, scale, zero)[0].tolist()
    values = [code * got["scale"] for code in got["codes"]]
    assert values == pytest.approx(rounded(weight, bits)[0].tolist(), rel=1e-3)
    codes, size = through.row_codes(weight, bits)
    assert (codes * size)[0].tolist() == pytest.approx(values, rel=1e-5), "the lesson's own check"


@pytest.mark.parametrize("value", [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49, -0.51, 3.0])
def test_halves_go_to_the_even_neighbour(lesson, value):
    assert lesson("through", "even", value) == float(torch.round(torch.tensor(value)))


@pytest.mark.parametrize("bits", through.BITS)
def test_going_down_straight_through(lesson, bits):
    gram = through.symmetric(SHIPPED["gram"])
    assert torch.equal(torch.tensor(lesson("through", "whole", SHIPPED["gram"])), gram)
    weights = torch.tensor(SHIPPED["weights"])
    steepest = SHIPPED["steepest"]
    got = lesson("through", "descent", SHIPPED["weights"], gram.tolist(), steepest, bits)
    expected = through.descent(weights, gram, steepest, bits)
    assert got[0] == pytest.approx(expected[0], rel=0.02), "before any step"
    # a weight near a middle may round the other way, and later steps follow it
    assert min(got) == pytest.approx(min(expected), rel=0.3) and len(got) == len(expected)
    alone = lesson("through", "scalesAlone", SHIPPED["weights"], gram.tolist(), bits)
    assert alone == pytest.approx(through.scales_alone(weights, gram, bits), rel=0.02)
    assert min(got) < alone < got[0]


def test_a_step_follows_the_rounded_weights(lesson):
    """With an identity for the inputs, the error is the sum of squares that the rounding leaves."""
    gram = torch.eye(len(ROW)).tolist()
    got = lesson("through", "descent", [ROW], gram, 1, 3)
    weight = torch.tensor([ROW])
    off = (rounded(weight, 3) - weight).square().sum() / weight.square().sum()
    assert got[0] == pytest.approx(100 * float(off), rel=1e-2)


@pytest.mark.parametrize("rank", [1, 8, 64])
def test_memory(lesson, rank):
    shapes = [shape for _, _, shape in arch.linear_shapes(CATALOGUE[OFFLINE_MODEL].geometry)]
    lora, nf4 = compression.get("lora"), compression.get("nf4")
    numbers = sum(lora.cost(s, lora.params(rank=rank), 0).bytes for s in shapes) / 2
    frozen = sum(nf4.cost(s, nf4.params(double=True), 0).bytes for s in shapes)
    whole = CATALOGUE[OFFLINE_MODEL].parameters
    rest = whole - sum(a * b for a, b in shapes)
    found = lesson("through", "memory", SHIPPED["models"][0], rank)
    assert found == {
        "full": 12 * whole,
        "lora": 2 * whole + 12 * numbers,
        "qlora": frozen + 2 * rest + 12 * numbers,
    }
