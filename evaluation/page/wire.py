"""Sends answers compressed, and not at all if the browser has them already.

`Wire` is ASGI middleware that knows nothing of the page. Text (pages, JSON, scripts, styles, drawings) of a
kilobyte or more goes out in brotli, or in gzip if the browser can't read brotli. Event streams and files in
pieces pass unchanged. The answer to a GET has an ETag, so that a browser that has it already gets 304.
Browsers keep a file for a year if a version is part of its name.
"""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections import OrderedDict
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import brotli
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders

TEXT = frozenset(
    {
        "text/html",
        "text/css",
        "text/javascript",
        "application/javascript",
        "application/json",
        "image/svg+xml",
    }
)
# bytes of a body: the smallest that is worth compressing, and the largest that is held in memory for it
SMALLEST, LARGEST = 1_024, 16_000_000
LONG = 100_000
KEPT = 64  # compressed bodies that are kept
QUALITY = 5  # brotli's quality: it compresses the page in 10 ms
FOR_EVER = "public, max-age=31536000, immutable"


class Wire:
    """The middleware around an app."""

    def __init__(self, app):
        self.app = app
        # (hash of the body, encoding) -> the compressed body
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._lock = threading.Lock()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        await self.app(scope, receive, _Answer(self, scope, send).take)

    def compressed(self, body: bytes, digest: str, encoding: str) -> bytes:
        """The body in an encoding; the newest compressed bodies are kept."""
        key = (digest, encoding)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = (
            brotli.compress(body, quality=QUALITY) if encoding == "br" else gzip.compress(body, 6, mtime=0)
        )
        with self._lock:
            self._kept[key] = found
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found


class _Answer:
    """One answer on its way out. It is held until its body is complete, unless it passes unchanged."""

    def __init__(self, wire: Wire, scope, send):
        self.wire, self.scope, self.send = wire, scope, send
        self.start: Any = None
        self.parts: list[bytes] = []

    async def take(self, message) -> None:
        """Take one message of the app; called for one after the other."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            if self.scope["method"] == "GET" and message["status"] == 200:
                headers.setdefault("Cache-Control", FOR_EVER if _versioned(self.scope) else "no-cache")
            kind = headers.get("content-type", "").partition(";")[0]
            whole = message["status"] == 200 and self.scope["method"] in ("GET", "POST") and kind in TEXT
            if (
                whole
                and "content-encoding" not in headers
                and int(headers.get("content-length", 0)) <= LARGEST
            ):
                self.start = message
            else:
                await self.send(message)
        elif self.start is None:
            await self.send(message)
        else:
            self.parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                await self._finish(b"".join(self.parts))

    async def _finish(self, body: bytes) -> None:
        asked, headers = Headers(scope=self.scope), MutableHeaders(raw=self.start["headers"])
        digest = hashlib.blake2b(body, digest_size=16).hexdigest()
        if self.scope["method"] == "GET":
            headers["ETag"] = tag = f'W/"{digest}"'
            if tag in (t.strip() for t in asked.get("if-none-match", "").split(",")):
                for name in ("content-length", "content-type", "accept-ranges"):
                    del headers[name]
                self.start["status"], body = 304, b""
        encoding = _encoding(asked.get("accept-encoding", ""))
        if len(body) >= SMALLEST:
            headers.add_vary_header("Accept-Encoding")
            if encoding:
                work = partial(self.wire.compressed, body, digest, encoding)
                # compressed in a thread if it is long, so that nobody else waits
                body = await run_in_threadpool(work) if len(body) >= LONG else work()
                headers["Content-Encoding"], headers["Content-Length"] = encoding, str(len(body))
                del headers["accept-ranges"]
        await self.send(self.start)
        await self.send({"type": "http.response.body", "body": body})


def _encoding(accepted: str) -> str:
    """The best encoding that a browser accepts; "" if it accepts none of ours."""
    names = {
        name.strip()
        for name, _, weight in (part.partition(";") for part in accepted.lower().split(","))
        if weight.strip() != "q=0"
    }
    return next((known for known in ("br", "gzip") if known in names), "")


def _versioned(scope) -> bool:
    """Whether the path changes with the content.

    Such paths are Gradio's files with a hash in their name, and scripts and styles with ?v=.
    """
    path = scope["path"]
    named = path.endswith((".js", ".css")) and "v" in parse_qs(scope["query_string"].decode("latin-1"))
    return named or path.removeprefix(scope.get("root_path", "")).startswith("/assets/")
