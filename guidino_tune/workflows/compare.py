"""The best configurations of a study, retrained with several seeds: winner by paired validation scores, then the sealed test, once."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from guidino_tune import __version__, paths
from guidino_tune.analysis import comparison
from guidino_tune.analysis.statistics import read_scores
from guidino_tune.config import DINOGuide, Experiment, Protocol, Resources
from guidino_tune.config.parsing import parse, read_yaml
from guidino_tune.config.protocol import DEFAULT_PROTOCOL
from guidino_tune.data.carrying import provenance_of
from guidino_tune.data.identity import check_images
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.openings import openings
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import images_of, read_split
from guidino_tune.errors import UserError
from guidino_tune.known_backbones import key_of
from guidino_tune.models import check_backbone, check_segmenter
from guidino_tune.running.cluster import connected, plan
from guidino_tune.running.measuring import measure_models
from guidino_tune.running.trainings import Training, check_finished, train_side_by_side, with_seed
from guidino_tune.space.space import Space, read_space
from guidino_tune.study.store import StudyFolder, load_study
from guidino_tune.training.backbones import read_known, write_known
from guidino_tune.training.failures import INFEASIBLE
from guidino_tune.training.folder import TrialFolder, write_text
from guidino_tune.training.measured import Measured, Part, asked_key, cases_file
from guidino_tune.training.model_folder import export_model
from guidino_tune.workflows.backbones import moved, recalled
from guidino_tune.workflows.checks import check_workers
from guidino_tune.workflows.finalists import Configuration, finalists
from guidino_tune.workflows.home import follow_home
from guidino_tune.workflows.retrain import SeedResult, register
from guidino_tune.workflows.track import send_results

INFEASIBLE_FILE = "infeasible.json"
"""In the folder of a training that diverged: it would again. Memory that was short today may be there tomorrow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a person asks for, with the words of the command line.

    Attributes:
        study: Its name.
        top: How many of the best configurations.
        seeds: Trainings of each; they count up from the seed of the search space.
        epochs: Budget of each; ``None`` takes that of the search.
        against: ``default`` or numbers of trials, beside the best.
        data_root: Where the data set is now; ``None``: where it was.
        backbones: Where the folders of its backbones are now: ``DIR`` or ``OLD=DIR``.
        resources: Fields of the study's resources that are others here.
        protocol: How cases are measured.
        storage: Database URL of the Optuna study; ``None`` takes the file in its folder.
    """

    study: str
    top: int = 3
    seeds: int = 3
    epochs: int | None = None
    against: tuple[str, ...] = ("default",)
    data_root: str | None = None
    backbones: tuple[str, ...] = ()
    resources: Mapping[str, int | float | None] = dataclasses.field(default_factory=dict)
    protocol: Protocol = DEFAULT_PROTOCOL
    storage: str | None = None


def compare_study(request: Request, console: Console) -> int:
    """Retrains, measures, chooses, tests, exports and reports; the same call continues what was interrupted.

    Everything lies in ``compare`` in the study's folder, by the hash of the experiment: what is there already is used again, whichever
    configurations, seeds or budgets are asked for next.

    Args:
        request: What to compare.
        console: For progress and results.

    Returns:
        Exit code: 0; 1 when no configuration could be trained.

    Raises:
        UserError: No such study, nothing to compare, missing data or weights, or a training or measurement that can be continued.
    """
    follow_home(console)
    folder = StudyFolder(paths.studies() / request.study)
    study = load_study(folder, request.storage)
    space = _at(read_space(read_yaml(folder.definition), source=str(folder.definition)), request.data_root)
    configurations = finalists(study, space, top=request.top, against=request.against, epochs=request.epochs)
    resources = _resources(space.resources, request.resources)
    split = read_split(folder.split)
    home = StudyFolder(folder.path / "compare")
    with (
        moved(space, request.backbones),
        recalled(folder),
        home.lock("comparison", "wait for it, or stop it: the same command goes on with what it has done"),
    ):
        notes = _check(configurations, folder, resources)
        complete = sum(c.finalist for c in configurations)
        if complete < request.top:
            notes.append(f"the study has {complete} complete configuration(s), fewer than the {request.top} asked for")
        for note in notes:
            console.print(f"note: {note}", style="yellow", highlight=False, soft_wrap=True)
        trainings = _trainings(configurations, home, request.seeds)
        console.print(f"{len(configurations)} configurations with {request.seeds} seed(s) each; folder {home.path}", highlight=False)
        short = _train([t for by_seed in trainings.values() for t in by_seed.values()], folder, home, resources, console)
        failed = {name: why for name, by_seed in trainings.items() if (why := _infeasible(by_seed.values(), short))}
        for name, why in failed.items():
            notes.append(f"{name} is left out: {why}")
            console.print(f"{name} is left out: {why}", style="red", highlight=False, soft_wrap=True)
        trained = {name: by_seed for name, by_seed in trainings.items() if name not in failed}
        if not trained:
            return 1
        measuring = _Measuring(space, folder, request.protocol, resources, console)
        validation = measuring.result(trained, "validation", f"validation of study {request.study}")
        winner = validation.summaries[0].name
        wanted = {c.name: trained[c.name] for c in configurations if c.name in trained and (c.reference or c.name == winner)}
        test = (
            measuring.result(wanted, "test", f"winner of study {request.study} and what it is held against", winner) if split.test else None
        )
        if not split.test:
            notes.append("the data set has no test cases: nothing was tested")
        _report(request, configurations, validation, test, folder, [*notes, *measuring.remarks], console)
        _send(space, folder, request.storage, console)
        _export(request, winner, trained[winner], measuring, validation, folder, home, console)
    return 0


class _Measuring:
    """Measures trained configurations, each once, and reads the scores of their cases."""

    def __init__(self, space: Space, folder: StudyFolder, protocol: Protocol, resources: Resources, console: Console) -> None:
        self.space, self.folder, self.protocol, self.resources, self.console = space, folder, protocol, resources, console
        self.groups = {case.id: case.group for case in find_cases(space.base.data).cases}
        self.measured: dict[tuple[Part, str], Measured] = {}

    def result(
        self, trained: Mapping[str, Mapping[int, Training]], part: Part, reason: str, winner: str | None = None
    ) -> comparison.Result:
        """Scores of all cases of a part, analysed."""
        runs = {training.label: training.folder for by_seed in trained.values() for training in by_seed.values()}
        found, failures = measure_models(
            runs, self.space.base.data, self.folder.split, self.protocol,
            resources=self.resources, reason=reason, console=self.console, part=part,
        )  # fmt: skip
        if failures:
            label, why = next(iter(failures.items()))
            raise UserError(
                f"{label} could not be measured: {why}", where=str(runs[label].path), todo="the same command measures what is missing"
            )
        self.measured |= {(part, label): measured for label, measured in found.items()}
        files = {
            (name, seed): cases_file(training.folder, found[training.label], part)
            for name, by_seed in trained.items()
            for seed, training in by_seed.items()
        }
        return comparison.analyse(read_scores(files, self.groups), winner)

    @property
    def remarks(self) -> list[str]:
        """How the cases were measured."""
        said = sorted({measured.protocol for measured in self.measured.values()})
        chosen = ["post-processing was chosen on the validation cases"] if self.protocol.largest_component == "validation" else []
        return [f"measured with: {'; or '.join(said)}", *chosen]


def _at(space: Space, root: str | None) -> Space:
    """The space with its data set in another place."""
    if root is None:
        return space
    place = str(Path(root).expanduser().absolute())

    def moved(experiment: Experiment) -> Experiment:
        return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, root=place))

    recipes = {name: moved(recipe) for name, recipe in space.recipes.items()}
    return dataclasses.replace(space, base=moved(space.base), recipes=recipes)


def _resources(known: Resources, changes: Mapping[str, int | float | None]) -> Resources:
    """The study's, with what is asked for here.

    Raises:
        UserError: They do not go together.
    """
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    if "gpus_per_worker" in given:
        given["trials_per_gpu"] = None
    executor = "auto" if int(given.get("workers") or 1) > 1 else known.executor
    return parse(Resources, dataclasses.asdict(known) | given | {"executor": executor}, "--workers, --gpus-per-worker and others")


def _check(configurations: Sequence[Configuration], folder: StudyFolder, resources: Resources) -> list[str]:
    """Everything that can be known before training; returns what a person should know of the data."""
    notes: dict[str, None] = {}
    found, before = dict[str, str](), read_known(folder.path)
    for configuration in configurations:
        experiment = configuration.experiment
        check_workers(experiment, resources.workers)
        if isinstance(experiment.guide, DINOGuide):
            found[key_of(experiment.guide)] = check_backbone(experiment.guide)
        check_segmenter(experiment)
        notes |= dict.fromkeys(open_for_search(experiment.data, split_file=folder.split).notes)
    listing = find_cases(configurations[0].experiment.data)
    check_images(listing, read_split(folder.split), images_of(folder.split), str(folder.split))
    write_known(folder.path, found)
    unnoted = [
        f"the study does not note the fingerprint of {key}; taken to be this one: {found[key]}" for key in found if key not in before
    ]
    return [*notes, *unnoted]


def _trainings(configurations: Sequence[Configuration], home: StudyFolder, seeds: int) -> dict[str, dict[int, Training]]:
    """By the configuration's name and the seed."""
    found: dict[str, dict[int, Training]] = {}
    for c in configurations:
        first = c.experiment.training.seed
        found[c.name] = {
            seed: Training(
                f"{c.name} seed {seed}", with_seed(c.experiment, seed), TrialFolder(home.path / c.experiment.hash / f"seed-{seed}")
            )
            for seed in range(first, first + seeds)
        }
    return found


def _train(trainings: Sequence[Training], folder: StudyFolder, home: StudyFolder, resources: Resources, console: Console) -> dict[str, str]:
    """Trains what is not trained yet; what diverged is remembered.

    Returns:
        By label, why a training failed that the same command tries again.

    Raises:
        UserError: A training stopped for a reason outside its configuration.
    """
    short: dict[str, str] = {}
    todo = [t for t in trainings if not t.finished and not _diverged(t)]
    if todo:
        console.print(f"{len(trainings) - len(todo)} of {len(trainings)} trainings are done", highlight=False)
        by_label = {t.label: t for t in todo}
        with connected():
            failures = train_side_by_side(todo, folder.split, home.ray, resources, plan(resources), console)
        short = _keep(failures, by_label)
        check_finished([t for t in todo if t.label not in short and not _diverged(t)])
    for training in trainings:
        training.folder.tidy()
    return short


def _keep(failures: Mapping[str, tuple[str, str]], trainings: Mapping[str, Training]) -> dict[str, str]:
    """Remembers what diverged, and returns, by label, what else failed through its configuration."""
    short = {}
    for label, (kind, message) in failures.items():
        if kind == "diverged":
            write_text(trainings[label].folder.path / INFEASIBLE_FILE, json.dumps({"failure": kind, "message": message}))
        elif kind in INFEASIBLE:
            short[label] = f"{kind}: {message}; the same command tries it again, as with fewer side by side (--concurrent)"
    return short


def _diverged(training: Training) -> str:
    """How a training diverged before; empty where it did not."""
    file = training.folder.path / INFEASIBLE_FILE
    if not file.exists():
        return ""
    values = json.loads(file.read_text(encoding="utf-8"))
    said = f"{values['failure']}: {values['message']}; to train it all the same, remove {file}"
    return said if values["failure"] == "diverged" else ""


def _infeasible(trainings: Iterable[Training], short: Mapping[str, str]) -> str:
    """Why a configuration cannot be compared: a seed without a result; empty where all have one."""
    whys = ((t.label, short.get(t.label) or _diverged(t)) for t in trainings)
    return next((f"{label}: {why}" for label, why in whys if why), "")


def _report(
    request: Request, configurations: Sequence[Configuration], validation: comparison.Result, test: comparison.Result | None,
    folder: StudyFolder, notes: Sequence[str], console: Console,
) -> None:  # fmt: skip
    name = _report_name(request)
    title = f"Study {request.study}: the best configurations, retrained"
    budgets = sorted({c.experiment.training.epochs for c in configurations})
    remarks = [f"budget: {' or '.join(map(str, budgets))} epochs, {request.seeds} seed(s) each", *notes]
    opened = [f"{opening['time']}: {opening['reason']}" for opening in openings(folder.split)]
    if test is None:
        opened = []
    about = {c.name: c.about for c in configurations}
    comparison.draw(validation, folder.reports / f"{name}.png", f"{title}: {validation.cases} for validation")
    page = comparison.markdown(title, about, validation, test, remarks, opened, f"{name}.png")
    write_text(folder.reports / f"{name}.md", page)
    write_text(folder.reports / f"{name}.csv", comparison.csv_text(validation, test))
    for part, result in (("validation", validation), ("sealed test", test)):
        if result:
            console.print(_table(f"{request.study}: {result.cases}, {part}", result))
    for line in comparison.answers(validation, test):
        console.print(line.replace("**", ""), highlight=False, soft_wrap=True, markup=False)
    if len(opened) > 1:
        console.print(
            f"note: the test cases of this study were opened {len(opened)} times; see the report", style="yellow", highlight=False
        )
    console.print(f"written: {folder.reports / name}.md, .csv (every case) and .png", highlight=False, soft_wrap=True)


def _report_name(request: Request) -> str:
    """Another budget or protocol has a page of its own, and replaces none."""
    budget = f"-{request.epochs}-epochs" if request.epochs else ""
    asked = dataclasses.asdict(request.protocol) | {"limit": None}
    return f"compare{budget}" + (f"-{asked_key(asked)}" if request.protocol != DEFAULT_PROTOCOL else "")


def _table(title: str, result: comparison.Result) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in ("configuration", "seeds", "Dice", "interval over cases", "behind the winner", "p (Holm)"):
        table.add_column(column, justify="left" if column == "configuration" else "right")
    compared = {c.second: c for c in result.comparisons}
    for summary in result.summaries:
        c = compared.get(summary.name)
        table.add_row(
            summary.name, str(len(summary.seeds)), comparison.spread(summary), f"{summary.low:.4f} to {summary.high:.4f}",
            f"{c.difference:.4f}" if c else "-", f"{c.p_holm:.3g}" if c else "-",
        )  # fmt: skip
    return table


def _send(space: Space, folder: StudyFolder, storage: str | None, console: Console) -> None:
    """Brings the report to the study's run in MLflow."""
    try:
        lock = folder.lock()
    except UserError:
        console.print("the study is being searched: its driver sends the report to MLflow", highlight=False)
        return
    with lock:
        send_results(space, console, storage)


def _export(
    request: Request, winner: str, trained: Mapping[int, Training], measuring: _Measuring, validation: comparison.Result,
    folder: StudyFolder, home: StudyFolder, console: Console,
) -> None:  # fmt: skip
    """The winner's seed that is best on validation becomes the model."""
    dice = next(s.seeds for s in validation.summaries if s.name == winner)
    part: Part = "test" if ("test", next(iter(trained.values())).label) in measuring.measured else "validation"
    results = {seed: SeedResult(seed, t.folder, dice[seed], measuring.measured[part, t.label]) for seed, t in trained.items()}
    chosen = max(results.values(), key=lambda result: (result.validation, -result.seed))
    experiment = trained[chosen.seed].experiment
    model = export_model(
        chosen.folder.best,
        experiment,
        home.path / "model",
        {
            "study": request.study,
            "study_folder": str(folder.path),
            "configuration": winner,
            **provenance_of(folder.split),
            "retrained_seeds": list(trained),
            "chosen_seed": chosen.seed,
            "chosen_by": "mean validation Dice over the seeds, then that of the seed",
            "protocol": chosen.measured.protocol,
            "validation_dice": chosen.validation,
            **({"test": dict(chosen.test)} if part == "test" else {}),
            "guidino_tune": __version__,
        },
        folder.split,
    )
    if part == "test":
        first = with_seed(experiment, min(trained))
        register(first, list(results.values()), chosen, model, home.path, f"{request.study}-compared", console)
    else:
        console.print(f"model of seed {chosen.seed} (best on validation): {model}", highlight=False, soft_wrap=True)
        console.print(
            " predict: " + paths.next_command(f"predict {shlex.quote(str(model))} IMAGES --output masks"), highlight=False, soft_wrap=True
        )
