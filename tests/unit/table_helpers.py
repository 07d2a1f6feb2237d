"""Tables of cases whose files are read as those of a search are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from guidino_tune.config import Data
from guidino_tune.data.cases import Case
from guidino_tune.data.intensity import IntensityRule
from guidino_tune.data.rules import Rules, label_rule, measure_rules, survey_masks
from guidino_tune.data.table import CaseTable, Progress, build_table


def table_of(cases: Iterable[Case], size: int, folder: Path, progress: Progress | None = None, **settings: Any) -> CaseTable:
    """The table of these cases with ``data.image_size`` and other settings of ``Data``."""
    cases, data = list(cases), Data(kind="folder", image_size=size, **settings)
    return build_table(cases, data, measure_rules(cases, [], data), folder, progress)


def rules_of(path: Path, num_classes: int = 1) -> Rules:
    """The rules that this mask alone gives; images of 8 bits as they are, of more by their own range."""
    data = Data(kind="folder", num_classes=num_classes)
    return Rules(label_rule(survey_masks([Case("a", path, path, "a")], data), data), IntensityRule("8-bit"))


def damage(file: Path, place: float, bit: int, length: int) -> None:
    """As storage does: flips a bit (``length`` 1), or loses so many bytes, which are zero then, from this share of the file on."""
    content = bytearray(file.read_bytes())
    start = int(place * len(content))
    if length == 1:
        content[start] ^= 1 << bit
    else:
        content[start : start + length] = bytes(len(content[start : start + length]))
    file.unlink()  # what has it mapped keeps what it has
    file.write_bytes(content)
