"""Cross-validation of one configuration: a model for each fold, each case scored by the model that has not seen it, and their ensemble."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from guidino_tune import __version__
from guidino_tune.analysis.statistics import mean_sd
from guidino_tune.config import Data, Experiment, Protocol
from guidino_tune.config.data import IGNORED
from guidino_tune.data.carrying import comes_from_search, provenance_of
from guidino_tune.data.copies import copies_in_files
from guidino_tune.data.labels import Mask
from guidino_tune.data.opening import SearchData, open_for_search
from guidino_tune.data.openings import copied_from
from guidino_tune.data.rules import RULES, write_rules
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import TOGETHER, Split, fold_of, fold_splits, groups_digest, images_of, joined, read_split, write_split
from guidino_tune.errors import UserError
from guidino_tune.metrics import NAMES, mean_values
from guidino_tune.running.connection import connected
from guidino_tune.tracking import SeedRun
from guidino_tune.training.card import Scores
from guidino_tune.training.ensemble_folder import Member, export_ensemble, list_members
from guidino_tune.training.folder import TrialFolder, write_text
from guidino_tune.training.measured import Measured, cases_file
from guidino_tune.workflows.listed import Training, measure_all, with_seed
from guidino_tune.workflows.model_scores import groups_of, measured_scores, scores_of, with_intervals
from guidino_tune.workflows.register import register_model
from guidino_tune.workflows.retrain import Job

OUT_OF_FOLD = "out-of-fold.csv"
"""In the retraining's folder: the scores of every case that is not tested, by the models that have not seen it."""


@dataclasses.dataclass(frozen=True, slots=True)
class FoldModel:
    """One training: its fold and seed, and what its own validation cases say of it by the full protocol."""

    fold: int
    seed: int
    training: Training
    measured: Measured | None = None

    @property
    def scores(self) -> Mapping[str, float]:
        """Means over its validation cases."""
        assert self.measured is not None
        return self.measured.scores


@dataclasses.dataclass(frozen=True, slots=True)
class CrossValidated:
    """What came of a cross-validation.

    Attributes:
        name: Of the folder under ``retrained``; the registered model is ``guidino-tune-NAME``.
        model: The exported folder of the ensemble.
        models: Its members.
        out_of_fold: Mean scores over all cases, each by the models that have not seen it.
        scores: The file with the scores of each of these cases.
        tested: The ensemble on the sealed test cases; ``None`` where the split has none.
    """

    name: str
    model: Path
    models: tuple[FoldModel, ...]
    out_of_fold: Mapping[str, float]
    scores: Path
    tested: Measured | None


def cross_validate(job: Job, folds: int, seeds: int) -> CrossValidated:
    """Trains on each fold, scores every case out of its fold, tests the ensemble once, exports and registers it.

    The folds are those of all cases that are not for the test. The same call continues what was interrupted.

    Args:
        job: What to train.
        folds: How many.
        seeds: Trainings of each fold; they count up from ``experiment.training.seed``.

    Raises:
        UserError: As ``retrain.retrain_model``, but a split without test cases is fine; or there are fewer groups than folds.
        KeyboardInterrupt: It was interrupted.
    """
    experiment = dataclasses.replace(job.experiment, data=dataclasses.replace(job.experiment.data, folds=folds, fold=0))
    job = dataclasses.replace(job, experiment=experiment)
    home, split_file, console = job.home, job.split_file, job.console
    job.begin()
    opened = _open(experiment.data, split_file)
    chosen = ["the search chose this configuration on some of these cases: out of their folds they may score a little too well"]
    for note in (*opened.notes, *(chosen if comes_from_search(job.provenance) else [])):
        console.print(f"note: {note}", style="yellow", highlight=False)
    models = _models(experiment, home, _fold_files(experiment.data, opened, split_file), seeds)
    budget = f"{folds} folds, {seeds} seed(s), {experiment.training.epochs} epochs each"
    console.print(f"{experiment.name} on {experiment.data.kind}: {budget}; folder {home}")
    job.train([model.training for model in models])
    with connected():  # one cluster for all measurements
        protocol, models = _measure(models, job, job.protocol)
        tested = _test(models, job, protocol)
    every = _write_out_of_fold(models, home / OUT_OF_FOLD)
    console.print(_table(experiment, models, every, tested))
    console.print(f"written: {home / OUT_OF_FOLD}", highlight=False, soft_wrap=True)
    about = {
        **job.provenance,
        "folds": folds,
        "retrained_seeds": sorted({model.seed for model in models}),
        "protocol": protocol.describe(),
        "out_of_fold": every,
        "test": dict(tested.scores) if tested else None,
        "guidino_tune": __version__,
    }
    model = export_ensemble(
        [
            Member(
                m.training.folder.best,
                m.training.experiment,
                m.training.split_file,
                {**about, **provenance_of(m.training.split_file), "fold": m.fold, "validation": dict(m.scores), "test": None},
                scores_of(
                    m.training.folder,
                    m.training.experiment.data,
                    best=m.training.best,
                    split_file=m.training.split_file,
                    measured=m.measured,
                    part="validation",
                ),
            )
            for m in models
        ],
        home / "model",
        {**about, **provenance_of(split_file)},
        split_file,
        scores=_scores(experiment, models, every, tested, home),
        with_backbone=job.with_backbone,
    )
    _register(experiment, models, every, tested, model, home, job.name, console)
    return CrossValidated(job.name, model, tuple(models), every, home / OUT_OF_FOLD, tested)


def _open(data: Data, split_file: Path) -> SearchData:
    """All cases that are not tested, decoded; the split of a search may be of one fold, or of none."""
    data = dataclasses.replace(data, max_train_cases=None, max_validation_cases=None)
    if split_file.exists():
        fold, folds = fold_of(read_split(split_file)) or (0, None)
        data = dataclasses.replace(data, folds=folds, fold=fold)
    return open_for_search(data, split_file=split_file)


def _fold_files(data: Data, opened: SearchData, split_file: Path) -> list[Path]:
    """The split file of each fold: those that were made before, if they divide the same cases, or new ones."""
    assert data.folds is not None
    files = [split_file.parent / f"fold-{number}" / split_file.name for number in range(data.folds)]
    tables = (opened.train, opened.validation)
    # Cases that cannot be decoded, and are to be left out, are in no fold.
    usable = {name for table in tables for name in table.ids}
    split, part = opened.split, ("train", "validation")
    if all(file.exists() for file in files):
        held_out = [name for file in files for name in read_split(file).validation]
        if sorted(held_out) != sorted(usable):
            raise UserError(
                "the folds divide other cases than those that are here",
                where=str(split_file.parent),
                todo="put the images back, or choose another name for the result",
            )
        return files
    kept = {name: tuple(case for case in getattr(split, name) if case in usable) for name in part}
    split = Split(**kept, test=split.test, origin=split.origin, seed=split.seed)
    listing = find_cases(data)
    if data.group_duplicates:
        pool = [case for case in listing.cases if case.id in usable]
        listing = joined(listing, copies_in_files(pool).pairs)
    sizes = {name: _foreground(table.mask(i)) for table in tables for i, name in enumerate(table.ids)}
    made = fold_splits(listing, split, data.folds, data.split_seed, stratify=data.stratify, sizes=sizes)
    for file, one in zip(files, made, strict=True):
        origin = one.origin + (TOGETHER if data.group_duplicates else "")
        write_split(dataclasses.replace(one, origin=origin), file, groups_digest(listing, one), images_of(split_file))
        write_rules(opened.rules, file.parent / RULES)  # what is black and white does not change from fold to fold
        copied_from(file, split_file)
    return files


def _foreground(mask: Mask) -> float:
    """Share of what counts."""
    return float(((mask > 0) & (mask != IGNORED)).sum() / max(1, (mask != IGNORED).sum()))


def _models(experiment: Experiment, home: Path, files: Sequence[Path], seeds: int) -> list[FoldModel]:
    found = []
    for fold, split_file in enumerate(files):
        data = dataclasses.replace(experiment.data, fold=fold)
        for seed in range(experiment.training.seed, experiment.training.seed + seeds):
            described = with_seed(dataclasses.replace(experiment, data=data), seed)
            folder = TrialFolder(home / f"fold-{fold}" / f"seed-{seed}")
            found.append(FoldModel(fold, seed, Training(f"fold {fold} seed {seed}", described, folder, split_file)))
    return found


def _measure(models: Sequence[FoldModel], job: Job, protocol: Protocol) -> tuple[Protocol, list[FoldModel]]:
    """Each model on its own validation cases; post-processing is chosen once, on all of them."""
    trainings = {model.training.label: model.training for model in models}
    measured = measure_all(
        {label: t.folder for label, t in trainings.items()}, job.experiment.data, models[0].training.split_file, protocol,
        resources=job.resources, reason=f"cross-validation of {job.name}", console=job.console, part="validation",
        split_files={label: t.split_file for label, t in trainings.items()},
    )  # fmt: skip
    if protocol.largest_component == "validation":
        gain = sum(m.cases * (m.choice["always"] - m.choice["never"]) for m in measured.values())
        chosen = dataclasses.replace(protocol, largest_component="always" if gain > 0 else "never")
        job.console.print(f"largest component: {chosen.largest_component}, by all cases out of their folds", highlight=False)
        return _measure(models, job, chosen)
    return protocol, [dataclasses.replace(model, measured=measured[model.training.label]) for model in models]


def _test(models: Sequence[FoldModel], job: Job, protocol: Protocol) -> Measured | None:
    """The sealed test, once, by the ensemble; ``None`` where the split has no test cases."""
    if not read_split(job.split_file).test:
        job.console.print("note: the split has no test cases: nothing was tested", style="yellow", highlight=False)
        return None
    folder = TrialFolder(job.home / "ensemble")
    list_members(folder.path, [Path(os.path.relpath(model.training.folder.path, folder.path)).as_posix() for model in models])
    return measure_all(
        {"ensemble": folder}, job.experiment.data, job.split_file, protocol,
        resources=job.resources, reason=f"final measurement of {job.name}", console=job.console,
    )["ensemble"]  # fmt: skip


def _write_out_of_fold(models: Sequence[FoldModel], file: Path) -> dict[str, float]:
    """Joins the scores of all cases (CSV: case, fold, seed, scores, protocol), and returns their means."""
    rows: list[dict[str, str]] = []
    for model in models:
        assert model.measured is not None
        with open(cases_file(model.training.folder, model.measured, "validation"), encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                rows.append({"case": row.pop("case"), "fold": str(model.fold), "seed": str(model.seed), **row})
    text = io.StringIO()
    names = [name for name in rows[0] if all(name in row for row in rows)]  # earlier versions called the scores of a class by its number
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: (row["case"], int(row["seed"]))))
    write_text(file, text.getvalue())
    scores = [name for name in names if name not in ("case", "fold", "seed", "protocol")]
    return mean_values([{name: float(row[name]) for name in scores} for row in rows])


def _scores(experiment: Experiment, models: Sequence[FoldModel], every: Mapping[str, float], tested: Measured | None, home: Path) -> Scores:
    """For the card of the ensemble."""
    groups = groups_of(experiment.data)
    cases = sum(m.measured.cases for m in models if m.measured and m.seed == models[0].seed)
    found = {
        "out_of_fold": {
            "cases": cases,
            "how": "each case by the members that have not seen it",
            "scores": with_intervals(every, home / OUT_OF_FOLD, groups),
        }
    }
    if tested:
        found["test"] = measured_scores(tested, cases_file(TrialFolder(home / "ensemble"), tested), groups)
    return found


def _fold_means(models: Sequence[FoldModel], metric: str) -> list[float]:
    """Of each fold, over its seeds."""
    folds = sorted({model.fold for model in models})
    return [statistics.fmean(model.scores[metric] for model in models if model.fold == fold) for fold in folds]


def _table(experiment: Experiment, models: Sequence[FoldModel], every: Mapping[str, float], tested: Measured | None) -> Table:
    assert models[0].measured is not None
    title = f"{experiment.name}: cases out of their folds, {models[0].measured.protocol}, distances in pixels"
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in ("fold", "cases", *NAMES):
        table.add_column(column, justify="right")
    columns = {metric: _fold_means(models, metric) for metric in NAMES}
    for number, fold in enumerate(sorted({model.fold for model in models})):
        cases = next(model.measured.cases for model in models if model.fold == fold and model.measured)
        table.add_row(str(fold), str(cases), *(f"{columns[metric][number]:.4f}" for metric in NAMES))
    table.add_section()
    table.add_row("mean ± sd of folds", "", *(mean_sd(columns[metric]) for metric in NAMES), style="bold")
    table.add_row("mean of all cases", "", *(f"{every[metric]:.4f}" for metric in NAMES))
    if tested:
        table.add_section()
        table.add_row("ensemble, sealed test", str(tested.cases), *(f"{tested.scores[metric]:.4f}" for metric in NAMES), style="bold")
    return table


def _register(
    experiment: Experiment, models: Sequence[FoldModel], every: Mapping[str, float], tested: Measured | None, model: Path, home: Path,
    name: str, console: Console,
) -> None:  # fmt: skip
    summary = {f"out_of_fold_{metric}": value for metric, value in every.items()}
    for metric in NAMES:
        means = _fold_means(models, metric)
        summary |= {f"fold_{metric}_mean": statistics.fmean(means), f"fold_{metric}_sd": statistics.stdev(means)}
    if tested:
        summary |= {f"test_{metric}": value for metric, value in tested.scores.items()}
    measured = [m.measured for m in models if m.measured]
    known_by = [f"{m.weights} {m.key}" for m in (*measured, *([tested] if tested else []))]
    runs = []
    for one, scores in zip(models, measured, strict=True):
        runs.append(
            SeedRun(
                seed=one.seed,
                metrics={
                    "best_val_dice": one.training.best,
                    **{f"out_of_fold_{metric}": value for metric, value in one.scores.items()},
                },
                history=one.training.folder.history(),
                params={"data.fold": one.fold},
                artifacts=[
                    cases_file(one.training.folder, scores, "validation"),
                    *sorted(one.training.folder.pictures.glob("*.png")),
                ],
                chosen=True,
            )
        )
    register_model(
        experiment, model, home, name, console,
        summary=summary,
        known_by={"measured": known_by},
        tags={"protocol": measured[0].protocol, **({"test_protocol": tested.protocol} if tested else {})},
        about=f"ensemble of {len(models)} models: {model}",
        seeds=runs,
        score=every["dice"],
        evaluated=model / "member-0",
        artifacts=[home / OUT_OF_FOLD, *([cases_file(TrialFolder(home / "ensemble"), tested)] if tested else [])],
    )  # fmt: skip
