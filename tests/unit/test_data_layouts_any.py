"""Any tree of files is a listing or a message; what is paired belongs together."""

import tempfile
from pathlib import Path

from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from layout_helpers import found, touch

from guidino_tune.errors import UserError

WORDS = [
    "images",
    "masks",
    "labels",
    "train",
    "test",
    "P1",
    "P2",
    "1st_manual",
    "overlay",
    "imagesTr",
    "labelsTr",
    "a",
    "a_mask",
    "mask",
    "b",
]
NAMES = ["a", "b", "a_mask", "a_mask_1", "b_seg", "mask", "image", "a_0000", "b_0001", "1", "12", "x (1)", "x (1)_mask", "ä", "a#1", "a.b"]
ENDS = [".png", ".jpg", ".tif", ".txt", "", ".PNG"]
PATHS = st.builds(
    lambda folders, name, end: "/".join((*folders, name + end)),
    st.lists(st.sampled_from(WORDS), max_size=3),
    st.sampled_from(NAMES),
    st.sampled_from(ENDS),
)


@examples(40)
@given(
    paths=st.lists(PATHS, min_size=1, max_size=14),
    on_bad=st.sampled_from(["error", "skip"]),
    masks=st.sampled_from([None, "masks", "*.png"]),
)
def test_any_tree_is_a_listing_or_a_message(paths, on_bad, masks):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for path in paths:
            try:
                touch(root, path)
            except OSError:  # a file of that name is in the way of a folder
                continue
        try:
            listing = found(root, bad_cases=on_bad, masks=masks)
        except UserError as error:
            text = str(error)
            assert str(root) in text or "data." in text
            assert "->" in text
            return
        assert listing.notes[0].startswith("layout: ")
        used = [path for case in listing.cases for path in (*case.images, *case.masks)]
        assert len(used) == len(set(used))  # nobody is an image and a mask, or has two owners
        assert all(path.is_file() for path in used)


@examples(25)
@given(
    stems=st.sets(st.text("abcxyz019", min_size=1, max_size=6), min_size=2, max_size=8),
    image=st.sampled_from(["{}", "img_{}", "{}_image", "{}_training"]),
    mask=st.sampled_from(["{}", "{}_mask", "mask_{}", "{}-seg", "{}_manual1", "{}_label_2"]),
    folders=st.booleans(),
)
def test_what_is_paired_belongs_together(stems, image, mask, folders):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number, stem in enumerate(sorted(stems)):
            inner = f"{number % 2}x/" if folders else ""
            touch(root, f"images/{inner}{image.format(stem)}.png", f"masks/{inner}{mask.format(stem)}.png")
        try:
            listing = found(root)
        except UserError:  # some forms do not say enough; none may say something wrong
            return
        owner = {f"{image.format(stem)}.png": f"{mask.format(stem)}.png" for stem in stems}
        assert {case.image.name: case.mask.name for case in listing.cases} == owner
        assert not any(case.more_masks for case in listing.cases)
