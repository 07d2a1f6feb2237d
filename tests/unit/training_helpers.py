"""What the tests of training and tuning share: a few small demo cases, small experiments, and a reporter that remembers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from space_helpers import GUIDE, LORA, NO_GUIDE, SMALL, search_space  # noqa: F401 (for the tests that import them from here)

from guidino_tune.config import Data, Experiment
from guidino_tune.data.cases import Case
from guidino_tune.data.opening import SearchData
from guidino_tune.data.rules import measure_rules
from guidino_tune.data.sources.demo import generate
from guidino_tune.data.splits import Split
from guidino_tune.data.table import build_table
from guidino_tune.targets import trust
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.reporter import Decision, EpochRecord

trust("own_parts:TinyNet")


def make_data(folder: Path, *, size: int = 32, train: int = 6, validation: int = 4) -> SearchData:
    """Draws demo cases straight at ``size`` pixels."""
    cases = []
    for number in range(train + validation):
        name = f"case_{number:02d}"
        image, mask = generate(number, size)
        case = Case(name, folder / f"{name}.png", folder / f"{name}-mask.png", name)
        Image.fromarray(image).save(case.image)
        Image.fromarray(mask).save(case.mask)
        cases.append(case)
    data = Data(kind="folder", image_size=size)
    rules = measure_rules(cases, [], data)
    tables = [build_table(part, data, rules, folder / "cache") for part in (cases[:train], cases[train:])]
    ids = [case.id for case in cases]
    return SearchData(tables[0], tables[1], Split(tuple(ids[:train]), tuple(ids[train:]), (), "seeded", 0), "0" * 64, (), rules)


def make_label_data(folder: Path, *, size: int = 32, cases: int = 12) -> Data:
    """Draws a ``folder`` data set with a disc of class 1 and a block of class 2; label maps are grey and palette files in turn."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(cases):
        y, x = np.mgrid[:size, :size] / size
        labels = np.zeros((size, size), np.uint8)
        labels[(y - rng.uniform(0.3, 0.7)) ** 2 + (x - rng.uniform(0.2, 0.4)) ** 2 < rng.uniform(0.12, 0.2) ** 2] = 1
        top, left = rng.uniform(0.1, 0.6), rng.uniform(0.55, 0.7)
        labels[(y > top) & (y < top + 0.3) & (x > left) & (x < left + 0.25)] = 2
        colours = np.array([(90, 90, 90), (180, 70, 60), (60, 90, 190)])
        image = np.clip(colours[labels] + rng.normal(0, 20, (size, size, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"c{number:02}.png")
        picture = Image.fromarray(labels)
        if number % 2:
            picture = picture.convert("P")
            picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
        picture.save(folder / "masks" / f"c{number:02}.png")
    return Data(kind="folder", root=str(folder), image_size=size, num_classes=2, validation_fraction=0.3, test_fraction=0.1)


def make_experiment(kind: str = "tiny", *, guide: dict[str, Any] | None = None, size: int = 32, **training: Any) -> Experiment:
    """A small experiment on ``size`` pixels; ``training`` overrides single values."""
    return Experiment.from_dict(
        {
            "data": {"kind": "demo", "image_size": size},
            "guide": guide or NO_GUIDE,
            **SMALL[kind],
            "training": {"epochs": 4, "batch_size": 3, "lr": 3e-3, "precision": "fp32", "steps_per_epoch": "cases", **training},
        }
    )


class Listener(TrialFolder):
    """A trial's folder that remembers what it was told, and says stop after some epochs."""

    def __init__(self, path: Path, stop_after: int | None = None) -> None:
        super().__init__(path)
        self.told: list[EpochRecord] = []
        self.saved: list[int] = []
        self.stop_after = stop_after

    def save(self, epoch: int, write: Callable[[Path], None], *, best: bool) -> None:
        super().save(epoch, write, best=best)
        self.saved.append(epoch)

    def report(self, record: EpochRecord) -> Decision:
        self.told.append(record)
        return Decision.STOP if record.epoch == self.stop_after else Decision.CONTINUE

    @property
    def epochs(self) -> list[int]:
        return [record.epoch for record in self.told]


def train(experiment: Experiment, data: SearchData, path: Path, *, stop_after: int | None = None, reported: int = 0) -> TrainingRun:
    """A new run in ``path``, trained until its budget or ``stop_after``."""
    run = TrainingRun(experiment, data, Listener(path, stop_after), reported=reported)
    run.run()
    return run


def values(run: TrainingRun) -> list[dict[str, float]]:
    """The metrics of every epoch but the measured times."""
    return [{k: v for k, v in r.metrics.items() if k not in ("epoch_seconds", "images_per_second")} for r in run.history]
