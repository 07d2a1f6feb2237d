"""The file that goes along with every export does with images what this package does."""

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from test_load_model import noisy

from guidino_tune.config import Data, Experiment
from guidino_tune.config.protocol import DEFAULT_PROTOCOL
from guidino_tune.data.arrays import decode_array
from guidino_tune.data.decoding import read_image
from guidino_tune.data.intensity import IntensityRule
from guidino_tune.data.rules import Rules, plain_rules
from guidino_tune.exporting.graph import PixelsToProbabilities, normalised_in_graph
from guidino_tune.exporting.templates import portable
from guidino_tune.framing import place
from guidino_tune.inference import predict_image
from guidino_tune.models import build_model
from guidino_tune.normalisation import normalise
from guidino_tune.training.description import config_of, preprocessor_of

DEEP = {
    "percentiles": IntensityRule("percentiles", ((300.0, 50_000.0),), ("deep",), "16 bits, 1 channel"),
    "window": IntensityRule("window", ((-100.0, 240.0),), ("deep",), "16 bits with sign, 1 channel"),
    "each": IntensityRule("window", ((0.0, 900.0), (100.0, 200.0), (-5.0, 5.0)), ("deep",), "floats, 3 channels"),
    "both": IntensityRule("window", ((0.0, 900.0),), ("both",), "8 or 16 bits"),
}


def settings_of(rules: Rules, **data: Any) -> tuple[Experiment, dict[str, Any]]:
    values = {"data": {"kind": "folder", "image_size": 32, **data}, "guide": {"kind": "none"}}
    experiment = Experiment.from_dict({**values, "segmenter": {"kind": "unet", "base_width": 2}})
    settings = config_of(experiment) | preprocessor_of(experiment, rules)
    return experiment, settings | {"normalised_in_graph": normalised_in_graph(experiment.data)}


@pytest.mark.parametrize("resize", ["squash", "pad"])
@pytest.mark.parametrize("shape", [(41, 53), (32, 32), (20, 11), (1, 70)])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_squares_of_eight_bits(resize: str, shape: tuple[int, int], channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, channels), dtype=np.uint8)
    data = Data(kind="folder", image_size=32, channels=channels, resize=resize)  # type: ignore[arg-type]
    _, settings = settings_of(plain_rules(data), channels=channels, resize=resize)
    square = portable.to_square(portable.to_pixels(image, settings), settings)
    assert np.array_equal(square, place(image, 32, data.resize))
    experiment, _ = settings_of(plain_rules(data), channels=channels)
    graph = PixelsToProbabilities(build_model(experiment), data)
    batch = torch.from_numpy(portable.to_batch(square))
    assert torch.equal(graph.normalised(batch)[0], normalise(square))


@pytest.mark.parametrize("name", DEEP)
def test_windows(name: str) -> None:
    rng = np.random.default_rng(1)
    rule = DEEP[name]
    image = {
        "percentiles": rng.integers(0, 65536, (9, 7, 1)).astype(np.uint16),
        "window": rng.integers(-2000, 3000, (9, 7, 1)).astype(np.int16),
        "each": (rng.random((9, 7, 3)) * 1000 - 50).astype(np.float32),
        "both": rng.integers(0, 256, (9, 7, 3)).astype(np.uint8),
    }[name]
    rules = Rules(plain_rules(Data(kind="folder")).labels, rule, 3)
    _, settings = settings_of(rules)
    wanted = decode_array(image, rules, "image")
    found = portable.to_pixels(image, settings)
    assert found.dtype == wanted.dtype == np.uint16
    assert np.array_equal(found, wanted)
    assert np.array_equal(portable.to_square(found, settings), place(wanted, 32))


def test_grey_of_colours_and_files(tmp_path: Path) -> None:
    image = np.random.default_rng(2).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    for channels in (1, 3):
        rules = plain_rules(Data(kind="folder", channels=channels))
        _, settings = settings_of(rules, channels=channels)
        pictures = {"a.png": Image.fromarray(image), "g.png": Image.fromarray(image[..., 0]), "p.png": Image.fromarray(image).quantize(8)}
        for name, picture in pictures.items():
            picture.save(tmp_path / name)
            assert np.array_equal(portable.to_pixels(portable.read_image(tmp_path / name), settings), read_image(tmp_path / name, rules))
    with pytest.raises(ValueError, match="8 bits"):
        portable.to_pixels(image.astype(np.uint16), settings)
    with pytest.raises(ValueError, match="this has 2"):
        portable.to_pixels(image[..., :2], settings)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "key", "palette", "clear", "opaque"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pixels_lie_on_black(mode: str, channels: int, tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    if mode in ("clear", "opaque"):
        colours[..., 3] = 0 if mode == "clear" else 255
    picture, options = Image.fromarray(colours), {}
    if mode in ("LA", "key"):
        picture = picture.convert("LA" if mode == "LA" else "L")
        options = {"transparency": int(np.asarray(picture.convert("L"))[0, 0])} if mode == "key" else {}
    elif mode == "palette":
        picture, options = picture.convert("RGB").quantize(8), {"transparency": 3}
    picture.save(tmp_path / "a.png", **options)
    rules = plain_rules(Data(kind="folder", channels=channels))
    _, settings = settings_of(rules, channels=channels)
    found = portable.to_pixels(portable.read_image(tmp_path / "a.png"), settings)
    wanted = read_image(tmp_path / "a.png", rules)
    assert np.abs(found.astype(int) - wanted).max() <= (channels == 1)  # of colours, luminance and blackness are rounded in turn


@pytest.mark.parametrize("shape", [(9, 7, 2), (9, 7, 3), (9, 7, 4)])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_colours_of_16_bits_are_refused_where_pillow_halves_them(shape: tuple[int, ...], ending: str, tmp_path: Path) -> None:
    values, file = np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16), tmp_path / f"a.{ending}"
    if ending == "png":
        file.write_bytes(imagecodecs.png_encode(values))
    elif shape[2] == 2:
        return  # Pillow reads no such file
    else:
        tifffile.imwrite(file, values, photometric="rgb")
    with pytest.raises(ValueError, match="8 of its 16 bits"):
        portable.read_image(file)
    file.write_bytes(imagecodecs.png_encode(values[..., 0].copy()))
    assert np.array_equal(portable.read_image(file)[..., 0], values[..., 0])


@pytest.mark.parametrize("name", ["percentiles", "window"])
def test_eight_bits_are_refused_where_the_training_has_more(name: str) -> None:
    rules = Rules(plain_rules(Data(kind="folder")).labels, DEEP[name], 3)
    _, settings = settings_of(rules)
    with pytest.raises(ValueError, match="more than 8 bits"):
        portable.to_pixels(np.zeros((9, 7, 3), np.uint8), settings)


def test_no_mask_replaces_that_of_another_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, settings = settings_of(plain_rules(Data(kind="folder")))
    for name in ("a.png", "a.bmp"):
        Image.new("RGB", (7, 9)).save(tmp_path / name)
    with pytest.raises(SystemExit):
        portable.run(lambda pixels: pixels, settings, [str(tmp_path / "a.png"), str(tmp_path / "a.bmp"), "--output", str(tmp_path / "out")])
    assert "one by one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


DATA: list[dict[str, Any]] = [{}, {"resize": "pad"}, {"num_classes": 3}, {"normalisation": "zscore"}]
DATA += [{"view": "patch"}, {"view": "patch", "normalisation": "zscore"}]


@torch.no_grad()
@pytest.mark.parametrize("data", DATA, ids=str)
@pytest.mark.parametrize("shape", [(41, 53), (90, 64), (20, 70)])
def test_masks(data: dict[str, Any], shape: tuple[int, int]) -> None:
    """Of random networks, whose borders run everywhere."""
    experiment, settings = settings_of(plain_rules(Data(kind="folder")), **data)
    model = noisy(build_model(experiment), 3, seed=3)
    image = np.random.default_rng(4).integers(0, 256, (*shape, 3), dtype=np.uint8)
    wanted = predict_image(model, image, experiment.data, DEFAULT_PROTOCOL.of(experiment.data)).mask
    graph = PixelsToProbabilities(model, experiment.data)

    def network(pixels: np.ndarray) -> np.ndarray:
        found: np.ndarray = graph(torch.from_numpy(np.ascontiguousarray(pixels)))[0].numpy()
        return found

    found = portable.segment(image, network, settings)
    assert 0.005 < (wanted > 0).mean() < 0.995
    assert (found != wanted).mean() < 2e-3  # where two labels are equally likely
