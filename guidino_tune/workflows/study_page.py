"""What there is to tell of one study: what it searched, over which images, its trials, its failures, and how to go on."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from guidino_tune import paths
from guidino_tune.config.study import OBJECTIVE
from guidino_tune.errors import redacted
from guidino_tune.study.lease import DRIVEN_FROM
from guidino_tune.study.nodes import NODE
from guidino_tune.study.objectives import as_dict, in_words
from guidino_tune.study.outcomes import INTERRUPTION, FirstFailure
from guidino_tune.study.reading import Reader
from guidino_tune.study.store import StoredStudy, StudyFolder
from guidino_tune.study.trials import best_value, ranking, tried
from guidino_tune.tracking import tracking_uri
from guidino_tune.tracking.client import is_server
from guidino_tune.tracking.inspection import experiment_name
from guidino_tune.tracking.links import page_address
from guidino_tune.workflows.overview import Overview, data_in_words, first_failures, overview, plain
from guidino_tune.workflows.progress import placed, word


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPage:
    """One study, for people and for programs.

    Attributes:
        stored: The study.
        overview: How it stands.
        searched: What each parameter may be, in words, by path.
        data: Over which images.
        objective: What it looks for, and within which limits.
        settings: Sampler, pruner, number and length of trials.
        failures: The first of each kind.
        commands: What to do next, by what it does; where the study is driven on another machine, to be given there.
        where: That machine; empty for this one.
        links: Where its parts are: folder, storage, MLflow.
        storage: The option that names its database in a command; empty for a journal, and for a URL that holds a password.
    """

    stored: StoredStudy
    overview: Overview
    searched: dict[str, str]
    data: str
    objective: str
    settings: str
    failures: list[FirstFailure]
    commands: dict[str, str]
    where: str
    links: dict[str, str]
    storage: str = ""


def page_of(reader: Reader, name: str) -> StudyPage:
    """Everything that is told of a study.

    Raises:
        UserError: There is no such study, or it cannot be read.
    """
    return page_of_stored(reader.open(name), reader.url)


def page_of_stored(stored: StoredStudy, url: str | None = None) -> StudyPage:
    """The same of a study that is open; ``url`` is that of its database."""
    about, study = overview(stored), stored.space.study
    where, folder = _place(stored)
    limits = ", ".join(f"{what} at most {value:g}" for what, value in study.constraints.items())
    return StudyPage(
        stored=stored,
        overview=about,
        searched={path: parameter.describe() for path, parameter in stored.space.parameters.items()},
        data=data_in_words(stored),
        objective="; ".join(filter(None, (in_words(study), limits))),
        settings=f"sampler {study.sampler}, pruner {study.pruner}, {study.trials} trials of up to {stored.space.longest} epochs",
        failures=first_failures(tried(stored.study)),
        commands=_commands(stored, about, folder, url, away=bool(where)),
        where=where,
        links=_links(stored, url, f"{where}:{folder}" if where else folder),
        storage=storage_option(url),
    )


def trial_rows(page: StudyPage) -> tuple[list[str], list[list[Any]]]:
    """Headings and a row for every trial that has begun: first those that are ranked, then others that ended, then those that run."""
    stored, study = page.stored, page.stored.space.study
    more = [name for name in study.objectives if name != OBJECTIVE]
    ended = placed(stored.study)
    running = [(None, t) for t in tried(stored.study) if t.state == TrialState.RUNNING]
    headings = [
        "rank",
        "trial",
        "system",
        "state",
        "epochs",
        OBJECTIVE,
        *more,
        *page.searched,
        "failure",
        "message",
        "node",
        "begun",
        "ended",
    ]
    return headings, [_row(page, rank, trial, more) for rank, trial in [*ended, *running]]


def _row(page: StudyPage, rank: int | None, trial: FrozenTrial, more: list[str]) -> list[Any]:
    known, attributes = as_dict(page.stored.space.study, trial), trial.user_attrs
    objectives = dict(zip(page.stored.space.study.objectives, trial.values or (), strict=False))
    to_go_on = attributes.get(INTERRUPTION) or page.overview.state != "running"
    state = ("interrupted" if to_go_on else "running") if trial.state == TrialState.RUNNING else word(trial)
    failed = trial.state == TrialState.FAIL
    return [
        rank,
        trial.number,
        plain(attributes.get("name", "")),
        plain(state),
        max(trial.intermediate_values, default=0),
        best_value(trial),
        *(objectives.get(name, known.get(name)) for name in more),
        *(trial.params.get(path) for path in page.searched),
        plain(attributes.get("failure", "")) if failed else "",
        plain(attributes.get("message", "")) if failed else "",
        plain(attributes.get(NODE, "")),
        *(at.isoformat(timespec="seconds") if at else None for at in (trial.datetime_start, trial.datetime_complete)),
    ]


def _place(stored: StoredStudy) -> tuple[str, str]:
    """The machine that the study is driven from, empty for this one, and its folder there."""
    if stored.folder.definition.exists():
        return "", str(stored.folder.path)
    machine, _, folder = plain(stored.study.user_attrs.get(DRIVEN_FROM, "")).partition(":")
    return machine or "the machine that began it", folder or f"$GUIDINO_TUNE_HOME/studies/{stored.study.study_name}"


def storage_option(url: str | None) -> str:
    """What names a database in a command, with a space before it; empty for none, and for a URL that holds a password."""
    return f" --storage {shlex.quote(url)}" if url and redacted(url) == url else ""


def in_command(folder: StudyFolder) -> str:
    """A study as a command takes it: its name where it is in the home folder, else its path."""
    return folder.path.name if folder.path.parent == paths.studies() else shlex.quote(str(folder.path))


def _commands(stored: StoredStudy, about: Overview, folder: str, url: str | None, *, away: bool) -> dict[str, str]:
    definition = f"{folder}/study.yaml"
    space = definition if folder.startswith("$") else shlex.quote(definition)
    storage = storage_option(url)
    trials = f" --trials {2 * stored.space.study.trials}" if about.state == "ended" and not stored.space.study.is_list else ""

    def command(words: str) -> str:
        return f"guidino-tune {words}{storage}" if away else paths.next_command(f"{words}{storage}")

    found = {}
    if about.state in ("stopped", "ended") and (trials or about.state == "stopped"):
        found["extend" if trials else "go on"] = command(f"search {space}{trials}")
    if ranking(stored.study):
        found["export"] = command(f"export {stored.study.study_name} --output best.yaml")
    if ranking(stored.study) and about.state != "running":  # a comparison waits for the end of the search
        found["compare"] = command(f"compare {stored.study.study_name}")
    return found


def _links(stored: StoredStudy, url: str | None, folder: str) -> dict[str, str]:
    uri, study_id = tracking_uri(paths.home() / "mlflow.db"), str(stored.study.user_attrs.get("id") or stored.study.study_name)
    opened = page_address(uri, experiment_name(), study_id.replace("'", "_"))
    found = {"folder": folder, "storage": redacted(url) if url else str(stored.folder.journal)}
    reports = (
        [file.name for file in sorted(Path(folder).glob("reports/*")) if file.suffix in (".md", ".html")]
        if stored.folder.definition.exists()
        else []
    )
    if reports:
        found["reports"] = f"{folder}/reports: {', '.join(reports)}"
    if opened:
        found |= {"open": opened} if is_server(uri) else {"browse": paths.next_command(f"ui {stored.study.study_name}")}
    return found
