"""What stands on the pages of a study and of its trials in MLflow, as Markdown.

Text of users and of libraries (names, values, messages) stands between backticks, on one line: nothing in it is markup.
"""

from __future__ import annotations

import bisect
import contextlib
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from guidino_tune import paths
from guidino_tune.analysis.plain_tables import markdown_table
from guidino_tune.config.study import PRUNERS
from guidino_tune.errors import UserError, redacted
from guidino_tune.reporting.words import many
from guidino_tune.space.parameters import get_path, has_path
from guidino_tune.space.space import Space
from guidino_tune.study.objectives import SHORT, as_dict, beyond, feasible
from guidino_tune.study.objectives import shown as shown_value
from guidino_tune.study.standings import Ordered
from guidino_tune.study.store import StudyFolder
from guidino_tune.study.trials import best_value, rank, ranking, tried
from guidino_tune.tracking.notes import link, picture
from guidino_tune.training.failures import POLICIES, as_kind
from guidino_tune.workflows.progress import leaderboard

PICTURES = ("worst-and-best.png", "validation.png")
"""Of a trial, the one that tells most first."""

LONGEST = 4000
"""Letters in a description without its addresses: MLflow takes 8000 with them, and versions before 2.10 took 5000."""

MESSAGE, VALUE, SETTINGS = 600, 60, 12
"""Letters of a reason and of a value, and settings in a table: there are thousands of trials, and each description is kept twice."""

HOME = "${GUIDINO_TUNE_HOME:-$HOME/guidino_tune}"
"""The home folder, for a shell."""

WIDE = 100
"""Letters in a line of the leaderboard: MLflow makes its page as wide as that."""

GAP = "&nbsp;"
"""Before what stands in a table: MLflow leaves no room between its columns."""

_HARMLESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,%/+-]*|-|", re.ASCII)


def code(text: object, most: int = VALUE) -> str:
    """Text that is nobody's Markdown: one line between backticks."""
    plain = "".join(letter if letter.isprintable() else " " for letter in str(text))
    plain = " ".join(plain.replace("`", "'").split())
    plain = plain if len(plain) <= most else plain[: most - 3] + "..."
    return f"`{plain}`" if plain else ""


def cell(text: object) -> str:
    """The same, but words and numbers stand as they are."""
    return str(text) if len(str(text)) <= VALUE and _HARMLESS.fullmatch(str(text)) else code(text)


class Places:
    """Where each complete trial stood among those that had run their whole budget, when it ended; that never changes afterwards.

    Args:
        study: Its complete trials are taken in at once, later ones when they are asked for.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._order: Ordered[tuple[float, ...]] = Ordered()  # ends with the number of the trial
        self._known: dict[int, tuple[int, int]] = {}
        for trial in sorted(ranking(study), key=lambda t: (t.datetime_complete.timestamp() if t.datetime_complete else 0.0, t.number)):
            self.of(trial)

    def of(self, trial: FrozenTrial) -> tuple[int, int] | None:
        """Its place, from 1, and of how many; ``None`` for a trial that has none."""
        if trial.state != TrialState.COMPLETE or not feasible(trial):
            return None
        if trial.number not in self._known:
            place = rank(trial)
            self._order.put(place)
            self._known[trial.number] = bisect.bisect_left(self._order, place) + 1, len(self._order)
        return self._known[trial.number]


def study_note(study: optuna.Study, space: Space, folder: StudyFolder) -> str:
    """Of a study: its best trial with a picture, the leaderboard, and what to do next."""
    ranked = ranking(study)
    for rows in (10, 5, 2):
        parts = (
            _best(ranked),
            _board(study, space, rows),
            _next_of_study(study, folder, ranked),
            *(_picture(t, folder) for t in ranked[:1]),
        )
        note = "\n\n".join(filter(None, parts))
        if len(note) <= LONGEST:
            break
    return redacted(note)


def _best(ranked: list[FrozenTrial]) -> str:
    if not ranked:
        return "No trial has run its whole budget yet."
    best = ranked[0]
    name = cell(best.user_attrs.get("name", ""))
    return f"Best so far: {link(best.number, f'trial {best.number}')} ({name}), validation Dice **{best_value(best) or 0.0:.4f}**."


def _board(study: optuna.Study, space: Space, rows: int) -> str:
    table, hidden = leaderboard(study, space, rows=rows, width=WIDE)
    headings = [str(column.header) for column in table.columns]
    lines = [[str(text) for text in line] for line in zip(*(column.cells for column in table.columns), strict=True)]
    at = headings.index("trial")
    shown = [[GAP + (link(int(text), text) if place == at else cell(text)) for place, text in enumerate(line)] for line in lines]
    ended = sum(trial.state.is_finished() for trial in tried(study))
    more = f", without {', '.join(map(cell, hidden))}" if hidden else ""
    return f"After {many(ended, 'trial')}{more}:\n\n" + markdown_table([GAP + cell(heading) for heading in headings], shown).rstrip("\n")


def _next_of_study(study: optuna.Study, folder: StudyFolder, ranked: list[FrozenTrial]) -> str:
    name = _named(folder)
    best = ["export {name} --output best.yaml", "retrain best.yaml --seeds 3", "compare {name}"] if ranked else []
    commands = [command.format(name=name) for command in ("show {name}", *best, "report {name}")]
    return f"{_code(commands)}\n\nStudy {code(study.study_name)}, in {code(folder.path, MESSAGE)}{_stored(folder)}"


class TrialNotes:
    """The descriptions of trials that have ended; nothing in one becomes untrue later.

    Args:
        study: Of the trials.
        space: What it searches.
        folder: Where it lives.
    """

    def __init__(self, study: optuna.Study, space: Space, folder: StudyFolder) -> None:
        self._space, self._folder, self._places = space, folder, Places(study)
        self._pruner = str(study.user_attrs.get("own_pruner") or space.study.pruner)
        self._default = _defaults(space)

    def of(self, trial: FrozenTrial) -> str:
        """Of one trial."""
        parts = (
            _end(trial, self._space, self._places.of(trial), self._pruner),
            _settings(trial, self._default),
            _next_of_trial(trial, self._space, self._folder),
            _picture(trial, self._folder),  # which may be high
        )
        return redacted("\n\n".join(filter(None, parts)))


def _end(trial: FrozenTrial, space: Space, place: tuple[int, int] | None, pruner: str) -> str:
    attributes, curve = trial.user_attrs, trial.intermediate_values
    last, budget = max(curve, default=0), attributes.get("epochs")
    of = f" of {budget}" if budget else ""
    system = cell(attributes.get("name", "")) or "no name"
    ran = f"after epoch {last}{of}" if last else "before its first epoch was validated"
    best = max(curve, key=lambda epoch: curve[epoch], default=0)
    score = f" Best validation Dice **{curve[best]:.4f}**, in epoch {best}." if curve else ""
    message = code(redacted(str(attributes.get("message", ""))), MESSAGE)
    if broken := beyond(space.study, trial):
        return f"**Beyond a constraint**: {system}, {code(broken, MESSAGE)}; ended {ran}.{score}"
    if trial.state == TrialState.FAIL:
        kind = as_kind(attributes.get("failure"))
        return f"**Failed** ({kind}): {system}, {ran}.{f' Why: {message}.' if message else ''} What to do: {POLICIES[kind].todo}.{score}"
    if trial.state == TrialState.PRUNED:
        why = "its Dice there was not among the best" if pruner in PRUNERS else f"by {code(pruner)}"
        return f"**Stopped early**: {system}, {ran}: {why}.{score}"
    by = " by Dice" if len(space.study.objectives) > 1 else ""  # the leaderboard has the Pareto front first
    stood = f" When it ended, it was number {place[0]} of {place[1]}{by} that had run their whole budget." if place else ""
    more = "; ".join(f"{SHORT.get(name, name)} {shown_value(name, value)}" for name, value in as_dict(space.study, trial).items())
    return f"**Complete**: {system}, {last}{of} epochs.{score}{stood}{f' {more}.' if more else ''}"


def _picture(trial: FrozenTrial, folder: StudyFolder) -> str:
    pictures = folder.trial(trial.number).pictures
    return next((picture(trial.number, name) for name in PICTURES if (pictures / name).is_file()), "")


def _settings(trial: FrozenTrial, default: Mapping[str, Any]) -> str:
    """What was searched and is other than the default."""
    other = {path: value for path, value in trial.params.items() if path not in default or default[path] != value}
    lines = [f"- {code(path)} {cell(_shown(value))}{_by_default(path, default)}" for path, value in list(other.items())[:SETTINGS]]
    alike, left = len(trial.params) - len(other), len(other) - len(lines)
    lines += [f"- {left} more that differ"] if left else []
    told = f"{alike} searched {'setting is' if alike == 1 else 'settings are'} as in the default." if alike else ""
    return "\n\n".join(filter(None, ("\n".join(lines), told)))


def _by_default(path: str, default: Mapping[str, Any]) -> str:
    return f" (default {cell(_shown(default[path]))})" if path in default else " (not in the default)"


def _defaults(space: Space) -> dict[str, Any]:
    """What is searched as the first of the first trials has it; where there is none, as the experiment that the space begins with."""
    first = dict(space.first_trials[0]) if space.first_trials and not space.study.is_list else {}
    with contextlib.suppress(UserError):
        values = space.experiment(first).to_dict()
        return {path: get_path(values, path) for path in space.parameters if has_path(values, path)} | first
    return first  # of a space from an earlier version


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _next_of_trial(trial: FrozenTrial, space: Space, folder: StudyFolder) -> str:
    name, number = _named(folder), trial.number
    if trial.state == TrialState.FAIL or not trial.intermediate_values:
        return _code([f"show {name}"]) + _stored(folder)
    file = f"{folder.path.name}-{number}.yaml"
    commands = [f"export {name} --trial {number} --output {shlex.quote(file)}", f"retrain {shlex.quote(file)} --seeds 3"]
    if trial.state != TrialState.COMPLETE:
        return _code(commands) + _stored(folder)
    kept = space.study.kept_weights
    front = " or on the Pareto front" if len(space.study.objectives) > 1 else ""
    condition = "" if kept is None else f" as long as it is among the {kept} best{front}, whose weights are kept"
    predict = f"predict {_placed(folder, number)} \\\n    IMAGES --output masks"  # MLflow's page is as wide as its longest line
    return f"{_code(commands)}\n\nIts own model{condition}:\n\n{_code([predict])}{_stored(folder)}"


def _named(folder: StudyFolder) -> str:
    """The study for a command: its name where it is in the home folder, else its path."""
    return folder.path.name if folder.path.parent == paths.studies() else _quoted(folder.path)


def _placed(folder: StudyFolder, number: int) -> str:
    """The folder of a trial for a command; in the home folder the same wherever that is, for descriptions stay when it is moved."""
    path = folder.trial(number).path
    return f'"{HOME}/{path.relative_to(paths.home())}"' if folder.path.parent == paths.studies() else _quoted(path)


def _quoted(path: Path) -> str:
    """For a shell, on one line whatever is in it."""
    return shlex.quote("".join(letter if letter.isprintable() else "?" for letter in str(path)))


def _stored(folder: StudyFolder) -> str:
    """What the commands must be told besides; of the home folder no path, for it may be moved."""
    lines = []
    if folder.path.parent == paths.studies() and paths.home() != Path("~/guidino_tune").expanduser():
        lines.append("The home folder of this study was not `~/guidino_tune`: set `GUIDINO_TUNE_HOME` to it first.")
    if not folder.journal.exists():
        lines.append("Its trials are in a database: name it with `--storage` or `GUIDINO_TUNE_STORAGE`.")
    return "".join(f"\n\n{line}" for line in lines)


def _code(commands: list[str]) -> str:
    """Commands to be copied; in a fence, for indented ones would go on with a list before them."""
    return "\n".join(("```", *(f"guidino-tune {command}" for command in commands), "```"))
