"""Two ways to run the same training loop: a reused Tune actor, and a Ray Train worker group."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from ray import tune

from guidino_tune import paths
from guidino_tune.config import Experiment, Resources
from guidino_tune.data.opening import open_for_search
from guidino_tune.tracking.pictures import contact_sheet, overlay, save_png
from guidino_tune.training.failures import failure_kind
from guidino_tune.training.folder import TrialFolder, write_text
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.reporter import Decision, EpochRecord
from guidino_tune.training.showing import shown_cases
from guidino_tune.tuning.cluster import Plan
from guidino_tune.tuning.environment import SEAL

CONTROLLER_CPU = 0.01
"""CPU that Tune books for a Ray Train trial's controller; zero is refused, and a whole one would starve the workers."""


class _TuneReporter(TrialFolder):
    """Saves into the trial's folder and hands the epoch to Tune, which stops a trial by itself."""

    def __init__(self, path: Path, tell: Callable[[dict[str, Any]], None], *, main: bool = True) -> None:
        super().__init__(path)
        self.tell, self.main = tell, main

    def report(self, record: EpochRecord) -> Decision:
        # A finished trial tells its last epoch once more when the driver had died before closing it.
        if self.main and record.epoch not in {r.epoch for r in self.history()}:
            self.append_history(record)
        # As text, for Tune flattens nested results and adds its own fields to them.
        self.tell({"record": json.dumps(record.to_dict()), "epoch": record.epoch})
        return Decision.CONTINUE


def _start(config: Mapping[str, Any], tell: Callable[[dict[str, Any]], None], *, device: str, rank: int, world_size: int) -> TrainingRun:
    experiment = Experiment.from_dict(config["experiment"])
    reporter = _TuneReporter(Path(config["folder"]), tell, main=rank == 0)
    data = open_for_search(experiment.data, split_file=Path(config["split_file"]))
    run = TrainingRun(experiment, data, reporter, device=device, rank=rank, world_size=world_size, reported=config["reported"])
    if rank == 0:
        # The checkpoint knows what was trained; lines of a later, unsaved epoch would be written twice.
        reporter.write_history(r for r in run.history if r.epoch <= config["reported"])
        write_text(reporter.path / "experiment.yaml", experiment.to_yaml())
    return run


def _epoch(run: TrainingRun) -> None:
    before = run.best
    run.run_epoch()
    if run.rank == 0 and run.best > before:
        folder = run.reporter
        assert isinstance(folder, TrialFolder)
        classes = run.experiment.data.num_classes
        rows = [overlay(c.image, c.truth, c.guide, c.prediction, title=c.id, num_classes=classes) for c in shown_cases(run)]
        save_png(contact_sheet(rows), folder.pictures / "validation.png")


def _failure(error: Exception, config: Mapping[str, Any]) -> dict[str, Any]:
    kind = failure_kind(error)
    message = str(error) or type(error).__name__
    if kind == "bug":
        file = Path(config["folder"]) / "traceback.txt"
        write_text(file, traceback.format_exc())
        message += f" (traceback: {file})"
    return {"failure": kind, "message": message, "epoch": 0}


class TrialActor(tune.Trainable):
    """Runs one trial after another in the same process: imports, the frozen guide and the data stay loaded."""

    def setup(self, config: dict[str, Any]) -> None:
        """See ``Trainable.setup``."""
        _prepare_process(config)
        self.failed = False
        self.reset_config(config)

    def reset_config(self, config: dict[str, Any]) -> bool:
        """Takes the next trial; it is built in the first step, so that its failure belongs to it alone."""
        if self.failed:
            return False  # Tune then starts a new process: a GPU error may have left this one unable to compute
        self.config = config
        self.run: TrainingRun | None = None
        return True

    def step(self) -> dict[str, Any]:
        """One epoch, or the failure of one."""
        told: dict[str, Any] = {}
        try:
            if self.run is None:
                device = "cuda" if self.config["gpus"] else "cpu"
                self.run = _start(self.config, told.update, device=device, rank=0, world_size=1)
            self.run.reporter.tell = told.update  # type: ignore[attr-defined]
            _epoch(self.run)
        except Exception as error:
            self.failed = failure_kind(error) != "diverged"
            return _failure(error, self.config)
        return told

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the loop saves into the trial's folder."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the loop goes on from the trial's folder."""


def train_trial(config: dict[str, Any]) -> None:
    """Runs a trial as a Ray Train worker group; called by Tune."""
    from ray.tune.integration.ray_train import TuneReportCallback

    gpus, failure = config["gpus"], Path(config["folder"]) / "failure.json"
    failure.unlink(missing_ok=True)
    per_worker = {"CPU": config["cpus"] - CONTROLLER_CPU} | ({"GPU": gpus} if gpus else {})
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=config["workers"], use_gpu=bool(gpus), resources_per_worker=per_worker),
        run_config=ray.train.RunConfig(
            name=f"trial-{config['number']:05d}-{os.getpid()}",
            storage_path=config["ray_folder"],
            failure_config=ray.train.FailureConfig(max_failures=config["max_failures"]),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        # Told as a result: an exception here would make Tune start again what Ray Train has tried often enough.
        known = json.loads(failure.read_text(encoding="utf-8")) if failure.exists() else {}
        tune.report({"failure": "crashed", "message": str(error), "epoch": 0} | known)


def train_worker(config: dict[str, Any]) -> None:
    """One worker of the group; all of them run the loop, the first one saves."""
    _prepare_process(config)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = str(ray.train.torch.get_device())
    try:
        run = _start(config, ray.train.report, device=device, rank=rank, world_size=world_size)
        while not run.finished:
            _epoch(run)
    except Exception as error:
        # Divergence is seen by all workers at once; after any other failure of one, the others wait for it in a collective.
        if world_size > 1 and failure_kind(error) != "diverged":
            write_text(Path(config["folder"]) / "failure.json", json.dumps(_failure(error, config)))
            raise
        ray.train.report(_failure(error, config))


def _prepare_process(config: Mapping[str, Any]) -> None:
    import torch

    os.environ["GUIDINO_TUNE_HOME"] = config["home"]
    os.environ[SEAL] = "1"  # nobody who trains may see the test cases
    torch.set_num_threads(config["cpus"])


def process_settings(plan: Plan, resources: Resources, *, split_file: Path, ray_folder: Path) -> dict[str, Any]:
    """What every training process must know beside its experiment; paths are absolute, for it runs in another folder or on another node."""
    return {
        "home": str(paths.home()),
        "split_file": str(split_file),
        "ray_folder": str(ray_folder / "train"),
        "executor": plan.executor,
        "cpus": plan.cpus,
        "gpus": plan.gpus,
        "workers": resources.workers,
        "max_failures": resources.max_failures,
    }


def trainable(plan: Plan) -> Any:
    """What Tune runs for a trial, with what it books for it."""
    if plan.executor == "actor":
        return tune.with_resources(TrialActor, {"CPU": plan.cpus, "GPU": plan.gpus})
    return tune.with_resources(train_trial, {"CPU": CONTROLLER_CPU})
