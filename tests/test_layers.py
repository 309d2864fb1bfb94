"""The house's rules that hold for every file: imports point one way, names don't collide, nothing strays to
the top."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("kernels", "compression", "evaluation", "app")  # each may import itself and what stands before it
TOP = {
    "app.py",
    "compression",
    "kernels",
    "evaluation",
    "assets",
    "tests",
    "pyproject.toml",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    ".pre-commit-config.yaml",
    "Makefile",
    "LICENSE",
    "requirements.txt",
    ".ci",
    ".gitignore",
}


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def modules(file: Path) -> set[str]:
    """Dotted names of all that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def files(floor: str) -> list[Path]:
    return [ROOT / "app.py"] if floor == "app" else sorted((ROOT / floor).rglob("*.py"))


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_point_one_way(floor):
    above = set(FLOORS[FLOORS.index(floor) + 1 :])
    for file in files(floor):
        assert not imported(file) & above, f"{file.relative_to(ROOT)} imports from a floor above it"


ROOMS = ("", "measuring", "running", "page", "benches", "commands")  # of evaluation/, as the floors


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_evaluation_import_one_way(room):
    """What a run is knows nothing of how it is measured, and so on."""
    folder = ROOT / "evaluation" / room
    above = {f"evaluation.{name}" for name in ROOMS[ROOMS.index(room) + 1 :]}
    entrances = {ROOT / "evaluation" / "run.py", ROOT / "evaluation" / "__main__.py"}
    for file in set(folder.glob("*.py")) - entrances:
        found = {".".join(name.split(".")[:2]) for name in modules(file)}
        assert not found & above, f"{file.relative_to(ROOT)} imports from a room above it: {found & above}"


def test_only_the_page_imports_gradio():
    for floor in FLOORS[:-1]:
        for file in files(floor):
            assert "gradio" not in imported(file), file


def test_nothing_else_at_the_top():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    assert {name.split("/")[0] for name in tracked if name} <= TOP


def run(code: str, *flags: str) -> str:
    done = subprocess.run([sys.executable, *flags, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_imports_neither_torch_nor_transformers():
    out = run("import sys, app; print(sorted({'torch', 'transformers', 'plotly'} & set(sys.modules)))")
    assert out.strip().splitlines()[-1] == "[]"


def test_compression_extends_its_search_path():
    """Python 3.14 has a standard package of this name; ours must not hide it."""
    source = (ROOT / "compression" / "__init__.py").read_text("utf-8")
    assert "extend_path(__path__, __name__)" in source
    run("import gzip, bz2, lzma, zipfile, compression; assert compression.NAMES")


def test_kernels_hands_unknown_names_through():
    """transformers looks the distribution `kernels` up by name and imports from it: ours must not answer in
    its place."""
    run("import kernels; assert not hasattr(kernels, '__version__')")
    run("import transformers.integrations.hub_kernels, kernels, compression")


def test_method_listing_is_shipped():
    """The page draws its widgets from assets/methods.json: equal to what `--list --json` prints (else: make
    docs)."""
    done = subprocess.run(
        [sys.executable, "-m", "evaluation.run", "--list", "--json"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((ROOT / "assets" / "methods.json").read_text("utf-8"))
