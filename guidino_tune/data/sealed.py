"""The one door to the test cases. No other module may give access to test files; a search runs with this door sealed."""

from __future__ import annotations

import os
from pathlib import Path

from guidino_tune.config.data import Data
from guidino_tune.data.cases import Case
from guidino_tune.data.identity import check_images
from guidino_tune.data.openings import record_opening
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import check_split, images_of, read_split
from guidino_tune.errors import UserError

SEAL = "GUIDINO_TUNE_SEALED"
"""Environment variable that is ``1`` in every process of a search."""


def open_test(data: Data, split_file: Path, *, reason: str) -> list[Case]:
    """Lists the test cases of a stored split, and writes down when and why.

    Args:
        data: The data set.
        split_file: The study's split; it is read, never made.
        reason: For the record, such as ``final measurement of study kvasir``.

    Raises:
        RuntimeError: A search is running in this process: a bug, since nothing in a search may ask.
        ValueError: No reason is given.
        UserError: The split is missing, does not fit the data set, or has no test cases; or a test case has an image that was seen.
    """
    if os.environ.get(SEAL) == "1":
        raise RuntimeError("the test split is sealed during a search")
    if not reason.strip():
        raise ValueError("opening the test split needs a reason")
    split = read_split(split_file)
    if not split.test:
        raise UserError(
            "the split has no test cases", where=str(split_file), todo="use a data set with a test split, or data.test_fraction > 0"
        )
    listing = find_cases(data)
    check_split(split, listing, split_file, ("test",))
    check_images(listing, split, images_of(split_file), str(split_file), same=())
    record_opening(split_file, reason, len(split.test))
    return listing.select(split.test)
