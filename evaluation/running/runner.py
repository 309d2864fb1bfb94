"""Runs for the page: a line of them, one at a time, each where the executor puts it (executor.py).

The app's process never loads a model. A run that is killed or runs out of memory leaves a record and the next
run works. `submit` gives equal requests one run; `state` is what the page polls.
"""

from __future__ import annotations

import collections
import threading
import time
from dataclasses import dataclass, field

from compression.base import CompressionError
from evaluation import host
from evaluation.running import deaths
from evaluation.running.clock import still
from evaluation.running.estimate import estimate, stage_seconds
from evaluation.running.executor import Executor, Running, Workers
from evaluation.running.freshness import answers
from evaluation.running.public import named_only
from evaluation.spec import Result, RunSpec, Status
from evaluation.store import Store

PUBLIC_MINUTES = 60  # the longest run of a public page, by its estimate
# a run of a public page is ended after this, whatever was estimated: e.g. a chat template may have no end
PUBLIC_SECONDS = 2 * 60.0 * PUBLIC_MINUTES
WAITING = 20  # runs that may wait
WAITING_OF_ADDRESS = 8  # of these, how many one network address may have; many visitors may share an address
INTERRUPTED: tuple[Status, dict] = (
    "interrupted",
    {"code": "interrupted", "message": "the app ended while this run was going on", "facts": {}},
)


class Refused(CompressionError):
    """A request that the runner doesn't take."""

    code = "refused"


@dataclass
class Job:
    """A run that is waiting or going on."""

    id: str
    spec: RunSpec
    visitors: set[str]  # hashes of the tokens of the visitors who wait for it
    again: bool
    address: str = ""  # network address of the visitor who asked first
    status: Status = "queued"
    began: float = 0.0
    event: dict = field(default_factory=dict)  # the last one
    said: float = 0.0  # when it came
    stopped: bool = False
    late: bool = False  # it took longer than a public page allows
    running: Running | None = None


class Runner:
    """The line of runs, and a thread that takes one after the other."""

    def __init__(self, store: Store, *, executor: Executor | None = None, public: bool = False):
        self.store, self.executor, self.public = store, executor or Workers(), public
        self._jobs: collections.OrderedDict[str, Job] = collections.OrderedDict()
        self._lock = threading.Condition()
        self._closed = False
        store.mark_interrupted()
        self._thread = threading.Thread(target=self._work, daemon=True, name="runner")
        self._thread.start()

    # --- what the page calls ---

    def submit(self, spec: RunSpec, visitor: str = "", again: bool = False, address: str = "") -> str:
        """Queue a run and return its id.

        An equal run that waits or runs is shared; a stored answer is returned at once. visitor: a hash of the
        secret by which its owner may stop it; "" for nobody. address: the visitor's network address.

        Raises Refused if the line is full, if the visitor has a waiting run already, or if the address has
        too many. On a public Space it also refuses files of the server, very long runs, and runs that can't
        fit.
        """
        minutes = 0
        if self.public:
            named_only(spec)
            minutes = round(sum(stage_seconds(spec).values()) / 60)
            if (needs := estimate(spec).peak_bytes) > (has := host.profile().memory_bytes):
                raise Refused(
                    f"the run needs about {needs / 1e9:.1f} GB of memory, and this machine has "
                    f"{has / 1e9:.1f} GB",
                    code="too_big_for_memory",
                    name=spec.model,
                    need_bytes=needs,
                    free_bytes=has,
                )
        with self._lock:
            for job in self._jobs.values():
                if not job.stopped and job.spec.identity() == spec.identity():
                    job.visitors |= {visitor} - {""}
                    return job.id
            if not again and (found := self.store.find(spec.identity())) and self._usable(found):
                return found.id
            if minutes > PUBLIC_MINUTES:
                raise Refused(
                    f"about {minutes} minutes, where a public page gives a run {PUBLIC_MINUTES}; take the "
                    "short budget, less text or a smaller model, or run the app on your own machine",
                    code="too_long",
                    minutes=minutes,
                    limit=PUBLIC_MINUTES,
                )
            waiting = [j for j in self._jobs.values() if j.status == "queued"]
            if visitor and any(visitor in j.visitors for j in waiting):
                raise Refused(
                    "you have a run waiting already; stop it or let it finish first", code="one_queued"
                )
            if address and self.public and sum(j.address == address for j in waiting) >= WAITING_OF_ADDRESS:
                raise Refused(
                    f"{WAITING_OF_ADDRESS} runs of your network wait already; try again when one is done",
                    code="address_full",
                    limit=WAITING_OF_ADDRESS,
                )
            if len(waiting) >= WAITING:
                raise Refused(
                    f"{WAITING} runs wait already; try again in a while", code="queue_full", limit=WAITING
                )
            job = Job(self.store.new_id(), spec, {visitor} - {""}, again, address)
            self._record(job)
            self._jobs[job.id] = job
            self._lock.notify_all()
        return job.id

    def _usable(self, result: Result) -> bool:
        return (result.spec.is_original or self.store.has_artifact(result)) and answers(result, self.store)

    def state(self, run_id: str, visitor: str = "") -> dict:
        """What the page shows of a run.

        Fields: status, stage, done, total, seconds_left, elapsed (seconds since it began), place in line,
        shared (more than one visitor waits for it), mine (this visitor does), alone (nobody else does),
        facts, result_id, error.
        """
        with self._lock:
            job = self._jobs.get(run_id)
            if job:
                place = list(self._jobs).index(run_id)
                shown = {k: job.event.get(k) for k in ("stage", "done", "total", "seconds_left", "facts")}
                if shown["seconds_left"] is not None:
                    shown["seconds_left"] = still(shown["seconds_left"], time.monotonic() - job.said)
                shown |= {
                    "elapsed": time.monotonic() - job.began if job.began else 0.0,
                    "shared": len(job.visitors) > 1,
                }
                shown |= {"mine": visitor in job.visitors, "alone": job.visitors == {visitor}}
                return {
                    "id": run_id,
                    "status": job.status,
                    "place": place,
                    "result_id": None,
                    "error": {},
                    **shown,
                }
        result = self.store.get_id(run_id)
        if result is not None and result.status in ("running", "queued") and self.store.mark_interrupted():
            result = self.store.get_id(run_id)  # it belonged to another program, which has died
        if result is None:
            return {
                "id": run_id,
                "status": "unknown",
                "result_id": None,
                "error": {"code": "run_gone", "facts": {}},
            }
        return {"id": run_id, "status": result.status, "result_id": result.id, "error": result.error}

    def cancel(self, run_id: str, visitor: str) -> None:
        """Stop this visitor's waiting or running run; its memory is free again within three seconds.

        A visitor who shares the run with others only leaves it. One who doesn't wait for it changes nothing.
        """
        with self._lock:
            job = self._jobs.get(run_id)
            if job is None or visitor not in job.visitors:
                return
            job.visitors.discard(visitor)
            if job.visitors:
                return
            job.stopped = True
            if job.status == "queued":
                self._finish(
                    job, "cancelled", {"code": "cancelled", "message": "stopped while waiting", "facts": {}}
                )
                return
        if job.running:
            job.running.end()

    def enough(self, run_id: str, visitor: str) -> None:
        """Let a running training end now and keep its best state.

        Only if nobody but this visitor waits for it. It is no error if there is nothing to end.
        """
        with self._lock:
            job = self._jobs.get(run_id)
            running = job.running if job is not None and job.visitors == {visitor} else None
        if running:
            running.enough()

    def busy(self) -> bool:
        """True while a run is going on."""
        with self._lock:
            return any(j.status == "running" for j in self._jobs.values())

    def close(self) -> None:
        """End all workers. Waiting and running runs become interrupted; no file stays half written."""
        with self._lock:
            self._closed = True
            jobs = list(self._jobs.values())
            self._lock.notify_all()
        for running in [job.running for job in jobs if job.running]:
            running.end(grace=0.2)
        self.executor.close()
        if self._thread is not threading.current_thread():
            self._thread.join(5)
        with self._lock:
            for job in [j for j in self._jobs.values() if j.status == "queued"]:
                self._finish(job, *INTERRUPTED)
        self.store.sweep()

    # --- the working thread ---

    def _work(self) -> None:
        while True:
            self.executor.ready()
            with self._lock:
                while not self._closed and not any(j.status == "queued" for j in self._jobs.values()):
                    self._lock.wait()
                if self._closed:
                    return
                job = next(j for j in self._jobs.values() if j.status == "queued")
                job.status, job.began = "running", time.monotonic()
            self._record(job)
            try:
                self._run(job)
            except Exception as error:  # the queue must go on whatever happened to one run
                with self._lock:
                    self._finish(job, deaths.status(error), deaths.describe(error))
            if not self._closed:
                self.store.sweep()  # a worker that was ended may have been writing

    def _request(self, job: Job) -> dict:
        return {
            "spec": job.spec.json(),
            "id": job.id,
            "home": str(self.store.home),
            "allow_paths": not self.public,
            "again": job.again,
        }

    def _run(self, job: Job) -> None:
        job.running = self.executor.begin(self._request(job))
        if job.stopped or self._closed:
            job.running.end()
        result = None
        alarm = threading.Timer(PUBLIC_SECONDS, self._too_late, (job,))
        alarm.daemon = True
        if self.public:
            alarm.start()
        try:
            for event in job.running.events():
                result = self._take(job, event) or result
        finally:
            alarm.cancel()
            job.running.end()
        self._conclude(job, result)

    @staticmethod
    def _too_late(job: Job) -> None:
        """Take a run's process away; others wait for their turn."""
        assert job.running is not None
        job.late = True
        job.running.end()

    @staticmethod
    def _take(job: Job, event: dict) -> Result | None:
        """Take note of an event; returns the run's result if this is the last event."""
        if "stage" in event:
            job.event, job.said = event, time.monotonic()
        return Result.parse(event["result"]) if "result" in event else None

    def _conclude(self, job: Job, result: Result | None) -> None:
        """Finish a job whose run has ended: by its result, by the visitor, or by the death of its process."""
        with self._lock:
            if result is not None and not job.stopped:
                stored = self.store.get_id(job.id)
                # the worker couldn't write it: the disk is full
                if stored is None or stored.status in ("running", "queued"):
                    self._put(result)
                self._jobs.pop(job.id, None)
            elif job.stopped:
                self._finish(
                    job, "cancelled", {"code": "cancelled", "message": "stopped by the visitor", "facts": {}}
                )
            elif job.late:
                facts = {"minutes": round(PUBLIC_SECONDS / 60)}
                said = f"the run took more than {facts['minutes']} minutes, and others wait"
                self._finish(job, "failed", {"code": "overtime", "message": said, "facts": facts})
            else:
                assert job.running is not None
                self._finish(job, *(INTERRUPTED if self._closed else job.running.death()))

    def _record(self, job: Job) -> None:
        """Write a record that the run exists, so that it isn't lost when the app restarts."""
        self._put(Result(key="", spec=job.spec, status=job.status, id=job.id))

    def _put(self, result: Result) -> None:
        try:
            self.store.put(result)
        except OSError:
            pass  # a full disk stops no run: the store keeps the record in memory

    def _finish(self, job: Job, status: Status, error: dict) -> None:
        self._jobs.pop(job.id, None)
        self._put(Result(key="", spec=job.spec, status=status, error=error, id=job.id))
