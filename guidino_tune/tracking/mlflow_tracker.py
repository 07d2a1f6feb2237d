"""Tracking that never stops or slows a trial: the driver leaves snapshots here, and a background thread brings MLflow up to date.

The study's folder is the spool. What a run needs is in the driver's snapshots, what MLflow already has is in the ledger, and their
difference is sent. So it makes no difference whether MLflow was away for a second or for the whole search: the rest goes out when it
is back, or when the same command runs again. Run ids, steps and times come from the study, so nothing is stored twice.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from guidino_tune import paths
from guidino_tune.errors import UserError, redacted
from guidino_tune.tracking.client import THREAD_NAME, connect, explain, is_permanent, is_server, is_slow, place, ui_command
from guidino_tune.tracking.ledger import Ledger
from guidino_tune.tracking.notes import NOTE
from guidino_tune.tracking.runs import STUDY, RunSender, study_id
from guidino_tune.tracking.snapshots import EndedTrial, StudySnapshot, TrialSnapshot
from guidino_tune.tracking.views import page

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds between two tries while MLflow is away
HURRY = 0.3  # the same while ``close`` waits
PATIENCE = 20  # so many failures in a row are enough for ``close``
LONGEST_TIMEOUT = 60  # seconds for one request: it doubles until a slow server has time enough to answer
REST = 0.2  # most seconds of rest after a request: as long as it took, for the driver waits wherever this thread computes
GATHER = 1.0  # seconds for which a change waits for others that go with it in one request; the end of a trial does not wait

Job = tuple[str, int]  # what to send ("study", "trial", "study files", "trial files") and the trial's number (-1 for the study)
URGENT = ("study", "trial")  # files may be large: figures of all trials go first


class MLflowTracker:
    """Keeps one parent run (the study) and one child run per trial up to date.

    No method raises because of MLflow, and ``update`` costs microseconds. After a resume, hand over every trial again, finished ones too.

    Args:
        uri: Of an MLflow server or a database; ``None`` takes ``$MLFLOW_TRACKING_URI``.
        experiment: Name of the MLflow experiment; created when missing.
        study: The study as it is now.
        ledger: File that remembers what was sent; in the study's folder.
        artifact_location: Folder for the artifacts of a new experiment in a database; a server has its own place.
        tell: Called from the background thread with one line when MLflow goes away (once for each reason) and when it is back.
        timeout: Of one request at first, in seconds; it grows while MLflow is too slow for it. ``$MLFLOW_HTTP_REQUEST_TIMEOUT`` wins.

    Raises:
        UserError: There is no URI.
    """

    def __init__(
        self,
        uri: str | None,
        experiment: str,
        study: StudySnapshot,
        ledger: Path,
        artifact_location: Path | None = None,
        *,
        tell: Callable[[str], None] | None = None,
        timeout: int = 5,
    ) -> None:
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise UserError("no MLflow to track to", todo="set MLFLOW_TRACKING_URI, or give a database such as sqlite:////folder/mlflow.db")
        self.uri = uri
        self._experiment, self._ledger_path = experiment, ledger
        self._artifact_location = None if is_server(uri) else artifact_location
        self._tell, self._told, self._telling = tell or (lambda _: None), set[str](), False
        self._timeout = timeout
        self._study, self._status = study, "RUNNING"
        self._trials: dict[int, TrialSnapshot] = {}
        self._ended: dict[int, EndedTrial] = {}
        self._jobs: dict[Job, float] = {("study", -1): 0.0}  # when each is due (monotonic seconds), in order
        self._waiting = 0  # calls of flush: nothing waits for others then
        self._busy: Job | None = None
        self._lock = threading.Condition()
        self._ending = threading.Event()  # close() waits: try faster
        self._stopped = threading.Event()  # give up
        self._thread: threading.Thread | None = None
        self._sender: RunSender | None = None
        self._away: str | None = None
        self._failures = 0  # in a row
        self._refusals: list[str] = []
        self._ledger: Ledger | None = None

    def start(self) -> None:
        """Starts the background thread; at once, without waiting for MLflow. A second call does nothing."""
        if self._thread is None:
            # A daemon: a hanging server must not keep a finished driver alive.
            self._thread = threading.Thread(target=self._work, name=THREAD_NAME, daemon=True)
            self._thread.start()

    def update(self, trial: TrialSnapshot, ended: EndedTrial | None = None) -> None:
        """Leaves a trial's newest snapshot to be sent; an older one that still waits is replaced.

        Args:
            trial: The snapshot.
            ended: The same trial, where it has ended: once the snapshot is sent, this is kept in its place.
        """
        with self._lock:
            self._trials[trial.number] = trial
            self._ended.pop(trial.number, None)
            if ended:
                self._ended[trial.number] = ended
                if self._away:
                    del self._trials[trial.number]
            self._add(("trial", trial.number), 0.0 if trial.finished else GATHER)

    def update_ended(self, trial: EndedTrial) -> None:
        """The same for a trial that ended in an earlier run."""
        with self._lock:
            self._trials.pop(trial.number, None)
            self._ended[trial.number] = trial
            self._add(("trial", trial.number), 0.0)

    def update_study(self, study: StudySnapshot) -> None:
        """The same for the study."""
        with self._lock:
            self._study = study
            self._add(("study", -1), GATHER)

    def flush(self, timeout: float = 30.0, patience: float = math.inf) -> bool:
        """Waits until everything was sent, at most ``timeout`` seconds or ``patience`` failures in a row; True if it was."""
        with self._lock:
            self._waiting += 1
            self._lock.notify_all()
            try:
                self._lock.wait_for(lambda: self._pending() == 0 or self._failures >= patience, timeout)
                return self._pending() == 0 and not self._refusals
            finally:
                self._waiting -= 1

    def close(self, timeout: float = 30.0, interrupted: bool = False) -> bool:
        """Sends what is left, at most ``timeout`` seconds, and ends the thread.

        Args:
            timeout: Seconds.
            interrupted: The search was stopped before its end: the parent run becomes KILLED instead of FINISHED, and trials that were
                running SCHEDULED, as the same command goes on with them.

        Returns:
            True if MLflow has everything; else see ``message``.
        """
        with self._lock:
            self._status = "KILLED" if interrupted else "FINISHED"
            for number, trial in self._trials.items():
                if interrupted and trial.state == "running":
                    self._trials[number] = replace(trial, state="interrupted")
                    self._jobs[("trial", number)] = 0.0
            self._jobs[("study", -1)] = 0.0
            self._failures = 0
            self._lock.notify_all()
        deadline = time.monotonic() + timeout
        self._ending.set()
        done = self._thread is not None and self.flush(timeout, PATIENCE)
        self._stopped.set()
        with self._lock:
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join(max(0.0, min(1.0, deadline - time.monotonic())))
        return done

    @property
    def pending(self) -> int:
        """How many things (figures or files of a trial or of the study) wait to be sent."""
        with self._lock:
            return self._pending()

    @property
    def failures(self) -> int:
        """How many attempts in a row have failed, until now."""
        return self._failures

    @property
    def last_error(self) -> str | None:
        """What is wrong now, in one line, or ``None``."""
        ledger = self._ledger.error if self._ledger else None
        return self._away or (self._refusals[-1] if self._refusals else None) or ledger

    @property
    def message(self) -> str:
        """For people: where the runs are, or what is missing and why."""
        pending = self.pending
        if pending:
            why = f" ({self._away})" if self._away else ""
            command = paths.next_command(f"track {self._study.name} --flush")
            return f"{pending} updates are not yet in MLflow{why}; this sends them, as the same command would:\n  {command}"
        if self._refusals:
            return f"{len(self._refusals)} entries could not be sent to MLflow, the last one: {self._refusals[-1]}"
        if is_server(self.uri):
            return f"everything is in MLflow: {self.url}"
        return f"everything is in MLflow: {ui_command(self.uri)} shows it at {self.url}"

    @property
    def ui_command(self) -> str:
        """The command that opens the runs in a browser, or the server's address."""
        return ui_command(self.uri)

    @property
    def url(self) -> str:
        """Page of the study's trials, best first, for a database on the server that ``ui_command`` starts; empty before there are any."""
        experiment = self._sender.location[0] if self._sender else ""
        return page(self.uri, experiment, study_id(self._study)) if experiment else ""

    def _pending(self) -> int:
        return len(self._jobs) + (self._busy is not None)

    def _work(self) -> None:
        self._ledger = Ledger(self._ledger_path)
        wait = FIRST_WAIT
        while (job := self._next()) is not None:
            began = time.monotonic()
            error = self._attempt(job)
            with self._lock:
                self._busy = None
                if error is None:
                    files = (f"{job[0]} files", job[1])
                    if job[0] in URGENT and self._has_files(job):
                        self._jobs[files] = 0.0
                else:
                    self._jobs[job] = 0.0
                    # An outage may last: what has ended is read again from its folder when it is sent.
                    for number in self._trials.keys() & self._ended.keys():
                        del self._trials[number]
                self._away = error
                self._failures = self._failures + 1 if error else 0
                self._lock.notify_all()
            self._report(error)
            if error is None:
                wait = FIRST_WAIT
                if not self._waiting:
                    self._ending.wait(min(time.monotonic() - began, REST))
                continue
            self._pause(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    def _next(self) -> Job | None:
        """Waits for the next thing to do; ``None`` after ``close``."""
        with self._lock:
            while not self._stopped.is_set():
                now = math.inf if self._waiting or self._ending.is_set() else time.monotonic()
                urgent = (job for job, at in self._jobs.items() if at <= now and job[0] in URGENT)
                # At the end the study comes last, with what concludes it.
                job = min(urgent, key=lambda job: job[0] == "study", default=None) if self._ending.is_set() else next(urgent, None)
                job = job or next((job for job in self._jobs if job[0] not in URGENT), None)
                if job is not None:
                    del self._jobs[job]
                    self._busy = job
                    return job
                self._lock.wait(min(self._jobs.values()) - now if self._jobs else None)
            return None

    def _add(self, job: Job, delay: float) -> None:
        """Puts a job on the list, or makes one due earlier that is there already; the lock is held."""
        due = time.monotonic() + delay
        known = self._jobs.get(job)
        if known is None or due < known:
            self._jobs[job] = due
            self._lock.notify_all()

    def _pause(self, seconds: float) -> None:
        """Waits, but not long once ``close`` was called."""
        self._ending.wait(seconds)
        if self._ending.is_set():
            self._stopped.wait(min(seconds, HURRY))

    def _report(self, error: str | None) -> None:
        """Tells people when MLflow goes away, once for each reason, and when it is back."""
        if error is None and self._telling:
            self._telling = False
            self._tell("MLflow answers again; what it missed is sent now")
        elif error is not None and error not in self._told and not self._stopped.is_set():
            self._told.add(error)
            self._telling = True
            self._tell(f"MLflow is away: {error}. Trials go on; everything is kept in the study's folder and sent later")

    def _attempt(self, job: Job) -> str | None:
        """Sends one thing; returns why it must be tried again, or ``None``."""
        connecting = self._sender is None
        try:
            sender = self._sender or self._open()
            connecting = False
            self._send(sender, job)
        except Exception as error:  # whatever happens in here, trials go on
            if not connecting and is_permanent(error):
                self._refuse(" ".join(str(error).split())[:400] or type(error).__name__)
                return None
            self._sender = None  # look again for the parent: the database may be a new one
            if is_slow(error):
                self._timeout = min(2 * self._timeout, LONGEST_TIMEOUT)
            return explain(error, self.uri)
        return None

    def _open(self) -> RunSender:
        assert self._ledger is not None
        sender = RunSender(connect(self.uri, self._timeout), self._experiment, self._artifact_location, self._ledger, self._refuse)
        if not sender.open(self._study):
            with self._lock:
                self._jobs |= dict.fromkeys([("study", -1), *(("trial", number) for number in {*self._trials, *self._ended})], 0.0)
        if self._ledger.sent(STUDY).uri != (now := place(self.uri)):
            self._ledger.note(STUDY, uri=now)
        self._sender = sender
        return sender

    def _send(self, sender: RunSender, job: Job) -> None:
        kind, number = job
        with self._lock:
            study, status, trial, ended = self._study, self._status, self._trials.get(number), self._ended.get(number)
        if kind == "study":
            sender.send_study(study, status)
            if status != "RUNNING":
                sender.remove_doubles(study)
        elif kind == "study files":
            sender.send_files(STUDY, (), study.artifacts)
        elif self._has(ended) or not (snapshot := trial or (ended and ended.read())):
            return
        elif kind == "trial":
            sender.send_trial(snapshot, study)
        else:
            sender.send_files(str(number), snapshot.pictures, snapshot.artifacts, snapshot.tags.get(NOTE, ""))
            with self._lock:
                if ended and self._ended.get(number) is ended:
                    self._trials.pop(number, None)
            assert self._ledger is not None
            if ended and not self._refusals and self._ledger.sent(str(number)).run_id:
                self._ledger.note(str(number), ended=ended.key)

    def _has(self, ended: EndedTrial | None) -> bool:
        """True when MLflow has everything of a trial that ended."""
        return bool(ended and self._ledger and self._ledger.sent(str(ended.number)).ended == ended.key)

    def _has_files(self, job: Job) -> bool:
        """True when the files of a job's run are to be looked at; of a trial that ended, to note that MLflow has all of it."""
        trial, ended = self._trials.get(job[1]), self._ended.get(job[1])
        if ended:
            return not self._has(ended)
        return bool(trial.pictures or trial.artifacts) if trial else bool(self._study.artifacts)

    def _refuse(self, message: str) -> None:
        message = redacted(message, self.uri)
        if message not in self._refusals:
            self._refusals.append(message)
