"""What the values of masks mean: one rule for a data set, by meaning and not by brightness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from guidino_tune.config.data import IGNORED, Data
from guidino_tune.config.parsing import read_value
from guidino_tune.data.cases import Case
from guidino_tune.data.decoding import read_mask
from guidino_tune.data.labels import LabelRule
from guidino_tune.data.rules import foreground_shares, label_rule, survey_masks
from guidino_tune.errors import UserError

SIDE = 48
Array = np.ndarray
Writer = Callable[[Path, Array, int], Path]


def truth(i: int) -> Array:
    """An ellipse, (48, 48) of bool."""
    random = np.random.default_rng(i)
    y, x = np.mgrid[:SIDE, :SIDE]
    cy, cx = random.uniform(16, SIDE - 16, 2)
    a, b = random.uniform(6, 14, 2)
    return ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 < 1


def save(path: Path, array: Array, **options: Any) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def palette_image(indices: Array, colours: Sequence[Sequence[int]]) -> Image.Image:
    picture = Image.fromarray(indices.astype(np.uint8), mode="P")
    picture.putpalette([part for colour in colours for part in colour])
    return picture


def painted(colour: Sequence[int]) -> Writer:
    def write(path: Path, mask: Array, i: int) -> Path:
        return save(path.with_suffix(".png"), (mask[..., None] * np.array(colour)).astype(np.uint8))

    return write


def grey(value: int, kind: type = np.uint8) -> Writer:
    return lambda path, mask, i: save(path.with_suffix(".png"), (mask * value).astype(kind))


def turned_palette(path: Path, mask: Array, i: int) -> Path:
    palette_image(~mask, [(200, 30, 30), (0, 0, 0)]).save(path.with_suffix(".png"))  # entry 0 is the lesion
    return path.with_suffix(".png")


def in_alpha(path: Path, mask: Array, i: int) -> Path:
    return save(path.with_suffix(".png"), np.dstack([np.zeros((SIDE, SIDE, 3), np.uint8), (mask * 255).astype(np.uint8)]))


def cut_out(path: Path, mask: Array, i: int) -> Path:
    photograph = np.random.default_rng(i).integers(1, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    return save(path.with_suffix(".png"), np.dstack([photograph, (mask * 255).astype(np.uint8)]))


def on_white_glass(path: Path, mask: Array, i: int) -> Path:
    rgba = np.full((SIDE, SIDE, 4), (255, 255, 255, 0), np.uint8)
    rgba[mask] = (255, 0, 0, 255)
    return save(path.with_suffix(".png"), rgba)


def red_or_green(path: Path, mask: Array, i: int) -> Path:
    return painted((255, 0, 0) if i % 3 else (0, 255, 0))(path, mask, i)


def fraction(path: Path, mask: Array, i: int) -> Path:
    return save(path.with_suffix(".tif"), mask.astype(np.float32))


def one_bit(path: Path, mask: Array, i: int) -> Path:
    return save(path.with_suffix(".png"), mask)


HARD: dict[str, Writer] = {
    "white": grey(255),
    "ones": grey(1),
    "dark grey": grey(100),
    "16 bit": grey(1000, np.uint16),
    "largest 16 bit": grey(65535, np.uint16),
    "red": painted((255, 0, 0)),
    "blue": painted((0, 0, 255)),
    "dark red": painted((128, 0, 0)),
    "red or green": red_or_green,
    "palette whose first entry is the lesion": turned_palette,
    "alpha": in_alpha,
    "cut out": cut_out,
    "colour on transparent white": on_white_glass,
    "float": fraction,
    "one bit": one_bit,
}


def with_margin(path: Path, mask: Array, i: int) -> Path:
    """A palette whose last entry is a margin of no class, in its four top rows."""
    indices = mask.astype(np.uint8)
    indices[:4] = 255
    palette_image(indices, [(0, 0, 0), (128, 0, 0)] + [(9, 9, 9)] * 253 + [(224, 224, 192)]).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def made(folder: Path, write: Writer, number: int = 8) -> list[Path]:
    folder.mkdir(exist_ok=True)
    return [write(folder / f"{i:03d}", truth(i), i) for i in range(number)]


def rule_of(files: Sequence[Path], **settings: Any) -> LabelRule:
    data = Data(kind="folder", **settings)
    return label_rule(survey_masks([Case(path.stem, path, path, path.stem) for path in files], data), data)


def followed(files: Sequence[Path], advice: str, **settings: Any) -> LabelRule:
    """The rule after the settings of an advice were taken over."""
    for part in advice.split("--set ")[1:]:
        text = part.split("; ")[0].strip()
        name, _, value = text.strip("'").partition("=")
        settings[name.strip().removeprefix("data.")] = read_value(value.strip().strip("'"))
    return rule_of(files, **settings)


@pytest.mark.parametrize("name", HARD)
def test_two_values_are_background_and_foreground_whatever_they_are(name: str, tmp_path: Path) -> None:
    files = made(tmp_path, HARD[name])
    rule = rule_of(files)
    assert rule.text.startswith("masks: ")
    for i, path in enumerate(files):
        assert np.array_equal(read_mask(path, rule), truth(i)), name
    unseen = HARD[name](tmp_path / "test", truth(50), 50)
    assert np.array_equal(read_mask(unseen, rule), truth(50))
    assert LabelRule.from_dict(rule.to_dict()) == rule


@pytest.mark.parametrize(("ending", "options"), [(".jpg", {"quality": 60}), (".jpg", {"quality": 95}), (".png", {})])
@pytest.mark.parametrize("top", [255, 100])
def test_soft_borders_are_cut_half_way_between_the_levels_of_the_data_set(
    ending: str, options: dict[str, Any], top: int, tmp_path: Path
) -> None:
    for i in range(8):
        picture = Image.fromarray((truth(i) * top).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))
        picture.save(tmp_path / f"{i}{ending}", **options)
    files = sorted(tmp_path.iterdir())
    rule = rule_of(files)
    assert abs(rule.threshold - top / 2) <= 2
    for i, path in enumerate(files):
        stored = np.asarray(Image.open(path))
        assert np.array_equal(read_mask(path, rule), stored > rule.threshold)
        assert (read_mask(path, rule) == truth(i)).mean() > 0.99


def test_a_compressed_mask_of_real_colours_is_cut_by_its_strongest_channel(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / f"{i}.jpg", (truth(i)[..., None] * np.array([140, 0, 0])).astype(np.uint8), quality=95, subsampling=0)
    files = sorted(tmp_path.iterdir())
    rule = rule_of(files)
    assert all((read_mask(path, rule) == truth(i)).mean() > 0.99 for i, path in enumerate(files))


def void(path: Path, mask: Array, i: int) -> Path:
    labels = mask.astype(np.uint8)
    labels[:6] = 255
    return save(path.with_suffix(".png"), labels)


def test_a_value_beside_the_labels_is_refused_with_every_reading(tmp_path: Path) -> None:
    files = made(tmp_path, void)
    with pytest.raises(UserError, match="0, 1 and 255") as caught:
        rule_of(files)
    assert "data.ignore_label=255" in caught.value.todo
    assert "data.labels={class_1: 1, class_2: 255}" in caught.value.todo
    rule = followed(files, "--set data.ignore_label=255")
    for i, path in enumerate(files):
        mask = read_mask(path, rule)
        assert (mask[:6] == IGNORED).all()
        assert np.array_equal(mask[6:], truth(i)[6:])
    classes = followed(files, next(way for way in caught.value.todo.split("; ") if "data.labels" in way))
    assert set(np.unique(read_mask(files[0], classes))) <= {0, 1, 2}
    assert (read_mask(files[0], classes)[:6] == 2).all()


@pytest.mark.parametrize(("value", "word"), [(0, "empty"), (255, "full")])
def test_masks_without_a_difference_are_refused(value: int, word: str, tmp_path: Path) -> None:
    files = made(tmp_path, lambda path, mask, i: save(path.with_suffix(".png"), np.full((SIDE, SIDE), value, np.uint8)))
    with pytest.raises(UserError, match=f"all 8 training and validation masks are {word}"):
        rule_of(files)


def instances(kind: type = np.uint8, step: int = 1) -> Writer:
    def write(path: Path, mask: Array, i: int) -> Path:
        numbered = np.zeros((SIDE, SIDE), kind)
        for number in range(3 + 5 * i):
            y, x = divmod(number, 7)
            numbered[y * 6 : y * 6 + 4, x * 6 : x * 6 + 4] = (number + 1) * step
        return save(path.with_suffix(".png"), numbered)

    return write


@pytest.mark.parametrize(("kind", "step"), [(np.uint8, 1), (np.uint16, 1), (np.uint8, 6), (np.uint16, 1000)])
def test_numbered_objects_are_refused_and_the_advice_is_right(kind: type, step: int, tmp_path: Path) -> None:
    files = made(tmp_path, instances(kind, step))
    with pytest.raises(UserError, match="the masks hold 0, ") as caught:
        rule_of(files)
    assert "--set data.masks=instances" in caught.value.todo
    rule = followed(files, "--set data.masks=instances")
    for path in files:
        assert np.array_equal(read_mask(path, rule), np.asarray(Image.open(path)) > 0)


def test_numbered_objects_in_colours_are_refused(tmp_path: Path) -> None:
    def write(path: Path, mask: Array, i: int) -> Path:
        numbered = np.asarray(Image.open(instances()(path, mask, i)))
        colours = np.random.default_rng(i).integers(1, 255, (256, 3), dtype=np.uint8)
        colours[0] = 0
        return save(path.with_suffix(".png"), colours[numbered])

    files = made(tmp_path, write)
    with pytest.raises(UserError, match="different values") as caught:
        rule_of(files)
    rule = followed(files, caught.value.todo.split("; ")[0])
    assert all(np.array_equal(read_mask(path, rule), np.asarray(Image.open(path)).any(axis=2)) for path in files)


def levels(*values: int | tuple[int, int, int]) -> Writer:
    """Background and two regions in each file."""

    def write(path: Path, mask: Array, i: int) -> Path:
        shape = (SIDE, SIDE, 3) if isinstance(values[-1], tuple) else (SIDE, SIDE)
        array = np.zeros(shape, np.uint8)
        array[:] = values[0]
        array[mask] = values[1]
        array[mask & (np.arange(SIDE) % 2 == i % 2)[None] & (np.arange(SIDE) > 20)[:, None]] = values[1]
        array[30:44, 30:44] = values[2]
        return save(path.with_suffix(".png"), array)

    return write


@pytest.mark.parametrize("values", [(0, 128, 255), (0, 1, 2), ((0, 0, 0), (0, 255, 0), (255, 0, 0)), (0, 60, 61)])
def test_several_levels_in_a_file_are_refused_and_the_advice_is_right(values: tuple[Any, ...], tmp_path: Path) -> None:
    files = made(tmp_path, levels(*values))
    with pytest.raises(UserError, match="which of them is the foreground") as caught:
        rule_of(files)
    way = next(way for way in caught.value.todo.split("; ") if "class" in way)
    rule = followed(files, way)
    for path in files:
        array = np.asarray(Image.open(path))
        parts = [(array == np.array(value)).all(axis=2) if array.ndim == 3 else array == value for value in values]
        mask = read_mask(path, rule)
        assert np.array_equal(mask == 2, parts[2])
        assert np.array_equal(mask == 1, parts[1])


def test_without_a_black_background_nothing_is_guessed(tmp_path: Path) -> None:
    files = made(tmp_path, lambda path, mask, i: save(path.with_suffix(".png"), np.where(mask, 2, 1).astype(np.uint8)))
    with pytest.raises(UserError, match="1 and 2") as caught:
        rule_of(files)
    rule = followed(files, caught.value.todo)
    assert np.array_equal(read_mask(files[0], rule), truth(0))


def test_labels_map_values_and_colours_to_named_classes(tmp_path: Path) -> None:
    files = made(tmp_path, levels((0, 0, 0), (255, 0, 0), (0, 255, 0)))
    rule = rule_of(files, labels={"polyp": [0, 255, 0], "tool": [255, 0, 0]})
    assert "polyp is (0, 255, 0)" in rule.text
    assert (read_mask(files[0], rule)[30:44, 30:44] == 1).all()
    one = rule_of(files, labels={"background": [[0, 0, 0], [255, 0, 0]], "polyp": [0, 255, 0]})
    assert np.array_equal(read_mask(files[0], one), (np.asarray(Image.open(files[0])) == (0, 255, 0)).all(axis=2))
    with pytest.raises(UserError, match=r"says nothing of \(255, 0, 0\)"):
        rule_of(files, labels={"polyp": [0, 255, 0]})


def test_labels_count_indices_of_a_palette_where_they_are_numbers(tmp_path: Path) -> None:
    files = made(tmp_path, with_margin)
    for settings in ({"labels": {"lesion": 1}, "ignore_label": 255}, {"ignore_label": 255}):
        mask = read_mask(files[0], rule_of(files, **settings))
        assert (mask[:4] == IGNORED).all()
        assert np.array_equal(mask[4:], truth(0)[4:])


def test_a_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    files = made(tmp_path, grey(255))
    rule = rule_of(files)
    odd = save(tmp_path / "odd.png", truth(3).astype(np.uint8) * 7)
    with pytest.raises(UserError, match=r"holds 7; that does not fit the rule of this data set \(masks: 0 and 255") as caught:
        read_mask(odd, rule)
    assert str(odd) in caught.value.where


def test_a_faint_mask_among_compressed_ones_is_named_and_an_empty_one_is_not(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / f"{i}.jpg", (truth(i) * 255).astype(np.uint8))
    rule = rule_of(sorted(tmp_path.iterdir()))
    save(tmp_path / "faint.jpg", (truth(1) * 90).astype(np.uint8))
    save(tmp_path / "empty.jpg", np.full((SIDE, SIDE), 2, np.uint8))
    save(tmp_path / "ones.png", truth(1).astype(np.uint8))
    assert not read_mask(tmp_path / "empty.jpg", rule).any()
    for name in ("faint.jpg", "ones.png"):
        with pytest.raises(UserError, match="all of it would be background"):
            read_mask(tmp_path / name, rule)


def test_files_of_one_image_are_united_and_must_have_one_size(tmp_path: Path) -> None:
    files = made(tmp_path, grey(255))
    rule = rule_of(files)
    assert np.array_equal(read_mask(files[:3], rule), truth(0) | truth(1) | truth(2))
    small = save(tmp_path / "small.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(UserError, match="differ in size"):
        read_mask([files[0], small], rule)


def test_shares_of_foreground_follow_the_rule(tmp_path: Path) -> None:
    files = made(tmp_path, red_or_green)
    data = Data(kind="folder")
    surveyed = survey_masks([Case(path.stem, path, path, path.stem) for path in files], data)
    shares = foreground_shares(surveyed, label_rule(surveyed, data))
    assert shares == pytest.approx({path.stem: truth(i).mean() for i, path in enumerate(files)})


def test_one_odd_file_is_named_and_has_no_say_where_bad_cases_are_left_out(tmp_path: Path) -> None:
    files = made(tmp_path, grey(255), 20)
    odd = save(tmp_path / "005.png", truth(5).astype(np.uint8) * 7)
    with pytest.raises(UserError, match="holds 0 and 7; that does not fit the rule of this data set") as caught:
        rule_of(files)
    assert caught.value.where == str(odd)
    assert rule_of(files, bad_cases="skip") == rule_of([file for file in files if file != odd])
