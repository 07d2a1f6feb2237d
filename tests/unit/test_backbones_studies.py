"""Studies and retrainings note what their backbones are, and go on only with those, wherever they lie."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from backbone_helpers import guide_on, of, save_model
from rich.console import Console
from training_helpers import make_experiment, search_space

from guidino_tune import known_backbones as known
from guidino_tune import paths
from guidino_tune.config import Experiment
from guidino_tune.errors import UserError
from guidino_tune.known_backbones import expecting
from guidino_tune.models.backbone import check_backbone, fingerprint_of
from guidino_tune.study.store import StudyFolder, check_same_search, open_study
from guidino_tune.training.backbones import noted_of_trial, read_known
from guidino_tune.workflows import backbones


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    assert known.packed() == []  # nothing that a command expected outlives it


def space_on(folder: Path | str, **changes: Any) -> Any:
    return search_space(experiment={"guide": guide_on(folder)}, **changes)


def start(space: Any) -> StudyFolder:
    """What a search notes of its backbones when it starts."""
    folder = StudyFolder(paths.studies() / space.study.name)
    with backbones.continued(space, folder) as settled:
        check_same_search(settled, folder)
        study = open_study(settled, folder)
        backbones.note(study, settled, folder)
    return folder


def test_a_study_notes_its_backbones_and_refuses_others(tmp_path: Path) -> None:
    weights = save_model(tmp_path / "weights")
    space, first = space_on(weights), fingerprint_of(of(weights))
    folder = start(space)
    assert open_study(space, folder).user_attrs["backbones"] == {str(weights): first}
    assert read_known(folder.path)[str(weights)].fingerprint == first
    save_model(weights, other=True)
    with backbones.continued(space, folder), pytest.raises(UserError, match=f"study 'small'.*, not {first}"):
        check_backbone(of(weights))
    (folder.path / "backbones.yaml").unlink()  # the study itself knows too
    with pytest.raises(UserError, match=f"study 'small'.*, not {first}.*(\n.*)*another study with another study.name"):
        start(space)
    start(search_space(experiment={"guide": guide_on(weights)}, study={"name": "other"}))  # as the message says
    save_model(weights)
    start(space)


def test_a_study_goes_on_where_its_backbone_has_moved(tmp_path: Path) -> None:
    weights = save_model(tmp_path / "weights")
    space = space_on(weights)
    folder = start(space)
    definition = folder.definition.read_text()
    moved = Path(shutil.move(weights, tmp_path / "moved"))
    hashes = {space.base.hash}
    for attempt in (space_on(moved), space):  # named by its new path, or by --backbone and ever after
        with backbones.moved(attempt, [str(moved)] if attempt is space else []):
            start(attempt)
        with backbones.continued(attempt, folder) as settled:
            hashes.add(settled.base.hash)
            assert known.place_of(str(weights)) == str(moved)
    start(space)
    assert hashes == {space.base.hash}
    assert folder.definition.read_text() == definition
    assert yaml.safe_load((folder.path / "backbones.yaml").read_text())[str(weights)]["place"] == str(moved)
    assert noted_of_trial(space.base, folder.path)["place"] == str(moved)
    save_model(moved, other=True)
    with pytest.raises(UserError, match="other weights"):
        start(space_on(moved))
    with backbones.moved(space, [str(moved)]), backbones.continued(space, folder), pytest.raises(UserError, match="other weights"):
        check_backbone(of(weights))


def test_one_of_several_backbones_may_move(tmp_path: Path) -> None:
    one, two = save_model(tmp_path / "one"), save_model(tmp_path / "two", other=True)

    def space(*choices: Path) -> Any:
        first = [{"training.lr": 1e-3, "guide.backbone": str(choices[-1])}]
        return space_on(one, space={"guide.backbone": {"choices": [str(c) for c in choices]}}, first_trials=first)

    folder = start(space(one, two))
    moved = Path(shutil.move(two, tmp_path / "moved"))
    with backbones.continued(space(one, moved), folder) as settled:
        assert settled.to_dict() == space(one, two).to_dict()
    with pytest.raises(UserError, match="OLD=DIR"), backbones.moved(space(one, two), [str(moved)]):
        pass
    with backbones.moved(space(one, two), [f"{two}={moved}"]):
        start(space(one, two))
    start(space(one, two))


def test_an_older_study_is_noted_from_now_on(tmp_path: Path) -> None:
    weights = save_model(tmp_path / "weights")
    space = space_on(weights)
    folder = StudyFolder(paths.studies() / "small")
    study = open_study(space, folder)
    study.tell(study.ask(), 0.5)
    _, notes = backbones.note(study, space, folder)
    assert len(notes) == 1
    assert fingerprint_of(of(weights)) in notes[0]
    assert backbones.note(study, space, folder)[1] == []
    save_model(weights, other=True)
    with pytest.raises(UserError, match="other weights"):
        backbones.note(study, space, folder)


@pytest.mark.usefixtures("few")
def test_a_dry_run_tells_of_other_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from guidino_tune.search import main

    weights = save_model(tmp_path / "weights")
    file = tmp_path / "small.yaml"
    space = space_on(weights)
    file.write_text(yaml.safe_dump(space.to_dict()))
    command = [str(file), "--dry-run", "--data-root", str(tmp_path / "demo")]
    start(space)
    assert main(command) == 0
    save_model(tmp_path / "moved")
    save_model(weights, other=True)
    capsys.readouterr()
    assert main(command) == 2
    assert "these are other weights" in capsys.readouterr().err
    assert main([*command, "--backbone", str(tmp_path / "moved")]) == 0  # as the message says
    assert main([*command, "--name", "another"]) == 0


def test_a_retraining_takes_the_weights_of_its_export(tmp_path: Path, home: Path) -> None:
    weights, console = save_model(tmp_path / "weights"), Console(quiet=True)
    experiment, first = make_experiment(guide=guide_on(weights)), fingerprint_of(of(weights))
    provenance = {"study": "s", "backbone": {"name": str(weights), "fingerprint": first, "place": str(weights)}}

    def retrained(folder: Path | str, said: dict[str, Any], name: str = "a", *options: str) -> Experiment:
        started = make_experiment(guide=guide_on(folder))
        with expecting(known.chosen(options)), backbones.retrained_backbone(started, said, home / name, console) as settled:
            return settled

    assert retrained(weights, provenance) == experiment
    assert read_known(home / "a")[str(weights)].fingerprint == first
    moved = Path(shutil.copytree(weights, tmp_path / "moved"))
    save_model(weights, other=True)
    for said in (provenance, {}):  # an export of another study, and the same folder again
        with pytest.raises(UserError, match=f"not {first}"):
            retrained(weights, said)
    assert retrained(weights, provenance, "a", str(moved)) == experiment
    assert retrained(moved, provenance).hash == experiment.hash  # named by its new path
    others = save_model(tmp_path / "others", other=True)
    assert retrained(others, provenance, "b") == make_experiment(guide=guide_on(others))  # meant, as the message says
    with console.capture() as capture:
        console.quiet = False
        retrained(others, {"study": "old"}, "c")
    assert "does not note the fingerprint" in capture.get()


def test_an_older_study_whose_backbone_moved_is_continued_as_its_message_says(tmp_path: Path) -> None:
    weights = save_model(tmp_path / "weights")
    space = space_on(weights)
    folder = start(space)
    (folder.path / "backbones.yaml").unlink()
    moved = Path(shutil.move(weights, tmp_path / "moved"))
    with pytest.raises(UserError, match=r"guide\.backbone") as error:
        start(space_on(moved))
    assert "repeat the first search" in error.value.todo
    assert "--backbone DIR" in error.value.todo
    with backbones.moved(space, [str(moved)]):
        start(space)
