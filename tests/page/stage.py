"""What the browser tests play with: a scripted runner and chat behind the real page, and a visitor with a
browser.

What a click causes comes a moment later: in the page, in its address, at the server. A test waits for it with
`says`, `address`, `until` or Playwright's `expect`; it asserts nothing of a live page (test_waiting.py).

    SLOW_PAGE=6 python -m pytest tests/page/test_plan.py

runs a test as a poor machine would: the browser's processor is six times slower, and each request and each
answer is held back for a while, so that answers also change their order. A test that doesn't wait fails then.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
import socket
import threading
import time
from pathlib import Path

import anyio
from starlette.middleware import Middleware

from evaluation import host, program
from evaluation.benches.shipped import specs
from evaluation.page.gate import FUNCTION
from evaluation.running import estimate as estimates
from evaluation.running.executor import Workers
from evaluation.running.runner import Refused
from evaluation.spec import Result
from evaluation.store import Store

ROOT = Path(__file__).parents[2]
SHOTS = os.environ.get("SCREENSHOTS")
SECONDS = 180  # a test waits so long for anything: nobody waits longer than it takes
SLOW = float(
    os.environ.get("SLOW_PAGE") or 0
)  # how many times slower the browser computes; 0 leaves all as it is
LATE_SECONDS = 0.6  # a slow page's request is held back up to so long, and its answer again
GPTQ = next(s for s in specs("gates") if s.recipe[0][0] == "gptq")  # 4 bits: the knobs of a first visit


class Script:
    """A runner that says what it is told to say."""

    executor = Workers

    def __init__(self, store):
        self.store = store
        self.reset()

    def reset(self):
        self.store.delete("run-1")
        self.answer = {
            "status": "running",
            "stage": "compress",
            "done": 11,
            "total": 30,
            "seconds_left": 41.0,
            "elapsed": 20.0,
        }
        self.refuse, self.submitted, self.cancelled, self.ended_early, self.work = None, [], [], [], False

    def submit(self, spec, visitor="", again=False, address=""):
        if self.refuse:
            raise Refused("refused", code=self.refuse)
        self.submitted.append(spec)
        self.store.put(Result(key="", spec=spec, status="running", id="run-1"))
        return "run-1"

    def state(self, run_id, visitor=""):
        if run_id != "run-1":
            found = self.store.get_id(run_id)
            return (
                {"status": found.status, "result_id": found.id, "error": found.error}
                if found
                else {"status": "unknown", "result_id": None, "error": {"code": "run_gone"}}
            )
        state = {
            "id": run_id,
            "result_id": None,
            "error": {},
            "place": 0,
            "shared": False,
            "mine": True,
            "alone": True,
        } | self.answer
        record = self.store.get_id(run_id)
        if record and state["status"] == "unknown":
            self.store.delete(run_id)
        elif record and state["error"]:
            self.store.put(dataclasses.replace(record, status=state["status"], error=state["error"]))
        return state

    def cancel(self, run_id, visitor):
        self.cancelled.append(run_id)
        self.answer = {"status": "cancelled", "error": {"code": "cancelled"}}

    def enough(self, run_id, visitor):
        self.ended_early.append(run_id)

    def busy(self):
        return self.work


class Talk:
    """A chat that says what it is told to say."""

    def __init__(self):
        self.stopped = threading.Event()

    def stream(self, result_id, messages, **options):
        self.stopped.clear()
        for i, word in enumerate(["The ", "capital ", "<b>is</b> ", "Paris."]):
            for side in ("original", "compressed"):
                text = "London." if side == "compressed" and i == 3 else word
                parted = 3 if i == 3 and side == "compressed" else None
                yield {
                    "side": side,
                    "text": text,
                    "token": i,
                    "ms": 50.0,
                    "first_ms": 90.0,
                    "done": i == 3,
                    "memory_bytes": 10**8,
                    "tokens_per_second": 20.0,
                    "diverged_at": parted,
                }
            if self.stopped.wait(0.05):
                return

    def stop(self, owner):
        self.stopped.set()


class Late:
    """Before a server: each request and each answer waits for a while of its own, drawn from a fixed seed."""

    def __init__(self, app):
        self.app, self.drawn = app, random.Random(0)

    async def __call__(self, scope, receive, send):
        async def late(message):
            if message["type"] == "http.response.start":
                await self._wait()
            await send(message)

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        await self._wait()
        await self.app(scope, receive, late)

    async def _wait(self):
        await anyio.sleep(self.drawn.uniform(0, LATE_SECONDS))


def slowed(page):
    """The page, of a slow browser where SLOW_PAGE asks for it, and patient."""
    page.set_default_timeout(1000 * SECONDS)
    if SLOW:
        line = page.context.new_cdp_session(page)
        line.send("Emulation.setCPUThrottlingRate", {"rate": SLOW})
    return page


class Server:
    """The page over a scripted runner, on a free port."""

    def __init__(self, home, **options):
        import app

        self.store = Store(home, **{k: v for k, v in options.items() if k == "shipped"})
        self.runner, self.chat = Script(self.store), Talk()
        self.estimate = estimates.estimate
        self.demo = app.build_app(
            self.store,
            self.runner,
            self.chat,
            lambda spec: self.estimate(spec),
            estimates.path,
            options.get("public", False),
        )
        port = free_port()
        launch = app.launch_options(self.demo, options.get("public", False))
        if SLOW:
            launch["app_kwargs"]["middleware"].insert(0, Middleware(Late))
        self.demo.launch(server_port=port, prevent_thread_lock=True, quiet=True, **launch)
        self.url = f"http://127.0.0.1:{port}/"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Visitor:
    """A browser window with nothing remembered; errors of the page's scripts fail the test."""

    def __init__(self, browser, server):
        self.browser, self.server, self.contexts, self.errors = browser, server, [], []

    def open(self, query="", *, width=1440, height=900, dark=False, language="en", drawn=True, server=None):
        context = self.browser.new_context(
            viewport={"width": width, "height": height},
            locale=language,
            color_scheme="dark" if dark else "light",
        )
        self.contexts.append(context)
        page = slowed(context.new_page())
        page.on("pageerror", lambda e: self.errors.append(str(e)))
        page.goto((server or self.server).url + query)
        page.wait_for_selector(
            "#controls .estimate :is(.size, .more, .error)", state="visible" if drawn else "attached"
        )
        if drawn:
            page.wait_for_selector("#front .plot[data-drawn]")
            page.wait_for_selector("#card .facts, #card .error, #card .quiet")
        return page


def shot(page, name):
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(300)
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def text(page, selector):
    return page.locator(selector).first.inner_text().replace("\u00a0", " ")


def until(page, holds, seconds=SECONDS):
    """Wait until holds() is true of the page, or of the server behind it."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s"
        page.wait_for_timeout(20)  # the page goes on meanwhile; time.sleep would stop its requests


def becomes(page, found, expected, seconds=SECONDS):
    """Wait until found() is as expected."""
    end = time.monotonic() + seconds
    while found() != expected and time.monotonic() < end:
        page.wait_for_timeout(20)
    assert found() == expected


def says(page, selector, *words, but=()):
    """Wait until the first such element says all these words, and none of `but`."""
    from playwright.sync_api import expect

    place = expect(page.locator(selector).first)
    for said in words:
        place.to_contain_text(said, use_inner_text=True)
    for said in but:
        place.not_to_contain_text(said, use_inner_text=True)


def address(page, *parts, but=()):
    """Wait until the page's address holds these parts, and none of `but`."""
    page.wait_for_function(
        """([parts, but]) => parts.every(part => location.search.includes(part))
          && !but.some(part => location.search.includes(part))""",
        arg=[list(parts), list(but)],
    )


class Held:
    """The answers of one question, held back until `release`; the other questions go on."""

    def __init__(self, page, question):
        self.page, self.name, self.routes, self.held = page, f'"ask_{question}"', [], True
        page.route(re.compile(FUNCTION), self._meet)

    def _meet(self, route):
        if self.held and self.name in (route.request.post_data or ""):
            self.routes.append(route)
        else:
            route.continue_()

    def wait(self, count=1):
        """Wait until so many have been asked."""
        until(self.page, lambda: len(self.routes) >= count)

    def release(self):
        """Let them go, the newest first."""
        self.held = False
        for route in reversed(self.routes):
            route.fulfill(response=route.fetch())


def no_sideways_scroll(page):
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")


def store_run(server, **changes):
    """A run of one's own in the store, made from a shipped one; an artifact unless told otherwise."""
    shipped = next(r for r in server.store.shipped() if r.spec == changes.get("like", GPTQ))
    environment = {"processor": host.processor(), "threads": host.threads()}
    fields = {k: v for k, v in changes.items() if k not in ("like", "metrics", "artifact")}
    metrics = shipped.metrics | changes.get("metrics", {})
    name = changes.get("artifact", f"artifact-{fields['id']}")
    result = dataclasses.replace(
        shipped,
        **{"environment": environment, "metrics": metrics, "artifact": name, "code": program.code()} | fields,
    )
    if name:
        folder = server.store.artifact_folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "compression.json").write_text("{}")
    return server.store.put(result)
