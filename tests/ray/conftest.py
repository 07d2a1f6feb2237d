"""One Ray cluster for all tests here, and a small search space on demo images.

Only one cluster may be on a machine: the tests share this one, and the commands that they start join it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import FrozenTrial

from guidino_tune.running import prepare_environment
from guidino_tune.study.store import StudyFolder, load_study

SPACE: dict[str, Any] = {
    "experiment": {
        "data": {"kind": "demo", "image_size": 32, "max_train_cases": 8, "max_validation_cases": 4},
        "guide": {"kind": "dino", "backbone": "tiny", "weights": "random", "tokenbook": {"num_prototypes": 4}},
        "segmenter": {"kind": "unet", "base_width": 2},
        "training": {"epochs": 3, "batch_size": 4, "lr": 1e-3, "precision": "fp32", "steps_per_epoch": "cases"},
    },
    "space": {
        "training.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        "guide.lora.rank": {"choices": [0, 2]},
        "loss.lambda_guide": {"type": "float", "low": 0.01, "high": 1.0, "log": True},
    },
    "first_trials": [{"training.lr": 1e-3, "guide.lora.rank": 0, "loss.lambda_guide": 0.1}],
    "study": {"name": "small", "trials": 4, "startup_trials": 2, "min_epochs": 1},
    "resources": {"concurrent": 2, "executor": "actor"},
}


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[str]:
    """Address of the cluster; ``RAY_ADDRESS`` leads every command here to it."""
    prepare_environment()
    import ray

    os.environ.pop("RAY_ADDRESS", None)
    ray.init("local", num_cpus=2, include_dashboard=True, log_to_driver=False)  # whatever a killed cluster left behind
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    # With a named address Ray uses the machine's token only when told to; the first ``init`` may have made it.
    prepare_environment()
    yield os.environ["RAY_ADDRESS"]
    os.environ.pop("RAY_ADDRESS", None)
    ray.shutdown()


@pytest.fixture(scope="session", autouse=True)
def shared_views(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One store of views for all searches here, each of which has a home of its own: who only reads them need not import MONAI."""
    SPACE["resources"]["views_folder"] = str(tmp_path_factory.mktemp("views"))


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo images, drawn once for all tests."""
    from guidino_tune.data.sources.demo import find

    root = tmp_path_factory.mktemp("demo")
    find(root)
    return root


@pytest.fixture
def space_file(tmp_path: Path, demo: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(SPACE))
    return file


@pytest.fixture(autouse=True)
def unsealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search seals its process for good; after each test the environment is put back."""
    monkeypatch.setenv("GUIDINO_TUNE_SEALED", "0")


class Command:
    """A command of the package in a process of its own, with its output in a file."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.log = log
        with log.open("a") as file:
            self.process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=file, stderr=subprocess.STDOUT)

    def wait(self, timeout: float = 240) -> int:
        """Exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"no end after {timeout} s:\n{self.log.read_text()[-5000:]}") from None

    def until(self, condition: Callable[[], bool], timeout: float = 180) -> None:
        """Waits for a condition while the command runs."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"ended before:\n{self.log.read_text()[-5000:]}"
            assert time.monotonic() < deadline, f"nothing happened:\n{self.log.read_text()[-5000:]}"
            time.sleep(0.05)


@pytest.fixture
def start(tmp_path: Path, demo: Path) -> Iterator[Callable[..., Command]]:
    """Starts commands, and ends those that a failed test left behind."""
    started: list[Command] = []

    def run(*arguments: str) -> Command:
        started.append(Command(list(arguments), tmp_path / "output.txt"))
        return started[-1]

    yield run
    for command in started:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()


def study_folder(home: Path, name: str) -> StudyFolder:
    return StudyFolder(home / "studies" / name)


def trials_of(home: Path, name: str) -> list[FrozenTrial]:
    """The trials of a study as they are stored now; none before it exists."""
    folder = study_folder(home, name)
    return load_study(folder).get_trials() if folder.definition.exists() else []
