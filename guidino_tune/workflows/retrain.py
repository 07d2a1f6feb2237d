"""Retraining of one configuration: full budget, several seeds side by side, the sealed test once, a registered model."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from guidino_tune import __version__, paths
from guidino_tune.analysis.statistics import mean_sd
from guidino_tune.config import Data, Experiment, Protocol, Resources
from guidino_tune.config.parsing import read_yaml
from guidino_tune.config.protocol import DEFAULT_PROTOCOL
from guidino_tune.config.study import Shared
from guidino_tune.data.carrying import FILE, SEARCHED, check_taken, find_searched, fit, provenance_beside, provenance_of
from guidino_tune.data.identity import check_images, seen_images
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.openings import copied_from
from guidino_tune.data.rules import RULES, RULES_KEY, Rules, write_rules
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import groups_digest, images_of, read_split, split_digest, write_split
from guidino_tune.errors import UserError
from guidino_tune.known_backbones import chosen, expecting
from guidino_tune.space.space import absolute, override, read_space
from guidino_tune.study.store import StudyFolder
from guidino_tune.tracking import SeedRun
from guidino_tune.training.folder import EXPERIMENT, TrialFolder, write_text
from guidino_tune.training.measured import Measured, cases_file
from guidino_tune.training.model_folder import export_model
from guidino_tune.workflows.backbones import retrained_backbone
from guidino_tune.workflows.checks import check_own_code, check_workers
from guidino_tune.workflows.home import follow_home
from guidino_tune.workflows.listed import Training, measure_all, train_all, with_seed
from guidino_tune.workflows.model_scores import scores_of
from guidino_tune.workflows.progress import silent_console
from guidino_tune.workflows.register import register_model
from guidino_tune.workflows.resolve import resolve_data

if TYPE_CHECKING:
    from guidino_tune.workflows.cross_validate import CrossValidated

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


@dataclass(frozen=True, slots=True)
class Retrained:
    """What came of a retraining.

    Attributes:
        name: Of the folder under ``retrained``; the registered model is ``guidino-tune-NAME``.
        model: The exported folder of ``chosen``.
        seeds: Their results.
        chosen: The seed that is best on validation.
    """

    name: str
    model: Path
    seeds: tuple[SeedResult, ...]
    chosen: SeedResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What ``retrain_model`` was asked for; ``file`` is the configuration's, ``given`` the split of its search as a person named it."""

    experiment: Experiment
    provenance: Mapping[str, Any]
    name: str
    resources: Resources
    protocol: Protocol
    console: Console
    file: Path
    given: Path | None = None
    with_backbone: bool = False

    @property
    def home(self) -> Path:
        """Its folder."""
        return paths.home() / "retrained" / self.name

    @property
    def split_file(self) -> Path:
        """The split of its search, as taken over."""
        return self.home / FILE

    def begin(self) -> None:
        """Makes the folder, or finds that of the same call before.

        Raises:
            UserError: It holds another experiment; or see ``take_split``.
        """
        follow_home(self.console)
        check_workers(self.experiment, self.resources.workers)
        check_own_code(self.experiment)
        stored = self.home / EXPERIMENT
        if stored.exists() and Experiment.from_yaml(stored).hash != self.experiment.hash:
            raise UserError(
                "another experiment was retrained under this name", where=str(self.home), todo="choose another name for the result"
            )
        take_split(self.provenance, self.split_file, self.experiment.data, self.console, file=self.file, given=self.given)
        write_text(stored, self.experiment.to_yaml())

    def train(self, trainings: Sequence[Training]) -> None:
        """Trains what is not trained yet.

        Raises:
            UserError: A training has no result, or another process trains here.
        """
        resources = dataclasses.replace(self.resources, share_views=_shared(self.experiment, self.resources))
        with StudyFolder(self.home).lock("retraining", "wait for it, or stop it and run it again: what it has done stays"):
            failed = train_all(trainings, self.home, resources, self.console)
        for label, why in failed.items():
            raise UserError(
                f"{label} has no result: {why}",
                where=str(self.home),
                todo="or choose other values (training.lr, training.grad_clip) and another name for the result",
            )


def retrain_model(
    what: Any,
    *,
    seeds: int | None = None,
    folds: int | None = None,
    name: str | None = None,
    epochs: int | None = None,
    resources: Resources | Mapping[str, Any] | None = None,
    protocol: Protocol = DEFAULT_PROTOCOL,
    data_root: str | Path | None = None,
    settings: Sequence[str] = (),
    backbones: Sequence[str] = (),
    split_file: str | Path | None = None,
    with_backbone: bool = False,
    console: Console | None = None,
) -> Retrained | CrossValidated:
    """Trains, tests, exports and registers a configuration; the same call continues what was interrupted.

    Args:
        what: The file of an export, an ``Experiment``, or a trial's result with ``experiment`` and ``provenance``.
        seeds: How many trainings, which count up from ``training.seed``; ``None``: three, with folds one of each.
        folds: Cross-validation over so many folds of all but the test cases.
        name: Of the result; by default study and trial, the file's name, or the experiment's name and hash.
        epochs: Budget of each; ``None`` takes the experiment's.
        resources: Of one training, or fields of them.
        protocol: How cases are measured.
        data_root: Where the data set is now; ``None``: where it was.
        settings: Other values in the experiment, such as ``training.lr=0.001``.
        backbones: Where the folder of its backbone is now.
        split_file: The split of its search; ``None`` looks beside the file and in the study's folder.
        with_backbone: The weights of the frozen backbone go into the model's folder, which then needs nothing else.
        console: For progress and results; ``None`` prints nothing.

    Raises:
        UserError: Data or weights are missing, the folder holds another experiment, the split of the search is not here or has no test
            cases, or a training failed.
        KeyboardInterrupt: It was interrupted.
    """
    if folds == 1:
        raise UserError("one fold is no cross-validation", where="folds: 1", todo="choose 2 or more, or leave it out")
    values, provenance, file = _described(what)
    given = dataclasses.asdict(resources) if isinstance(resources, Resources) else {**(resources or {})}
    space = read_space({"experiment": values, "resources": given}, source=str(file or "experiment"))
    assignments = [f"training.epochs={epochs}"] if epochs else []
    assignments += [f"data.root={data_root}"] if data_root else []
    if any(text.partition(".")[0] in ("study", "resources") for text in settings):
        raise UserError(
            "takes paths of the experiment only",
            where="settings",
            todo="those of resources, such as workers and concurrent, are given by themselves",
        )
    space = resolve_data(absolute(override(space, [*assignments, *settings])))
    if name is None:
        own = file.stem if file else f"{space.base.name}-{space.base.hash}"
        name = f"{provenance['study']}-{provenance['trial']}" if {"study", "trial"} <= provenance.keys() else own
        name += f"-{folds}-folds" if folds else ""
    console = console or silent_console()
    home = paths.home() / "retrained" / name
    with expecting(chosen(backbones)), retrained_backbone(space.base, provenance, home, console) as experiment:
        job = Job(
            experiment=experiment, provenance=provenance, name=name, resources=space.resources, console=console, file=file or Path(name),
            protocol=protocol.of(experiment.data), given=Path(split_file) if split_file else None, with_backbone=with_backbone,
        )  # fmt: skip
        if folds:
            from guidino_tune.workflows.cross_validate import cross_validate

            return cross_validate(job, folds, seeds or 1)
        return _retrain(job, seeds or 3)


def _shared(experiment: Experiment, resources: Resources) -> Shared:
    """How long views are kept: each seed sees training images of its own, and unless they repeat each of them once."""
    return "once" if resources.shared is True and not experiment.data.view_cycle else resources.shared


def _described(what: Any) -> tuple[Mapping[str, Any], Mapping[str, Any], Path | None]:
    """Experiment, provenance and file."""
    if isinstance(what, str | Path):
        values = read_yaml(what)
        return values.get("experiment", values), values.get("provenance") or provenance_beside(Path(what)), Path(what)
    experiment = what if isinstance(what, Experiment) else getattr(what, "experiment", None)
    if not isinstance(experiment, Experiment):
        raise UserError(
            f"{type(what).__name__} is nothing to retrain", todo="give the file of an export, an Experiment, or a trial's result"
        )
    return experiment.to_dict(), getattr(what, "provenance", {}), None


def _retrain(job: Job, seeds: int) -> Retrained:
    experiment, home, console = job.experiment, job.home, job.console
    job.begin()
    data = open_for_search(experiment.data, split_file=job.split_file)
    for note in data.notes:
        console.print(f"note: {note}", style="yellow", highlight=False)
    if not data.split.test:  # told before hours are spent
        raise UserError(
            "the split has no test cases to measure on at the end",
            where=str(job.split_file),
            todo="train on folds of it, whose scores need none, such as 5 folds",
        )
    numbers = [experiment.training.seed + i for i in range(seeds)]
    trainings = {
        seed: Training(f"seed {seed}", with_seed(experiment, seed), TrialFolder(home / f"seed-{seed}"), job.split_file) for seed in numbers
    }
    console.print(f"{experiment.name} on {experiment.data.kind}: {seeds} seed(s), {experiment.training.epochs} epochs each; folder {home}")
    job.train([*trainings.values()])
    tested = measure_all(
        {training.label: training.folder for training in trainings.values()}, experiment.data, job.split_file, job.protocol,
        resources=job.resources, reason=f"final measurement of {job.name}", console=console,
    )  # fmt: skip
    results = tuple(SeedResult(seed, t.folder, t.best, tested[t.label]) for seed, t in trainings.items())
    console.print(_table(experiment, job.protocol, results))
    best = max(results, key=lambda r: (r.validation, -r.seed))
    model = export_model(
        best.folder.best,
        trainings[best.seed].experiment,
        home / "model",
        {
            **job.provenance,
            **provenance_of(job.split_file),
            "retrained_seeds": numbers,
            "chosen_seed": best.seed,
            "chosen_by": "validation Dice at its best epoch",
            "protocol": best.measured.protocol,
            "validation_dice": best.validation,
            "test": dict(best.test),
            "guidino_tune": __version__,
        },
        job.split_file,
        scores=scores_of(best.folder, experiment.data, best=best.validation, split_file=job.split_file, measured=best.measured),
        with_backbone=job.with_backbone,
    )
    register(experiment, results, best, model, home, job.name, console)
    return Retrained(job.name, model, results, best)


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
        score=chosen.validation,
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
