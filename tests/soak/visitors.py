"""50 visitors of a public page for ten minutes: they look, a few run and chat, one floods, one tries to stop
others.

Right is: every answer in time, 95 of 100 of them under a second while nothing runs (on a quiet machine), no
run ended by anybody but its owner, and limits that stop the flood and nobody else.
"""

from __future__ import annotations

import random
import statistics
import threading
import time

from compression.catalogue import OFFLINE_MODEL
from tests.soak import stage
from tests.soak.campaign import Campaign, record, records
from tests.soak.client import Answered, Client, Hung, Unreachable

VISITORS, SECONDS, QUIET = 50, 600, 0.2  # the first part of the time nobody runs or chats
PACE = (2.0, 8.0)  # seconds between a visitor's questions
RUNNERS, TALKERS = 4, 2  # of the visitors
P95_SECONDS = 1.0
FLOOD = 200


class Street:
    """All visitors, and what has been seen."""

    def __init__(self, campaign: Campaign, app: stage.App, chattable: str):
        self.campaign, self.ledger, self.app, self.chattable = campaign, campaign.ledger, app, chattable
        self.began, self.total = time.monotonic(), campaign.seconds(SECONDS, 60)
        self.quiet: list[float] = []
        self.busy: list[float] = []
        self.mine: dict[str, bool] = {}  # run -> whether its owner has stopped it
        self.over = threading.Event()
        self.ids = ["gates-none", chattable]

    def calm(self) -> bool:
        return time.monotonic() - self.began < self.total * QUIET

    def timed(self, what: str, call):
        """An answer, its time noted; None for one that counts as a defect."""
        start, calm = time.monotonic(), self.calm()
        try:
            answer = call()
        except Hung as error:
            return self.ledger.count("hung", f"{what}: {error}")
        except (Answered, Unreachable) as error:
            return self.ledger.count(
                "lost" if isinstance(error, Unreachable) else "wrong", f"{what}: {error}"
            )
        (self.quiet if calm and self.calm() else self.busy).append(time.monotonic() - start)
        self.ledger.count()
        return answer


def public_choices(**more) -> dict:
    """A run of the offline model, as a public page takes it."""
    return {
        "model": OFFLINE_MODEL,
        "recipe": [["rtn", {"bits": 4, "group_size": 64}]],
        "calibration": "builtin",
        "calibration_tokens": 8192,
        "text": "builtin",
        "protocol": "raw",
        "window": 512,
        "tokens": 2048,
        "seed": 0,
        "activations": "exact",
        "table_bits": 8,
        "cache_bits": 16,
        "preset": "quick",
    } | more


def run(campaign: Campaign) -> None:
    """A run to chat with; then everybody at once."""
    ledger = campaign.ledger
    with stage.App(campaign.home(offline_model=True), public=True) as app:
        first = Client(app.url, address="93.184.1.1")
        answer = first.begin(public_choices())
        state = (
            first.follow(answer["id"], 600)
            if "id" in answer
            else {"status": "refused", "error": answer.get("error")}
        )
        if not ledger.check(state["status"] == "ok", f"the first run is {state}"):
            return
        street = Street(campaign, app, answer["id"])
        crowd = [
            threading.Thread(target=_visit, args=(street, i, first.config), daemon=True)
            for i in range(VISITORS)
        ]
        for thread in crowd:
            thread.start()
        time.sleep(street.total * 0.6)
        flooded = _flood(street, first.config)
        time.sleep(max(0, street.total - (time.monotonic() - street.began)))
        street.over.set()
        for thread in crowd:
            thread.join(60)
        ledger.check(
            not any(t.is_alive() for t in crowd),
            "visitors still wait for an answer a minute after the end",
            "hung",
        )
        for run_id, stopped in street.mine.items():
            found = record(app.home, run_id)
            ended = found["status"] if found else "gone"
            ledger.check(
                ended != "cancelled" or stopped,
                f"the run {run_id} was cancelled, not by its owner",
                "stopped",
            )
        _speed(street)
        ledger.figure("runs begun", len(street.mine))
        ledger.figure("flood accepted", flooded)
        for text in app.tracebacks():
            ledger.found("traceback", text)
        ledger.check(app.alive(), "the app died", "lost")


def _speed(street: Street) -> None:
    for name, times in (("quiet", street.quiet), ("busy", street.busy)):
        if len(times) > 20:
            street.ledger.figure(f"answers {name}", len(times))
            street.ledger.figure(f"p95 {name}, s", round(statistics.quantiles(times, n=20)[-1], 3))
    if len(street.quiet) > 20:
        p95 = statistics.quantiles(street.quiet, n=20)[-1]
        street.ledger.check(
            p95 < P95_SECONDS,
            f"95 of 100 answers take under {p95:.2f} s while nothing runs; due: {P95_SECONDS} s",
        )


def _visit(street: Street, number: int, config: dict) -> None:
    """One visitor until the street is over."""
    chance = random.Random(number)
    time.sleep(chance.random() * PACE[1])
    client = Client(street.app.url, address=f"93.184.2.{number + 1}", config=config)
    street.timed("the page", lambda: client.get("") if number % 5 else client.get("config"))
    while not street.over.is_set():
        if number < RUNNERS and not street.calm():
            _run(street, client, chance)
        elif number < RUNNERS + TALKERS and not street.calm():
            _talk(street, client)
        elif number == RUNNERS + TALKERS and not street.calm():
            _meddle(street, client)
        else:
            _look(street, client, chance)
        street.over.wait(chance.uniform(*PACE))
    client.close()


def _look(street: Street, client: Client, chance) -> None:
    asks = {
        "ask_front": lambda: client.ask("ask_front", model=OFFLINE_MODEL, x="file_bytes", y="perplexity"),
        "ask_runs": lambda: client.ask("ask_runs"),
        "ask_card": lambda: client.ask("ask_card", id=chance.choice(street.ids)),
        "ask_weigh": lambda: client.ask("ask_weigh", choices=public_choices(seed=chance.randrange(9))),
        "ask_sides": lambda: client.ask("ask_sides", id=street.chattable),
        "ask_poll": lambda: client.poll(chance.choice([*street.mine, "gates-none"])),
    }
    name = chance.choice(list(asks))
    street.timed(name, asks[name])


def _run(street: Street, client: Client, chance) -> None:
    """Begin a run and follow it a while; stop a third of them."""
    answer = street.timed(
        "ask_begin", lambda: client.begin(public_choices(seed=chance.randrange(10**6)), again=True)
    )
    if not answer or "id" not in answer:
        return
    street.mine[answer["id"]] = False
    end = time.monotonic() + chance.uniform(20, 90)
    stop = chance.random() < 0.3
    while not street.over.is_set() and time.monotonic() < end:
        state = street.timed("ask_poll", lambda: client.poll(answer["id"]))
        if state and state["status"] not in ("queued", "running"):
            return
        time.sleep(1)
    if stop or street.over.is_set():
        street.mine[answer["id"]] = True
        street.timed("ask_stop", lambda: client.stop(answer["id"]))


def _talk(street: Street, client: Client) -> None:
    try:
        last = client.say(street.chattable, "The capital of France is", 120)
    except Hung as error:
        return street.ledger.count("hung", str(error))
    except (Answered, Unreachable) as error:
        return street.ledger.count("lost", str(error))
    said = last.get("sides", {}).get("compressed", {}).get("text", "")
    return street.ledger.judge(
        bool(said) or bool(last.get("error")), f"an answer without words: {str(last)[:200]}"
    )


def _meddle(street: Street, client: Client) -> None:
    """Try to end what others have begun, in every way that the functions know."""
    for run_id in [i for i, stopped in list(street.mine.items()) if not stopped]:
        for what in ({}, {"visitor": None}, {"visitor": ""}, {"visitor": run_id}):
            client.send("ask_stop", {"lang": "en", "id": run_id, "visitor": client.token} | what)
            client.send("ask_enough", {"lang": "en", "id": run_id, "visitor": client.token} | what)
        client.send("ask_stop", {"lang": "en", "id": run_id})
    client.send("ask_stop_chat", {"lang": "en", "visitor": client.token})
    client.send("ask_stop_chat", {"lang": "en"})


def _flood(street: Street, config: dict) -> int:
    """Runs without end from one address, a new visitor each; how many were taken. Others are to be served all
    the same."""
    taken, limited = [], 0
    for i in range(street.campaign.times(FLOOD, 40)):
        client = Client(street.app.url, address="93.184.9.9", config=config)
        try:
            answer = client.begin(public_choices(seed=10**7 + i), again=True)
            taken += [(client, answer["id"])] if "id" in answer else []
            limited += "error" in answer
        except Answered as error:
            limited += error.status in (403, 429, 503)
            if error.status not in (403, 429, 503):
                street.ledger.count("wrong", f"the flood got {error}")
        except (Hung, Unreachable) as error:
            street.ledger.count("hung", f"the flood: {error}")
    waiting = [r for r in records(street.app.home) if r.get("status") == "queued"]
    street.ledger.check(
        limited > 0 and len(taken) <= 10, f"one address got {len(taken)} runs in, {limited} refused"
    )
    street.ledger.figure("waiting at most", len(waiting))
    for client, run_id in taken:
        street.mine[run_id] = True
        try:
            client.stop(run_id)
        except (Answered, Hung, Unreachable) as error:
            street.ledger.note(f"the flood's own stop: {error}")
    return len(taken)
