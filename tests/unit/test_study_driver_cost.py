"""What keeps a driver fast with thousands of trials: counts that are kept along."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from test_study_driver import Run, result
from training_helpers import search_space

from guidino_tune.study.store import StudyFolder, load_study, open_study
from guidino_tune.study.tally import Tally
from guidino_tune.study.trials import finished, ranking


def test_a_tally_agrees_with_the_study_at_any_time(tmp_path: Path) -> None:
    space = search_space()
    study = open_study(space, StudyFolder(tmp_path))
    tally = Tally(study)
    rng = np.random.default_rng(0)
    running: list[optuna.Trial] = []
    for _ in range(60):
        if len(running) < 3:
            running.append(study.ask())
            changed = running[-1]
        else:
            changed = running.pop(rng.integers(3))
            value = round(float(rng.random()), 1)  # ties
            changed.report(value, int(rng.integers(1, 5)))
            state = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)[rng.integers(3)]
            if state == TrialState.FAIL:
                changed.set_user_attr("failure", str(rng.choice(["bug", "diverged"])))
            study.tell(changed, value if state == TrialState.COMPLETE else None, state=state)
        trial = study.get_trials()[changed.number]
        assert tally.take(trial)
        assert not tally.take(trial)
        for seen in (tally, Tally(study)):
            trials = study.get_trials()
            assert {s: n for s, n in seen.states.items() if n} == {s: n for s in TrialState if (n := sum(t.state == s for t in trials))}
            assert seen.done == len(finished(study))
            assert seen.epochs == sum(max(t.intermediate_values, default=0) for t in trials if t.state.is_finished())
            assert seen.best == next(iter(ranking(study)), None)


def test_nothing_waits_in_memory_and_each_decision_is_brought_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed between any two calls loses no line; a machine that loses power loses no trial and no result."""
    synced: list[int] = []
    driver = Run(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: synced.append(driver.folder.journal.stat().st_size))
    driver.driver.ask("a")
    assert synced == [driver.folder.journal.stat().st_size]
    for epoch in (1, 2, 3, 4):
        driver.driver.report("a", result(epoch, 0.5))
        assert load_study(driver.folder).trials[0].intermediate_values == dict.fromkeys(range(1, epoch + 1), 0.5)
    driver.driver.tell("a", crashed=False)
    assert synced[1:] == [driver.folder.journal.stat().st_size]
