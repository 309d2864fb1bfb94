"""What a part is given: its ledger, its share of counts and time, a scratch folder, chance from a seed,
models and texts."""

from __future__ import annotations

import functools
import json
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.soak import stage
from tests.soak.ledger import Ledger

# of a part that declares no time of its own; what isn't tried by then is left out, and the table says so
LONGEST_SECONDS = 3600


class Campaign:
    """One part while it goes on.

    scale: share of the full counts and times, 1 for the campaign itself. longest: seconds that the whole part
    may take.
    """

    def __init__(
        self, part: str, scale: float, scratch: Path, options: dict, longest: float = LONGEST_SECONDS
    ):
        self.scale, self.scratch, self.options, self.longest = scale, scratch / part, options, longest
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(part)
        self.random = random.Random(f"soak-{part}")
        self._homes, self._began = 0, time.monotonic()

    def times(self, full: int, least: int = 1) -> int:
        """How often, where the whole campaign does it `full` times."""
        return max(least, round(full * self.scale))

    def each(self, full: int, step: int = 1) -> Iterator[int]:
        """0, step, 2 step, ... below `full`, until the part's time is over (which is noted)."""
        for done in range(0, full, step):
            if time.monotonic() - self._began > max(300, self.longest * self.scale):
                self.ledger.note(f"{done} of {full} in the time that a part has")
                return
            yield done

    def seconds(self, full: float, least: float = 10) -> float:
        return max(least, full * self.scale)

    def home(self, offline_model: bool = False) -> Path:
        """A fresh home of its own."""
        self._homes += 1
        return stage.prepared_home(self.scratch / f"home-{self._homes}", offline_model)

    # --- what there is to compress ---

    @functools.cached_property
    def texts(self) -> tuple[str, str]:
        """Files for evaluation and calibration."""
        folder = self.scratch / "texts"
        folder.mkdir(exist_ok=True)
        test, valid = folder / "test.txt", folder / "valid.txt"
        test.write_text("".join(f"line {i} of a small text, {i * i}\n" for i in range(3000)), "utf-8")
        valid.write_text("".join(f"other words {i}, {i**3} of them\n" for i in range(3000)), "utf-8")
        return str(test), str(valid)

    def model(self, name: str = "model", template: str = "", family: str = "llama") -> str:
        """A folder with a tiny model over bytes; template: its chat template."""
        place = self.scratch / name
        if not place.is_dir():
            import transformers

            from tests import tiny

            transformers.utils.logging.disable_progress_bar()
            tiny.original(family).save_pretrained(place)
            tokenizer = tiny.tokenizer()
            if template:
                tokenizer.chat_template = template
            tokenizer.save_pretrained(place)
        return str(place)

    def choices(self, model: str | None = None, recipe: list | None = None, **more) -> dict:
        """A run of the tiny model, as the page's controls ask for it: a second or two after the imports."""
        test, valid = self.texts
        return {
            "model": model or self.model(),
            "recipe": recipe or [["gptq", {"bits": 4, "group_size": 16}]],
            "calibration": valid,
            "calibration_tokens": 1024,
            "text": test,
            "protocol": "raw",
            "window": 64,
            "tokens": 1024,
            "seed": 0,
            "activations": "exact",
            "table_bits": 8,
            "cache_bits": 16,
            "preset": "quick",
        } | more

    def long_run(self, seed: int = 0, **more) -> dict:
        """A run that goes on until it is stopped (minutes)."""
        recipe = [
            ["rtn", {"bits": 3, "group_size": 16}],
            ["lora", {"rank": 2, "train_tokens": 10_000_000, "train_minutes": 10.0}],
        ]
        return self.choices(recipe=recipe, seed=seed, **more)


def records(home: Path) -> list[dict]:
    """The store's records as JSON; one that can't be read is {"broken": its name}."""
    found = []
    for file in sorted((home / "runs").glob("[!.]*.json")):
        try:
            found.append(json.loads(file.read_text("utf-8")))
        except (OSError, ValueError):
            found.append({"broken": file.name})
    return found


def record(home: Path, run_id: str) -> dict | None:
    return next((r for r in records(home) if r.get("id") == run_id), None)


def told(code: str) -> bool:
    """True if the page has words of its own for this error."""
    return code not in ("", "error") and f"error.{code}.what" in _words()


@functools.cache
def _words() -> dict:
    return json.loads((stage.ROOT / "assets" / "i18n" / "en.json").read_text("utf-8"))


def commit() -> str:
    """The commit that is checked out, with + if files differ from it."""

    def git(*words):
        return subprocess.run(
            ["git", *words], cwd=stage.ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    return git("rev-parse", "--short=12", "HEAD") + (
        "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    )
