"""Makes what Learn shows: each lesson's data and the survey's map; or Learn as a folder for any web server.

python -m evaluation learn [LESSON ...]
python -m evaluation learn --static FOLDER [--app https://...]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from evaluation.learning import course
from evaluation.learning.lesson import DATA, ClaimGone
from evaluation.page import learn


def main(argv: list[str]) -> int:
    """Exit code 1 if a lesson's claim doesn't hold any more; its old data stays."""
    parser = argparse.ArgumentParser(prog="python -m evaluation learn", description=__doc__.split("\n")[0])
    parser.add_argument("lessons", nargs="*", metavar="LESSON", help="only these lessons (default: all)")
    parser.add_argument("--static", type=Path, metavar="FOLDER", help="write Learn into a new folder")
    parser.add_argument(
        "--app", default="", help="with --static: address of a live page that the lessons open"
    )
    own = parser.parse_args(argv)
    if own.static:
        return _static(own.static, own.app)
    known = course.lessons()
    if unknown := [name for name in own.lessons if name not in known]:
        parser.error(f"unknown lessons {', '.join(unknown)}; there are {', '.join(known)}")
    failed = 0
    real = course.Real()
    for name in own.lessons or known:
        try:
            _write(DATA / "lessons" / name / "data.json", course.made(known[name], real))
            print(f"{name}: made", flush=True)
        except ClaimGone as error:
            failed += 1
            print(f"{name}: {error}", file=sys.stderr, flush=True)
    _write(DATA / "map.json", course.survey_map(real))
    return 1 if failed else 0


def _write(file: Path, data: Any) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(data, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")
    new.replace(file)


def _static(folder: Path, app: str) -> int:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        print(f"error: {folder} isn't empty; name a new folder", file=sys.stderr)
        return 2
    for name, file in learn.files().items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    (folder / "site.json").write_text(json.dumps(learn.site(app)) + "\n", "utf-8")
    print(f"{folder}: open it through a web server, e.g. python -m http.server --directory {folder}")
    return 0
