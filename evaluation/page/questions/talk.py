"""Questions of the chat: what stands above its columns, and both answers while they grow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from compression.catalogue import CATALOGUE
from evaluation import host, recorded
from evaluation.measuring import metrics
from evaluation.page import cards, replay, requests
from evaluation.page.questions.base import Panel, failure
from evaluation.page.words import Words, digits


class Talk(Panel):
    """One prompt, answered by the original and by the compressed model."""

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
        """The heads of the chat's columns: what each side is, its stored speed and its file's size.

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

        disturbed = {"machine_busy", "machine_shared"} & {note.get("code") for note in row["notes"]}
        stored = "chat.stored.busy" if disturbed else "chat.stored"

        def side(title: str, prefix: str) -> dict:
            rate = metrics.value(row, f"{prefix}decode_tokens_per_second") if here else None
            size = metrics.value(row, f"{prefix}file_bytes")
            return {
                "title": title + (f" · {words.size(size)}" if size else ""),
                "rate": rate,
                "stored": words(stored, rate=digits(rate, 2)) if rate else "",
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
            described = failure(error)
            if described["code"] == "error" or not words.has(f"error.{described['code']}.what"):
                described = {"code": "chat_failed", "message": described["message"]}
            state["error"] = cards.error_card(words, described, act="dismiss")
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
