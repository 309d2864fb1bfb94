"""Side by side: one worker process owns the original and a compressed model and gives a token of each in turn.

    chat = Chat(store)
    for event in chat.ask(result_id, [{"role": "user", "content": "Hello"}]):
        print(event["side"], event["text"])

Both sides get the same prompt and the same random stream. A side's rate is one over the median of its own steps, so
that waiting for the other side doesn't count; each step holds the machine's timing lock. Where the answers part is
told by token ids.
"""

from __future__ import annotations

import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from compression.base import CompressionError
from compression.models import is_path
from evaluation.spec import ROOT
from evaluation.store import Store

SIDES = ("original", "compressed")


class ChatError(CompressionError):
    """A question that can't be answered: artifact_missing, chat_died, prompt_too_long, unknown_run."""

    code = "chat"


class Chat:
    """The page's end of the chat worker. One question at a time; a second one waits for the first."""

    def __init__(self, store: Store, *, public: bool = False):
        self.store, self.public = store, public
        self._process: subprocess.Popen | None = None
        self._turn, self._write = threading.Lock(), threading.Lock()

    def request(self, result_id: str) -> dict:
        """What the worker must load for a result. Raises ChatError when the compressed model isn't on this disk."""
        result = self.store.get_id(result_id)
        if result is None:
            raise ChatError("this run is not in the store any more", code="unknown_run")
        if result.spec.is_original:
            return {"model": result.spec.model, "artifact": ""}
        if not self.store.has_artifact(result):
            raise ChatError("the compressed model is no longer on this disk; compress again", code="artifact_missing")
        if self.public and is_path(result.spec.model):
            raise ChatError("local folders are not allowed on a public Space", code="path_refused")
        return {"model": result.spec.model, "artifact": str(self.store.artifact_folder(result.artifact))}

    def ask(self, result_id: str, messages: list[dict], *, max_tokens: int = 128, temperature: float = 0.0,
            seed: int = 0) -> Iterator[dict]:  # fmt: skip
        """Events of both sides as they come; see `answer` for their fields. Raises ChatError."""
        models = self.request(result_id)
        with self._turn:
            process = self._alive()
            question = {
                "ask": models | {"messages": messages, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
            }
            self._send(question)
            finished = False
            try:
                for line in process.stdout:
                    event = json.loads(line)
                    if "end" in event:
                        finished = True
                        break
                    if "error" in event:
                        finished = True
                        raise ChatError(event["error"]["message"], code=event["error"]["code"], **event["error"]["facts"])
                    yield event
                if not finished:
                    process.wait()
                    raise ChatError("the chat's process ended, most likely because memory ran out; ask again", code="chat_died")
            finally:
                if not finished and process.poll() is None:  # the visitor left: drain, so that the next question is clean
                    self._send({"stop": True})
                    for line in process.stdout:
                        event = json.loads(line)
                        if "end" in event or "error" in event:
                            break

    def stop(self) -> None:
        """End the answer that is being given."""
        if self._process and self._process.poll() is None:
            self._send({"stop": True})

    def close(self) -> None:
        """End the worker and free its memory."""
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _alive(self) -> subprocess.Popen:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "evaluation.chat"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                text=True, encoding="utf-8", start_new_session=True,
                env=os.environ | {"COMPRESSION_EXPLORER_HOME": str(self.store.home)},
            )  # fmt: skip
        return self._process

    def _send(self, message: dict) -> None:
        try:
            with self._write:
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()
        except (BrokenPipeError, OSError):
            self._process.wait()


# --- the worker's side --------------------------------------------------------------------------------------------


class Side:
    """One model while it answers."""

    def __init__(self, name: str, bundle):
        from compression import engine
        from evaluation.memory import resident_bytes

        self.name, self.bundle = name, bundle
        decoder = engine.serve_alone(bundle)
        self.memory_bytes = decoder.bytes if decoder else resident_bytes(bundle.module)

    def start(self, messages: list[dict], max_tokens: int, temperature: float, seed: int) -> None:
        from compression.sample import chat_ids, generate, stop_ids

        self.stops = stop_ids(self.bundle)
        self.steps = generate(self.bundle, chat_ids(self.bundle, messages), max_tokens, temperature, seed)
        self.tokens: list[int] = []
        self.times: list[float] = []
        self.shown, self.done = "", False

    def step(self) -> dict:
        """Give one token: its event."""
        from evaluation.host import timing_lock

        with timing_lock():
            began = time.perf_counter()
            token = next(self.steps, None)
            self.times.append(time.perf_counter() - began)
        token = None if token is None else int(token)
        self.done = token is None or token in self.stops
        if not self.done:
            self.tokens.append(token)
        text = self.bundle.tokenizer.decode(self.tokens, skip_special_tokens=True)
        if text.endswith("\ufffd") and not self.done:  # half a character: wait for the rest
            text = self.shown
        new, self.shown = text[len(self.shown) :], text
        later = self.times[1:]
        return {"side": self.name, "text": new, "token": token, "ms": round(1e3 * self.times[-1], 2),
                "first_ms": round(1e3 * self.times[0], 1), "done": self.done, "memory_bytes": self.memory_bytes,
                "cache_bits": self.bundle.cache_bits,
                "tokens_per_second": round(1 / statistics.median(later), 2) if later else None}  # fmt: skip


def answer(sides: list[Side], question: dict, stopped: threading.Event) -> Iterator[dict]:
    """Events {"side", "text": what is new, "token", "ms", "first_ms", "done", "memory_bytes", "cache_bits", "tokens_per_second",
    "diverged_at": index of the first token on which the sides differ, None while they agree}."""
    for side in sides:
        side.start(question["messages"], question["max_tokens"], question["temperature"], question["seed"])
    parted = None
    while not all(s.done for s in sides) and not stopped.is_set():
        for side in sides:
            if side.done or stopped.is_set():
                continue
            event = side.step()
            if parted is None and len(sides) == 2:
                parted = _parted(*sides)
            yield event | {"diverged_at": parted}


def _parted(a: Side, b: Side) -> int | None:
    for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=False)):
        if x != y:
            return i
    if a.done != b.done and len(a.tokens) != len(b.tokens):
        shorter = min(len(a.tokens), len(b.tokens))
        ended = a if a.done else b
        return shorter if len(ended.tokens) == shorter else None
    return None


def serve() -> None:
    """Answer questions from standard input until it closes."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    stopped, questions = threading.Event(), queue.Queue()

    def listen():
        for line in sys.stdin:
            message = json.loads(line)
            if "stop" in message:
                stopped.set()
            else:
                questions.put(message["ask"])
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    from evaluation.run import describe_error

    loaded: dict[str, tuple[str, Side]] = {}
    while True:
        question = questions.get()
        stopped.clear()
        try:
            sides = _load(loaded, question)
            for event in answer(sides, question, stopped):
                out.write(json.dumps(event, ensure_ascii=False) + "\n")
            out.write(json.dumps({"end": True}) + "\n")
        except Exception as error:
            out.write(json.dumps({"error": describe_error(error)}) + "\n")


def _load(loaded: dict[str, tuple[str, Side]], question: dict) -> list[Side]:
    """The sides that a question is for; what is no longer needed is freed first."""
    from compression import artifact, models

    wanted = {"original": question["model"], "compressed": question["artifact"]}
    for name in SIDES:
        if name in loaded and loaded[name][0] != wanted[name]:
            del loaded[name]
    for name in SIDES:
        if wanted[name] and name not in loaded:
            bundle = models.load(wanted[name]) if name == "original" else artifact.load(Path(wanted[name]))
            loaded[name] = (wanted[name], Side(name, bundle))
    return [loaded[name][1] for name in SIDES if name in loaded]


if __name__ == "__main__":
    serve()
