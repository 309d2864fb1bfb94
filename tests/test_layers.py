"""The house's rules that hold for every file: imports point one way, names don't collide, nothing strays to
the top."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from compression import FAMILIES

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
    ".clang-format",
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


ROOMS = (
    "",
    "measuring",
    "running",
    "choosing",
    "page",
    "benches",
    "learning",
    "commands",
)  # of evaluation/, as the floors


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_evaluation_import_one_way(room):
    """What a run is knows nothing of how it is measured, and so on."""
    folder = ROOT / "evaluation" / room
    above = {f"evaluation.{name}" for name in ROOMS[ROOMS.index(room) + 1 :]}
    entrances = {ROOT / "evaluation" / "run.py", ROOT / "evaluation" / "__main__.py"}
    for file in set(folder.rglob("*.py") if room else folder.glob("*.py")) - entrances:
        found = {".".join(name.split(".")[:2]) for name in modules(file)}
        assert not found & above, f"{file.relative_to(ROOT)} imports from a room above it: {found & above}"


def sources() -> dict[str, Path]:
    """Every module of the three packages by its dotted name."""
    found = {}
    for file in (f for floor in FLOORS[:-1] for f in files(floor)):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def at_import(nodes: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported, what is only for a type checker left out."""
    for node in nodes:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        if isinstance(node, (ast.If, ast.Try, ast.With, ast.ClassDef)):
            yield from at_import([*node.body, *getattr(node, "orelse", ())])


def named(nodes: Iterable[ast.AST], known: Iterable[str]) -> set[str]:
    """The modules of ours that import statements among the nodes name."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inner & set(known) if inner <= set(known) else {node.module, *inner}
    return names & set(known)


def family_of(module: str) -> str:
    """ "pruning" for what stands in that package, "" for what stands in none."""
    parts = module.split(".")
    return parts[1] if parts[0] == "compression" and len(parts) > 1 and parts[1] in FAMILIES else ""


def test_no_family_of_methods_is_imported_but_by_itself():
    """What families share stands outside them; everything else finds a method by its name
    (`compression.get`)."""
    known = sources()
    # two methods' own functions beside their authors'; methods' own functions on a lesson's small matrices
    shown = {
        m for m in known if m == "evaluation.benches.authors" or m.startswith("evaluation.learning.lessons.")
    }
    for module, file in known.items():
        if module in shown:
            continue
        reached = {family_of(name) for name in named(ast.walk(ast.parse(file.read_text("utf-8"))), known)}
        assert reached <= {"", family_of(module)}, f"{module} imports from a family of methods"


def test_no_circle_of_imports():
    known = sources()
    waiting = {
        module: named(at_import(ast.parse(file.read_text("utf-8")).body), known) - {module}
        for module, file in known.items()
    }
    while free := {module for module, needs in waiting.items() if not needs & waiting.keys()}:
        waiting = {module: needs for module, needs in waiting.items() if module not in free}
    assert not waiting, f"these import each other, or what does: {sorted(waiting)}"


def test_only_the_page_imports_gradio():
    for floor in FLOORS[:-1]:
        for file in files(floor):
            assert "gradio" not in imported(file), file


def test_nothing_else_at_the_top():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    assert {name.split("/")[0] for name in tracked if name} <= TOP


@pytest.mark.parametrize("floor", FLOORS[:-1])
def test_the_tests_of_a_file_lie_in_a_room_of_the_same_name(floor):
    """The tests of compression/pruning/owl.py are tests/compression/pruning/test_owl.py."""
    rooms = {}
    for file in files(floor):
        rooms.setdefault(file.stem, set()).add(file.parent.relative_to(ROOT))
    for test in (ROOT / "tests" / floor).rglob("*.py"):
        room = test.parent.relative_to(ROOT / "tests")
        assert (ROOT / room).is_dir(), f"{test} lies in a room that the code doesn't have"
        wanted = rooms.get(test.stem.removeprefix("test_"), {room})
        assert room in wanted, f"{test.name} belongs to {' or '.join(map(str, wanted))}, not to {room}"


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
