"""A new format needs the files of template_format.py and its entries, and nothing else: the template is packed,
saved and loaded by the artifact code, multiplied by every route, tested with the C library, and gone again."""

from __future__ import annotations

import pytest
import torch

import kernels
from compression import arch, artifact
from compression.packed import FORMATS, Format, from_config
from compression.packed.activations import ActivationRule
from compression.packed.linear import CompressedLinear
from kernels import cpu
from kernels.cpu import plans, selftest
from tests import tiny
from tests.compression.packed import template_format

HERE = template_format.__name__


@pytest.fixture
def turned(monkeypatch):
    """The template's class; its three entries are all that is registered, and they go when the test ends."""
    monkeypatch.setitem(FORMATS, "turned", Format(HERE, "Turned", "turned"))
    monkeypatch.setitem(kernels.OPS, "turned", kernels.Op("turned codes", HERE, ("INT",)))
    monkeypatch.setitem(plans.TILES, "turned", template_format.turned_tiles)
    return template_format.Turned


def weight():
    return torch.randn(19, 52, generator=torch.Generator().manual_seed(0))


def test_it_is_packed_and_read_back(turned):
    packed = turned.encode(weight())
    assert packed.stored_bytes() == 19 * 52 + 2 * 19
    assert (packed.dequantize() - weight()).abs().max() <= 0.51 * packed.scale.float().max()
    packed.activations = ActivationRule(bits=8)
    again = from_config(packed.full_config())
    again.load_state_dict(packed.state_dict())
    assert torch.equal(again.stored(), packed.stored()) and again.activations == packed.activations


@pytest.mark.parametrize("tokens", [1, 2, 17])
def test_its_routes_give_one_product(turned, tokens):
    """The formula, PyTorch's route and the C kernels; the label says which of them served."""
    x, packed = torch.randn(tokens, 52), turned.encode(weight())
    expected, size = x.double() @ packed.stored().double().T, x.abs() @ packed.stored().abs().T
    operands = (packed.codes, packed.scale)
    routes = [kernels.part("turned", "reference"), kernels.part("turned")]
    found = [route(x, *operands) for route in routes]
    if cpu.wait() is not None:
        assert packed.kernel == f"turned codes, exact activations (C, {cpu.instructions()})"
        found.append(packed.matmul(x))
    for y in found:
        assert (y - expected).abs().max() <= selftest.TOLERANCE * size.max()


def test_the_self_test_runs_its_examples(turned):
    names = [name for name, *_ in selftest.cases(9, 80) if name.startswith("turned")]
    assert len(names) == len(selftest.RULES)
    if (library := cpu.wait()) is not None:
        assert selftest.failure(library) == ""


def test_an_artifact_brings_it_back(turned, tmp_path):
    bundle = tiny.bundle()
    for path, _, _ in list(arch.linears(bundle.module)):
        linear = bundle.module.get_submodule(path)
        packed = turned.encode(linear.weight.detach())
        bundle.module.set_submodule(path, CompressedLinear(packed, linear.bias))
    artifact.save(bundle, tmp_path / "model", {})
    again = artifact.load(tmp_path / "model")
    for path, _, _ in arch.linears(bundle.module):
        before, after = (b.module.get_submodule(path).packed for b in (bundle, again))
        assert type(after) is turned and torch.equal(before.stored(), after.stored())
    assert (tiny.logits(again, tiny.ids(2)) - tiny.logits(bundle, tiny.ids(2))).abs().max() < 6e-3


def test_it_is_gone_again():
    assert "turned" not in FORMATS and "turned" not in kernels.OPS and "turned" not in plans.TILES
