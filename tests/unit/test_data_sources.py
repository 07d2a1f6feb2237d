"""Sources: layouts are found, pairs made, and what is missing is named."""

import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from guidino_tune.config import Data
from guidino_tune.data.cases import Case, Listing, stable_hash
from guidino_tune.data.sources import SOURCES, find_cases, folder, isic2017, kvasir, tn3k
from guidino_tune.errors import UserError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")  # sources look at names only


def kvasir_tree(root: Path, count: int = 6) -> list[str]:
    ids = [f"c{i}" for i in range(count)]
    touch(*(root / kind / f"{name}.jpg" for name in ids for kind in ("images", "masks")))
    return ids


def test_every_kind_of_the_configuration_has_a_source():
    assert set(SOURCES) == set(get_args(get_type_hints(Data)["kind"]))


def test_kvasir_without_lists_publishes_nothing(tmp_path):
    ids = kvasir_tree(tmp_path)
    touch(tmp_path / "images" / ".hidden.jpg", tmp_path / "images" / "notes.txt")
    listing = kvasir.find(tmp_path)
    assert [case.id for case in listing.cases] == ids
    assert listing.published == {}
    assert listing.cases[0] == Case("c0", tmp_path / "images/c0.jpg", tmp_path / "masks/c0.jpg", "c0")


def test_lists_publish_a_split_with_or_without_endings(tmp_path):
    kvasir_tree(tmp_path)
    (tmp_path / "train.txt").write_text("c0\nc1.jpg\n\n")
    (tmp_path / "val.txt").write_text("c2\r\n")
    (tmp_path / "test.txt").write_text("c3\n")
    listing = kvasir.find(tmp_path)
    assert listing.published == {"c0": "train", "c1": "train", "c2": "validation", "c3": "test"}
    assert [case.id for case in listing.cases] == ["c0", "c1", "c2", "c3"]
    assert "2 cases are left out" in listing.notes[0]
    assert "c4, c5" in listing.notes[0]


def test_without_a_train_list_the_rest_is_kept(tmp_path):
    kvasir_tree(tmp_path)
    (tmp_path / "test.txt").write_text("c3\n")
    listing = kvasir.find(tmp_path)
    assert len(listing.cases) == 6
    assert listing.published == {"c3": "test"}


def test_wrong_lists_are_errors(tmp_path):
    kvasir_tree(tmp_path)
    (tmp_path / "train.txt").write_text("c0\nc1\n")
    (tmp_path / "test.txt").write_text("c1\n")
    with pytest.raises(UserError, match="c1 is listed as train too"):
        kvasir.find(tmp_path)
    (tmp_path / "test.txt").write_text("c9\nc8\n")
    with pytest.raises(UserError, match="2 listed cases have no files: c8, c9"):
        kvasir.find(tmp_path)


@pytest.mark.parametrize("kind", ["kvasir", "isic2017", "tn3k", "folder"])
def test_missing_layout_says_what_where_and_how(tmp_path, kind):
    with pytest.raises(UserError) as caught:
        SOURCES[kind](tmp_path, "error")
    text = str(caught.value)
    assert str(tmp_path) in text
    assert "--data-root" in text
    assert (f"guidino-tune prepare {kind}" in text) == (kind != "folder")
    with pytest.raises(UserError, match="no such folder"):
        SOURCES[kind](tmp_path / "absent", "error")


def test_files_without_partner_are_counted_and_named_or_skipped(tmp_path):
    kvasir_tree(tmp_path)
    for name in ("c0", "c1", "c2", "c3"):
        (tmp_path / "masks" / f"{name}.jpg").unlink()
    with pytest.raises(UserError, match=r"4 images without mask: c0.jpg, c1.jpg, c2.jpg and 1 more"):
        kvasir.find(tmp_path)
    touch(tmp_path / "masks" / "z.jpg")
    listing = kvasir.find(tmp_path, "skip")
    assert [case.id for case in listing.cases] == ["c4", "c5"]
    assert len(listing.notes) == 2
    assert "1 masks without image: z.jpg" in listing.notes[1]


def test_folder_takes_suffixes_and_other_endings_and_refuses_two_masks(tmp_path):
    touch(*(tmp_path / "images" / name for name in ("a.png", "b.tif", "c.jpg")))
    touch(*(tmp_path / "masks" / name for name in ("a.png", "b_mask.png", "c_segmentation.bmp")))
    assert [(case.id, case.mask.name) for case in folder.find(tmp_path).cases] == [
        ("a", "a.png"),
        ("b", "b_mask.png"),
        ("c", "c_segmentation.bmp"),
    ]
    touch(tmp_path / "masks" / "a_mask.png")
    with pytest.raises(UserError, match="both masks of"):
        folder.find(tmp_path)


def test_an_image_called_mask_is_no_suffix(tmp_path):
    touch(*(tmp_path / sub / name for name in ("a.png", "a_mask.png") for sub in ("images", "masks")))
    assert [(case.id, case.mask.name) for case in folder.find(tmp_path).cases] == [("a", "a.png"), ("a_mask", "a_mask.png")]


def test_isic_ignores_superpixels_and_test_is_optional(tmp_path):
    def part(name, *ids):
        for i in ids:
            touch(tmp_path / f"{name}_Data" / f"{i}.jpg", tmp_path / f"{name}_Data" / f"{i}_superpixels.png")
            touch(tmp_path / f"{name}_Part1_GroundTruth" / f"{i}_segmentation.png")

    part("ISIC-2017_Training", "ISIC_1", "ISIC_2")
    part("ISIC-2017_Validation", "ISIC_3")
    listing = isic2017.find(tmp_path)
    assert listing.published == {"ISIC_1": "train", "ISIC_2": "train", "ISIC_3": "validation"}
    part("ISIC-2017_Test_v2", "ISIC_4")
    assert isic2017.find(tmp_path).published["ISIC_4"] == "test"
    (tmp_path / "ISIC-2017_Test_v2_Part1_GroundTruth" / "ISIC_4_segmentation.png").unlink()
    with pytest.raises(UserError, match="1 images without mask: ISIC_4"):
        isic2017.find(tmp_path)


def test_tn3k_keeps_cases_of_equal_names_and_groups_patients(tmp_path):
    for part, names in (("trainval", ("0000", "0001", "7_1", "7_2")), ("test", ("0000", "9_1"))):
        touch(*(tmp_path / f"{part}-{kind}" / f"{name}.jpg" for name in names for kind in ("image", "mask")))
    listing = tn3k.find(tmp_path)
    groups = {case.id: case.group for case in listing.cases}
    assert len(groups) == 6
    assert groups["trainval/7_1"] == groups["trainval/7_2"] == "7"
    assert groups["trainval/0000"] != groups["test/0000"]
    assert listing.published["trainval/0000"] == "trainval"
    assert listing.published["test/0000"] == "test"
    test = next(case for case in listing.cases if case.id == "test/0000")
    assert test.image == tmp_path / "test-image/0000.jpg"


def test_root_defaults_to_where_prepare_puts_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path))
    kvasir_tree(tmp_path / "datasets" / "kvasir")
    assert len(find_cases(Data(kind="kvasir")).cases) == 6


def test_listing_refuses_double_ids_and_unknown_parts(tmp_path):
    case = Case("a", tmp_path / "a.png", tmp_path / "b.png", "a")
    with pytest.raises(UserError, match="a"):
        Listing((case, case))
    with pytest.raises(ValueError, match="b"):
        Listing((case,), {"b": "train"})
    with pytest.raises(ValueError, match="val"):
        Listing((case,), {"a": "val"})
    with pytest.raises(UserError, match="no cases"):
        Listing(())


def test_stable_hash_is_the_same_everywhere_and_separates_its_parts():
    assert stable_hash("a", 1) == 204037149362935344  # from the first 16 digits of: printf 'a\\0001' | sha256sum
    assert stable_hash("a", "bc") != stable_hash("ab", "c")
    assert 0 <= stable_hash("x") < 2**63


def test_importing_sources_needs_no_decoder():
    code = (
        "import sys, guidino_tune.data.sources, guidino_tune.data.splits; assert not {'torch','monai','pyarrow','PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
