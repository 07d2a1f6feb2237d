"""The sources, decoding and splits on real files. GUIDINO_TUNE_DATA names the folder that holds them."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from guidino_tune.config import Data
from guidino_tune.data.copies import copies_in_files
from guidino_tune.data.decoding import read_case, read_mask
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.rules import plain_rules
from guidino_tune.data.sources import find_cases
from guidino_tune.data.sources.groups import guess_groups
from guidino_tune.data.splits import make_split, shared_groups
from guidino_tune.data.views import TrainViews
from guidino_tune.errors import UserError


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    root = os.environ.get("GUIDINO_TUNE_DATA")
    if not root:
        pytest.skip("GUIDINO_TUNE_DATA is not set")
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path))
    return Path(root)


PLAIN = plain_rules(Data(kind="folder"))
SETS = [
    ("kvasir", "kvasir-352", (795, 100, 100), "published"),
    ("isic2017", "isic2017-256", (135, 50, 15), "published validation, seeded test"),
    ("tn3k", "ddti-300", (71, 8, 40), "published test, seeded validation"),
]


@pytest.mark.parametrize(("kind", "folder", "counts", "origin"), SETS)
def test_real_sets_are_found_and_divided(root, kind, folder, counts, origin):
    listing = find_cases(Data(kind=kind, root=str(root / folder)))
    split = make_split(listing, Data(kind=kind))
    assert (len(split.train), len(split.validation), len(split.test)) == counts
    assert split.origin == origin
    assert shared_groups(listing, split) == ()
    assert listing.notes == ()


@pytest.mark.parametrize(("kind", "folder"), [(kind, folder) for kind, folder, *_ in SETS])
def test_real_cases_decode_to_masks_that_cover_a_sensible_part(root, kind, folder):
    cases = find_cases(Data(kind=kind, root=str(root / folder))).cases
    for case in cases[:: max(1, len(cases) // 25)]:
        image, mask = read_case(case, PLAIN)
        assert image.shape == (*mask.shape, 3)
        assert image.std() > 5
        assert set(np.unique(mask)) <= {0, 1}
        assert 0.001 < mask.mean() < 0.99, case.id


def test_ringing_of_real_jpeg_masks_is_background(root):
    ringing = 0
    for case in find_cases(Data(kind="kvasir", root=str(root / "kvasir-352"))).cases[:20]:
        stored = np.asarray(Image.open(case.mask).convert("L"))
        mask = read_mask(case.mask, PLAIN.labels)
        ringing += int(((stored > 0) & (mask == 0)).sum())
        assert not mask[stored < 100].any()
    assert ringing > 1000


def test_original_files_agree_with_their_resized_copies(root):
    """The same five polyps, unmodified and resized by someone else: an independent check of decoding and orientation."""
    small = {case.id: case for case in find_cases(Data(kind="kvasir", root=str(root / "kvasir-352"))).cases}
    compared = 0
    for case in find_cases(Data(kind="kvasir", root=str(root / "kvasir-original"))).cases:
        if case.id in small:
            _, mask = read_case(case, PLAIN)
            _, other = read_case(small[case.id], PLAIN)
            resized = np.asarray(Image.fromarray(mask).resize(other.shape[::-1], Image.Resampling.NEAREST))
            assert 2 * (resized & other).sum() / (resized.sum() + other.sum()) > 0.97
            compared += 1
    assert compared == 5


def test_original_isic_files_decode_and_half_a_layout_is_named(root):
    folder = root / "isic2017-original"
    for image in sorted((folder / "ISIC-2017_Validation_Data").glob("*.jpg")):
        mask = read_mask(folder / "ISIC-2017_Validation_Part1_GroundTruth" / f"{image.stem}_segmentation.png", PLAIN.labels)
        assert mask.any()
    with pytest.raises(UserError, match="no ISIC-2017_Training_Data/"):
        find_cases(Data(kind="isic2017", root=str(folder)))


def test_search_data_of_real_images_feeds_training(root, tmp_path):
    data = Data(kind="kvasir", root=str(root / "kvasir-352"), image_size=64, max_train_cases=12, max_validation_cases=4)
    opened = open_for_search(data, split_file=tmp_path / "split.json")
    batches = list(TrainViews(opened.train, data, 0, 4).epoch(0))
    assert [batch.images.shape for batch in batches] == [(4, 3, 64, 64)] * 3
    assert all(0 < batch.masks.float().mean() < 0.9 for batch in batches)


KVASIR_NEAR = {
    ("cju1hhj6mxfp90835n3wofrap", "cju3x9lttikfb0818a0g104zn"),
    ("cju3xhpvvimda0987ygrpzni2", "cju5bf6hxa6m50817rbwettgu"),
    ("cju42dwedlmk60871jbgu4ehi", "cju43b8daly4408170e5ev06g"),
    ("cju43b8daly4408170e5ev06g", "cju8bbznkrf5g0871jncffynk"),
    ("cju5fydrud94708507vo6oy21", "cju7avvi51iox0817ym55y6tt"),
    ("cju5jx7jzf7c90871c2i9aiov", "cjyzl833ndne80838pzuq6ila"),
    ("cju5vbo6jldrt0871jf6f1700", "cju7aqkue1i2k09879uzcpt8r"),
}
"""The near-copies of Kvasir-SEG that were judged by eye: the same polyp in two frames."""


@pytest.mark.parametrize(
    ("kind", "folder", "near"),
    [
        ("kvasir", "kvasir-352", KVASIR_NEAR),
        ("isic2017", "isic2017-256", set()),
        ("tn3k", "ddti-300", {("test/234_2", "test/234_3"), ("test/294_2", "test/294_3"), ("trainval/92_3", "trainval/92_4")}),
    ],
)
def test_near_copies_of_real_sets_are_those_that_an_eye_sees(root, kind, folder, near):
    found = copies_in_files(find_cases(Data(kind=kind, root=str(root / folder))).cases)
    assert (found.exact, set(found.near), found.unreadable) == ((), near, ())


def test_a_drawn_split_of_kvasir_divides_no_near_copies(root, tmp_path):
    shutil.copytree(root / "kvasir-352" / "images", tmp_path / "images")
    shutil.copytree(root / "kvasir-352" / "masks", tmp_path / "masks")  # without the lists
    divided = []
    for group_duplicates in (False, True):
        data = Data(kind="kvasir", root=str(tmp_path), image_size=64, group_duplicates=group_duplicates, validation_fraction=0.3)
        opened = open_for_search(data, cache=tmp_path / "cache")
        split = opened.split
        part_of = {name: part for part in ("train", "validation", "test") for name in getattr(split, part)}
        divided.append(sum(part_of[a] != part_of[b] for a, b in KVASIR_NEAR))
        assert len(part_of) == 995
        assert not any("near-copies (look at them) are in training and validation" in note for note in opened.notes)
        assert not any("inverted" in note or "empty" in note or "almost everywhere" in note for note in opened.notes)
    assert divided[0] > 0
    assert divided[1] == 0


def test_real_masks_turned_inside_out_are_told(root, tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for path in sorted((root / "kvasir-352" / "images").iterdir())[:60]:
        shutil.copy(path, tmp_path / "images")
        ImageOps.invert(Image.open(root / "kvasir-352" / "masks" / path.name).convert("L")).save(tmp_path / "masks" / path.name)
    opened = open_for_search(Data(kind="kvasir", root=str(tmp_path), image_size=64), cache=tmp_path / "cache")
    assert any("masks look inverted" in note for note in opened.notes)


def test_layouts_of_real_sets_are_found_as_they_lie(root):
    """At most two settings each, of which one says that the kind is ``folder``."""
    with pytest.raises(UserError, match="several folders could be the truth: 1st_manual/, mask/"):
        find_cases(Data(kind="folder", root=str(root / "drive-20")))
    for settings in ({"masks": "1st_manual"}, {"images": "*/images/*.tif", "masks": "*/1st_manual/*_manual1.gif"}):
        drive = find_cases(Data(kind="folder", root=str(root / "drive-20"), **settings))
        assert all(case.mask.parent.name == "1st_manual" and case.image.name[:2] == case.mask.name[:2] for case in drive.cases)
        assert sorted(drive.published.values()) == ["test"] * 10 + ["train"] * 10
    wbc = find_cases(Data(kind="folder", root=str(root / "wbc-120")))
    assert len(wbc.cases) == 100
    assert {(case.image.suffix, case.mask.suffix, case.image.stem == case.mask.stem) for case in wbc.cases} == {(".bmp", ".png", True)}
    nuclei = find_cases(Data(kind="folder", root=str(root / "nuclei-24")))
    assert len(nuclei.cases) == 24
    assert sum(len(case.masks) for case in nuclei.cases) == 547
    assert all(mask.parents[1] == case.image.parents[1] for case in nuclei.cases for mask in case.masks)


@pytest.mark.parametrize("folder", ["kvasir-352", "nuclei-24"])
def test_names_of_real_sets_raise_no_false_alarm(root, folder):
    names = [case.id for case in find_cases(Data(kind="folder", root=str(root / folder))).cases]
    assert guess_groups(names) is None


def test_names_of_isic_raise_no_false_alarm(root):
    assert guess_groups(case.id for case in find_cases(Data(kind="isic2017", root=str(root / "isic2017-256"))).cases) is None
