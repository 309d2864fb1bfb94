"""Homes that can't be written or have odd names: everything works all the same, and the page says what it
can't keep.

Right is: the app starts, a run ends well, the page's `read_only` tells whether results stay, and the command
line ends well too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.soak import stage
from tests.soak.campaign import Campaign
from tests.soak.client import Client, Hung
from tests.soak.kill_workers import RUN_SECONDS


def run(campaign: Campaign) -> None:
    """One after the other; a read-only file system needs root and is left out without it."""
    cases = {
        "a name with spaces": (campaign.scratch / "a home with spaces" / "here", True, {}),
        "a non-Latin name": (campaign.scratch / "壓縮 探索 ñ", True, {}),
        "a file in its place": (_file(campaign.scratch / "a-file"), False, {}),
        "below a file": (_file(campaign.scratch / "another-file") / "home", False, {}),
        "a device": (Path("/dev/null/home"), False, {}),
        "a broken link": (_link(campaign.scratch / "link", campaign.scratch / "nowhere" / "else"), None, {}),
        "no HOME": (None, None, {"HOME": None, "COMPRESSION_EXPLORER_HOME": None}),
        "a HOME that isn't there": (
            None,
            None,
            {"HOME": str(_file(campaign.scratch / "file-3") / "x"), "COMPRESSION_EXPLORER_HOME": None},
        ),
        "an ASCII locale": (
            campaign.scratch / "ascii-é",
            True,
            {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
        ),
        "no place for temporary files": (
            campaign.scratch / "no-tmp",
            True,
            {"TMPDIR": str(campaign.scratch / "missing")},
        ),
    }
    names = list(cases)[: campaign.times(len(cases), 3)]
    for name in names:
        place, kept, changes = cases[name]
        if name == "no HOME" and campaign.scale < 1:
            continue  # it may write where this account's own results are
        if name == "no HOME":
            changes = changes | {"XDG_CACHE_HOME": str(campaign.scratch / "cache")}
        # building them takes a minute
        kernels = {} if name == names[0] else {"COMPRESSION_EXPLORER_KERNELS": "pytorch"}
        _one(campaign, name, place, kept, changes | kernels)
    _mounted_read_only(campaign)


def _file(path: Path) -> Path:
    path.write_text("not a folder", "utf-8")
    return path


def _link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


def _mounted_read_only(campaign: Campaign) -> None:
    place = campaign.scratch / "read-only"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,ro", "soak", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        campaign.ledger.note(f"nothing could be mounted read-only here ({done.stderr.strip()[:80]})")
        return
    try:
        _one(campaign, "a read-only file system", place, False, {"COMPRESSION_EXPLORER_KERNELS": "pytorch"})
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def _one(campaign: Campaign, name: str, place: Path | None, kept: bool | None, changes: dict) -> None:
    """kept: whether results must stay (True) or can't (False); None: either, as long as it is told
    rightly."""
    ledger = campaign.ledger
    try:
        with stage.App(place, **changes) as app:
            client = Client(app.url)
            boot = next(c for c in client.config["components"] if c["props"].get("elem_id") == "top")[
                "props"
            ]["value"]
            if kept is not None:
                ledger.check(
                    boot["read_only"] is not kept, f"{name}: the page says read_only = {boot['read_only']}"
                )
            answer = client.begin(campaign.choices())
            state = (
                client.follow(answer["id"], RUN_SECONDS)
                if "id" in answer
                else {"status": "refused", "error": answer["error"]}
            )
            if ledger.check(
                state["status"] == "ok", f"{name}: the run is {state['status']}: {state['error'][:300]}"
            ):
                card = client.ask("ask_card", id=answer["id"])
                ledger.check(card["status"] == "ok", f"{name}: the card is {card['status']}", "lost")
                packed = client.ask("ask_pack", id=answer["id"])
                ledger.check("file" in packed, f"{name}: the download says {packed}")
            for text in app.tracebacks():
                ledger.found("traceback", f"{name}: {text}")
    except (RuntimeError, TimeoutError) as error:
        ledger.count("hung" if isinstance(error, TimeoutError) else "lost", f"{name}: {error}")
    except Hung as error:
        ledger.count("hung", f"{name}: {error}")
    _command(campaign, name, place, changes)


def _command(campaign: Campaign, name: str, place: Path | None, changes: dict) -> None:
    test, valid = campaign.texts
    words = [
        "rtn",
        "--bits",
        "4",
        "--group-size",
        "16",
        "--model",
        campaign.model(),
        "--text",
        test,
        "--calibration",
        valid,
        "--tokens",
        "512",
        "--window",
        "64",
        "--no-timings",
        "--json",
    ]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "evaluation.run", *words],
            cwd=stage.ROOT,
            env=stage.environment(place, **changes),
            capture_output=True,
            timeout=RUN_SECONDS * stage.PATIENCE,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return campaign.ledger.count("hung", f"{name}: the command line takes over {RUN_SECONDS} s")
    try:
        status = json.loads(done.stdout)["status"]
    except (ValueError, KeyError):
        status = f"no JSON; stderr ends with {done.stderr[-300:]!r}"
    if "Traceback" in done.stderr.decode("utf-8", "replace"):
        campaign.ledger.found("traceback", f"{name}: the command line: {done.stderr[-300:]!r}")
    return campaign.ledger.judge(
        done.returncode == 0 and status == "ok", f"{name}: the command line: code {done.returncode}, {status}"
    )
