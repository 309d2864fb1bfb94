"""The question that the figure asks: the points of one model in one set of runs, and their sentences."""

from __future__ import annotations

from compression.base import CompressionError
from evaluation.measuring import metrics
from evaluation.page import front, requests
from evaluation.page.questions.base import Panel
from evaluation.page.questions.files import exports


class Figure(Panel):
    """What is drawn of the stored runs."""

    def front(self, ask: requests.Front) -> dict:
        """The figure of one model in one set of runs, and its sentences."""
        return self._keep(
            ("front", ask.model_dump_json()), lambda: front.answer(ask, self.rows(), self._written)
        )

    def zoomed(self, ask: requests.Front) -> dict:
        """The same figure as a web page of its own, about 5 MB. Raises CompressionError without a run."""
        rows = self.rows()
        if not any(r["model"] == ask.model and r["status"] == "ok" for r in rows):
            raise CompressionError("no run of this model is stored", code="nothing_drawn")
        return {"text": front.alone(ask, rows, self._written)}

    def _written(self, row: metrics.Row) -> list[str]:
        """Formats of other programs that a run of one's own can be written in: none without its model."""
        result = self.store.get_id(str(row["id"])) if row.get("artifact") else None
        return exports(self.store.artifact_folder(result.artifact)) if result else []
