"""OWL: the shares against the paper's definition, the model that they are measured on, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compression import arch, calibrate, get
from compression.base import BadParam, CalibrationError
from compression.pruning import owl
from evaluation.running.estimate import stage_seconds
from evaluation.spec import RunSpec
from tests import oracles, tiny
from tests.compression.test_depth import deeper

METHODS = ("magnitude", "wanda", "sparsegpt")


def pruned(bundle, name="wanda", windows=None, **values):
    steps = ((get(name), get(name).params.parse(values)),)
    return calibrate.compress(bundle, steps, tiny.ids(8) if windows is None else windows)


def scores(bundle, ids):
    """|W| ||X|| of every matrix, block by block, from hooks in one pass of the model itself."""
    found = {}

    def look(path):
        return lambda module, args: found.update({path: args[0].detach().double().flatten(0, 1)})

    paths = [(path, layer) for path, _, layer in arch.linears(bundle.module)]
    hooks = [bundle.module.get_submodule(p).register_forward_pre_hook(look(p)) for p, _ in paths]
    tiny.logits(bundle, ids)
    for hook in hooks:
        hook.remove()
    out = [[] for _ in bundle.geometry.layers]
    for path, layer in paths:
        weight = bundle.module.get_submodule(path).weight.double().numpy()
        out[layer].append(np.abs(weight) * np.sqrt((found[path].numpy() ** 2).sum(0)))
    return out


def lost(bundle):
    """The share of zeros in each block."""
    zeros, count = [0] * len(bundle.geometry.layers), [0] * len(bundle.geometry.layers)
    for path, _, layer in arch.linears(bundle.module):
        mask = bundle.module.get_submodule(path).packed.mask()
        zeros[layer], count[layer] = zeros[layer] + int(mask.sum()), count[layer] + mask.numel()
    return [z / n for z, n in zip(zeros, count, strict=True)]


@pytest.mark.parametrize("name", METHODS)
def test_each_block_loses_what_the_paper_says(name):
    bundle, ids = deeper(), tiny.ids(8)
    expected = oracles.pruning.owl(scores(bundle, ids), 3.0, 0.1, 0.6)
    assert max(expected) - min(expected) == pytest.approx(0.2)
    outcome = pruned(bundle, name, ids, sparsity=0.6, allocation="owl", outlier_factor=3.0, spread=0.1)
    assert lost(bundle) == pytest.approx(expected, abs=0.02), "rows lose whole weights"
    assert np.argsort(lost(bundle)).tolist() == np.argsort(expected).tolist()
    (note,) = (n for n in outcome.notes if n.code == "shares_by_outliers")
    assert (note.facts["least"], note.facts["most"]) == pytest.approx(
        (100 * min(expected), 100 * max(expected))
    )


def test_the_mean_counts_weights():
    shares = owl.sparsities(torch.tensor([0.1, 0.3, 0.2]), torch.tensor([100, 300, 100]), 0.6, 0.05)
    assert float((shares * torch.tensor([100, 300, 100])).sum()) == pytest.approx(0.6 * 500)
    assert (shares[0] - shares).tolist() == pytest.approx([0.0, 0.1, 0.05])


@pytest.mark.parametrize("values", [{"spread": 0.0}, {"outlier_factor": 100.0}], ids=str)
def test_without_a_spread_or_outliers_every_block_loses_the_same(values):
    """No entry is a hundred times the mean here, so all blocks hold equally many: none."""
    plain, even = deeper(), deeper()
    pruned(plain, sparsity=0.5)
    pruned(even, sparsity=0.5, allocation="owl", **values)
    assert torch.equal(tiny.logits(plain, tiny.ids(2)), tiny.logits(even, tiny.ids(2)))


def test_a_block_whose_outliers_matter_is_spared():
    """The claim: at one mean, less is lost where the blocks that hold outliers keep more. In blocks 0 and 1
    few rows of v and few channels are loud and carry the model; the others hardly add anything."""
    ids = tiny.ids(8)
    errors = {}
    for allocation in ("uniform", "owl"):
        bundle = deeper(blocks=6)
        with torch.no_grad():
            for path, role, layer in arch.linears(bundle.module):
                weight = bundle.module.get_submodule(path).weight
                if layer < 2:
                    weight[:, ::9] *= 8.0
                elif role in ("o", "down"):
                    weight *= 0.05
        before = tiny.logits(bundle, ids)
        pruned(bundle, windows=ids, sparsity=0.7, allocation=allocation, spread=0.15)
        errors[allocation] = float((tiny.logits(bundle, ids) - before).norm() / before.norm())
    assert errors["owl"] < 0.9 * errors["uniform"], errors


@pytest.mark.parametrize("name", METHODS)
def test_a_pattern_refuses_it(name):
    with pytest.raises(BadParam, match="pattern fixes what every matrix loses"):
        get(name).params.parse({"pattern": "2:4", "allocation": "owl"})


@pytest.mark.parametrize("sparsity", [0.05, 0.95])
def test_a_share_below_nothing_or_above_the_most_is_refused(sparsity):
    with pytest.raises(BadParam, match="Lower spread"):
        pruned(deeper(), sparsity=sparsity, allocation="owl", outlier_factor=2.0, spread=0.2)


def test_magnitude_reads_a_text_for_it_alone():
    magnitude = get("magnitude")
    assert not magnitude.needs_calibration(magnitude.params())
    assert magnitude.needs_calibration(magnitude.params(allocation="owl"))
    assert not magnitude.needs_calibration(magnitude.params(allocation="owl", sparsity=0.0))
    with pytest.raises(CalibrationError, match="needs calibration windows"):
        calibrate.compress(deeper(), ((magnitude, magnitude.params(allocation="owl")),), None)


def test_the_estimate_counts_the_pass():
    def seconds(values):
        return stage_seconds(RunSpec(tiny.folder("llama"), (("wanda", values),)))["compress"]

    assert seconds({"allocation": "owl"}) > seconds({})
