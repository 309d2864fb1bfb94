"""What the papers promise, on the real model: the shipped measurements still belong to this code, and their order holds."""

from __future__ import annotations

import pytest

from evaluation import shipped
from evaluation.store import Store

RESULTS = {r.id.removeprefix("shipped-"): r for r in Store().shipped()}


def perplexity(name):
    return RESULTS[f"gates-{name}"].metrics["perplexity"]


@pytest.mark.parametrize("group", ["page", "gates"])
def test_every_promised_run_is_there(group):
    files = {shipped.file_name(s, group) for s in shipped.specs(group)}
    assert files == {f.name for f in shipped.RESULTS.glob(f"{group}-*.json")}


@pytest.mark.parametrize("name", RESULTS)
def test_shipped_results_belong_to_this_code(name):
    """A changed method or format makes its results stale: `make measure`."""
    file = next(f for f in shipped.RESULTS.glob("*.json") if f.stem.replace("+", ".") == name)
    assert shipped.is_fresh(file)


def test_the_gates_share_one_protocol_of_32k_tokens():
    protocols = {r.protocol_id for n, r in RESULTS.items() if n.startswith("gates-")}
    assert len(protocols) == 1 and "wiki.test.raw" in protocols.pop()
    assert all(r.metrics["evaluated_tokens"] == 32_768 for n, r in RESULTS.items() if n.startswith("gates-"))


@pytest.mark.parametrize("setting", ["3", "4", "4-row", "3-128"])
def test_gptq_beats_rounding(setting):
    """Frantar et al. 2022, tables 3 and 4; the gap is far beyond the noise."""
    gptq, rounding = RESULTS[f"gates-gptq-{setting}"].metrics, RESULTS[f"gates-rtn-{setting}"].metrics
    assert gptq["perplexity"] < 0.95 * rounding["perplexity"]
    assert gptq["kl_divergence_mean"] < rounding["kl_divergence_mean"]
    assert gptq["file_bytes"] == pytest.approx(rounding["file_bytes"], rel=1e-3)


def test_eight_bits_cost_nothing():
    assert perplexity("rtn-8") == pytest.approx(perplexity("none"), rel=0.005)


def test_more_bits_are_better_and_smaller_groups_not_worse():
    assert perplexity("rtn-8") < perplexity("rtn-4") < perplexity("rtn-3")
    assert perplexity("gptq-4") < perplexity("gptq-3")
    for method in ("rtn", "gptq"):
        assert perplexity(f"{method}-3") <= 1.01 * perplexity(f"{method}-3-128")
        assert perplexity(f"{method}-4") <= 1.01 * perplexity(f"{method}-4-row")


def test_wanda_beats_magnitude_by_far():
    """Sun et al. 2023, table 2."""
    assert 2 * perplexity("wanda-0.5") < perplexity("magnitude-0.5")


def test_svd_llm_beats_svd_by_far():
    """Wang et al. 2024, table 1: 7.94 against 20,061 on LLaMA-7B."""
    assert 20 * perplexity("svd_llm-0.2") < perplexity("svd-0.2")


@pytest.mark.model
def test_one_pair_lives(offline_model):
    """The order of magnitude and Wanda, compressed and measured now on 2k tokens."""
    from compression import calibrate, get, likelihood, models, texts

    found = {}
    for name in ("wanda", "magnitude"):
        bundle = models.load(offline_model)
        cut = {role: texts.windows(texts.load_text("builtin", role), bundle.tokenizer, "raw", 512, 2048, role)
               for role in ("evaluation", "calibration")}  # fmt: skip
        calibrate.compress(bundle, ((get(name), get(name).params(sparsity=0.5)),), cut["calibration"].ids)
        found[name] = float(likelihood.losses(bundle, cut["evaluation"].ids).mean().exp())
    assert found["wanda"] < found["magnitude"] / 2
