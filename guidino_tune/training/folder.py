"""A trial's folder: experiment, checkpoints, history and pictures, each written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path

from guidino_tune.config import Experiment
from guidino_tune.data import locking
from guidino_tune.data.file_server import outlast
from guidino_tune.errors import UserError
from guidino_tune.training.reporter import EpochRecord

EXPERIMENT = "experiment.yaml"
"""In the folder of a training run: what is trained."""

HISTORY = "history.jsonl"
"""All epochs of a training run, one a line."""

STATE = "state.json"
"""Beside the weights of a checkpoint or a trial."""

KEEP = 2
"""Checkpoints kept: the newest, and the one before it in case the newest is damaged."""


class TrialFolder:
    """``experiment.yaml``, ``history.jsonl``, ``checkpoints/epoch-0001/``, ``best/`` and ``pictures/`` of one training run.

    A run that was measured on the test cases also has ``test.json`` (means, of each protocol) and ``test-KEY.csv`` (each case).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history_file = path / HISTORY
        self.best = path / "best"
        self.pictures = path / "pictures"
        self.test_file = path / "test.json"

    def hold(self, patience: float | None = None) -> contextlib.ExitStack:
        """Keeps all other processes that hold it from training here; where the file system keeps no locks, nobody is kept from it.

        Args:
            patience: Seconds to wait for the process that has it; ``None``: longer than a file server keeps the lock of a dead machine. A
                process whose driver was killed lives for some seconds; on a machine without network until Ray takes that for dead.

        Returns:
            Closed, it lets the next one in; so does the end of this process, however it ends.

        Raises:
            TimeoutError: Another process still has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file, seconds = self.path / ".lock", locking.PATIENCE if patience is None else patience
        with contextlib.ExitStack() as stack:
            if stack.enter_context(locking.locked(file, patience=seconds)) != "no":
                return stack.pop_all()
        with file.open(encoding="utf-8") as opened:
            who = locking.holder_of(opened)
        raise TimeoutError(f"another process trains in this folder: {who} has held {file} for {seconds:.0f} s; end it, or wait for its end")

    def save(self, epoch: int, write: Callable[[Path], None], *, best: bool) -> None:
        """Writes a checkpoint beside its place and renames it; see ``Reporter.save``."""
        outlast(self.path, lambda: self._save(epoch, write, best=best))

    def _save(self, epoch: int, write: Callable[[Path], None], *, best: bool) -> None:
        checkpoints = self.path / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        target = checkpoints / f"epoch-{epoch:05d}"
        draft = checkpoints / f".{target.name}.{os.getpid()}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        try:
            write(draft)
            if best:
                # Before the checkpoint counts: a crash between the two repeats the epoch, and with it the best.
                self._replace_best(draft)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)  # on a full disk it would take the place of what is written next
            raise
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
        for old in self.checkpoints()[KEEP:]:
            shutil.rmtree(old, ignore_errors=True)

    def _replace_best(self, checkpoint: Path) -> None:
        draft, old = self.path / f".best.{os.getpid()}", self.path / f".best-old.{os.getpid()}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        try:
            for name in ("weights.safetensors", "state.json"):
                _link(checkpoint / name, draft / name)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        if self.best.exists():
            self.best.rename(old)
        draft.rename(self.best)
        shutil.rmtree(old, ignore_errors=True)

    def checkpoints(self) -> list[Path]:
        """See ``Reporter.checkpoints``."""
        return sorted((self.path / "checkpoints").glob("epoch-*"), reverse=True)

    def experiment_hash(self) -> str | None:
        """See ``Reporter.experiment_hash``; ``None`` where no experiment is stored, or this version cannot read it."""
        try:
            return Experiment.from_yaml(self.path / EXPERIMENT).hash
        except UserError:
            return None

    def write_history(self, records: Iterable[EpochRecord]) -> None:
        """Replaces the history, as when a run goes on from a checkpoint older than its last line."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.history_file, "".join(json.dumps(r.to_dict()) + "\n" for r in records))

    def append_history(self, record: EpochRecord) -> None:
        """Adds one epoch, or on a full disk raises ``OSError`` and adds nothing."""
        self.path.mkdir(parents=True, exist_ok=True)  # a checkpoint, which makes it too, may still be on its way
        append_whole(self.history_file, (json.dumps(record.to_dict()) + "\n").encode())

    def history(self) -> list[EpochRecord]:
        """All epochs so far; a torn last line is left out."""
        return read_history(self.history_file)

    def drop_weights(self) -> None:
        """Removes the best weights; history and pictures stay."""
        shutil.rmtree(self.best, ignore_errors=True)

    def tidy(self) -> None:
        """Removes what a finished run no longer needs; its best weights, history and pictures stay."""
        for path in (self.path / "checkpoints", *self.path.glob(".best*")):
            shutil.rmtree(path, ignore_errors=True)


def read_history(file: Path) -> list[EpochRecord]:
    """Reads a history file; missing or torn lines are left out."""
    records = []
    text = outlast(file, lambda: file.read_text(encoding="utf-8", errors="replace") if file.exists() else "")
    for line in text.splitlines():
        try:
            records.append(EpochRecord.from_dict(json.loads(line)))
        except (ValueError, TypeError):
            continue
    return records


def _link(source: Path, target: Path) -> None:
    """Gives a file that is never changed in place a second name (hard link); copies it where the file system has no such links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def replace_folder(draft: Path, target: Path) -> None:
    """Puts a finished folder in the place of another, which is removed only when the new one is there.

    Args:
        draft: On the same file system.
        target: There or not. Where the process is killed between the two, it waits as ``.NAME.XXXXXXXX.old`` beside it.

    Raises:
        OSError: The draft cannot be put there; the target is as it was.
    """
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
    there = os.path.lexists(target)
    if there:
        target.rename(old)
    try:
        draft.rename(target)
    except OSError:
        if there:
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """As ``write_bytes``, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name and renames it, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with named(path):
            outlast(path, lambda: draft.write_bytes(content))
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def append_whole(path: Path, data: bytes, prepare: Callable[[FileIO], None] = lambda file: None) -> None:
    """Adds bytes to the end of a file that nobody else changes, all of them or none: half a line would spoil the next one.

    Args:
        path: The file, made if missing.
        data: The bytes.
        prepare: What to do with the open file before.

    Raises:
        OSError: They could not be written, as on a full disk; the file is as it was.
    """
    ends = list[int]()

    def append() -> None:
        with named(path), open(path, "ab", buffering=0) as file:
            prepare(file)
            # A file server may have kept what it refused to acknowledge.
            if ends and file.seek(0, os.SEEK_END) > ends[0]:
                file.truncate(ends[0])
            ends.append(file.seek(0, os.SEEK_END))
            left = data
            try:
                while left:
                    left = left[file.write(left) :]
            except BaseException:
                with contextlib.suppress(OSError):  # what stopped the write is to be told
                    file.truncate(ends[0])
                raise

    outlast(path, append)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Adds the file to an ``OSError``: an error of writing, as on a full disk, names none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
