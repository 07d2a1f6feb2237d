"""Volumes are listed as their slices."""

from pathlib import Path

import numpy as np
import pytest
from layout_helpers import found

from guidino_tune.config import Data
from guidino_tune.data.reading import read_raw
from guidino_tune.data.splits import make_split, shared_groups
from guidino_tune.errors import UserError

nibabel = pytest.importorskip("nibabel")


def volume(path: Path, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 200, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return values


def test_volumes_are_their_slices_and_one_group(tmp_path):
    for n in range(5):
        values = volume(tmp_path / "images" / f"vol{n}.nii.gz", (8, 6, 10 + n), n)
        volume(tmp_path / "masks" / f"vol{n}.nii.gz", (8, 6, 10 + n), 9)
    listing = found(tmp_path)
    assert len(listing.cases) == 10 + 11 + 12 + 13 + 14
    assert {case.group for case in listing.cases} == {f"vol{n}" for n in range(5)}
    case = next(case for case in listing.cases if case.id == "vol4#07")
    assert (case.image.name, case.mask.name) == ("vol4.nii.gz#7", "vol4.nii.gz#7")
    assert np.array_equal(read_raw(case.image).values[..., 0], values[:, :, 7].T)
    assert listing.notes[:2] == (
        "layout: images/ and masks/, 5 cases",
        "5 volumes are taken as their slices (60 cases); no drawn split divides a volume",
    )
    split = make_split(listing, Data(kind="folder", validation_fraction=0.2, test_fraction=0.2))
    assert shared_groups(listing, split) == ()
    assert {case.group for case in found(tmp_path, group="vol[0-9]").cases} == {f"vol{n}" for n in range(5)}


def test_two_channels_of_nnunet_pair_by_number(tmp_path):
    for name in ("a", "b"):
        for channel in range(2):
            volume(tmp_path / "imagesTr" / f"{name}_{channel:04}.nii.gz", (8, 8, 3))
        volume(tmp_path / "labelsTr" / f"{name}.nii.gz", (8, 8, 3))
    listing = found(tmp_path)
    case = listing.cases[5]
    assert [path.name for path in (*case.images, case.mask)] == ["b_0000.nii.gz#2", "b_0001.nii.gz#2", "b.nii.gz#2"]
    assert listing.implied == {"channels": 2}


def test_an_image_of_one_slice_stays_one_and_what_is_no_pair_of_volumes_is_named(tmp_path):
    for n in range(3):
        for kind in ("images", "masks"):
            volume(tmp_path / kind / f"v{n}.nii", (8, 8, 1))
    assert [case.id for case in found(tmp_path).cases] == ["v0", "v1", "v2"]
    (tmp_path / "images" / "v1.nii").write_bytes(b"no nifti")
    with pytest.raises(UserError, match="cannot be decoded") as caught:
        found(tmp_path)
    assert caught.value.where.endswith("v1.nii")
    listing = found(tmp_path, bad_cases="skip")
    assert [case.id for case in listing.cases] == ["v0", "v2"]
    assert listing.notes[1].startswith("left out v1: ")
    volume(tmp_path / "images" / "v1.nii", (8, 8, 4))
    (tmp_path / "masks" / "v1.nii").rename(tmp_path / "masks" / "v1.png")
    with pytest.raises(UserError, match=r"is a volume of 4 slices, but v1\.png is none"):
        found(tmp_path)
