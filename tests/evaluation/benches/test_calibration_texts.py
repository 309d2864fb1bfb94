"""The README's table of two calibration texts, from made-up records."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics

import pytest

from evaluation.benches import overview, shipped
from evaluation.spec import Result

PLAIN, STRANGE = [1.0, 2.0, 3.0, 3.5], [1.1, 2.1, 3.2, 3.5]  # losses of four windows


def put(folder, group, words, losses, **changes):
    """A record as `shipped` writes it, of one recipe in a group."""
    spec = next(
        s
        for s in shipped.specs(group)
        if s.recipe == dataclasses.replace(s, recipe=shipped.recipe(words)).recipe
    )
    metrics = {
        "perplexity": math.exp(statistics.fmean(losses)),
        "perplexity_stderr": 0.5,
        "kl_divergence_mean": 0.25,
        "weight_bits_per_weight": 4.3125,
    }
    fields = {"protocol_id": "p", "fingerprint": {"model": "w", "calibration": group}} | changes
    result = Result(
        key="k",
        spec=spec,
        status="ok",
        metrics=metrics,
        series={"window_losses": losses},
        id=f"{group} {words}",
        **fields,
    )
    (folder / shipped.file_name(spec, group)).write_text(json.dumps(result.json()))
    return result


def test_both_texts_stand_side_by_side_with_a_paired_verdict(tmp_path):
    put(tmp_path, "gates", "gptq --bits 4", PLAIN)
    put(tmp_path, "calibration", "gptq --bits 4", STRANGE)
    put(tmp_path, "calibration", "awq --bits 4", STRANGE)  # its other side isn't measured
    head, rule, row = overview.texts_table(tmp_path).splitlines()
    steps = [b - a for a, b in zip(PLAIN, STRANGE, strict=True)]
    ratio = math.exp(statistics.fmean(steps))
    # 97.5 % of Student's t, three degrees of freedom
    margin = 3.182 * ratio * statistics.stdev(steps) / math.sqrt(len(steps))
    assert head.count("|") == rule.count("|") == row.count("|")
    assert row.split(" | ")[:2] == ["| GPTQ, 4 bits, group 64", "4.31"]
    assert row.endswith(f"| can't tell: +{100 * (ratio - 1):.0f} ± {100 * margin:.0f} % |"), (ratio, margin)
    assert f"| {math.exp(2.375):.4g} ± 0.5 | 0.250 | {math.exp(2.475):.4g} ± 0.5 | 0.250 |" in row


def test_the_usual_text_comes_first_and_the_order_is_that_of_the_runs(tmp_path):
    for words in reversed(shipped.ELSEWHERE):
        put(tmp_path, "gates", words, PLAIN)
        put(tmp_path, "calibration", words, STRANGE)
    rows = overview.texts_table(tmp_path).splitlines()[2:]
    assert len(rows) == len(shipped.ELSEWHERE) and [r.split(",")[0] for r in rows[:3]] == [
        "| GPTQ",
        "| GPTQ",
        "| AWQ",
    ]
    assert len({r.split(" | ")[0] for r in rows}) == len(rows), "no two rows of one name"


def test_nothing_measured_is_said(tmp_path):
    put(tmp_path, "gates", "gptq --bits 4", PLAIN)
    assert (
        overview.texts_table(tmp_path) == overview.NO_TEXTS
        and "evaluation measure calibration" in overview.NO_TEXTS
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol_id": "q"},
        {"fingerprint": {"model": "v", "calibration": "calibration"}},
        {"fingerprint": {"model": "w", "calibration": "gates"}},
    ],
)
def test_runs_that_differ_in_more_than_their_text_are_never_compared(tmp_path, changes):
    put(tmp_path, "gates", "gptq --bits 4", PLAIN)
    put(tmp_path, "calibration", "gptq --bits 4", STRANGE, **changes)
    with pytest.raises(ValueError, match="more than their calibration text"):
        overview.texts_table(tmp_path)


def test_the_group_has_a_text_of_its_own(capsys):
    assert {s.calibration for s in shipped.specs("calibration", "a.txt", "b.txt")} == {"builtin"}
    with pytest.raises(SystemExit):
        shipped.main(["calibration", "--calibration", "b.txt", "--dry"])
    assert "--calibration is for the gates" in capsys.readouterr().err
