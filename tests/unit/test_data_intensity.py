"""One rule for all images of a data set: contrast and grey levels stay, and an odd file out is refused, not changed."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from guidino_tune.config import Data
from guidino_tune.data.intensity import MOST_IMAGES, IntensityRule, apply, decode_image, measure_intensity
from guidino_tune.data.raw import Raw
from guidino_tune.errors import UserError

SIDE = 96


def data(**fields) -> Data:
    return Data(kind="folder", root="somewhere", **fields)


def scene(i: int) -> np.ndarray:
    """Grey levels of a picture, float of about 0 to 200: an ellipse of 70 above its surroundings."""
    random = np.random.default_rng(i)
    y, x = np.mgrid[:SIDE, :SIDE]
    mask = ((y - 45) / 20) ** 2 + ((x - 50) / 14) ** 2 < 1
    return np.clip(random.normal(90, 18, (SIDE, SIDE)) + 20 * np.sin(x / 9 + i) + mask * 70, 0, 255)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, photometric="rgb" if array.ndim == 3 and array.shape[2] == 3 else "minisblack")
    else:
        Image.fromarray(array).save(path)
    return path


def files(folder: Path, count: int, of) -> list[list[Path]]:
    return [[save(folder / f"{i:03d}{ending}", array)] for i in range(count) for ending, array in [of(i)]]


DEEP = {
    "14 bits": lambda i: (".png", (scene(i) * 64).astype(np.uint16)),
    "12 bits in 16": lambda i: (".tif", (scene(i) * 16).astype(np.uint16)),
    "Hounsfield": lambda i: (".tif", (scene(i) * 8 - 1000).astype(np.int16)),
    "float 0 to 255": lambda i: (".tif", scene(i).astype(np.float32)),
    "float 0 to 1": lambda i: (".tif", (scene(i) / 255).astype(np.float32)),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_images_keep_contrast_and_grey_levels(tmp_path: Path, kind: str) -> None:
    images = files(tmp_path, 8, DEEP[kind])
    rule = measure_intensity(images, data())
    assert rule.kind == "percentiles"
    for i, paths in enumerate(images):
        image = decode_image(paths, rule)
        assert (image.dtype, image.shape) == (np.uint16, (SIDE, SIDE, 3))
        assert (image == image[..., :1]).all()
        grey = image[..., 0].astype(float)
        assert len(np.unique(grey)) > 250
        assert np.corrcoef(grey.reshape(-1), scene(i).reshape(-1))[0, 1] > 0.99
        assert grey.std() > 65535 / 10


def test_the_window_is_the_percentiles_of_all_pixels(tmp_path: Path) -> None:
    images = files(tmp_path, 6, DEEP["14 bits"])
    rule = measure_intensity(images, data())
    pixels = np.concatenate([np.asarray(Image.open(paths[0])).reshape(-1) for paths in images])
    assert rule.windows == (pytest.approx(tuple(np.percentile(pixels, [0.5, 99.5]))),)
    low, high = rule.windows[0]
    stored = np.asarray(Image.open(images[0][0])).astype(float)
    assert np.array_equal(decode_image(images[0], rule)[..., 0], np.rint(np.clip((stored - low) / (high - low), 0, 1) * 65535))
    assert rule.describe() == (
        f"images: 16 bits, 1 channel; 0.5 to 99.5 percentiles of the training images, {low:.6g} to {high:.6g}, become black to white"
    )


def test_odd_and_even_images_of_other_maxima_are_alike_in_brightness(tmp_path: Path) -> None:
    def of(i: int) -> tuple[str, np.ndarray]:
        return ".png", (scene(i) / scene(i).max() * (4400 if i % 2 else 3600)).astype(np.uint16)

    images = files(tmp_path, 20, of)
    rule = measure_intensity(images, data())
    means = np.array([decode_image(paths, rule).mean() for paths in images])
    assert 0.7 < means[::2].mean() / means[1::2].mean() < 1.0
    assert means.min() > 65535 / 5


def test_the_rule_is_the_same_in_any_order_and_of_any_hot_pixel(tmp_path: Path) -> None:
    images = files(tmp_path, 6, DEEP["12 bits in 16"])
    rule = measure_intensity(images, data())
    assert measure_intensity(images[::-1], data()) == rule
    hot = tifffile.imread(images[2][0])
    hot[5, 5] = 65535
    save(images[2][0], hot)
    again = measure_intensity(images, data())
    assert np.allclose(again.windows, rule.windows, rtol=0.005)
    assert len(np.unique(decode_image(images[2], again))) > 250


def test_many_images_are_measured_by_a_part_of_them(tmp_path: Path) -> None:
    """In which both kinds of an alternating set are."""
    tile = np.full((8, 8), 1000, np.uint16)
    images = files(tmp_path, 2 * MOST_IMAGES, lambda i: (".png", tile * (i % 2 + 1)))
    assert measure_intensity(images, data()).windows == ((1000.0, 2000.0),)


def test_eight_bits_are_as_they_are(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    images = [[save(tmp_path / "a.png", rgb)], [save(tmp_path / "b.png", rgb[..., 0])], [save(tmp_path / "c.png", rgb[..., 0] > 99)]]
    rule = measure_intensity(images, data())
    assert rule.kind == "8-bit"
    assert np.array_equal(decode_image(images[0], rule), rgb)
    assert np.array_equal(decode_image(images[1], rule), np.repeat(rgb[..., :1], 3, 2))
    assert np.array_equal(decode_image(images[2], rule)[..., 1], (rgb[..., 0] > 99) * 255)
    assert all(decode_image(paths, rule).dtype == np.uint8 for paths in images)
    assert measure_intensity(images, data(window=(0, 100))).notes == (
        "data.window changes nothing: all training images have 8 bits, which are taken as they are",
    )


def test_a_mix_of_depths_is_refused_and_each_remedy_helps(tmp_path: Path) -> None:
    images = files(tmp_path / "deep", 3, DEEP["14 bits"]) + files(tmp_path / "plain", 2, lambda i: (".png", scene(i).astype(np.uint8)))
    with pytest.raises(
        UserError, match=r"2 training images have 8 bits \(such as 000\.png\), and 3 are deeper \(such as 000\.png\)"
    ) as caught:
        measure_intensity(images, data())
    assert "data.window" in caught.value.todo
    for window in ((0, 16320), "percentiles"):
        rule = measure_intensity(images, data(window=window))
        plain = decode_image(images[3], rule)
        assert plain.dtype == np.uint16
        assert np.array_equal(plain[..., 0], scene(0).astype(np.uint8) * np.uint16(257))
        assert "images of 8 bits are taken as they are" in rule.describe()
        assert len(np.unique(decode_image(images[0], rule))) > 250


def test_another_depth_than_in_training_is_refused(tmp_path: Path) -> None:
    deep, plain = files(tmp_path / "a", 2, DEEP["14 bits"]), files(tmp_path / "b", 2, lambda i: (".png", scene(i).astype(np.uint8)))
    with pytest.raises(UserError, match=r"has 16 bits \(uint16\), and the training images have 8 bits") as caught:
        decode_image(deep[0], measure_intensity(plain, data()))
    assert caught.value.where == str(deep[0][0])
    with pytest.raises(UserError, match="has 8 bits, and the training images have more"):
        decode_image(plain[0], measure_intensity(deep, data()))
    other = files(tmp_path / "c", 1, DEEP["float 0 to 1"])
    with pytest.raises(UserError, match="all of them beyond those of the training images"):  # else all of it would be black
        decode_image(other[0], measure_intensity(deep, data()))


def test_a_window_is_used_as_given(tmp_path: Path) -> None:
    images = files(tmp_path, 2, DEEP["Hounsfield"])
    rule = measure_intensity(images, data(window=(-500, 0)))
    assert rule.describe() == "images: 16 bits with sign, 1 channel; -500 to 0 become black to white"
    stored = tifffile.imread(images[0][0]).astype(float)
    assert np.array_equal(decode_image(images[0], rule)[..., 2], np.rint(np.clip((stored + 500) / 500, 0, 1) * 65535))
    three = measure_intensity(images, data(window=((-1000, 0), (-500, 0), (-200, 300))))  # grey in three windows
    image = decode_image(images[0], three)
    assert np.array_equal(image[..., 1], decode_image(images[0], rule)[..., 0])
    assert (image[..., 0] != image[..., 2]).any()
    with pytest.raises(UserError, match="no pixel of the training images lies within: they hold -") as caught:
        measure_intensity(images, data(window=(5000, 9000)))
    assert "percentiles" in caught.value.todo


def test_what_is_no_number_is_black_and_not_measured(tmp_path: Path) -> None:
    def of(i: int) -> tuple[str, np.ndarray]:
        image = scene(i).astype(np.float32)
        image[:40] = np.nan
        image[40], image[41] = np.inf, -np.inf
        return ".tif", image

    images = files(tmp_path, 3, of)
    rule = measure_intensity(images, data())
    assert 0 <= rule.windows[0][0] < rule.windows[0][1] <= 255
    image = decode_image(images[0], rule)
    assert not image[:42].any()
    assert image[42:].mean() > 20_000
    empty = save(tmp_path / "empty.tif", np.full((8, 8), np.nan, np.float32))
    with pytest.raises(UserError, match="holds no number") as caught:
        decode_image([empty], rule)
    assert caught.value.where == str(empty)
    with pytest.raises(UserError, match="no training image holds a number"):
        measure_intensity([[empty]], data())


def test_colours_stay_colours_and_files_have_windows_of_their_own(tmp_path: Path) -> None:
    rgb = np.stack([scene(0) * 10, scene(0) * 20, scene(0) * 5], -1).astype(np.uint16)
    colours = [[save(tmp_path / "rgb.tif", rgb)]]
    rule = measure_intensity(colours, data())
    assert len(rule.windows) == 1
    image = decode_image(colours[0], rule).astype(float)
    low, high = rule.windows[0]
    inside = (rgb > low).all(-1) & (rgb < high).all(-1)
    assert np.allclose(image[inside] / 65535 * (high - low) + low, rgb[inside], atol=0.1)
    two = [
        [save(tmp_path / f"{i}_0.tif", (scene(i) * 50).astype(np.uint16)), save(tmp_path / f"{i}_1.tif", scene(i).astype(np.float32))]
        for i in (0, 1)
    ]
    apart = measure_intensity(two, data(channels=2))
    assert len(apart.windows) == 2
    assert apart.windows[0][1] > 20 * apart.windows[1][1]
    pair = decode_image(two[0], apart, 2).astype(float)
    assert pair.shape == (SIDE, SIDE, 2)
    assert np.corrcoef(pair[..., 0].reshape(-1), pair[..., 1].reshape(-1))[0, 1] > 0.99
    with pytest.raises(UserError, match="is an image of 1 file, and the training images have 2"):
        decode_image(two[0][:1], apart, 2)
    mixed = [[paths[0], save(tmp_path / f"{i}_2.png", scene(i).astype(np.uint8))] for i, paths in enumerate(two)]
    rule = measure_intensity(mixed, data(channels=2))  # one depth per file is no mix
    assert np.array_equal(decode_image(mixed[0], rule, 2)[..., 1], scene(0).astype(np.uint8) * np.uint16(257))
    assert "file 2: as they are" in rule.describe()
    plain = measure_intensity([paths[1:] * 2 for paths in mixed], data(channels=2))
    assert plain.describe() == "images: 2 files of 8 bits, 1 channel each; taken as they are"


@pytest.mark.parametrize(
    ("shape", "channels", "words"),
    [((9, 7, 3), 4, "has 3 channels, but data.channels is 4"), ((9, 7), 2, "has 1 channel, but"), ((9, 7, 3), 2, "has 3 channels, but")],
)
def test_another_number_of_channels_is_refused(tmp_path: Path, shape: tuple[int, ...], channels: int, words: str) -> None:
    path = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    rule = measure_intensity([[path]], data(channels=channels))
    with pytest.raises(UserError, match=words) as caught:
        decode_image([path], rule, channels)
    number = int(caught.value.todo.partition("data.channels=")[2].split()[0])
    assert decode_image([path], rule, number).shape == (9, 7, number)  # the advice is right


def test_several_channels_of_one_file(tmp_path: Path) -> None:
    five = np.random.default_rng(0).integers(0, 4096, (20, 30, 5)).astype(np.uint16)
    path = tmp_path / "five.tif"
    tifffile.imwrite(path, five, photometric="minisblack", planarconfig="contig")
    rule = measure_intensity([[path]], data(channels=5))
    assert decode_image([path], rule, 5).shape == (20, 30, 5)
    assert rule.describe().startswith("images: 16 bits, 5 channels; ")
    with pytest.raises(UserError, match="has 5 channels, but"):
        decode_image([path], rule, 3)


def test_one_channel_of_colours_is_their_luminance(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    path, grey = save(tmp_path / "a.png", rgb), save(tmp_path / "b.png", np.repeat(rgb[..., :1], 3, 2))
    rule = measure_intensity([[path]], data(channels=1))
    assert rule.notes == ("images in colours become grey (their luminance), for data.channels is 1",)
    assert np.array_equal(decode_image([path], rule, 1)[..., 0], np.asarray(Image.open(path).convert("L")))
    rule = measure_intensity([[grey]], data(channels=1))
    assert rule.notes == ()
    assert np.array_equal(decode_image([grey], rule, 1), rgb[..., :1])
    deep = [[save(tmp_path / "a.tif", rgb.astype(np.uint16) * 50)]]
    image = decode_image(deep[0], measure_intensity(deep, data(channels=1)), 1)
    assert np.corrcoef(image.reshape(-1), (rgb @ [0.299, 0.587, 0.114]).reshape(-1))[0, 1] > 0.999


def test_transparent_pixels_are_black_and_not_measured(tmp_path: Path) -> None:
    values = (scene(0) * 50).astype(np.uint16)[..., None]
    alpha = np.where(np.arange(SIDE) < 30, 0, 65535).astype(np.uint16)[:, None].repeat(SIDE, 1)
    rule = IntensityRule("percentiles", ((0.0, 10_000.0),), ("deep",))
    image = apply(rule, [Raw(values, 65535, alpha)], 3)
    assert not image[:30].any()
    assert np.array_equal(image[30:], apply(rule, [Raw(values, 65535)], 3)[30:])


def test_the_files_of_one_image_have_one_size(tmp_path: Path) -> None:
    paths = [save(tmp_path / "a.png", np.zeros((9, 7), np.uint8)), save(tmp_path / "b.png", np.zeros((7, 9), np.uint8))]
    with pytest.raises(UserError, match=r"differ in size: this is 9x7 pixels, and a\.png 7x9"):
        decode_image(paths, measure_intensity([paths], data(channels=2)), 2)


def test_unreadable_images_are_not_measured(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    images = files(tmp_path, 2, DEEP["14 bits"])
    assert measure_intensity([*images, [broken], [tmp_path / "absent.png"]], data()) == measure_intensity(images, data())
    with pytest.raises(UserError, match=r"broken\.png"):
        measure_intensity([[broken]], data())


def test_the_rule_is_plain_json(tmp_path: Path) -> None:
    images = files(tmp_path, 2, DEEP["float 0 to 1"])
    for window in (None, (0, 0.5), ((0, 0.5), (0, 0.25), (0, 1))):
        rule = measure_intensity(images, data(window=window))
        assert IntensityRule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


def test_images_of_one_value_have_a_rule(tmp_path: Path) -> None:
    images = files(tmp_path, 2, lambda i: (".tif", np.full((8, 8), -1000, np.int16)))
    assert not decode_image(images[0], measure_intensity(images, data())).any()
