"""One trial trained once more, in this process, and compared with what it gave in its study, epoch by epoch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from guidino_tune import paths
from guidino_tune.config import DINOGuide, Experiment, Resources
from guidino_tune.config.study import OBJECTIVE
from guidino_tune.data.opening import SearchData, open_for_search
from guidino_tune.data.store import ChunkStore
from guidino_tune.errors import UserError
from guidino_tune.known_backbones import Known, expecting, key_of
from guidino_tune.running.environment import sealed_tests
from guidino_tune.study.pruners import validated_epochs
from guidino_tune.study.store import stored_study
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.machine import describe, note_machine
from guidino_tune.training.noted_machines import read_machines
from guidino_tune.training.reporter import Decision, EpochRecord
from guidino_tune.workflows.backbones import moved, recalled
from guidino_tune.workflows.view_ways import as_settled

MEASURED = (
    "epoch_seconds", "images_per_second", "latency", "memory", "eager_step_seconds", "compiled_step_seconds", "compile_seconds",
)  # fmt: skip
"""Metrics that are times: they differ in every run."""

LOSS = "train_loss_total"


@dataclass(frozen=True, slots=True)
class Repeated:
    """What came of a repetition.

    Attributes:
        then: Epochs of the trial, oldest first.
        now: The same epochs, trained once more.
        reasons: In words, what differs between the machine of the trial and this one, and may change the last digits.
        folder: Where the repetition lies.
    """

    then: tuple[EpochRecord, ...]
    now: tuple[EpochRecord, ...]
    reasons: tuple[str, ...]
    folder: Path

    @property
    def differing(self) -> tuple[int, float] | None:
        """The first epoch in which anything but a time differs, and the largest difference of loss or Dice in any; ``None`` if none."""
        first = next((old.epoch for old, new in zip(self.then, self.now, strict=True) if _results(old) != _results(new)), None)
        if first is None:
            return None
        gaps = [
            abs(new - old) for a, b in zip(self.then, self.now, strict=True) for old, new in (_pair(a, b, LOSS), _pair(a, b, OBJECTIVE))
        ]
        return first, max(gap for gap in gaps if gap == gap)

    def within(self, tolerance: float) -> bool:
        """True when nothing differs, or loss and validation Dice by no more than a ``tolerance`` above 0."""
        return self.differing is None or 0 <= self.differing[1] <= tolerance > 0

    def verdict(self) -> str:
        """One sentence."""
        count = f"{len(self.now)} epoch{'s' if len(self.now) > 1 else ''}"
        if self.differing is None:
            return f"{count}: identical bit by bit, in every metric."
        first, most = self.differing
        return f"{count}: differs from epoch {first} on; loss and validation Dice by at most {most:.2g}."

    def table(self) -> Table:
        """Loss and validation Dice of each epoch: then, now, and their difference."""
        made = Table("epoch", "loss then", "now", "difference", "val Dice then", "now", "difference", title=None)
        for column in made.columns:
            column.justify = "right"
        for old, new in zip(self.then, self.now, strict=True):
            cells = [str(old.epoch)]
            for name in (LOSS, OBJECTIVE):
                a, b = _pair(old, new, name)
                cells += ["", "", ""] if a != a and b != b else [f"{a:.6f}", f"{b:.6f}", "0" if a == b else f"{b - a:+.2g}"]
            made.add_row(*cells)
        return made


class _Until(TrialFolder):
    """A folder for the repetition, which ends after an epoch."""

    def __init__(self, path: Path, last: int, on_epoch: Callable[[int], None]) -> None:
        super().__init__(path)
        self.last, self.on_epoch = last, on_epoch

    def report(self, record: EpochRecord) -> Decision:
        """See ``Reporter``."""
        self.append_history(record)
        self.on_epoch(record.epoch)
        return Decision.STOP if record.epoch >= self.last else Decision.CONTINUE


def repeat_trial(
    name: str,
    number: int,
    *,
    epochs: int | None = None,
    output: Path | None = None,
    storage: str | None = None,
    backbones: Sequence[str] = (),
    started: Callable[[int, str], None] = lambda epochs, text: None,
    on_epoch: Callable[[int], None] = lambda epoch: None,
) -> Repeated:
    """Trains a trial once more, from its start, with its own seed, views, threads and precision, as far as it came.

    The study is only read, and may be running. A trial that was stopped early or failed is repeated up to its last epoch.

    Args:
        name: Of the study.
        number: Of the trial.
        epochs: Only the first so many.
        output: Folder for the repetition; by default below the study's, where an earlier one is replaced.
        storage: Database URL of the study; by default the file in its folder.
        backbones: Where the folders of its backbones are now: ``DIR`` or ``OLD=DIR``.
        started: Told the number of epochs to train and a line about the trial.
        on_epoch: Called with the number of each epoch.

    Raises:
        UserError: No such study or trial, a trial without an epoch or with a torn history, other images than those of the study,
            or a folder that is not empty.
    """
    folder, study, space = stored_study(name, storage)
    trials = {t.number: t for t in study.get_trials(deepcopy=False) if t.state.is_finished() or t.params}
    if number not in trials:
        raise UserError(
            f"no trial {number}", where=str(folder.path), todo=f"trials: 0 to {max(trials)}" if trials else "wait for the first"
        )
    trial = trials[number]
    place = folder.trial(number)
    then = [record for record in place.history() if epochs is None or record.epoch <= epochs]
    if not then:
        state = trial.user_attrs.get("failure", trial.state.name.lower())
        raise UserError(f"trial {number} ({state}) has finished no epoch, so there is nothing to compare with", where=str(place.path))
    if [record.epoch for record in then] != list(range(1, len(then) + 1)):
        raise UserError(
            f"the history of trial {number} is not whole: it has epochs {', '.join(str(r.epoch) for r in then)}",
            where=str(place.history_file),
            todo="repeat another trial, or fewer epochs with --epochs",
        )
    experiment = space.experiment(trial.params)
    # An earlier version may have noted another hash for the same experiment.
    if experiment.hash not in (trial.user_attrs.get("hash", experiment.hash), place.experiment_hash()):
        raise UserError(
            f"this version reads the experiment of trial {number} differently (hash {experiment.hash}, then {trial.user_attrs['hash']})",
            where=str(folder.definition),
            todo="use the version of guidino_tune that ran it",
        )
    scratch = _empty(output or folder.path / "repeats" / f"{number:05d}", replaced=output is None)
    machines = read_machines(place.path)
    with sealed_tests(), moved(space, backbones), recalled(folder), expecting(_backbone_then(experiment, machines, number)):
        data = open_for_search(experiment.data, split_file=folder.split)
        if study.user_attrs.get("data_fingerprint", data.fingerprint) != data.fingerprint:
            raise UserError(
                "the images differ from those the study was searched with, or this version reads them otherwise",
                where=str(folder.path),
                todo="restore the images, or use the version of guidino_tune that ran it",
            )
        started(then[-1].epoch, f"trial {number} of {name!r}: {trial.user_attrs.get('name', experiment.name)}, {trial.state.name.lower()}")
        before = torch.get_num_threads()
        try:
            now, here = _train(
                experiment, data, then, machines, as_settled(space.resources, study), _Until(scratch, then[-1].epoch, on_epoch),
                validated=validated_epochs(space.study, experiment.training.epochs),
            )  # fmt: skip
        finally:
            torch.set_num_threads(before)
    return Repeated(tuple(then), tuple(now[: len(then)]), _reasons(machines, here), scratch)


def _train(
    experiment: Experiment,
    data: SearchData,
    then: Sequence[EpochRecord],
    machines: Sequence[Mapping[str, Any]],
    resources: Resources,
    reporter: _Until,
    *,
    validated: Sequence[int],
) -> tuple[list[EpochRecord], dict[str, Any]]:
    """Trains as far as ``then`` goes; where the trial changed to smaller parts of a batch, so does this."""
    noted = machines[-1] if machines else {}
    torch.set_num_threads(noted.get("threads") or resources.cpus_per_worker or 1)
    if noted and experiment.training.precision == "auto":
        precision: Any = "bf16" if noted["bf16"] else "fp16" if noted.get("fp16") else "fp32"
        experiment = replace(experiment, training=replace(experiment.training, precision=precision))
    gpu = torch.cuda.is_available() and noted.get("device") != "cpu"
    store = None
    if resources.shared:
        size = resources.views_gigabytes
        store = ChunkStore(Path(resources.views_folder or paths.views()), None if size is None else int(size * 1e9))
    parts = [int(record.metrics.get("micro_batches", 1)) for record in then]
    ends = [n for n in range(1, len(parts)) if parts[n] != parts[n - 1]] + [len(parts)]
    here: dict[str, Any] = {}
    for end in ends:
        reporter.last = end
        run = TrainingRun(
            experiment, data, reporter, device="cuda" if gpu else "cpu", store=store, share_views=resources.shared,
            validated=validated, reported=len(reporter.history()), micro_batches=parts[end - 1],
        )  # fmt: skip
        try:
            here = describe(run)
            note_machine(reporter.path, run)
            run.run()
        finally:
            run.close()
    reporter.tidy()
    shutil.rmtree(reporter.best, ignore_errors=True)  # the trial has its own
    return reporter.history(), here


def _backbone_then(experiment: Experiment, machines: Sequence[Mapping[str, Any]], number: int) -> dict[str, Known]:
    """The backbone that the trial itself has noted."""
    noted = str(machines[-1].get("backbone") or "") if machines else ""
    return {key_of(experiment.guide): Known(fingerprint=noted, owner=f"trial {number}")} if isinstance(experiment.guide, DINOGuide) else {}


def _empty(folder: Path, *, replaced: bool) -> Path:
    if replaced:
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("the folder is not empty", where=str(folder), todo="choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _reasons(machines: Sequence[Mapping[str, Any]], here: Mapping[str, Any]) -> tuple[str, ...]:
    """Why a repetition may differ in its last digits, or more."""
    if not machines:
        return ("on what the trial was computed is not noted; one thread was taken unless the study says otherwise",)
    found = [f"trained on {len(machines)} machines or settings, one after the other"] if len(machines) > 1 else []
    for machine in machines:
        for key, value in here.items():
            if key != "machine" and machine.get(key) != value and (key != "backbone" or key in machine):
                found.append(f"{key}: {machine.get(key)} then, {value} now")
    if here["device"] != "cpu":
        found.append("a GPU adds up in no fixed order in some of its operations")
    return tuple(dict.fromkeys(found))


def _results(record: EpochRecord) -> dict[str, float]:
    return {name: value for name, value in record.metrics.items() if name not in MEASURED}


def _pair(old: EpochRecord, new: EpochRecord, name: str) -> tuple[float, float]:
    nothing = float("nan")  # an epoch without validation
    return old.metrics.get(name, nothing), new.metrics.get(name, nothing)
