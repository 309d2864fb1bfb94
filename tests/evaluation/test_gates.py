"""What the papers promise, on the real model: the shipped measurements still belong to this code, and their order holds."""

from __future__ import annotations

import json
import statistics

import pytest

from evaluation import authors, gates, layers, overview, peers, shipped
from evaluation.store import Store

RESULTS = {r.id.removeprefix("shipped-"): r for r in Store().shipped()}
SHORT = "16384-120.0"  # the budget of the gates that train


def perplexity(name):
    return RESULTS[f"gates-{name}"].metrics["perplexity"]


def chance():
    """A quarter of the heads and channels removed at random: mean of five draws."""
    return statistics.mean(perplexity(f"llm_pruner-0.25-random{drawn}") for drawn in ("", *(f"-seed{i}" for i in range(1, 5))))


NOT_MEASURED = {  # declared, and waiting for a quiet machine: `python -m evaluation.shipped`
    "gates": {
        "gates-awq-3-64.json",
        "gates-awq-4-64.json",
        "gates-gptq-3-mse.json",
        "gates-gptq-3-row+peqa-3-16384-120.0.json",
        "gates-gptq-3-row-mse.json",
        "gates-gptq-4-mse.json",
        "gates-gptq-4-row-mse.json",
        "gates-hqq-4-0.json",
        "gates-lut_gemm-3.json",
        "gates-lut_gemm-4.json",
        "gates-nf4-true.json",
        "gates-owq-3-minmax.json",
        "gates-owq-4-minmax.json",
        "gates-rtn-3-mse.json",
        "gates-rtn-3-row.json",
        "gates-rtn-4-128.json",
        "gates-rtn-4-mse.json",
        "gates-rtn-4-row-mse.json",
        "gates-smoothquant-0.5-false.json",
        "gates-smoothquant-0.5.json",
        "gates-spqr-3-0.0.json",
        "gates-spqr-3-false.json",
        "gates-zeroquant-4-100.json",
        "gates-zeroquant-8-100.json",
    },
    "calibration": {shipped.file_name(s, "calibration") for s in shipped.specs("calibration")},
}


@pytest.mark.parametrize("group", shipped.GROUPS)
def test_every_promised_run_is_there(group):
    """Or waits by name; what has been measured waits no more."""
    promised = {shipped.file_name(s, group) for s in shipped.specs(group)}
    there = {f.name for f in shipped.RESULTS.glob(f"{group}-*.json")}
    assert promised - there == NOT_MEASURED.get(group, set()) and there <= promised


NOT_MEASURED_AGAIN = {  # until `make measure` has run
    "gates-gkd-0.65-49152-120.0": "GKD reads texts and prompts, whose reading was mended since; it carries no witness",
    "gates-gkd-0.65-49152-120.0-supervised-0.0": "the same",
    "domain-qlora-16-131072-120.0-0.002": "NF4's codes are chosen before its scales are rounded since; 131,072 tokens wait for a quiet machine",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.xfail(strict=True, reason=NOT_MEASURED_AGAIN[n])) if n in NOT_MEASURED_AGAIN else n
        for n in RESULTS
    ],
)
def test_shipped_results_belong_to_this_code(name):
    """What the code gives otherwise than when it was measured (evaluation/witness.py): `make measure`."""
    assert not shipped.why_stale(RESULTS[name])


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


# --- calibrated on a text of another kind than the one that is measured -------------------------------------------

elsewhere = pytest.mark.skipif(bool(NOT_MEASURED["calibration"]), reason="`python -m evaluation.shipped calibration`")


def other(name):
    """A figure of a gate that was calibrated on Python's help topics instead of WikiText-2."""
    return RESULTS[f"calibration-{name}"].metrics["perplexity"]


def test_each_run_on_another_text_is_a_gate_too():
    """So that each has its other side, and both are measured on the same tokens."""
    assert set(shipped.ELSEWHERE) <= set(gates.recipes())
    pairs = zip(*(shipped.specs(group) for group in ("calibration", "gates")), strict=False)
    assert all(
        (a.text, a.tokens, a.window, a.calibration_tokens) == (b.text, b.tokens, b.window, b.calibration_tokens) for a, b in pairs
    )


@elsewhere
def test_only_the_calibration_text_differs():
    pairs = [(r, RESULTS[n.replace("calibration-", "gates-", 1)]) for n, r in RESULTS.items() if n.startswith("calibration-")]
    assert pairs and all(overview.same_but_text(a, b) for a, b in pairs)
    assert len({a.fingerprint["calibration"] for a, _ in pairs}) == 1


@elsewhere
@pytest.mark.parametrize("setting", ["3", "4"])
def test_gptq_beats_rounding_whatever_it_reads(setting):
    """Frantar et al. 2022 calibrate on C4 and measure on WikiText-2, PTB and LAMBADA."""
    rounding = RESULTS[f"gates-rtn-{setting}"].metrics
    assert other(f"gptq-{setting}") < 0.97 * rounding["perplexity"]
    assert RESULTS[f"calibration-gptq-{setting}"].metrics["kl_divergence_mean"] < rounding["kl_divergence_mean"]


@elsewhere
def test_the_orders_hold_whatever_is_read():
    """AWQ in 4.17 bits below rounding in 4.31; OWQ and SpQR below rounding, a scale a row and in groups; levelling pays."""
    assert other("awq-4") < perplexity("rtn-4")
    assert other("owq-4") < perplexity("rtn-4-row") and other("owq-3") < perplexity("gptq-3-row")
    assert other("spqr-4") < other("gptq-4") and other("spqr-4") < perplexity("rtn-4")
    assert other("smoothquant-0.5-tensor") <= 1.01 * other("smoothquant-0.5-tensor-false")
    assert other("gptq-4") < other("gptq-3") and other("owq-4") < other("owq-3")


@elsewhere
def test_a_text_of_another_kind_is_never_better_than_by_noise():
    usual = overview.results()
    for name, found in overview.results("calibration").items():
        assert overview.beside(found, usual[name]).word != "better", name


@elsewhere
def test_awq_depends_less_on_its_text_than_gptq():
    """Lin et al. 2023, figure 8: another text costs AWQ 0.5 to 0.6 of perplexity and GPTQ 2.3 to 4.9."""
    assert other("awq-4") / perplexity("awq-4") <= 1.01 * other("gptq-4") / perplexity("gptq-4")


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


def test_making_up_for_what_is_removed_pays():
    """Frantar and Alistarh 2023, tables 1 and 2; Sun et al. 2023: near Wanda at 50 %, well below it at 2:4."""
    assert perplexity("none") < perplexity("sparsegpt-0.5") <= 1.02 * perplexity("wanda-0.5")
    assert perplexity("wanda-0.5") < perplexity("magnitude-0.5")
    assert perplexity("sparsegpt-0.5-2of4") < 0.95 * perplexity("wanda-0.5-2of4")


@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
def test_the_less_free_the_places_the_worse(method):
    assert perplexity(f"{method}-0.5") < perplexity(f"{method}-0.5-4of8") < perplexity(f"{method}-0.5-2of4")


def test_rounding_what_stays_costs_a_little_and_saves_much():
    """Frantar and Alistarh 2023, section 4.3: half of the weights at 4 bits, a bit for each place, and the grid."""
    rounded = RESULTS["gates-sparsegpt-0.5-true"].metrics
    assert rounded["perplexity"] > perplexity("sparsegpt-0.5")
    assert rounded["weight_bits_per_weight"] == pytest.approx(1 + 2 + 20 / 64, abs=0.1)


def test_svd_llm_beats_svd_by_far():
    """Wang et al. 2024, table 1: 7.94 against 20,061 on LLaMA-7B."""
    assert 20 * perplexity("svd_llm-0.2") < perplexity("svd-0.2")


def test_gradients_beat_chance_and_chance_beats_size():
    """Ma et al. 2023, table 1: 19.09, 27.51 and 582.4 on LLaMA-7B with 20 % removed; all of the same size."""
    assert perplexity("llm_pruner-0.25") < chance() < perplexity("llm_pruner-0.25-l2")
    for form in ("vector", "element2", "mixed"):
        assert perplexity(f"llm_pruner-0.25-{form}") < chance(), form
    sizes = {RESULTS[f"gates-llm_pruner-0.25{form}"].metrics["weight_bits_per_weight"] for form in ("", "-l2", "-random")}
    assert len(sizes) == 1 and sizes.pop() == pytest.approx(16 * (1 - 25 / 30 * 0.25), rel=1e-3)


def test_what_a_low_rank_method_knows_of_the_inputs_pays():
    """Yuan et al. 2023 and Wang et al. 2024, tables 1: SVD-LLM < ASVD < SVD."""
    assert perplexity("svd_llm-0.2") < 0.98 * perplexity("asvd-0.2")
    assert perplexity("asvd-0.2") < 0.98 * perplexity("svd-0.2")


def test_a_mean_in_the_bias_is_nearer_to_svd_llm_than_to_asvd():
    """Layer by layer PCA errs no more than SVD-LLM (below); in the whole model it does worse, and its essay says so."""
    pca, plain = RESULTS["gates-pca-0.2"].metrics, RESULTS["gates-svd_llm-0.2"].metrics
    assert pca["perplexity"] ** 2 < plain["perplexity"] * perplexity("asvd-0.2")
    assert plain["file_bytes"] < pca["file_bytes"] < 1.005 * plain["file_bytes"], "biases of 16 bits"


def test_recovery_wins_back_more_than_the_same_training_gains_on_the_original():
    """Tuned below untuned (Sun et al. 2023, table 6); the control is the training alone."""
    won = perplexity("wanda-0.5") / perplexity(f"wanda-0.5.lora-8-{SHORT}")
    assert won > perplexity("none") / perplexity(f"lora-8-{SHORT}") > 1


def test_recovery_wins_back_what_a_cut_took():
    """Ma et al. 2023, table 1, tuned; the control is the training alone."""
    won = perplexity("llm_pruner-0.25") / perplexity(f"llm_pruner-0.25.lora-8-{SHORT}")
    assert won > perplexity("none") / perplexity(f"lora-8-{SHORT}")


def test_cutting_the_width_costs_more_than_cutting_blocks():
    """Ma et al. 2023, table 1: 22.1 and 19.1 with 20 % removed; a fifth of each."""
    blocks, width = RESULTS["gates-llm_pruner-0.25"].metrics, RESULTS["gates-llm_pruner-0.2-channel"].metrics
    assert 2 * blocks["perplexity"] < width["perplexity"]
    assert blocks["weight_bits_per_weight"] == pytest.approx(width["weight_bits_per_weight"], rel=0.02)


def test_heads_that_fade_out_are_better_than_chance():
    """Zhang et al. 2023: cutting while an adapter learns, in 64 steps, against cutting at once without repair."""
    faded, cut = RESULTS["gates-lora_prune-0.25-120.0"].metrics, RESULTS["gates-llm_pruner-0.25"].metrics
    assert faded["perplexity"] < 0.7 * cut["perplexity"] < 0.7 * chance()
    assert faded["file_bytes"] == pytest.approx(cut["file_bytes"], rel=1e-3)


def test_trained_scales_win_back_what_rounding_lost():
    """Kim et al. 2023, table 2, at 3 bits; the size is rounding's. The control: the same factors of weights that weren't rounded."""
    rounded, trained = (RESULTS[f"gates-peqa-3-{budget}"].metrics for budget in ("0", SHORT))
    assert perplexity("none") < trained["perplexity"] < 0.7 * rounded["perplexity"]
    assert trained["file_bytes"] == pytest.approx(rounded["file_bytes"], rel=1e-3)
    won, control = rounded["perplexity"] / trained["perplexity"], perplexity("none") / perplexity(f"peqa-3-false-{SHORT}")
    assert won > control


def test_adapters_over_four_bits_learn_as_much_as_over_sixteen():
    """Dettmers et al. 2023, section 4: what training takes off the perplexity. NF4 itself costs this small model a quarter, and
    adapters of rank 8 don't win that back: the paper's equal ends belong to large models."""
    learnt = perplexity("nf4") / perplexity(f"qlora-8-{SHORT}")
    assert learnt > 0.98 * perplexity("none") / perplexity(f"lora-8-{SHORT}") > 1


def test_four_bits_learn_a_domain_as_sixteen_do():
    """Dettmers et al. 2023, section 4: with adapters at every linear the frozen model may as well be NF4. Same adapters, tokens, seed."""
    taught = shipped.TAUGHT.split()
    course = "-".join(["16", taught[5], "120.0", "0.002"])
    found = {
        name: RESULTS[f"domain-{name}"].metrics["perplexity"]
        for name in ("none", "nf4-true", f"lora-{course}", f"qlora-{course}")
    }
    before, rounded, lora, qlora = found.values()
    assert qlora < 0.25 * before and qlora <= 1.02 * lora
    assert qlora / lora < rounded / before, "the adapters win back what rounding lost"
    for name in ("lora", "qlora"):
        trained = next(n["facts"] for n in RESULTS[f"domain-{name}-{course}"].notes if n["code"] == "trained")
        assert trained["seconds"] <= 600


def divergences(name):
    """Nats a token, before and after the second half of a student's training."""
    return next(n["facts"] for n in RESULTS[f"gates-{name}"].notes if n["code"] == "divergences")


def test_a_student_on_its_own_samples_lowers_what_it_is_judged_by_and_learns_the_text_too():
    """Agarwal et al. 2023. From one warmed-up student: reverse KL on own samples below supervised training's, and at least half of
    what that takes off the forward KL on text."""
    own, supervised = divergences("gkd-0.65-49152-120.0"), divergences("gkd-0.65-49152-120.0-supervised-0.0")
    for where in ("text_forward_before", "own_reverse_before"):
        assert own[where] == pytest.approx(supervised[where], rel=1e-3), "one start"
    assert own["own_reverse_after"] < 0.95 * supervised["own_reverse_after"]
    closed, asked = (found["text_forward_before"] - found["text_forward_after"] for found in (own, supervised))
    assert closed >= 0.5 * asked > 0
    size = RESULTS["gates-gkd-0.65-49152-120.0"].metrics["file_bytes"]
    assert size == pytest.approx(2 * (49_152 * 576 + 20 * 3_538_944), rel=0.01)


def test_training_under_rounding_beats_the_better_of_two_roundings():
    """Liu et al. 2023, table 1: weights and cache in 4 bits, inputs in 8. The control has the same inputs and cache, on the paper's grid
    or with a zero point a row."""
    rounded, skewed = (RESULTS[f"gates-llm_qat-4-{name}"] for name in ("4-0", "false-4-0"))
    assert skewed.metrics["perplexity"] < rounded.metrics["perplexity"]
    for name in ("4-8192-120.0", "false-4-8192-120.0"):
        trained = RESULTS[f"gates-llm_qat-4-{name}"]
        assert overview.beside([trained], [skewed]).word == "better" and perplexity("none") < trained.metrics["perplexity"]
    assert trained.metrics["file_bytes"] == pytest.approx(rounded.metrics["file_bytes"], rel=1e-3)


def test_nmf_is_no_better_than_ten_svd_llms():
    """It breaks the model as plain SVD does; its error in the weights is never below SVD's (test_nmf.py)."""
    assert perplexity("nmf-0.2") > 10 * perplexity("svd_llm-0.2")


def test_a_looser_setting_never_wins_within_a_method():
    """S1 with 1 % of slack: original <= 8 bits <= 4 <= 3 <= 2."""
    ladders = {
        "rtn": "8 4 3 2",
        "gptq": "8 4 3 2",
        "awq": "8 4 3 2",
        "owq": "4 3 2",
        "spqr": "4 3 2",
        "hqq": "8 4 3 2",
        "zeroquant": "8 4 3",
    }
    for method, bits in ladders.items():
        ladder = [perplexity("none"), *(perplexity(f"{method}-{b}") for b in bits.split())]
        assert all(a <= 1.01 * b for a, b in zip(ladder, ladder[1:], strict=False)), method


def test_awq_is_not_above_rounding():
    """Lin et al. 2023, table 4."""
    assert perplexity("awq-3") <= 1.01 * perplexity("rtn-3-128")


def test_searched_ranges_and_weak_columns_pay_together():
    """Lee et al. 2023: 3.01 bits against GPTQ's 3, both with a scale a row. Which part brings what is told layer by layer below."""
    owq, gptq = RESULTS["gates-owq-3"].metrics, RESULTS["gates-gptq-3-row"].metrics
    assert owq["perplexity"] < gptq["perplexity"]
    assert owq["weight_bits_per_weight"] < gptq["weight_bits_per_weight"] + 0.03


def test_spqr_beats_gptq_at_no_more_bits():
    """Dettmers et al. 2023, table 1: 3.9 bits against GPTQ's 4."""
    spqr, gptq = RESULTS["gates-spqr-3"].metrics, RESULTS["gates-gptq-4-row"].metrics
    assert spqr["weight_bits_per_weight"] <= gptq["weight_bits_per_weight"] + 0.02
    assert spqr["perplexity"] < gptq["perplexity"]


def test_eight_bit_products():
    """LLM.int8() within 1 % of the original and not above plain int8; SmoothQuant not above plain int8 with fixed scales.

    Within 1 % is what table 1 of the paper shows (25.83 for 25.65 at 125M parameters). Of this model's activations few reach 6, so
    what the rest loses counts: the symmetric form, bitsandbytes', is 1.6 % above the original (bitsandbytes itself 1.9 %,
    peers.json).
    """
    assert perplexity("llm_int8") <= 1.01 * perplexity("none")
    assert perplexity("llm_int8-2.0") <= 1.01 * perplexity("none")
    assert perplexity("llm_int8") <= perplexity("llm_int8-0.0") <= perplexity("llm_int8-0.0-false"), "plain int8, both forms"
    assert perplexity("llm_int8") <= perplexity("llm_int8-false") <= perplexity("llm_int8-0.0-false")
    assert perplexity("llm_int8-false") <= 1.02 * perplexity("none")
    assert perplexity("smoothquant-0.5-tensor") <= 1.01 * perplexity("smoothquant-0.5-tensor-false")


def test_bell_curve_quantiles_beat_four_bit_floats():
    """Dettmers et al. 2023 (QLoRA), table 2."""
    assert perplexity("nf4") < perplexity("nf4-fp4")


def test_hqq_is_below_rounding():
    """With a whole first zero at both widths, groups of 64 beside groups of 64 (HQQ's scales and zeros take 0.19 bits more)."""
    assert perplexity("hqq-4") < 0.97 * perplexity("rtn-4") and perplexity("hqq-3") < 0.97 * perplexity("rtn-3")
    assert perplexity("hqq-4") < 0.97 * perplexity("hqq-4-false-0"), "the whole first zero and the moves together"
    assert perplexity("hqq-8") < 1.002 * perplexity("rtn-8"), "nothing is lost where nothing can be won"


def test_a_lossless_converter_loses_nothing():
    """GPTQ's numbers in LUT-GEMM's format: the same losses."""
    lut, gptq = (RESULTS[f"gates-{n}"].metrics for n in ("gptq-4+lut_gemm-4-64".replace("+", "."), "gptq-4"))
    assert lut["perplexity"] == pytest.approx(gptq["perplexity"], rel=1e-4)


def test_thicker_chains_are_never_worse():
    """Xu et al. 2023 at 3.0, 2.0 and 1.09 times smaller; without training even the last is far from the original."""
    ladder = [perplexity("none"), *(perplexity(f"tensorgpt-{rank}-square") for rank in (11, 6, 4))]
    assert all(a <= 1.01 * b for a, b in zip(ladder, ladder[1:], strict=False))
    sizes = [RESULTS[f"gates-tensorgpt-{rank}-square"].metrics["file_bytes"] for rank in (11, 6, 4)]
    assert sizes == sorted(sizes, reverse=True)


def test_an_svd_of_the_table_beats_chains_at_equal_bytes():
    """Expected where half of the table is left; both are far from the original."""
    svd, chains = (RESULTS[f"gates-tensorgpt-6-{name}"].metrics for name in ("svd-square", "square"))
    assert svd["perplexity"] < chains["perplexity"] and svd["file_bytes"] <= chains["file_bytes"] + 1_000


LAYERS = json.loads(layers.FILE.read_text("utf-8")) if layers.FILE.is_file() else {"methods": {}}


@pytest.mark.parametrize("recipe", layers.RECIPES)
def test_layer_errors_belong_to_this_code(recipe):
    """Stale: `python -m evaluation.layers`."""
    assert not layers.why_stale(recipe, LAYERS["methods"])


@pytest.mark.parametrize(
    "better, worse",
    [
        ("gptq --bits 3 --group_size -1", "rtn --bits 3 --group_size -1"),
        ("gptq --bits 4 --group_size -1", "rtn --bits 4 --group_size -1"),
        ("owq --bits 3", "gptq --bits 3 --group_size -1"),
        ("spqr --bits 3", "gptq --bits 4 --group_size -1"),
        ("awq --bits 3", "rtn --bits 3 --group_size 128"),
        ("awq --bits 4", "rtn --bits 4 --group_size 128"),
        ("hqq --bits 3", "hqq --bits 3 --iterations 0"),
        ("nf4", "nf4 --table fp4"),
        ("svd_llm --removed 0.2", "asvd --removed 0.2"),
        ("asvd --removed 0.2", "svd --removed 0.2"),
        ("wanda --sparsity 0.5", "magnitude --sparsity 0.5"),
        ("sparsegpt --pattern 2:4", "wanda --pattern 2:4"),
    ],
)
def test_the_order_of_layer_errors(better, worse):
    """S15, the primary gate: on the same inputs, in the geometric mean and in nine layers of ten, at no more bits."""
    a, b = (LAYERS["methods"][name] for name in (better, worse))
    ratios = [a["errors"][path] / b["errors"][path] for path in a["errors"]]
    assert statistics.geometric_mean(ratios) < 0.98
    assert sum(r < 1 for r in ratios) > 0.9 * len(ratios)
    assert a["bits_per_weight"] < b["bits_per_weight"] + 0.03


def test_most_of_what_owq_wins_is_its_search_of_ranges():
    """What its essay says, and README: of GPTQ's error 0.64 is left by the search alone, 0.98 by weak columns alone, 0.59 by both."""
    errors = lambda recipe: LAYERS["methods"][recipe]["errors"]  # noqa: E731
    left = lambda a, b: statistics.geometric_mean(errors(a)[path] / errors(b)[path] for path in errors(b))  # noqa: E731
    gptq, searched, weak = (
        "gptq --bits 3 --group_size -1",
        "gptq --bits 3 --group_size -1 --tuning mse",
        "owq --bits 3 --tuning minmax",
    )
    assert (left(searched, gptq), left(weak, gptq), left("owq --bits 3", gptq)) == pytest.approx((0.64, 0.98, 0.59), abs=0.005)
    assert left("owq --bits 3", searched) < 1, "weak columns pay with the same search, too"


def test_making_up_for_what_is_removed_pays_in_every_layer():
    """At 50 %, free places: equally many weights stay; rows that keep unequally many need a pointer each, 32 bits."""
    a, b = (LAYERS["methods"][f"{name} --sparsity 0.5"] for name in ("sparsegpt", "wanda"))
    assert all(a["errors"][path] < 0.98 * b["errors"][path] for path in b["errors"])
    assert a["bits_per_weight"] < b["bits_per_weight"] + 32 / 576


def test_centred_pca_is_svd_llm_or_better_in_every_layer():
    """An exact order: the mean needs no direction. Half-precision factors may blur it by a little."""
    pca, plain = (LAYERS["methods"][f"{name} --removed 0.2"]["errors"] for name in ("pca", "svd_llm"))
    assert all(pca[path] <= 1.001 * plain[path] for path in plain)


def test_svd_llm_is_the_optimum_in_every_layer():
    for other in ("asvd", "svd"):
        best, errors = (LAYERS["methods"][f"{name} --removed 0.2"]["errors"] for name in ("svd_llm", other))
        assert all(best[path] <= 1.001 * errors[path] for path in errors), other


PEERS = {row["name"]: row for row in json.loads(peers.TABLE.read_text("utf-8"))["rows"]}


PEERS_NOT_MEASURED = {  # `make compare-peers ARGS="--only NAME ..."`
    "awq-4-unclipped",
    "awq-3-unclipped",
    "nf4-double",  # its codes are chosen otherwise since it was measured
}


def test_no_public_implementation_is_two_percent_better():
    """`make compare-peers`: every pair has its row, from the same weights, texts and windows."""
    assert set(PEERS) == set(peers.PAIRS) - PEERS_NOT_MEASURED and all(
        row["recipe"] == peers.PAIRS[name].ours for name, row in PEERS.items()
    )
    assert peers.verdict(list(PEERS.values())) == []


AUTHORS = json.loads(peers.TABLE.read_text("utf-8")).get("authors", {}).get("rows", [])


def test_the_authors_own_loops_leave_no_less_error():
    """Lee et al. 2023 and Dettmers et al. 2023, by their own code on the same matrices: the same weak columns, as many outliers."""
    assert [row["name"] for row in AUTHORS] == list(authors.LOOPS)
    for row in AUTHORS:
        assert row["recipe"] == authors.LOOPS[row["name"]].ours and row["ratio"] <= peers.WORST, row["name"]
        for found in row["matrices"].values():
            assert found.get("weak_in_common") == found.get("weak_columns")
            if "outlier_share_ours" in found:
                assert found["outlier_share_ours"] == pytest.approx(found["outlier_share_theirs"], rel=0.5)


@pytest.mark.parametrize("name", ["gptq-4", "smoothquant"])
def test_compressing_takes_at_most_six_tenths_of_llm_compressors_time(name):
    assert PEERS[name]["cores_beside"] <= overview.QUIET and PEERS[name]["seconds_ratio"] <= 0.6


@pytest.mark.parametrize("name", ["wanda", "wanda-2of4", "sparsegpt", "sparsegpt-2of4"])
def test_pruning_takes_no_longer_than_llm_compressor(name):
    assert PEERS[name]["cores_beside"] <= overview.QUIET and PEERS[name]["seconds_ratio"] <= 1


NOT_REACHED = {  # two Zen 4 cores at 114 to 162 tokens a second of the original: the faster memory is, the more the arithmetic shows
    "AMD EPYC": {  # of kernels that have been made faster since, and not been measured there again (`overview --rates`)
        "wanda --sparsity 0.5": "0.77: out of the cache a core got through 19 GB/s of 16-bit bitmask, half of it for moving halves to their places",
        "wanda --pattern 2:4": "0.73: the same kernel",
        "sparsegpt --sparsity 0.5 --quantize true": "0.77: 10 GB/s a core of 4-bit bitmask, exact activations; 14 in int8",
    }
}


def expected(processor, words):
    """A case, marked where its limit is known."""
    reason = NOT_REACHED.get(processor, {}).get(words)
    return pytest.param(processor, words, marks=[pytest.mark.xfail(strict=True, reason=reason)] if reason else [])


@pytest.mark.parametrize(
    "processor, words",
    [expected(m["host"]["processor"], words) for m in overview.machines() for words in overview.FEWER_BYTES],
)
def test_fewer_bytes_are_faster_steps(processor, words):
    """At batch 1 a step takes as long as its bytes take to read: at least 0.85 of the bytes' ratio arrives as speed."""
    machine = next(m for m in overview.machines() if m["host"]["processor"] == processor)
    rate = machine["rates"][overview.timed_as(words)]
    faster = rate["tokens_per_second"] / rate["original_tokens_per_second"]
    assert faster >= 0.85 * rate["original_bytes_per_token"] / rate["bytes_per_token"]


def test_the_readme_shows_the_stored_results():
    """`python -m evaluation.overview`."""
    readme = overview.README.read_text("utf-8")
    assert overview.written(readme) == readme


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
