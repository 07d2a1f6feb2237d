"""Two ways to run the same training loop: a reused Tune actor, and a Ray Train worker group."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import logging
import math
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from guidino_tune import known_backbones, paths, targets
from guidino_tune.config import Data, Experiment
from guidino_tune.errors import redacted
from guidino_tune.running.cluster import Plan, Worker, elsewhere, note_node, places_for, this_node
from guidino_tune.running.drawing import draw_where_due
from guidino_tune.running.environment import SEAL
from guidino_tune.running.process import check_node
from guidino_tune.running.worker_groups import UnfitGroup, check_together, group_failure, not_placed, on_nodes_network
from guidino_tune.training.failures import FAILURE, UnfitNode, failure_kind
from guidino_tune.training.folder import EXPERIMENT, TrialFolder, write_text
from guidino_tune.training.machine_memory import give_back, keep_freed_memory
from guidino_tune.training.reporter import Decision, EpochRecord

# torch and transformers take seconds to import: of the processes of a Ray Train trial only the workers do so. No other needs Ray Train.
if TYPE_CHECKING:
    from guidino_tune.data.opening import SearchData
    from guidino_tune.data.store import ChunkStore
    from guidino_tune.training.loop import TrainingRun

log = logging.getLogger(__name__)

PARTS = 2
"""Micro-batches of the second attempt of a trial that ran out of memory. Several workers start again for it as after a crash, which counts
in ``resources.max_failures``."""

OUT_OF_MEMORY = "out-of-memory.txt"
"""In the folder of a trial whose worker group is to start again with micro-batches."""

STARTS = 2
"""Times that Ray Train looks again for a place, a minute each, before a trial looks whether the nodes where it may be are there still."""

CONTROLLER_CPU = 0.01
"""CPU that Tune books for a Ray Train trial's controller; zero is refused, and a whole one would starve the workers."""


class _TuneReporter(TrialFolder):
    """Saves into the trial's folder and hands the epoch to Tune, which stops a trial by itself."""

    def __init__(self, path: Path, tell: Callable[[dict[str, Any]], None], *, main: bool = True, every_epoch: bool = True) -> None:
        super().__init__(path)
        self.tell, self.main, self.every_epoch = tell, main, every_epoch
        self.unsent: list[EpochRecord] = []
        self.store: ChunkStore | None = None
        self.draw: Callable[[], None] = lambda: None
        self.held = contextlib.ExitStack()

    def report(self, record: EpochRecord) -> Decision:
        # A finished trial tells its last epoch once more when the driver had died before closing it.
        if self.main and record.epoch not in {r.epoch for r in self.history()}:
            self.append_history(record)
        self.draw()  # before it is told: with its last report a worker group ends
        self.unsent.append(record)
        from guidino_tune.config.study import OBJECTIVE

        # A report of a worker group waits for its controller; between two validations there is nothing to decide.
        if self.every_epoch or OBJECTIVE in record.metrics:
            # As text, for Tune flattens nested results and adds its own fields to them.
            note = self.store.problem if self.store else ""
            self.tell({"records": json.dumps([r.to_dict() for r in self.unsent]), "epoch": record.epoch, "note": note})
            self.unsent = []
        return Decision.CONTINUE


@lru_cache(maxsize=4)
def _opened(data: Data, split_file: Path) -> SearchData:
    """The images, looked for once per process: the driver has compared them with the study's."""
    from guidino_tune.data.opening import open_for_search

    return open_for_search(data, split_file=split_file)


@lru_cache(maxsize=1)
def _store(folder: str | None, gigabytes: float | None, makers: int = 0) -> ChunkStore:
    from guidino_tune.data.store import ChunkStore

    return ChunkStore(Path(folder or paths.views()), None if gigabytes is None else int(gigabytes * 1e9), makers=makers)


def _start(
    config: Mapping[str, Any], tell: Callable[[dict[str, Any]], None], *, device: str, rank: int = 0, world_size: int = 1, parts: int = 1
) -> TrainingRun:
    import torch

    from guidino_tune.training.loop import TrainingRun
    from guidino_tune.training.machine import note_machine

    experiment = Experiment.from_dict(config["experiment"])
    # Before anything is written, which would be in a folder that nobody else sees.
    check_together(lambda: check_node(config, experiment.data), this_node(), world_size)
    reporter = _TuneReporter(Path(config["folder"]), tell, main=rank == 0, every_epoch=config["executor"] == "actor")
    reporter.store = _store(*config["views"]) if config["views"] else None
    if rank == 0:
        note_node(reporter.path)
        reporter.held = reporter.hold()  # before the checkpoint is read: the process before this one may still write its last epoch
    try:
        if world_size > 1:
            torch.distributed.barrier()  # else the others would read an older checkpoint than the first one, which has waited
        run = TrainingRun(
            experiment, _opened(experiment.data, Path(config["split_file"])), reporter,
            device=device, rank=rank, world_size=world_size, reported=config["reported"], micro_batches=parts,
            store=reporter.store, share_views=config.get("share_views", True), validated=config.get("validated"),
            saved=config.get("rungs", ()), measure=config.get("measure", False), time_left=config.get("until", math.inf) - time.time(),
            synced_norm=bool(config.get("rules", 1)),
        )  # fmt: skip
        if rank == 0:
            reporter.draw = lambda: draw_where_due(run, config)
            # The checkpoint knows what was trained; lines of a later, unsaved epoch would be written twice.
            reporter.write_history(r for r in run.history if r.epoch <= config["reported"])
            write_text(reporter.path / EXPERIMENT, experiment.to_yaml())
            note_machine(reporter.path, run)
    except BaseException:
        reporter.held.close()
        raise
    return run


def _close(run: TrainingRun) -> None:
    assert isinstance(run.reporter, _TuneReporter)
    with run.reporter.held:
        run.close()


def _failure(error: Exception, config: Mapping[str, Any]) -> dict[str, Any]:
    kind = failure_kind(error)
    message = redacted(str(error)) or type(error).__name__
    if kind == "bug":
        file = Path(config["folder"]) / "traceback.txt"
        write_text(file, redacted(traceback.format_exc()))
        message += f" (traceback: {file})"
    return {"failure": kind, "message": message, "epoch": 0, "node": this_node(), "unfit": isinstance(error, UnfitNode)}


class TrialActor(tune.Trainable):
    """Runs one trial after another in the same process: imports, the frozen guide and the data stay loaded."""

    def setup(self, config: dict[str, Any]) -> None:
        """See ``Trainable.setup``."""
        _prepare_process(config)
        self.run: TrainingRun | None = None
        self.failed = False
        self.reset_config(config)

    def reset_config(self, config: dict[str, Any]) -> bool:
        """Takes the next trial; it is built in the first step, so that its failure belongs to it alone."""
        self._end_run()
        if self.failed:
            _free_memory()  # what the exception held
            self.failed = False
        self.config = config
        self.parts = PARTS if config.get("short_of_memory") else 1
        return True

    def step(self) -> dict[str, Any]:
        """One epoch, or the failure of one.

        Raises:
            Exception: Any, where it left the GPU unusable for this process. The driver reads the failure from the trial's folder, or, when
                it is gone, the next process tells it.
        """
        earlier = Path(self.config["folder"]) / FAILURE
        if earlier.exists():
            failure: dict[str, Any] = json.loads(earlier.read_text(encoding="utf-8"))
            earlier.unlink()
            return failure
        result: dict[str, Any] = {}
        try:
            self._step(result)
        except Exception as error:
            if not _worth_parts(error, self.parts):
                return self._failed(error)
        else:
            return result
        # Outside the handler above, whose exception still holds the tensors that did not fit.
        if self.run:
            self.config = {**self.config, "reported": max(self.config["reported"], self.run.epoch)}
        self._end_run()
        _free_memory()
        self.parts = PARTS
        try:
            self._step(result)
        except Exception as error:
            return self._failed(error)
        return result

    def cleanup(self) -> None:
        """See ``Trainable.cleanup``."""
        self._end_run()

    def _step(self, result: dict[str, Any]) -> None:
        if self.run is None:
            self.run = _start(self.config, result.update, device="cuda" if self.config["gpus"] else "cpu", parts=self.parts)
        self.run.reporter.tell = result.update  # type: ignore[attr-defined]
        self.run.run_epoch()

    def _end_run(self) -> None:
        if self.run:
            _close(self.run)
        self.run = None
        _free_memory(collect=False)

    def _failed(self, error: Exception) -> dict[str, Any]:
        self.failed = True
        if self.run:
            self.run.finish_saving()  # else weights of a trial that diverged would come back after they were removed
        failure = _failure(error, self.config)
        # To refuse the next trial instead would be its end: Tune gives a refused trial up, and tells nobody.
        if self.config["gpus"] and not isinstance(error, UnfitNode) and _gpu_is_lost():
            write_text(Path(self.config["folder"]) / FAILURE, json.dumps(failure))
            raise error
        return failure

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the loop saves into the trial's folder."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the loop goes on from the trial's folder."""


def train_trial(config: dict[str, Any]) -> None:
    """Runs a trial as a Ray Train worker group; called by Tune."""
    import ray.train

    (failure := Path(config["folder"]) / FAILURE).unlink(missing_ok=True)
    for attempt in itertools.count():
        try:
            _trainer(config, attempt).fit()
        except ray.train.TrainingFailedError as error:
            if config.get("pinned") and not_placed(error):
                if places_for(config["avoided"], Worker.of(config), config["only"], config["workers"]):
                    continue  # they are there, and taken
                # Nobody takes its booking back while its controller waits: it is handed out again, for other nodes.
                tune.report({"failure": "preempted", "message": "the nodes where it may be are gone", "epoch": 0})
                return
            # Told as a result: an exception here would make Tune start again what Ray Train has tried often enough.
            known = json.loads(failure.read_text(encoding="utf-8")) if failure.exists() else {}
            told = group_failure(error)
            # What the others say when a worker is gone is that they cannot reach it.
            gone = told["failure"] != "crashed" or "died unexpectedly" in told["message"]
            tune.report(told | ({} if gone else known))
        return


def _trainer(config: dict[str, Any], attempt: int) -> Any:
    """The worker group of a trial, on the nodes where it may be now."""
    import ray.train.torch
    from ray.tune.integration.ray_train import TuneReportCallback

    worker = Worker.of(config)
    untyped = replace(worker, accelerator=None).booked | {"CPU": worker.cpus - CONTROLLER_CPU}
    booked: dict[str, Any] = {"resources_per_worker": untyped, "accelerator_type": worker.accelerator}
    booked["label_selector"] = elsewhere(config.get("avoided", ()), worker, config.get("only", ()), config["workers"]) or None
    starts = STARTS if config.get("pinned") else -1  # else it waits for nodes for ever, as for a type that was asked for
    return ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config=config,
        torch_config=on_nodes_network(),
        scaling_config=ray.train.ScalingConfig(num_workers=config["workers"], use_gpu=bool(worker.gpus), **booked),
        run_config=ray.train.RunConfig(
            name=f"trial-{config['number']:05d}-{os.getpid()}-{attempt}",
            storage_path=config["ray_folder"],
            failure_config=ray.train.FailureConfig(max_failures=config["max_failures"], controller_failure_limit=starts),  # type: ignore[call-arg]
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
        ),
    )


def train_worker(config: dict[str, Any]) -> None:
    """One worker of the group; all of them run the loop, the first one saves."""
    import ray.train.torch

    _prepare_process(config)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if rank == 0:
        (Path(config["folder"]) / FAILURE).unlink(missing_ok=True)  # of the attempt before this one
    device = str(ray.train.torch.get_device())

    def train(parts: int) -> None:
        run = _start(config, ray.train.report, device=device, rank=rank, world_size=world_size, parts=parts)
        try:
            while not run.finished:
                run.run_epoch()
        finally:
            _close(run)

    try:
        # Several workers wait for each other in the middle of a step: there all of them start again, with what their last report said.
        parts = PARTS if (Path(config["folder"]) / OUT_OF_MEMORY).exists() else 1
        try:
            train(parts)
        except Exception as error:
            if not _worth_parts(error, parts):
                raise
            write_text(Path(config["folder"]) / OUT_OF_MEMORY, f"{error}\n")
            if world_size > 1:
                raise
        else:
            return
        _free_memory()
        train(PARTS)
    except ray.exceptions.RayError:
        raise  # what Ray Train keeps on other nodes went with one of them: it starts the group again
    except UnfitGroup as error:
        ray.train.report({"failure": "environment", "message": redacted(str(error)), "epoch": 0, "node": error.node, "unfit": True})
    except Exception as error:
        # Divergence is seen by all workers at once; after any other failure of one, the others wait for it in a collective.
        if world_size > 1 and failure_kind(error) != "diverged":
            write_text(Path(config["folder"]) / FAILURE, json.dumps(_failure(error, config)))
            raise
        ray.train.report(_failure(error, config))


def _worth_parts(error: Exception, parts: int) -> bool:
    """True when less memory at a time may be enough; told in a warning of this process's log, and by the metric ``micro_batches``."""
    if worth := failure_kind(error) == "out-of-memory" and parts == 1:
        log.warning("out of memory (%s): once more with batches in %d parts", error, PARTS)
    return worth


def _free_memory(*, collect: bool = True) -> None:
    """Gives back what the last run held; a collection takes a tenth of a second, and finds what cycles of references keep alive."""
    import torch

    if collect:
        gc.collect()
    give_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _gpu_is_lost() -> bool:
    """True when this process can compute no more on its GPU, as after a failed assertion there; running out of memory is no such error."""
    import torch

    try:
        torch.zeros(1, device="cuda").item()
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return False
    except Exception:  # a build without CUDA fails with an assertion
        return True
    return False


def _prepare_process(config: Mapping[str, Any]) -> None:
    import torch

    os.environ.update({"GUIDINO_TUNE_HOME": config["home"], SEAL: "1"})  # sealed: nobody who trains may see the test cases
    torch.set_num_threads(config["cpus"])
    keep_freed_memory()

    known_backbones.adopt(config.get("backbones", ()))
    targets.adopt(config.get("own_code", {}))


def trainable(plan: Plan) -> Any:
    """What Tune runs for a trial, with what it books for it."""
    if plan.executor == "actor":
        return tune.with_resources(TrialActor, plan.booked)
    return tune.with_resources(train_trial, {"CPU": CONTROLLER_CPU})
