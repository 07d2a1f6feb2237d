"""How fast a node makes, reads and trains on augmented images: whether trials had better read them, or augment them on their device."""

from __future__ import annotations

import contextlib
import glob
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch

from guidino_tune.config import Experiment
from guidino_tune.data.batches import Batch
from guidino_tune.data.opening import SearchData
from guidino_tune.data.shared_views import CHUNK
from guidino_tune.data.store import ChunkStore
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.reporter import Decision, EpochRecord

CASES = 8 * CHUNK
"""Training cases that are measured on, at most."""

SECONDS = 1.0
"""That each rate is measured at least."""

STEPS = 8
"""Between two waits for the device: a training waits for it once an epoch."""

MARGIN = 1.1
"""How many times as fast trials must be that augment on their device, for that is not exactly what other machines compute."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """Images a second, on a node where nothing else runs.

    Attributes:
        step: A trial trains on, once views and tokens are in its process.
        bare: The same where tokens are not there: the frozen guide's backbone runs in each step. Without such a guide as ``step``.
        read: Read from the store and brought to the device, with their tokens.
        made: Augmented for the store by all that makes images on a node.
        device: A trial trains on that augments them on its device, and runs the backbone.
        cached: Whether all that is read stays in the node's memory: ``read`` is then what each of several trials reads at once. Else it was
            read from the disk, which they share.
    """

    step: float
    bare: float
    read: float
    made: float
    device: float
    cached: bool

    def stored(self, *, beside: int, sharing: int, kinds: int, first: float) -> float:
        """Images a second that a trial trains on where views are stored.

        Steps, reading and making go on at the same time, so that the slowest of them decides. Who sees an image again waits for step and
        reading, ``t = max(sharing / step, beside / read)``, with ``beside`` for 1 where the views stay in memory. Whoever sees it first on
        its node waits for its making and its tokens as well, ``f = max(t, sharing / bare, min(beside, kinds) / made)``. The mean is
        ``1 / (first * f + (1 - first) * t)``.

        Args:
            beside: Trials side by side on a node.
            sharing: Trials that share a GPU, on which they take turns.
            kinds: Of views that trials may need at once: sizes of images, and seeds.
            first: Share of the images trained on that nobody on the node has seen before.
        """
        again = max(sharing / self.step, (1 if self.cached else beside) / self.read)
        anew = max(again, sharing / self.bare, min(beside, kinds) / self.made)
        return 1 / (first * anew + (1 - first) * again)

    def augmented(self, *, sharing: int) -> float:
        """Images a second that a trial trains on where each augments its own: ``device / sharing``."""
        return self.device / sharing


class _Nobody:
    """Takes the epochs of a training that is only measured."""

    def report(self, record: EpochRecord) -> Decision:
        return Decision.CONTINUE

    def save(self, epoch: int, write: Callable[[Path], None], *, best: bool) -> None:
        return

    def checkpoints(self) -> list[Path]:
        return []

    def experiment_hash(self) -> str | None:
        return None


def measure(experiment: Experiment, data: SearchData, store: ChunkStore, *, device: str, makers: int = 0, stored: int = 0) -> Speeds:
    """Trains on some images of a study in both ways, in this process.

    What is stored for it is removed at the end. Unless all views of the study fit into half of the free memory, they are read from the
    disk: the system is asked to forget them first, which a folder in memory does not.

    Args:
        experiment: Of the study.
        data: Its images.
        store: For views.
        device: Of the trials.
        makers: Processes that make views on a node; 0: a thread of the trial.
        stored: Bytes of all views and tokens that may lie there.
    """
    training = replace(experiment.training, epochs=1, steps_per_epoch="cases")
    experiment = replace(experiment, training=training, data=replace(experiment.data, view_cycle=None))
    data = replace(data, train=data.train.subset(data.train.ids[: max(CASES, training.batch_size)]))
    cached = 2 * stored <= _free_memory()
    with _run(experiment, data, device, share_views="device") as run:
        _epoch(run, 0, run.step)  # the first one has what is done once
        augmented = _rate(lambda number: _epoch(run, number, run.step))
    with _run(experiment, data, device, share_views="once", store=store) as run:
        now = time.time()
        while run.views.make_next([0]):
            pass
        if not cached:
            _forget(store.folder, now)
        # Each once: what a process has opened before it does not check again.
        begun = time.perf_counter()
        images = _epoch(run, 0, lambda batch: batch.to(run.device))
        read = images / (time.perf_counter() - begun)
        batches = run.views.epoch(0)
        batch = next(batches)
        batches.close()
        batch = batch.pinned() if run.device.type == "cuda" else batch
        step, bare = (_steps(run, one) for one in (batch, replace(batch, tokens=())))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        made = _rate(lambda number: len(run.views.views(number, data.train.ids[:CHUNK])[0])) * max(1, makers)
        torch.set_num_threads(threads)
        run.views.close(wait=True)
    return Speeds(step, bare if batch.tokens else step, read, made, augmented, cached)


@contextlib.contextmanager
def _run(experiment: Experiment, data: SearchData, device: str, **more: Any) -> Iterator[TrainingRun]:
    run = TrainingRun(experiment, data, _Nobody(), device=device, **more)
    run.module.train()
    try:
        yield run
    finally:
        run.close()


def _epoch(run: TrainingRun, number: int, use: Callable[[Batch], object]) -> int:
    """The images of an epoch, all of them used."""
    images = 0
    for batch in run.views.epoch(number, pin=run.device.type == "cuda"):
        use(batch)
        images += len(batch.ids)
    _wait(run.device)
    return images


def _steps(run: TrainingRun, batch: Batch) -> float:
    def steps(number: int) -> int:
        for _ in range(STEPS):
            run.step(batch)
        _wait(run.device)
        return STEPS * len(batch.ids)

    steps(0)
    return _rate(steps)


def _rate(use: Callable[[int], int]) -> float:
    """Images a second of what is done again and again, and tells its images."""
    begun, images = time.perf_counter(), 0
    for number in count(1):
        images += use(number)
        if (seconds := time.perf_counter() - begun) > SECONDS:
            return images / seconds
    raise AssertionError


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget(folder: Path, since: float) -> None:
    """Has the system read again from the disk what was written there; what is older may be what trainings are at."""
    for name in glob.glob("*/*/*.arrow", root_dir=folder):  # not that of Path, which fails where others remove a folder
        with contextlib.suppress(OSError), open(folder / name, "rb") as opened:
            if os.fstat(opened.fileno()).st_mtime >= since - 1:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _free_memory() -> int:
    """Bytes that the system could give to new programs; 0 where it does not tell."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0
