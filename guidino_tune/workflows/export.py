"""A trial of a study as a YAML file that ``retrain`` takes, with the split that it was searched on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from guidino_tune import __version__
from guidino_tune.data.carrying import beside, provenance_of
from guidino_tune.data.rules import RULES_KEY, read_rules
from guidino_tune.errors import UserError
from guidino_tune.space.space import Space
from guidino_tune.study.objectives import as_dict, beyond, feasible, in_words
from guidino_tune.study.store import StoredStudy, StudyFolder, folder_of, stored_study
from guidino_tune.study.trials import best_value, front, ranking
from guidino_tune.training.backbones import noted_of_trial
from guidino_tune.training.folder import write_text


def export_yaml(study: optuna.Study, space: Space, folder: StudyFolder, trial: FrozenTrial, *, ids: bool = False) -> str:
    """The experiment of a trial with where it comes from, as YAML that ``retrain`` takes.

    Args:
        study: The study.
        space: What it searches.
        folder: Where it lives.
        trial: Of the study.
        ids: Also every case of the study's split, for YAML that goes without the file of these ids.
    """
    experiment = space.experiment(trial.params)
    provenance: Mapping[str, Any] = {
        "study": study.study_name,
        "study_folder": str(folder.path),
        "trial": trial.number,
        "state": trial.state.name,
        "val_dice": best_value(trial),
        **as_dict(space.study, trial),
        **({"pareto_front": [t.number for t in front(study)]} if len(space.study.objectives) > 1 else {}),
        "epochs_trained": max(trial.intermediate_values, default=0),
        "searched": dict(trial.params),
        **provenance_of(folder.split, ids=ids),
        **({RULES_KEY: rules.to_dict()} if (rules := read_rules(folder.rules)) else {}),
        **({"backbone": backbone} if (backbone := noted_of_trial(experiment, folder.path)) else {}),
        "experiment_hash": experiment.hash,
        "guidino_tune": __version__,
    }
    return (
        f"# {experiment.name}: trial {trial.number} of study {study.study_name!r}. Retrain it with: guidino-tune retrain FILE\n"
        + yaml.safe_dump({"provenance": dict(provenance), "experiment": experiment.to_dict()}, sort_keys=False)
    )


def export_trial(name: str | StoredStudy, number: int | None, storage: str | None = None, *, ids: bool = False) -> tuple[str, str]:
    """A trial of a study as YAML, with a line that says which one it is.

    Args:
        name: Of the study; or the study itself.
        number: Of the trial; ``None`` takes the best Dice that ran its whole budget within the constraints; it is on the Pareto front.
        storage: Database URL of a study that is given by its name; by default the file in its folder.
        ids: See ``export_yaml``.

    Raises:
        UserError: No such study or trial, or none that ran its whole budget.
    """
    folder, study, space = stored_study(name, storage) if isinstance(name, str) else name
    trials = {t.number: t for t in study.get_trials(deepcopy=False) if t.state != TrialState.WAITING}
    ranked = ranking(study)
    if number is None and not ranked and (too_much := [t for t in trials.values() if not feasible(t)]):
        raise UserError(
            f"no trial of {len(trials)} has run its whole budget within the constraints; {len(too_much)} broke them, as trial "
            f"{too_much[0].number}: {beyond(space.study, too_much[0])}",
            where=str(folder.path),
            todo="wait, name one by its number, or start a study with wider study.constraints",
        )
    if number is None and not ranked:
        raise UserError(
            f"no trial of {len(trials)} has run its whole budget yet", where=str(folder.path), todo="wait, or name one by its number"
        )
    if number is not None and number not in trials:
        known = f"0 to {max(trials)}" if trials else "none yet"
        raise UserError(f"no trial {number}", where=str(folder.path), todo=f"trials: {known}")
    trial = ranked[0] if number is None else trials[number]
    value = best_value(trial)
    score = "no result" if value is None else f"validation Dice {value:.4f}"
    line = f"trial {trial.number}: {trial.user_attrs.get('name', '')}, {trial.state.name.lower()}, {score}"
    if len(space.study.objectives) > 1:
        numbers = [t.number for t in front(study)]
        named = f"Pareto front ({in_words(space.study)}): trials {', '.join(map(str, numbers))}"
        line += f"; {'on' if trial.number in numbers else 'not on'} the {named}"
    if space.study.constraints:
        line += f"; beyond {text}" if (text := beyond(space.study, trial)) else "; within the constraints"
    return export_yaml(study, space, folder, trial, ids=ids), line


def export_split(name: str, file: Path, *, force: bool = False) -> Path | None:
    """Puts the ids of a study's split beside an exported configuration; its digest is in the configuration.

    Args:
        name: Of the study.
        file: The configuration's.
        force: Replace a file that holds another split.

    Returns:
        The file, or ``None`` where the study's split is gone.

    Raises:
        UserError: A file that holds something else is there already.
    """
    source, target = folder_of(name).split, beside(file)
    if not source.is_file():
        return None
    text = source.read_text(encoding="utf-8")
    if target.exists() and not force and target.read_text(encoding="utf-8") != text:
        raise UserError("the file is there already", where=str(target), todo="choose another --output, or --force")
    write_text(target, text)
    return target
