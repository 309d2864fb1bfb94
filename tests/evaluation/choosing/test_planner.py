"""What fits: bytes as the models' publishers have them, what is known in its right place, and no number that
nobody measured."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from compression.catalogue import CATALOGUE, OFFLINE_MODEL
from evaluation.choosing import planner
from evaluation.choosing.planner import Need, largest, plan
from evaluation.commands import plan as command
from evaluation.page import cards, requests
from evaluation.page.words import LANGUAGES, Words
from evaluation.running.estimate import PROCESS_BYTES
from evaluation.spec import Result
from evaluation.store import Store

LLAMA8 = CATALOGUE["llama-3.1-8b"].geometry
ROOMY = Need(memory_bytes=1e12, context=1)


def way(options, *recipe) -> planner.Option:
    """The option of a recipe, which may leave defaults out."""
    return next(o for o in options if planner._key(o.recipe) == planner._key(recipe))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[Result]:
    return Store(tmp_path_factory.mktemp("home")).shipped()


def test_the_originals_bytes_are_those_that_publishers_state():
    """total_size of model.safetensors.index.json on the hub, and 128 KiB of keys and values a token."""
    original = way(plan(LLAMA8, Need(1e12, context=8192)), ("none", {}))
    assert original.file_bytes == 16_060_522_496
    assert original.cache_bytes == 8192 * 131_072
    assert original.need_bytes == original.file_bytes + original.cache_bytes + PROCESS_BYTES
    assert original.known.kind == "original" and original.known.ratio == 1


def test_grouped_integers_take_the_bits_that_they_say():
    """4 bits, and a 16-bit scale and a 4-bit zero point for each 128 weights."""
    found = way(plan(LLAMA8, ROOMY), ("awq", {"bits": 4}))
    assert found.weight_bits == pytest.approx(4 + 20 / 128, abs=1e-3)
    weights = 16_060_522_496 // 2 - 2 * LLAMA8.table_parameters - LLAMA8.hidden * (2 * len(LLAMA8.layers) + 1)
    assert found.file_bytes == pytest.approx(
        16_060_522_496 - 2 * weights + weights * (4 + 20 / 128) / 8, rel=1e-4
    )


def test_a_byte_less_and_it_doesnt_fit():
    need = way(plan(LLAMA8, ROOMY), ("gptq", {"bits": 4})).need_bytes
    for memory, fits in ((need, True), (need - 1, False)):
        assert way(plan(LLAMA8, Need(memory, 1)), ("gptq", {"bits": 4})).fits is fits


def test_fewer_bits_of_the_cache_make_room_for_more_context():
    half, whole = (way(plan(LLAMA8, Need(1e12, 100_000, bits)), ("none", {})).cache_bytes for bits in (8, 16))
    assert 0.5 * whole < half < 0.53 * whole  # 8 bits, and a scale a head


def test_the_speed_is_the_memorys():
    """1 TB/s over 16.06 GB less the one token table of which a token reads a row."""
    need = Need(1e12, context=1, bandwidth=1e12)
    untied = way(plan(LLAMA8, need), ("none", {}))
    assert untied.tokens_per_second == pytest.approx(
        1e12 / (16_060_522_496 - 2 * LLAMA8.table_parameters), rel=1e-3
    )
    tied = CATALOGUE["llama-3.2-1b-instruct"].geometry
    assert way(plan(tied, need), ("none", {})).tokens_per_second == pytest.approx(
        1e12 / (2 * 1_235_814_400), rel=1e-3
    )
    assert way(plan(LLAMA8, ROOMY), ("none", {})).tokens_per_second is None


def test_what_fits_comes_first_and_what_is_known_before_what_isnt(results):
    options = plan(CATALOGUE[OFFLINE_MODEL].geometry, Need(0.62e9, 1), OFFLINE_MODEL, results)
    assert [o.fits for o in options] == sorted((o.fits for o in options), reverse=True)
    fitting = [o for o in options if o.fits]
    ranks = [planner._ORDER[o.known.kind] if o.known else 3 for o in fitting]
    assert ranks == sorted(ranks) and 1 in ranks
    ratios = [o.known.ratio for o in fitting if o.known and o.known.kind == "measured"]
    assert len(ratios) > 5 and ratios == sorted(ratios)


def test_a_measured_figure_is_the_stored_one_of_the_same_recipe(results):
    stored = next(
        r
        for r in results
        if r.spec.model == OFFLINE_MODEL
        and r.spec.recipe == way_of("gptq", bits=4)
        and r.spec.table_bits == 16
    )
    found = way(plan(CATALOGUE[OFFLINE_MODEL].geometry, ROOMY, OFFLINE_MODEL, results), ("gptq", {"bits": 4}))
    assert found.known.kind == "measured" and found.known.run == stored.id
    assert found.known.ratio == stored.metrics["perplexity_ratio"]
    assert found.file_bytes == pytest.approx(stored.metrics["file_bytes"], rel=0.02)


def way_of(name, **values):
    return planner._spec([(name, values)]).recipe


def test_other_conditions_dont_count_as_measured(results):
    """Another model, tables in other bits, int8 activations, a failed run: nothing of it is this recipe's."""
    stored = next(r for r in results if r.spec.recipe == way_of("gptq", bits=4) and r.spec.table_bits == 16)
    for changed in (
        dataclasses.replace(stored, spec=dataclasses.replace(stored.spec, table_bits=8)),
        dataclasses.replace(stored, spec=dataclasses.replace(stored.spec, activations="int8")),
        dataclasses.replace(stored, spec=dataclasses.replace(stored.spec, cache_bits=8)),
        dataclasses.replace(stored, status="failed"),
        dataclasses.replace(stored, spec=dataclasses.replace(stored.spec, model="gpt2")),
    ):
        assert planner.measured(OFFLINE_MODEL, [changed]) == {}
    assert planner.measured(OFFLINE_MODEL, [stored]) != {}


def test_published_figures_carry_their_source_and_hold_for_their_model_alone():
    options = plan(CATALOGUE["llama-2-7b-hf"].geometry, ROOMY, "llama-2-7b-hf")
    found = way(options, ("awq", {"bits": 4}))
    assert found.known.kind == "published" and found.known.ratio == pytest.approx(5.60 / 5.47)
    assert "AWQ" in found.known.source and found.known.url.startswith("https://arxiv.org/")
    assert way(options, ("nf4", {})).known is None
    assert all(o.known is None for o in plan(LLAMA8, ROOMY, "llama-3.1-8b") if o.recipe[0][0] != "none")


def test_every_published_row_names_a_catalogue_model_and_a_recipe_of_ours():
    for name, entry in CATALOGUE.items():
        for known in planner.published(name).values():
            assert known.url and known.where and 1 <= known.ratio < 5, entry.name


def test_every_machine_names_the_documents_of_its_memory_and_of_its_bandwidth():
    keys = [machine.key for machine in planner.MACHINES]
    assert len(set(keys)) == len(keys) > 5
    for machine in planner.MACHINES:
        for source in (machine.memory_source, machine.bandwidth_source):
            assert len(source.title.split()) > 2 and source.url.startswith("https://"), machine.key
        maker = machine.title.split()[0].replace("Jetson", "NVIDIA").replace("GeForce", "NVIDIA")
        assert all(s.title.startswith(maker) for s in (machine.memory_source, machine.bandwidth_source))


def test_every_published_figure_names_its_document_and_the_table_in_it():
    rows = json.loads(planner.PUBLISHED.read_text("utf-8"))
    assert rows
    for row in rows:
        assert re.search(r"\d{4} \(.+\), (table \d+|.*README)$", row["source"]), row["source"]
        assert row["url"].startswith("https://") and row["text"] and row["window"] > 0


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_quality_figure_stands_on_the_page_without_its_source(language, results):
    """A published one links its document, a measured one leads to its run."""
    words = Words(language)
    for model, kind in (("llama-2-7b-hf", "published"), (OFFLINE_MODEL, "measured"), ("gpt2", "")):
        options = plan(CATALOGUE[model].geometry, ROOMY, model, results)
        rows = [cards._way(words, ROOMY, option) for option in options]
        told = [(o, row) for o, row in zip(options, rows, strict=True) if (o.known or o.elsewhere)]
        found = {o.known.kind for o, _ in told if o.known} - {"original"}
        assert found == ({kind} if kind else set())
        for option, row in told:
            if option.known is None or option.known.kind != "original":
                assert row["source"] and (row["url"] or row["run"]), row["name"]


def test_the_largest_models_that_fit():
    found = largest(Need(8e9, 8192))
    assert found and all(option.fits for _, option in found)
    counts = [CATALOGUE[name].parameters for name, _ in found]
    assert counts == sorted(counts, reverse=True)
    larger = [e.name for e in CATALOGUE.values() if e.parameters > counts[0]]
    for name in larger:
        assert not way(plan(CATALOGUE[name].geometry, Need(8e9, 8192)), ("gptq", {"bits": 4})).fits


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("memory", [1e9, 8e9, 1e12])
def test_the_answer_is_a_sentence_and_a_table(language, memory, results):
    need = Need(memory, 200_000)
    html = cards.plan(
        Words(language),
        "llama-3.1-8b",
        LLAMA8,
        need,
        plan(LLAMA8, need, "llama-3.1-8b", results),
        largest(need),
    )
    assert "131,072" in html, "more context than the model reads is told"
    assert html.count("<tr") == 1 + len(planner.CANDIDATES) and "{" not in html


def test_the_command_says_it_in_a_terminal(capsys):
    assert command.main(["llama-2-7b-hf", "--machine", "m2"]) == 0
    said = capsys.readouterr().out
    assert "AWQ, 4 bits, group 128" in said and "1.02x  published" in said
    assert command.main(["qwen2.5-72b", "--memory", "4"]) == 1
    for wrong in (["nosuch", "--memory", "8"], ["gpt2"], ["gpt2", "--memory", "-1"]):
        with pytest.raises(SystemExit) as ended:
            command.main(wrong)
        assert ended.value.code == 2
    assert "unknown model 'nosuch'" in capsys.readouterr().err


def test_heads_that_share_unevenly_are_refused():
    sizes = {"architecture": "llama", "layers": 2, "hidden": 64, "heads": 9, "kv_heads": 4, "head_size": 8}
    sizes |= {"feed_forward": 128, "vocabulary": 100}
    with pytest.raises(requests.BadRequest, match="heads = 9"):
        requests.take("plan", {"sizes": sizes, "memory_bytes": 1e9})
    assert requests.take("plan", {"sizes": sizes | {"kv_heads": 3}, "memory_bytes": 1e9}).sizes.heads == 9
