"""Eight sizes of disk, from one that holds nothing to one that holds all: a run, its download, and what is
told.

The home lies on a small file system in memory (mount needs root; without it the part says so and does
nothing). Right is: a run that ends well, or fails with `disk_full` or `no_room` in words; a store that can be
read, nothing half written, and an app that goes on.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.soak import stage
from tests.soak.campaign import Campaign, record, records
from tests.soak.client import Client, Hung
from tests.soak.kill_workers import RUN_SECONDS

# kernels, baseline, artifact, archive take about 2.5 MB together
SIZES_KB = (64, 400, 700, 1_100, 1_600, 2_400, 4_000, 16_000)
BUILDS = (700, 16_000)  # sizes on which the kernels are built too, which takes a minute
FULL = ("disk_full", "no_room")


def run(campaign: Campaign) -> None:
    """An app on each."""
    for size in SIZES_KB if campaign.scale >= 0.5 else SIZES_KB[::3]:
        place = campaign.scratch / f"disk-{size}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}k", "soak", str(place)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            campaign.ledger.note(
                f"no disk could be mounted here ({done.stderr.strip()[:80]}): this part did nothing"
            )
            return
        try:
            _one(campaign, place, size)
        finally:
            subprocess.run(["umount", "-l", str(place)], check=False)


def _one(campaign: Campaign, place: Path, size: int) -> None:
    ledger, home = campaign.ledger, place / "home"
    fits = size >= 16_000
    kernels = None if size in BUILDS else "pytorch"
    with stage.App(home, COMPRESSION_EXPLORER_KERNELS=kernels) as app:
        client = Client(app.url)
        for number, again in enumerate((False, True)):  # a second run finds the disk as the first has left it
            answer = client.begin(campaign.choices(seed=number), again=again)
            if "error" in answer:
                ledger.check(
                    _full_in_words(answer["error"]), f"{size} kB: refused with {answer['error'][:300]}"
                )
                continue
            try:
                state = client.follow(answer["id"], RUN_SECONDS)
            except Hung as error:
                ledger.count("hung", f"{size} kB: {error}")
                continue
            found = record(home, answer["id"])
            if state["status"] == "ok":
                ledger.check(True, "")
                packed = client.ask("ask_pack", id=answer["id"])
                right = (
                    "file" in packed
                    or _full_in_words(packed.get("error", ""))
                    or "no longer" in packed.get("error", "")
                )
                ledger.check(right, f"{size} kB: the download says {packed}")
            else:
                code = (found or {}).get("error", {}).get("code", "not on disk")
                right = (code in FULL or (found is None and _full_in_words(state["error"]))) and not fits
                ledger.check(
                    right, f"{size} kB: the run is {state['status']} with code {code}: {state['error'][:300]}"
                )
        broken = [r for r in records(home) if "broken" in r]
        ledger.check(not broken, f"{size} kB: records that can't be read: {broken}", "lost")
        left = stage.within(5, lambda: not stage.leftovers(home, records(home)))
        ledger.check(bool(left), f"{size} kB: left behind {stage.leftovers(home, records(home))[:4]}")
        rows = client.ask("ask_runs")
        ledger.check(bool(rows.get("html")), f"{size} kB: the table of runs is {rows}", "lost")
        for text in app.tracebacks():
            ledger.found("traceback", f"{size} kB: {text}")


def _full_in_words(card: str) -> bool:
    """Whether an error card is the one for a full disk."""
    return "disk" in card.lower() and ("full" in card.lower() or "free" in card.lower())
