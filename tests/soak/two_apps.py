"""Two live apps on one home: runs in both, equal runs in both, one killed.

Right is: the second app starts and shares, or refuses in words. If it shares: neither calls the other's runs
interrupted nor sweeps away what the other writes, results of both are seen in both and are the numbers of a
run alone, and a kill of one harms nothing of the other.
"""

from __future__ import annotations

import time

from tests.soak import stage
from tests.soak.campaign import Campaign, record, records, told
from tests.soak.client import Client, Hung
from tests.soak.kill_workers import RUN_SECONDS, numbers

ROUNDS = 5


def run(campaign: Campaign) -> None:
    """Rounds of the same; the killed app changes from round to round."""
    ledger, home = campaign.ledger, campaign.home()
    apps = [stage.App(home), None]
    try:
        client = Client(apps[0].ready().url)
        first = client.begin(campaign.choices())["id"]
        client.follow(first, RUN_SECONDS)
        right = numbers(record(home, first))
        if not ledger.check(right is not None, f"the first run failed: {record(home, first)}"):
            return
        for i in range(campaign.times(ROUNDS, 1)):
            long = client.begin(campaign.long_run(seed=i))["id"]
            stage.within(60, lambda long=long, client=client: client.poll(long)["status"] == "running")
            apps[1] = stage.App(home)
            try:
                other = Client(apps[1].ready().url)
            except RuntimeError as error:
                ledger.check(
                    "home" in str(error).lower() and "Traceback" not in str(error),
                    f"the second app doesn't start: {error}",
                )
                ledger.note("the second app refuses")
                return
            _round(campaign, home, client, other, long, right)
            dead = i % 2
            _kill(campaign, home, apps, dead, (client, other))
            client = Client(apps[0].url)
            apps[1].close()
        for app in apps:
            for text in app.tracebacks():
                ledger.found("traceback", text)
    finally:
        for app in apps:
            if app:
                app.close()


def _round(campaign: Campaign, home, client: Client, other: Client, long: str, right: dict) -> None:
    ledger = campaign.ledger
    state = client.poll(long)["status"]
    ledger.check(
        state == "running" and record(home, long)["status"] == "running",
        f"after the second app's start the first one's run is {state}, recorded as "
        f"{record(home, long)['status']}",
        "stopped",
    )
    beside = other.begin(campaign.choices(), again=True)["id"]
    other.follow(beside, RUN_SECONDS)
    ledger.check(
        numbers(record(home, beside)) == right,
        f"the second app's run beside it: {(record(home, beside) or {}).get('error')}",
    )
    ledger.check(
        client.ask("ask_card", id=beside)["status"] == "ok",
        "the first app doesn't see the second one's result",
        "lost",
    )
    other.stop(long)
    time.sleep(1)
    ledger.check(
        client.poll(long)["status"] == "running", "the second app stopped the first one's run", "stopped"
    )
    client.stop(long)
    equal = [c.begin(campaign.choices(), again=True)["id"] for c in (client, other)]
    for c, run_id in zip((client, other), equal, strict=True):
        c.follow(run_id, RUN_SECONDS)
        ledger.check(
            numbers(record(home, run_id)) == right,
            f"of two equal runs in two apps one is {(record(home, run_id) or {}).get('error')}",
        )
    left = stage.within(5, lambda: not stage.leftovers(home, records(home)))
    ledger.check(bool(left), f"left behind {stage.leftovers(home, records(home))[:4]}")
    for run_id in equal:
        packed = client.ask("ask_pack", id=run_id)
        ledger.check("file" in packed, f"the download of a run that two apps made says {packed}")


def _kill(campaign: Campaign, home, apps: list, dead: int, clients: tuple[Client, Client]) -> None:
    """A run in each, one app killed and started again: its run is interrupted, the other's goes on."""
    ledger, alive = campaign.ledger, 1 - dead
    ids = [c.begin(campaign.long_run(seed=100 + k + int(time.time())))["id"] for k, c in enumerate(clients)]
    for c, run_id in zip(clients, ids, strict=True):
        stage.within(60, lambda c=c, run_id=run_id: c.poll(run_id)["status"] == "running")
    apps[dead].kill()
    apps[dead] = stage.App(home).ready()
    again = Client(apps[dead].url)
    found = record(home, ids[dead])
    ledger.check(
        found["status"] == "interrupted" and told(found["error"].get("code", "")),
        f"the killed app's run is {found['status']}",
    )
    ledger.check(again.poll(ids[dead])["status"] == found["status"], "the page says otherwise")
    state = clients[alive].poll(ids[alive])["status"]
    ledger.check(
        state == "running", f"the other app's run is {state} after the kill and the start", "stopped"
    )
    clients[alive].stop(ids[alive])
    try:
        clients[alive].follow(ids[alive], 20)
    except Hung as error:
        ledger.count("hung", f"the other app's run can't be stopped: {error}")
