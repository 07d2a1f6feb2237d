"""The ledger: what MLflow already has of a study, kept as append-only JSON lines in the study's folder."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

COMPACT_ABOVE = 10_000
RETRY = 10.0
"""Seconds until a file that could not be written is tried again."""


@dataclass(slots=True)
class Sent:
    """What one run has received.

    Attributes:
        run_id: MLflow's id; empty when there is no run yet.
        params: Whether parameters and data sets were sent.
        epoch: The last epoch whose metrics were sent.
        status: MLflow status and the reason sent with it.
        tags: Last value of every tag.
        metrics: Last value of metrics that are no epoch's: of the study, and final ones of a trial.
        step: What earlier versions added to for each change of those; new ones come after it.
        files: Content hash by path in the run.
        deleted: A person deleted the run in MLflow: it stays deleted.
        doubtful: When a run of the study was last asked for that may have been asked for before (Unix seconds), while MLflow may still
            make it twice; else 0. Only of the study's own run.
        uri: The MLflow that has the study, without a password; only of the study's own run.
        ended: The key of the trial's ``EndedTrial`` of which MLflow has everything.
    """

    run_id: str = ""
    params: bool = False
    epoch: int = -1
    status: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    step: int = 0
    files: dict[str, str] = field(default_factory=dict)
    deleted: bool = False
    doubtful: float = 0.0
    uri: str = ""
    ended: str = ""

    def merge(self, changes: dict[str, Any]) -> None:
        """Takes over ``changes``; tags, metrics and files are added to, everything else is replaced. Unknown keys are left out."""
        for key, value in changes.items():
            if key in ("tags", "metrics", "files"):
                getattr(self, key).update(value)
            elif key in ("run_id", "params", "epoch", "status", "step", "deleted", "doubtful", "uri", "ended"):
                setattr(self, key, value)


class Ledger:
    """Reads the ledger at ``path`` (a missing file is an empty ledger) and appends to it.

    A lost or torn line costs a second sending, which MLflow stores once; so nothing is synced to disk, and a ledger that cannot be
    written goes on in memory, and into the file as soon as that can be written again.

    Args:
        path: Of the file.
        read_only: Leave the file as it is, for another process may be writing it.

    Attributes:
        error: Why the last line could not be written, or ``None``.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path, self._read_only = path, read_only
        self.error: str | None = None
        self._behind = 0.0  # since when the file lacks lines, in monotonic seconds; 0 when it has all
        self._runs: dict[str, Sent] = {}
        self._read()

    def sent(self, key: str) -> Sent:
        """What the run ``key`` (``study``, or a trial's number as text) has received."""
        return self._runs.setdefault(key, Sent())

    def note(self, key: str, **changes: Any) -> None:
        """Remembers that ``changes`` have reached MLflow."""
        self.sent(key).merge(changes)
        self._append({"run": key, **changes})

    def forget(self, key: str | None = None) -> None:
        """Takes one run, or all, as never sent."""
        self._apply({"forget": key})
        self._append({"forget": key})

    def _apply(self, line: dict[str, Any]) -> None:
        if "forget" in line:
            if line["forget"] is None:
                self._runs.clear()
            else:
                self._runs.pop(line["forget"], None)
        else:
            self.sent(line["run"]).merge(line)

    def _read(self) -> None:
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            self.error = f"{self.path}: {error.strerror}"
            return
        lines = text.split("\n")
        for line in lines:
            try:
                self._apply(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # torn when a driver was killed: what it said is sent again
        if len(lines) > COMPACT_ABOVE and not self._read_only:
            self._write()
        elif lines[-1]:
            self._append(None)  # ends the torn line, so that the next one is whole

    def _append(self, line: dict[str, Any] | None) -> None:
        if self._read_only:
            return
        if self._behind:
            if time.monotonic() - self._behind >= RETRY:
                self._write()  # with all that could not be written since
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("" if line is None else json.dumps(line)) + "\n")
            self.error = None
        except OSError as error:
            self._failed(error)

    def _write(self) -> None:
        """Replaces the file by one line for each run."""
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            temporary.write_text(
                "".join(json.dumps({"run": key, **asdict(sent)}) + "\n" for key, sent in self._runs.items()), encoding="utf-8"
            )
            os.replace(temporary, self.path)
            self.error, self._behind = None, 0.0
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        self.error, self._behind = f"{self.path}: {error.strerror}", time.monotonic()
