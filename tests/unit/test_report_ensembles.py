"""Ensembles in the report: what was noted when they were made, gain with its interval and cost; without any, the command that makes one."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest
from report_helpers import simulated
from test_report import page, section

from guidino_tune import paths
from guidino_tune.errors import UserError
from guidino_tune.study.ensembles import FILE, MadeEnsemble, note_ensemble, noted_ensembles
from guidino_tune.study.reading import Reader
from guidino_tune.study.store import StoredStudy
from guidino_tune.workflows.ensemble import of_study
from guidino_tune.workflows.report import write_report
from guidino_tune.workflows.study_page import page_of, page_of_stored

MADE = MadeEnsemble(
    model="/models/team", made="2026-11-30 12:00", members={"trial 4": 2, "trial 7": 1}, candidates=12, is_chosen=True,
    cases=60, patients=20,
    dice={"alone": 0.81, "ensemble": 0.834, "flips": 0.8415}, gains={"greedy": (0.0123, 0.0041, 0.0205), "best": (0.01, -0.002, 0.02)},
    seconds={"alone": 0.5, "ensemble": 1.25, "flips": 10.0}, parameters={"alone": 21_000_000, "ensemble": 43_500_000},
)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StoredStudy:
    return simulated(tmp_path_factory.mktemp("study") / "synthetic", 200)


@pytest.fixture(autouse=True)
def without_ensembles(study: StoredStudy) -> None:
    (study.folder.path / FILE).unlink(missing_ok=True)


def told(study: StoredStudy) -> str:
    return section(page(study), "Ensembles", "Time and cost")


def test_gain_interval_and_cost_are_told(study: StoredStudy, tmp_path: Path) -> None:
    note_ensemble(study.folder, MADE)
    text = told(study)
    assert "Is team better than its best member alone?" in text
    assert "gains +0.0123 Dice; that is beyond the chance of these images (95 % interval 0.0041 to 0.0205 over 60 cases of 20 pat" in text
    assert "the plain mean of as many of the best gains +0.0100 (-0.0020 to 0.0200)" in text
    assert "trial 4 ×2 and trial 7: chosen among 12 on these very cases" in text
    assert "the best member alone\n0.8100\n–\n0.5\n1.0\n21.0 million\n" in text
    assert "the ensemble\n0.8340\n+0.0240\n1.25\n2.5\n43.5 million\n" in text
    assert "the ensemble with test-time flips (--mirror)\n0.8415\n+0.0315\n10\n20.0\n43.5 million" in text
    assert "/models/team; it is not there now" in text
    plain = re.sub(r"\\(.)", r"\1", write_report(page_of_stored(study), tmp_path / "r.md", format="markdown").read_text())
    assert "## Ensembles" in plain
    assert "| the ensemble | 0.8340 | +0.0240 | 1.25 | 2.5 | 43.5 million |" in plain


def test_a_gain_that_may_be_chance_is_no_yes(study: StoredStudy) -> None:
    note_ensemble(study.folder, dataclasses.replace(MADE, gains={"greedy": (0.01, -0.001, 0.02)}, patients=60))
    html = (write_report(page_of_stored(study))).read_text()
    assert re.search(r'<p class="open"><b>Is team better', html)
    assert "not beyond the chance" in told(study)
    assert "over 60 cases)" in told(study)
    note_ensemble(study.folder, dataclasses.replace(MADE, gains={"greedy": (-0.006, -0.011, -0.003)}))
    html = (write_report(page_of_stored(study))).read_text()
    assert re.search(r'<p class="bad"><b>Is team better.*gains -0.0060 Dice; that is a loss beyond the chance', html)


def test_where_nothing_was_held_back_no_gain_is_told(study: StoredStudy) -> None:
    note_ensemble(study.folder, dataclasses.replace(MADE, gains={}))
    assert "too few cases to hold some of them back" in told(study)
    note_ensemble(study.folder, dataclasses.replace(MADE, gains={}, is_chosen=False))
    text = told(study)
    assert "none of its members was chosen" in text
    assert "too few cases" not in text  # made again in the same place: it counts once
    assert "all models that were named" in text


def test_the_latest_comes_first_and_what_cannot_be_read_is_left_out(study: StoredStudy) -> None:
    for name in "abcdefg":
        note_ensemble(study.folder, dataclasses.replace(MADE, model=f"/models/{name}"))
    with (study.folder.path / FILE).open("a") as file:
        file.write(json.dumps({"model": "of another version"}) + "\n[1]\n{torn")
    assert [made.model[-1] for made in noted_ensembles(study.folder)] == list("gfedcba")
    assert noted_ensembles(study.folder)[0] == dataclasses.replace(MADE, model="/models/g")
    assert "2 earlier ensembles" in told(study)


def test_one_that_was_made_again_after_a_move_of_the_home_folder_counts_once(
    study: StoredStudy, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "team").mkdir(parents=True)
    paths.remember_home()
    note_ensemble(study.folder, dataclasses.replace(MADE, model=str(home / "team")))
    moved = home.rename(home.with_name("moved"))
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(moved))
    note_ensemble(study.folder, again := dataclasses.replace(MADE, model=str(moved / "team"), made="later"))
    assert noted_ensembles(study.folder) == [again]


def test_text_of_users_is_text(study: StoredStudy) -> None:
    note_ensemble(study.folder, dataclasses.replace(MADE, model="/models/<script>1</script>", members={"<img src=x>": 1}))
    parts = page(study)
    assert parts.tags.count("script") == 1
    assert "<img src=x>" in parts.text


def test_without_an_ensemble_the_command_is_told_that_finds_out(study: StoredStudy) -> None:
    assert "for which two that have kept their weights must be here" in told(study)
    ranked = [t.number for t in study.study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
    for number in ranked[:2]:
        (study.folder.trial(number).path / "best").mkdir(parents=True)
    assert f"guidino-tune ensemble {study.folder.path} --output ensemble" in told(study)  # it lies in no home folder
    elsewhere = StoredStudy(type(study.folder)(study.folder.path / "none"), study.study, study.space)
    assert noted_ensembles(elsewhere.folder) == []


def test_the_command_finds_a_study_in_a_database(home: Path, tmp_path: Path) -> None:
    """As it is told it is understood: that study has no model, which is another complaint than that its trials are elsewhere."""
    url = f"sqlite:///{tmp_path}/studies.db"
    from test_list_and_show import make  # it imports Ray, which must not come before its settings where other tests import this file

    folder = make("team-1", url).folder
    whole = page_of(Reader(url), "team-1")
    for number in [t.number for t in whole.stored.study.get_trials() if t.state.name == "COMPLETE"][:2]:
        (folder.trial(number).path / "best").mkdir(parents=True)
    text = re.sub(r"\\(.)", r"\1", write_report(whole, tmp_path / "r.md", format="markdown").read_text())
    found = re.search(r"guidino-tune (ensemble team-1 .*)", text)
    assert found
    with pytest.raises(UserError, match="complete trials have weights here"):
        of_study("team-1", 20, shlex.split(found[1])[-1])
    with pytest.raises(UserError, match="database"):
        of_study("team-1", 20)
