"""TN3K, thyroid nodules in ultrasound (Gong et al., 2021): 2,879 images for training and validation and 614 for test, one channel."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from guidino_tune.data.cases import Case, Listing
from guidino_tune.data.sources.pairs import pair, require

_PATIENT = re.compile(r"(.+)_\d+")


def find(root: Path, on_bad: str = "error") -> Listing:
    """Lists ``trainval-image/NAME`` with ``trainval-mask/NAME`` and ``test-image/NAME`` with ``test-mask/NAME``.

    Both parts use the same file names (``0000.jpg`` is in each) for different images, so ids carry the part: ``trainval/0000``. In
    names such as ``12_3`` the first part is taken for the patient, and all images of a patient form one group.

    Raises:
        UserError: A folder is not there, or as ``pairs.pair``.
    """
    require(root, ("trainval-image", "trainval-mask", "test-image", "test-mask"), "tn3k")
    cases: list[Case] = []
    published: dict[str, str] = {}
    notes: list[str] = []
    for part in ("trainval", "test"):
        images, masks = root / f"{part}-image", root / f"{part}-mask"
        found, left_out = pair(images, masks, on_bad=on_bad, suffixes=("",), prefix=f"{part}/", group=partial(_group, part))
        cases += found
        notes += left_out
        published |= {case.id: part for case in found}
    return Listing(tuple(cases), published, tuple(notes))


def _group(part: str, stem: str) -> str:
    match = _PATIENT.fullmatch(stem)
    return match[1] if match else f"{part}/{stem}"
