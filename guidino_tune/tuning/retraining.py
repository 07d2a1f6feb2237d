"""Retraining of one configuration: full budget, several seeds side by side through Ray Train, the sealed test once, a registered model."""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher
from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.progress import TaskID, TextColumn
from rich.table import Table

from guidino_tune import __version__, paths
from guidino_tune.config import Experiment, Protocol, Resources
from guidino_tune.config.protocol import DEFAULT_PROTOCOL
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.splits import read_split
from guidino_tune.errors import UserError
from guidino_tune.tracking import SeedRun, flatten, log_model_run, ui_command
from guidino_tune.tracking.views import model_page
from guidino_tune.training.folder import TrialFolder, write_text
from guidino_tune.training.loop import OBJECTIVE
from guidino_tune.training.measured import Measured, cases_file
from guidino_tune.training.model_folder import export_model
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.tuning.cluster import Plan, connected, plan
from guidino_tune.tuning.search import MLFLOW_EXPERIMENT, check_workers, mlflow_uri
from guidino_tune.tuning.testing import measure_models

METRICS = ("dice", "iou", "hd95", "asd")


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One seed: its folder, the objective at its best epoch, and what was measured on the test cases."""

    seed: int
    folder: TrialFolder
    validation: float
    measured: Measured

    @property
    def test(self) -> Mapping[str, float]:
        """Means over the test cases."""
        return self.measured.scores


def retrain(
    experiment: Experiment,
    provenance: Mapping[str, Any],
    *,
    name: str,
    seeds: int,
    resources: Resources,
    console: Console,
    protocol: Protocol = DEFAULT_PROTOCOL,
) -> Path:
    """Trains, tests, exports and registers; the same call continues what was interrupted.

    Args:
        experiment: What to train, with its full budget.
        provenance: Where it comes from; written into the model folder.
        name: Of the folder under ``retrained`` and of the registered model.
        seeds: How many; they count up from ``experiment.training.seed``.
        resources: Of one training.
        console: For progress and results.
        protocol: How the test cases are measured.

    Returns:
        The exported model folder: the seed with the best validation Dice.

    Raises:
        UserError: Data or weights are missing, the folder holds another experiment, or a training failed.
    """
    home = paths.home() / "retrained" / name
    split_file = home / "split.json"
    check_workers(experiment, resources.workers)
    _check_same(home, experiment)
    _take_split(provenance, split_file, console)
    data = open_for_search(experiment.data, split_file=split_file)
    for note in data.notes:
        console.print(f"note: {note}", style="yellow", highlight=False)
    numbers = [experiment.training.seed + i for i in range(seeds)]
    runs = {seed: TrialFolder(home / f"seed-{seed}") for seed in numbers}
    todo = [seed for seed in numbers if len(runs[seed].history()) < experiment.training.epochs or not runs[seed].best.exists()]
    console.print(f"{experiment.name} on {experiment.data.kind}: {seeds} seed(s), {experiment.training.epochs} epochs each; folder {home}")
    if todo:
        with connected():
            booked = plan(dataclasses.replace(resources, executor="train"))
            _train(experiment, {s: runs[s] for s in todo}, split_file, resources, booked, console)
    validation = {seed: max(r.metrics[OBJECTIVE] for r in runs[seed].history() if OBJECTIVE in r.metrics) for seed in numbers}
    tested, failures = measure_models(
        {f"seed {seed}": run for seed, run in runs.items()},
        experiment.data, split_file, protocol, resources=resources, reason=f"final measurement of {name}", console=console,
    )  # fmt: skip
    for folder in runs.values():
        folder.tidy()
    if failures:
        name, why = next(iter(failures.items()))
        raise UserError(f"{name} could not be measured: {why}", where=str(home), todo="the same command measures what is missing")
    results = [SeedResult(s, runs[s], validation[s], tested[f"seed {s}"]) for s in numbers]
    console.print(_table(experiment, protocol, results))
    chosen = max(results, key=lambda r: (r.validation, -r.seed))
    model = export_model(
        chosen.folder.best,
        dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, seed=chosen.seed)),
        home / "model",
        {
            **provenance,
            "retrained_seeds": numbers,
            "chosen_seed": chosen.seed,
            "chosen_by": "validation Dice at its best epoch",
            "protocol": chosen.measured.protocol,
            "validation_dice": chosen.validation,
            "test": dict(chosen.test),
            "guidino_tune": __version__,
        },
    )
    _register(experiment, results, chosen, model, home, name, console)
    return model


def _train(
    experiment: Experiment, runs: Mapping[int, TrialFolder], split_file: Path, resources: Resources, booked: Plan, console: Console
) -> None:
    from ray import tune

    from guidino_tune.tuning.executors import process_settings, trainable

    ray_folder = split_file.parent / "ray"
    # Each seed sees views of its own, once: there is nothing to share.
    settings = process_settings(booked, resources, split_file=split_file, ray_folder=ray_folder) | {"views": None}

    def config(seed: int) -> dict[str, Any]:
        seeded = dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, seed=seed))
        return {**settings, "number": seed, "experiment": seeded.to_dict(), "reported": 0, "folder": str(runs[seed].path)}

    searcher = _Seeds([config(seed) for seed in runs], experiment.training.epochs, console)
    tuner = tune.Tuner(
        trainable(booked),
        tune_config=tune.TuneConfig(search_alg=searcher, num_samples=len(runs), max_concurrent_trials=booked.concurrent),
        run_config=tune.RunConfig(
            name=f"run-{int(time.time())}",
            storage_path=str(ray_folder),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=resources.max_failures),
        ),
    )
    with searcher:
        tuner.fit()
    shutil.rmtree(ray_folder, ignore_errors=True)
    for seed, folder in runs.items():
        if len(folder.history()) < experiment.training.epochs:
            raise UserError(
                f"seed {seed} stopped after {len(folder.history())} of {experiment.training.epochs} epochs",
                where=str(folder.path),
                todo="see traceback.txt there if there is one; the same command continues it",
            )


class _Seeds(Searcher):
    """Hands Tune one configuration per seed, and shows how far each is."""

    def __init__(self, configs: Sequence[dict[str, Any]], epochs: int, console: Console) -> None:
        super().__init__()
        self.waiting, self.epochs, self.console = list(configs), epochs, console
        self.seeds: dict[str, int] = {}
        self.told: dict[int, int] = {}
        self.bars = RichProgress(*RichProgress.get_default_columns(), TextColumn("{task.fields[score]}"), console=console, transient=True)
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> None:
        if self.console.is_terminal:
            self.bars.start()

    def __exit__(self, *exc: object) -> None:
        self.bars.stop()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Seeds:
        return self

    def suggest(self, trial_id: str) -> Any:
        if not self.waiting:
            return Searcher.FINISHED
        config = self.waiting.pop(0)
        self.seeds[trial_id] = config["number"]
        self.tasks[trial_id] = self.bars.add_task(f"seed {config['number']}", total=self.epochs, score="")
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        seed = self.seeds[trial_id]
        if "records" not in result:
            self.console.print(f"seed {seed} failed: {result['failure']}: {result['message']}", style="red")
            return
        for record in (EpochRecord(**values) for values in json.loads(result["records"])):
            self.bars.update(self.tasks[trial_id], completed=record.epoch)
            if OBJECTIVE not in record.metrics:
                continue
            score = f"val Dice {record.metrics[OBJECTIVE]:.4f}"
            self.bars.update(self.tasks[trial_id], score=score)
            # Without a terminal, ten lines a seed tell enough.
            due = record.epoch >= self.told.get(seed, 0) + self.epochs // 10 or record.epoch == self.epochs
            if due and not self.console.is_terminal:
                self.told[seed] = record.epoch
                self.console.print(f"seed {seed}: epoch {record.epoch}/{self.epochs}, {score}", highlight=False)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.bars.update(self.tasks[trial_id], visible=False)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: each seed's folder is its state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see ``save``."""


def _table(experiment: Experiment, protocol: Protocol, results: Sequence[SeedResult]) -> Table:
    title = f"{experiment.name}: {results[0].measured.cases} sealed test cases, {protocol.describe()}, distances in pixels"
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in ("seed", "val Dice", *(f"test {m}" for m in METRICS)):
        table.add_column(column, justify="right")
    for result in results:
        table.add_row(str(result.seed), f"{result.validation:.4f}", *(f"{result.test[m]:.4f}" for m in METRICS))
    columns = [[r.validation for r in results], *([r.test[m] for r in results] for m in METRICS)]
    table.add_section()
    table.add_row("mean ± sd", *(mean_sd(values) for values in columns), style="bold")
    return table


def mean_sd(values: Sequence[float]) -> str:
    """Mean and sample standard deviation; a single value has none."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


def _register(
    experiment: Experiment, results: Sequence[SeedResult], chosen: SeedResult, model: Path, home: Path, name: str, console: Console
) -> None:
    summary = {f"test_{m}_mean": statistics.fmean(r.test[m] for r in results) for m in chosen.test}
    if len(results) > 1:
        summary |= {f"test_{m}_sd": statistics.stdev(r.test[m] for r in results) for m in chosen.test}
    summary["val_dice_mean"] = statistics.fmean(r.validation for r in results)
    uri, registered = mlflow_uri(), f"guidino-tune-{name}"
    marker = home / "registered.json"
    weights = [f"{r.seed} {r.measured.weights} {r.measured.key}" for r in results]
    key = json.dumps({"experiment": experiment.hash, "chosen": chosen.seed, "measured": weights, "uri": uri})
    known: dict[str, str] = json.loads(marker.read_text(encoding="utf-8")) if marker.exists() else {}
    version = known.get(key)
    if version is None:
        _, version = log_model_run(
            uri,
            MLFLOW_EXPERIMENT,
            f"retrain {name} {experiment.name}",
            flatten(experiment.to_dict()),
            summary,
            [],
            model,
            registered,
            {"experiment_hash": experiment.hash, "test_protocol": chosen.measured.protocol},
            seeds=[
                SeedRun(
                    seed=r.seed,
                    metrics={"best_val_dice": r.validation, **{f"test_{m}": value for m, value in r.test.items()}},
                    history=r.folder.history(),
                    artifacts=[cases_file(r.folder, r.measured), *sorted(r.folder.pictures.glob("*.png"))],
                    chosen=r.seed == chosen.seed,
                )
                for r in results
            ],
            artifact_location=paths.home() / "mlartifacts",
        )
        write_text(marker, json.dumps({**known, key: version}, indent=1))
    for line in (
        f"model of seed {chosen.seed} (best on validation): {model}",
        f"registered in MLflow as {registered!r}, version {version}",
        f"  browse: {ui_command(uri)}",
        f"    open: {model_page(uri, registered)}",
        " predict: " + paths.next_command(f"predict {model} IMAGES --output masks"),
        "evaluate: " + paths.next_command(f"evaluate {model}"),
    ):
        console.print(line, highlight=False, soft_wrap=True)


def _check_same(home: Path, experiment: Experiment) -> None:
    stored = home / "experiment.yaml"
    if stored.exists() and Experiment.from_yaml(stored).hash != experiment.hash:
        raise UserError("another experiment was retrained under this name", where=str(home), todo="choose another --name")
    write_text(stored, experiment.to_yaml())


def _take_split(provenance: Mapping[str, Any], split_file: Path, console: Console) -> None:
    """The search and the retraining must agree on what was never seen: the study's own split is taken over.

    Raises:
        UserError: This retraining was started with another split.
    """
    searched = Path(str(provenance.get("split") or ""))
    if not searched.is_file():
        if provenance:
            note = (
                "the study's split.json is not on this machine; the split is drawn again, which gives the same one only on the same images"
            )
            console.print(f"note: {note}", style="yellow", highlight=False)
        return
    if not split_file.exists():
        write_text(split_file, searched.read_text(encoding="utf-8"))
    ours, theirs = read_split(split_file), read_split(searched)
    if (set(ours.test), set(ours.validation)) != (set(theirs.test), set(theirs.validation)):
        raise UserError(
            "the split differs from the study's: the test cases may have been seen by the search",
            where=f"{split_file} and {searched}",
            todo="choose another --name, which takes the study's split over",
        )
