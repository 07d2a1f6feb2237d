"""The papers' tables and the scaling study: listed trials of a study, then the sealed test, then a page beside the paper's numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guidino_tune.analysis import scaling, tables
from guidino_tune.config import Experiment, Protocol
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import make_split, read_split
from guidino_tune.errors import UserError
from guidino_tune.models.cost import forward_cost
from guidino_tune.running.measuring import measure_models
from guidino_tune.space.parameters import Values
from guidino_tune.space.recipes import FRAMES, PaperTable, Row, paper_sizes
from guidino_tune.space.space import RECIPE, Space
from guidino_tune.study.store import StoredStudy, as_begun, folder_of, load_study
from guidino_tune.training.folder import write_text
from guidino_tune.training.measured import Measured
from guidino_tune.workflows.backbones import continued
from guidino_tune.workflows.checks import check_search
from guidino_tune.workflows.report import report_at_end
from guidino_tune.workflows.search import run_search
from guidino_tune.workflows.tables import Format, plain_table, print_data, print_table
from guidino_tune.workflows.track import send_results

UNNAMED = "unnamed"


@dataclasses.dataclass(frozen=True, slots=True)
class Trained:
    """A listed trial after its training.

    Attributes:
        values: What was listed.
        experiment: What was trained.
        measured: On the test cases; ``None`` where there is no result.
        reason: Why there is none; empty where there is one.
        seconds: Of each epoch.
    """

    values: Values
    experiment: Experiment
    measured: Measured | None
    reason: str
    seconds: tuple[float, ...] = ()


def run_table(
    table: PaperTable,
    rows: Sequence[Row],
    spaces: Mapping[str, Space],
    protocols: Mapping[str, Protocol],
    console: Console,
    *,
    about: str,
    limit: int | None = None,
    form: Format = "table",
) -> int:
    """Trains, tests and prints a table over one or several data sets; the same call continues what was interrupted.

    Args:
        table: Of the paper.
        rows: Of that table.
        spaces: From ``recipes.table_space``, by data set.
        protocols: How the test cases are measured, by data set; see ``framed``.
        console: For progress and the table.
        about: The budget in words, for the page.
        limit: Only the first so many test cases.
        form: How the table is printed; another one than ``table`` goes to standard output, whatever the console is.

    Returns:
        Exit code: 0; that of a search which did not end well; 1 when no row has a result.

    Raises:
        UserError: A mistake in a space, missing data or weights, or a split without test cases; before anything is trained.
    """
    for space in spaces.values():
        _check(space)
    found: list[tables.TableRow] = []
    code = 0
    for dataset, space in spaces.items():
        code = run_search(space, console=console).exit_code or code
        if code == 130:
            return code
        folder = folder_of(space.study.name)
        space = as_begun(space, folder)
        with folder.lock():
            protocol = protocols[dataset]
            trained = measure_study(space, protocol, console, limit)
            mine = [_table_row(dataset, row, protocol, [t for t in trained if t.values[RECIPE] == row.system]) for row in rows]
            remarks = [
                f"data set: {dataset}; {_cases(trained)} sealed test cases; metrics: {protocol.describe()}",
                f"budget: {about}",
                "± is the standard deviation over seeds; the weights of each seed are those of its best validation epoch",
                "paper: GuiDINO (arXiv 2603.01115). Its code measures HD95 in another way (--hd95 reference) and on other splits",
                _frame_remark(dataset, protocol),
            ]
            write_text(folder.reports / f"{table.name}.md", tables.markdown(mine, f"{table.title} on {dataset}", remarks))
            caption = f"{protocol.describe()}, {_cases(trained)} cases"
            write_text(folder.reports / f"{table.name}.csv", tables.csv_text(mine, caption))
            report_at_end(StoredStudy(folder, load_study(folder), space), console)
            send_results(space, console)
        console.print(f"written: {folder.reports / table.name}.md and .csv", highlight=False, soft_wrap=True)
        found += mine
    if form == "table":
        console.print(f"{table.title} ({table.name})", style="bold", highlight=False)
        print_table(console, _shown(found))
    else:
        print_data(form, tables.headings(), map(tables.cells, found))
    described = {dataset: protocols[dataset].describe() for dataset in spaces}
    for text in dict.fromkeys(described.values()):
        where = ", ".join(dataset for dataset, metrics in described.items() if metrics == text)
        console.print(f"metrics on {where}: {text}; budget: {about}", highlight=False, soft_wrap=True)
    return code or (0 if any(row.results for row in found) else 1)


def framed(protocol: Protocol, dataset: str, asked: str | None = None) -> Protocol:
    """The protocol with masks compared where the code behind the tables does it, unless another resolution was asked for.

    Sliding windows give masks of native size only.
    """
    if asked is None and protocol.inference == "resized" and FRAMES.get(dataset) == "training":
        return dataclasses.replace(protocol, resolution="training")
    return protocol


def run_scaling(
    space: Space, protocol: Protocol, console: Console, *, dataset: str, about: str, limit: int | None = None, form: Format = "table"
) -> int:
    """Trains and tests every backbone at every image size, and draws Dice against cost; see ``run_table``."""
    folder = folder_of(space.study.name)
    with contextlib.ExitStack() as known:
        space = known.enter_context(continued(space, folder))
        _check(space)
        code = run_search(space, console=console).exit_code
        if code == 130:
            return code
        space = as_begun(space, folder)
        known.enter_context(folder.lock())
        trained = measure_study(space, protocol, console, limit)
        groups: dict[tuple[str, int], list[Trained]] = {}
        for one in trained:
            groups.setdefault((str(one.values["guide.backbone"]), one.experiment.data.image_size), []).append(one)
        points = [point for (backbone, size), group in groups.items() if (point := _point(backbone, size, group))]
        if points:
            title = f"{trained[0].experiment.name} on {dataset}: backbone and image size"
            missing = [f"no result: {t.values}: {t.reason}" for t in trained if not t.measured]
            remarks = [
                f"{_cases(trained)} sealed test cases; metrics: {protocol.describe()}",
                f"budget: {about}",
                "± and the bars are standard deviations over seeds",
                *missing,
            ]
            scaling.draw(points, folder.reports / "scaling.png", title)
            page = scaling.markdown(points, title, remarks, "scaling.png")
            write_text(folder.reports / "scaling.md", page)
            write_text(folder.reports / "scaling.csv", scaling.csv_text(points, f"{protocol.describe()}, {_cases(trained)} cases"))
            if form == "table":
                console.print(page, highlight=False, markup=False)
            else:
                print_data(form, scaling.HEADINGS, scaling.rows(points))
            console.print(f"written: {folder.reports}/scaling.md, .csv and .png", highlight=False, soft_wrap=True)
        report_at_end(StoredStudy(folder, load_study(folder), space), console)
        send_results(space, console)
    return code or (0 if points else 1)


def measure_study(space: Space, protocol: Protocol, console: Console, limit: int | None = None) -> list[Trained]:
    """Measures every listed trial that ran its whole budget on the test cases, unless that was done before.

    Returns:
        The newest trial of each listed set of values, in the list's order.
    """
    folder = folder_of(space.study.name)
    newest = _newest(load_study(folder), space)
    names = {t.number: f"{', '.join(map(str, t.params.values()))} (trial {t.number})" for t in newest if t.state == TrialState.COMPLETE}
    results: dict[str, Measured] = {}
    failures: dict[str, str] = {}
    if names:
        results, failures = measure_models(
            {name: folder.trial(number) for number, name in names.items()}, space.base.data, folder.split, protocol,
            resources=space.resources, reason=f"final measurement of study {space.study.name}", console=console, limit=limit,
        )  # fmt: skip
    trained = []
    for trial in newest:
        name = names.get(trial.number, "")
        reason = failures.get(name, "") if name else str(trial.user_attrs.get("failure", trial.state.name.lower()))
        seconds = tuple(record.metrics["epoch_seconds"] for record in folder.trial(trial.number).history())
        trained.append(Trained(dict(trial.params), space.experiment(trial.params), results.get(name), reason, seconds))
    return trained


def _check(space: Space) -> None:
    """Everything that can be known before training, the test cases at its end included."""
    folder = folder_of(space.study.name)
    with continued(space, folder) as space:
        check_search(space, folder)
    data = space.base.data
    split = read_split(folder.split) if folder.split.exists() else make_split(find_cases(data), data)
    if not split.test:
        raise UserError(
            f"the split of {data.kind} has no test cases to measure on", where="data.test_fraction", todo="give it a value above 0"
        )


def _newest(study: optuna.Study, space: Space) -> list[FrozenTrial]:
    trials = study.get_trials(deepcopy=False)
    found = [[t for t in trials if dict(t.params) == dict(values)] for values in space.first_trials]
    return [same[-1] for same in found if same]


def _cases(trained: Sequence[Trained]) -> str:
    return " or ".join(map(str, sorted({t.measured.cases for t in trained if t.measured}))) or "no"


def _point(backbone: str, size: int, group: Sequence[Trained]) -> scaling.Point | None:
    dice = tuple(t.measured.scores["dice"] for t in group if t.measured)
    if not dice:
        return None
    seconds = [s for t in group for s in t.seconds]
    flops, parameters = forward_cost(group[0].experiment)
    return scaling.Point(
        backbone=Path(backbone).name,
        image_size=size,
        gigaflops=flops / 1e9,
        parameters=parameters,
        seconds=statistics.median(seconds) if seconds else None,
        dice=dice,
    )


def _frame_remark(dataset: str, protocol: Protocol) -> str:
    """In which pixels HD95 is here, and in the paper."""
    theirs = {
        "native": "the images' own",
        "training": "those of images squeezed to the training size (by its text 256; its code trains some systems at another size)",
    }[FRAMES.get(dataset, "native")]
    here = "the images' own" if protocol.resolution == "native" else "those of images squeezed to the training size"
    return f"HD95 is in pixels, here {here}, in the paper's code {theirs}; pixels of frames of unlike size are other units"


def _table_row(dataset: str, row: Row, protocol: Protocol, trained: Sequence[Trained]) -> tables.TableRow:
    sizes = sorted({t.experiment.data.image_size for t in trained})
    native = protocol.resolution == "native"
    frame = "native" if native else " or ".join(f"{size} x {size}" for size in sizes)
    like = FRAMES.get(dataset, "native") == protocol.resolution and (native or set(sizes) <= paper_sizes(dataset, row))
    notes = [f"seed {t.values['training.seed']}: {t.reason}" for t in trained if not t.measured]
    if not trained:
        notes.append("no trial")
    if UNNAMED in row.paper:
        notes.append("paper, data set not named: {} / {} / {}".format(*row.paper[UNNAMED]))
    scores: list[Mapping[str, float]] = [t.measured.scores for t in trained if t.measured]
    return tables.TableRow(dataset, row.system, scores, row.paper.get(dataset), "; ".join(notes), frame, like)


def _shown(rows: Sequence[tables.TableRow]) -> Table:
    texts = ("data set", "system", "HD95 frame", "note")
    shown = plain_table(tables.headings(), [heading for heading in tables.headings() if heading not in texts])
    for row in rows:
        shown.add_row(*map(Text, tables.cells(row)))
    return shown
