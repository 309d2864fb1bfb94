"""What stands before the server, over the real app in this process: no route but the page's, no body but its
own, no stranger."""

from __future__ import annotations

import json
import re

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

import app
from evaluation.page import gate
from evaluation.page.gate import API, BURST, FILE, FUNCTION, JOIN, Gate, Rules, hostnames
from evaluation.running import estimate
from evaluation.store import Store
from tests.page.stage import Script, Talk, free_port

LOCAL = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("home"))
    demo = app.build_app(store, Script(store), Talk(), estimate.estimate, estimate.path)
    demo.launch(server_port=free_port(), prevent_thread_lock=True, quiet=True, **app.launch_options(demo))
    yield demo
    demo.close()


@pytest.fixture(scope="module")
def client(demo):
    return TestClient(demo.app, base_url=LOCAL, raise_server_exceptions=False)


async def fine(scope, receive, send):
    await PlainTextResponse("fine")(scope, receive, send)


def alone(demo, public=False, server=fine, **options):
    """The gate with the page's rules, before a server that takes anything."""
    rules = app.launch_options(demo, public)["app_kwargs"]["middleware"][0].kwargs["rules"]
    return TestClient(Gate(server, rules), base_url=LOCAL, raise_server_exceptions=False, **options)


@pytest.fixture(scope="module")
def call(demo):
    """The body of a call of a server function."""
    place = {f.__name__: i for i, block in demo.blocks.items() for f in getattr(block, "server_fns", ())}

    def ask(name, data=None):
        return {
            "data": data or {},
            "component_id": place.get(name, 1),
            "fn_name": name,
            "session_hash": "abc",
        }

    return lambda name, data=None, **over: ask(name, data) | over


def test_the_pages_own_requests_pass(client, call, demo):
    assert (
        client.get("/").status_code
        == client.head("/").status_code
        == client.get("/theme.css").status_code
        == 200
    )
    assert client.get("/").headers["x-content-type-options"] == "nosniff"
    assert re.search(r'src="\./(assets/[^"]+\.js)"', client.get("/").text)
    answer = client.post(
        FUNCTION + "/",
        json=call("ask_runs", {"lang": "en"}),
        headers={"origin": LOCAL, "sec-fetch-site": "same-origin"},
    )
    assert answer.status_code == 200 and "<table" in answer.json()["html"]


@pytest.mark.parametrize(
    "path",
    [
        "/openapi.json",
        "/docs",
        "/redoc",
        "/monitoring",
        "/monitoring/summary",
        "/mcp",
        "/login",
        "/manifest.json",
        "/svelte/x",
        "/static/../etc/passwd",
        *(
            API + p
            for p in (
                "/dev/reload",
                "/info",
                "/openapi.json",
                "/runs",
                "/upload",
                "/upload_progress?upload_id=1",
                "/heartbeat/abc",
                "/queue/status",
                "/proxy=http://a",
                "/file=/etc/passwd",
                "/file/etc/passwd",
                "/stream/a/b/c/playlist.m3u8",
                "/custom_component/a/b/c/d",
                "/user",
                "/token",
                "/call/converse/1",
                "/startup-eventsx",
                "//queue/data",
                "/file=http://a.example/x",
            )
        ),
    ],
)
def test_what_the_page_does_not_use_is_not_there(client, path):
    assert client.get(path).status_code in (403, 404)
    assert client.post(path, json={}).status_code in (404, 405)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/" + p
            for p in (
                "call/converse",
                "run/converse",
                "api/predict",
                "cancel",
                "reset",
                "upload",
                "process_recording",
                "vibe-edit",
            )
        )
    ],
)
def test_other_ways_to_call_are_closed(client, path):
    assert client.post(API + path, json={"data": []}).status_code == 404


def test_a_store_is_not_served(client, demo):
    (record := f"{demo.served[0]}../runs/x.json")
    assert client.get(FILE + record).status_code in (403, 404) and client.get(
        FILE + record.replace("..", "%2e%2e")
    ).status_code in (403, 404)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'"x"',
        b"\xff\xfe",
        "{}".encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' * 5_000,
        b'{"data":' + b"9" * 5_000 + b"}",
        b'{"data": NaN}',
        b"{" + b'"a":1,' * 20_000 + b'"b":1}',
    ],
    ids=lambda raw: str(raw[:12]),
)
@pytest.mark.parametrize("path", [FUNCTION, JOIN])
def test_what_is_no_question_is_refused_in_words(client, path, raw):
    answer = client.post(path, content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and "no question" in answer.json()["error"]


@pytest.mark.parametrize(
    "over, status",
    [
        ({"component_id": "1"}, 400),
        ({"component_id": True}, 400),
        ({"component_id": 10**30}, 404),
        ({"component_id": None}, 400),
        ({"fn_name": "postprocess"}, 404),
        ({"fn_name": "__class__"}, 404),
        ({"fn_name": ["ask_runs"]}, 400),
        ({"session_hash": 3}, 400),
        ({"session_hash": "x" * 99}, 400),
        ({"more": 1}, 400),
        ({"data": {"a": [[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}}, 400),
        ({"data": 5}, 200),
        ({"data": {"lang": "\ud800"}}, 200),
        ({"data": {"x": 1e308}}, 200),
    ],
)
def test_only_the_declared_functions_are_reachable(client, call, over, status):
    body = json.dumps(call("ask_runs", **over))
    answer = client.post(FUNCTION, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status and answer.json()["error"]


def test_a_queued_event_is_the_chat_alone(client, demo):
    ask = {
        "data": [],
        "event_data": None,
        "fn_index": next(iter(demo.fns)),
        "trigger_id": 1,
        "session_hash": "abc",
    }
    for wrong in (
        {"fn_index": 99},
        {"fn_index": "0"},
        {"data": [1]},
        {"data": {}},
        {"session_hash": None},
        {"oauth_token": "x"},
        {"batched": True},
    ):
        assert client.post(JOIN, json=ask | wrong).status_code in (400, 404)


def test_a_large_or_foreign_body_is_not_read(client, call):
    assert (
        client.post(
            FUNCTION, content=b"x" * 400_000, headers={"content-type": "application/json"}
        ).status_code
        == 413
    )
    assert (
        client.post(
            FUNCTION, content=(b"x" * 100_000 for _ in range(5)), headers={"content-type": "application/json"}
        ).status_code
        == 413
    )
    for kind in ("text/plain", "multipart/form-data; boundary=a", "application/x-www-form-urlencoded", ""):
        assert (
            client.post(
                FUNCTION, content=json.dumps(call("ask_runs")), headers={"content-type": kind}
            ).status_code
            == 415
        )


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),
        ({"host": "localhost:1"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "LOCALHOST"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "192.168.1.5:7860"}, 403),
        ({"host": ""}, 403),
        ({"host": "[::1"}, 403),
        ({"host": "localhost@evil.example"}, 403),
        ({"origin": LOCAL}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:3000"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "http://127.0.0.1:7860.evil.example"}, 403),
        ({"origin": "http://["}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}, 200),
    ],
    ids=str,
)
def test_other_sites_are_refused_on_the_local_app(client, call, headers, status):
    assert client.post(FUNCTION, json=call("ask_runs"), headers=headers).status_code == status
    for path in ("/", gate.STREAM + "?session_hash=a"):  # what streams is asked as strictly
        assert status == 200 or client.get(path, headers=headers).status_code == 403


def test_a_link_from_another_site_opens_the_page(client):
    assert (
        client.get("/", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}).status_code
        == 200
    )


def test_more_hosts_can_be_given(demo, call, monkeypatch):
    monkeypatch.setenv("COMPRESSION_EXPLORER_HOSTS", "class.local, 192.168.1.5:7860, 127.0.0.1")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    client = alone(demo)
    for host in ("192.168.1.5:7860", "class.local", "localhost"):
        assert (
            client.post(
                FUNCTION, json=call("ask_runs"), headers={"host": host, "origin": f"http://{host}"}
            ).status_code
            == 200
        )
    assert client.post(FUNCTION, json=call("ask_runs"), headers={"host": "192.168.1.6"}).status_code == 403
    assert (
        client.post(FUNCTION, json=call("ask_runs"), headers={"origin": "http://127.0.0.1:3000"}).status_code
        == 403
    ), "another program's page"
    assert hostnames(" a.b:1, ,[::2]:80,c") == {"a.b", "::2", "c"}


def test_a_space_is_asked_under_its_own_name(demo, call, monkeypatch):
    monkeypatch.setenv("SPACE_HOST", "owner-name.hf.space")
    client = alone(demo, public=True)

    def ask(**headers):
        return client.post(FUNCTION, json=call("ask_runs"), headers=headers).status_code

    assert ask(host="owner-name.hf.space", origin="https://owner-name.hf.space") == 200
    assert ask(host="10.20.30.40:7860", origin="https://owner-name.hf.space") == 200, (
        "by address, as proxies do"
    )
    assert ask(host="inside.a.proxy", origin="https://owner-name.hf.space") == 200, (
        "a proxy may call the server as it likes"
    )
    assert ask(host="owner-name.hf.space", origin="https://evil.hf.space") == ask(host="evil.example") == 403
    shown = client.get("/", headers={"host": "anything.example"})
    assert shown.status_code == 200 and "https://huggingface.co" in shown.headers["content-security-policy"]


def test_each_address_of_a_space_has_its_share(demo, call, monkeypatch):
    monkeypatch.setattr(gate, "PER_SECOND", 0.0)
    client = alone(demo, public=True, client=("10.0.0.1", 1))

    def ask(seen):
        return client.post(
            FUNCTION, json=call("ask_poll", {"id": "a"}), headers={"x-forwarded-for": seen}
        ).status_code

    given = [
        ask(f"{n % 200}.9.9.9, 203.1.1.1, 10.0.0.7") for n in range(int(BURST) + 1)
    ]  # what stands before the proxy's own is a claim
    assert given == [200] * int(BURST) + [429]
    assert ask("203.1.1.1") == 429 and ask("9.9.9.9") == 200, "another visitor goes on"
    assert client.get("/", headers={"x-forwarded-for": "9.9.9.9"}).status_code == 200


def test_addresses_are_networks():
    it = Gate(None, Rules(frozenset(), None, (), public=True))

    def found(said, peer="10.1.2.3"):
        return it._address({"client": (peer, 1)}, {"x-forwarded-for": said} if said else {})

    assert (
        found("1.1.1.1, 8.8.8.8") == found("nonsense, 8.8.8.8, 10.0.0.2, ") == "8.8.8.8"
        and found("") == found("10.0.0.9, x") == "10.1.2.3"
    )
    assert (
        found("2a00:1:2:3::4") == found("2a00:1:2:3:ffff::9") == "2a00:1:2:3::/64"
        and found("", "::1") == "::1"
    )
    assert found("1.1.1.1, ::ffff:8.8.8.8") == found("1.1.1.1, 8.8.8.8:443") == found("", "::ffff:8.8.8.8")
    assert found("::ffff:8.8.8.8") == "8.8.8.8" and found("[2a00:1:2:3::4]:443") == "2a00:1:2:3::/64"
    own = Gate(None, Rules(frozenset(), None, ()))
    assert own._share(own._address({"client": ("::ffff:127.0.0.1", 1)}, {})).left == float("inf")
    assert own._address({"client": ("192.168.1.9", 1)}, {"x-forwarded-for": "8.8.8.8"}) == "192.168.1.9", (
        "only a Space has a proxy"
    )


def test_a_failing_server_is_a_line_in_the_log(demo, caplog):
    async def broken(scope, receive, send):
        raise KeyError("secret")

    async def half(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("inner")

    answer = alone(demo, server=broken).get("/")
    assert (
        answer.status_code == 500
        and "secret" not in answer.text
        and "Traceback" not in caplog.text
        and "KeyError" in caplog.text
    )
    assert alone(demo, server=half).get("/").status_code == 200 and "inner" in caplog.text


def test_a_hundred_streams_of_one_address_leave_room_for_others():
    share = gate._Share()
    open_ones = [share.taking(0, "streams") for _ in range(gate.STREAMS)]
    for one in open_ones:
        one.__enter__()
    with pytest.raises(gate.Refusal) as refused:
        share.taking(0, "streams")
    assert refused.value.status == 429
    open_ones[0].__exit__(None, None, None)
    share.taking(0, "streams")


def test_the_gate_hands_the_body_on_as_it_was(demo, call):
    async def echo(scope, receive, send):
        body = (await receive())["body"]
        await PlainTextResponse(body)(scope, receive, send)

    ask = call("ask_poll", {"a": "字"})
    assert json.loads(alone(demo, server=echo).post(FUNCTION, json=ask).text) == ask
