"""Limits of memory that a run doesn't fit into: told as out of memory, in words, and the app goes on.

With --cgroup, a memory cgroup (v1 or v2) in which groups may be made, the app starts in a group of its own
with a hard limit, as in a container. Without it the limit is one of address space (RLIMIT_AS), which the
workers inherit. Neither group nor limit reaches any other process.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from compression.catalogue import OFFLINE_MODEL
from tests.soak import stage
from tests.soak.campaign import Campaign, record
from tests.soak.client import Client, Hung
from tests.soak.kill_workers import RUN_SECONDS

GROUP_MB = (
    700,
    900,
    1_300,
)  # the app alone takes about 450, a run of the tiny model about 600 more, one of the offline model 2,500
SPACE_MB = (2_500, 3_200, 4_000, 5_000)  # torch alone maps more than two gigabytes
CODES = ("out_of_memory", "worker_killed")


def run(campaign: Campaign) -> None:
    """A run of the offline model below each limit; then a tiny one, which has room."""
    group = campaign.options.get("cgroup")
    if not group:
        campaign.ledger.note("limits of address space (RLIMIT_AS): no memory cgroup was given with --cgroup")
    sizes = GROUP_MB if group else SPACE_MB
    home = campaign.home(offline_model=True)
    for size in sizes if campaign.scale >= 0.5 else sizes[1:2]:
        with _limit(group, size) as limit:
            _worker(campaign, home, size, limit)
            _command(campaign, home, size, limit)


@contextlib.contextmanager
def _limit(group: str | None, megabytes: int):
    """What a new process must call to be below the limit."""
    size = megabytes * 1_000_000
    if not group:
        yield lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size))
        return
    place = Path(group) / f"soak-{os.getpid()}-{megabytes}"
    place.mkdir()
    file = place / ("memory.max" if (place / "memory.max").exists() else "memory.limit_in_bytes")
    file.write_text(str(size))
    try:
        yield lambda: (place / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        stage.within(10, lambda: not (place / "cgroup.procs").read_text().split())
        place.rmdir()


def _choices() -> dict:
    """The offline model, calibrated: about 2.5 GB, a minute or two on one thread."""
    return {
        "model": OFFLINE_MODEL,
        "recipe": [["gptq", {"bits": 4}]],
        "calibration": "builtin",
        "calibration_tokens": 2_048,
        "text": "builtin",
        "protocol": "raw",
        "window": 512,
        "tokens": 2_048,
        "seed": 0,
        "activations": "exact",
        "table_bits": 8,
        "cache_bits": 16,
        "preset": "quick",
    }


def _worker(campaign: Campaign, home: Path, size: int, limit) -> None:
    ledger = campaign.ledger
    try:
        app = stage.App(home, limit=limit)
        app.ready(120)
    except (RuntimeError, TimeoutError) as error:
        words = str(error).lower()
        ledger.note(f"{size} MB is too little for the app itself")
        ledger.check(
            "memory" in words or "code -9" in words or "failed to map" in words,
            f"{size} MB: the app doesn't start: {str(error)[-300:]}",
        )
        app.close()
        return
    try:
        client = Client(app.url)
        answer = client.begin(_choices() | {"seed": size})
        if "error" in answer:
            ledger.check(
                "memory" in answer["error"].lower(), f"{size} MB: refused with {answer['error'][:300]}"
            )
        else:
            state = client.follow(answer["id"], RUN_SECONDS)
            found = record(home, answer["id"]) or {}
            if state["status"] == "ok":
                ledger.note(f"{size} MB is enough")
                ledger.count()
            else:
                right = found.get("status") == "oom" and found["error"]["code"] in CODES
                ledger.check(right, f"{size} MB: {found.get('status')} with {found.get('error')}")
        ledger.check(app.alive(), f"{size} MB: the app is gone", "lost")
        ledger.check(bool(client.ask("ask_runs").get("html")), f"{size} MB: the app doesn't answer", "lost")
        for text in app.tracebacks():
            if "MemoryError" not in text and "not enough memory" not in text:
                ledger.found("traceback", f"{size} MB: {text}")
    except Hung as error:
        ledger.count("hung", f"{size} MB: {error}")
    finally:
        app.close()


def _command(campaign: Campaign, home: Path, size: int, limit) -> None:
    """The same from the command line: exit code 1 and the same words."""
    start = time.monotonic()
    words = [
        "gptq",
        "--bits",
        "4",
        "--calibration-tokens",
        "2048",
        "--tokens",
        "2048",
        "--no-timings",
        "--json",
        "--seed",
        str(size),
    ]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "evaluation.run", *words],
            cwd=stage.ROOT,
            env=stage.environment(home),
            text=True,
            capture_output=True,
            timeout=RUN_SECONDS * stage.PATIENCE,
            stdin=subprocess.DEVNULL,
            preexec_fn=limit,
        )
    except subprocess.TimeoutExpired:
        return campaign.ledger.count(
            "hung", f"{size} MB: the command line after {time.monotonic() - start:.0f} s"
        )
    told = done.returncode in (0, -9, 137) or (
        done.returncode == 1 and "memory" in done.stderr.lower().rsplit("\n", 3)[-2]
    )
    return campaign.ledger.judge(
        told, f"{size} MB: the command line ends with {done.returncode}: {done.stderr[-300:]}"
    )
