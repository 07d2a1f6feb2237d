"""Processes beside the trials of a node that make views ahead of them, as a training process starts and tells them.

What is wanted is said in files below the store's folder, which count while the process that wrote them lives; the processes themselves are
``data.making``. They take from a trial the work that would hold its interpreter, and never what it must do itself: a chunk that none of
them is at is made by whoever needs it, so that one that dies costs time alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from guidino_tune.data.locking import attempt, locked

log = logging.getLogger(__name__)

SEAL = "GUIDINO_TUNE_SEALED"
"""While it is ``1``, nobody in a process may open the test split."""

MOST = 8
"""On a node, where nobody has said how many."""

OWN_CORES = 2
"""That a trial on a GPU keeps: for the thread that feeds the GPU, and for the one that reads batches."""

_STALE = 600.0  # seconds after which a wish that was not renewed is forgotten, where locks do not tell that its process died

_TRIES = 200  # of a millisecond each, to take a slot at which others look for a moment

_started: dict[Path, subprocess.Popen[bytes]] = {}  # of this process, by slot: they outlive a training, for the next one
_starting = threading.Lock()


def number_of(asked: int | str, cpus: float, gpus: float) -> int:
    """How many makers a node may have.

    Args:
        asked: ``resources.view_makers``.
        cpus: Cores of a training process.
        gpus: Its GPUs; without, ``auto`` is none: trials leave no core idle.
    """
    if asked != "auto":
        return int(asked)
    return max(0, min(MOST, int(cpus) - OWN_CORES)) if gpus else 0


class Wish(NamedTuple):
    """Passes that a training wants: their number, nearest first, and what they are made of, see ``TrainViews.recipe``.

    With ``once`` a maker removes those that it made when nobody wants them any more.
    """

    passes: tuple[int, ...]
    recipe: Mapping[str, Any]
    once: bool = False


class Makers:
    """The makers of a node as one training sees them.

    Args:
        folder: Of the store.
        number: That the node may have; see ``number_of``.
        budget: Of the store.
    """

    def __init__(self, folder: Path, number: int, budget: int | None = None) -> None:
        self._folder, self._number, self._budget = folder, number, budget
        self._file = folder / "wanted" / f"{uuid.uuid4().hex}.json"
        self._held = contextlib.ExitStack()

    def want(self, wish: Wish) -> None:
        """Says anew what is wanted, and starts the makers that the node lacks; where neither can be done, there are none."""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            if not self._file.exists():
                self._held.close()
                self._held.enter_context(locked(_lock_of(self._file)))
            temporary = self._file.with_suffix(".tmp")
            temporary.write_text(json.dumps({"passes": wish.passes, "recipe": wish.recipe, "once": wish.once}), encoding="utf-8")
            temporary.replace(self._file)
            with _starting:
                _start(self._folder, self._number, self._budget)
        except OSError as error:
            log.warning("no process makes views ahead of the trials: %s", error)

    def close(self) -> None:
        """Wants nothing more. The makers stay for the next training, and end when there is none."""
        for file in (self._file, _lock_of(self._file)):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
        self._held.close()

    @property
    def at_work(self) -> bool:
        """Whether any maker of the node lives, and none has taken the wish away as one that it cannot meet."""
        for slot in _slots(self._folder, self._number) if self._file.exists() else ():
            with contextlib.suppress(OSError), open(slot, "a+b") as opened:
                if attempt(opened, shared=True) == "no":  # who looks excludes nobody else who looks
                    return True
        return False


def wishes(folder: Path) -> Iterator[tuple[Path, Wish]]:
    """What living trainings want, by their file; removes what dead ones left."""
    for file in sorted((folder / "wanted").glob("*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # as of one that ends at this moment
            if _lives(file):
                values = json.loads(file.read_text(encoding="utf-8"))
                yield file, Wish(tuple(values["passes"]), values["recipe"], values["once"])
            else:
                for left in (file, _lock_of(file), file.with_suffix(".tmp")):
                    left.unlink(missing_ok=True)


def _lives(file: Path) -> bool:
    with open(_lock_of(file), "a+b") as opened:
        held = attempt(opened, shared=True)
    return held == "no" or (held == "perhaps not alone" and time.time() - file.stat().st_mtime < _STALE)


def _lock_of(file: Path) -> Path:
    return file.with_suffix(".lock")


def _slots(folder: Path, number: int) -> list[Path]:
    return [folder / "locks" / f"maker-{slot}" for slot in range(number)]


def _taken(slot: IO[bytes]) -> bool:
    """Takes a free slot: of those who merely look at it at this moment nobody is taken for a maker."""
    for _ in range(_TRIES):
        if attempt(slot) != "no":
            return True
        if attempt(slot, shared=True) == "no":
            return False
        time.sleep(0.001)
    return False


def _start(folder: Path, number: int, budget: int | None) -> None:
    (folder / "locks").mkdir(parents=True, exist_ok=True)
    for slot in _slots(folder, number):
        mine = _started.get(slot)
        if mine is not None and mine.poll() is None:
            continue
        with open(slot, "a+b") as opened:
            if not _taken(opened):
                continue  # another training's
            package = str(Path(__file__).parents[2])
            path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
            # The lock goes over to the child with the open file. Its standard input ends with this process, however that ends; it has a
            # session of its own, for a Ctrl-C is meant for whoever started it.
            _started[slot] = subprocess.Popen(
                [sys.executable, "-m", "guidino_tune.data.making", str(folder), *([] if budget is None else [str(budget)])],
                env={**os.environ, SEAL: "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[opened.fileno()], start_new_session=True,
            )  # fmt: skip
