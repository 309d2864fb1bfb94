"""Side by side: one worker process owns the original and a compressed model, and both answer a question.

    chat = Chat(store)
    for event in chat.ask(result_id, [{"role": "user", "content": "Hello"}]):
        print(event["side"], event["text"])

The models take turns, one token each. Both get the same prompt and the same random numbers. A side's rate is
one over the median of its own steps, so that waiting for the other side doesn't count. Each step holds the
machine's timing lock. Where the answers begin to differ is found by token ids.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from compression.base import CompressionError
from evaluation import ROOT, host, recorded
from evaluation.running.public import named_only
from evaluation.store import Store

SIDES = ("original", "compressed")
COMMAND = (sys.executable, "-m", "evaluation.running.chat")
WAITING = 8  # questions that may wait, beside the one that is answered
WAITING_OF_ADDRESS = 3  # of these, how many one network address may have on a public page
# seconds that each stage of an answer may take
PATIENCE = {"load": 1800.0, "prompt": 20.0, "token": 600.0, "answer": 86_400.0}
PUBLIC_PATIENCE = {"load": 300.0, "prompt": 20.0, "token": 120.0, "answer": 300.0}
STOP_SECONDS = 2.0  # between asking the worker to end an answer and killing it
TICK_SECONDS = 0.25  # how often a stream without news gives an empty event, so that it can be closed
PROMPT_BYTES = 2**31  # memory that a chat template and the tokenizer may take


class ChatError(CompressionError):
    """A question that can't be answered.

    Its codes: artifact_missing, chat_died, chat_slow, chat_full, template_slow, prompt_too_long, unknown_run.
    """

    code = "chat"


@dataclass(eq=False)
class _Turn:
    """A question that waits or is being answered."""

    owner: str
    address: str
    stopped: threading.Event = field(default_factory=threading.Event)


class _Worker:
    """The worker process, and its events that nobody has read yet.

    An event is a dictionary; None means that the process has ended.
    """

    def __init__(self, home: Path):
        self.process = subprocess.Popen(
            COMMAND,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
            env=os.environ | {"COMPRESSION_EXPLORER_HOME": str(home)},
        )
        self.said: queue.SimpleQueue[dict | None] = queue.SimpleQueue()
        self._write = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            for line in self.process.stdout:
                self.said.put(json.loads(line))
        except ValueError:
            pass  # killed in the middle of a line
        self.said.put(None)

    def alive(self) -> bool:
        return self.process.poll() is None

    def tell(self, message: dict) -> None:
        try:
            with self._write:
                self.process.stdin.write(json.dumps(message) + "\n")
                self.process.stdin.flush()
        except OSError:
            pass  # it has ended, which the last event (None) says

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Chat:
    """The page's end of the chat worker. One question is answered at a time, the others wait in a line.

    Each stage of a question has a deadline, and a question can be stopped at any stage. A worker that doesn't
    react is killed, and the next question gets a new one.
    """

    def __init__(self, store: Store, *, public: bool = False):
        self.store, self.public = store, public
        self.patience = dict(PUBLIC_PATIENCE if public else PATIENCE)
        self._worker: _Worker | None = None
        self._line: list[_Turn] = []  # the first of them is being answered
        self._lock = threading.Condition()

    def request(self, result_id: str) -> dict:
        """What the worker must load for a result.

        Raises ChatError if the compressed model isn't on this disk.
        """
        result = self.store.get_id(result_id)
        if result is None:
            raise ChatError("this run is not in the store any more", code="unknown_run")
        if self.public:
            named_only(result.spec)
        if result.spec.is_original:
            return {"model": result.spec.model, "artifact": ""}
        if not self.store.has_artifact(result):
            raise ChatError(
                "the compressed model is no longer on this disk; compress again", code="artifact_missing"
            )
        return {"model": result.spec.model, "artifact": str(self.store.artifact_folder(result.artifact))}

    def ask(self, result_id: str, messages: list[dict], **options) -> Iterator[dict]:
        """Both sides' events as they come; `answer` lists their fields. Raises ChatError."""
        return (event for event in self.stream(result_id, messages, **options) if "side" in event)

    def stream(
        self,
        result_id: str,
        messages: list[dict],
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        owner: str = "",
        address: str = "",
    ) -> Iterator[dict]:
        """The same events, preceded by {"place": number of questions that come first}.

        While nothing is new it gives {} again and again. So the generator can be closed at any time, which
        frees the line. Raises ChatError.

        owner: a hash of the secret by which a visitor may stop the question; "" for nobody. A new question
        ends the same visitor's last one. address: the visitor's network address.
        """
        question = self.request(result_id) | {
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        turn = self._join(owner, address)
        worker, ended = None, False
        try:
            while (place := self._place(turn)) and not turn.stopped.is_set():
                yield {"place": place}
                with self._lock:
                    self._lock.wait(TICK_SECONDS)
            yield {"place": 0}
            if turn.stopped.is_set():
                return
            worker = self._alive()
            worker.tell({"ask": question})
            ended = yield from self._answer(worker, turn)
        except ChatError:
            ended = True
            raise
        finally:  # whoever closes a stream must not wait
            threading.Thread(target=self._leave, args=(turn, None if ended else worker), daemon=True).start()

    def _answer(self, worker: _Worker, turn: _Turn) -> Generator[dict, None, bool]:
        """Give the worker's events on a question; returns whether the answer ended by itself.

        Raises ChatError; the worker is ready or dead by then.
        """
        stage, since, writes = "load", time.monotonic(), None
        while True:
            now = time.monotonic()
            if turn.stopped.is_set() or (writes and now - writes > self.patience["answer"]):
                return False
            if now - since > self.patience[stage]:
                worker.kill()
                raise ChatError(
                    f"the answer took more than {self.patience[stage]:.0f} s at the stage {stage!r}",
                    code="template_slow" if stage == "prompt" else "chat_slow",
                    seconds=self.patience[stage],
                )
            try:
                event = worker.said.get(timeout=TICK_SECONDS)
            except queue.Empty:
                yield {}
                continue
            if event is None:
                worker.process.wait()
                raise ChatError(
                    "the chat's process ended, most likely because memory ran out; ask again",
                    code="chat_died",
                )
            if "end" in event:
                return True
            if "error" in event:
                raise ChatError(
                    event["error"]["message"], code=event["error"]["code"], **event["error"]["facts"]
                )
            since = time.monotonic()
            if "stage" in event:
                stage = event["stage"]
                continue
            writes = writes or since
            yield event

    def stop(self, owner: str) -> None:
        """End a visitor's own question, even if it still waits."""
        with self._lock:
            for turn in self._line:
                if owner and turn.owner == owner:
                    turn.stopped.set()
            self._lock.notify_all()

    def close(self) -> None:
        """End all questions and the worker, and free its memory."""
        with self._lock:
            for turn in self._line:
                turn.stopped.set()
            self._lock.notify_all()
            worker, self._worker = self._worker, None
        if worker:
            worker.kill()

    # --- the line ---

    def _join(self, owner: str, address: str) -> _Turn:
        self.stop(owner)
        turn = _Turn(owner, address)
        with self._lock:
            waiting = [t for t in self._line[1:] if not t.stopped.is_set()]
            near = sum(t.address == address for t in waiting) if self.public and address else 0
            if len(waiting) >= WAITING or near >= WAITING_OF_ADDRESS:
                raise ChatError(
                    f"{len(waiting)} questions wait already; ask again in a moment",
                    code="chat_full",
                    n=len(waiting),
                )
            self._line.append(turn)
        return turn

    def _place(self, turn: _Turn) -> int:
        with self._lock:
            return self._line.index(turn)

    def _alive(self) -> _Worker:
        with self._lock:
            if self._worker is None or not self._worker.alive():
                self._worker = _Worker(self.store.home)
            return self._worker

    def _leave(self, turn: _Turn, worker: _Worker | None) -> None:
        """Give up a place in the line.

        A worker that is still answering is made to end first, so that the next question starts clean.
        """
        if worker is not None and worker.alive():
            worker.tell({"stop": True})
            until = time.monotonic() + STOP_SECONDS
            try:
                while (event := worker.said.get(timeout=max(0.0, until - time.monotonic()))) is not None:
                    if "end" in event or "error" in event:
                        break
            except queue.Empty:
                worker.kill()
        with self._lock:
            self._line.remove(turn)
            self._lock.notify_all()


# --- the worker's side ---


class Side:
    """One model while it answers."""

    def __init__(self, name: str, bundle):
        from compression import engine
        from evaluation.measuring.memory import resident_bytes

        self.name, self.bundle = name, bundle
        decoder = engine.serve_alone(bundle)
        self.memory_bytes = decoder.bytes if decoder else resident_bytes(bundle.module)

    def start(self, messages: list[dict], max_tokens: int, temperature: float, seed: int) -> None:
        from compression.sample import chat_ids, generate, stop_ids

        self.stops = stop_ids(self.bundle)
        with bounded_memory(PROMPT_BYTES):  # a chat template is a program that somebody else wrote
            ids = chat_ids(self.bundle, messages)
        self.steps = generate(self.bundle, ids, max_tokens, temperature, seed)
        self.tokens: list[int] = []
        self.times: list[float] = []
        self.shown, self.done = "", False

    def step(self) -> dict:
        """Compute one token and return its event."""
        with host.timing_lock():
            began = time.perf_counter()
            token = next(self.steps, None)
            self.times.append(time.perf_counter() - began)
        self.done = token is None or int(token) in self.stops
        if token is not None and not self.done:
            self.tokens.append(int(token))
        text = self.bundle.tokenizer.decode(self.tokens, skip_special_tokens=True)
        if text.endswith("\ufffd") and not self.done:  # half a character: wait for its other bytes
            text = self.shown
        new, self.shown = text[len(self.shown) :], text
        later = self.times[1:]
        return {
            "side": self.name,
            "text": new,
            "token": None if token is None else int(token),
            "ms": round(1e3 * self.times[-1], 2),
            "first_ms": round(1e3 * self.times[0], 1),
            "done": self.done,
            "memory_bytes": self.memory_bytes,
            "cache_bits": self.bundle.cache_bits,
            "tokens_per_second": round(1 / statistics.median(later), 2) if later else None,
        }


@contextlib.contextmanager
def bounded_memory(more: int) -> Iterator[None]:
    """Within it, this process may take at most `more` bytes of memory beyond what it has.

    More than that raises MemoryError. Where the system can't set such a limit, there is none.
    """
    try:
        import resource
    except ImportError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = psutil.Process().memory_info().vms + more
    try:
        resource.setrlimit(
            resource.RLIMIT_AS,
            (min((bound, *(x for x in (soft, hard) if x != resource.RLIM_INFINITY))), hard),
        )
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def answer(sides: list[Side], question: dict, stopped: threading.Event) -> Iterator[dict]:
    """The events of an answer: {"stage": "token"} once the prompts are made, then a token each.

    Their fields: "side"; "text": what is new; "token", "ms", "first_ms", "done", "memory_bytes",
    "cache_bits", "tokens_per_second"; "diverged_at": index of the first token on which the sides differ, None
    while they agree; "waited": the share of the answer's time that other programs had the processors.
    """
    for side in sides:
        side.start(question["messages"], question["max_tokens"], question["temperature"], question["seed"])
    yield {"stage": "token"}
    parted, watch = None, host.Watch()
    while not all(s.done for s in sides) and not stopped.is_set():
        for side in sides:
            if side.done or stopped.is_set():
                continue
            event = side.step()
            if parted is None and len(sides) == 2:
                one, two = sides
                parted = recorded.parted(one.tokens, two.tokens, one.done, two.done)
            yield event | {"diverged_at": parted, "waited": round(watch.waited(), 3)}


def serve() -> None:
    """Answer questions from standard input until it closes."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    stopped = threading.Event()
    questions: queue.Queue[dict] = queue.Queue()

    def tell(event: dict) -> None:
        out.write(json.dumps(event, ensure_ascii=False) + "\n")

    def listen():
        for line in sys.stdin:
            message = json.loads(line)
            if "stop" in message:
                stopped.set()
            else:
                # done here, in the order of the messages: a question may be stopped before it is read
                stopped.clear()
                questions.put(message["ask"])
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    from evaluation.running import deaths

    loaded: dict[str, tuple[str, Side]] = {}
    while True:
        question = questions.get()
        try:
            tell({"stage": "load"})
            sides = _load(loaded, question)
            tell({"stage": "prompt"})
            for event in answer(sides, question, stopped):
                tell(event)
            tell({"end": True})
        except Exception as error:
            tell({"error": deaths.describe(error)})


def _load(loaded: dict[str, tuple[str, Side]], question: dict) -> list[Side]:
    """The models that a question is for, on the device that runs take; models that it doesn't need are freed
    first."""
    from compression import artifact, models
    from kernels.home import held

    device = host.device()
    wanted = {"original": question["model"], "compressed": question["artifact"]}
    for name in SIDES:
        if name in loaded and loaded[name][0] != wanted[name]:
            del loaded[name]
    for name in SIDES:
        if wanted[name] and name not in loaded:
            with held(question["artifact"] or "."):  # so that no run removes it meanwhile to make room
                read = models.load if name == "original" else artifact.load
                bundle = read(wanted[name], device)
            loaded[name] = (wanted[name], Side(name, bundle))
    return [loaded[name][1] for name in SIDES if name in loaded]


if __name__ == "__main__":
    serve()
