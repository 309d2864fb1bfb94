"""Runs compared by what their methods optimise: figures and errors by hand, three verdicts, and who may stand
beside whom; on the card, in the tables, and on the axes."""

from __future__ import annotations

import dataclasses
import html
import math
import statistics

import pytest

from compression.judged import Judged
from evaluation import records
from evaluation.benches import overview, shipped
from evaluation.commands.run import _summary
from evaluation.measuring import judging, metrics
from evaluation.page import plots
from evaluation.page.cards import run_card
from evaluation.page.words import LANGUAGES, Words
from evaluation.spec import Result, RunSpec
from evaluation.store import Store

SEEN = {"shipped": False, "artifact": False, "here": False, "chat": False}
CURVE = {"training": [[0, 3.0, 3.0], [1, 2.5, 2.6]]}
KL = "own_reverse_kl"


def run(words: str, *judged: Judged, seed: int = 0, perplexity: float = 50.0) -> Result:
    """A made-up result of a recipe."""
    steps, fields = shipped.asked(words)
    found = {
        "weight_bits_per_weight": 16.0,
        "model_bits_per_parameter": 11.0,
        "file_bytes": 100_000_000,
        "perplexity": perplexity,
        "perplexity_stderr": 1.0,
        "perplexity_ratio": perplexity / 30,
        "kl_divergence_mean": 0.1,
        "same_top_token_rate": 0.7,
    } | judging.figures(judged)
    losses = [math.log(perplexity) + 0.01 * i for i in (-1, 0, 1)]
    spec = RunSpec(shipped.OFFLINE_MODEL, steps, seed=seed, **fields)
    told = [one.json() for one in judged]
    return Result("", spec, "ok", found, series={"window_losses": losses} | CURVE, judged=told)


def samples(after, before=None, asked="q", **more) -> Judged:
    return Judged(KL, asked, tuple(before or [2.0] * len(after)), tuple(after), **more)


def answers(after, control=(), chance=0.5, measure="answers_right", asked="q") -> Judged:
    return Judged(measure, asked, (0.0,) * len(after), tuple(after), tuple(control), chance=chance)


# --- figures and verdicts ---


def test_a_figure_is_the_mean_with_the_error_over_clusters():
    """Two samples of each of three prompts: the error of three means, not of six values."""
    values = [1.0, 1.2, 2.0, 2.4, 3.0, 3.3]
    found = judging.figures([samples(values, clusters=(0, 0, 1, 1, 2, 2))])
    means = [1.1, 2.2, 3.15]
    assert found[KL] == pytest.approx(statistics.fmean(means))
    assert found[f"{KL}_stderr"] == pytest.approx(statistics.stdev(means) / math.sqrt(3))
    alone = judging.figures([samples(values)])[f"{KL}_stderr"]
    assert alone == pytest.approx(statistics.stdev(values) / math.sqrt(6)) and alone < found[f"{KL}_stderr"]
    assert judging.figures([samples(values, clusters=(0,) * 6)]).keys() == {KL}, "one prompt has no error"


@pytest.mark.parametrize("higher", [False, True])
@pytest.mark.parametrize("moved, word", [(0.5, "better"), (-0.5, "worse"), (0.0, "unclear")])
def test_the_three_verdicts_in_both_directions(higher, moved, word):
    """A student that is better by half, on questions of very different difficulty: pairs see it."""
    hard = [0.0, 3.0, 9.0, 1.0, 6.0, 4.0, 2.0, 8.0]
    noise = [0.02, -0.01, 0.03, -0.04, 0.01, 0.02, -0.03, 0.0]
    control = [h + 10 for h in hard]
    ours = [c + n + (moved if higher else -moved) for c, n in zip(control, noise, strict=True)]
    measure = "instructions_overlap" if higher else KL
    one = Judged(measure, "q", tuple(control), tuple(ours), tuple(control))
    result = run("gkd", one)
    found = judging.within(measure, [result])
    assert found.word == word and abs(found.mean + moved) < 0.02
    apart = judging.beside(measure, [result], [run("gkd --objective supervised", samples_of(one, control))])
    assert apart == found, "a control of its own says what one in the run says"


def samples_of(one: Judged, values) -> Judged:
    return dataclasses.replace(one, after=tuple(values), control=())


def test_only_what_was_asked_the_same_is_compared():
    ours = run("gkd", samples([1.0, 1.1, 0.9]))
    same = run("gkd --objective supervised", samples([1.5, 1.6, 1.4]))
    assert judging.beside(KL, [ours], [same]).word == "better"
    other = run("gkd --objective supervised", samples([1.5, 1.6, 1.4], asked="other prompts"))
    plain = run("lora")
    for control in ([other], [plain], [], [same, same]):
        assert judging.beside(KL, [ours], control) is None
    assert judging.beside(KL, [plain], [same]) is None and judging.within(KL, [ours]) is None
    assert judging.of(plain) == {} and judging.figures([]) == {}


def test_a_control_without_explanations_is_asked_for_its_answers():
    explains = run("mt_cot", answers([1.0] * 36 + [0.0] * 4, measure="explained_right"))
    plain = run("mt_cot --teaching answers", answers([0.0, 1.0] * 20))
    found = judging.beside("explained_right", [explains], [plain])
    assert found.word == "better" and found.mean == pytest.approx(-0.4)
    assert judging.beside("answers_right", [explains], [plain]) is None


def test_several_seeds_are_paired_seed_by_seed():
    ours = [run("gkd", samples([1.0 + s, 1.2 + s], asked=f"{s}"), seed=s) for s in range(3)]
    control = [run("gkd", samples([1.5 + s, 1.9 + s], asked=f"{s}"), seed=s) for s in range(3)]
    found = judging.beside(KL, ours, control)
    assert found.freedom == 2 and found.mean == pytest.approx(-0.6) and found.word == "better"
    assert judging.beside(KL, ours, control[::-1]) is None, "other seeds have other questions"
    inside = [run("gkd", samples([1.0 + s, 1.2 + s], control=(1.5 + s, 1.9 + s))) for s in range(3)]
    assert judging.within(KL, inside).mean == pytest.approx(-0.6)
    assert judging.within(KL, [*inside, run("gkd", samples([1.0, 1.2]))]) is None


def test_chance_is_a_level_that_guessing_may_not_be_told_from():
    guesses, knows = answers([0.0, 1.0] * 100), answers([1.0, 1.0, 1.0, 0.0] * 50)
    assert judging.against(guesses, 0.53).word == "unclear" and judging.against(knows, 0.53).word == "better"
    assert judging.against(answers([0.0, 0.0, 0.0, 1.0] * 50), 0.53).word == "worse"


# --- in words, on the card, in the tables, on the axes ---


@pytest.mark.parametrize(
    "measure, ours, control, said",
    [
        (KL, (0.9, 1.0, 1.1), (1.2, 1.31, 1.39), "better: −0.30 ± 0.025 nats"),
        (KL, (1.2, 1.31, 1.39), (0.9, 1.0, 1.1), "not better: +0.30 ± 0.025 nats"),
        ("answers_right", (1.0, 1.0, 0.0, 1.0), (0.0, 1.0, 0.0, 1.0), "can't tell: +25 ± 80 points"),
        ("demonstration_gain_alike", (0.0, 0.0), (1.0, 1.0), "not better: −100 ± 0 points"),
    ],
)
def test_a_change_is_told_in_the_unit_of_its_measure(measure, ours, control, said):
    found = judging.within(measure, [run("gkd", Judged(measure, "q", ours, ours, control))])
    assert Words("en").verdict(found, measure) == said
    assert Words("zh-Hant").verdict(found, measure) != said


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_card_tells_the_measure_its_verdict_and_its_chance_beside_perplexity(language):
    words = Words(language)
    found = run("mt_cot --teaching oracle", answers([1.0, 1.0, 1.0, 0.0] * 50, [0.0, 1.0] * 100))
    card = html.unescape(run_card(words, found, **SEEN))
    for told in (words("metric.answers_right"), "75 % ± 3.1 %", words("unit.questions", n="200"), "50 %"):
        assert told in card, told
    (one,) = judging.of(found).values()
    for told, difference in (
        ("card.judged.control", judging.within("answers_right", [found])),
        ("card.judged.chance", judging.against(one, 0.5)),
    ):
        assert difference.word == "better"
        verdict = words.verdict(difference, "answers_right")
        assert words(told, verdict=verdict, chance="50 %") in card
    assert words("card.ratio", ratio="1.67×") in card, "perplexity stands beside it"
    assert words("metric.answers_right.help") in card, "among all figures, with its words"


def test_the_card_of_a_white_box_student_takes_the_control_that_was_asked_the_same():
    student = run("gkd", samples([0.9, 1.0, 1.1] * 20))
    control = run("gkd --objective supervised", samples([1.2, 1.31, 1.39] * 20), perplexity=40.0)
    card = html.unescape(run_card(Words("en"), student, relatives={"control": control}, **SEEN))
    assert "1.00 ± 0.011 at the end, 2.00 before the method's own training (60 samples)" in card
    assert "Beside its control, pair by pair: better: −0.30 ± " in card
    assert "Beside the control, window by window: not better: +25 ± " in card, (
        "by perplexity it is the other way"
    )
    other = run("gkd --objective supervised", samples([1.2, 1.31, 1.39] * 20, asked="else"), perplexity=40.0)
    for relatives in ({"control": other}, {"control": None}, {"control": run("gkd --objective supervised")}):
        assert "pair by pair" not in run_card(Words("en"), student, relatives=relatives, **SEEN)


def test_a_block_with_a_measure_tells_it_before_perplexity():
    rows = {"gkd --objective supervised": "", "gkd": "gkd --objective supervised", "minillm": "gkd"}
    measured = {
        "gkd --objective supervised": [run("gkd --objective supervised", samples([1.2, 1.31, 1.39]))],
        "gkd": [run("gkd", samples([0.9, 1.0, 1.1]), perplexity=60.0)],
        "minillm": [run("minillm")],
    }
    head, _, first, second, third = overview.recipes_table(rows, measured, KL).splitlines()
    columns = [cell.strip() for cell in head.split("|")]
    name = Words("en")(f"metric.{KL}")
    at = columns.index(name)
    assert columns[at + 1] == overview.JUDGED.format(name) and columns[at + 2] == "perplexity"
    cells = [[cell.strip() for cell in line.split("|")] for line in (first, second, third)]
    assert [row[at] for row in cells] == ["1.30 ± 0.055", "1.00 ± 0.058", "not measured"]
    assert cells[0][at + 1] == "" == cells[2][at + 1] and cells[1][at + 1] == "better: −0.30 ± 0.025 nats"
    assert "not better: +20 ± " in second, "perplexity keeps its own verdict"
    assert name not in overview.recipes_table(rows, measured), "a block without a measure is as it was"


def test_a_row_without_a_control_stands_beside_the_one_that_was_trained_with_it():
    row = run("mt_cot", answers([1.0] * 30 + [0.0] * 10, [0.0] * 30 + [1.0] * 10))
    table = overview.recipes_table({"mt_cot": ""}, {"mt_cot": [row]}, "answers_right")
    assert "better: +50 ± 28 points (than the control trained with it)" in table


def test_a_run_that_was_never_judged_has_no_place_on_the_axis_and_the_original_has_its_own():
    assert KL in metrics.AXES
    judged, plain = (dict(r.metrics) for r in (run("gkd", samples([1.0, 2.0])), run("gkd")))
    assert metrics.value(judged, KL) == 1.5 and metrics.error(judged, KL) == pytest.approx(0.5)
    assert metrics.value(plain, KL) is None, "missing, and told as missing (front.missing)"
    assert metrics.value({"family": "original"}, KL) == 0.0, "the teacher is no nat from itself"
    rows = [
        judged | {"id": "a", "family": "distillation", "recipe": run("gkd").spec.recipe},
        plain | {"id": "b", "family": "distillation", "recipe": run("gkd").spec.recipe},
    ]
    (mark,) = plots.marks(rows, "file_bytes", KL, Words("en"))
    assert (mark.id, mark.y, mark.error) == ("a", 1.5, pytest.approx(0.5))
    assert metrics.better(KL, 0.5, 1.0) and metrics.better("answers_right", 0.6, 0.5)


def test_the_command_tells_it_too():
    found = run("mt_cot --teaching oracle", answers([1.0, 1.0, 1.0, 0.0] * 50, [0.0, 1.0] * 100))
    assert (
        "What the method optimises, right answers: 75 % ± 3.1 % at the end, 0 % before the method's own training "
        "(200 questions). "
        "Beside its control, pair by pair: better: +25 ± "
    ) in _summary(found)


# --- it is kept ---


def test_it_survives_the_store_and_a_published_result(tmp_path, monkeypatch):
    one = answers([1.0, 0.0, 1.0], [0.0, 0.0, 1.0], chance=0.53)
    store = Store(tmp_path / "home", shipped=None)
    kept = store.put(run("mt_cot --teaching oracle", one))
    (again,) = Store(tmp_path / "home", shipped=None).own()
    assert again == kept and judging.of(again) == {"answers_right": one}
    assert store.rows()[0]["answers_right"] == pytest.approx(2 / 3)
    monkeypatch.setattr(shipped, "RESULTS", tmp_path)
    file = shipped.publish(kept, "gates")
    assert judging.of(shipped.stored(file)) == {"answers_right": one}
    found, _ = records.parse(file.read_bytes())
    assert judging.of(found) == {"answers_right": one}


def test_results_from_before_have_none_and_keep_their_figures():
    """Every shipped result was written by a version that knew nothing of it, or by one that does."""
    for file in sorted(shipped.RESULTS.glob("gates-*.json"))[:40]:
        result, _ = records.parse(file.read_bytes())
        assert set(judging.of(result)) == {one["measure"] for one in result.judged}
        found = judging.figures(judging.of(result).values())  # a record's samples are rounded
        assert found == pytest.approx({name: result.metrics[name] for name in found}, rel=1e-5)
        assert run_card(Words("en"), result, **SEEN)
