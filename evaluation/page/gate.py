"""Stands before the web server, and decides who may ask, for which paths, how much and how often.

    gate = Gate(server, Rules(functions={(3, "ask_front")}, event=0, files=("/data/downloads/",),
                              hosts=frozenset({"localhost"})))

Plain ASGI, no framework. A request is checked in this order: its host and the site that it comes from, its
path, the share of its address, its size and shape. A path that the page doesn't use is answered by 404. A
body that isn't the page's own is answered by 400 and never reaches the server, so that nobody can make the
server fail.
"""

from __future__ import annotations

import collections
import ipaddress
import json
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

import anyio
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

BODY_BYTES = 300_000  # a chat of the allowed length, with every character escaped
BODY_SECONDS = 20  # within which a body must arrive
DEPTH = 16  # how deep lists and objects in a body may be nested
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
API = "/gradio_api"
EXACT = frozenset(
    {
        "/",
        "/config",
        "/favicon.ico",
        "/theme.css",
        "/robots.txt",
        "/learn",
        f"{API}/startup-events",
        f"{API}/app_id",
    }
)
STREAM = f"{API}/queue/data"
STATIC = ("/assets/", "/static/", "/learn/")
FILE = f"{API}/file="
FUNCTION, JOIN = f"{API}/component_server", f"{API}/queue/join"
LEARN = "/learn"  # the folder of Learn; its questions go to LEARN/ask
ASK = f"{LEARN}/ask"

BURST, PER_SECOND = 400.0, 25.0  # an address may spend the first at once; the second is added every second
PRICES = {
    "/": 1.0,
    "/config": 3.0,
    "ask_poll": 1.0,
    "ask_pack": 20.0,
    "ask_begin": 10.0,
    "class_open": 40.0,
    "class_look": 0.5,
    "class_guess": 1.0,
    JOIN: 15.0,
}  # price of a function, by what it costs the server
USUAL = 3.0  # price of any other function; files are free
AT_ONCE = 12  # functions that may run at once for one address; the server has 40 threads
STREAMS = 100  # streams that one address may have open
ADDRESSES = 10_000  # addresses that are remembered

log = logging.getLogger(__name__)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict]]
Send = Callable[[dict], Awaitable[None]]


@dataclass(frozen=True)
class Rules:
    """What a page lets through.

    functions: (component, name) of each server function. event: the number of the one queued event, None if
    there is none. files: what the path of a served file may begin with. hosts: names that the page may be
    asked under, beside this machine's own. frames: sites that may show the page in a frame.

    public: True on a Space. There a proxy says who asks, and every address has a share. Elsewhere visitors on
    this machine have no limit, and others have a share.
    """

    functions: frozenset[tuple[int, str]]
    event: int | None
    files: tuple[str, ...]
    hosts: frozenset[str] = frozenset()
    public: bool = False
    frames: tuple[str, ...] = ()


class Refusal(Exception):
    """An answer that ends a request: its status and a sentence."""

    def __init__(self, status: int, words: str):
        super().__init__(words)
        self.status = status


_SESSION = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]{1,64}$")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Function(_Body):
    """The call of a server function. `data` is the question, which evaluation/page/requests.py reads."""

    data: Any = None
    component_id: int
    fn_name: str
    session_hash: _SESSION


class _Join(_Body):
    """A queued event; `event_data` is the question."""

    data: list[None] = []
    event_data: Any = None
    fn_index: int
    trigger_id: int | None = None
    session_hash: _SESSION


class _Asked(_Body):
    """A question of Learn, by its name; evaluation/page/requests.py reads `ask`."""

    question: Annotated[str, StringConstraints(pattern=r"^class_[a-z]{1,20}$")]
    ask: dict[str, Any]


BODIES: dict[str, type[_Body]] = {FUNCTION: _Function, JOIN: _Join, ASK: _Asked}


class Gate:
    """The middleware."""

    def __init__(self, app: Callable, rules: Rules):
        self.app, self.rules = app, rules
        self._shares: collections.OrderedDict[str, _Share] = collections.OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        try:
            headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
            self._check_origin(scope["method"], headers)
            path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/") or "/"
            self._check_path(scope, path)
            address = self._address(scope, headers)
            scope = scope | {"client": (address, 0)}
            share = self._share(address)
            price, kind = PRICES.get(path, 0.0), ""
            if scope["method"] == "POST":
                price, receive = await self._body(path, headers, receive)
                kind = "functions"
            elif path == STREAM:
                kind = "streams"
            with share.taking(price, kind):
                await self._forward(scope, receive, send)
        except Refusal as refusal:
            await _say(send, refusal.status, str(refusal))

    # --- who ---

    def _check_origin(self, method: str, headers: Mapping[str, str]) -> None:
        """Refuse requests that another site makes a visitor's browser send.

        The other site may even use a name of its own for this machine.
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        site = "" if origin is None else origin.partition("://")[2].lower()
        own = _name(site) in self.rules.hosts - LOOPBACK  # whatever a proxy changed in the host's name
        known = _name(host) in self.rules.hosts | LOOPBACK
        # monitors of a Space ask by address; another name gains nothing, since it may only look
        if self.rules.public:
            known = known or own or method in ("GET", "HEAD") or _ip(_name(host)) is not None
        if not known:
            raise Refusal(
                403,
                f"this page isn't served under the name {host[:100]!r}; to allow it, put it into "
                "COMPRESSION_EXPLORER_HOSTS",
            )
        if origin is not None and site != host.lower() and not own:
            raise Refusal(403, f"requests from {origin[:100]!r} are not taken; open the page itself")
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            raise Refusal(403, "requests from another site are not taken; open the page itself")

    def _address(self, scope: Scope, headers: Mapping[str, str]) -> str:
        """The visitor's network: an address, or the first half of an IPv6 address.

        On a Space it is the last address that the proxies wrote and that isn't a proxy's own. Addresses
        before it are only the visitor's claim.
        """
        peer = (scope.get("client") or ("",))[0]
        said = headers.get("x-forwarded-for", "").split(",") if self.rules.public else []
        found = next((a for text in reversed(said) if (a := _ip(text)) and a.is_global), _ip(peer))
        if found is None:
            return peer
        return (
            str(ipaddress.ip_network((found, 64), strict=False))
            if found.version == 6 and not found.is_loopback
            else str(found)
        )

    def _share(self, address: str) -> _Share:
        found = _ip(address)
        if not self.rules.public and (found.is_loopback if found else "/" not in address):
            return _Share(float("inf"))  # this machine's own user
        share = self._shares.setdefault(address, _Share())
        self._shares.move_to_end(address)
        if len(self._shares) > ADDRESSES:
            self._shares.popitem(last=False)
        return share

    # --- what ---

    def _check_path(self, scope: Scope, path: str) -> None:
        posts = path in BODIES
        file = path.startswith(tuple(FILE + f for f in self.rules.files)) and ".." not in path
        gets = path in EXACT or path == STREAM or path.startswith(STATIC) or file
        if not posts and not gets:
            raise Refusal(404, "there is nothing here")
        if scope["method"] not in (("POST",) if posts else ("GET", "HEAD")):
            raise Refusal(405, f"{scope['method'][:20]} is not possible here")
        if len(scope["query_string"]) > 10_000 or len(path) > 2_000 or "\x00" in path:
            raise Refusal(414, "the address is too long")

    async def _body(self, path: str, headers: Mapping[str, str], receive: Receive) -> tuple[float, Receive]:
        """The price of a request, and its body unchanged, once it is known to be one of the page's."""
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "a question is JSON (content-type: application/json)")
        raw = await _read(headers, receive)
        try:
            body = json.loads(raw.decode("utf-8"))
            if _deeper(body, DEPTH):
                raise ValueError("nested too deep")
            taken = BODIES[path].model_validate(body)
        except ValidationError as error:
            raise Refusal(
                400, f"this is no question of the page: {error.errors(include_url=False)[0]['msg']}"
            ) from None
        except (ValueError, RecursionError) as error:
            raise Refusal(400, f"this is no question of the page: {str(error)[:100]}") from None
        if isinstance(taken, _Function) and (taken.component_id, taken.fn_name) not in self.rules.functions:
            raise Refusal(404, "the page has no such function")
        if isinstance(taken, _Join) and taken.fn_index != self.rules.event:
            raise Refusal(404, "the page has no such event")
        name = {_Function: "fn_name", _Asked: "question"}.get(type(taken))
        price = PRICES.get(getattr(taken, name), USUAL) if name else PRICES[JOIN]
        sent = False

        async def again() -> dict:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": raw, "more_body": False}

        return price, again

    # --- the answer ---

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on. A server's exception becomes one line in the log and an answer in words."""
        started = False

        async def send_on(message: dict) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = message | {"headers": [*message.get("headers", []), *self._headers()]}
            await send(message)

        try:
            await self.app(scope, receive, send_on)
        except Exception as error:
            while inner := getattr(error, "exceptions", ()):  # an exception group
                error = inner[0]
            place = (traceback.extract_tb(error.__traceback__) or [None])[-1]
            log.error(
                "%s %s: %s: %.200s (%s)",
                scope["method"],
                scope["path"][:100],
                type(error).__name__,
                error,
                place,
            )
            if started:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await _say(send, 500, "something went wrong in the server; the log has a line about it")

    def _headers(self) -> list[tuple[bytes, bytes]]:
        frames = " ".join(("frame-ancestors 'self'", *self.rules.frames))
        return [
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"same-origin"),
            (b"content-security-policy", frames.encode()),
        ]


class _Share:
    """What one address may still spend."""

    def __init__(self, left: float = BURST):
        self.left, self.seen = left, time.monotonic()
        self.open: collections.Counter[str] = collections.Counter()

    def taking(self, price: float, kind: str) -> _Taking:
        now = time.monotonic()
        self.left = max(self.left, min(BURST, self.left + PER_SECOND * (now - self.seen)))
        self.seen = now
        if self.left < price:
            raise Refusal(429, "too many requests from your network; wait a moment")
        most = {"functions": AT_ONCE, "streams": STREAMS}.get(kind)
        if most is not None and self.open[kind] >= most and self.left != float("inf"):
            raise Refusal(429, "too many requests from your network at once; wait a moment")
        self.left -= price
        return _Taking(self.open, kind)


@dataclass
class _Taking:
    """One of the requests that an address has open."""

    open: collections.Counter
    kind: str

    def __enter__(self) -> None:
        self.open[self.kind] += 1

    def __exit__(self, *_) -> None:
        self.open[self.kind] -= 1


def hostnames(text: str) -> frozenset[str]:
    """The names in a list with commas; ports and brackets are left out.

    "tea.local, 192.168.1.5:7860" -> {"tea.local", "192.168.1.5"}.
    """
    return frozenset(filter(None, (_name(part.strip()) for part in text.split(","))))


def _name(host: str) -> str:
    """A host's name without its port, in small letters: "[::1]:7860" -> "::1"."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a text names, e.g. "8.8.8.8", "[2a00::1]:443", "::ffff:8.8.8.8"; None without one.

    A server that listens on IPv6 sees IPv4's visitors by such mapped addresses; all lie in one network.
    """
    for form in (text.strip().strip("[]"), _name(text.strip())):
        try:
            found = ipaddress.ip_address(form)
        except ValueError:
            continue
        return getattr(found, "ipv4_mapped", None) or found
    return None


async def _read(headers: Mapping[str, str], receive: Receive) -> bytes:
    """A request's body; its size and the time that it takes are limited."""
    too_large = Refusal(413, f"a question has at most {BODY_BYTES:,} bytes")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 9 or int(length) > BODY_BYTES:
        raise too_large
    parts, size = [], 0
    try:
        with anyio.fail_after(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "the connection closed before the question was whole")
                parts.append(message.get("body", b""))
                if (size := size + len(parts[-1])) > BODY_BYTES:
                    raise too_large
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise Refusal(408, "the question took too long to arrive") from None


def _deeper(value: Any, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (depth == 0 and bool(inner)) or any(_deeper(x, depth - 1) for x in inner)


async def _say(send: Send, status: int, words: str) -> None:
    body = json.dumps({"error": words, "detail": words}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-content-type-options", b"nosniff"),
    ]
    if status == 429:
        headers.append((b"retry-after", b"5"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
