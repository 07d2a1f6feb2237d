from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import label

from guidino_tune import prepare
from guidino_tune.data.sources import demo
from guidino_tune.errors import UserError


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "COUNTS", {"train": 4, "validation": 2, "test": 1})
    monkeypatch.setattr(demo, "SIZE", 32)


@examples(10)
@given(st.integers(0, 10**6), st.sampled_from([48, 64, 96]))
def test_a_picture_has_a_lesion_within_what_the_lens_shows(number: int, size: int) -> None:
    image, mask = demo.generate(number, size)
    assert image.shape == (size, size, 3)
    assert mask.shape == (size, size)
    assert image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 255}
    assert 0.003 < (mask > 0).mean() < 0.45
    assert image[mask > 0].mean() > 35  # neither in the black surround nor in the lumen
    corners = np.stack([image[0, 0], image[0, -1], image[-1, 0], image[-1, -1]])
    assert corners.max() < 30
    assert image.std() > 20


def test_the_number_alone_decides_the_picture() -> None:
    first, again, other = demo.generate(7, 64), demo.generate(7, 64), demo.generate(8, 64)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert np.abs(first[0].astype(int) - other[0]).mean() > 5


def test_the_same_scene_at_any_size() -> None:
    for number in range(6):
        small, large = demo.generate(number, 64), demo.generate(number, 128)
        shrunk = large[0].reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert np.corrcoef(shrunk.ravel(), small[0].ravel())[0, 1] > 0.95
        halved = large[1].reshape(64, 2, 64, 2).mean((1, 3)) > 127
        assert 2 * (halved & (small[1] > 0)).sum() / (halved.sum() + (small[1] > 0).sum()) > 0.95


def test_no_lesion_reaches_into_the_black_surround() -> None:
    for image, mask in (demo.generate(number, 64) for number in range(60)):
        surround = (image == image[0, 0]).all(-1)
        assert surround.mean() > 0.02
        assert not (surround & (mask > 0)).any()


def test_some_pictures_have_two_lesions_and_none_has_more_than_a_few() -> None:
    counts = [label(demo.generate(number, 64)[1])[1] for number in range(60)]
    assert min(counts) >= 1
    assert max(counts) <= 4
    assert 3 <= sum(count >= 2 for count in counts) <= 30


def test_neither_colour_nor_place_gives_the_lesions_away() -> None:
    pictures = [demo.generate(number, 64) for number in range(60)]
    truth = np.stack([mask > 0 for _, mask in pictures])
    images = np.stack([image for image, _ in pictures]).astype(np.float64)

    def dice(guess: np.ndarray) -> float:
        return float((2 * (guess & truth).sum((1, 2)) / (guess.sum((1, 2)) + truth.sum((1, 2)))).mean())

    place = truth.mean(0)
    assert max(dice(np.broadcast_to(place > level, truth.shape)) for level in np.linspace(0, 0.4, 41)) < 0.4
    features = [images[..., c] for c in range(3)] + [images.mean(-1), images[..., 0] / (1 + images.mean(-1))]
    for feature in features:
        for share in np.linspace(2, 98, 33):
            level = np.percentile(feature, share, (1, 2))[:, None, None]
            assert dice(feature > level) < 0.45
            assert dice(feature < level) < 0.45


@pytest.mark.usefixtures("few")
def test_find_draws_once_and_lists_the_published_split(tmp_path: Path) -> None:
    listing = demo.find(tmp_path / "demo")
    assert [case.id for case in listing.cases] == [f"demo_{n:03d}" for n in range(7)]
    assert list(listing.published.values()) == ["train"] * 4 + ["validation"] * 2 + ["test"]
    assert all(case.group == case.id for case in listing.cases)
    image, mask = demo.generate(3, 32)
    case = listing.cases[3]
    np.testing.assert_array_equal(np.asarray(Image.open(case.mask)), mask)
    decoded = np.asarray(Image.open(case.image)).astype(int)
    assert np.abs(decoded - image).mean() < 4  # JPEG
    before = case.image.stat().st_mtime_ns
    assert demo.find(tmp_path / "demo") == listing
    assert case.image.stat().st_mtime_ns == before
    assert os.listdir(tmp_path / "demo") == [f"v{demo.VERSION}"]


@pytest.mark.usefixtures("few")
def test_a_new_version_draws_new_images_in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = demo.find(tmp_path).cases[0].image.read_bytes()
    monkeypatch.setattr(demo, "VERSION", demo.VERSION + 1)
    assert demo.find(tmp_path).cases[0].image.read_bytes() != old
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.usefixtures("few")
def test_several_processes_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # keeps the small numbers that `few` has set
    processes = [context.Process(target=demo.find, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert os.listdir(tmp_path) == [f"v{demo.VERSION}"]
    assert len(demo.find(tmp_path).cases) == 7


@pytest.mark.usefixtures("few")
def test_a_slower_process_takes_the_images_of_the_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = demo.generate

    def overtaken(number: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        if number == 6:  # the last one: another process has just finished
            monkeypatch.setattr(demo, "generate", generate)
            demo.find(tmp_path)
        return generate(number, size)

    monkeypatch.setattr(demo, "generate", overtaken)
    assert len(demo.find(tmp_path).cases) == 7
    assert os.listdir(tmp_path) == [f"v{demo.VERSION}"]


@pytest.mark.usefixtures("few")
def test_mistakes_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        demo.find(tmp_path / "file")
    listing = demo.find(tmp_path / "demo")
    listing.cases[2].mask.unlink()
    with pytest.raises(UserError, match="demo_002 is not there") as caught:
        demo.find(tmp_path / "demo")
    assert "remove this folder" in caught.value.todo


@pytest.mark.usefixtures("few")
def test_prepare_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path))
    assert prepare.main(["demo"]) == 0
    out = capsys.readouterr().out
    assert f"demo: 7 images with masks in {tmp_path / 'datasets/demo'}" in out
    assert "split: 4 train, 2 validation, 1 test (published)" in out
    assert "guidino-tune search demo\n" in out
