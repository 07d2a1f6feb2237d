"""The small studies that the chaos harness disturbs, each as the command that a user would start, and start again."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import chaos_truth as truth
import yaml
from small_searches import SPACE

EPOCHS = {"actor": 9, "train": 12}
TRIALS = {"actor": 6, "train": 2}
SAMPLERS = {"actor": ("tpe", "listed"), "train": ("tpe",)}
"""One after the other, each for ``IN_A_ROW`` studies: they share what they are compared with."""

IN_A_ROW = 3


class Life:
    """A study from its first command to its end, over all restarts."""

    def __init__(self, folder: Path, demo: Path, name: str, executor: str, sampler: str, concurrent: int = 1) -> None:
        self.folder, self.name, self.executor = folder / name, name, executor
        self.sampler, self.home = sampler, self.folder / "home"
        self.home.mkdir(parents=True)
        self.file, self.log = self.folder / "space.yaml", self.folder / "driver.txt"
        self.file.write_text(yaml.safe_dump(space(demo, name, executor, sampler, concurrent)))
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0

    def start(self) -> None:
        """The command of a user."""
        command = [sys.executable, "-m", "guidino_tune.search", str(self.file), "--home", str(self.home)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.started = time.time()

    @property
    def ended(self) -> bool:
        """True when the command has come to its end."""
        return self.process is not None and self.process.poll() is not None

    def saved(self) -> truth.Saved:
        """See ``chaos_truth.saved``."""
        return truth.saved(self.home, self.name)

    def epoch_since(self, moment: float) -> float:
        """Time of the first epoch after a moment, or of the end of the command; 0 before."""
        times = [record["time"] for record in self.saved().values() if record["time"] > moment]
        return min(times, default=time.time() if self.ended else 0.0)


def repeats(sampler: str, concurrent: int) -> bool:
    """True when every run of such a study comes out the same; side by side, what was drawn and stopped follows from who was faster."""
    return concurrent == 1 or sampler == "listed"


def space(demo: Path, name: str, executor: str, sampler: str, concurrent: int = 1) -> dict[str, Any]:
    """A small space whose trials are listed, or drawn by TPE and compared at a rung; see ``repeats``."""
    rng = random.Random(0)
    trials = TRIALS[executor] + 2 * (concurrent - 1)
    first = [
        {"training.lr": 10 ** rng.uniform(-3, -1.5), "guide.lora.rank": number % 2 * 2, "loss.lambda_guide": rng.uniform(0.05, 1.0)}
        for number in range(trials)
    ]
    experiment = {
        **SPACE["experiment"],
        "data": {**SPACE["experiment"]["data"], "root": str(demo), "max_train_cases": 32, "max_validation_cases": 8},
        "loss": {"bce_weight": 0.0},  # Dice alone leaves the empty mask within two epochs
        "training": {**SPACE["experiment"]["training"], "epochs": EPOCHS[executor]},
    }
    study = {"name": name, "trials": len(first), "sampler": sampler, "startup_trials": 2, "min_epochs": 3, "validate_every": 1}
    return {
        "experiment": experiment,
        "space": {**SPACE["space"], "training.lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}},
        "first_trials": first if sampler == "listed" else first[:1],
        # The workers of a Ray Train trial are ahead of the decision to stop it, so how far they come then is a matter of chance.
        "study": {**study, "pruner": "none" if executor == "train" or (concurrent > 1 and sampler == "listed") else "auto"},
        "resources": {"concurrent": concurrent, "executor": executor, "max_failures": 100},
    }
