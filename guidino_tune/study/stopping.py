"""When a search ends before its trials are used up: so many of them in a row brought nothing better."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial

from guidino_tune.space.space import Space
from guidino_tune.study.store import StudyFolder
from guidino_tune.study.trials import ENDED_EARLY, ended_early, finished, ranking, remaining, tried, untrained


def ends_early(study: optuna.Study, space: Space) -> bool:
    """Says whether no further trial is to begin, and keeps in the study that it is so.

    When the user asks for more trials afterwards, or the space grows, counting begins anew.
    """
    if not space.study.patience or ended_early(study, space):
        return bool(space.study.patience)
    begun = _begun(study)
    fresh = len(begun) - study.user_attrs.get(ENDED_EARLY, {}).get("begun", 0)
    if min(fresh, since_best(study, begun)) < space.study.patience:
        return False
    study.set_user_attr(ENDED_EARLY, {"trials": space.study.trials, "patience": space.study.patience, "begun": len(begun)})
    return True


def since_best(study: optuna.Study, begun: list[FrozenTrial]) -> int:
    """How many of the trials that have ``begun`` did so after the best one had come to its end; 0 while none has."""
    leading = ranking(study)[:1]
    return sum(t.datetime_start > best.datetime_complete for best in leading for t in begun)  # type: ignore[operator]


def sentence(study: optuna.Study, space: Space, folder: StudyFolder) -> str:
    """What an early end saved, by the mean of the trials that were run; empty where a search did not end so."""
    done = [trial for trial in finished(study) if not untrained(trial)]
    left = space.study.trials - len(done)
    if not ended_early(study, space) or remaining(study, space) or left <= 0:
        return ""
    share = left / len(done)
    epochs = share * sum(max(t.intermediate_values, default=0) for t in done)
    seconds = share * sum(r.metrics.get("epoch_seconds", 0.0) for t in done for r in folder.trial(t.number).history())
    return (
        f"The search ended early (study.stop): {study.user_attrs[ENDED_EARLY]['patience']} trials in a row brought nothing better. "
        f"{left} of {space.study.trials} trials were not run, which saved about {epochs:.0f} epochs or {seconds / 3600:.1f} hours of "
        "training; with a larger study.trials, or study.stop=null, the same command goes on."
    )


def _begun(study: optuna.Study) -> list[FrozenTrial]:
    return [trial for trial in tried(study) if trial.intermediate_values]
