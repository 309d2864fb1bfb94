"""Questions about stored runs: the card of one, the table of all, and what a method does."""

from __future__ import annotations

from evaluation import host
from evaluation.declared import methods
from evaluation.measuring import metrics
from evaluation.page import cards, managed, pareto, requests
from evaluation.page.questions.base import Panel
from evaluation.page.questions.files import exports
from evaluation.page.words import Words, essay
from evaluation.spec import Result, RunSpec


class Runs(Panel):
    """What is known of the stored runs, in words."""

    def card(self, ask: requests.OfRun) -> dict:
        """The card of a run; `soon`: its methods are loading, and then the card can say how long it takes."""
        words, result = Words(ask.lang), self.store.get_id(ask.id)
        if result is None:
            return {"html": cards.error_card(words, {"code": "run_gone"}), "spec": None, "status": "unknown"}
        seconds = self._seconds(result.spec)  # estimated anew, since this machine may have become slower
        soon = self._estimate is not None and seconds is None and self._loading(result.spec)
        card = self._keep(("card", ask.lang, ask.id, seconds), lambda: self._card(words, result, seconds))
        return card | {"soon": soon}

    def _card(self, words: Words, result: Result, seconds: float | None) -> dict:
        own = self.store.has_artifact(result)
        manifest = self.store.manifest(result) if own else None
        rows = self.rows()
        row = next((r for r in rows if r["id"] == result.id), {})
        group = pareto.comparable(rows, result.spec.model, pareto.comparison(row)) if row else []
        lead = pareto.front(group, metrics.DEFAULT_X, metrics.DEFAULT_Y)
        here = (row.get("host"), row.get("threads")) == (host.processor(), host.threads())
        html = cards.run_card(
            words,
            result,
            shipped=bool(row.get("shipped")),
            artifact=own,
            here=here,
            chat=self.chat is not None,
            managed=not self.public and not row.get("shipped"),
            label=self.store.labels().get(result.id),
            disk_bytes=self.store.disk_bytes(result),
            dominated=result.status == "ok" and result.id not in lead,
            seconds=seconds,
            exports=exports(self.store.artifact_folder(result.artifact)) if own else (),
            unchecked=manifest is not None and "sha256" not in manifest,
            relatives=self._relatives(result.spec),
        )
        title = words.recipe(result.spec.recipe, True, result.spec.cache_bits, result.spec.cache_keys)
        if "file_bytes" in result.metrics:
            title += f" · {words.size(result.metrics['file_bytes'])}"
        return {
            "html": html,
            "spec": result.spec.json(),
            "status": result.status,
            "title": title,
            "artifact": own,
            "control": control.json() if (control := result.spec.control()) else None,
        }

    def _relatives(self, spec: RunSpec) -> dict[str, Result | None]:
        """For a run with training, the stored runs that it is compared with.

        "without": the run without training. "control": the same training alone.
        """
        asked = {"without": spec.without_training(), "control": spec.control()}
        return {name: self.store.get_id(self._stored(s)) for name, s in asked.items() if s is not None}

    def runs(self, ask: requests.Ask) -> dict:
        """The table of all runs."""
        return self._keep(("runs", ask.lang), lambda: self._runs(Words(ask.lang), self.rows()))

    def _runs(self, words: Words, rows: list[dict]) -> dict:
        return {
            "disk": "" if self.public else managed.disk(self.store, words),
            "own": not self.public and any(not r["shipped"] and r["status"] == "ok" for r in rows),
            "html": cards.runs_table(rows, words, host.processor(), host.threads()),
            "count": words.many("runs.count", len(rows)),
            "models": sorted({str(r["model"]) for r in rows}),
        }

    def essay(self, ask: requests.Essay) -> dict:
        """What a method does, in a page of text."""
        if ask.method not in methods():
            raise requests.BadRequest(
                f"no method {ask.method!r}; allowed: {', '.join(methods())}", where="method"
            )
        return {"text": essay(ask.method, ask.lang)}
