"""The report that a search ends with: where it is told of, what real trials put into it, and that it costs a search nothing else."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from small_searches import slow_space, trials_of

from guidino_tune.reporting.material import collect
from guidino_tune.search import main as search
from guidino_tune.study.store import stored_study
from guidino_tune.tracking.client import connect
from guidino_tune.tracking.notes import NOTE
from guidino_tune.training.case_scores import FILE


def test_a_search_ends_with_its_report_in_the_folder_and_in_mlflow(
    home: Path, tmp_path: Path, demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search([str(slow_space(tmp_path, demo, epochs=3, trials=3, pruner="none"))]) == 0
    file = home / "studies" / "small" / "reports" / "report.html"
    out = capsys.readouterr().out
    assert f"report: {file}" in out
    assert out.index("report: ") > out.index("Best validation Dice")  # behind the leaderboard
    text = html.unescape(file.read_text())
    best = max(max(t.intermediate_values.values()) for t in trials_of(home, "small"))
    assert f"has the best validation Dice: {best:.4f}" in text
    assert re.search(r'class="badge">ended, as of', text)
    assert "torch 2." in text
    sent = list(home.rglob("mlartifacts/**/report.html"))
    assert [found.read_bytes() for found in sent] == [file.read_bytes()]
    material = collect(stored_study("small"))
    number = material.ranked[0]
    cases = material.cases(number)
    assert cases
    assert all(case in text for case in cases)
    pictures = {picture.name for picture in (home / "studies" / "small" / "trials" / f"{number:05d}" / "pictures").iterdir()}
    assert pictures == {"validation.png", "worst-and-best.png"}
    assert text.count("data:image/jpeg;base64,") == 2
    assert (home / "studies" / "small" / "trials" / "00000" / FILE).is_file()
    client = connect(f"sqlite:///{home}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("guidino_tune").experiment_id])
    runs = {run.data.tags.get("guidino.trial", "study"): run for run in found}
    assert set(runs) == {"study", "0", "1", "2"}
    for key, run in runs.items():
        owner = runs[str(number) if key == "study" else key]
        small = f"[![](get-artifact?path=previews%2Fworst-and-best.jpg&run_uuid={owner.info.run_id})]("
        assert small in run.data.tags[NOTE]
        assert [file.path for file in client.list_artifacts(owner.info.run_id, "previews")] == ["previews/worst-and-best.jpg"]
    assert f"validation Dice **{best:.4f}**" in runs["study"].data.tags[NOTE]
    assert "After 3 trials:" in runs["study"].data.tags[NOTE]
    assert f"Best validation Dice **{best:.4f}**" in runs[str(number)].data.tags[NOTE]


def test_a_report_that_fails_fails_no_search(
    home: Path, tmp_path: Path, demo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("guidino_tune.workflows.report.make_document", fail)
    assert search([str(slow_space(tmp_path, demo, epochs=2, trials=1, pruner="none"))]) == 0
    out = capsys.readouterr().out
    assert out.count("warning: no report was written (RuntimeError: broken)") == 1
    assert "report: " not in out.replace("no report", "")
