"""Retraining of one configuration: full budget, several seeds side by side through Ray Train, the sealed test once, a registered model."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from guidino_tune import __version__, paths
from guidino_tune.analysis.statistics import mean_sd
from guidino_tune.config import Data, Experiment, Protocol, Resources
from guidino_tune.config.protocol import DEFAULT_PROTOCOL
from guidino_tune.config.study import OBJECTIVE
from guidino_tune.data.carrying import FILE, SEARCHED, check_taken, find_searched, fit, provenance_of
from guidino_tune.data.identity import check_images, seen_images
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.openings import copied_from
from guidino_tune.data.rules import RULES, RULES_KEY, Rules, write_rules
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import groups_digest, images_of, read_split, split_digest, write_split
from guidino_tune.errors import UserError
from guidino_tune.running.cluster import connected, plan
from guidino_tune.running.measuring import measure_models
from guidino_tune.running.trainings import Training, check_finished, train_side_by_side, with_seed
from guidino_tune.tracking import SeedRun
from guidino_tune.training.folder import EXPERIMENT, TrialFolder, write_text
from guidino_tune.training.measured import Measured, cases_file
from guidino_tune.training.model_folder import export_model
from guidino_tune.workflows.checks import check_own_code, check_workers
from guidino_tune.workflows.home import follow_home
from guidino_tune.workflows.register import register_model

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
    file: Path,
    given: Path | None = None,
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
        file: The configuration's own, beside which the split of its search may lie.
        given: The split of its search, as a person named it.

    Returns:
        The exported model folder: the seed with the best validation Dice.

    Raises:
        UserError: Data or weights are missing, the folder holds another experiment, the split of the search is not here or has no test
            cases, or a training failed.
    """
    protocol = protocol.of(experiment.data)
    follow_home(console)
    home = paths.home() / "retrained" / name
    split_file = home / "split.json"
    check_workers(experiment, resources.workers)
    check_own_code(experiment)
    check_same(home, experiment)
    take_split(provenance, split_file, experiment.data, console, file=file, given=given)
    write_text(home / EXPERIMENT, experiment.to_yaml())
    data = open_for_search(experiment.data, split_file=split_file)
    for note in data.notes:
        console.print(f"note: {note}", style="yellow", highlight=False)
    if not data.split.test:  # told before hours are spent
        raise UserError(
            "the split has no test cases to measure on at the end",
            where=str(split_file),
            todo="train on folds of it, whose scores need none: --folds 5",
        )
    numbers = [experiment.training.seed + i for i in range(seeds)]
    runs = {seed: TrialFolder(home / f"seed-{seed}") for seed in numbers}
    trainings = [Training(f"seed {seed}", with_seed(experiment, seed), runs[seed]) for seed in numbers]
    todo = [training for training in trainings if not training.finished]
    console.print(f"{experiment.name} on {experiment.data.kind}: {seeds} seed(s), {experiment.training.epochs} epochs each; folder {home}")
    if todo:
        with connected():
            booked = plan(dataclasses.replace(resources, executor="train"))
            # Each seed sees views of its own, once: there is nothing to share.
            train_side_by_side(todo, split_file, home / "ray", dataclasses.replace(resources, share_views=False), booked, console)
        check_finished(todo)
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
        with_seed(experiment, chosen.seed),
        home / "model",
        {
            **provenance,
            **provenance_of(split_file),
            "retrained_seeds": numbers,
            "chosen_seed": chosen.seed,
            "chosen_by": "validation Dice at its best epoch",
            "protocol": chosen.measured.protocol,
            "validation_dice": chosen.validation,
            "test": dict(chosen.test),
            "guidino_tune": __version__,
        },
        split_file,
    )
    register(experiment, results, chosen, model, home, name, console)
    return model


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


def register(
    experiment: Experiment, results: Sequence[SeedResult], chosen: SeedResult, model: Path, home: Path, name: str, console: Console
) -> None:
    """Makes an exported model a version in MLflow's registry, unless that was done before, and says what to do with it.

    Args:
        experiment: What was trained.
        results: Of each seed.
        chosen: The seed whose weights were exported.
        model: The exported folder.
        home: Where to remember it.
        name: The registered one is ``guidino-tune-NAME``.
        console: For the next steps.

    Raises:
        UserError: MLflow is away or refuses.
    """
    known_of_all = [m for m in chosen.test if all(m in r.test for r in results)]  # those measured by an earlier version lack some
    summary = {f"test_{m}_mean": statistics.fmean(r.test[m] for r in results) for m in known_of_all}
    if len(results) > 1:
        summary |= {f"test_{m}_sd": statistics.stdev(r.test[m] for r in results) for m in known_of_all}
    summary["val_dice_mean"] = statistics.fmean(r.validation for r in results)
    weights = [f"{r.seed} {r.measured.weights} {r.measured.key}" for r in results]
    register_model(
        experiment, model, home, name, console,
        summary=summary,
        known_by={"chosen": chosen.seed, "measured": weights},
        tags={"test_protocol": chosen.measured.protocol},
        about=f"model of seed {chosen.seed} (best on validation): {model}",
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
    )  # fmt: skip


def check_same(home: Path, experiment: Experiment) -> None:
    """Nothing else was retrained in this folder.

    Raises:
        UserError: It is that of another experiment.
    """
    stored = home / EXPERIMENT
    if stored.exists() and Experiment.from_yaml(stored).hash != experiment.hash:
        raise UserError("another experiment was retrained under this name", where=str(home), todo="choose another --name")


def take_split(
    provenance: Mapping[str, Any], split_file: Path, data: Data, console: Console, *, file: Path, given: Path | None = None
) -> None:
    """The search and the retraining must agree on what was never seen: the search's own split is taken over, as far as its cases are here.

    Args:
        provenance: Of the configuration.
        split_file: Of the retraining.
        data: The data set.
        console: Told of cases that are missing.
        file: The configuration's, beside which the split may lie.
        given: The split as a person named it.

    Raises:
        UserError: The search's split is not here, nothing is left of one of its parts, this retraining was started with another split, or
            cases have other images than in the search.
    """
    studies = [paths.studies() / str(provenance["study"]) / FILE] if provenance.get("study") else []
    searched = find_searched(provenance, file, given=given, studies=studies, taken=split_file)
    listing = find_cases(data)
    begun = images_of(split_file) if split_file.exists() else None
    if begun is not None:
        check_images(listing, read_split(split_file), begun, str(split_file))
    if searched is None:
        return
    split, notes = fit(searched, listing, data.root or data.kind)
    if searched.images != begun:
        check_images(listing, searched.split, searched.images, searched.file)
    if not searched.images:
        notes += (f"{searched.file} does not note its images: whether these are the ones that the search has seen cannot be checked",)
    if not searched.proved:
        notes += (f"nothing proves that {searched.file} is the split of the search: an earlier version exported this",)
    if split_file.exists():
        check_taken(read_split(split_file), searched.split, f"{split_file} and {searched.study or given or file}")
    else:
        about = {SEARCHED: split_digest(searched.split)}
        write_split(split, split_file, groups_digest(listing, split), searched.images or seen_images(listing, split), **about)
    if RULES_KEY in provenance and not (rules := split_file.parent / RULES).exists():
        write_rules(Rules.from_dict(provenance[RULES_KEY]), rules)  # what is black and white stays so, whatever files are there
    for note in notes:
        console.print(f"note: {note}", style="yellow", highlight=False)
    if searched.study:
        copied_from(split_file, searched.study)
