"""A visitor without a browser: asks the server as the page's scripts do, through Gradio's own protocol."""

from __future__ import annotations

import collections
import contextlib
import copy
import json
import secrets
import time
from collections.abc import Iterator

import httpx
from gradio_client.utils import apply_diff

from tests.soak.stage import PATIENCE

SECONDS = 10 * PATIENCE  # the longest that an answer may take
FUNCTIONS = "gradio_api/component_server"
# questions that a visitor's token goes with
OWNED = ("ask_begin", "ask_poll", "ask_stop", "ask_enough", "ask_stop_chat", "ask_delete")


class Hung(Exception):
    """No answer in the time that is allowed."""


class Unreachable(Exception):
    """The line dropped: the server is gone, or has closed it."""


class Answered(Exception):
    """An answer that isn't 200."""

    def __init__(self, response: httpx.Response):
        self.status = response.status_code
        super().__init__(f"HTTP {response.status_code}: {response.text[:200]}")


class Client:
    """One visitor. address: what a Space's proxy would say of where the visitor comes from."""

    def __init__(
        self,
        url: str,
        *,
        address: str = "",
        headers: dict[str, str] | None = None,
        config: dict | None = None,
    ):
        forwarded = {"x-forwarded-for": address} if address else {}
        self.http = httpx.Client(
            base_url=url, timeout=SECONDS, trust_env=False, headers=forwarded | (headers or {})
        )
        self.session, self.token = secrets.token_hex(6), secrets.token_hex(16)
        self.config = config or self._checked(self._send("GET", "config")).json()
        parts = [(c["id"], c["props"]) for c in self.config["components"]]
        self.functions = {name: number for number, props in parts for name in props.get("server_fns") or ()}
        self.chat_component = next((n for n, props in parts if props.get("elem_id") == "chat"), None)

    def _send(self, method: str, path: str, **options) -> httpx.Response:
        try:
            # a line that was kept and that the server has closed meanwhile: once more, as browsers do
            for _ in range(3):
                with contextlib.suppress(httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                    return self.http.request(method, path, **options)
            return self.http.request(method, path, **options)
        except httpx.TimeoutException as error:
            raise Hung(f"{method} {path}: nothing in {SECONDS} s") from error
        except httpx.HTTPError as error:
            raise Unreachable(f"{method} {path}: {type(error).__name__}: {error}") from error

    @staticmethod
    def _checked(response: httpx.Response) -> httpx.Response:
        if response.status_code != 200:
            raise Answered(response)
        return response

    def get(self, path: str, **options) -> httpx.Response:
        return self._send("GET", path, **options)

    def post(self, path: str, **options) -> httpx.Response:
        return self._send("POST", path, **options)

    @staticmethod
    def place(name: str) -> str:
        """Where a question goes: a class's to Learn, every other to a server function."""
        return "learn/ask" if name.startswith("class_") else FUNCTIONS

    def envelope(self, name: str, data: object) -> dict:
        if name.startswith("class_"):
            return {"question": name, "ask": data}
        return {
            "data": data,
            "fn_name": name,
            "component_id": self.functions.get(name, 0),
            "session_hash": self.session,
        }

    def send(self, name: str, data: object, **options) -> httpx.Response:
        """A question as it is, right or wrong."""
        return self.post(self.place(name), json=self.envelope(name, data), **options)

    def ask(self, name: str, **what) -> dict:
        """The answer to a question in English, with the visitor's token. Raises Answered, Hung,
        Unreachable."""
        own = {"visitor": self.token} if name in OWNED else {}
        return self._checked(self.send(name, {"lang": "en"} | own | what)).json()

    # --- runs ---

    def begin(self, choices: dict, again: bool = False) -> dict:
        """{"id"} of the run or {"error": its card}."""
        return self.ask("ask_begin", choices=choices, again=again)

    def poll(self, run_id: str) -> dict:
        return self.ask("ask_poll", id=run_id)

    def stop(self, run_id: str) -> dict:
        return self.ask("ask_stop", id=run_id)

    def follow(self, run_id: str, seconds: float, every: float = 0.3) -> dict:
        """The last answer to polling once the run has ended. Raises Hung after `seconds`."""
        end = time.monotonic() + seconds * PATIENCE
        while (state := self.poll(run_id))["status"] in ("queued", "running"):
            if time.monotonic() > end:
                raise Hung(f"run {run_id} is {state['status']} ({state['stage']}) after {seconds} s")
            time.sleep(every)
        return state

    # --- chat ---

    def converse(self, ask: dict, seconds: float) -> Iterator[dict]:
        """States of both columns as they come, the last with "done". Raises Hung when nothing comes for
        `seconds`."""
        seconds *= PATIENCE
        index = next(i for i, d in enumerate(self.config["dependencies"]) if d["api_name"] == "converse")
        session = secrets.token_hex(6)
        ask = {"lang": "en", "visitor": self.token, "turn": 1} | ask
        body = {
            "data": [],
            "event_data": ask,
            "fn_index": index,
            "trigger_id": self.chat_component,
            "session_hash": session,
        }
        self._checked(self.post("gradio_api/queue/join", json=body))
        state = None
        limit = httpx.Timeout(seconds, connect=SECONDS)
        try:
            with self.http.stream(
                "GET", "gradio_api/queue/data", params={"session_hash": session}, timeout=limit
            ) as stream:
                last = time.monotonic()
                for line in stream.iter_lines():
                    if not line.startswith("data:"):
                        continue
                    message = json.loads(line[5:])
                    # the server tells every moment that it is still there
                    if time.monotonic() - last > seconds:
                        raise Hung(f"chat: nothing new in {seconds} s")
                    if message["msg"] == "process_generating" and message["success"]:
                        before, state = state, self._joined(state, message["output"]["data"][0])
                        last = last if state == before else time.monotonic()
                        yield copy.deepcopy(state)
                    elif message["msg"] == "process_completed":
                        if not message["success"]:
                            raise Unreachable(f"chat ended by the server: {message['output']}")
                        return
        except httpx.TimeoutException as error:
            raise Hung(f"chat: nothing in {seconds} s") from error
        except httpx.HTTPError as error:
            raise Unreachable(f"chat: {type(error).__name__}: {error}") from error

    @staticmethod
    def _joined(state: dict | None, sent: object) -> dict:
        """Gradio sends the first state whole and of later ones what has changed."""
        return sent if state is None or isinstance(sent, dict) else apply_diff(state, sent)

    def say(self, run_id: str, words: str, seconds: float = 60, **options) -> dict:
        """The last state of an answer."""
        ask = {
            "id": run_id,
            "messages": [{"role": "user", "content": words}],
            "max_tokens": 16,
            "temperature": 0,
            "seed": 0,
        }
        return collections.deque(self.converse(ask | options, seconds), maxlen=1)[0]

    def close(self) -> None:
        self.http.close()
