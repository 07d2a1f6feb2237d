"""The door for programs on Ray: as in a notebook, with a sampler and a callback of one's own, and not a word on standard output."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
from small_searches import SPACE, trials_of

import guidino_tune as gt
from guidino_tune.training.reporter import EpochRecord


class Impatient:
    """Presses Ctrl-C, or the button that stops a cell, in the second epoch."""

    def epoch_ended(self, trial: gt.TrialResult, record: EpochRecord) -> None:
        if record.epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)


def told_by_page() -> str:
    """The code of docs/python.md, as far as the comparison."""
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    return page.partition("```python\n")[2].partition("report = ")[0]


def test_a_search_in_a_notebook_and_in_a_thread(
    home: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A notebook's cell runs inside an event loop. Each call, the last one in a thread, goes on with what the one before has left."""
    values = {"data.root": demo, "data.image_size": 64, "training.epochs": 3, "study.trials": 1, "study.pruner": "none"}
    sampler = optuna.samplers.RandomSampler(seed=5)
    guide, searched = {"kind": "none"}, {"training.lr": SPACE["space"]["training.lr"]}  # without the libraries of a guide
    space = {**SPACE, "experiment": {**SPACE["experiment"], "guide": guide}, "space": searched, "first_trials": []}
    monkeypatch.chdir(tmp_path)

    async def cell() -> dict[str, Any]:
        stopped = gt.run_search(gt.load_space(space, values), sampler=sampler, callbacks=[Impatient()])
        assert (stopped.ended, stopped.exit_code) == ("Interrupted", 130)
        assert [(t.state, list(t.values)) for t in stopped.trials()] == [("interrupted", [1, 2])]
        names = {"space_of": space, "values": values | {"study.trials": 2}, "own": sampler}
        code = told_by_page()
        for old, new in {
            '"kvasir", {"data.root": "/data/Kvasir-SEG", "study.trials": 64}': "space_of, values",
            "callbacks=[Curves()]": "callbacks=[Curves()], sampler=own",
            '"kvasir"': '"small"',
        }.items():
            assert old in code
            code = code.replace(old, new)
        await asyncio.to_thread(exec, code, names)
        return names

    names = asyncio.run(cell())
    result: gt.StudyResult = names["result"]
    out = capfd.readouterr().out
    assert out == f"complete {result.best.experiment.name} [{result.front()[0].number}]\n"
    assert (result.ended, result.exit_code) == ("", 0)
    trials = result.trials()
    assert [t.state for t in trials] == ["complete", "complete"]
    assert names["Curves"].seen == {t.number: t.values for t in trials}
    assert [len(t.values) for t in trials] == [3, 3]
    assert [t.params for t in trials_of(home, "small")] == [dict(t.parameters) for t in trials]
    assert result.study.user_attrs["own_sampler"].endswith(".RandomSampler")
    best = max(trials, key=lambda t: t.value or 0.0)
    assert result.best.provenance["trial"] == best.number
    assert result.best.experiment == best.experiment
    assert (best.folder / "best" / "weights.safetensors").exists()
    assert (tmp_path / "kvasir.csv").read_text().count("\n") == 3
