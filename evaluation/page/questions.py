"""Answers what the page asks its server, as plain functions from JSON to JSON; app.py connects them.

Nothing here knows the UI's framework. Every answer is built in the language that the request names. An answer
that can fail for a visitor's reason comes back as an error card, never as an exception.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import re
import threading
import traceback
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from compression import importing
from compression.architectures import ARCHITECTURES
from compression.base import CompressionError, ModelUnavailable
from compression.bundle import Geometry, LayerGeometry
from compression.catalogue import CATALOGUE, OFFLINE_MODEL
from compression.disk import check_room
from evaluation import host, recorded, records
from evaluation.choosing import planner
from evaluation.measuring import metrics
from evaluation.page import cards, curve, managed, pareto, plots, points, replay, requests
from evaluation.page.words import LANGUAGES, Words, digits, essay, methods, shown
from evaluation.running import deaths
from evaluation.running.estimate import geometry_for
from evaluation.running.freshness import answers
from evaluation.running.public import named_only
from evaluation.running.scales import Scales
from evaluation.spec import CALIBRATIONS, OFFLINE, PRESETS, TEXTS, WIKITEXT, Result, RunSpec
from evaluation.spec import FIRST as FIRST_SETTINGS
from kernels.home import scratch, whole_file

KEPT_DOWNLOADS = 3
KEPT_ANSWERS = 64
FETCH_SECONDS = 20  # how long a run waits at most for the text that is fetched when the app starts
FIRST = ("gptq", {"bits": 4})  # what the knobs show on a first visit
PLANNED = {"model": "llama-3.1-8b-instruct", "machine": "m2"}  # what the plan shows on a first visit


log = logging.getLogger(__name__)


def _failure(error: Exception) -> dict:
    """An exception as the page's error.

    An error that a visitor or this system causes goes by its code. Any other goes by its message, with a line
    in the log.
    """
    described = deaths.describe(error)
    if described["code"] == "error":
        place = traceback.extract_tb(error.__traceback__)[-1]
        log.error("%s: %.300s (%s, line %s)", type(error).__name__, error, place.filename, place.lineno)
        described["message"] = described["message"][:500]
    return described


class Page:
    """The page's questions to store, runner, chat and estimate."""

    def __init__(
        self,
        store,
        runner,
        chat=None,
        estimate: Callable | None = None,
        path: Callable | None = None,
        public: bool = False,
    ):
        self.store, self.runner, self.chat, self.public = store, runner, chat, public
        self._estimate, self._path = estimate, path
        self.methods = [{k: v for k, v in m.items() if k != "essay"} for m in methods().values()]
        self._scales = Scales()
        self._packing, self._keeping = threading.Lock(), threading.Lock()
        # remembered answers; the one that was asked for last is at the end
        self._kept: OrderedDict[tuple, Any] = OrderedDict()

    def boot(self) -> dict:
        """Everything that stays the same while the page is open.

        Words in both languages, methods, models, and this machine.
        """
        models = [
            {
                k: entry.describe()[k]
                for k in (
                    "name",
                    "title",
                    "series",
                    "hub_id",
                    "parameters",
                    "chat",
                    "gated",
                    "offline",
                    "rounded",
                )
            }
            for entry in CATALOGUE.values()
        ]
        return {
            "words": {language: shown(language) for language in LANGUAGES},
            "methods": self.methods,
            "models": models,
            "offline": OFFLINE_MODEL,
            "presets": PRESETS,
            "texts": list(TEXTS),
            "calibrations": list(CALIBRATIONS),
            "axes": list(metrics.AXES),
            "machines": [dataclasses.asdict(machine) for machine in planner.MACHINES],
            "architectures": list(ARCHITECTURES),
            "plan": PLANNED,
            "view": {"x": metrics.DEFAULT_X, "y": metrics.DEFAULT_Y},
            "first": {
                "model": OFFLINE_MODEL,
                "method": FIRST[0],
                "values": FIRST[1],
                "settings": FIRST_SETTINGS,
            },
            "processor": host.processor(),
            "threads": host.threads(),
            "public": self.public,
            "read_only": self.store.read_only,
        }

    def answer(self, question: str, ask: Any, address: str = "") -> dict:
        """The answer to one of requests.QUESTIONS. Never raises.

        If something goes wrong, "error" in the answer is a card in words.
        """
        words = Words(requests.language(ask))
        try:
            return getattr(self, question)(requests.take(question, ask, address))
        except Exception as error:
            empty = requests.QUESTIONS[question].empty
            return empty | {"error": cards.error_card(words, _failure(error), act="dismiss")}

    # --- reading ---

    def _keep(self, key: tuple, make: Callable):
        """The result of `make`, kept while the store stays as it is.

        `key` holds everything else that the result depends on.
        """
        key = (key, host.threads(), self.store.stamp())
        with self._keeping:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._keeping:
            self._kept[key] = made
            if len(self._kept) > KEPT_ANSWERS:
                self._kept.popitem(last=False)
        return made

    def rows(self) -> list[dict]:
        """All runs, with those that wait or run according to their record.

        Several answers read this list, and none may change it.
        """
        return self._keep(("rows",), self.store.rows)

    def front(self, ask: requests.Front) -> dict:
        """The figure of one model in one protocol, its sentences and its still picture."""
        return self._keep(("front", ask.model_dump_json()), lambda: self._front(ask))

    def _front(self, ask: requests.Front) -> dict:
        words, rows, model = Words(ask.lang), self.rows(), ask.model
        x = ask.x if ask.x in metrics.AXES else metrics.DEFAULT_X
        y = ask.y if ask.y in metrics.AXES else metrics.DEFAULT_Y
        chosen = next((r for r in rows if r["id"] == ask.selected and r["status"] == "ok"), None)
        known = pareto.protocols(rows, model)
        names = [p for p, _ in known]
        protocol = ask.protocol or (chosen["protocol_id"] if chosen and chosen["model"] == model else "")
        if protocol not in names:
            protocol = self._usual(rows, names, model, ask.settings) or (names[0] if names else "")
        measured = pareto.comparable(rows, model, protocol)
        group = pareto.opening(measured, points.names(), ask.selected)
        drawn, remarks = group, []
        if names and protocol != names[0]:  # the protocol of most runs is another
            remarks.append(words.many("front.elsewhere", known[0][1], name=names[0]))
        if len(group) < len(measured):
            remarks.append(words.many("front.others", len(measured) - len(group)))
        if any(metrics.METRICS[k].kind == "time" for k in (x, y)):
            drawn = pareto.on_this_machine(group, host.processor(), host.threads())
            remarks.append(words("front.time_here"))
        whole = [r for r in drawn if metrics.value(r, x) is not None and metrics.value(r, y) is not None]
        if len(whole) < len(drawn):
            remarks.append(words.many("front.missing", len(drawn) - len(whole)))
        drawing = plots.draw(whole, x, y, words)
        entry = CATALOGUE.get(model)
        if entry and entry.rounded:
            facts = {"format": entry.rounded, "bytes": entry.publisher_bytes}
            remarks.append(words.note({"code": "already_rounded", "facts": facts}))
        budget = ask.budget or self._budget(group)
        sentences, first = cards.answer(group, words, budget)
        best = pareto.smallest_within(group) or next(
            (r for r in group if r.get("family") == "original"), None
        )
        return {
            "figure": plots.figure(drawing),
            "still": plots.still(drawing),
            "alt": plots.summary(drawing, first),
            "headline": cards.headline(group, model, words),
            "answer": sentences if group else "",
            "remarks": remarks,
            "protocols": [[p, words.many("front.protocol.runs", n, name=p)] for p, n in known],
            "protocol": protocol,
            "empty": not whole,
            "best": best["id"] if best else "",
            "x": x,
            "y": y,
            "ids": [r["id"] for r in group],
        }

    @staticmethod
    def _usual(rows: list[dict], names: list[str], model: str, settings: requests.Settings) -> str:
        """The protocol in which a run with these settings would be measured; "" if none is stored."""
        wanted = [settings.text, settings.protocol, settings.tokens, settings.window]
        return next(
            (
                r["protocol_id"]
                for r in rows
                if r["model"] == model
                and r["protocol_id"] in names
                and [r.get(k) for k in ("text", "protocol", "tokens", "window")] == wanted
            ),
            "",
        )

    @staticmethod
    def _budget(rows: Iterable[metrics.Row]) -> float | None:
        """A first size to ask about: a third of the original or the smallest run, up to the next 10 MB."""
        sizes = sorted(s for r in rows if (s := metrics.value(r, "file_bytes")))
        return math.ceil(max(sizes[0], sizes[-1] / 3) / 1e7) * 1e7 if sizes else None

    def card(self, ask: requests.OfRun) -> dict:
        """The card of a run."""
        words, result = Words(ask.lang), self.store.get_id(ask.id)
        if result is None:
            return {"html": cards.error_card(words, {"code": "run_gone"}), "spec": None, "status": "unknown"}
        seconds = self._seconds(result.spec)  # estimated anew, since this machine may have become slower
        return self._keep(("card", ask.lang, ask.id, seconds), lambda: self._card(words, result, seconds))

    def _card(self, words: Words, result: Result, seconds: float | None) -> dict:
        own = self.store.has_artifact(result)
        manifest = self.store.manifest(result) if own else None
        rows = self.rows()
        row = next((r for r in rows if r["id"] == result.id), {})
        group = pareto.comparable(rows, result.spec.model, result.protocol_id)
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
            exports=self._exports(manifest) if manifest else (),
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

    @staticmethod
    def _exports(manifest: dict) -> list[str]:
        """Formats of other programs that the run's model can be exported to."""
        with importing:
            from compression import export  # it imports torch; the page's first paint must not wait for that

        return export.offers(manifest)

    def _seconds(self, spec: RunSpec) -> float | None:
        try:
            return self._estimate(spec).seconds if self._estimate else None
        except CompressionError:
            return None

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

    # --- results as files ---

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

    def essay(self, ask: requests.Essay) -> dict:
        """What a method does, in a page of text."""
        if ask.method not in methods():
            raise requests.BadRequest(
                f"no method {ask.method!r}; allowed: {', '.join(methods())}", where="method"
            )
        return {"text": essay(ask.method, ask.lang)}

    # --- before anything runs ---

    def plan(self, ask: requests.Plan) -> dict:
        """Which ways to make a model smaller fit into a memory, and what is known of each.

        "options": the recipes in the order of the table, which the page can take over.
        """
        words = Words(ask.lang)
        geometry = self._planned(ask)
        need = planner.Need(ask.memory_bytes, ask.context, ask.cache_bits, ask.bandwidth)
        name = "" if ask.sizes else ask.model
        found = planner.plan(geometry, need, name, [*self.store.shipped(), *self.store.own()])
        others = planner.largest(need)
        return {
            "html": cards.plan(words, name, geometry, need, found, others),
            "options": [option.recipe for option in found],
        }

    def _planned(self, ask: requests.Plan) -> Geometry:
        """The sizes of the model that is asked about: typed, from the catalogue, this disk, or the hub."""
        if ask.sizes:
            given = ask.sizes
            layer = LayerGeometry(given.heads, given.kv_heads, given.head_size, given.feed_forward)
            positions = ask.context
            return Geometry(
                given.architecture,
                given.hidden,
                given.vocabulary,
                positions,
                given.tied,
                (layer,) * given.layers,
            )
        if self.public:
            named_only(RunSpec(ask.model, (("none", {}),)))
        try:
            return geometry_for(ask.model)
        except ModelUnavailable as error:
            if error.code != "size_unknown":
                raise
            return self._scales.ask(ask.model).geometry

    # --- before and while running ---

    def weigh(self, ask: requests.Weigh) -> dict:
        """What a run will cost, where its main knob can go, and whether its answer is stored."""
        words = Words(ask.lang)
        out = {"html": "", "path": [], "stored": "", "fits": True, "error": ""}
        spec = self._spec(ask.choices)
        out["stored"] = self._stored(spec)
        if not out["stored"] and (missing := self._refused(spec)):
            return out | {"fits": False} | self._unreachable(words, missing, ask.choices)
        assert self._estimate is not None
        try:
            found = self._estimate(spec)
        except CompressionError as error:
            if error.code == "size_unknown":
                return out | {"html": cards.estimate_line(words, None, False, self.public)}
            return out | {"error": cards.error_card(words, _failure(error)), "fits": False}
        assert self._path is not None
        out["path"] = [
            {
                "at": v,
                "bytes": size,
                "size": words("estimate.size", size=words.size(size)),
                "smaller": words.smaller(found.baseline_file_bytes, size),
                "hint": words("estimate.hint", size=words.size(size)),
            }
            for v, size, *_ in self._path(spec)
        ]
        out["bytes"], out["fits"], out["seconds"] = found.file_bytes, found.fits, found.seconds
        out["hint"] = words("estimate.hint", size=words.size(found.file_bytes))
        out["html"] = cards.estimate_line(words, found, bool(out["stored"]), self.public)
        return out

    @staticmethod
    def _unreachable(words: Words, missing: str, choices: requests.Choices) -> dict:
        """A text that can't be had, as the page's error.

        "instead": the settings to take in place of the first ones. Nobody chose their text, so the page may
        take another one and say so ("told").
        """
        error = cards.error_card(words, {"code": "text_unreachable", "facts": {"name": missing}})
        if any(getattr(choices, name) != value for name, value in FIRST_SETTINGS.items()):
            return {"error": error}
        told = words("estimate.instead", tokens=f"{OFFLINE['tokens']:,}")
        return {"error": error, "instead": OFFLINE, "told": told}

    @staticmethod
    def _refused(spec: RunSpec) -> str:
        """A named text of the run that the hub refused and that isn't on this disk; "" if there is none."""
        with importing:
            from compression import texts

        read = (spec.text, *([spec.calibration] if spec.needs_calibration else []))
        return next((name for name in read if texts.refused(name)), "")

    def _stored(self, spec: RunSpec) -> str:
        """Id of the newest answer to the same request, own before shipped; "" if there is none."""
        wanted = spec.identity()
        own = self.store.find(wanted)
        found = (own if own and answers(own, self.store) else None) or next(
            (r for r in self.store.shipped() if r.status == "ok" and r.spec.identity() == wanted), None
        )
        return found.id if found else ""

    def begin(self, ask: requests.Begin) -> dict:
        """Start a run and give its id. What `weigh` says of a text that can't be had holds here too."""
        spec = self._spec(ask.choices)
        with importing:
            from compression import texts

        if WIKITEXT in (spec.text, spec.calibration):
            texts.settled(FETCH_SECONDS)  # the first run may be asked for before the text is here
        if missing := self._refused(spec):
            return {"id": ""} | self._unreachable(Words(ask.lang), missing, ask.choices)
        return {"id": self.runner.submit(spec, ask.owner, ask.again, ask.address)}

    def _spec(self, choices: requests.Choices) -> RunSpec:
        """The run that the knobs describe.

        On a public page the sizes of its models are asked for before anything reads or downloads them.
        """
        spec = requests.spec_of(choices, self.public)
        for name in (spec.model, *spec.students) if self.public else ():
            self._scales.weigh(name)
        return spec

    def poll(self, ask: requests.OfOwnRun) -> dict:
        """How far a run is, in words, with the curve of its training.

        "mine" tells whether it may be ended, for its owner alone.
        """
        words, state = Words(ask.lang), self.runner.state(ask.id, ask.owner)
        out = {
            "status": state["status"],
            "result": state.get("result_id") or "",
            "stage": "",
            "left": "",
            "done": 0,
            "error": "",
        }
        mine = state.get("mine", False)
        out |= {"curve": "", "enough": False, "mine": mine}
        result = self.store.get_id(ask.id)
        out["name"] = (
            words.recipe(
                result.spec.recipe, cache_bits=result.spec.cache_bits, cache_keys=result.spec.cache_keys
            )
            if result
            else ""
        )
        if state["status"] == "queued":
            place = state["place"]
            out["stage"] = words("progress.queued", place=place) if place > 1 else words("progress.next")
        elif state["status"] == "running":
            out["stage"] = self._stage(words, state)
            if state["stage"] == "train" and mine:
                facts = state["facts"]
                out |= {
                    "curve": curve.svg(facts["curve"], words, words("progress.curve")),
                    "enough": state["alone"] and self.runner.executor.ends_trainings,
                }
            if left := state["seconds_left"]:
                out["left"] = words("progress.left", time=words.seconds(left))
                out["done"] = state["elapsed"] / (state["elapsed"] + left)
        elif state["status"] != "ok":
            out["error"] = cards.error_card(words, state["error"] or {"code": state["status"]}, ask.id)
        if state.get("shared"):
            out["left"] = " · ".join(filter(None, [out["left"], words("progress.shared")]))
        return out

    @staticmethod
    def _stage(words: Words, state: dict) -> str:
        """ "Compressing, layer 3 of 30"."""
        key, done, total = f"stage.{state['stage']}", state["done"] or 0, state["total"] or 1
        if not words.has(key):
            return words("progress.starting")
        if state["stage"] == "train":
            return words("progress.train", **words.facts(state["facts"]))
        step = (
            words(f"{key}.of", done=min(done + 1, total), total=total)
            if total > 1 and words.has(f"{key}.of")
            else ""
        )
        return words("comma").join(filter(None, [words(key), step]))

    def stop(self, ask: requests.OfOwnRun) -> dict:
        """Stop the visitor's own run, or only leave it if others wait for it too.

        "left": a sentence if others wait; "" if the run was stopped.
        """
        words = Words(ask.lang)
        self.runner.cancel(ask.id, ask.owner)
        going_on = self.runner.state(ask.id)["status"] in ("queued", "running")
        return {"left": words("progress.left_run") if going_on else ""}

    def enough(self, ask: requests.OfOwnRun) -> dict:
        """End the training of the visitor's own run now; the run goes on with the best state so far."""
        self.runner.enough(ask.id, ask.owner)
        return {}

    # --- what leaves the page ---

    def downloads(self) -> Path:
        """The folder that packed models are served from."""
        return self.store.home / "downloads"

    def pack(self, ask: requests.Pack) -> dict:
        """A compressed model's folder as one archive; only the newest few are kept."""
        words, result, form = Words(ask.lang), self.store.get_id(ask.id), ask.form
        if result is None or not self.store.has_artifact(result):
            return {"error": cards.error_card(words, {"code": "artifact_missing"}, ask.id)}
        if form and form not in self._exports(self.store.manifest(result)):
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

    def recorded(self, ask: requests.Recorded) -> dict:
        """What the chat shows of the recorded answers, and what making the model here would take."""
        words = Words(ask.lang)
        key = ("recorded", ask.lang, ask.id, ask.prompt)
        out = self._keep(key, lambda: replay.shown(words, self.rows(), recorded.read(), ask.id, ask.prompt))
        result = self.store.get_id(str(out.get("id", "")))
        seconds = self._seconds(result.spec) if result else None
        return out | {
            "make": words("card.make", time=words.seconds(seconds)) if seconds else words("card.make.plain")
        }

    def sides(self, ask: requests.OfRun) -> dict:
        """The heads of the chat's columns: what each side is, its stored speed and its memory.

        An empty id gives only the choice of runs.
        """
        return self._keep(("sides", ask.lang, ask.id), lambda: self._sides(ask)) | {
            "busy": bool(self.runner.busy())
        }

    def _sides(self, ask: requests.OfRun) -> dict:
        words, rows = Words(ask.lang), self.rows()
        ready = [
            r for r in rows if r["status"] == "ok" and r.get("artifact") and r.get("family") != "original"
        ]
        options = [[r["id"], f"{words.run(r, long=True)} · {r['model']}"] for r in reversed(ready)]
        out = {"options": options, "left": None, "right": None}
        row = next((r for r in ready if r["id"] == ask.id), None)
        if row is None:
            return out
        here = (row.get("host"), row.get("threads")) == (host.processor(), host.threads())

        busy = {"machine_busy", "machine_shared"} & {note.get("code") for note in row["notes"]}

        def side(title: str, prefix: str) -> dict:
            rate = metrics.value(row, f"{prefix}decode_tokens_per_second") if here else None
            size = metrics.value(row, f"{prefix}file_bytes")
            return {
                "title": title + (f" · {words.size(size)}" if size else ""),
                "rate": rate,
                "stored": words("chat.stored.busy" if busy else "chat.stored", rate=digits(rate, 2))
                if rate
                else "",
                "size": size,
                "size_words": words.size(size) if size else "",
            }

        entry = CATALOGUE.get(str(row["model"]))
        return out | {
            "left": side(words("chat.left"), "baseline_"),
            "right": side(words.run(row, long=True), ""),
            "model": row["model"],
            "chats": entry.chat if entry else True,
            "rounded": words("controls.model.rounded", format=entry.rounded)
            if entry and entry.rounded
            else "",
        }

    def stop_chat(self, ask: requests.Owned) -> dict:
        """End the visitor's own question, even if it still waits for its turn."""
        self.chat.stop(ask.owner)
        return {}

    def converse(self, ask: Any, address: str = "") -> Iterator[dict]:
        """Both answers as they grow: yields the state of both columns. Never raises."""
        words = Words(requests.language(ask))
        sides = {
            side: {"text": "", "rate": "", "first": "", "memory": "", "cache": "", "done": False, "pieces": 0}
            for side in ("original", "compressed")
        }
        state: dict[str, Any] = {
            "turn": 0,
            "sides": sides,
            "parted": None,
            "cut": None,
            "done": False,
            "error": "",
            "status": words("chat.waiting"),
        }
        if isinstance(ask, dict) and isinstance(
            ask.get("turn"), int
        ):  # the page waits for an answer to this question, even if it is refused
            state["turn"] = ask["turn"] if abs(ask["turn"]) <= requests.WHOLE else 0
        try:
            ask = requests.take("converse", ask, address)
            yield state
            events = self.chat.stream(
                ask.id,
                [m.model_dump() for m in ask.messages],
                max_tokens=ask.max_tokens,
                temperature=ask.temperature,
                seed=ask.seed,
                owner=ask.owner,
                address=ask.address,
            )
            with contextlib.closing(events):
                for event in events:
                    self._take(state, event, words)
                    yield state
            parted, wrote = state["parted"], any(side["pieces"] for side in sides.values())
            state["status"] = (
                words.many("chat.parted", parted)
                if parted is not None
                else words("chat.equal")
                if wrote
                else ""
            )
        except Exception as error:
            failure = _failure(error)
            if failure["code"] == "error" or not words.has(f"error.{failure['code']}.what"):
                failure = {"code": "chat_failed", "message": failure["message"]}
            state["error"] = cards.error_card(words, failure, act="dismiss")
            state["status"] = ""
        for side in sides.values():
            side["done"] = True
        yield state | {"done": True}

    @staticmethod
    def _take(state: dict, event: dict, words: Words) -> None:
        if event.get("diverged_at") is not None and state["parted"] is None:
            state["parted"] = event["diverged_at"]
        if "place" in event:
            state["status"] = (
                words.many("chat.place", event["place"]) if event["place"] else words("chat.waiting")
            )
        side = state["sides"].get(event.get("side"))
        if side is None:
            return
        side["text"] += event.get("text") or ""
        state["status"] = ""
        if event.get("first_ms") is not None:
            side["first"] = words("chat.first", ms=words.figure("time_to_first_token_ms", event["first_ms"]))
        if (event.get("waited") or 0) > host.WAITED:
            side["busy"] = words("chat.rate.busy")
        if event.get("tokens_per_second"):
            side["rate"] = words("chat.rate", rate=digits(event["tokens_per_second"], 2))
            side["rate_value"] = event["tokens_per_second"]
        if event.get("memory_bytes"):
            side["memory"] = words("chat.memory", memory=words.size(event["memory_bytes"]))
        if event.get("cache_bits", 16) < 16:
            side["cache"] = words("chat.cache", bits=event["cache_bits"])
        if event.get("done"):
            side["done"] = True
        if event.get("token") is not None:
            side["pieces"] += 1
            side.setdefault("ends", []).append(len(side["text"]))


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
