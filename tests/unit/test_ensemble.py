"""Several models as one: the mean of their probabilities, in every command that takes a model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from training_helpers import GUIDE, make_experiment

from guidino_tune.config import Data, Experiment, Protocol
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.openings import openings
from guidino_tune.data.sources.demo import generate
from guidino_tune.data.splits import fold_splits, read_split, write_split
from guidino_tune.errors import UserError
from guidino_tune.evaluate import main as evaluate
from guidino_tune.inference import predict_image
from guidino_tune.models import build_model
from guidino_tune.models.ensemble import Ensemble, mean_logits
from guidino_tune.predict import main as predict
from guidino_tune.training.checkpoints import WEIGHTS, save_weights
from guidino_tune.training.ensemble_folder import Member, export_ensemble, list_members, weights_digest
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.model_folder import load_model


@pytest.mark.parametrize("channels", [1, 4])
def test_logits_are_those_of_the_mean_probability(channels: int) -> None:
    logits = torch.randn(3, 2, channels, 5, 7, dtype=torch.float64) * 4
    found = mean_logits(logits)
    if channels == 1:
        assert torch.allclose(found.sigmoid(), logits.sigmoid().mean(0))
    else:
        assert torch.allclose(found.softmax(1), logits.softmax(2).mean(0))
    assert torch.allclose(
        mean_logits(logits[:1]).softmax(1) if channels > 1 else mean_logits(logits[:1]), logits[0].softmax(1) if channels > 1 else logits[0]
    )
    sure = mean_logits(torch.full((2, 1, channels, 1, 1), 200.0))
    assert torch.isfinite(sure).all()


def make_data(root: Path) -> Data:
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(12):
        for array, folder in zip(generate(number, 48), ("images", "masks"), strict=True):
            Image.fromarray(array).save(root / folder / f"c{number:02d}.png")
    return Data(kind="folder", root=str(root), image_size=32, validation_fraction=0.25, test_fraction=0.25)


def make_members(home: Path, data: Data, count: int = 3) -> list[Member]:
    """Three folds, each with a network of other weights."""
    from guidino_tune.data.sources import find_cases

    split_file = home / "split.json"
    split = open_for_search(data, split_file=split_file, cache=home / "cache").split
    members = []
    for number, fold in enumerate(fold_splits(find_cases(data), split, count, 0, stratify=False, sizes={})):
        values = make_experiment("unet", guide=GUIDE).to_dict()
        values["data"] |= {"kind": "folder", "root": data.root, "validation_fraction": 0.25, "test_fraction": 0.25}
        values["data"] |= {"folds": count, "fold": number}
        values["training"]["seed"] = number
        experiment = Experiment.from_dict(values)
        folder = home / f"fold-{number}" / "seed-0"
        (folder / "best").mkdir(parents=True)
        save_weights(folder / "best" / WEIGHTS, build_model(experiment).trained_state())
        (folder / "experiment.yaml").write_text(experiment.to_yaml())
        write_split(fold, folder.parent / "split.json")
        members.append(Member(folder / "best", experiment, folder.parent / "split.json", {"fold": number}))
    return members


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Member], Data]:
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("retrained")
    data = make_data(home / "data")
    members = make_members(home, data)
    return export_ensemble(members, home / "model", {"folds": 3}, home / "split.json"), members, data


def test_an_ensemble_predicts_the_mean_of_its_members(made: tuple[Path, list[Member], Data]) -> None:
    folder, members, _ = made
    model, experiment = load_model(folder)
    assert isinstance(model, Ensemble)
    assert (model.training, model.bf16, experiment) == (False, False, members[0].experiment)
    image = generate(3, 32)[0]
    protocol = Protocol(resolution="training")
    whole = predict_image(model, image, experiment.data, protocol)
    alone = [predict_image(load_model(folder / f"member-{number}")[0], image, experiment.data, protocol) for number in range(3)]
    assert len({one.probability.tobytes() for one in alone}) == 3
    assert np.allclose(whole.probability, np.mean([one.probability for one in alone], 0), atol=1e-5)
    assert whole.guide is not None
    assert np.allclose(whole.guide, np.mean([one.guide for one in alone], 0), atol=1e-5)
    mirrored = predict_image(model, image, experiment.data, Protocol(mirror=True, inference="sliding"))
    assert mirrored.mask.shape == (32, 32)


def test_a_list_of_trainings_is_the_same_ensemble_and_weights_tell_them_apart(
    made: tuple[Path, list[Member], Data], tmp_path: Path
) -> None:
    folder, members, _ = made
    listed = folder.parent / "ensemble"
    list_members(listed, [f"../fold-{number}/seed-0" for number in range(3)])
    image = generate(3, 32)[0]
    (one, experiment), (other, _) = load_model(folder), load_model(listed)
    assert np.array_equal(predict_image(one, image, experiment.data).probability, predict_image(other, image, experiment.data).probability)
    assert weights_digest(folder) == weights_digest(listed)
    single = TrialFolder(members[0].source.parent)
    assert weights_digest(single.path) != weights_digest(folder)
    list_members(tmp_path, [str(members[0].source.parent)])
    assert weights_digest(tmp_path) not in (weights_digest(folder), weights_digest(single.path))


def test_commands_take_an_ensemble(made: tuple[Path, list[Member], Data], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, members, _ = made
    Image.fromarray(generate(5, 40)[0]).save(tmp_path / "one.png")
    assert predict([str(folder), str(tmp_path / "one.png"), "--output", str(tmp_path / "out")]) == 0
    assert Image.open(tmp_path / "out" / "masks" / "one.png").size == (40, 40)
    assert evaluate([str(folder), "--split", "test", "--reason", "a test"]) == 0
    assert "3 cases" in capsys.readouterr().out
    assert [opening["reason"] for opening in openings(folder.parent / "split.json")] == ["a test"]
    # Every other case was trained on by some member: each is evaluated on its own fold.
    assert evaluate([str(folder)]) == 2
    assert "member-0" in capsys.readouterr().err
    assert evaluate([str(folder), "--split", "test", "--reason", "b", "--largest-component", "validation"]) == 2
    capsys.readouterr()
    assert evaluate([str(folder / "member-1"), "--output", str(tmp_path / "scores.csv")]) == 0
    scored = {line.partition(",")[0] for line in (tmp_path / "scores.csv").read_text().splitlines()[1:]}
    assert scored == set(read_split(members[1].split_file).validation)


def test_an_ensemble_goes_to_another_machine_whole(made: tuple[Path, list[Member], Data], tmp_path: Path) -> None:
    folder, members, _ = made
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert sorted(path.name for path in moved.iterdir() if path.name != "test-openings.jsonl") == [
        "README.md", "config.json", "ensemble.yaml", "member-0", "member-1", "member-2", "preprocessor_config.json", "provenance.yaml",
        "rules.json", "split-source.json", "split.json",
    ]  # fmt: skip
    for number, member in enumerate(members):
        assert read_split(moved / f"member-{number}" / "split.json") == read_split(member.split_file)
    shutil.rmtree(moved / "member-2")
    with pytest.raises(UserError, match="a member is not there: member-2"):
        load_model(moved)
    (moved / "ensemble.yaml").write_text("members: []\n")
    with pytest.raises(UserError, match="holds no list of folders"):
        load_model(moved)


def test_members_that_see_other_images_are_refused(made: tuple[Path, list[Member], Data], tmp_path: Path) -> None:
    folder, members, _ = made
    moved = tmp_path / "mixed"
    shutil.copytree(folder, moved)
    values = yaml.safe_load((moved / "member-1" / "experiment.yaml").read_text())
    values["data"]["image_size"] = 64
    values["guide"]["tokenbook"]["num_prototypes"] = members[0].experiment.num_prototypes
    (moved / "member-1" / "experiment.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"member-1 differs from member-0 in data\.image_size"):
        load_model(moved)


def test_an_export_replaces_an_older_one_and_keeps_its_openings(made: tuple[Path, list[Member], Data], tmp_path: Path) -> None:
    _, members, _ = made
    split_file = tmp_path / "split.json"
    shutil.copy(members[0].split_file, split_file)
    folder = export_ensemble(members, tmp_path / "model", {}, split_file)
    line = json.dumps({"time": "2020-01-01T00:00:00+00:00", "reason": "on the way", "cases": 3})
    (folder / "test-openings.jsonl").write_text(line + "\n")
    again = export_ensemble(members[:2], tmp_path / "model", {}, split_file)
    assert not (again / "member-2").exists()
    assert [opening["reason"] for opening in openings(again / "split.json")] == ["on the way"]


def test_an_ensemble_of_none_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="members"):
        Ensemble([])
    assert dataclasses.is_dataclass(Member)
