"""The papers' tables and the scaling study: listed trials of a study, then the sealed test, then a page beside the paper's numbers."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from guidino_tune import paths
from guidino_tune.analysis import scaling, tables
from guidino_tune.config import Experiment, Protocol
from guidino_tune.models.cost import forward_cost
from guidino_tune.space.recipes import PaperTable, Row
from guidino_tune.space.space import RECIPE, Space
from guidino_tune.training.folder import write_text
from guidino_tune.training.measured import Measured
from guidino_tune.tuning.search import run_search, send_results
from guidino_tune.tuning.study import StudyFolder, load_study
from guidino_tune.tuning.testing import measure_models

UNNAMED = "unnamed"


@dataclasses.dataclass(frozen=True, slots=True)
class Trained:
    """A listed trial after its training: its number, values and state, its folder's measurement where it has one."""

    trial: FrozenTrial
    experiment: Experiment
    measured: Measured | None


def run_table(
    table: PaperTable,
    rows: Sequence[Row],
    spaces: Mapping[str, Space],
    protocol: Protocol,
    console: Console,
    *,
    about: str,
    limit: int | None = None,
) -> int:
    """Trains, tests and prints a table over one or several data sets; the same call continues what was interrupted.

    Args:
        table: Of the paper.
        rows: Of that table.
        spaces: From ``recipes.table_space``, by data set.
        protocol: How the test cases are measured.
        console: For progress and the table.
        about: The budget in words, for the page.
        limit: Only the first so many test cases.

    Returns:
        Exit code: 0; that of a search which did not end well; 1 when no row has a result.

    Raises:
        UserError: A mistake in a space, missing data or weights.
    """
    found: list[tables.TableRow] = []
    code = 0
    for dataset, space in spaces.items():
        code = run_search(space, console) or code
        if code == 130:
            return code
        trained = measure_study(space, protocol, console, limit)
        mine = [_table_row(dataset, row, [t for t in trained if t.trial.params[RECIPE] == row.system]) for row in rows]
        cases = {t.measured.cases for t in trained if t.measured}
        remarks = [
            f"data set: {dataset}; {', '.join(map(str, sorted(cases))) or 'no'} sealed test cases; metrics: {protocol.describe()}",
            f"budget: {about}",
            "± is the standard deviation over seeds; the weights of each seed are those of its best validation epoch",
            "paper: GuiDINO (arXiv 2603.01115). Its HD95 and its splits differ from ours, so differences of a few pixels mean little",
        ]
        folder = StudyFolder(paths.studies() / space.study.name)
        write_text(folder.reports / f"{table.name}.md", tables.markdown(mine, f"{table.title} on {dataset}", remarks))
        write_text(folder.reports / f"{table.name}.csv", tables.csv_text(mine, protocol.describe()))
        send_results(space, console)
        console.print(f"written: {folder.reports / table.name}.md and .csv", highlight=False, soft_wrap=True)
        found += mine
    console.print(_shown(table, found))
    console.print(f"metrics: {protocol.describe()}; budget: {about}", highlight=False, soft_wrap=True)
    return code or (0 if any(row.results for row in found) else 1)


def run_scaling(space: Space, protocol: Protocol, console: Console, *, dataset: str, about: str, limit: int | None = None) -> int:
    """Trains and tests every backbone at every image size, and draws Dice against cost; see ``run_table``."""
    code = run_search(space, console)
    if code == 130:
        return code
    trained = [t for t in measure_study(space, protocol, console, limit) if t.measured]
    if not trained:
        return code or 1
    folder = StudyFolder(paths.studies() / space.study.name)
    points = []
    combinations = {(t.experiment.guide.backbone, t.experiment.data.image_size) for t in trained}  # type: ignore[union-attr]
    for backbone, size in sorted(combinations):
        mine = [t for t in trained if (t.experiment.guide.backbone, t.experiment.data.image_size) == (backbone, size)]  # type: ignore[union-attr]
        seconds = [r.metrics["epoch_seconds"] for t in mine for r in folder.trial(t.trial.number).history()]
        flops, parameters = forward_cost(mine[0].experiment)
        points.append(
            scaling.Point(
                backbone=Path(backbone).name,
                image_size=size,
                gigaflops=flops / 1e9,
                parameters=parameters,
                seconds=statistics.median(seconds) if seconds else None,
                dice=tuple(t.measured.scores["dice"] for t in mine if t.measured),
            )
        )
    title = f"{trained[0].experiment.name} on {dataset}: backbone and image size"
    remarks = [f"metrics: {protocol.describe()}", f"budget: {about}", "± is the standard deviation over seeds"]
    scaling.draw(points, folder.reports / "scaling.png", title)
    page = scaling.markdown(points, title, remarks, "scaling.png")
    write_text(folder.reports / "scaling.md", page)
    write_text(folder.reports / "scaling.csv", scaling.csv_text(points, protocol.describe()))
    send_results(space, console)
    console.print(page, highlight=False, markup=False)
    console.print(f"written: {folder.reports}/scaling.md, .csv and .png", highlight=False, soft_wrap=True)
    return code


def measure_study(space: Space, protocol: Protocol, console: Console, limit: int | None = None) -> list[Trained]:
    """Measures every listed trial that ran its whole budget on the test cases, once.

    Returns:
        The newest trial of each listed set of values, in the list's order.
    """
    folder = StudyFolder(paths.studies() / space.study.name)
    newest = _newest(load_study(folder), space)
    complete = [t for t in newest if t.state == TrialState.COMPLETE]
    experiments = {t.number: space.experiment(t.params) for t in newest}
    measured: dict[int, Measured] = {}
    names = {t.number: ", ".join(str(v) for v in t.params.values()) for t in complete}
    results = measure_models(
        {f"{names[t.number]} (trial {t.number})": folder.trial(t.number) for t in complete},
        space.base.data, folder.split, protocol, resources=space.resources, reason=f"final measurement of study {space.study.name}",
        console=console, limit=limit,
    ) if complete else {}  # fmt: skip
    for trial in complete:
        measured[trial.number] = results[f"{names[trial.number]} (trial {trial.number})"]
    return [Trained(t, experiments[t.number], measured.get(t.number)) for t in newest]


def _newest(study: optuna.Study, space: Space) -> list[FrozenTrial]:
    trials = study.get_trials(deepcopy=False)
    found = [[t for t in trials if dict(t.params) == dict(values)] for values in space.first_trials]
    return [same[-1] for same in found if same]


def _table_row(dataset: str, row: Row, trained: Sequence[Trained]) -> tables.TableRow:
    failed = [t for t in trained if t.measured is None]
    notes = [f"seed {t.trial.params['training.seed']}: {t.trial.user_attrs.get('failure', t.trial.state.name.lower())}" for t in failed]
    if not trained:
        notes.append("no trial")
    if UNNAMED in row.paper:
        notes.append("paper, data set not named: {} / {} / {}".format(*row.paper[UNNAMED]))
    scores: list[Mapping[str, float]] = [t.measured.scores for t in trained if t.measured]
    return tables.TableRow(dataset, row.system, scores, row.paper.get(dataset), "; ".join(notes))


def _shown(table: PaperTable, rows: Sequence[tables.TableRow]) -> Table:
    shown = Table(title=f"{table.title} ({table.name})", title_justify="left", header_style="bold")
    for index, column in enumerate(tables.headings()):
        shown.add_column(column, justify="right" if 2 <= index <= 1 + 1 + 3 * len(tables.METRICS) else "left")
    for row in rows:
        shown.add_row(*tables.cells(row))
    return shown
