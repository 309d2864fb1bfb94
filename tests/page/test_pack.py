"""A download of the page, from the button's request to the archive."""

from __future__ import annotations

import shutil
import types
import zipfile
from pathlib import Path

from compression import artifact, export
from evaluation.page.questions import Page
from evaluation.store import Store
from tests.compression.test_export import compressed
from tests.page.stage import store_run


def test_the_page_packs_every_format_that_its_card_offers(tmp_path):
    """From the button's request to a file that the independent loader's program would open."""
    place = types.SimpleNamespace(store=Store(tmp_path))
    result = store_run(place, id="mine", key="mine", artifact="mine-packed")
    there = place.store.artifact_folder(result.artifact)
    shutil.rmtree(there)
    bundle = compressed("llama", (("rtn", {"bits": 4, "group_size": 32}),))
    artifact.save(bundle, there, {"recipe": [["rtn", {"bits": 4}]], "label": "a test"})
    page = Page(place.store, None)
    card = page.answer("card", {"id": "mine"})["html"]
    offered = export.offers(there)
    assert offered and all(f'data-form="{form}"' in card for form in offered)
    for form in offered:
        answer = page.answer("pack", {"id": "mine", "form": form})
        with zipfile.ZipFile(answer["file"]) as packed:
            names = {Path(name).name for name in packed.namelist()}
        assert form in answer["name"] and {"config.json", "tokenizer.json"} <= names
    refused = page.answer("pack", {"id": "mine", "form": "nosuch"})
    assert "error" in refused and "Something went wrong" not in refused["error"]
