"""20 kills of the app at random moments: starting, idle, with a run going on, with one waiting, while it
packs, while it chats.

Right is, after the next start on the same home: no record that still says running or waiting, the killed run
told as interrupted (or as it ended), every earlier result as it was, nothing left behind, no process of the
old app alive.
"""

from __future__ import annotations

import signal
import threading
import time

import psutil

from tests.soak import stage
from tests.soak.campaign import Campaign, record, records, told
from tests.soak.client import Client
from tests.soak.kill_workers import RUN_SECONDS, numbers

KILLS = 20


def run(campaign: Campaign) -> None:
    """A result that must survive; then kill, start, look."""
    ledger, chance, home = campaign.ledger, campaign.random, campaign.home()
    app = stage.App(home)
    try:
        client = Client(app.ready().url)
        kept = client.begin(campaign.choices())["id"]
        client.follow(kept, RUN_SECONDS)
        before = record(home, kept)
        for i in campaign.each(campaign.times(KILLS, 2)):
            begun, what = _busy(campaign, app, client, kept, i)
            time.sleep(chance.random() * 8)
            number = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
            what = f"{signal.Signals(number).name} {what}"
            for text in app.tracebacks():
                ledger.found("traceback", f"{what}: {text}")
            started = app.kill(number)
            # one that still imports reads no end of its input
            _, alive = psutil.wait_procs(started, timeout=60 * stage.PATIENCE)
            if alive:
                ledger.found(
                    "wrong",
                    f"{what}: {len(alive)} processes of the killed app live on: "
                    f"{[p.cmdline()[-3:] for p in alive]}",
                )
            app = stage.App(home)
            if i % 5 == 4:  # while it starts, too
                time.sleep(chance.random() * 10)
                app.kill()
                app = stage.App(home)
            client = Client(app.ready().url)
            _judge(ledger, home, kept, before, begun, what, client)
        run_id = client.begin(campaign.choices(), again=True)["id"]
        client.follow(run_id, RUN_SECONDS)
        ledger.check(
            numbers(record(home, run_id)) == numbers(before),
            "the last run doesn't give the numbers of the first",
        )
    finally:
        app.close()


def _busy(campaign: Campaign, app: stage.App, client: Client, kept: str, i: int) -> tuple[list[str], str]:
    """Give the app something to do; the ids of what was begun, and in words."""
    kind = ("a run", "a run and one waiting", "idle", "a chat", "packing")[i % 5]
    if kind == "a run":
        return [client.begin(campaign.choices(), again=True)["id"]], kind
    if kind == "a run and one waiting":
        other = Client(app.url, config=client.config)
        return [
            client.begin(campaign.long_run(seed=i))["id"],
            other.begin(campaign.choices(seed=i + 1))["id"],
        ], kind
    if kind == "a chat":
        threading.Thread(
            target=_quietly, args=(lambda: client.say(kept, "line 7", 30, max_tokens=500),), daemon=True
        ).start()
    if kind == "packing":
        threading.Thread(
            target=_quietly, args=(lambda: client.ask("ask_pack", id=kept),), daemon=True
        ).start()
    return [], kind


def _quietly(call) -> None:
    try:
        call()
    except Exception:  # the app is killed meanwhile
        pass


def _judge(ledger, home, kept: str, before: dict, begun: list[str], what: str, client: Client) -> None:
    found = records(home)
    if broken := [r["broken"] for r in found if "broken" in r]:
        return ledger.count("lost", f"{what}: records that can't be read: {broken}")
    if record(home, kept) != before:
        return ledger.count("lost", f"{what}: the earlier result is another")
    for run_id in begun:
        now = record(home, run_id)
        if now is None:
            return ledger.count("lost", f"{what}: no record of {run_id}")
        if now["status"] in ("running", "queued"):
            return ledger.count("wrong", f"{what}: {run_id} still says {now['status']}")
        if now["status"] != "ok" and not told(now["error"].get("code", "")):
            return ledger.count("wrong", f"{what}: {run_id} says {now['status']} {now['error']}")
        if client.poll(run_id)["status"] != now["status"]:
            return ledger.count(
                "wrong", f"{what}: the page says {client.poll(run_id)['status']}, the record {now['status']}"
            )
    left = stage.leftovers(home, found)
    return ledger.judge(not left, f"{what}: left behind after the restart {left[:4]}")
