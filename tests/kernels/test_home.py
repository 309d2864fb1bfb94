"""The program's folder: written whole or not at all, swept of what the dead left, never of what the living
write or read."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from kernels import home as place

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of the test's own, and temporary folders beside it."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    folder = tmp_path / "a home, 我的"
    monkeypatch.setenv(place.VARIABLE, str(folder))
    return place.home()


def other(code: str, *arguments, **more) -> subprocess.Popen:
    """Another process that runs `code`, prints a line and waits until it is killed or told to go on."""
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys; from kernels import home as place; from pathlib import Path\n{code}",
            *map(str, arguments),
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **more,
    )


def names(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


def test_a_folder_appears_whole_or_not_at_all(home):
    with pytest.raises(RuntimeError), place.whole(home / "artifacts" / "a") as temporary:
        (temporary / "half").write_text("x")
        raise RuntimeError
    assert names(home / "artifacts") == []
    for content in "12":
        with place.whole(home / "artifacts" / "a") as temporary:
            (temporary / "file").write_text(content)
    assert (home / "artifacts" / "a" / "file").read_text() == "2" and names(home / "artifacts") == ["a"]
    with place.whole(home / "artifacts" / "a", replace=False) as temporary:
        (temporary / "file").write_text("3")
    assert (home / "artifacts" / "a" / "file").read_text() == "2" and names(home / "artifacts") == ["a"]


def test_two_writers_of_one_folder_both_end_well(home):
    with place.whole(home / "artifacts" / "a") as first:
        (first / "who").write_text("first")
        with place.whole(home / "artifacts" / "a") as second:
            (second / "who").write_text("second")
    assert names(home / "artifacts") == ["a"] and (home / "artifacts" / "a" / "who").read_text() == "first"


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(home):
    code = """
with place.whole(Path(sys.argv[1]) / "models" / "m") as a, place.whole_file(Path(sys.argv[1]) / "downloads" / "d.zip") as b, \\
        place.scratch(Path(sys.argv[1]) / "kernels"):
    (a / "model.safetensors").write_bytes(bytes(1000)); print("ready", flush=True); sys.stdin.readline()
"""
    writer = other(code, home)
    writer.stdout.readline()
    assert place.sweep(home) == [] and [len(names(home / f)) for f in ("models", "downloads", "kernels")] == [
        1,
        1,
        1,
    ]
    writer.kill()
    writer.wait()
    assert len(place.sweep(home)) == 3 and [names(home / f) for f in ("models", "downloads", "kernels")] == [
        [],
        [],
        [],
    ]


def test_leavings_of_older_versions_go_after_a_day(home):
    old = [
        "models/.smollm2.0a1b2c3d",
        "artifacts/.key.0a1b2c3d",
        "runs/.x.json.0a1b2c3d",
        "kernels/.build-abc",
        "runs/.probe.abcd",
        "downloads/a.part",
        "downloads/tmp0a1b2c3d",
        "baselines/noindex",
    ]
    kept = [
        "models/smollm2",
        "artifacts/a.part",
        "downloads/a.zip",
        "baselines/whole/index.json",
        "runs/x.json",
        "models/.keep",
    ]
    for name in old + kept:
        file = home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.mkdir() if name in ("baselines/noindex", "models/.smollm2.0a1b2c3d") else file.write_text("x")
    assert place.sweep(home) == [], "they may still be written"
    for file in home.rglob("*"):
        os.utime(file, (0, 0))
    assert sorted(place.sweep(home)) == sorted(Path(n).name for n in old)
    assert all((home / name).exists() for name in kept)


def test_who_lives_is_told_until_the_very_end(home):
    code = "print(place.claim(Path(sys.argv[1])), flush=True); sys.stdin.readline()"
    first, second = other(code, home), other(code, home)
    one, two = (p.stdout.readline().strip() for p in (first, second))
    assert place.alive(home, one) and place.alive(home, two) and place.claim(home) == place.claim(home)
    first.kill()
    first.wait()
    assert not place.alive(home, one) and place.alive(home, two) and place.alive(home, place.claim(home))
    assert (
        not place.alive(home, "../../etc/passwd")
        and not place.alive(home, "")
        and not place.alive(home, "0" * 12)
    )
    place.sweep(home)
    assert not (home / "live" / one).exists() and (home / "live" / two).exists()
    second.communicate("")
    assert not (home / "live" / two).exists(), "a process that ends by itself takes its name along"


def test_without_locks_the_process_itself_and_age_decide(home, monkeypatch):
    code = "place.fcntl = None; print(place.claim(Path(sys.argv[1])), flush=True); sys.stdin.readline()"
    process = other(code, home)
    name = process.stdout.readline().strip()
    monkeypatch.setattr(
        place.fcntl, "flock", lambda *a: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks available"))
    )
    assert place.alive(home, name)
    process.kill()
    process.wait()
    assert not place.alive(home, name)
    with place.whole(home / "artifacts" / "a") as temporary:
        assert place.sweep(home) == [] and temporary.is_dir()
        os.utime(temporary, (0, 0))
        assert place.sweep(home) == [temporary.name]
        temporary.mkdir()
    assert names(home / "artifacts") == ["a"]


def test_what_is_in_use_is_not_removed(home):
    folder = home / "artifacts" / "a"
    folder.mkdir(parents=True)
    with place.held(folder), place.held(folder):
        assert not place.remove_unused(folder) and folder.is_dir()
    assert place.remove_unused(folder) and not folder.exists()
    with place.held(folder):
        pass


BAD = {
    "a file in its place": lambda base: (base / "file").write_text("x") and base / "file",
    "a file above it": lambda base: (base / "file").write_text("x") and base / "file" / "below" / "it",
    "a link to nowhere": lambda base: (base / "link").symlink_to("/proc/nowhere/at/all") or base / "link",
    "a place that takes no folders": lambda base: Path("/proc/self/home"),
    "a name that is too long": lambda base: base / ("x" * 300),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_home_that_cannot_be_written_gives_way_to_a_temporary_one(home, monkeypatch, tmp_path, kind):
    wanted = BAD[kind](tmp_path)
    monkeypatch.setenv(place.VARIABLE, str(wanted))
    found = place.home()
    assert found.parent == tmp_path / "tmp" and place.why_temporary(found) and place.home() == found
    assert os.environ[place.VARIABLE] == str(found), "processes that are started now find it too"
    place.write(found / "runs" / "x.json", b"{}")
    assert place.sweep(found) == [] and found.is_dir(), "it is in use"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_a_home_whose_disk_is_full_or_read_only_is_used_as_far_as_it_can_be_read(
    home, monkeypatch, tmp_path, number
):
    (home / "models" / "m").mkdir(parents=True)
    (home / "models" / "m" / "model.safetensors").write_bytes(b"weights")
    place.write(home / "runs" / "x.json", b"{}")
    real = Path.write_bytes

    def full(self, data):
        if home in self.parents:
            raise OSError(number, os.strerror(number), str(self))
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    place.usable.cache_clear()
    found = place.home()
    assert found != home and place.why_temporary(found) == os.strerror(number)
    assert (found / "models" / "m" / "model.safetensors").read_bytes() == b"weights" and (
        found / "runs" / "x.json"
    ).is_file()
    assert not [n for n in names(home) if n.startswith(".")]
    place.usable.cache_clear()


def test_a_temporary_home_ends_with_its_process_and_that_of_a_killed_one_is_swept(tmp_path, home):
    (tmp_path / "file").write_text("x")
    environment = dict(os.environ) | {place.VARIABLE: str(tmp_path / "file"), "TMPDIR": str(tmp_path / "tmp")}
    code = "print(place.home(), flush=True); sys.stdin.readline()"
    ends, killed = other(code, env=environment), other(code, env=environment)
    one, two = (Path(p.stdout.readline().strip()) for p in (ends, killed))
    assert one.is_dir() and two.is_dir() and place.sweep(home) == []
    ends.communicate("")
    assert not one.exists()
    killed.kill()
    killed.wait()
    assert two.is_dir() and place.sweep(home) == [two.name] and not two.exists()


def test_without_any_place_the_reason_is_told(home, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(OSError, match="neither .* nor a temporary folder can be written"):
        place.usable(tmp_path / "file" / "home")


@pytest.mark.parametrize("variable", ["~/some/home", "some/home"])
def test_every_process_finds_the_same_home(home, monkeypatch, tmp_path, variable):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(place.VARIABLE, variable)
    assert place.home() == tmp_path / "some" / "home" and os.environ[place.VARIABLE] == str(
        tmp_path / "some" / "home"
    )
