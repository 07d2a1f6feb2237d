"""What the parts of ``gpu.py`` share: runs of generated images, a step, a rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from guidino_tune.config import Experiment
from guidino_tune.data.batches import Batch
from guidino_tune.data.opening import SearchData, open_for_search
from guidino_tune.data.store import ChunkStore
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.reporter import Decision, EpochRecord


@dataclass(frozen=True, slots=True)
class Row:
    """One figure; ``good`` is ``None`` where nothing is to be passed."""

    part: str
    what: str
    value: float | None
    unit: str = ""
    note: str = ""
    good: bool | None = None


@dataclass(slots=True)
class Bench:
    """What all parts share: ``seconds`` is how long each rate is measured, ``end`` when the script is to be over (monotonic clock)."""

    device: torch.device
    size: int
    kinds: list[str]
    seconds: float
    scratch: Path
    end: float
    threads: int = 1
    num_images: int = 64
    data: dict[int, SearchData] = field(default_factory=dict)
    runs: list[TrainingRun] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def images(self, size: int) -> SearchData:
        """Images for training, made once."""
        if size not in self.data:
            self.data[size] = open_for_search(self.experiment("unet", size).data, cache=self.scratch / "cache")
        return self.data[size]

    def experiment(self, kind: str, size: int | None = None, *, batch: int = 4, **training: Any) -> Experiment:
        """The guided segmenter at its defaults, on generated images."""
        data = {
            "kind": "demo",
            "image_size": size or self.size,
            "max_train_cases": self.num_images,
            "max_validation_cases": 8,
            "view_cycle": 2,
        }
        guide = {"kind": "dino", "backbone": "vits16", "weights": "random"}
        settings = {"epochs": 4, "batch_size": batch, "steps_per_epoch": "cases", "compile": "none", **training}
        return Experiment.from_dict({"data": data, "guide": guide, "segmenter": {"kind": kind}, "training": settings})

    def run(self, experiment: Experiment, name: str = "run", *, device: torch.device | None = None, **more: Any) -> TrainingRun:
        """A training run of its own folder; its views are shared with the others of that size."""
        images, store = self.images(experiment.data.image_size), ChunkStore(self.scratch / "views", 10**10)
        more = {"store": store, **more}
        self.runs.append(TrainingRun(experiment, images, Folder(self.scratch / "runs" / name), device=str(device or self.device), **more))
        return self.runs[-1]

    def close(self) -> None:
        """Ends all runs, and gives their memory back once nobody else holds them."""
        for run in self.runs:
            run.close()
        self.runs.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def batch(self, run: TrainingRun) -> Batch:
        """One of a run, on its device, as its steps take it."""
        views = run.views.epoch(0)
        batch = run._to_device(next(views))
        views.close()
        return batch


class Folder(TrialFolder):
    """Of a run that nobody stops."""

    def report(self, record: EpochRecord) -> Decision:
        return Decision.CONTINUE


def wait() -> None:
    """For the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rate(call: Callable[[], object], number: int, seconds: float, warmup: int = 3) -> float:
    """How many of ``number`` a call come to a second."""
    for _ in range(warmup):
        call()
    wait()
    calls, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds or not calls:
        call()
        calls += 1
        if not calls % 10:
            wait()
    wait()
    return number * calls / (time.perf_counter() - begun)
