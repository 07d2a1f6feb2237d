"""The best configurations of a study, retrained with several seeds: winner by paired validation scores, then the sealed test, once."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

from guidino_tune import __version__, paths, targets
from guidino_tune.analysis import comparison
from guidino_tune.analysis.statistics import read_scores
from guidino_tune.config import DINOGuide, Experiment, Protocol, Resources
from guidino_tune.config.parsing import parse
from guidino_tune.config.protocol import DEFAULT_PROTOCOL
from guidino_tune.custom_loss import check_term
from guidino_tune.data.carrying import provenance_of
from guidino_tune.data.identity import check_images
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.openings import openings
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import images_of, read_split
from guidino_tune.errors import UserError
from guidino_tune.known_backbones import key_of
from guidino_tune.models import check_backbone, check_segmenter
from guidino_tune.space.space import Space
from guidino_tune.study.store import StoredStudy, StudyFolder, stored_study
from guidino_tune.training.backbones import read_known, write_known
from guidino_tune.training.card import Scores
from guidino_tune.training.folder import TrialFolder, write_text
from guidino_tune.training.measured import Measured, Part, asked_key, cases_file
from guidino_tune.training.model_folder import export_model
from guidino_tune.workflows.backbones import moved, recalled
from guidino_tune.workflows.checks import check_workers
from guidino_tune.workflows.finalists import DEFAULT, Configuration, finalists
from guidino_tune.workflows.home import follow_home
from guidino_tune.workflows.listed import Training, measure_all, train_all, with_seed
from guidino_tune.workflows.model_scores import measured_scores
from guidino_tune.workflows.progress import silent_console
from guidino_tune.workflows.report import report_at_end
from guidino_tune.workflows.retrain import SeedResult, register
from guidino_tune.workflows.tables import plain_table, print_table
from guidino_tune.workflows.track import send_where_free


@dataclass(frozen=True, slots=True)
class Compared:
    """What came of a comparison.

    Attributes:
        winner: Name of the configuration that is best on validation.
        validation: Scores of all configurations, and their differences.
        test: Of the winner and what it is held against; ``None`` where there are no test cases.
        answers: What follows, in sentences.
        left_out: By name, why a configuration was not compared.
        page: The report; beside it lie the scores of every case (``.csv``) and a figure (``.png``).
        model: The exported folder: the winner's seed that is best on validation.
    """

    winner: str
    validation: comparison.Result
    test: comparison.Result | None
    answers: tuple[str, ...]
    left_out: Mapping[str, str]
    page: Path
    model: Path


def compare_study(
    study: Any,
    *,
    top: int = 3,
    seeds: int = 3,
    epochs: int | None = None,
    against: Sequence[str | int] = (DEFAULT,),
    data_root: str | Path | None = None,
    backbones: Sequence[str] = (),
    resources: Mapping[str, Any] = MappingProxyType({}),
    protocol: Protocol = DEFAULT_PROTOCOL,
    storage: str | None = None,
    console: Console | None = None,
) -> Compared:
    """Retrains, measures, chooses, tests, exports and reports; the same call continues what was interrupted.

    Everything lies in ``compare`` in the study's folder, by the hash of the experiment: what is there already is used again, whichever
    configurations, seeds or budgets are asked for next.

    Args:
        study: Its name, or what ``open_study`` gave.
        top: How many of the best configurations.
        seeds: Trainings of each; they count up from the seed of the search space.
        epochs: Budget of each; ``None`` takes that of the search.
        against: ``default`` or numbers of trials, beside the best.
        data_root: Where the data set is now; ``None``: where it was.
        backbones: Where the folders of its backbones are now: ``DIR`` or ``OLD=DIR``.
        resources: Fields of the study's resources that are others here.
        protocol: How cases are measured.
        storage: Database URL of the Optuna study; ``None`` takes the file in its folder.
        console: For progress and results; ``None`` prints nothing.

    Raises:
        UserError: No such study, nothing to compare, missing data or weights, a training or measurement that can be continued, or no
            configuration has a result.
        KeyboardInterrupt: It was interrupted.
    """
    console = console or silent_console()
    follow_home(console)
    storage = storage or getattr(study, "storage", None)
    folder, opened, space = stored_study(getattr(study, "folder", study), storage)
    targets.look_in_noted(opened.user_attrs)
    space = _at(space, data_root)
    configurations = finalists(opened, space, top=top, against=list(map(str, against)), epochs=epochs)
    used = _resources(space.resources, resources)
    home = folder.comparison
    with (
        moved(space, backbones),
        recalled(folder),
        home.lock("comparison", "wait for it, or stop it and run it again: what it has done stays"),
    ):
        notes = _check(configurations, folder, used)
        complete = sum(c.finalist for c in configurations)
        if complete < top:
            notes.append(f"the study has {complete} complete configuration(s), fewer than the {top} asked for")
        for note in notes:
            console.print(f"note: {note}", style="yellow", highlight=False, soft_wrap=True)
        trainings = _trainings(configurations, folder, home, seeds)
        console.print(f"{len(configurations)} configurations with {seeds} seed(s) each; folder {home.path}", highlight=False)
        failed = train_all([t for by_seed in trainings.values() for t in by_seed.values()], home.path, used, console)
        left_out = _left_out(trainings, failed)
        for name, why in left_out.items():
            notes.append(f"{name} is left out: {why}")
            console.print(notes[-1], style="red", highlight=False, soft_wrap=True)
        trained = {name: by_seed for name, by_seed in trainings.items() if name not in left_out}
        if not trained:
            raise UserError("no configuration has a result", where=str(home.path), todo="see above for the reason of each")
        measuring = _Measuring(space, folder, protocol, used, console)
        validation = measuring.result(trained, "validation", f"validation of study {folder.path.name}")
        winner = validation.summaries[0].name
        wanted = {c.name: trained[c.name] for c in configurations if c.name in trained and (c.reference or c.name == winner)}
        test = None
        if read_split(folder.split).test:
            test = measuring.result(wanted, "test", f"winner of study {folder.path.name} and what it is held against", winner)
        else:
            notes.append("the data set has no test cases: nothing was tested")
        page = folder.reports / f"{_report_name(epochs, protocol)}.md"
        answers = _report(configurations, seeds, validation, test, folder, page, [*notes, *measuring.remarks], console)
        stored = StoredStudy(folder, opened, space)
        report_at_end(stored, console, held=False)
        send_where_free(stored, storage, console)
        model = _export(winner, trained[winner], measuring, validation, folder, home, console)
    return Compared(winner, validation, test, answers, left_out, page, model)


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
        found = measure_all(
            runs, self.space.base.data, self.folder.split, self.protocol,
            resources=self.resources, reason=reason, console=self.console, part=part,
        )  # fmt: skip
        self.measured |= {(part, label): measured for label, measured in found.items()}
        files = {
            (name, seed): cases_file(training.folder, found[training.label], part)
            for name, by_seed in trained.items()
            for seed, training in by_seed.items()
        }
        return comparison.analyse(read_scores(files, self.groups), winner)

    def scores(self, training: Training) -> Scores:
        """What was measured of a training, for its model's card."""
        found = {part: measured for (part, label), measured in self.measured.items() if label == training.label}
        return {part: measured_scores(m, cases_file(training.folder, m, part), self.groups) for part, m in found.items()}

    @property
    def remarks(self) -> list[str]:
        """How the cases were measured."""
        protocols = sorted({measured.protocol for measured in self.measured.values()})
        chosen = ["post-processing was chosen on the validation cases"] if self.protocol.largest_component == "validation" else []
        return [f"measured with: {'; or '.join(protocols)}", *chosen]


def _at(space: Space, root: str | Path | None) -> Space:
    """The space with its data set in another place."""
    if root is None:
        return space
    place = str(Path(root).expanduser().absolute())

    def moved(experiment: Experiment) -> Experiment:
        return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, root=place))

    recipes = {name: moved(recipe) for name, recipe in space.recipes.items()}
    return dataclasses.replace(space, base=moved(space.base), recipes=recipes)


def _resources(known: Resources, changes: Mapping[str, Any]) -> Resources:
    """The study's, with what is asked for here.

    Raises:
        UserError: They do not go together.
    """
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    if "gpus_per_worker" in given:
        given["trials_per_gpu"] = None
    executor = "auto" if int(given.get("workers") or 1) > 1 else known.executor
    return parse(Resources, dataclasses.asdict(known) | given | {"executor": executor}, "resources")


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
        check_term(experiment)
        notes |= dict.fromkeys(open_for_search(experiment.data, split_file=folder.split).notes)
    listing = find_cases(configurations[0].experiment.data)
    check_images(listing, read_split(folder.split), images_of(folder.split), str(folder.split))
    write_known(folder.path, found)
    unnoted = [
        f"the study does not note the fingerprint of {key}; taken to be this one: {found[key]}" for key in found if key not in before
    ]
    return [*notes, *unnoted]


def _trainings(
    configurations: Sequence[Configuration], folder: StudyFolder, home: StudyFolder, seeds: int
) -> dict[str, dict[int, Training]]:
    """By the configuration's name and the seed."""
    found: dict[str, dict[int, Training]] = {}
    for c in configurations:
        first = c.experiment.training.seed
        found[c.name] = {
            seed: Training(
                f"{c.name} seed {seed}",
                with_seed(c.experiment, seed),
                TrialFolder(home.path / c.experiment.hash / f"seed-{seed}"),
                folder.split,
            )
            for seed in range(first, first + seeds)
        }
    return found


def _left_out(trainings: Mapping[str, Mapping[int, Training]], failed: Mapping[str, str]) -> dict[str, str]:
    """By name, why a configuration cannot be compared: a seed has no result."""
    whys = {name: [f"{t.label}: {failed[t.label]}" for t in by_seed.values() if t.label in failed] for name, by_seed in trainings.items()}
    return {name: why[0] for name, why in whys.items() if why}


def _report(
    configurations: Sequence[Configuration], seeds: int, validation: comparison.Result, test: comparison.Result | None,
    folder: StudyFolder, page: Path, notes: Sequence[str], console: Console,
) -> tuple[str, ...]:  # fmt: skip
    """Writes and prints it; gives what follows, in sentences."""
    study = folder.path.name
    title = f"Study {study}: the best configurations, retrained"
    budgets = sorted({c.experiment.training.epochs for c in configurations})
    remarks = [f"budget: {' or '.join(map(str, budgets))} epochs, {seeds} seed(s) each", *notes]
    opened = [f"{opening['time']}: {opening['reason']}" for opening in openings(folder.split)] if test else []
    about = {c.name: c.about for c in configurations}
    comparison.draw(validation, page.with_suffix(".png"), f"{title}: {validation.cases} for validation")
    write_text(page, comparison.markdown(title, about, validation, test, remarks, opened, f"{page.stem}.png"))
    write_text(page.with_suffix(".csv"), comparison.csv_text(validation, test))
    for part, result in (("validation", validation), ("sealed test", test)):
        if result:
            console.print(f"{study}: {result.cases}, {part}", style="bold", highlight=False)
            print_table(console, _table(result))
    answers = tuple(line.replace("**", "") for line in comparison.answers(validation, test))
    for line in answers:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if len(opened) > 1:
        console.print(
            f"note: the test cases of this study were opened {len(opened)} times; see the report", style="yellow", highlight=False
        )
    console.print(f"written: {page}, .csv (every case) and .png", highlight=False, soft_wrap=True)
    return answers


def _report_name(epochs: int | None, protocol: Protocol) -> str:
    """Another budget or protocol has a page of its own, and replaces none."""
    budget = f"-{epochs}-epochs" if epochs else ""
    asked = dataclasses.asdict(protocol) | {"limit": None}
    return f"compare{budget}" + (f"-{asked_key(asked)}" if protocol != DEFAULT_PROTOCOL else "")


RESULT_HEADINGS = ("part", "configuration", "seeds", "dice", "low", "high", "behind", "p_holm", "winner")
"""Of ``result_rows``."""


def result_rows(found: Compared) -> list[list[object]]:
    """A row for each configuration and part; ``low`` and ``high`` are of the interval over cases."""
    rows = list[list[object]]()
    for part, result in (("validation", found.validation), ("test", found.test)):
        compared = {c.second: c for c in result.comparisons} if result else {}
        for s in result.summaries if result else ():
            c = compared.get(s.name)
            rows.append([part, s.name, len(s.seeds), s.mean, s.low, s.high, c and c.difference, c and c.p_holm, s.name == found.winner])
    return rows


def _table(result: comparison.Result) -> Table:
    numbers = ("seeds", "Dice", "interval over cases", "behind the winner", "p (Holm)")
    table = plain_table(["configuration", *numbers], numbers)
    compared = {c.second: c for c in result.comparisons}
    for summary in result.summaries:
        c = compared.get(summary.name)
        table.add_row(
            summary.name, str(len(summary.seeds)), comparison.spread(summary), f"{summary.low:.4f} to {summary.high:.4f}",
            f"{c.difference:.4f}" if c else "-", f"{c.p_holm:.3g}" if c else "-",
        )  # fmt: skip
    return table


def _export(
    winner: str, trained: Mapping[int, Training], measuring: _Measuring, validation: comparison.Result,
    folder: StudyFolder, home: StudyFolder, console: Console,
) -> Path:  # fmt: skip
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
            "study": folder.path.name,
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
        scores=measuring.scores(trained[chosen.seed]),
    )
    if part == "test":
        first = with_seed(experiment, min(trained))
        register(first, list(results.values()), chosen, model, home.path, f"{folder.path.name}-compared", console)
    else:
        console.print(f"model of seed {chosen.seed} (best on validation): {model}", highlight=False, soft_wrap=True)
        console.print(
            " predict: " + paths.next_command(f"predict {shlex.quote(str(model))} IMAGES --output masks"), highlight=False, soft_wrap=True
        )
    return model
