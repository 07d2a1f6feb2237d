"""Predictions on arrays, Pillow images and files: the same numbers give the same mask, whatever they come in."""

from __future__ import annotations

import functools
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from training_helpers import GUIDE, make_experiment

from guidino_tune.config import Experiment, Protocol
from guidino_tune.data.intensity import IntensityRule
from guidino_tune.data.rules import RULES, Rules, plain_rules, write_rules
from guidino_tune.data.sources.demo import generate
from guidino_tune.errors import UserError
from guidino_tune.models import GuidedSegmenter, build_model
from guidino_tune.predict import main as predict
from guidino_tune.tracking import log_model_run
from guidino_tune.tracking.client import connect
from guidino_tune.training.checkpoints import WEIGHTS, save_weights
from guidino_tune.training.ensemble_folder import list_members
from guidino_tune.training.model_folder import export_model
from guidino_tune.workflows.predict import TrainedModel, load_model

SIZE = (41, 53)
DEEP = IntensityRule("percentiles", ((300.0, 50_000.0),), ("deep",), "16 bits, 1 channel")
CT = IntensityRule("window", ((-100.0, 240.0),), ("deep",), "16 bits with sign, 1 channel")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes the folder of a model of random weights, whose masks are noise that every change of the image changes."""
    torch.set_num_threads(1)

    @functools.cache
    def make(rule: IntensityRule | None = None, seed: int = 0, **data: Any) -> Path:
        guide = GUIDE if data.pop("guided", False) else None
        values = make_experiment("unet", guide=guide).to_dict()
        values["data"] |= {"normalisation": "zscore", **data}
        experiment = Experiment.from_dict(values)
        folder = tmp_path_factory.mktemp("trained")
        (folder / "best").mkdir()
        save_weights(folder / "best" / WEIGHTS, noisy(build_model(experiment), experiment.data.channels, seed).trained_state())
        export_model(folder / "best", experiment, folder / "model", {"study": "small", "trial": 3})
        plain = plain_rules(experiment.data)
        write_rules(Rules(plain.labels, rule or plain.intensity, experiment.data.channels), folder / "model" / RULES)
        return folder / "model"

    return make


@torch.no_grad()
def noisy(model: GuidedSegmenter, channels: int, seed: int) -> GuidedSegmenter:
    """Other weights, and logits around 0: else all of a mask would be one class."""
    random = torch.Generator().manual_seed(seed)
    for weights in model.segmenter.parameters():
        weights += 0.1 * torch.randn(weights.shape, generator=random)
    head: Any = model.segmenter.head
    head.weight *= 10
    head.bias -= model.eval()(torch.randn(4, channels, 32, 32, generator=random)).logits[0].mean((0, 2, 3))
    return model


def noise(*channels: int, dtype: type = np.uint8, low: int = 0, high: int | None = None) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high or np.iinfo(dtype).max + 1, (*SIZE, *channels)).astype(dtype)


def by_pillow(array: np.ndarray, file: Path) -> Path:
    Image.fromarray(array).save(file := file.with_suffix(".png"))
    return file


def by_imagecodecs(array: np.ndarray, file: Path) -> Path:
    (file := file.with_suffix(".png")).write_bytes(imagecodecs.png_encode(array))
    return file


def by_tifffile(array: np.ndarray, file: Path) -> Path:
    colours = array.ndim == 3 and array.shape[2] == 3
    options = {} if array.ndim == 2 else {"planarconfig": "contig"}
    tifffile.imwrite(file := file.with_suffix(".tif"), array, photometric="rgb" if colours else "minisblack", **options)
    return file


def as_channels(array: np.ndarray, file: Path) -> Path:
    for number in range(array.shape[2]):
        by_imagecodecs(array[..., number].copy(), file.with_name(f"case_{number:04d}"))
    return file.with_name("case_0000.png")


PER_CHANNEL = IntensityRule("window", ((0.0, 40_000.0), (20_000.0, 60_000.0)), ("deep",), "16 bits, 2 channels")
PER_FILE = IntensityRule("percentiles", ((0.0, 40_000.0), (20_000.0, 60_000.0)), ("deep", "deep"), "2 files of 16 bits, 1 channel each")
FRACTIONS = IntensityRule("percentiles", ((0.1, 0.9),), ("deep",), "32 bits, fractions, 1 channel")
KINDS = {
    "grey": (noise(), by_pillow, None, {}),
    "grey with a channel's axis": (noise(1), lambda array, file: by_pillow(array[..., 0], file), None, {}),
    "two levels": (noise(high=2).astype(bool), by_pillow, None, {}),
    "RGB": (noise(3), by_pillow, None, {}),
    "RGB of a TIFF": (noise(3), by_tifffile, None, {}),
    "RGBA": (noise(4), by_pillow, None, {}),
    "grey and alpha": (noise(2), by_pillow, None, {}),
    "RGB to one channel": (noise(3), by_pillow, None, {"channels": 1}),
    "RGBA to one channel": (noise(4), by_pillow, None, {"channels": 1}),
    "four channels": (noise(4), by_tifffile, None, {"channels": 4}),
    "five channels": (noise(5), by_tifffile, None, {"channels": 5}),
    "grey of 16 bits": (noise(dtype=np.uint16), by_imagecodecs, DEEP, {}),
    "big-endian": (noise(dtype=np.uint16).astype(">u2"), by_tifffile, DEEP, {}),
    "RGB of 16 bits": (noise(3, dtype=np.uint16), by_imagecodecs, DEEP, {}),
    "RGBA of 16 bits": (noise(4, dtype=np.uint16), by_imagecodecs, DEEP, {}),
    "CT": (noise(dtype=np.int16, low=-1024, high=3000), by_tifffile, CT, {"channels": 1}),
    "fractions": (np.random.default_rng(0).random(SIZE, np.float32), by_tifffile, FRACTIONS, {}),
    "a window per channel": (noise(2, dtype=np.uint16), by_tifffile, PER_CHANNEL, {"channels": 2}),
    "a file per channel": (noise(2, dtype=np.uint16), as_channels, PER_FILE, {"channels": 2}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_has_the_mask_of_its_file(kind: str, models: Any, tmp_path: Path) -> None:
    array, write, rule, data = KINDS[kind]
    model = load_model(models(rule, **data))
    file = write(array, tmp_path / "image")
    expected = model.predict(str(file))
    assert (expected.shape, expected.dtype) == (SIZE, np.uint8)
    assert 0 < expected.mean() < 1  # else nothing is compared
    assert np.array_equal(model.decode(array), model.decode(file))
    assert np.array_equal(model.predict(array), expected)
    assert np.array_equal(model.predict_proba(array), model.predict_proba(file))
    if array.dtype == np.uint8 and array.shape[2:] in ((), (2,), (3,), (4,)) and data.get("channels") != 4:
        with Image.open(file) as picture:
            assert np.array_equal(model.predict(picture), expected)
    changed = array.copy()
    changed[:20] = array[20:40]
    assert not np.array_equal(model.predict(changed), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (3,), (4,)])
def test_floats_are_fractions_of_white_or_the_numbers_of_a_file(shape: tuple[int, ...], dtype: type, models: Any) -> None:
    model, array = load_model(models()), noise(*shape)
    expected = model.decode(array)
    assert np.array_equal(model.decode((array / 255).astype(dtype)), expected)
    assert np.array_equal(model.decode(array.astype(dtype)), expected)
    deep, hounsfield = load_model(models(CT, channels=1)), noise(dtype=np.int16, low=-1000, high=1000)
    assert np.array_equal(deep.decode(hounsfield.astype(dtype)), deep.decode(hounsfield))


def test_a_photograph_that_is_turned_is_turned_from_memory_too(models: Any, tmp_path: Path) -> None:
    model, exif = load_model(models()), Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(noise(3)).save(tmp_path / "a.jpg", exif=exif)
    expected = model.predict(tmp_path / "a.jpg")
    assert expected.shape == SIZE[::-1]
    with Image.open(tmp_path / "a.jpg") as picture:
        assert np.array_equal(model.predict(picture), expected)


def test_what_predict_decides_on_are_the_probabilities(models: Any) -> None:
    image = generate(3, 48)[0]
    binary, classes = load_model(models(guided=True)), load_model(models(num_classes=3))
    assert binary.class_names == ("background", "foreground")
    assert classes.class_names == ("background", "class 1", "class 2", "class 3")
    for model in (binary, classes):
        found = model.predict_proba(image)
        assert (found.shape, found.dtype) == ((len(model.class_names), 48, 48), np.float32)
        assert np.allclose(found.sum(0), 1, atol=1e-6)
        assert np.array_equal(found.argmax(0), model.predict(image))
    for threshold in (0.3, 0.5, 0.6):
        assert np.array_equal(binary.predict(image, threshold=threshold), binary.predict_proba(image)[1] > threshold)
    guide = binary.guide_mask(image)
    assert (guide.shape, guide.dtype) == ((48, 48), np.float32)
    assert 0 <= guide.min() < guide.max() <= 1
    with pytest.raises(UserError, match="has no guide mask"):
        classes.guide_mask(image)
    with pytest.raises(UserError, match="without a threshold"):
        classes.predict(image, threshold=0.4)


def test_a_list_gives_what_each_gives_alone_in_any_thread(models: Any, tmp_path: Path) -> None:
    model = load_model(models(guided=True), protocol={"mirror": True})
    images = [generate(number, size)[0] for number, size in enumerate((40, 64, 33, 90))]
    mixed = [images[0], by_pillow(images[1], tmp_path / "b"), Image.fromarray(images[2]), str(by_pillow(images[3], tmp_path / "d"))]
    alone = [model.predict(image) for image in images]
    assert [mask.shape for mask in alone] == [(40, 40), (64, 64), (33, 33), (90, 90)]
    with ThreadPoolExecutor(4) as threads:
        for found in (model.predict(mixed), model.predict(tuple(mixed)), list(threads.map(model.predict, images * 3))[-4:]):
            assert all(np.array_equal(one, other) for one, other in zip(found, alone, strict=True))
    assert model.predict([]) == []
    with pytest.raises(UserError, match=r"\[1\] .*nothing\.png: no such file"):
        model.predict([images[0], tmp_path / "nothing.png"])


def test_the_command_writes_what_predict_gives(models: Any, tmp_path: Path) -> None:
    folder, file = models(guided=True), by_pillow(noise(3), tmp_path / "a")
    model = load_model(folder, protocol=Protocol(inference="sliding", mirror=True, largest_component="always"))
    threshold = float(np.median(model.predict_proba(file)[1]))
    options = ["--inference", "sliding", "--mirror", "--largest-component", "always", "--no-overlays", "--threshold", str(threshold)]
    assert predict([str(folder), str(file), "--output", str(tmp_path / "out"), *options]) == 0
    written = np.asarray(Image.open(tmp_path / "out" / "masks" / "a.png"))
    assert 0 < written.mean() < 255
    assert np.array_equal(written, 255 * model.predict(file, threshold=threshold))
    assert not np.array_equal(written, 255 * load_model(folder).predict(file, threshold=threshold))


def test_a_model_says_what_it_is(models: Any) -> None:
    model = load_model(str(models()), device="cpu")
    assert isinstance(model, TrainedModel)
    assert (model.image_size, model.device.type, model.protocol) == (32, "cpu", Protocol())
    assert (model.provenance["study"], model.provenance["trial"]) == ("small", 3)
    assert model.experiment.data.image_size == 32
    assert len(repr(model)) < 120


def test_an_ensemble_is_the_mean_of_its_members(models: Any, tmp_path: Path) -> None:
    members = [models(seed=seed) for seed in (1, 2)]
    list_members(tmp_path / "ensemble", [os.path.relpath(member, tmp_path / "ensemble") for member in members])
    image = generate(0, 32)[0]
    alone = [load_model(member).predict_proba(image) for member in members]
    assert not np.allclose(*alone, atol=1e-2)
    model = load_model(tmp_path / "ensemble")
    assert np.allclose(model.predict_proba(image), np.mean(alone, 0), atol=1e-5)
    assert dict(model.provenance) == {}


HOLED = np.where(np.arange(SIZE[1]) == 3, np.nan, np.zeros(SIZE))


@pytest.mark.parametrize(
    ("image", "rule", "expected"),
    [
        (np.zeros(5, np.uint8), None, r"array of shape \(5,\), uint8: is no image, which is \(H, W\) or \(H, W, C\)"),
        (np.zeros((1, 1, 3, 8, 8), np.uint8), None, r"shape \(1, 1, 3, 8, 8\), uint8: is no image"),
        (np.zeros((2, 8, 8, 3), np.uint8), None, "several as a list"),
        (np.zeros((0, 8, 3), np.uint8), None, r"shape \(0, 8, 3\), uint8: is empty"),
        (np.zeros((3, 40, 40), np.uint8), None, r"shape \(3, 40, 40\), uint8: has 40 channels.*\(H, W, C\)"),
        (np.zeros((8, 8, 5), np.uint8), None, r"has 5 channels, but data\.channels is 3"),
        (np.zeros((8, 8), complex), None, "complex128: is no image"),
        (np.full((8, 8), "a"), None, "is no image"),
        (HOLED, None, "float64: holds NaN or infinity"),
        (HOLED, CT, "holds NaN or infinity"),
        (HOLED - np.inf, None, "holds NaN or infinity"),
        (noise() - 300.0, None, "neither fractions of 0 to 1 nor whole numbers of 0 to 255"),
        (noise() * 0.37, None, "neither fractions of 0 to 1 nor whole numbers of 0 to 255"),
        (noise() / 255, CT, "holds fractions of 0 to 1, and in the files of the training images -100 to 240 become black to white"),
        (noise(dtype=np.uint16), None, r"has 16 bits \(uint16\), and the training images have 8 bits"),
        (noise().astype(np.int64), None, r"has 64 bits \(int64\), and the training images have 8 bits"),
        (noise(), DEEP, "has 8 bits, and the training images have more"),
        (noise(dtype=np.uint16), PER_FILE, "has 1 channels, and the training images have 2 files"),
        (noise(2, dtype=np.uint16, high=9), DEEP, "all of them beyond those of the training images"),
        (Image.new("RGB", (0, 8)), None, "Pillow image"),
        (Image.new("F", (8, 8)), None, "has 32 bits"),
        (torch.zeros(3, 8, 8), None, "a Tensor: is no NumPy array"),
        ([[0, 1], [1, 0]], None, r"\[0\] a list: is no NumPy array"),
        (None, None, "is no NumPy array"),
        (Path(__file__).parent, None, "is a folder"),
        ("nothing.png", None, "no such file"),
        ("x" * 5000, None, "no such file"),
        (__file__, None, "cannot be decoded: it is no image"),
    ],
)
def test_what_is_no_image_of_this_kind_is_told(image: Any, rule: IntensityRule | None, expected: str, models: Any) -> None:
    with pytest.raises(UserError) as caught:
        load_model(models(rule)).predict(image)
    shown = str(caught.value).replace("\n", " ")
    assert re.search(expected, shown), shown
    assert "->" in shown
    assert "bad_cases" not in shown  # a setting of trainings


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"protocol": {"inference": "slidng"}}, "inference"),
        ({"protocol": {"resolution": "training"}}, "image's own size"),
        ({"protocol": Protocol(largest_component="validation")}, "no true masks"),
        ({"device": "cuda:7"}, "device 'cuda:7': torch cannot use it"),
        ({"device": "gpu"}, "device 'gpu': torch cannot use it"),
        ({"backbone": "/nowhere"}, "no such folder"),
    ],
)
def test_options_that_do_not_fit_are_told(options: dict[str, Any], expected: str, models: Any) -> None:
    with pytest.raises(UserError, match=expected):
        load_model(models(), **options)


def test_models_of_the_registry(models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, folder = f"sqlite:///{tmp_path}/m.db", models()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    def refused(model: str) -> str:
        with pytest.raises(UserError) as caught:
            load_model(model)
        assert "->" in str(caught.value)
        return str(caught.value)

    assert "there is no MLflow database" in refused("models:/kvasir/1")
    assert not (tmp_path / "m.db").exists()
    run = ""
    for dice in (0.7, 0.8):
        run, _ = log_model_run(
            uri, "retrain", "UNet", {}, {"val_dice": dice}, (), folder, "kvasir", {}, artifact_location=tmp_path / "artifacts"
        )  # fmt: skip
    connect(uri).set_registered_model_alias("kvasir", "best", "1")
    image = generate(4, 40)[0]
    expected = load_model(folder).predict(image)
    for name in ("models:/kvasir/1", "models:/kvasir/latest", "models:/kvasir@best", f"runs:/{run}/model"):
        model = load_model(name)
        assert np.array_equal(model.predict(image), expected)
        assert model.provenance["trial"] == 3
    assert "no model 'kvasr'\n  -> did you mean 'kvasir'?" in refused("models:/kvasr/1")
    assert "no version 7\n  -> its versions: 1, 2; its aliases: best" in refused("models:/kvasir/7")
    assert "no alias 'worst'" in refused("models:/kvasir@worst")
    assert "no run 'ab12'" in refused("runs:/ab12/model")
    assert "write models:/NAME/VERSION" in refused("models:/kvasir")
    assert "runs:/" in refused(f"runs:/{run}/other")
    weights = next((tmp_path / "artifacts" / run).rglob(WEIGHTS))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert refused("models:/kvasir/2").startswith(f"models:/kvasir/2/{WEIGHTS}: the weights are not as they were written")
    weights.unlink()
    assert f"its files are incomplete: 1 of 7 are missing, such as {WEIGHTS}" in refused("models:/kvasir/2")
    shutil.rmtree(weights.parent)
    assert "models:/kvasir/2: the model cannot be fetched" in refused("models:/kvasir/2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "connection refused" in refused("models:/kvasir/1")
