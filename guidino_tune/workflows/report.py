"""Writes the report of a study: collects what the other workflows know, and hands it to ``reporting``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal

from rich.console import Console

from guidino_tune import __version__, paths
from guidino_tune.analysis.certainty import FEWEST, Estimate
from guidino_tune.errors import UserError, storage_error
from guidino_tune.reporting.build import build
from guidino_tune.reporting.document import Document
from guidino_tune.reporting.known import Comparison, Known, Price
from guidino_tune.reporting.markdown import markdown
from guidino_tune.reporting.material import Material, collect
from guidino_tune.reporting.page import html
from guidino_tune.study.ensembles import noted_ensembles
from guidino_tune.study.reading import Reader
from guidino_tune.study.stopping import sentence
from guidino_tune.study.store import StoredStudy, StudyFolder
from guidino_tune.training.folder import write_text
from guidino_tune.workflows.certainty import Certainty
from guidino_tune.workflows.home import follow_home
from guidino_tune.workflows.study_page import StudyPage, in_command, page_of, page_of_stored
from guidino_tune.workflows.track import send_where_free

Format = Literal["html", "markdown"]

ENDINGS: Mapping[Format, str] = {"html": ".html", "markdown": ".md"}

NAME = "report"
"""Of the file, in the study's ``reports/``."""

LONGEST = 100_000
"""Letters of another report that are taken in."""


def make_document(page: StudyPage, *, certainty: Certainty | None = None, price: Price | None = None, ended: bool = False) -> Document:
    """The report of a study as it is now.

    Args:
        page: What is told of it.
        certainty: Its statistics, if they are known already.
        price: Of an hour of one worker.
        ended: Whether the search has just ended: this process still holds it.
    """
    stored, about = page.stored, page.overview
    sure = certainty or Certainty(stored.study, stored.space)
    unsure = _unsure(stored)
    state = about.state if not (ended and about.state == "running") else "stopped" if about.left else "ended"
    material = collect(stored, is_driven=state == "running")
    known = Known(
        at=datetime.now(),
        state=state,
        driver=str(about.driver or "") if state == "running" else "",
        left=about.left,
        data=page.data,
        objective=page.objective,
        settings=page.settings,
        ending=sentence(stored.study, stored.space, stored.folder) if material.folder else "",
        agreement={} if unsure else sure.agreement,
        importance={} if unsure else {rung: sure.importance(rung) for rung in sure.rungs},
        gain=_gain(sure) if not unsure else None,
        unsure=unsure or (f"fewer than {FEWEST} trials have a Dice" if len(sure.trials) < FEWEST else ""),
        failures=page.failures,
        comparisons=_comparisons(material.folder) if material.folder else (),
        ensembles=noted_ensembles(material.folder) if material.folder else (),
        try_ensemble=_try_ensemble(material, page.storage),
        patients=_patients(material),
        pages=_pages(material.folder) if material.folder else {},
        commands=page.commands,
        links={what: where for what, where in page.links.items() if what != "reports"},
        price=price,
        version=__version__,
    )
    return build(material, known)


def _unsure(stored: StoredStudy) -> str:
    if stored.space.study.is_list:
        return "the trials are a list, no search: their settings do not vary by themselves"
    if len(stored.space.study.objectives) > 1:
        return "the search looks for several objectives, so Dice alone does not say what is good"
    return ""


def _gain(certainty: Certainty) -> tuple[int, Estimate] | None:
    more = len(certainty.trials)
    gain = certainty.expected_gain(more)
    return (more, gain) if gain else None


def _comparisons(folder: StudyFolder) -> list[Comparison]:
    """What ``compare`` left in ``reports/``, analysed again from the scores of every case."""
    found = []
    for file in sorted(folder.reports.glob("compare*.csv")):
        with contextlib.suppress(OSError, ValueError, KeyError):  # of another version, or edited
            found.append(_comparison(file))
    return found


def _try_ensemble(material: Material, storage: str) -> str:
    """The command that finds out what an ensemble would give, where there are two models to make one of."""
    if not material.folder:
        return ""
    folders = [folder for number in material.ranked if (folder := material.trial_folder(number)) and (folder / "best").is_dir()]
    command = f"ensemble {in_command(material.folder)} --output ensemble{storage}"
    return paths.next_command(command) if len(folders) > 1 else ""


def _patients(material: Material) -> dict[str, str] | None:
    """Patient of each validation case of the best trial, as the data set names them; ``None`` where that is not known here."""
    cases = material.cases(material.best.number) if material.best else {}
    if not material.best or not cases:
        return None
    from guidino_tune.data.sources import find_cases

    with contextlib.suppress(UserError, OSError):
        data = material.space.experiment(material.best.params).data
        if not (data.root or data.images or (paths.datasets() / data.kind).is_dir()):
            return None  # the images of the demo would be drawn
        listed = find_cases(data).cases
        found = {case.id: case.group for case in listed if case.id in cases}
        return found if found.keys() == cases.keys() else None
    return None


def _pages(folder: StudyFolder) -> dict[str, str]:
    """Reports of other commands, such as a paper's table."""
    found = (file for file in sorted(folder.reports.glob("*.md")) if file.is_file())
    mine = [file for file in found if not file.name.startswith((".", "compare", NAME))]
    return {file.name: file.read_text(encoding="utf-8", errors="replace")[:LONGEST] for file in mine}


def _comparison(file: Path) -> Comparison:
    import pandas as pd

    from guidino_tune.analysis.comparison import analyse, answers

    table = pd.read_csv(file, dtype={"case": str, "group": str, "configuration": str}, keep_default_na=False)
    parts = {part: rows.drop(columns="part") for part, rows in table.groupby("part")}
    validation = analyse(parts["validation"])
    test = analyse(parts["test"], validation.summaries[0].name) if "test" in parts else None
    told = [line.replace("**", "") for line in answers(validation, test) if line]
    return Comparison(page=file.stem, answers=[line.removeprefix("- ") for line in told], validation=validation, test=test)


def write_report(
    page: StudyPage,
    output: Path | None = None,
    *,
    format: Format = "html",
    certainty: Certainty | None = None,
    price: Price | None = None,
    ended: bool = False,
) -> Path:
    """Writes the report; see ``make_document``.

    Args:
        page: What is told of the study.
        output: The file; ``None``: ``report.html`` or ``report.md`` in the study's ``reports/``, or where its folder is not here,
            ``report-NAME`` in the present folder.
        format: Of the file.
        certainty: Its statistics, if they are known already.
        price: Of an hour of one worker.
        ended: Whether the search has just ended.

    Returns:
        The file.
    """
    document = make_document(page, certainty=certainty, price=price, ended=ended)
    ending = ENDINGS[format]
    if output is None:
        folder = page.stored.folder
        here = folder.definition.exists()
        safe = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in page.overview.name)
        output = folder.reports / f"{NAME}{ending}" if here else Path(f"{NAME}-{safe}{ending}").absolute()
    write_text(output, html(document) if format == "html" else markdown(document))
    return output


def report_of(
    name: str, storage: str | None, console: Console, *, output: Path | None = None, format: Format = "html", price: Price | None = None,
) -> Path:  # fmt: skip
    """The command: opens the study, writes the report, and sends it to MLflow where it lies with the study.

    Raises:
        UserError: There is no such study, or the file cannot be written.
    """
    page = page_of(Reader(storage), name)
    if output is not None and output.is_dir():
        raise UserError("is a folder", where=f"--output {output}", todo="name a file")
    try:
        file = write_report(page, output, format=format, price=price)
    except OSError as error:
        why = storage_error(error) or error
        raise UserError(f"cannot be written ({why})", where=str(output or error.filename), todo="name another file with --output") from None
    console.print(f"written: {file} ({file.stat().st_size / 1e6:.2f} MB)", highlight=False, soft_wrap=True)
    if file.parent == page.stored.folder.reports:
        follow_home(console)  # or the report of a copied home would go to the files of the first one
        send_where_free(page.stored, storage, console)
    return file


def report_at_end(stored: StoredStudy, console: Console, certainty: Certainty | None = None, *, held: bool = True) -> Path | None:
    """The report at the end of a search or a comparison; what goes wrong is a warning, for nothing else depends on it.

    Args:
        stored: The study.
        console: For the warning.
        certainty: Its statistics, if they are known already.
        held: Whether this process still holds the study, and the search has ended.
    """
    try:
        return write_report(page_of_stored(stored), certainty=certainty, ended=held)
    except Exception as error:
        text = f"warning: no report was written ({type(error).__name__}: {error}); nothing else is missing"
        console.print(text, style="yellow", highlight=False, soft_wrap=True, markup=False)
        return None
