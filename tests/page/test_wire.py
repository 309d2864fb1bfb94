"""What goes over the wire: compressed, not twice, never stale; and what a page that nobody visits takes."""

from __future__ import annotations

import dataclasses
import gzip
import time
from concurrent.futures import ThreadPoolExecutor

import brotli
import pytest
from starlette.applications import Starlette
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import app
from compression.catalogue import OFFLINE_MODEL
from evaluation.page.gate import FUNCTION
from evaluation.page.questions import Page
from evaluation.page.questions.base import KEPT_ANSWERS
from evaluation.page.wire import Wire
from evaluation.running import estimate
from evaluation.store import Store
from tests.page.stage import GPTQ, Script, Talk, free_port

TEXT = "a line of words, and another one; " * 100


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A server of a few answers behind the middleware."""
    file = tmp_path_factory.mktemp("files") / "script.js"
    file.write_text(TEXT)

    async def pieces():
        for i in range(3):
            yield f"data: {TEXT} {i}\n\n"

    answers = {
        "/script.js": lambda r: FileResponse(file),
        "/assets/script-1a2b.js": lambda r: FileResponse(file),
        "/text": lambda r: Response(TEXT, media_type="text/html"),
        "/short": lambda r: JSONResponse({"a": 1}),
        "/events": lambda r: StreamingResponse(pieces(), media_type="text/event-stream"),
        "/picture": lambda r: Response(TEXT.encode(), media_type="image/png"),
        "/packed": lambda r: Response(
            gzip.compress(TEXT.encode()), media_type="text/html", headers={"Content-Encoding": "gzip"}
        ),
        "/failed": lambda r: Response(TEXT, 500, media_type="text/html"),
        "/ask": lambda r: JSONResponse({"text": TEXT}),
    }
    routes = [
        Route(path, answer, methods=["POST"] if path == "/ask" else ["GET", "HEAD"])
        for path, answer in answers.items()
    ]
    return TestClient(Wire(Starlette(routes=routes)))


def raw(client, path, encodings, method="GET", **options):
    """An answer with its body as it travelled."""
    with client.stream(
        method, path, headers={"Accept-Encoding": encodings} | options.pop("headers", {}), **options
    ) as answer:
        return answer, b"".join(answer.iter_raw())


@pytest.mark.parametrize(
    "accepted, encoding, unpack",
    [
        ("gzip, deflate, br", "br", brotli.decompress),
        ("gzip", "gzip", gzip.decompress),
        ("br;q=0, gzip;q=0.5", "gzip", gzip.decompress),
        ("", None, bytes),
        ("identity", None, bytes),
    ],
)
def test_a_text_goes_out_in_what_the_browser_reads(small, accepted, encoding, unpack):
    for path, method in (("/text", "GET"), ("/script.js", "GET"), ("/ask", "POST")):
        for _ in range(2):  # compressed, and from what was kept
            answer, body = raw(small, path, accepted, method)
            assert answer.headers.get("content-encoding") == encoding and TEXT in unpack(body).decode()
            assert (
                int(answer.headers["content-length"]) == len(body)
                and answer.headers["vary"] == "Accept-Encoding"
            )


@pytest.mark.parametrize("path", ["/short", "/events", "/picture", "/packed", "/failed"])
def test_what_gains_nothing_passes_as_it_is(small, path):
    answer, body = raw(small, path, "br, gzip")
    assert answer.headers.get("content-encoding") == ("gzip" if path == "/packed" else None)
    if path == "/events":
        assert body.decode().count("data: ") == 3


def test_a_stream_is_not_held():
    """The first event leaves before the second is made."""
    import anyio

    order = []

    async def events():
        for i in range(2):
            order.append(f"made {i}")
            yield f"data: {i}\n\n"

    async def send(message):
        if message.get("body"):
            order.append(f"sent {message['body'].decode()[6]}")

    async def receive():
        await anyio.sleep_forever()

    server = Wire(StreamingResponse(events(), media_type="text/event-stream"))
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [],
        "asgi": {"spec_version": "2.4"},
    }
    with ThreadPoolExecutor(1) as apart:  # Playwright's own loop runs in this thread, where a browser is open
        apart.submit(anyio.run, server, scope, receive, send).result()
    assert order == ["made 0", "sent 0", "made 1", "sent 1"]


def test_what_the_browser_has_is_not_sent_again(small):
    for path in ("/text", "/script.js", "/short"):
        tag = small.get(path).headers["etag"]
        answer, body = raw(small, path, "br", headers={"If-None-Match": f'"x", {tag}'})
        assert (answer.status_code, body) == (304, b"") and answer.headers["etag"] == tag
        assert small.get(path, headers={"If-None-Match": 'W/"of another text"'}).status_code == 200


def test_browsers_keep_what_has_a_version_and_ask_for_the_rest(small):
    def kept(path):
        return small.get(path).headers.get("cache-control")

    for_ever = "public, max-age=31536000, immutable"
    assert kept("/assets/script-1a2b.js") == kept("/script.js?v=1.2") == for_ever
    assert kept("/script.js") == kept("/text?v=1") == kept("/short") == "no-cache" and kept("/failed") is None
    assert small.head("/text").status_code == 200 and "content-encoding" not in small.head("/text").headers


# --- the page ---


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("home"))
    demo = app.build_app(store, Script(store), Talk(), estimate.estimate, estimate.path)
    demo.launch(server_port=free_port(), prevent_thread_lock=True, quiet=True, **app.launch_options(demo))
    demo.store = store
    yield demo
    demo.close()


@pytest.fixture(scope="module")
def client(place):
    return TestClient(place.app, base_url="http://127.0.0.1:7860")


@pytest.mark.parametrize("accepted", ["br", "gzip"])
def test_the_page_is_under_100_kilobytes(client, accepted):
    for path in ("/", "/config"):
        answer, body = raw(client, path, accepted)
        assert (
            len(body) < 100_000 < len(client.get(path).content)
            and answer.headers["content-encoding"] == accepted
        )
        assert client.get(path, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_what_visitors_load_has_lost_its_comments_and_indentation_alone():
    source = (
        "// why\nconst a = 'http://x'; // kept\n  // gone\n/* two\n   lines */\n  .b {c:  d} /* kept */\n"
    )
    assert app.lean(source) == "const a = 'http://x'; // kept\n.b {c:  d} /* kept */\n"


@pytest.fixture(scope="module")
def ask(place, client):
    """A question as the browser asks it."""
    where = {f.__name__: i for i, block in place.blocks.items() for f in getattr(block, "server_fns", ())}

    def asked(question, **what):
        name = f"ask_{question}"
        answer = client.post(
            FUNCTION, json={"data": what, "component_id": where[name], "fn_name": name, "session_hash": "abc"}
        )
        assert answer.status_code == 200
        return answer.json()

    return asked


def test_a_changed_store_is_seen_at_once(place, ask):
    """A new run, its second record, and its end, in every answer that is kept."""
    shipped = next(r for r in place.store.shipped() if r.spec == GPTQ)
    new = dataclasses.replace(
        shipped, id="new", key="new", created=time.time(), status="running", artifact=""
    )
    protocol = shipped.protocol_id

    def front():
        return ask("front", model=OFFLINE_MODEL, protocol=protocol)["ids"]

    def runs():
        return ask("runs")["html"].count('data-run="new"')

    def card():
        return ask("card", id="new")["status"]

    assert (card(), "new" in front(), runs()) == ("unknown", False, 0)
    assert front() == front() and ask("runs") == ask("runs")
    for status in ("running", "ok", "failed"):
        place.store.put(dataclasses.replace(new, status=status))
        assert (card(), "new" in front(), runs() > 0) == (status, status == "ok", True)
    place.store.delete("new")
    assert (card(), "new" in front(), runs()) == ("unknown", False, 0)


def test_answers_are_kept_apart_by_language_and_request(ask):
    told = {
        (q, lang): ask(q, lang=lang, **what)
        for q, what in (("runs", {}), ("front", {"model": OFFLINE_MODEL}))
        for lang in ("en", "zh-Hant")
    }
    assert (
        told["runs", "en"] != told["runs", "zh-Hant"]
        and told["front", "en"]["headline"] != told["front", "zh-Hant"]["headline"]
    )
    assert ask("front", model=OFFLINE_MODEL, x="perplexity")["x"] != told["front", "en"]["x"]


def test_only_the_newest_answers_are_kept(tmp_path):
    page = Page(Store(tmp_path, shipped=None), None)
    for i in range(3 * KEPT_ANSWERS):
        page._keep(("question", i), lambda: {})
    assert len(page._kept) == KEPT_ANSWERS


def test_an_essay_is_told_when_it_is_asked_for(ask, place):
    assert all("essay" not in method for method in Page(place.store, None).boot()["methods"])
    assert (
        len(ask("essay", method="gptq")["text"]) > 500
        and "捨入" in ask("essay", method="gptq", lang="zh-Hant")["text"]
    )
    assert 'class="error"' in ask("essay", method="nosuch")["error"]


def test_a_page_that_nobody_visits_rests(place):
    """Gradio's queue looks 1,000 times a second, which takes 4 % of a core; with the page's own pause the whole
    server takes less than half of that, side by side on this machine."""
    queue, gradios = place._queue, 0.001

    def work(pause):
        queue.sleep_when_free = queue.progress_update_sleep_when_free = pause
        time.sleep(2 * max(pause, app.LOOK_SECONDS))  # the look that was waited for
        begin = time.process_time()
        time.sleep(2)
        return time.process_time() - begin

    try:
        rounds = [(work(app.LOOK_SECONDS), work(gradios)) for _ in range(2)]
    finally:
        queue.sleep_when_free = queue.progress_update_sleep_when_free = app.LOOK_SECONDS
    assert min(ours for ours, _ in rounds) < 0.5 * max(theirs for _, theirs in rounds)
