"""Other people and other sites: runs of others, foreign Origin and Host, endpoints that the page doesn't use,
files of the server.

Right is: nobody but the owner ends a run or an answer, a visitor's token stands nowhere, a foreign site gets
403, what the page doesn't use is 404, nothing is taken in, and no file of the server is read on a public
page.
"""

from __future__ import annotations

import collections
import json
import secrets
import time

from compression.catalogue import OFFLINE_MODEL
from tests.soak import stage
from tests.soak.campaign import Campaign, record, records
from tests.soak.client import FUNCTIONS, Answered, Client, Hung, Unreachable
from tests.soak.visitors import public_choices

CLOSED = (
    "openapi.json",
    "docs",
    "redoc",
    "monitoring",
    "monitoring/summary",
    "gradio_api/openapi.json",
    "gradio_api/info",
    "gradio_api/info?all_endpoints=true",
    "gradio_api/dev/reload",
    "gradio_api/heartbeat/abc",
    "gradio_api/upload",
    "gradio_api/upload_progress?upload_id=a",
    "gradio_api/queue/status",
    "gradio_api/token",
    "gradio_api/login_check",
    "gradio_api/mcp/",
    "gradio_api/mcp/sse",
    "gradio_api/mcp/schema",
    "gradio_api/vibe-code",
    "gradio_api/vibe-edit",
    "gradio_api/agents",
    "gradio_api/deep_link",
    "login",
    "logout",
    "user",
    "token",
    "robots.txt.bak",
    ".git/config",
    "app.py",
    "requirements.txt",
    "gradio_api/proxy=http://127.0.0.1:1/x",
    "gradio_api/proxy=https://example.hf.space/x",
    "gradio_api/custom_component/x/y/z",
    "gradio_api/process_recording",
    "gradio_api/stream/a/b/c/playlist.m3u8",
)
FILES = (
    "/etc/passwd",
    "/proc/self/environ",
    "{home}/runs/{run}.json",
    "{home}/host.json",
    "{root}/app.py",
    "{root}/.git/config",
    "../../../etc/passwd",
    "{home}/downloads/../runs/{run}.json",
    "{home}/models/{model}/config.json",
    "C:/Windows/win.ini",
    "//etc/passwd",
    "file:///etc/passwd",
    "http://127.0.0.1:1/",
    "{home}/downloads/%2e%2e/runs/{run}.json",
)
FOREIGN = "https://evil.example"
PATHS = (
    "/etc",
    "/etc/passwd",
    "~",
    "~/.ssh",
    ".",
    "..",
    "./x",
    "../x/y",
    "C:\\x",
    "\\\\host\\x",
    "a/b/c",
    "a//b",
    "/",
    "//",
    "a/..",
    "../a",
    "a/b\x00",
    "a/b.git/../..",
    "file:///etc",
    "-a/b",
    "a/-b",
    "a b/c",
    "a/" + "b" * 200,
)


def run(campaign: Campaign) -> None:
    """The local app, then the public one."""
    _local(campaign)
    _public(campaign)


def _local(campaign: Campaign) -> None:
    ledger = campaign.ledger
    with stage.App(campaign.home()) as app:
        client = Client(app.url)
        mine = client.begin(campaign.long_run())["id"]
        stage.within(90, lambda: client.poll(mine)["status"] == "running")
        _others_runs(ledger, app, client, mine)
        _foreign(ledger, campaign, app, client)
        _closed(ledger, app, client, mine)
        ledger.check(
            client.poll(mine)["status"] == "running",
            "the run has ended while strangers were about",
            "stopped",
        )
        start = time.monotonic()
        client.stop(mine)
        try:
            state = client.follow(mine, 10)
            ledger.check(state["status"] == "cancelled", f"the owner's stop gives {state['status']}")
            ledger.figure("seconds from the owner's Stop to the end", round(time.monotonic() - start, 1))
        except Hung as error:
            ledger.count("hung", f"the owner's stop: {error}")
        _secret(ledger, app, client)
        for text in app.tracebacks():
            ledger.found("traceback", text)


def _others_runs(ledger, app: stage.App, client: Client, mine: str) -> None:
    """Every way to name somebody else's run."""
    other = Client(app.url, config=client.config)
    names = [
        {"visitor": v}
        for v in (
            other.token,
            None,
            "",
            "null",
            0,
            True,
            [],
            {},
            mine,
            [client.token],
            secrets.token_hex(16),
            client.token[:-1],
            client.token.upper() + "x",
            "visitor",
            "*",
            "%",
        )
    ]
    for what in [*names, {}]:
        for function in ("ask_stop", "ask_enough"):
            answer = other.send(function, {"lang": "en", "id": mine} | what)
            ledger.check(answer.status_code < 500, f"{function} with {what} gives HTTP {answer.status_code}")
        ledger.check(client.poll(mine)["status"] == "running", f"{what} ended somebody else's run", "stopped")
    seen = other.poll(mine)
    ledger.check(seen["status"] in ("running", "unknown"), f"another visitor sees {seen['status']}")


def _foreign(ledger, campaign: Campaign, app: stage.App, client: Client) -> None:
    """What another site's script could send from the visitor's own browser."""
    before = len(records(app.home))
    body = json.dumps(
        client.envelope(
            "ask_begin", {"lang": "en", "choices": campaign.choices(seed=77), "visitor": client.token}
        )
    ).encode()
    ways = (
        {"origin": FOREIGN, "content-type": "text/plain"},
        {"origin": FOREIGN, "content-type": "application/json"},
        {"origin": "null", "content-type": "text/plain"},
        {"origin": "http://127.0.0.1.evil.example", "content-type": "text/plain"},
        {"origin": f"http://localhost.evil.example:{app.port}", "content-type": "text/plain"},
        {"host": "evil.example", "content-type": "application/json"},
        {"host": f"evil.example:{app.port}", "content-type": "application/json"},
        {"host": "127.0.0.1.nip.io", "content-type": "application/json"},
        {"host": "localhost.evil.example", "content-type": "application/json"},
    )
    for headers in ways:
        answer = client.post(FUNCTIONS, content=body, headers=headers)
        ledger.check(answer.status_code in (400, 403, 421), f"{headers} gets HTTP {answer.status_code}")
    for path in ("", "config"):
        answer = client.get(path, headers={"host": "evil.example"})
        ledger.check(
            answer.status_code in (400, 403, 421),
            f"GET /{path} with a foreign Host gets HTTP {answer.status_code}",
        )
    for host in (f"localhost:{app.port}", f"127.0.0.1:{app.port}", f"[::1]:{app.port}"):
        answer = client.get("config", headers={"host": host})
        ledger.check(
            answer.status_code == 200, f"GET /config with the Host {host} gets HTTP {answer.status_code}"
        )
        answer = client.post(
            FUNCTIONS,
            json=client.envelope("ask_runs", {"lang": "en"}),
            headers={"host": host, "origin": f"http://{host}"},
        )
        ledger.check(
            answer.status_code == 200, f"the page's own Origin on {host} gets HTTP {answer.status_code}"
        )
    time.sleep(0.5)
    ledger.check(len(records(app.home)) == before, "a foreign site began a run")


def _closed(ledger, app: stage.App, client: Client, run_id: str) -> None:
    for path in CLOSED:
        for method in ("GET", "POST"):
            try:
                answer = client._send(method, path, timeout=10)
                ledger.check(
                    answer.status_code in (403, 404, 405), f"{method} /{path} gets HTTP {answer.status_code}"
                )
            except Hung:
                ledger.count("wrong", f"{method} /{path} stays open")
            except Unreachable as error:
                ledger.count("lost", f"{method} /{path}: {error}")
    answer = client.post("gradio_api/upload", files={"files": ("a.bin", b"x" * 1_000_000)})
    ledger.check(answer.status_code in (403, 404, 405, 413), f"an upload gets HTTP {answer.status_code}")
    for pattern in FILES:
        path = pattern.format(home=app.home, root=stage.ROOT, run=run_id, model=OFFLINE_MODEL)
        for before in ("gradio_api/file=", "file=", "static/", "assets/", "gradio_api/file/"):
            answer = client.get(before + path, follow_redirects=False)
            ledger.check(
                answer.status_code in (301, 302, 307, 400, 403, 404, 405),
                f"GET /{before}{path} gets HTTP {answer.status_code}",
            )
    for function in (
        "__init__",
        "process_api",
        "postprocess",
        "ask",
        "get_config",
        "unload",
        "_send",
        "load",
        "server_fns",
        "",
        "ask_front\n",
    ):
        answer = client.post(
            FUNCTIONS, json=client.envelope("ask_runs", {"lang": "en"}) | {"fn_name": function}
        )
        ledger.check(
            400 <= answer.status_code < 500, f"the function {function!r} gets HTTP {answer.status_code}"
        )


def _secret(ledger, app: stage.App, client: Client) -> None:
    """The token stands in no file, no log, no answer."""
    places = [
        str(f.relative_to(app.home))
        for f in app.home.rglob("*")
        if f.is_file() and f.stat().st_size < 10_000_000 and client.token.encode() in f.read_bytes()
    ]
    ledger.check(not places, f"the visitor's token stands in {places}")
    ledger.check(client.token not in app.text(), "the visitor's token stands in the log")
    other = Client(app.url, config=client.config)
    ledger.check(
        client.token not in json.dumps(other.ask("ask_runs")),
        "the visitor's token stands in the table of runs",
    )


def _public(campaign: Campaign) -> None:
    """Files of the server named as models, texts and students."""
    ledger = campaign.ledger
    with stage.App(campaign.home(offline_model=True), public=True) as app:
        for i, path in enumerate(PATHS[: campaign.times(len(PATHS), 8)]):
            client = Client(app.url, address=f"93.184.{100 + i}.1")
            for name, change in {
                "model": {"model": path},
                "text": {"text": path},
                "calibration": {"calibration": path, "recipe": [["gptq", {"bits": 4}]]},
                "student": {"recipe": [["gkd", {"student": path}]]},
            }.items():
                for function in ("ask_begin", "ask_weigh"):
                    _refused(ledger, client, function, name, path, public_choices(**change))
            for function in ("ask_front",):
                answer = client.send(function, {"lang": "en", "model": path})
                ledger.check(
                    answer.status_code < 500, f"{function} of {path!r} gets HTTP {answer.status_code}"
                )
            client.close()
        begun = [
            r
            for r in records(app.home)
            if r.get("status") in ("ok", "running", "queued") or "no such" in str(r.get("error"))
        ]
        ledger.check(not begun, f"a server's path was taken for a run: {begun[:1]}")
        _chat_of_others(campaign, app)
        for text in app.tracebacks():
            ledger.found("traceback", text)


def _refused(ledger, client: Client, function: str, name: str, path: str, choices: dict) -> None:
    what = f"{function} with {name} {path!r}"
    try:
        answer = client.ask(function, choices=choices)
    except (Answered, Hung, Unreachable) as error:
        return ledger.count("hung" if isinstance(error, Hung) else "wrong", f"{what}: {error}")
    words = answer.get("error") or (
        "a hub model of unknown size" if function == "ask_weigh" and not answer.get("path") else ""
    )
    return ledger.judge(bool(words) and "root:" not in str(answer), f"{what} is taken: {str(answer)[:150]}")


def _chat_of_others(campaign: Campaign, app: stage.App) -> None:
    """Stop of a stranger doesn't end an answer."""
    ledger, owner, other = (
        campaign.ledger,
        Client(app.url, address="93.184.4.1"),
        Client(app.url, address="93.184.4.2"),
    )
    answer = owner.begin(public_choices())
    if "id" not in answer or owner.follow(answer["id"], 600)["status"] != "ok":
        return ledger.note("no run to chat with on the public page")
    ask = {
        "id": answer["id"],
        "messages": [{"role": "user", "content": "Tell me of the sea."}],
        "max_tokens": 24,
        "temperature": 0,
        "seed": 0,
    }
    alone = _text(owner, ask)
    if not ledger.check(bool(alone), "the public page's chat gives no words"):
        return None
    texts: list[str] = []
    for state in owner.converse(ask, 120):
        other.send("ask_stop_chat", {"lang": "en", "visitor": other.token})
        other.send("ask_stop_chat", {"lang": "en"})
        texts.append(state["sides"]["compressed"]["text"])
    found = record(app.home, answer["id"])
    return ledger.judge(
        texts[-1] == alone,
        f"a stranger's Stop ended an answer: {texts[-1]!r} for {alone!r} ({found['status']})",
        "stopped",
    )


def _text(client: Client, ask: dict) -> str:
    return collections.deque(client.converse(ask, 120), maxlen=1)[0]["sides"]["compressed"]["text"]
