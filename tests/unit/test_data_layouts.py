"""Layouts of kind folder: found by themselves, said in one line, and refused where they could mean two things."""

from pathlib import Path

import numpy as np
import pytest
from layout_helpers import advised, files, found, touch
from PIL import Image

from guidino_tune.config import Data
from guidino_tune.data.sources.tree import meaning
from guidino_tune.data.splits import make_split, shared_groups
from guidino_tune.errors import UserError


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("images", ("image", "")), ("Imgs", ("image", "")), ("Original", ("image", "")), ("masks", ("mask", "")), ("GT", ("mask", "")),
        ("Ground Truth", ("mask", "")), ("GroundTruth", ("mask", "")), ("label_images", ("mask", "")), ("imagesTr", ("image", "tr")),
        ("train_masks", ("mask", "train")), ("Training", ("", "training")), ("1st_manual", ("", "")), ("ts", ("", "")), ("P00", ("", "")),
        ("data", ("", "")), ("lesion masks", ("", "")), ("images_png", ("image", "")),
    ],
)  # fmt: skip
def test_a_folder_says_what_all_its_words_say(name, says):
    assert meaning(name) == says


@pytest.mark.parametrize("pair", [("images", "masks"), ("Image", "Labels"), ("img", "gt"), ("imgs", "Ground Truth"), ("scans", "seg")])
def test_folders_of_usual_names_are_found_whatever_their_endings(tmp_path, pair):
    image, mask = pair
    endings = [".png", ".pgm", ".JPG", ".tif", ".jp2", ".npy", ".webp"]
    touch(tmp_path, *(f"{image}/{n:02}x{n}{endings[n % 7]}" for n in range(20)))
    touch(tmp_path, *(f"{mask}/{n:02}x{n}{endings[n % 3]}" for n in range(20)))
    listing = found(tmp_path)
    assert len(listing.cases) == 20
    assert listing.notes == (f"layout: {image}/ and {mask}/, 20 cases",)


def test_nested_folders_are_groups_and_part_of_the_id(tmp_path):
    names = [f"anna{p}/visit {v}/a{s}.png" for p in range(3) for v in range(2) for s in range(2)]
    touch(tmp_path, *(f"{kind}/{name}" for name in names for kind in ("images", "masks")), "images/anna0/.hidden.png", "images/Thumbs.db")
    listing = found(tmp_path)
    assert files(listing, tmp_path)["anna0/visit 1/a1"] == (["images/anna0/visit 1/a1.png"], ["masks/anna0/visit 1/a1.png"])
    assert {case.group for case in listing.cases} == {f"anna{p}/visit {v}" for p in range(3) for v in range(2)}
    assert listing.notes[0] == "layout: images/ and masks/, 12 cases; folders are groups (6)"
    assert listing.notes[-1] == "passed over: 1 .db"
    split = make_split(listing, Data(kind="folder", test_fraction=0.2, validation_fraction=0.2))
    assert shared_groups(listing, split) == ()
    [offer] = advised(listing.notes[1])
    off = found(tmp_path, **offer)
    assert len({case.group for case in off.cases}) == 12
    assert not any("folders are taken" in note for note in off.notes)


def test_masks_in_one_folder_of_images_in_several_pair_by_their_names(tmp_path):
    touch(tmp_path, "images/P1/a.png", "images/P2/b.png", "images/P3/c.png", *(f"masks/{n}.png" for n in "abc"))
    assert files(found(tmp_path), tmp_path)["P2/b"] == (["images/P2/b.png"], ["masks/b.png"])


def test_masks_beside_images_are_united_and_class_folders_offered(tmp_path):
    """The kind of `several-masks`, with other words."""
    for n in range(20):
        kind = "cyst" if n % 2 else "solid"
        touch(tmp_path, f"{kind}/{kind} [{n}].png", f"{kind}/{kind} [{n}]_seg.png")
        if n % 5 == 0:
            touch(tmp_path, f"{kind}/{kind} [{n}]_seg_2.png", f"{kind}/{kind} [{n}]_seg_10.png")
    listing = found(tmp_path)
    assert len(listing.cases) == 20
    assert files(listing, tmp_path)["solid/solid [0]"][1] == [f"solid/solid [0]_seg{end}.png" for end in ("", "_2", "_10")]
    assert {(case.stratum, case.group == case.id) for case in listing.cases} == {("cyst", True), ("solid", True)}
    assert listing.notes[0] == "layout: masks beside images, called NAME_seg, 20 cases; folders are classes (2)"
    assert "4 images have several masks (12 in all), which are united" in listing.notes[2]
    [offer] = advised(listing.notes[1])
    assert {case.group for case in found(tmp_path, **offer).cases} == {"cyst", "solid"}


def test_masks_beside_images_of_many_patients_are_grouped(tmp_path):
    names = [f"TCGA_{p}/TCGA_{p}_{s}" for p in range(1000, 1006) for s in range(3)]
    touch(tmp_path, *(f"{name}{end}.tif" for name in names for end in ("", "_mask")))
    listing = found(tmp_path)
    assert {case.group for case in listing.cases} == {f"TCGA_{p}" for p in range(1000, 1006)}
    assert "folders are groups (6)" in listing.notes[0]


@pytest.mark.parametrize(
    ("image", "mask"), [("image", "mask"), ("img", "label"), ("x_image", "x_mask"), ("img_x", "gt_x"), ("x", "mask_x")]
)
def test_image_and_mask_by_their_names_in_folders_of_their_own(tmp_path, image, mask):
    touch(tmp_path, *(f"case {n}/{name}.png" for n in "abcd" for name in (image, mask)))
    assert files(found(tmp_path), tmp_path)[f"case b/{image}"] == ([f"case b/{image}.png"], [f"case b/{mask}.png"])


def test_several_masks_in_a_folder_of_masks_are_united_and_never_halved(tmp_path):
    touch(tmp_path, *(f"images/c ({n}).png" for n in range(6)), *(f"masks/c ({n})_mask.png" for n in range(6)), "masks/c (0)_mask_1.png")
    assert [len(case.masks) for case in found(tmp_path).cases] == [2, 1, 1, 1, 1, 1]
    touch(tmp_path, "masks/c (3)_left.png")  # may be a part of the truth of (3)
    with pytest.raises(UserError, match=r"1 masks without image: c \(3\)_left.png"):
        found(tmp_path)
    listing = found(tmp_path, bad_cases="skip")
    assert [case.id for case in listing.cases] == [f"c ({n})" for n in (0, 1, 2, 4, 5)]
    assert any("c (3)_left.png may be a part of its truth" in note for note in listing.notes)


def test_two_masks_of_unlike_names_are_refused_or_left_out_whole(tmp_path):
    touch(tmp_path, *(f"images/{n}.png" for n in "abc"), *(f"masks/{n}.png" for n in "abc"), "masks/a_mask.png")
    with pytest.raises(UserError, match=r"a\.png and a_mask\.png are both masks of a\.png"):
        found(tmp_path)
    assert [case.id for case in found(tmp_path, bad_cases="skip").cases] == ["b", "c"]


def test_images_that_differ_in_the_ending_only_are_a_message_with_a_remedy(tmp_path):
    touch(tmp_path, *(f"images/{n}.{end}" for n in "abc" for end in ("png", "tif")), *(f"masks/{n}.png" for n in "abc"))
    with pytest.raises(UserError, match=r"a\.png and a\.tif have the same name") as caught:
        found(tmp_path)
    for offer in advised(caught.value.todo):
        end = offer["images"][-4:]
        assert {image for image, _ in files(found(tmp_path, **offer), tmp_path).values() for image in image} == {
            f"images/{n}{end}" for n in "abc"
        }


def test_a_folder_per_image_with_all_its_masks(tmp_path):
    for name in ("0a1b", "77c", "ffe"):
        touch(tmp_path, f"{name}/images/{name}.png", f"{name}/masks/m1.png", f"{name}/masks/{name[::-1]}.png")
    for settings in ({}, {"masks": "instances"}, {"masks": "instances:*/masks/*.png"}, {"masks": "masks"}):
        listing = found(tmp_path, **settings)
        assert [(case.id, case.group, len(case.masks)) for case in listing.cases] == [(n, n, 2) for n in ("0a1b", "77c", "ffe")]
    assert found(tmp_path).notes[0] == "layout: a folder per image, with images/ and masks/, 3 cases"


def test_folders_publish_a_split(tmp_path):
    def tree(root, form):
        for part, count in (("train", 6), ("val", 2), ("test", 3)):
            for kind in ("images", "masks"):
                touch(root, *(f"{form.format(part=part, kind=kind)}/{n}.png" for n in range(count)))

    for number, form in enumerate(("{part}/{kind}", "{kind}/{part}", "{part}_{kind}", "{kind}-{part}")):
        root = tmp_path / str(number)
        tree(root, form)
        listing = found(root)
        split = make_split(listing, Data(kind="folder"))
        assert (len(split.train), len(split.validation), len(split.test), split.origin) == (6, 2, 3, "published"), form
        assert "folders publish a split (train 6, validation 2, test 3)" in listing.notes[0]
        assert {case.group for case in listing.cases} == {case.id for case in listing.cases}
    (root / "train.txt").write_text("\n".join(f"train/{n}" for n in range(6)))
    (root / "validation.txt").write_text("val/0.png\nval/1")
    assert len(found(root).published) == 8  # the lists say more than the folders


def test_a_test_without_masks_is_told_and_a_single_part_is_no_split(tmp_path):
    touch(tmp_path, *(f"train/{kind}/{n}.png" for n in range(8) for kind in ("images", "masks")), "test/images/1.png", "test/images/2.png")
    listing = found(tmp_path)
    assert len(listing.cases) == 8
    assert any("2 test images have no masks and are not used" in note for note in listing.notes)
    assert listing.published == {}
    assert len(make_split(listing, Data(kind="folder")).test) == 1


def drive(root: Path, truth: str = "1st_manual", field: str = "mask") -> None:
    for part, numbers in (("training", range(21, 26)), ("test", range(1, 6))):
        for n in numbers:
            touch(root, f"{part}/images/{n:02}_{part}.tif", f"{part}/{truth}/{n:02}_manual1.gif", f"{part}/{field}/{n:02}_{part}_mask.gif")


@pytest.mark.parametrize(("truth", "field"), [("1st_manual", "mask"), ("vessels", "fov"), ("Expert A", "masks")])
def test_two_folders_that_could_be_the_truth_are_named_and_each_advice_works(tmp_path, truth, field):
    drive(tmp_path, truth, field)
    with pytest.raises(UserError, match="several folders could be the truth") as caught:
        found(tmp_path)
    assert truth in caught.value.what
    assert field in caught.value.what
    offers = advised(caught.value.todo)
    assert {offer["masks"] for offer in offers} == {truth, field}
    for offer in offers:
        listing = found(tmp_path, **offer)
        assert files(listing, tmp_path)["training/21_training"][1][0].startswith(f"training/{offer['masks']}/21")
        assert "folders publish a split (train 5, test 5)" in listing.notes[0]
    assert any("passed over: 5 .gif in test/" in note for note in listing.notes)


def test_a_folder_of_an_unknown_name_is_not_taken_silently(tmp_path):
    touch(tmp_path, *(f"{kind}/{n}.png" for n in "abc" for kind in ("images", "depthmaps")))
    with pytest.raises(UserError, match="depthmaps/ may be the truth, but its name does not say so") as caught:
        found(tmp_path)
    assert len(found(tmp_path, **advised(caught.value.todo)[0]).cases) == 3


def test_pictures_of_the_masks_are_no_second_truth(tmp_path):
    touch(tmp_path, *(f"{kind}/{n}.png" for n in "abc" for kind in ("images", "masks", "overlays")))
    assert found(tmp_path).notes == ("layout: images/ and masks/, 3 cases", "passed over: 3 .png in overlays/")


def test_two_folders_of_masks_or_of_images_are_refused(tmp_path):
    touch(tmp_path, *(f"{kind}/{n}.png" for n in "abc" for kind in ("images", "masks", "labels")))
    with pytest.raises(UserError, match="several folders could be the truth: labels/, masks/"):
        found(tmp_path)
    touch(tmp_path, *(f"imgs/{n}.png" for n in "abc"))
    with pytest.raises(UserError, match="several folders could be the images") as caught:
        found(tmp_path, masks=None)
    both = [found(tmp_path, masks="labels", **offer) for offer in advised(caught.value.todo)]
    assert {listing.cases[0].image.parent.name for listing in both} == {"images", "imgs"}


def pictures(root: Path, names: list[str], mode: str, end: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).convert(mode).save(root / f"{name}{end}")


@pytest.mark.parametrize(
    ("image", "mask"), [(("RGB", ".bmp"), ("L", ".png")), (("RGB", ".png"), ("1", ".tif")), (("RGB", ".jpg"), ("P", ".png"))]
)
def test_images_and_masks_of_equal_names_are_told_by_colour(tmp_path, image, mask):
    names = [f"x{n}y" for n in range(12)]
    pictures(tmp_path, names, *image)
    pictures(tmp_path, names, *mask)
    listing = found(tmp_path)
    assert {(case.image.suffix, case.mask.suffix) for case in listing.cases} == {(image[1], mask[1])}
    assert listing.notes == (f"layout: images {image[1]} and masks {mask[1]} of equal names, 12 cases",)


def test_equal_names_that_do_not_tell_are_an_error_with_the_right_advice(tmp_path):
    names = [f"x{n}y" for n in range(12)]
    for end in (".jpg", ".png"):
        pictures(tmp_path, names, "L", end)
    with pytest.raises(UserError, match=r"as \.jpg and as \.png: which of them are the masks cannot be told") as caught:
        found(tmp_path)
    offers = advised(caught.value.todo)
    assert [offer["masks"] for offer in offers] == ["*.jpg", "*.png"]
    for offer in offers:
        assert {case.mask.suffix for case in found(tmp_path, **offer).cases} == {offer["masks"][1:]}


def test_headers_of_test_files_are_not_looked_at(tmp_path, monkeypatch):
    names = [f"x{n:02}y" for n in range(40)]
    pictures(tmp_path, names, "RGB", ".bmp")
    pictures(tmp_path, names, "L", ".png")
    test = set(make_split(found(tmp_path), Data(kind="folder")).test)
    (tmp_path / "test.txt").write_text("\n".join(names[:20]))
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *rest: opened.append(Path(path).stem) or real(path, *rest))
    assert len(found(tmp_path).cases) == 40
    assert opened
    assert not set(opened) & (test | set(names[:20]))


@pytest.mark.parametrize(
    "settings",
    [
        {"images": "*/images/*.tif", "masks": "*/1st_manual/*_manual1.gif"},
        {"masks": "1st_manual"},
        {"masks": "*_manual1.gif"},
        {"masks": "*/1st_manual/*"},
        {"images": "images", "masks": "1st_manual"},
        {"images": "**/*.tif", "masks": "**/1st_*/*.gif"},
        {"images": "t*/images/[0-9]*.tif", "masks": "t*/1st_manual/??_manual1.gif"},
    ],
)
def test_named_images_and_masks(tmp_path, settings):
    drive(tmp_path)
    listing = found(tmp_path, **settings)
    assert files(listing, tmp_path)["test/03_test"] == (["test/images/03_test.tif"], ["test/1st_manual/03_manual1.gif"])
    assert len(listing.cases) == 10


def test_named_folders_of_any_name(tmp_path):
    touch(tmp_path, *(f"photos/{n}.jpg" for n in "abc"), *(f"outlines/{n}_outline.png" for n in "abc"), "extra/z.png")
    for settings in ({"images": "photos/*.jpg", "masks": "outlines/*_outline.png"}, {"images": "photos", "masks": "outlines"}):
        assert files(found(tmp_path, **settings), tmp_path)["b"] == (["photos/b.jpg"], ["outlines/b_outline.png"])
    assert len(found(tmp_path, masks="outlines").cases) == 3
    with pytest.raises(UserError, match=r"photos/ \(3 \.jpg\)"):
        found(tmp_path, masks="outline")


def test_names_that_do_not_pair_show_two_of_each_side(tmp_path):
    touch(tmp_path, *(f"images/{n}.png" for n in "abc"), *(f"masks/{n}.png" for n in "xyzw"))
    for settings in ({}, {"masks": "masks"}, {"images": "images/*", "masks": "masks/*"}):
        with pytest.raises(UserError) as caught:
            found(tmp_path, **settings)
        for name in ("images/a.png", "images/b.png", "masks/w.png", "masks/x.png"):
            assert name in caught.value.what


def test_numbers_are_never_cut_when_names_are_compared(tmp_path):
    touch(tmp_path, *(f"images/10{n}_a.png" for n in range(5)), *(f"masks/20{n}_b.png" for n in range(5)))
    with pytest.raises(UserError, match="no name of a mask is that of an image"):
        found(tmp_path)


def test_what_is_not_found_says_what_was_looked_for_and_what_is_there(tmp_path):
    touch(tmp_path, "pictures of us/a.png", "pictures of us/b.png", "notes/a.txt", "readme.md")
    with pytest.raises(UserError) as caught:
        found(tmp_path)
    text = str(caught.value)
    for part in (
        "images/ with masks/",
        "imagesTr/",
        "cases.csv",
        "pictures of us/ (2 .png)",
        "notes/ (1 .txt)",
        "in it (1 .md)",
        "--data-root",
    ):
        assert part in text
    touch(tmp_path / "outer", "set 1/images/a.png", "set 1/masks/b.txt")
    with pytest.raises(UserError, match="set 1"):
        found(tmp_path / "outer")


def test_a_set_in_a_folder_of_its_own_is_found_without_that_folder_in_its_ids(tmp_path):
    touch(tmp_path, *(f"Kvasir-SEG/{kind}/{n}.jpg" for n in "abcd" for kind in ("images", "masks")))
    assert [case.id for case in found(tmp_path).cases] == ["a", "b", "c", "d"]
    assert {case.group for case in found(tmp_path).cases} == set("abcd")


def test_passed_over_files_are_counted_and_hidden_ones_are_not(tmp_path):
    touch(tmp_path, *(f"{kind}/{n}.png" for n in "ab" for kind in ("images", "masks")), *(f"images/{n}.xml" for n in range(12)))
    touch(tmp_path, "masks/a.txt", "LICENSE", ".DS_Store", "images/._a.png", "__MACOSX/images/a.png", ".git/x.png")
    assert found(tmp_path).notes[-1] == "passed over: 12 .xml, 1 .txt, 1 without ending"


def test_lists_may_name_what_is_left_out(tmp_path):
    touch(tmp_path, *(f"images/{n}.png" for n in "abcdef"), *(f"masks/{n}.png" for n in "abcde"))
    (tmp_path / "test.txt").write_text("a\nf\n")
    with pytest.raises(UserError):
        found(tmp_path)
    listing = found(tmp_path, bad_cases="skip")
    assert listing.published == {"a": "test"}
    assert any("1 listed cases have no files: f" in note for note in listing.notes)


def test_a_folder_dev_is_for_validation_and_names_in_capitals_have_words(tmp_path):
    for part in ("train", "dev", "test"):
        touch(tmp_path / "a", *(f"{part}/{side}/{part}{n}.png" for side in ("images", "masks") for n in range(3)))
    assert set(found(tmp_path / "a").published.values()) == {"train", "validation", "test"}
    touch(tmp_path / "b", *(f"{side}/{n:06}.png" for side in ("JPEGImages", "SegmentationClass") for n in range(4)))
    with pytest.raises(UserError, match="may be the truth") as caught:
        found(tmp_path / "b")
    assert len(found(tmp_path / "b", **advised(caught.value.todo)[0]).cases) == 4
