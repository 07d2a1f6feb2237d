"""A process that makes the views that trainings want next, chunk by chunk: ``python -m guidino_tune.data.making FOLDER [BYTES]``.

A training process starts it, see ``makers``; nobody else should. It ends when that process does, and when nothing is wanted any more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from guidino_tune.data.makers import Wish, wishes

if TYPE_CHECKING:
    from guidino_tune.data.store import ChunkStore
    from guidino_tune.data.views import TrainViews

log = logging.getLogger(__name__)

IDLE = 10.0
"""Seconds without a wish after which it ends."""

_LOOK = 0.25  # seconds between two looks at what is wanted, while nothing is to be made
_NICENESS = 5


def main(arguments: list[str]) -> int:
    """Works until it is of no use any more."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)  # the trials come first
    import torch

    torch.set_num_threads(1)
    from guidino_tune.data.store import ChunkStore

    store = ChunkStore(Path(arguments[0]), int(arguments[1]) if len(arguments) > 1 else None)
    work(store, IDLE)
    return 0


def work(store: ChunkStore, idle: float) -> None:
    """Makes what is wanted, of each training the nearest missing chunk in turn, until nothing was wanted for ``idle`` seconds."""
    known: dict[Path, TrainViews] = {}
    wanted = time.monotonic()
    while time.monotonic() - wanted < idle:
        found, made = dict(wishes(store.folder)), False
        for file in known.keys() - found.keys():
            known.pop(file).close()
        for file, wish in found.items():
            made |= _make_one(store, known, file, wish)
            wanted = time.monotonic()  # not before: a chunk may take longer than the patience of an idle maker
        if not made:
            time.sleep(_LOOK)


def _make_one(store: ChunkStore, known: dict[Path, TrainViews], file: Path, wish: Wish) -> bool:
    """Whether a chunk was made; a wish that cannot be met here is taken away: its training makes its views itself until it wishes again."""
    from guidino_tune.data.views import views_of

    try:
        if file not in known:
            known[file] = views_of(wish.recipe, store, once=wish.once)
        return known[file].make_next(wish.passes)
    except Exception as error:
        log.warning("views that a training wants cannot be made ahead of it: %s", error)
        file.unlink(missing_ok=True)
        return False


def _end_with_parent() -> None:
    # Nothing is ever written there: it ends when the last who could has ended. Not through `sys.stdin`, whose lock this thread would hold
    # when the interpreter ends.
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)  # at once, whatever the other thread is at


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
