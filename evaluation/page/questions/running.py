"""Questions around a run: what it will cost, begin it, how far it is, end it."""

from __future__ import annotations

import dataclasses

from compression import importing
from compression.base import CompressionError
from evaluation.page import cards, curve, requests
from evaluation.page.questions.base import Panel, failure
from evaluation.page.words import Words
from evaluation.spec import FIRST, OFFLINE, WIKITEXT, RunSpec

FETCH_SECONDS = 20  # how long a run waits at most for the text that is fetched when the app starts


class Running(Panel):
    """A visitor's run, from the knobs to its end."""

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
            return out | {"error": cards.error_card(words, failure(error)), "fits": False}
        assert self._path is not None
        size_told = cards.SIZE_KEYS[found.open_ended]
        out["path"] = [
            {
                "at": v,
                "bytes": size,
                "size": words(size_told, size=words.size(size)),
                "smaller": words.smaller(found.baseline_file_bytes, size),
                "hint": words("estimate.hint", size=words.size(size)),
            }
            for v, size, *_ in self._path(spec)
        ]
        out["bytes"], out["fits"], out["seconds"] = found.file_bytes, found.fits, found.seconds
        out["hint"] = words("estimate.hint", size=words.size(found.file_bytes))
        out["html"] = cards.estimate_line(words, found, bool(out["stored"]), self.public)
        out["second"] = self._second(words, spec, found.file_bytes)
        return out

    def _second(self, words: Words, spec: RunSpec, file_bytes: int) -> str:
        """What the last of several steps changes of the file's size; "" for a single step."""
        if len(spec.recipe) < 2:
            return ""
        assert self._estimate is not None
        before = self._estimate(dataclasses.replace(spec, recipe=spec.recipe[:-1])).file_bytes
        facts = {"before": words.size(before), "after": words.size(file_bytes)}
        if facts["before"] == facts["after"]:
            return words("estimate.second.same", size=facts["after"])
        return words("estimate.second.larger" if file_bytes > before else "estimate.second.smaller", **facts)

    @staticmethod
    def _unreachable(words: Words, missing: str, choices: requests.Choices) -> dict:
        """A text that can't be had, as the page's error.

        "instead": the settings to take in place of the first ones. Nobody chose their text, so the page may
        take another one and say so ("told").
        """
        error = cards.error_card(words, {"code": "text_unreachable", "facts": {"name": missing}})
        if any(getattr(choices, name) != value for name, value in FIRST.items()):
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

    def begin(self, ask: requests.Begin) -> dict:
        """Start a run and give its id. What `weigh` says of a text that can't be had holds here too."""
        spec = self._spec(ask.choices)
        with importing:
            from compression import texts

        if WIKITEXT in (spec.text, spec.calibration):
            texts.wait_for_fetch(FETCH_SECONDS)  # the first run may be asked for before the text is here
        if missing := self._refused(spec):
            return {"id": ""} | self._unreachable(Words(ask.lang), missing, ask.choices)
        return {"id": self.runner.submit(spec, ask.owner, ask.again, ask.address)}

    def _spec(self, choices: requests.Choices) -> RunSpec:
        """The run that the knobs describe.

        On a public page the sizes of its models are asked for before anything reads or downloads them.
        """
        spec = requests.spec_of(choices, self.public)
        for name in (spec.model, *spec.students) if self.public else ():
            self._scales.check(name)
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
