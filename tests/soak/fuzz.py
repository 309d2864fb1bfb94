"""Every server function under 20,000 requests: valid ones bent in one to three places, arbitrary JSON, raw
bodies.

Right is: an answer below 500 in under ten seconds, JSON where it is a 200, no traceback in the log, and a
server whose memory and descriptors stay where they were.
"""

from __future__ import annotations

import copy
import json
import math
import random
from concurrent.futures import ThreadPoolExecutor

import httpx

from compression.catalogue import OFFLINE_MODEL
from evaluation.store import SHIPPED
from tests.soak import stage
from tests.soak.campaign import Campaign, records
from tests.soak.client import FUNCTIONS, Client, Hung, Unreachable

REQUESTS = 20_000
LANES = 4  # requests at a time, as many as the app answers at a time
GROWTH_BYTES = 150_000_000  # of the app's memory, from after the first tenth to the end
GROWTH_DESCRIPTORS = 30
PLACES = (
    "gradio_api/component_server",
    "gradio_api/component_server/",
    "gradio_api/queue/join",
    "gradio_api/queue/data",
    "gradio_api/call/converse",
    "gradio_api/run/predict",
    "gradio_api/api/predict",
    "gradio_api/cancel",
    "gradio_api/reset",
    "gradio_api/upload",
    "gradio_api/process_recording",
    "config",
    "",
    "gradio_api/file=",
    "theme.css",
    "run/predict",
)


SIZES = {
    "architecture": "llama",
    "layers": 4,
    "hidden": 64,
    "heads": 4,
    "kv_heads": 2,
    "head_size": 16,
    "feed_forward": 128,
    "vocabulary": 1000,
    "tied": True,
}
ODD = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**53,
    2**64,
    -(2**63),
    10**30,
    0.5,
    -0.0,
    1e308,
    5e-324,
    math.nan,
    math.inf,
    -math.inf,
    "",
    " ",
    "a",
    "x" * 5000,
    "\x00",
    "\ud800",
    "\udfff\ud800",
    "İ̶",
    "𝔘𝔫𝔦",
    "\u202e",
    "'; DROP TABLE runs; --",
    "<script>alert(1)</script>",
    "{0.__class__}",
    "%s%n",
    "${7*7}",
    "../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "/proc/self/environ",
    "C:\\Windows",
    "~",
    ".",
    "..",
    "\n\r\n",
    "nan",
    "1e999",
    "en",
    "zh-Hant",
    "gptq",
    "none",
    OFFLINE_MODEL,
    "gpt2",
    "a/b",
    "-a/b",
    "a/..",
    "file:///etc/passwd",
    "http://127.0.0.1:1/",
    "con",
    "builtin",
    "9" * 400,
    "__class__",
    "__proto__",
    "constructor",
)


def odd(chance: random.Random, depth: int = 0):
    """A value that is likely not to be expected."""
    if depth < 3 and chance.random() < 0.25:
        many = chance.choice((0, 1, 2, 3, 3, 40, 2000 if depth == 0 else 5))
        if chance.random() < 0.5:
            one = odd(chance, depth + 1)
            return [one] * many if many > 5 else [odd(chance, depth + 1) for _ in range(many)]
        return {
            str(odd(chance, 3))[:5000] + str(i) * (many > 1): odd(chance, depth + 1)
            for i in range(min(many, 60))
        }
    if depth == 0 and chance.random() < 0.02:
        return json.loads("[" * 200 + "]" * 200)
    return "x" * 200_000 if depth == 0 and chance.random() < 0.02 else chance.choice(ODD)


def places(node, path=()):
    """Paths to everything in a request, the request itself left out."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def bent(chance: random.Random, request: dict) -> dict:
    """A copy with one to three of its places changed, taken out, doubled, put deeper or given a stranger
    beside them."""
    request = copy.deepcopy(request)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        found = list(places(request))
        if not found:
            break
        *way, last = chance.choice(found)
        parent = request
        for key in way:
            parent = parent[key]
        how = chance.randrange(6)
        if how <= 2:
            parent[last] = odd(chance)
        elif how == 3:
            del parent[last]
        elif how == 4:
            parent[last] = chance.choice(
                ([parent[last]], {"value": parent[last]}, [parent[last]] * 50, str(parent[last]))
            )
        elif isinstance(parent, dict):
            parent[str(odd(chance, 3))[:2000]] = odd(chance)
        else:
            parent.extend(copy.deepcopy(parent))
    return request


def questions(choices: dict, ids: list[str], token: str, methods: list[dict]) -> dict[str, list[dict]]:
    """Valid requests of each server function, to be bent."""
    recipes = [[[m["name"], {p["name"]: p["default"] for p in m["params"]}]] for m in methods]
    runs = [choices] + [choices | {"recipe": recipe} for recipe in recipes]
    runs += [choices | {"recipe": a + b} for a, b in zip(recipes, recipes[3:], strict=False)]
    own = [{"lang": "en", "visitor": token, "id": i} for i in ids]
    settings = {k: v for k, v in choices.items() if k not in ("model", "recipe")}
    return {
        "ask_front": [
            {
                "lang": lang,
                "model": model,
                "x": x,
                "y": "perplexity",
                "protocol": "",
                "settings": settings,
                "budget": 1e8,
                "selected": ids[0],
            }
            for lang in ("en", "zh-Hant")
            for model in (choices["model"], OFFLINE_MODEL)
            for x in ("file_bytes", "decode_tokens_per_second")
        ],
        "ask_weigh": [{"lang": "en", "choices": c} for c in runs],
        "ask_begin": [{"lang": "en", "choices": c, "visitor": token, "again": False} for c in runs],
        "ask_poll": own,
        "ask_stop": own,
        "ask_enough": own,
        "ask_card": [{"lang": "en", "id": i} for i in ids],
        "ask_pack": [
            {"lang": "en", "id": i, "form": form} for i in ids for form in ("", "compressed-tensors", "dense")
        ],
        "ask_runs": [{"lang": "en"}],
        "ask_zoomed": [{"lang": lang, "model": OFFLINE_MODEL} for lang in ("en", "zh-Hant")],
        "ask_record": [{"lang": "en", "id": i} for i in ids],
        "ask_add": [{"lang": "en", "text": (SHIPPED / "gates-none.json").read_text("utf-8")}],
        # not the run that must still be there at the end
        "ask_delete": [{"lang": "en", "visitor": token, "id": i} for i in ids[1:]],
        "ask_name": [
            {"lang": "en", "visitor": token, "id": i, "title": "Tuesday", "note": "a\nb"} for i in ids[1:]
        ],
        "ask_export_all": [{"lang": "en"}],
        "ask_plan": [
            {"lang": "en", "memory_bytes": 8e9, "context": 4096, "cache_bits": 8, "bandwidth": 1e11} | of
            for of in ({"model": OFFLINE_MODEL}, {"model": choices["model"]}, {"sizes": SIZES})
        ],
        "ask_sides": [{"lang": "en", "id": i} for i in ids],
        "ask_recorded": [{"lang": "en", "id": i, "prompt": prompt} for i in ids for prompt in ("", "sum")],
        "ask_stop_chat": [{"lang": "en", "visitor": token}],
        "ask_essay": [{"lang": lang, "method": m["name"]} for lang in ("en", "zh-Hant") for m in methods],
        "class_open": [{"lang": "en"}],
        "class_look": [{"lang": "en", "code": "AAAAAA", "lesson": "rounding", "key": "", "member": token}],
        "class_guess": [
            {"lang": "en", "code": "AAAAAA", "member": token, "lesson": "rounding", "guess": guess}
            for guess in (40.0, [2, 0, 1])
        ],
        "class_lead": [{"lang": "en", "code": "AAAAAA", "key": "k", "lesson": "sum", "show": True}],
        "class_code": [{"lang": "en", "link": "http://localhost:7860/learn/?class=AAAAAA"}],
    }


def raw(chance: random.Random, client: Client, valid: bytes) -> dict:
    """A request that isn't even the protocol: path, type and bytes by chance, as arguments of httpx."""
    body = bytearray(valid)
    how = chance.randrange(8)
    if how == 0:
        body = bytearray(chance.randbytes(chance.choice((0, 1, 100, 5000))))
    elif how == 1:
        body = body[: chance.randrange(len(body))]
    elif how == 2:
        for _ in range(5):
            body[chance.randrange(len(body))] = chance.randrange(256)
    elif how == 3:
        body = bytearray(b"[" * chance.choice((10, 2_000, 100_000)))
    elif how == 4:
        body = bytearray(json.dumps(odd(chance)).encode())
    elif how == 5:
        body = bytearray(
            b'{"data": ' + b"9" * 5000 + b', "fn_name": "ask_runs", "component_id": 1, "session_hash": "a"}'
        )
    elif how == 6:
        whole = client.envelope("ask_runs", {"lang": "en"})
        whole[chance.choice(list(whole))] = odd(chance)
        body = bytearray(json.dumps(whole).encode("utf-8", "surrogatepass"))
    types = (
        "application/json",
        "text/plain",
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "",
        "application/json; charset=utf-7",
    )
    place = chance.choice(PLACES) if how != 6 else FUNCTIONS
    method = (
        chance.choice(("POST", "POST", "POST", "GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"))
        if how != 6
        else "POST"
    )
    return {
        "method": method,
        "url": place,
        "content": bytes(body),
        "headers": {"content-type": chance.choice(types) if how != 6 else types[0]},
    }


def run(campaign: Campaign) -> None:
    """Ask; then look at the log, the memory and the descriptors."""
    ledger, chance, total = campaign.ledger, campaign.random, campaign.times(REQUESTS, 100)
    with stage.App(campaign.home()) as app:
        client = Client(app.url)
        done = client.begin(campaign.choices())["id"]
        client.follow(done, 180)
        boot = next(c for c in client.config["components"] if c["props"].get("elem_id") == "top")["props"][
            "value"
        ]
        valid = questions(campaign.choices(), [done, "gates-none", "nosuch"], client.token, boot["methods"])
        if missing := set(client.functions) - set(valid):
            ledger.count("wrong", f"functions that the fuzz doesn't know: {sorted(missing)}")
        names = sorted(n for n in valid if n in client.functions or n.startswith("class_"))
        requests = [
            _request(chance, client, names[i % len(names)], valid[names[i % len(names)]])
            for i in range(total)
        ]
        before, grown = None, []
        with ThreadPoolExecutor(LANES) as lanes:
            for start in campaign.each(total, 500):
                list(lanes.map(lambda request: _try(ledger, client, request), requests[start : start + 500]))
                for text in app.tracebacks():
                    ledger.found("traceback", text)
                if not app.alive():
                    ledger.count("lost", f"the app died with code {app.process.returncode}")
                    return
                for begun in (r["id"] for r in records(app.home) if r.get("status") in ("running", "queued")):
                    client.stop(begun)  # what is asked for is to be answered, not to be computed
                now = (app.resident(), app.descriptors())
                grown.append(now)
                before = before or (now if start + 500 >= total / 10 else None)
        before = before or grown[0]
        after = (app.resident(), app.descriptors())
        ledger.figure("MB at first", round(before[0] / 1e6))
        ledger.figure("MB at last", round(after[0] / 1e6))
        ledger.figure("descriptors at first", before[1])
        ledger.figure("descriptors at last", after[1])
        ledger.check(
            after[0] - before[0] < GROWTH_BYTES,
            f"the app's memory grew from {before[0] / 1e6:.0f} to {after[0] / 1e6:.0f} MB",
        )
        ledger.check(
            after[1] - before[1] < GROWTH_DESCRIPTORS, f"open files went from {before[1]} to {after[1]}"
        )
        ledger.check(
            client.poll(done)["status"] == "ok", "the run made before the fuzz isn't there any more", "lost"
        )


def _request(chance: random.Random, client: Client, name: str, valid: list[dict]) -> dict:
    """One request as arguments of httpx: seven in ten bent, two arbitrary, one raw."""
    dice = chance.random()
    if dice < 0.1:
        return raw(chance, client, json.dumps(client.envelope(name, chance.choice(valid))).encode())
    data = bent(chance, chance.choice(valid)) if dice < 0.8 else odd(chance)
    body = json.dumps(client.envelope(name, data)).encode("utf-8", "surrogatepass")
    return {
        "method": "POST",
        "url": client.place(name),
        "content": body,
        "headers": {"content-type": "application/json"},
    }


def _try(ledger, client: Client, request: dict) -> None:
    shown = f"{request['method']} {request['url']} {request['content'][:300]!r}"
    try:
        answer = client._send(**{"path": request["url"], **{k: v for k, v in request.items() if k != "url"}})
    except Hung:
        return ledger.count("hung", shown)
    except (Unreachable, httpx.InvalidURL) as error:
        if len(request["content"]) > 100_000:
            ledger.note("the line was closed on bodies of over 100 kB")
            return ledger.count()
        return ledger.count("lost", f"{shown}: {error}")
    if answer.status_code >= 500:
        return ledger.count("wrong", f"HTTP {answer.status_code} for {shown}")
    if answer.status_code == 200 and request["url"] == FUNCTIONS and request["method"] == "POST":
        try:
            right = isinstance(answer.json(), dict)
        except ValueError:
            right = False
        return ledger.judge(right, f"no JSON object: {answer.text[:100]} for {shown}")
    ledger.count()
