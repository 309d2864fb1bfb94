"""Questions that give or take a file: a run's record, a compressed model as an archive.

Two more questions change a run: one gives it a title and a note, one deletes it.
"""

from __future__ import annotations

import re
import threading
import zipfile
from pathlib import Path

from compression import importing
from compression.base import CompressionError
from compression.disk import check_room
from evaluation import records
from evaluation.page import cards, managed, requests
from evaluation.page.questions.base import Panel
from evaluation.page.words import Words
from evaluation.spec import Result
from kernels.home import scratch, whole_file

KEPT_DOWNLOADS = 3


class Files(Panel):
    """Files that leave the page, files that come to it, and changes of a run."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self._packing = threading.Lock()

    def record(self, ask: requests.OfRun) -> dict:
        """A run's record as a file, which another installation can add."""
        result = self.store.get_id(ask.id)
        if result is None:
            return {"error": cards.error_card(Words(ask.lang), {"code": "run_gone"}, act="dismiss")}
        return {"name": f"{result.id}.json", "text": records.content(result).decode()}

    def add(self, ask: requests.Add) -> dict:
        """Add a result that was measured elsewhere; its card and its row name the machine."""
        self._of_this_machine()
        try:
            return {"id": self.store.add(ask.text.encode()).id}
        except records.OddRecord as error:
            raise CompressionError(str(error), code="odd_result") from error

    def delete(self, ask: requests.OfOwnRun) -> dict:
        """Delete a finished run of this machine with its compressed model. A shipped result stays."""
        self._of_this_machine()
        managed.own(self.store, ask.id)
        self.store.delete(ask.id)
        return {}

    def name(self, ask: requests.Naming) -> dict:
        """Give an own run a title and a note."""
        self._of_this_machine()
        managed.name(self.store, ask.id, ask.title, ask.note)
        return {}

    def export_all(self, ask: requests.Ask) -> dict:
        """All finished runs of this machine as one file, which another installation can add."""
        self._of_this_machine()
        return managed.export(self.store, self.downloads())

    def _of_this_machine(self) -> None:
        """Raises on a public page, where visitors share one store."""
        if self.public:
            raise CompressionError("visitors of a public page can't change its results", code="not_public")

    def downloads(self) -> Path:
        """The folder that packed models are served from."""
        return self.store.home / "downloads"

    def pack(self, ask: requests.Pack) -> dict:
        """A compressed model's folder as one archive; only the newest few are kept."""
        words, result, form = Words(ask.lang), self.store.get_id(ask.id), ask.form
        if result is None or not self.store.has_artifact(result):
            return {"error": cards.error_card(words, {"code": "artifact_missing"}, ask.id)}
        if form and form not in exports(self.store.artifact_folder(result.artifact)):
            return {"error": cards.error_card(words, {"code": "cannot_export"}, act="dismiss")}
        # a request that waits here would hold a thread that others need
        if not self._packing.acquire(blocking=False):
            return {"error": cards.error_card(words, {"code": "packing"}, act="dismiss")}
        try:
            return self._packed(words, result, form)
        finally:
            self._packing.release()

    def _packed(self, words: Words, result: Result, form: str) -> dict:
        with importing:
            from compression import artifact, export

        artifact_folder, place = self.store.artifact_folder(result.artifact), self.downloads()
        recipe = Words("en").recipe(result.spec.recipe, True, result.spec.cache_bits, result.spec.cache_keys)
        name = f"{Path(result.spec.model).name}-{recipe}{f'-{form}' if form else ''}"
        label = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-")[:150]
        file = place / f"{label}-{result.id[-6:]}.zip"
        if not file.is_file():
            with self.store.using(result.artifact), scratch(place) as other:
                folder = artifact_folder
                if form:
                    folder = other / "model"
                    export.write(artifact.load(artifact_folder), folder, form, label)
                _zip(folder, file)
        for old in sorted(place.glob("*.zip"), key=lambda f: f.stat().st_mtime, reverse=True)[
            KEPT_DOWNLOADS:
        ]:
            old.unlink(missing_ok=True)
        return {"file": str(file), "name": file.name}


def exports(folder: Path) -> list[str]:
    """Formats of other programs that the compressed model in a folder can be exported to.

    None if the folder isn't as it was saved; whoever opens the model is told how it differs.
    """
    with importing:
        from compression import export  # it imports torch; the page's first paint must not wait for that

    try:
        return export.offers(folder)
    except CompressionError:
        return []


def _zip(folder: Path, file: Path) -> None:
    """Put all of `folder` into one archive, which appears whole or not at all."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
    check_room(file, sum(f.stat().st_size for f in files))
    with (
        whole_file(file) as temporary,
        # packed bits can't be compressed any further
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive,
    ):
        for f in files:
            archive.write(f, Path(file.stem) / f.relative_to(folder))
