"""What every part plays with: the real app in a process of its own, and a home that has the slow things
ready."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from tests.page.stage import free_port

ROOT = Path(__file__).parents[2]
# all limits of time are as much longer: for a slow or a busy machine
PATIENCE = float(os.environ.get("SOAK_PATIENCE", 1))
READY_SECONDS = 180 * PATIENCE  # from start to the first answer; a quiet machine takes five
TRACEBACK = re.compile(
    r"^Traceback \(most recent call last\):|^\s*\+ Exception Group Traceback"
    # an error that nobody expected, in one line
    r"|^(?:(?:GET|POST|HEAD) /\S*: )?[A-Za-z_.]*(?:Error|Exception)\b.*line \d+.*\)$",
    re.MULTILINE,
)
TEMPORARY = re.compile(r"^\.|\.part$|\.tmp$")  # names of files and folders that are being written
LOCKS = re.compile(r"\.lock$")


PREPARE = {  # what takes minutes the first time, and the code that does it
    "kernels": "from kernels import cpu; from evaluation import host; cpu.wait(); host.profile(); "
    "host.profile(again=True)",
    "models": "from compression import catalogue, models; models.prepare(catalogue.OFFLINE_MODEL)",
}


def environment(home: Path | None, **changes: str | None) -> dict[str, str]:
    """The environment of a process on `home`: no network, one thread; a change to None removes the
    variable."""
    fields = dict(os.environ) | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    fields |= {"COMPRESSION_EXPLORER_HOME": str(home)} if home else {}
    return {k: v for k, v in (fields | changes).items() if v is not None}


class App:
    """app.py in a process of its own. `with App(home) as app: ...` ends it and whatever it has started."""

    def __init__(
        self,
        home: Path | None,
        *,
        public: bool = False,
        limit: Callable[[], None] | None = None,
        **changes: str | None,
    ):
        """limit: called in the new process before it begins, e.g. to set a limit. changes: of the
        environment."""
        self.home, self.port = home, free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self.log = Path(os.environ["SOAK_SCRATCH"]) / f"app-{self.port}-{time.time_ns()}.log"
        self._environment = environment(
            home,
            GRADIO_SERVER_PORT=str(self.port),
            SPACE_ID="somebody/some-space" if public else None,
            **changes,
        )
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "app.py"],
                cwd=ROOT,
                env=self._environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=limit,
            )
        self._seen = 0

    def ready(self, seconds: float = READY_SECONDS) -> App:
        """Wait for the first answer. Raises TimeoutError, or RuntimeError if the app has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"the app ended with code {self.process.returncode}: {self.text()[-1500:]}"
                )
            try:
                if httpx.get(self.url + "config", timeout=10, trust_env=False).status_code < 500:
                    return self
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise TimeoutError(f"no answer in {seconds} s: {self.text()[-1500:]}")

    def text(self) -> str:
        """What the app and its workers have written."""
        return self.log.read_text("utf-8", "replace")

    def tracebacks(self) -> list[str]:
        """The tracebacks that the log has got since the last call, each as its error and the last places of
        ours."""
        text = self.text()
        fresh, self._seen = text[self._seen :], len(text)
        return [summary(fresh[m.start() :]) for m in TRACEBACK.finditer(fresh)]

    def alive(self) -> bool:
        return self.process.poll() is None

    def resident(self) -> int:
        """Bytes of memory of the app itself."""
        return psutil.Process(self.process.pid).memory_info().rss

    def descriptors(self) -> int:
        return psutil.Process(self.process.pid).num_fds()

    def cpu_seconds(self) -> float:
        return sum(psutil.Process(self.process.pid).cpu_times()[:2])

    def children(self, words: str = "") -> list[psutil.Process]:
        """Living processes that the app has started, oldest first, whose command line has `words`."""
        found = []
        try:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                try:
                    if child.status() != psutil.STATUS_ZOMBIE and words in " ".join(child.cmdline()):
                        found.append(child)
                except psutil.Error:
                    continue
        except psutil.Error:
            return []
        return sorted(found, key=lambda p: p.create_time())

    def kill(self, number: int = signal.SIGKILL) -> list[psutil.Process]:
        """Send a signal to the app alone and wait for its end. Returns what it had started."""
        started = self.children()
        self.process.send_signal(number)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return started

    def close(self) -> None:
        """End the app, then whatever of it is still there."""
        started = self.kill(signal.SIGTERM) if self.alive() else []
        _, left = psutil.wait_procs(started, timeout=5)
        for process in left:
            process.kill()

    def __enter__(self) -> App:
        try:
            return self.ready()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_) -> None:
        self.close()


def summary(traceback: str) -> str:
    """ "KeyError: 'lang' (evaluation/page/questions/figure.py:80 in front)" of a text that begins with a
    traceback."""
    if not traceback.lstrip().startswith(("Traceback", "+")):
        return traceback.partition("\n")[0][:400]
    error = re.search(r"^(?![ \t|+]|Traceback|$).+", traceback.split("\n", 1)[1], re.MULTILINE)
    body = traceback[: error.start() + 40] if error else traceback[:20_000]
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', body)
    ours = [
        f"{Path(file).relative_to(ROOT)}:{line} in {name}"
        for file, line, name in frames
        if file.startswith(str(ROOT)) and ".venv" not in file
    ]
    return f"{error[0][:300] if error else 'a traceback'} ({ours[-1] if ours else 'no frame of ours'})"


def prepared_home(place: Path, offline_model: bool = False) -> Path:
    """A fresh home at `place` with what every home has after its first minutes: built kernels, the machine's
    speed, and, if asked for, the offline model. Large files are links to one copy."""
    template = Path(os.environ["SOAK_SCRATCH"]) / "template"
    for name, code in PREPARE.items():
        ready = template / f"{name}.ready"
        if not ready.is_file() and (name == "kernels" or offline_model):
            _python(code, template)
            ready.touch()
    place.mkdir(parents=True)
    names = ["kernels", "host.json", "pace.txt", *(["models", "packages"] if offline_model else [])]
    for file in (
        f for name in names for f in [template / name, *(template / name).rglob("*")] if f.is_file()
    ):
        target = place / file.relative_to(template)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, target) if file.stat().st_size > 1_000_000 else shutil.copy2(file, target)
    return place


def _python(code: str, home: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(home),
        check=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def leftovers(home: Path, results: list[dict]) -> list[str]:
    """What lies in a home and belongs to nobody: files that were being written, models of no record,
    baselines without an index.

    results: the store's records, as JSON.
    """
    named = {r.get("artifact") for r in results if r.get("status") == "ok"}
    found = []
    for path in sorted(home.rglob("*")):
        parts = path.relative_to(home).parts
        if TEMPORARY.search(path.name) and not LOCKS.search(path.name):
            found.append("/".join(parts))
        elif len(parts) == 2 and path.is_dir() and parts[0] == "artifacts" and path.name not in named:
            found.append(f"{'/'.join(parts)} of no record")
        elif (
            len(parts) == 2
            and path.is_dir()
            and parts[0] == "baselines"
            and not (path / "index.json").is_file()
        ):
            found.append(f"{'/'.join(parts)} without index")
    return found


def within(seconds: float, look: Callable[[], object]) -> object:
    """Call `look` until it gives something true or the time (with patience) is over; what it gave last."""
    end = time.monotonic() + seconds * PATIENCE
    while not (found := look()) and time.monotonic() < end:
        time.sleep(0.1)
    return found
