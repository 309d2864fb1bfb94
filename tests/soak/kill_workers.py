"""200 kills of run workers, by SIGKILL and SIGTERM, at random moments from a run's first second to its last.

Right is, within seconds: a record that says how the run ended, in words; nothing left behind in the home, no
process more than before; and the next run gives the numbers that a run without kills gives.
"""

from __future__ import annotations

import signal
import time

import psutil

from tests.soak import stage
from tests.soak.campaign import Campaign, record, records, told
from tests.soak.client import Client, Hung

KILLS, WHOLE_EVERY = 200, 5  # every fifth kill is followed by a run that is left alone
RUN_SECONDS, TOLD_SECONDS = 240, 20
LONGEST_SECONDS = 7200  # a kill and its run take half a minute on two cores
NUMBERS = ("perplexity", "file_bytes", "weight_bits_per_weight")


def run(campaign: Campaign) -> None:
    """One run alone for the numbers and the length; then kills."""
    ledger, chance = campaign.ledger, campaign.random
    with stage.App(campaign.home()) as app:
        client = Client(app.url)
        start = time.monotonic()
        first = client.begin(campaign.choices())["id"]
        client.follow(first, RUN_SECONDS)
        length = time.monotonic() - start
        right = numbers(record(app.home, first))
        if not ledger.check(right is not None, f"the first run failed: {record(app.home, first)}"):
            return
        kills, tail = campaign.times(KILLS, 3), min(4.0, length / 3)
        for killed in campaign.each(kills):
            if not app.alive():
                break
            run_id = client.begin(campaign.choices(), again=True)["id"]
            number = chance.choice((signal.SIGKILL, signal.SIGTERM))
            if chance.random() < 0.5:
                _reach_work(client, run_id)
                time.sleep(chance.random() * tail)
            else:
                time.sleep(chance.random() * length)
            workers = app.children("evaluation.running.worker")
            if not workers or client.poll(run_id)["status"] not in ("queued", "running"):
                ledger.check(
                    numbers(record(app.home, run_id)) == right,
                    f"a run that ended before its kill has other numbers: {run_id}",
                )
                continue
            stage_then = client.poll(run_id)["stage"]
            try:
                workers[0].send_signal(number)
            except psutil.Error:
                continue
            judge(ledger, app, client, run_id, f"{signal.Signals(number).name} at {stage_then!r}", right)
            if killed % WHOLE_EVERY == 0:
                whole(ledger, campaign, app, client, right)
        whole(ledger, campaign, app, client, right)
        for text in app.tracebacks():
            ledger.found("traceback", text)
        ledger.check(app.alive(), "the app died", "lost")
        ledger.figure("MB of the app at last", round(app.resident() / 1e6))


def _reach_work(client: Client, run_id: str) -> None:
    """Wait until the run is past its imports and the loading of the model."""
    end = time.monotonic() + 90
    while (state := client.poll(run_id))["status"] in ("queued", "running") and time.monotonic() < end:
        if (
            not any(word in state["stage"] for word in ("Starting", "Loading", "next", "waiting", "line"))
            and state["stage"]
        ):
            return
        time.sleep(0.02)


def numbers(found: dict | None) -> dict | None:
    """What a run without faults gives, None for a record that isn't ok."""
    return {k: found["metrics"][k] for k in NUMBERS} if found and found.get("status") == "ok" else None


def judge(ledger, app: stage.App, client: Client, run_id: str, what: str, right: dict) -> None:
    """A run was killed: is everything told and nothing left?"""
    try:
        client.follow(run_id, TOLD_SECONDS)
    except Hung as error:
        return ledger.count("hung", f"{what}: {error}")
    found = record(app.home, run_id)
    if found is None:
        return ledger.count("lost", f"{what}: no record of {run_id}")
    if found["status"] == "ok":
        return ledger.judge(numbers(found) == right, f"{what}: ended well, with other numbers")
    code = found["error"].get("code", "")
    if found["status"] not in ("failed", "oom", "cancelled") or not told(code):
        return ledger.count("wrong", f"{what}: recorded as {found['status']} with {found['error']}")
    left = stage.within(5, lambda: not stage.leftovers(app.home, records(app.home)))
    extra = app.children("evaluation.running.worker")[1:]
    if not left:
        return ledger.count(
            "wrong", f"{what}: left behind {stage.leftovers(app.home, records(app.home))[:4]}"
        )
    return ledger.judge(len(extra) == 0, f"{what}: {len(extra)} workers more than the spare one")


def whole(ledger, campaign: Campaign, app: stage.App, client: Client, right: dict) -> None:
    """A run that is left alone."""
    run_id = client.begin(campaign.choices(), again=True)["id"]
    try:
        client.follow(run_id, RUN_SECONDS)
    except Hung as error:
        return ledger.count("hung", f"the run after a kill: {error}")
    found = record(app.home, run_id)
    return ledger.judge(
        numbers(found) == right,
        f"the run after a kill: {(found or {}).get('status')} {(found or {}).get('error')}",
    )
