"""Exported models, their scores and their predictions."""

import csv
import json
import math
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from training_helpers import GUIDE, LORA, make_experiment

from guidino_tune.config import Data, Experiment, Protocol
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.sources import find_cases
from guidino_tune.data.sources.demo import generate
from guidino_tune.errors import UserError
from guidino_tune.evaluate import main as evaluate
from guidino_tune.inference import predict_image
from guidino_tune.metrics import CaseScore, score_case
from guidino_tune.models import build_model
from guidino_tune.models.precision import channels_last_pays, use_bf16
from guidino_tune.predict import main as predict
from guidino_tune.training.checkpoints import WEIGHTS, save_weights
from guidino_tune.training.evaluation import choose_cases, choose_largest_component, evaluate_cases, write_scores
from guidino_tune.training.model_folder import export_model, find_rules, find_weights, load_model
from guidino_tune.workflows import predict as workflow
from guidino_tune.workflows.predict_folder import predict_folder

DATA = Data(kind="demo", image_size=32)
SIZES = [(33, 47), (64, 20), (17, 90), (32, 32), (5, 7)]
"""Width and height of images, none of them what the model sees."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Twelve demo images of different sizes in the layout of a plain folder."""
    root = tmp_path_factory.mktemp("images")
    for name in ("images", "masks"):
        (root / name).mkdir()
    for number in range(12):
        size = SIZES[number % 3]
        for array, folder in zip(generate(number, 96), ("images", "masks"), strict=True):
            Image.fromarray(array).resize(size, Image.Resampling.NEAREST).save(root / folder / f"c{number:02d}.png")
    return Data(kind="folder", root=str(root), image_size=32, validation_fraction=0.25, test_fraction=0.25)


def experiment_on(data: Data, kind: str = "unet", guide: dict[str, Any] | None = None) -> Experiment:
    values = make_experiment(kind, guide=guide).to_dict()
    values["data"] |= {"kind": "folder", "root": data.root, "validation_fraction": 0.25, "test_fraction": 0.25}
    return Experiment.from_dict(values)


def make_model(folder: Path, experiment: Experiment) -> Path:
    """A model folder with the initial weights of the experiment."""
    best = folder / "best"
    best.mkdir(parents=True)
    save_weights(best / WEIGHTS, build_model(experiment).trained_state())
    return export_model(best, experiment, folder / "model", {"study": "small", "trial": 3})


@pytest.fixture(scope="module")
def model(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("retrained")
    open_for_search(data, split_file=folder / "split.json", cache=folder / "cache")
    return make_model(folder, experiment_on(data, guide=GUIDE))


@pytest.mark.parametrize(("kind", "guide"), [("unet", GUIDE), ("nnwnet", None), ("segguidino", LORA)])
def test_a_model_comes_back_bit_by_bit(kind: str, guide: dict | None, data: Data, tmp_path: Path) -> None:
    experiment = experiment_on(data, kind, guide)
    folder = make_model(tmp_path, experiment)
    described = {"README.md", "config.json", "preprocessor_config.json"}
    assert {p.name for p in folder.iterdir()} == {"experiment.yaml", "provenance.yaml", "weights.safetensors"} | described
    loaded, described = load_model(folder)
    assert described == experiment
    checksum = zlib.crc32((folder / WEIGHTS).read_bytes())
    assert yaml.safe_load((folder / "provenance.yaml").read_text()) == {"study": "small", "trial": 3, "weights_crc32": checksum}
    image = torch.randn(1, 3, 32, 32)
    original = build_model(experiment).eval()
    if channels_last_pays(original.segmenter, torch.device("cpu"), loaded.bf16):
        original.segmenter.to(
            memory_format=torch.channels_last
        )  # as the training has it: another order of additions gives other last digits
    assert not loaded.training
    assert loaded.bf16 == use_bf16(experiment.training.precision, torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(loaded(image).logits[0], original(image).logits[0])


def test_an_export_replaces_an_older_one_whole(data: Data, tmp_path: Path) -> None:
    folder = make_model(tmp_path, experiment_on(data))
    (folder / "stray.txt").write_text("old")
    export_model(tmp_path / "best", experiment_on(data), folder, {"trial": 4})
    assert not (folder / "stray.txt").exists()
    said = yaml.safe_load((folder / "provenance.yaml").read_text())
    assert (said["trial"], said.keys()) == (4, {"trial", "weights_crc32"})
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_trial_folder_is_a_model_too(data: Data, tmp_path: Path) -> None:
    experiment = experiment_on(data)
    make_model(tmp_path, experiment)
    (tmp_path / "experiment.yaml").write_text(experiment.to_yaml())
    weights, found = find_weights(tmp_path)
    assert (weights, found) == (tmp_path / "best" / WEIGHTS, experiment)


@pytest.mark.parametrize("how", ["nothing", "damaged", "another network"])
def test_what_is_no_model_is_a_clear_error(how: str, data: Data, tmp_path: Path) -> None:
    if how != "nothing":
        folder = make_model(tmp_path, experiment_on(data))
        if how == "damaged":
            (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:200])
        else:
            (folder / "experiment.yaml").write_text(experiment_on(data, "nnwnet").to_yaml())
    with pytest.raises(UserError):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_a_model_whose_numbers_are_none_gives_no_mask(
    value: float, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Damaged weights, and whole ones whose sums overflow: a mask of zeros would look like an answer."""
    study = tmp_path / "study"
    shutil.copytree(model.parent, study)
    weights = load_file(study / "model" / WEIGHTS)
    name = next(n for n in sorted(weights) if n.startswith("segmenter.") and weights[n].ndim == 4)
    weights[name].fill_(value)
    save_weights(study / "model" / WEIGHTS, weights)
    (study / "model" / "provenance.yaml").unlink()  # of an earlier version, which noted no checksum
    image = tmp_path / "a.png"
    Image.fromarray(generate(0, 32)[0]).save(image)
    assert predict([str(study / "model"), str(image), "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert not list(tmp_path.glob("out/masks/*"))
    if math.isfinite(value):
        assert f"{image}: the network gives NaN or infinity for this image" in told
    else:
        assert f"the weights hold NaN or infinity in {name}" in told
        assert str(study / "model" / WEIGHTS) in told
    assert "->" in told
    assert evaluate([str(study / "model"), "--output", str(tmp_path / "scores.csv")]) == 2
    assert "NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "scores.csv").exists()


def test_scores_are_those_of_each_prediction_at_its_own_size(model: Path, data: Data) -> None:
    network, _ = load_model(model)
    cases = list(find_cases(data).cases)[:4]
    told: list[tuple[int, int]] = []
    scores = evaluate_cases(network, cases, data, Protocol(), lambda *done: told.append(done), rules=find_rules(model, data))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for case in cases:
        image, truth = np.asarray(Image.open(case.image).convert("RGB")), np.asarray(Image.open(case.mask).convert("L")) >= 128
        predicted = predict_image(network, image, data).mask
        assert predicted.shape == truth.shape
        overlap = 2 * (predicted * truth).sum() / max(1, predicted.sum() + truth.sum())
        assert scores[case.id].dice == pytest.approx(overlap)
        assert scores[case.id] == score_case(predicted, truth.astype(np.uint8))


def test_score_files_hold_every_case(tmp_path: Path) -> None:
    write_scores({"a": CaseScore(0.5, 1 / 3, 2.0, 1.0), 'b,"x': CaseScore(1.0, 1.0, 0.0, 0.0)}, tmp_path / "scores.csv", Protocol(), DATA)
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["case"] for r in rows] == ["a", 'b,"x']
    assert {r["protocol"] for r in rows} == {Protocol().describe()}
    assert float(rows[0]["iou"]) == pytest.approx(1 / 3, rel=1e-5)


def chosen(model: Path, data: Data, part: str, **changes: Any) -> list[str]:
    options = {"kind": None, "root": None, "split_file": None, "reason": "a test", **changes}
    return [case.id for case in choose_cases(model, data, part, **options)]


def test_the_parts_are_those_of_the_study_s_split(model: Path, data: Data) -> None:
    split = json.loads((model.parent / "split.json").read_text())
    assert chosen(model, data, "validation") == split["validation"]
    openings = model.parent / "test-openings.jsonl"
    before = len(openings.read_text().splitlines()) if openings.exists() else 0
    assert chosen(model, data, "test") == split["test"]
    assert json.loads(openings.read_text().splitlines()[-1])["reason"] == "a test"
    assert len(openings.read_text().splitlines()) == before + 1
    assert not set(split["test"]) & set(chosen(model, data, "validation"))


def other_hospital(data: Data, folder: Path) -> Path:
    """A data set with other images, of the same names."""
    copy = Path(shutil.copytree(str(data.root), folder / "other_hospital"))
    for file in (*copy.glob("images/*"), *copy.glob("masks/*")):
        Image.open(file).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(file)
    return copy


def test_another_data_set_is_scored_whole_or_not_at_all(model: Path, data: Data, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="knows no validation split"):
        chosen(model, data, "validation", kind="demo")
    with pytest.raises(UserError, match="trained on"):
        chosen(model, data, "all")
    with pytest.raises(UserError, match="sealed test"):
        chosen(model, data, "all", root=data.root)  # the way round the seal
    copy = other_hospital(data, tmp_path)
    assert len(chosen(model, data, "all", root=str(copy))) == 12
    with pytest.raises(UserError, match="kind"):
        chosen(model, data, "all", kind="kvsair")
    with pytest.raises(UserError, match=r"no split\.json"):
        chosen(tmp_path, data, "validation")


def test_evaluate_prints_means_and_writes_cases(model: Path, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "scores.csv"
    assert evaluate([str(model), "--output", str(output)]) == 0
    rows = list(csv.DictReader(output.open()))
    mean = sum(float(r["dice"]) for r in rows) / len(rows)
    text = capsys.readouterr().out
    assert f"Dice {mean:.4f}" in text
    assert f"{len(rows)} cases, {Protocol().describe()}: " in text
    assert {r["protocol"] for r in rows} == {Protocol().describe()}
    assert evaluate([str(model), "--split", "test"]) == 2
    assert "--reason" in capsys.readouterr().err
    assert evaluate([str(tmp_path)]) == 2


def test_evaluate_measures_by_the_protocol_of_its_options(
    model: Path, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scores.csv"
    line = "--inference sliding --mirror --hd95 pooled --largest-component always"
    assert evaluate([str(model), "--output", str(output), *line.split()]) == 0
    protocol = Protocol(inference="sliding", mirror=True, hd95="pooled", largest_component="always")
    network, _ = load_model(model)
    cases = choose_cases(model, data, "validation", kind=None, root=None, split_file=None, reason=None)
    expected = evaluate_cases(network, cases, data, protocol, rules=find_rules(model, data))
    rows = {row["case"]: row for row in csv.DictReader(output.open())}
    for name, score in expected.items():
        assert float(rows[name]["hd95"]) == pytest.approx(score.hd95, rel=1e-5)
        assert rows[name]["protocol"] == protocol.describe()
    assert f"{len(rows)} cases, {protocol.describe()}: Dice " in capsys.readouterr().out
    assert evaluate([str(model), "--inference", "sliding", "--resolution", "training"]) == 2
    assert "'sliding' works on native ones" in capsys.readouterr().err


def test_evaluate_chooses_the_post_processing_on_the_study_s_validation_split(
    model: Path, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, _ = load_model(model)
    cases = choose_cases(model, data, "validation", kind=None, root=None, split_file=None, reason=None)
    protocol, dice = choose_largest_component(network, cases, data, Protocol(largest_component="validation"), rules=find_rules(model, data))
    told = f"on {len(cases)} validation cases Dice {dice['always']:.4f} with it, {dice['never']:.4f} without"
    copy = other_hospital(data, tmp_path)
    for mask in (copy / "masks").iterdir():  # what is scored has no part in the choice
        Image.fromarray(np.zeros_like(np.asarray(Image.open(mask)))).save(mask)
    for options in (["--split", "test", "--reason", "a test"], ["--split", "all", "--data-root", str(copy)], []):
        assert evaluate([str(model), "--largest-component", "validation", *options]) == 0
        text = capsys.readouterr().out
        assert f"largest component {protocol.largest_component}: {told}" in text
        assert protocol.describe() in text
        assert ("too good" in text) == (not options)


def test_without_the_study_s_split_there_is_nothing_to_choose_on(
    model: Path, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = shutil.copytree(model, tmp_path / "model")
    copy = shutil.copytree(str(data.root), tmp_path / "other_hospital")
    options = [str(alone), "--split", "all", "--data-root", str(copy)]
    assert evaluate([*options, "--largest-component", "validation"]) == 2
    shown = capsys.readouterr().err
    assert "--largest-component validation: the choice needs the validation cases of the model's study" in shown
    assert "--split-file" in shown
    assert evaluate([*options, "--largest-component", "always"]) == 0


def test_predictions_have_the_size_and_name_of_their_images(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"i{number}.{['png', 'jpg', 'bmp', 'tif', 'webp'][number]}")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not an image")
    done, failed = predict_folder(workflow.load_model(model), folder, tmp_path / "out")
    assert done == len(SIZES)
    assert len(failed) == 1
    assert "broken.png" in failed[0]
    network, _ = load_model(model)
    for number, size in enumerate(SIZES):
        mask = Image.open(tmp_path / "out" / "masks" / f"i{number}.png")
        assert mask.size == size
        assert set(np.unique(np.asarray(mask))) <= {0, 255}
        assert (tmp_path / "out" / "overlays" / f"i{number}.png").exists()
    image = np.asarray(Image.open(folder / "i0.png"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "masks" / "i0.png")) // 255, predict_image(network, image, DATA).mask)


def test_predict_says_how_patches_were_put_together(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patches = shutil.copytree(model, tmp_path / "patches")
    settings = yaml.safe_load((patches / "experiment.yaml").read_text())
    settings["data"]["view"] = "patch"
    (patches / "experiment.yaml").write_text(yaml.safe_dump(settings))
    Image.fromarray(generate(3, 50)[0]).save(tmp_path / "a.png")
    assert predict([str(patches), str(tmp_path / "a.png"), "--output", str(tmp_path / "x"), "--no-overlays"]) == 0
    assert "1 mask in" in (said := capsys.readouterr().out)
    assert "Gaussian sliding window" in said
    assert "whole image resized" not in said


def test_predict_options(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(generate(3, 50)[0]).save(folder / "a.png")
    masks = {}
    for threshold in (0.01, 0.99):
        out = tmp_path / str(threshold)
        assert predict([str(model), str(folder / "a.png"), "--output", str(out), "--threshold", str(threshold), "--no-overlays"]) == 0
        masks[threshold] = np.asarray(Image.open(out / "masks" / "a.png")) > 0
        assert not (out / "overlays").exists()
    assert masks[0.01].sum() >= masks[0.99].sum()
    assert not (masks[0.99] & ~masks[0.01]).any()
    assert predict([str(model), str(folder), "--output", str(tmp_path / "x"), "--threshold", "1.5"]) == 2
    assert predict([str(model), str(tmp_path / "nothing"), "--output", str(tmp_path / "x")]) == 2


def test_predict_takes_the_protocol_s_options(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = generate(5, 75)[0]
    Image.fromarray(image).save(tmp_path / "a.png")
    line = "--inference sliding --mirror --largest-component always"
    assert predict([str(model), str(tmp_path / "a.png"), "--output", str(tmp_path / "out"), *line.split()]) == 0
    protocol = Protocol(inference="sliding", mirror=True, largest_component="always")
    written = np.asarray(Image.open(tmp_path / "out" / "masks" / "a.png"))
    assert np.array_equal(written, predict_image(load_model(model)[0], image, DATA, protocol).mask * 255)
    assert "Gaussian sliding window (0.5 overlap), mean of 4 flips, largest component" in " ".join(capsys.readouterr().out.split())


def test_several_classes_from_evaluate_to_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Masks of a folder with two classes; scores per class; predicted masks hold labels."""
    root, rng = tmp_path / "labels", np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(8):
        image, mask = generate(number, 40)
        Image.fromarray(image).save(root / "images" / f"c{number}.png")
        Image.fromarray((mask > 0) * rng.integers(1, 3, dtype=np.uint8)).save(root / "masks" / f"c{number}.png")
    values = experiment_on(Data(kind="folder", root=str(root), image_size=32)).to_dict()
    values["data"] |= {"num_classes": 2, "labels": {"tumour core": 1, "oedema": 2}}
    experiment = Experiment.from_dict(values)
    open_for_search(experiment.data, split_file=tmp_path / "split.json", cache=tmp_path / "cache")
    folder = make_model(tmp_path, experiment)
    output = tmp_path / "scores.csv"
    assert evaluate([str(folder), "--output", str(output), "--largest-component", "validation"]) == 0
    rows = list(csv.DictReader(output.open()))
    text = capsys.readouterr().out
    for column, name in (("dice", ""), ("dice_tumour_core", "tumour core: "), ("dice_oedema", "oedema: ")):
        mean = sum(float(r[column]) for r in rows) / len(rows)
        assert f"{name}Dice {mean:.4f}" in text
    assert "class " not in text
    assert predict([str(folder), str(root / "images"), "--output", str(tmp_path / "out")]) == 0
    network, _ = load_model(folder)
    for number in range(8):
        written = np.asarray(Image.open(tmp_path / "out" / "masks" / f"c{number}.png"))
        expected = predict_image(network, generate(number, 40)[0], experiment.data).mask
        assert np.array_equal(written, expected)
        assert expected.max() <= 2
    assert predict([str(folder), str(root / "images"), "--output", str(tmp_path / "x"), "--threshold", "0.3"]) == 2
    assert "without a threshold" in capsys.readouterr().err


def test_evaluate_replaces_scores_and_no_other_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores, other = tmp_path / "scores.csv", tmp_path / "patients.csv"
    other.write_text("case,age\na,61\n")
    (tmp_path / "link.csv").symlink_to(other)
    for place in (other, tmp_path / "link.csv", tmp_path):
        assert evaluate([str(model), "--output", str(place)]) == 2
        assert f"--output {place}: is there already" in capsys.readouterr().err
    assert other.read_text() == "case,age\na,61\n"
    for _ in range(2):
        assert evaluate([str(model), "--output", str(scores)]) == 0
