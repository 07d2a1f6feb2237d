"""The command ``ensemble``: what it makes is a model whose score is the one that was told."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from space_helpers import search_space
from study_helpers import drive, run_trial
from test_ensemble import make_data
from training_helpers import GUIDE, make_experiment

from guidino_tune import paths
from guidino_tune.analysis.selection import greedy
from guidino_tune.config import Data, Experiment, Protocol
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import read_split, write_split
from guidino_tune.ensemble import main as ensemble
from guidino_tune.evaluate import main as evaluate
from guidino_tune.inference import predict_image
from guidino_tune.metrics import summarise
from guidino_tune.models import build_model
from guidino_tune.models.ensemble import Ensemble
from guidino_tune.predict import main as predict
from guidino_tune.study.ensembles import FILE, noted_ensembles
from guidino_tune.study.store import StudyFolder
from guidino_tune.training.checkpoints import WEIGHTS, save_weights
from guidino_tune.training.ensemble_folder import list_members, members_of, weights_digest, weights_of
from guidino_tune.training.evaluation import evaluate_cases
from guidino_tune.training.model_folder import find_rules, load_model
from guidino_tune.workflows.ensemble import Scored, make_ensemble


def make_trial(folder: Path, data: Data, seed: int, **fields: Any) -> Path:
    """A trained trial's folder, with random weights."""
    values = make_experiment("unet", guide=GUIDE).to_dict()
    values["data"] |= {"kind": "folder", "root": data.root, "validation_fraction": 0.25, "test_fraction": 0.25} | fields
    values["training"]["seed"] = seed
    experiment = Experiment.from_dict(values)
    (folder / "best").mkdir(parents=True)
    torch.manual_seed(seed)
    save_weights(folder / "best" / WEIGHTS, build_model(experiment).trained_state())
    (folder / "experiment.yaml").write_text(experiment.to_yaml())
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Data]:
    """Three models of one split."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("trained")
    data = make_data(home / "data")
    open_for_search(data, split_file=home / "split.json", cache=home / "cache")
    return [make_trial(home / f"seed-{number}", data, number) for number in range(3)], data


def num_files() -> int:
    """That this process has open."""
    return psutil.Process().num_fds()


def validation_dice(model: Path, data: Data, split_file: Path) -> float:
    network, experiment = load_model(model)
    cases = find_cases(experiment.data).select(read_split(split_file).validation)
    scores = evaluate_cases(network, cases, experiment.data, Protocol(resolution="training"), rules=find_rules(model, experiment.data))
    return summarise(list(scores.values()))["dice"]


def test_what_it_makes_is_a_model_that_scores_what_was_told(
    trained: tuple[list[Path], Data], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, data = trained
    team, opened = tmp_path / "team", [num_files()]
    monkeypatch.setattr("guidino_tune.workflows.ensemble.greedy", lambda *given: opened.append(num_files()) or greedy(*given))
    found = make_ensemble(folders, team, most=2)
    assert opened[1] - opened[0] < 4  # not one for each image and model, of which there are more than a process may have
    split_file = folders[0].parent / "split.json"
    assert validation_dice(team, data, split_file) == pytest.approx(found.dice["ensemble"], abs=2e-3)  # of probabilities in 16 bits
    alone = [validation_dice(folder, data, split_file) for folder in folders]
    assert max(alone) == pytest.approx(found.dice["alone"], abs=2e-3)
    assert found.dice["ensemble"] >= found.dice["alone"]
    assert (len(found.members) <= 2, set(found.members) <= {str(folder) for folder in folders}) == (True, True)
    assert set(found.gains) == set()  # three validation cases say nothing about others
    image = next((Path(data.root or "") / "images").iterdir())
    assert predict([str(team), str(image), "--output", str(tmp_path / "out")]) == 0
    assert evaluate([str(team)]) == 0  # all members have one split: its validation cases are new to them
    assert "validation split" in capsys.readouterr().out
    noted = yaml.safe_load((team / "provenance.yaml").read_text())
    assert noted["ensemble_of"] == found.members
    assert (noted["candidates"], noted["chosen"]) == (3, "greedily on the validation cases")


def test_all_named_models_count_the_same_and_weights_count(trained: tuple[list[Path], Data], tmp_path: Path) -> None:
    folders, data = trained
    found = make_ensemble(folders, tmp_path / "seeds", every=True)
    assert found.members == dict.fromkeys(map(str, folders), 1)
    members = members_of(tmp_path / "seeds")
    assert (len(members), weights_of(tmp_path / "seeds", 3)) == (3, None)
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    each = [predict_image(load_model(member)[0], image, data).probability for member in members]
    listed = yaml.safe_load((tmp_path / "seeds" / "ensemble.yaml").read_text())
    before = weights_digest(tmp_path / "seeds")
    (tmp_path / "seeds" / "ensemble.yaml").write_text(yaml.safe_dump(listed | {"weights": [3, 1, 2]}))
    network, _ = load_model(tmp_path / "seeds")
    assert isinstance(network, Ensemble)
    assert np.allclose(predict_image(network, image, data).probability, np.average(each, 0, [3, 1, 2]), atol=1e-5)
    assert weights_digest(tmp_path / "seeds") != before
    for wrong in ([1, 2], [1, 0, 1], "many", [1, -1, 2]):
        (tmp_path / "seeds" / "ensemble.yaml").write_text(yaml.safe_dump(listed | {"weights": wrong}))
        with pytest.raises(Exception, match="numbers above 0"):
            load_model(tmp_path / "seeds")
    with pytest.raises(ValueError, match="weights"):
        Ensemble([network.members[0]], [0.0])  # type: ignore[list-item]


def test_a_study_gives_its_best_trials_with_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path))
    data = make_data(tmp_path / "data")
    folder = paths.studies() / "small"
    space = search_space(study={"trials": 4, "pruner": "none", "sampler": "random"})
    driver = drive(folder, space)
    for value in (0.2, 0.6, 0.4, 0.5):
        run_trial(driver, [value] * 4)
    assert ensemble(["small", "--output", str(tmp_path / "team")]) == 2
    assert "0 of 4 complete trials have weights here" in capsys.readouterr().err
    assert not (tmp_path / "team").exists()
    for wrong in ("smal", str(tmp_path / "nothing")):
        assert ensemble([wrong, "--output", str(tmp_path / "team")]) == 2
        assert "no such study" in capsys.readouterr().err
    from guidino_tune.workflows.ensemble import of_study

    for number in (0, 1, 3):
        make_trial(folder / "trials" / f"{number:05d}", data, number)
    open_for_search(data, split_file=folder / "split.json", cache=tmp_path / "cache")
    assert [candidate.name for candidate in of_study("small", 20)] == ["trial 1", "trial 3", "trial 0"]
    assert [candidate.name for candidate in of_study("small", 2)] == ["trial 1", "trial 3"]
    # By its path it is a study too, though there are models below it; its own images are others than those of this test.
    capsys.readouterr()
    assert ensemble([str(folder), "--output", str(tmp_path / "team")]) == 2
    assert "cases of the stored split are not in the data set" in capsys.readouterr().err


def test_what_does_not_go_together_is_refused_before_anything_is_written(
    trained: tuple[list[Path], Data], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders, data = trained
    output = ["--output", str(tmp_path / "team")]
    stranger = make_trial(tmp_path / "elsewhere" / "seed-0", data, 0)
    split = read_split(folders[0].parent / "split.json")
    write_split(replace(split, train=split.train[1:], validation=(*split.validation, split.train[0])), stranger.parent / "split.json")
    larger = make_trial(folders[0].parent / "larger", data, 5, image_size=64)
    cases = {
        "split": ([str(folders[0]), str(stranger)], "was trained on another split"),
        "only": ([str(folders[0])], "an ensemble needs two models"),
        "size": ([str(folders[0]), str(larger)], "an ensemble needs two models that see their images alike"),
    }
    for sources, message in cases.values():
        assert ensemble([*sources, *output]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "listed").mkdir()
    list_members(tmp_path / "listed", [str(folder) for folder in folders])
    assert ensemble([str(tmp_path / "listed"), str(folders[0]), *output]) == 2
    assert "is an ensemble itself" in capsys.readouterr().err
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "mine.txt").write_text("keep me")
    assert ensemble([str(folders[0]), str(folders[1]), *output, "--force"]) == 2
    assert "holds no ensemble" in capsys.readouterr().err
    assert (tmp_path / "team" / "mine.txt").read_text() == "keep me"
    shutil.rmtree(tmp_path / "team")
    assert ensemble([str(folders[0]), str(folders[1]), *output, "--all"]) == 0
    capsys.readouterr()
    assert ensemble([str(folders[0]), str(folders[1]), *output, "--all"]) == 2
    assert "--force" in capsys.readouterr().err
    assert ensemble([str(folders[0]), str(folders[1]), *output, "--all", "--force"]) == 0
    shutil.rmtree(larger)


def test_files_held_open_do_not_grow_with_the_images(trained: tuple[list[Path], Data], tmp_path: Path) -> None:
    """Twenty models of a hundred images would be more than a process may hold (1024 by default)."""
    places, data = trained
    cases = find_cases(data).cases[:12]
    scored = Scored(tmp_path, data, Protocol(resolution="training"), find_rules(places[0], data), cases)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for place in places:
        scored.add(load_model(place)[0].eval(), lambda _: None)
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= len(places)
    assert len(scored.dice((0, 1, 2))) == len(cases)


def test_the_study_whose_models_they_are_knows_its_ensembles(
    trained: tuple[list[Path], Data], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the split is that of a study: by members' names, scores, cost and how many patients; a second one in its place counts once."""
    folders, _ = trained
    folder = StudyFolder(folders[0].parent)
    assert not noted_ensembles(folder)  # until now it was no study
    folder.definition.write_text("study: {}\n")
    team = tmp_path / "team"
    try:
        for extra in ([], ["--force", "--all"]):
            assert ensemble([*map(str, folders), "--output", str(team), *extra]) == 0
            assert f"report {folder.path}\n" in capsys.readouterr().out.replace("'", "")  # the line is a command, to be copied
            (made,) = noted_ensembles(folder)
            assert (made.model, made.candidates, made.is_chosen) == (str(team), 3, not extra)
            assert made.members == yaml.safe_load((team / "provenance.yaml").read_text())["ensemble_of"]
            each = [sum(p.numel() for p in load_model(Path(name))[0].parameters()) for name in made.members]
            assert made.parameters == {"ensemble": sum(each), "alone": each[0]}
            assert (made.cases, made.patients) == (3, 3)
            assert set(made.dice) == set(made.seconds) == {"ensemble", "alone", "flips"}
            alone = yaml.safe_load((team / "provenance.yaml").read_text())["val_dice_of_the_choice"]
            assert made.dice == pytest.approx(alone, abs=1e-5)
        (folder.path / FILE).unlink()
        (folder.path / FILE).mkdir()  # as where a study can only be read
        assert ensemble([*map(str, folders), "--output", str(team), "--force"]) == 0
        assert "will not tell of this ensemble" in capsys.readouterr().out
        (folder.path / FILE).rmdir()
    finally:
        folder.definition.unlink()
