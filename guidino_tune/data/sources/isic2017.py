"""ISIC 2017 part 1, skin lesions in dermoscopy (Codella et al., ISBI 2018): 2,000 training, 150 validation and 600 test images."""

from __future__ import annotations

from pathlib import Path

from guidino_tune.data.cases import Case, Listing
from guidino_tune.data.sources.pairs import pair, require

FOLDERS = {"train": "ISIC-2017_Training", "validation": "ISIC-2017_Validation", "test": "ISIC-2017_Test_v2"}
"""Published part -> what the names of its two folders begin with."""


def find(root: Path, on_bad: str = "error") -> Listing:
    """Lists ``ISIC-2017_Training_Data/ID.jpg`` with ``ISIC-2017_Training_Part1_GroundTruth/ID_segmentation.png``, and the like.

    The test folders are optional: without them a test split is drawn from the training cases. Superpixel images are passed over.

    Raises:
        UserError: The training or validation folders are not there, or as ``pairs.pair``.
    """
    cases: list[Case] = []
    published: dict[str, str] = {}
    notes: list[str] = []
    for part, name in FOLDERS.items():
        images, masks = f"{name}_Data", f"{name}_Part1_GroundTruth"
        if part == "test" and not (root / images).is_dir() and not (root / masks).is_dir():
            continue
        require(root, (images, masks), "isic2017")
        found, left_out = pair(root / images, root / masks, on_bad=on_bad, suffixes=("_segmentation",), ignore="_superpixels")
        cases += found
        notes += left_out
        published |= {case.id: part for case in found}
    return Listing(tuple(cases), published, tuple(notes))
