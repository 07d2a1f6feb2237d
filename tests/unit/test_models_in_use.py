"""A trained model is scored by its own split, on its own weights, and gives no mask that is no answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from carrying_helpers import data_at, make_images
from PIL import Image
from training_helpers import make_experiment

from guidino_tune.config import Experiment
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.sources import find_cases
from guidino_tune.errors import UserError
from guidino_tune.evaluate import main as evaluate
from guidino_tune.models import build_model
from guidino_tune.predict import main as predict
from guidino_tune.training.checkpoints import WEIGHTS, snapshot, write_checkpoint
from guidino_tune.training.model_folder import export_model

Shown = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with the folder of a trial, and a model that was exported of it."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("made")
    data = data_at(make_images(root / "data"))
    study = root / "study"
    open_for_search(data, split_file=study / "split.json", cache=root / "cache")
    values = make_experiment().to_dict()
    values["data"] |= {"kind": "folder", "root": data.root, "test_fraction": 0.2, "validation_fraction": 0.2}
    experiment = Experiment.from_dict(values)
    network = build_model(experiment)
    best = study / "trials" / "00000" / "best"
    best.mkdir(parents=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    write_checkpoint(best, snapshot(network.trained_state(), optimizer), experiment_hash=experiment.hash, history=[])
    (best.parent / "experiment.yaml").write_text(experiment.to_yaml())
    export_model(best, experiment, root / "model", {"study": "study", "trial": 0}, study / "split.json")
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Path:
    """A copy of all but the images, which stay where they are."""
    for name in ("study", "model"):
        shutil.copytree(made / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("how", ["test is train", "validation is train", "a training case more"])
@pytest.mark.parametrize("kind", ["model", "trial"])
def test_a_model_is_scored_by_its_own_split_only(how: str, kind: str, here: Path, capsys: Shown) -> None:
    """By another one its training cases are scored, as the best that there ever were."""
    folder = here / "model" if kind == "model" else here / "study" / "trials" / "00000"
    split = json.loads((here / "study" / "split.json").read_text())
    if how == "test is train":
        other = split | {"train": split["test"], "test": split["train"]}
    elif how == "validation is train":
        other = split | {"train": split["validation"], "validation": split["train"]}
    else:
        other = split | {"train": split["train"][1:], "validation": [*split["validation"], split["train"][0]]}
    (here / "other.json").write_text(json.dumps(other))
    part = ["--split", "test", "--reason", "why not"] if "test" in how else []
    assert evaluate([str(folder), *part, "--split-file", str(here / "other.json")]) == 2
    assert "is not the split that this model was trained and chosen on" in capsys.readouterr().err
    assert not (here / "test-openings.jsonl").exists()
    shutil.copy(here / "study" / "split.json", here / "copy.json")
    assert evaluate([str(folder), *part, "--split-file", str(here / "copy.json")]) == 0
    if kind == "model":
        (here / "model" / "split.json").write_text(json.dumps(other))
        assert evaluate([str(folder), *part]) == 2


def test_cases_that_are_not_here_are_not_passed_over_in_a_mean(made: Path, here: Path, capsys: Shown) -> None:
    split = json.loads((here / "model" / "split.json").read_text())
    for number, gone in enumerate((split["validation"][:1], split["validation"])):
        place = here / f"moved{number}"
        shutil.copytree(made / "data", place)
        for name in gone:
            (place / "images" / f"{name}.png").unlink()
            (place / "masks" / f"{name}.png").unlink()
        assert evaluate([str(here / "model"), "--data-root", str(place)]) == 2
        assert f"{len(gone)} cases of the stored split are not in the data set" in capsys.readouterr().err
        assert evaluate([str(here / "model"), "--data-root", str(place), "--largest-component", "validation"]) == 2
    assert evaluate([str(here / "model"), "--split-file", str(here / "none.json")]) == 2
    assert "none.json: no such file" in capsys.readouterr().err


def test_renumbered_images_are_not_scored(made: Path, here: Path, capsys: Shown) -> None:
    split = json.loads((here / "model" / "split.json").read_text())
    place = shutil.copytree(made / "data", here / "moved")
    one, other = split["train"][0], split["validation"][0]
    for kind in ("images", "masks"):
        shutil.copy(made / "data" / kind / f"{one}.png", place / kind / f"{other}.png")
        shutil.copy(made / "data" / kind / f"{other}.png", place / kind / f"{one}.png")
    assert evaluate([str(here / "model"), "--data-root", str(place)]) == 2
    assert f"1 of 4 cases have another image than in the search: {other}; {other} has that of {one}" in capsys.readouterr().err


def test_validation_cases_are_scored_without_a_look_at_test_images(made: Path, here: Path) -> None:
    split = json.loads((here / "model" / "split.json").read_text())
    place = shutil.copytree(made / "data", here / "moved")
    shutil.copy(made / "data" / "images" / f"{split['train'][0]}.png", place / "images" / f"{split['test'][0]}.png")
    (place / "images" / f"{split['train'][0]}.png").write_bytes(b"lost")
    assert evaluate([str(here / "model"), "--data-root", str(place)]) == 0


def test_a_model_is_not_half_exported_from_spoiled_weights(here: Path) -> None:
    best = here / "study" / "trials" / "00000" / "best"
    content = bytearray((best / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (best / WEIGHTS).write_bytes(content)
    experiment = Experiment.from_yaml(best.parent / "experiment.yaml")
    with pytest.raises(UserError, match="not as they were written"):
        export_model(best, experiment, here / "exported", {})
    assert not list(here.glob(".exported*"))
    assert not (here / "exported").exists()


def test_a_copy_of_the_training_images_is_no_other_data_set(made: Path, here: Path, capsys: Shown) -> None:
    place = here / "other hospital"
    for kind in ("images", "masks"):
        (place / kind).mkdir(parents=True)
        for file in (made / "data" / kind).iterdir():
            shutil.copy(file, place / kind / f"patient-{file.name}")
    command = [str(here / "model"), "--split", "all", "--data-root", str(place)]
    assert evaluate(command) == 2
    assert "16 of these 20 images are copies of those that the model was trained or chosen on" in capsys.readouterr().err
    for file in (place / "images").iterdir():
        Image.open(file).transpose(Image.Transpose.ROTATE_90).save(file)
    assert evaluate(command) == 0


@pytest.mark.parametrize("kind", ["model", "trial"])
def test_weights_that_are_not_as_they_were_written_predict_nothing(kind: str, made: Path, here: Path, capsys: Shown) -> None:
    """One bit in a weight: the file is whole, its numbers are finite, and the mask would be another."""
    folder = here / "model" if kind == "model" else here / "study" / "trials" / "00000"
    file = folder / WEIGHTS if kind == "model" else folder / "best" / WEIGHTS
    content = bytearray(file.read_bytes())
    content[-2] ^= 64
    file.write_bytes(content)
    assert predict([str(folder), str(made / "data" / "images"), "--output", str(here / "out")]) == 2
    assert f"{file}: the weights are not as they were written" in capsys.readouterr().err
    assert not (here / "out").exists()
    if kind == "trial":
        with pytest.raises(UserError, match="not as they were written"):
            export_model(file.parent, Experiment.from_yaml(folder / "experiment.yaml"), here / "new", {})
        assert not (here / "new").exists()


@pytest.mark.parametrize("what", ["output", "masks", "output is a file", "masks is a file"])
def test_a_folder_that_cannot_be_made_is_told_before_anything_is_predicted(what: str, made: Path, here: Path, capsys: Shown) -> None:
    place = here / "out" if what.startswith("output") else here / "out" / "masks"
    place.parent.mkdir(exist_ok=True)
    if "file" in what:
        place.write_text("mine")
    else:
        place.symlink_to(here / "nowhere")
    assert predict([str(here / "model"), str(made / "data" / "images"), "--output", str(here / "out")]) == 2
    told = capsys.readouterr().err
    assert f"{place}: here is " in told
    assert "choose another --output" in told
    assert not (here / "nowhere").exists()
    assert "file" not in what or place.read_text() == "mine"


def test_a_path_that_is_empty_is_not_the_present_folder(here: Path, capsys: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unset variable of a shell."""
    (here / "images").mkdir()
    Image.new("RGB", (32, 32)).save(here / "images" / "a.png")
    monkeypatch.chdir(here / "images")
    model, images, output = str(here / "model"), str(here / "images"), str(here / "out")
    for command in (["", images, "--output", output], [model, "", "--output", output], [model, images, "--output", ""]):
        assert predict(command) == 2
        assert "is empty" in capsys.readouterr().err
    assert [file.name for file in (here / "images").iterdir()] == ["a.png"]


@pytest.mark.parametrize("command", [predict, evaluate])
def test_a_backbone_for_a_model_without_one_is_a_mistake(command: object, made: Path, here: Path, capsys: Shown) -> None:
    rest = [str(made / "data" / "images"), "--output", str(here / "out")] if command is predict else []
    assert command([str(here / "model"), *rest, "--backbone", str(here)]) == 2  # type: ignore[operator]
    assert "--backbone" in capsys.readouterr().err


def test_a_folder_that_is_called_like_an_image_is_no_obstacle(here: Path, capsys: Shown) -> None:
    images = here / "images"
    (images / "a.png").mkdir(parents=True)
    for name in ("a.jpg", "a.png/z.png"):
        Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(images / name)
    assert predict([str(here / "model"), str(images), "--output", str(here / "out")]) == 0
    found = [str(file.relative_to(here / "out" / "masks")) for file in sorted((here / "out" / "masks").rglob("*")) if file.is_file()]
    assert found == ["a.jpg.png", "a.png/z.png"]


@pytest.mark.parametrize("output", ["images", "pred", "."])
@pytest.mark.parametrize("options", [[], ["--no-overlays"]])
def test_predictions_inside_a_data_set_leave_it_as_it_was(output: str, options: list[str], made: Path, here: Path) -> None:
    """They are neither a second truth nor images; where there is no other truth, only a person can say that they are to be one."""
    root = here / "data"
    shutil.copytree(made / "data", root)
    if output == ".":
        shutil.rmtree(root / "masks")
    else:
        before = find_cases(data_at(root)).cases
    assert predict([str(here / "model"), str(root / "images"), "--output", str(root / output), *options]) == 0
    if output != ".":
        listing = find_cases(data_at(root))
        assert listing.cases == before
        assert any("written by predict, and passed over" in note for note in listing.notes)
        return
    with pytest.raises(UserError, match="written by predict, and passed over: predictions are no truth") as refused:
        find_cases(data_at(root))
    assert "--set data.masks=masks" in refused.value.todo
    assert len(find_cases(data_at(root, masks="masks")).cases) == 20  # the advice, followed


def test_overlays_are_no_images(made: Path, here: Path) -> None:
    """Images that lie in a folder itself, with predictions beside them: the overlays agree with the masks in every name."""
    root = Path(shutil.copytree(made / "data" / "images", here / "flat"))
    assert predict([str(here / "model"), str(root), "--output", str(root)]) == 0
    with pytest.raises(UserError, match="predictions are no truth"):
        find_cases(data_at(root))
