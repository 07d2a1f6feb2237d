"""Data sets of empty files, their cases, and the settings that messages advise."""

import re
import shlex
from pathlib import Path

from guidino_tune.config import Data
from guidino_tune.data.cases import Listing
from guidino_tune.data.sources import find_cases
from guidino_tune.space.space import load_space, override


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")  # but for headers where it is said, only names are looked at


def found(root: Path, **settings) -> Listing:
    return find_cases(Data(kind="folder", root=str(root), **settings))


def files(listing: Listing, root: Path) -> dict[str, tuple[list[str], list[str]]]:
    return {
        case.id: tuple([path.relative_to(root).as_posix() for path in side] for side in (case.images, case.masks)) for case in listing.cases
    }


def advised(text: str) -> list[dict[str, str]]:
    """The settings that a message offers, each as the shell and `--set` would read it."""
    offers = []
    for match in re.finditer(r"--set ('[^']*'|\S+)", text):
        [assignment] = shlex.split(match[1])
        experiment = override(load_space("kvasir"), ["data.kind=folder", assignment.rstrip(",;.") if match[1][0] != "'" else assignment])
        name = assignment.partition("=")[0].removeprefix("data.")
        offers.append({name: getattr(experiment.base.data, name)})
    return offers
