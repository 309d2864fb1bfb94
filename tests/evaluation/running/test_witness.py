"""A stored result goes stale when, and only when, the numbers that the code gives change: copies of the
program with one thing altered.

The smallest changes that were seen to be told apart: a damping of 1 % more, a share of weights of 0.1 %, a
rate of 1 % (LoRA).
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import compression
from compression import kv_cache
from evaluation import ROOT
from evaluation.running import provenance, witness
from evaluation.running.run import run
from evaluation.spec import RunSpec
from evaluation.store import Store
from tests import tiny

RTN, GPTQ, HQQ, NF4 = (
    "gates-rtn-4.json",
    "gates-gptq-4-group_size_row.json",
    "gates-hqq-3.json",
    "gates-nf4.json",
)
AWQ, SMOOTH, WANDA, SPARSE = (
    "gates-awq-4.json",
    "gates-smoothquant-0.5-activations_tensor.json",
    "gates-wanda-0.5.json",
    "gates-sparsegpt-0.5.json",
)
SVD, LORA, QAT, NONE = (
    "gates-svd_llm-0.2.json",
    "gates-lora-8-train_tokens_16384-train_minutes_120.json",
    "gates-llm_qat-4-kv_bits_4-train_tokens_0.json",
    "gates-none.json",
)
PRUNER, CORES = "gates-llm_pruner-0.25.json", "gates-tensorgpt-4-head_cores.json"

# what: (file, its text, what stands there instead, results that must go stale, results that must stay fresh)
ALTERED = {
    "sums of inputs": (
        "compression/inputs.py",
        "self.sums[name] += new",
        "self.sums[name] += 1.1 * new",
        (GPTQ, WANDA),
        (RTN,),
    ),
    "damping": (
        "compression/second_order.py",
        "+ used * scale)",
        "+ 1.1 * used * scale)",
        (GPTQ, SPARSE),
        (RTN, WANDA, AWQ),
    ),
    "zero points": (
        "compression/grids.py",
        "torch.round(-low / scale.float())",
        "torch.round(-1.1 * low / scale.float())",
        (RTN, GPTQ),
        (NF4, WANDA),
    ),
    "a half-quadratic step": (
        "compression/quantization/hqq.py",
        "(codes - (w - kept) / s).mean(1)",
        "(codes - (w - kept) / (1.01 * s)).mean(1)",
        (HQQ,),
        (RTN,),
    ),
    "a value of a table": ("compression/packed/codebook.py", "0.07958029955625534", "0.0875", (NF4,), (RTN,)),
    "a search": (
        "compression/quantization/awq.py",
        "tuple(k / 20 for k in range(20))",
        "tuple(k / 22 for k in range(20))",
        (AWQ,),
        (GPTQ,),
    ),
    "a scale of activations": (
        "compression/quantization/smoothquant.py",
        "1e-30) / 127 if",
        "1e-30) / 115 if",
        (SMOOTH,),
        (RTN,),
    ),
    "a score": (
        "compression/pruning/patterns.py",
        "stats.sum_sq.sqrt()",
        "stats.sum_sq ** 0.55",
        (WANDA,),
        (SPARSE,),
    ),
    "a share that is removed": (
        "compression/low_rank/rank.py",
        "int((1 - removed)",
        "int((1 - 1.1 * removed)",
        (SVD,),
        (RTN,),
    ),
    "a cache": (
        "compression/kv_cache.py",
        "keepdim=True) / top)",
        "keepdim=True) / (1.1 * top))",
        (QAT,),
        (RTN,),
    ),
    "a schedule": (
        "compression/training.py",
        "WARM_UP, JUDGED = 0.1, 8",
        "WARM_UP, JUDGED = 0.11, 8",
        (LORA,),
        (NF4,),
    ),
    "the length of gradients": ("compression/training.py", "CLIP = 1.0", "CLIP = 1.1", (LORA,), (NF4,)),
    "what is held out": (
        "compression/training.py",
        "HELD_OUT, MOST_HELD_OUT, FEWEST = 8, 8, 2",
        "HELD_OUT, MOST_HELD_OUT, FEWEST = 9, 8, 2",
        (LORA,),
        (NF4,),
    ),
    "the draw of windows": (
        "compression/texts.py",
        "torch.Generator().manual_seed(seed)",
        "torch.Generator().manual_seed(seed + 1)",
        (WANDA, LORA),
        (RTN, NONE),
    ),
    "a measure of all": (
        "compression/likelihood.py",
        "return torch.logsumexp(logits, -1) -",
        "return 1.001 * torch.logsumexp(logits, -1) -",
        (RTN, NONE),
        (),
    ),
    "a measure of two": (
        "evaluation/measuring/divergence.py",
        "log_p.exp_().mul_(difference)",
        "log_p.exp_().mul_(1.1 * difference)",
        (RTN,),
        (NONE,),
    ),
    "a chain of cores": (
        "compression/low_rank/tensorgpt.py",
        "basis = directions[:, :, -ranks[k + 1] :]",
        "basis = 1.1 * directions[:, :, -ranks[k + 1] :]",
        (CORES,),
        (RTN,),
    ),
    "an importance": (
        "compression/pruning/llm_pruner.py",
        "return (g * weight).abs().sum(along)",
        "return (g * weight.abs() ** 1.1).abs().sum(along)",
        (PRUNER,),
        (WANDA,),
    ),
}
# Alterations of what one method alone reads, which no other of the named results can see: in `make test` they
# share a copy of the program, in `make test-all` each has its own.
TOGETHER = (
    (
        *("a half-quadratic step", "a value of a table", "a search", "a scale of activations"),
        *("a share that is removed", "a chain of cores", "a cache", "an importance"),
    ),
    ("a score", "the length of gradients"),
)


def _groups(apart: bool) -> list[tuple[str, ...]]:
    """The alterations that each copy has."""
    shared = () if apart else TOGETHER
    return [*shared, *((what,) for what in ALTERED if not any(what in group for group in shared))]


def _copy(folder: Path) -> Path:
    """The program's folders, without what it ships but results."""
    for name in ("compression", "kernels", "evaluation"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "assets").symlink_to(ROOT / "assets")
    return folder


def _renamed(folder: Path) -> None:
    """Files that moved, comments, other layout: nothing that computes."""
    (folder / "compression/row_losses.py").rename(folder / "compression/sums_over_rows.py")
    (folder / "compression/second_order.py").rename(folder / "compression/quantization/column_loop.py")
    for file in folder.glob("*/**/*.py"):
        text = file.read_text("utf-8")
        text = text.replace("compression.row_losses", "compression.sums_over_rows")
        text = text.replace("compression.second_order", "compression.quantization.column_loop")
        text = re.sub(r"(?m)^(import torch)$", r"\1  # a comment\n\n", text)
        file.write_text(text.replace("used * scale", "(used * scale)"), "utf-8")


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory, pytestconfig):
    """What of a copy -> {result's file: what differs}."""
    jobs = {}
    for group in _groups(apart=pytestconfig.getoption("--all")):
        root, files = _copy(tmp_path_factory.mktemp("altered")), []
        for what in group:
            file, old, new, stale, fresh = ALTERED[what]
            text = (root / file).read_text("utf-8")
            assert old in text, f"{file} has no {old!r} any more: alter something else in it"
            (root / file).write_text(text.replace(old, new), "utf-8")
            files += [*stale, *fresh]
        jobs[group] = {"root": str(root), "files": list(dict.fromkeys(files))}
    root = _copy(tmp_path_factory.mktemp("renamed"))
    _renamed(root)
    jobs["names and comments",] = {"root": str(root), "files": [RTN, GPTQ, WANDA, LORA]}
    script = Path(__file__).with_name("mutated.py")
    done = subprocess.run(
        [sys.executable, script],
        input=json.dumps(list(jobs.values())),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": ""},
    )
    found = zip(jobs, json.loads(done.stdout), strict=True)
    return {what: verdict for group, verdict in found for what in group}


@pytest.mark.parametrize("group", TOGETHER, ids=len)
def test_alterations_of_one_copy_tell_on_results_of_their_own(group):
    stale = [name for what in group for name in ALTERED[what][3]]
    assert len(set(stale)) == len(stale) and not {n for what in group for n in ALTERED[what][4]} & set(stale)


@pytest.mark.parametrize("what", ALTERED)
def test_what_an_alteration_makes_stale(what, verdicts):
    *_, stale, fresh = ALTERED[what]
    assert all(verdicts[what][name] for name in stale), "an altered number that nobody sees"
    assert not any(verdicts[what][name] for name in fresh), {name: verdicts[what][name] for name in fresh}


def test_names_comments_and_layout_make_nothing_stale(verdicts):
    assert not any(verdicts["names and comments"].values()), verdicts["names and comments"]


@pytest.fixture
def answered(place, tmp_path):
    """(a run's request, its store, the record of an answer that another program gave, with a witness)."""
    store = Store(tmp_path / "home", shipped=None)
    wanted = RunSpec(
        tiny.folder("llama"),
        (("rtn", {"bits": 4, "group_size": 16}),),
        text=str(place / "test.txt"),
        window=64,
        tokens=512,
    )
    first = run(wanted, store=store, timings=False)
    return wanted, store, store.put(dataclasses.replace(first, code="other"))


def test_another_programs_answer_holds_while_its_witness_comes_out(answered):
    wanted, store, first = answered
    assert provenance.known(first, store) is None and first in provenance.unjudged(store), (
        "nobody has found out"
    )
    assert run(wanted, store=store, timings=False).id == first.id
    assert provenance.known(first, store) is True and first not in provenance.unjudged(store)


def test_another_programs_answer_with_other_numbers_is_measured_anew(answered):
    wanted, store, first = answered
    numbers = {
        name: [value + 5 * tolerance, tolerance]
        for name, (value, tolerance) in first.witness["numbers"].items()
    }
    store.put(dataclasses.replace(first, witness=first.witness | {"numbers": numbers}))
    assert run(wanted, store=store, timings=False).id != first.id
    assert provenance.known(store.get_id(first.id), store) is False


def test_an_answer_without_a_witness_is_not_given_by_other_code(answered):
    wanted, store, first = answered
    store.put(dataclasses.replace(first, witness={}))
    assert provenance.known(store.get_id(first.id), store) is False
    assert run(wanted, store=store, timings=False).id != first.id


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_has_its_small_model(family):
    """With the family's own traits: its witness differs from a Llama's."""
    wanted = RunSpec(tiny.folder(family), (("gptq", {"bits": 4, "group_size": 16}),))
    small = witness.small_config(tiny.bundle(family).module.config.to_dict(), wanted)
    found = witness.witness(partial(witness.of_run, wanted), small, ())
    assert len(found["numbers"]) > 20 and not witness.differences(partial(witness.of_run, wanted), found)
    assert small["model_type"] == family.removesuffix("-post-norm")


@pytest.mark.parametrize("name", compression.NAMES)
def test_the_small_model_asks_for_parameters_that_the_method_takes(name):
    """Else every run of the method would be without a witness."""
    params = compression.get(name).params
    most = {k: v for k, v in (witness.MOST | witness.SET).items() if k in params().json()}
    assert {k: v for k, v in params.parse(most).json().items() if k in most} == most


def test_another_parameter_is_another_witness():
    small = witness.small_config(tiny.bundle("llama").module.config.to_dict(), RunSpec("m", (("gptq", {}),)))
    found = witness.witness(partial(witness.of_run, RunSpec("m", (("gptq", {"damping": 0.01}),))), small)
    assert witness.differences(partial(witness.of_run, RunSpec("m", (("gptq", {"damping": 0.0101}),))), found)


def test_a_number_on_the_edge_is_met_by_a_nudged_run():
    """Two numbers that two nudges show on the stored side; one that none shows is stale."""
    small = witness.small_config(tiny.bundle("llama").module.config.to_dict(), RunSpec("m", (("rtn", {}),)))
    asked = []

    def numbers(config, nudge):
        asked.append(nudge)
        return {"a": 1.0 if nudge == 2 else 2.0, "b": 1.0 if nudge == 3 else 2.0, "c": 1.0}

    stored = {"config": small, "numbers": {name: [1.0, 0.1] for name in "abc"}}
    assert witness.differences(numbers, stored) == [] and asked == [0, 1, 2, 3], "and no run after that"
    stored["numbers"]["b"] = [1.5, 0.1]
    assert [line[0] for line in witness.differences(numbers, stored)] == ["b"]
    assert asked[4:] == [0, *witness.MORE_NUDGES]


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_a_number_that_no_record_holds_makes_no_witness(odd):
    """The run itself went well: it is kept, without a witness."""
    assert witness.witness(lambda small, nudge: {"loss": 1.0, "error": odd}, {}) == {}
    assert (
        witness.witness(lambda small, nudge: {"loss": 1.0} if nudge else {"loss": 1.0, "more": 2.0}, {}) == {}
    )


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": 1 << 20}, {"num_hidden_layers": 10**6}, {"vocab_size": None}, {"hidden_size": "128"}],
)
def test_a_changed_record_makes_no_large_model(change):
    """A config from a file is bounded before it is used; what it leaves out isn't guessed."""
    asked = RunSpec("m", (("rtn", {}),))
    small = witness.small_config(tiny.bundle("llama").module.config.to_dict(), asked)
    made = []
    for config in (small | change, {k: v for k, v in small.items() if k not in change}):
        assert (
            witness.differences(lambda c, n: made.append(c) or {}, {"config": config, "numbers": {}})
            and not made
        )
    assert witness.differences(partial(witness.of_run, asked), {"config": small})


def test_what_goes_wrong_while_judging_is_no_agreement():
    assert witness.differences(partial(witness.of_run, RunSpec("m", (("rtn", {}),))), {}) == [
        "it carries no witness"
    ]
    assert witness.differences(
        partial(witness.of_run, RunSpec("m", (("rtn", {}),))),
        {"config": {"model_type": "gone"}, "numbers": {}},
    )
    assert (
        witness.witness(partial(witness.of_run, RunSpec("m", (("rtn", {}),))), {"model_type": "gone"}) == {}
    )


def test_a_cache_by_channel_is_witnessed_where_it_holds_codes():
    few = RunSpec("m", (("none", {}),), cache_bits=2, cache_keys="channel")
    assert (
        witness._small(few).window > kv_cache.RECENT
        and witness._small(few).tokens % witness._small(few).window == 0
    )
    assert (
        witness._small(dataclasses.replace(few, cache_bits=4, cache_keys="token")).window == witness.WINDOW
    ), "as ever"
