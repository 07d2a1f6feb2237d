"""``predict`` replaces no file but its own, takes every image that it is given, and says what it passes over."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from training_helpers import make_experiment

from guidino_tune.config import Experiment
from guidino_tune.data.files import ENDINGS, ending, slice_of, stem
from guidino_tune.data.sources.demo import generate
from guidino_tune.errors import UserError
from guidino_tune.models import build_model
from guidino_tune.predict import main as predict
from guidino_tune.training.checkpoints import WEIGHTS, save_weights
from guidino_tune.training.model_folder import export_model
from guidino_tune.workflows.prediction_files import by_channels, check_output, find_images, is_own, output_names, png


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    experiment = Experiment.from_dict(make_experiment("unet", guide=None).to_dict())
    (folder / "best").mkdir()
    save_weights(folder / "best" / WEIGHTS, build_model(experiment).trained_state())
    return export_model(folder / "best", experiment, folder / "model", {})


def picture(file: Path, seed: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(generate(seed, 24)[0]).save(file)
    return file


def contents(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.rglob("*")) if f.is_file()}


Shown = pytest.CaptureFixture[str]


def run(capsys: Shown, *argv: object) -> tuple[int, str, str]:
    code = predict([str(word) for word in argv])
    shown = capsys.readouterr()
    return code, " ".join(shown.out.split()), shown.err


def test_the_true_masks_of_a_data_set_are_not_replaced(model: Path, tmp_path: Path, capsys: Shown) -> None:
    data = tmp_path / "data"
    for number in range(20):
        picture(data / "images" / f"{number:02d}.png", number)
        picture(data / "masks" / f"{number:02d}.png", number)
    before = contents(data)
    code, out, err = run(capsys, model, data / "images", "--output", data)
    assert (code, out) == (2, "")
    assert f"{data / 'masks' / '00.png'}: predict did not write this file" in err
    assert "(20 of 40 files; nothing was changed)" in err
    assert "another --output" in err
    assert contents(data) == before
    # Following the advice works.
    assert run(capsys, model, data / "images", "--output", tmp_path / "elsewhere")[0] == 0
    assert len(list((tmp_path / "elsewhere" / "masks").iterdir())) == 20
    assert contents(data) == before


def test_masks_do_not_lie_among_true_ones_of_other_names(model: Path, tmp_path: Path, capsys: Shown) -> None:
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "masks" / "a_mask.jpg")
    before = contents(tmp_path)
    code, _, err = run(capsys, model, tmp_path / "images", "--output", tmp_path)
    assert (code, "1 images here are not of predict (such as a_mask.jpg)" in err) == (2, True)
    assert contents(tmp_path) == before


def test_the_same_command_replaces_its_own_but_nothing_that_was_edited(model: Path, tmp_path: Path, capsys: Shown) -> None:
    picture(tmp_path / "in" / "a.png")
    picture(tmp_path / "in" / "b.png", 1)
    arguments = (model, tmp_path / "in", "--output", tmp_path / "out")
    assert run(capsys, *arguments)[0] == 0
    before = contents(tmp_path / "out")
    code, out, _ = run(capsys, *arguments)
    assert (code, "2 masks of an earlier run were replaced" in out) == (0, True)
    assert contents(tmp_path / "out") == before
    (tmp_path / "in" / "a.png").write_bytes(b"")
    code, out, _ = run(capsys, *arguments)
    assert (code, "1 mask in" in out, "a mask of an earlier run was replaced" in out) == (1, True, True)  # the other is as it was
    picture(tmp_path / "in" / "a.png")
    (tmp_path / "out").rename(tmp_path / "moved")  # its own wherever they are
    assert run(capsys, *arguments[:-1], tmp_path / "moved")[0] == 0

    mask = tmp_path / "moved" / "masks" / "b.png"
    with Image.open(mask) as old:
        chunks, pixels = old.info, np.array(old)
    pixels[:2, :2] ^= 255
    from PIL.PngImagePlugin import PngInfo

    kept = PngInfo()
    for key, value in chunks.items():
        kept.add_text(key, value)
    Image.fromarray(pixels).save(mask, pnginfo=kept)  # corrected by hand, in a program that keeps the text of the file
    before = contents(tmp_path / "moved")
    code, _, err = run(capsys, *arguments[:-1], tmp_path / "moved")
    assert (code, f"{mask}: predict did not write this file, or it was changed since" in err) == (2, True)
    assert "(1 of 4 files" in err
    assert contents(tmp_path / "moved") == before


@pytest.mark.parametrize("what", ["folder", "link", "empty", "cut short"])
def test_whatever_is_in_the_way_stays(what: str, model: Path, tmp_path: Path, capsys: Shown) -> None:
    picture(tmp_path / "in" / "a.png")
    arguments = (model, tmp_path / "in", "--output", tmp_path / "out", "--no-overlays")
    assert run(capsys, *arguments)[0] == 0
    mask = tmp_path / "out" / "masks" / "a.png"
    if what == "cut short":
        mask.write_bytes(mask.read_bytes()[:-60])
    else:
        mask.rename(tmp_path / "mask.png")
        {"folder": mask.mkdir, "link": lambda: mask.symlink_to(tmp_path / "mask.png"), "empty": mask.touch}[what]()
    before = contents(tmp_path)
    assert run(capsys, *arguments)[0] == 2
    assert contents(tmp_path) == before
    assert mask.is_symlink() == (what == "link")


def test_output_inside_the_images_is_not_predicted_again(model: Path, tmp_path: Path, capsys: Shown) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "sub" / "a.png", 1)
    before = contents(tmp_path)
    for name in (".", "out", "out", "other"):
        code, out, _ = run(capsys, model, tmp_path, "--output", tmp_path / name)
        assert (code, "2 masks in" in out) == (0, True)
        assert {f.relative_to(tmp_path / name / "masks") for f in (tmp_path / name / "masks").rglob("*.png")} == {
            Path("a.png"), Path("sub/a.png"),
        }  # fmt: skip
    assert "passed over: 8 of predict itself" in out  # those in ./masks and out/masks, with their overlays
    assert before.items() <= contents(tmp_path).items()


def test_equal_stems_sub_folders_hidden_and_other_files(model: Path, tmp_path: Path, capsys: Shown) -> None:
    for name in ("a.png", "a.jpg", "b.jpg", "deep/er/a.TIFF", "c #1.png", ".hidden.png", ".folder/d.png"):
        picture(tmp_path / "in" / name)
    for name in ("notes.txt", "deep/table.txt", "README", "scan.zip"):
        (tmp_path / "in" / name).write_text("x")
    (tmp_path / "in" / "cut.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:60])
    (tmp_path / "in" / "round").symlink_to(tmp_path / "in")
    code, out, err = run(capsys, model, tmp_path / "in", "--output", tmp_path / "out")
    assert code == 1
    assert "5 masks in" in out
    assert "passed over: 1 without an ending, 2 .txt, 1 .zip, 2 hidden" in out
    assert "keep it in the names of their masks: a.jpg.png, a.png.png" in out
    names = {"a.jpg.png", "a.png.png", "b.png", "deep/er/a.png", "c #1.png"}
    for kind in ("masks", "overlays"):
        assert {str(f.relative_to(tmp_path / "out" / kind)) for f in (tmp_path / "out" / kind).rglob("*.*")} == names
    assert err.startswith(f"left out: {tmp_path / 'in' / 'cut.png'}: cannot be decoded")
    assert "bad_cases" not in err  # advice for a search, which does not help here
    assert all(is_own(f) for f in (tmp_path / "out").rglob("*.png"))


@pytest.mark.parametrize("mask", ["masks/{}.png", "images/{}_mask.png", "Ground Truth/{}.tif"])
def test_the_masks_of_a_data_set_are_no_images(mask: str, tmp_path: Path) -> None:
    for number in range(6):
        picture(tmp_path / "images" / f"{number:02d}.png", number)
        picture(tmp_path / mask.format(f"{number:02d}"), number)
    picture(tmp_path / "images" / "alone.png")
    found = find_images(tmp_path, tmp_path / "out")
    assert sorted(file.name for file in found.names) == [*(f"{number:02d}.png" for number in range(6)), "alone.png"]
    assert "passed over: 6 true masks" in found.notes


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("nowhere", "no such file or folder"),
        ("in/notes.txt", "the name is not that of an image"),
        ("empty", "no images"),
        ("in", "passed over: 2 .txt"),
    ],
)
def test_what_holds_no_images_is_told_by_its_name(path: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "empty").mkdir()
    for name in ("notes.txt", "more.TXT"):
        (tmp_path / "in" / name).write_text("x")
    with pytest.raises(UserError) as told:
        find_images(tmp_path / path, tmp_path / "out")
    assert str(told.value).startswith(str(tmp_path / path))
    assert expected in str(told.value)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/\xff.png")
    with pytest.raises(UserError, match="no UTF-8"):
        find_images(tmp_path, tmp_path / "out")


PARTS = st.sampled_from(["a", "b", "a.png", "a.jpg", "a.jpg.png", "v#1"])


@given(st.sets(st.builds(lambda folder, name, end: Path(folder) / f"{name}{end}", PARTS, PARTS, st.sampled_from(ENDINGS)), max_size=12))
@examples(40)
def test_no_two_images_share_a_mask(files: set[Path]) -> None:
    names = output_names(sorted(files))
    assert names.keys() == files
    assert len(set(map(png, names.values()))) == len(files)
    assert all(name.parent == file.parent and file.name.startswith(name.name) for file, name in names.items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a #1.png", (".png", "a #1", None)), ("v.nii.gz#12", (".nii.gz", "v#12", 12)), ("v#1.nii.gz#02", (".nii.gz", "v#1#02", 2)),
     ("#.jpg", (".jpg", "#", None)), ("a.png#3", ("", "a", None))],
)  # fmt: skip
def test_a_number_sign_is_that_of_a_slice_in_volumes_only(name: str, expected: tuple[str, str, int | None]) -> None:
    assert (ending(Path(name)), stem(Path(name)), slice_of(Path(name))[1]) == expected


def test_nothing_is_in_the_way_of_a_new_folder(tmp_path: Path) -> None:
    assert check_output(tmp_path / "new", [Path("a")], overlays=True) == set()
    assert not (tmp_path / "new").exists()


def test_images_of_several_files_are_one_image_each(tmp_path: Path) -> None:
    files = [tmp_path / f"{case}_{number:04d}.png" for case in ("a", "b_1") for number in (1, 0)]
    for file in (*files, tmp_path / "c_0000.png", tmp_path / "other.png"):
        file.touch()
    names = {file: Path(file.stem) for file in sorted(tmp_path.iterdir())}
    whole, problems = by_channels(names, 2)
    assert whole == {
        (tmp_path / "a_0000.png", tmp_path / "a_0001.png"): Path("a"),
        (tmp_path / "b_1_0000.png", tmp_path / "b_1_0001.png"): Path("b_1"),
    }
    assert len(problems) == 2
    assert any("of c there is _0000" in problem for problem in problems)
    one, none = by_channels({files[0]: Path("a_0001")}, 2)
    assert (list(one.values()), none) == ([Path("a")], [])
    assert by_channels(names, 1) == ({(file,): name for file, name in names.items()}, [])


def test_every_slice_of_a_volume_is_an_image(model: Path, tmp_path: Path, capsys: Shown) -> None:
    import nibabel

    (tmp_path / "in").mkdir()
    voxels = np.random.default_rng(0).integers(0, 255, (20, 16, 12), dtype=np.uint8)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "in" / "v.nii.gz")
    (tmp_path / "in" / "broken.nii").write_bytes(b"no volume")
    code, out, err = run(capsys, model, tmp_path / "in", "--output", tmp_path / "out")
    assert (code, "12 masks in" in out, "broken.nii" in err) == (1, True, True)
    masks = sorted((tmp_path / "out" / "masks").iterdir())
    assert [mask.name for mask in masks] == [f"v#{number:02d}.png" for number in range(12)]
    assert Image.open(masks[0]).size == (20, 16)
    assert run(capsys, model, tmp_path / "in" / "v.nii.gz#3", "--output", tmp_path / "one")[0] == 0
    assert np.array_equal(Image.open(tmp_path / "one" / "masks" / "v#3.png"), Image.open(masks[3]))


def test_arrays_of_numpy_are_images_and_archives_of_them_are_not(model: Path, tmp_path: Path, capsys: Shown) -> None:
    pixels = generate(0, 24)[0]
    for name, file in (("array", "in/a.npy"), ("picture", "picture/a.png")):
        (tmp_path / file).parent.mkdir()
        np.save(tmp_path / file, pixels) if name == "array" else Image.fromarray(pixels).save(tmp_path / file)
        assert run(capsys, model, tmp_path / file, "--output", tmp_path / name)[0] == 0
    assert np.array_equal(*(Image.open(tmp_path / name / "masks" / "a.png") for name in ("array", "picture")))
    np.savez(tmp_path / "in" / "b.npz", pixels)
    np.save(tmp_path / "in" / "c.npy", np.array([{"runs": "code"}]), allow_pickle=True)
    code, out, err = run(capsys, model, tmp_path / "in", "--output", tmp_path / "out")
    assert (code, "1 mask in" in out, "passed over: 1 .npz" in out) == (1, True, True)
    assert "c.npy: holds object, which are no real numbers" in err
