"""What it costs to add a segmenter, a data set, a loss, ...: the places in which a kind is named are counted."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from guidino_tune import doctor, prepare
from guidino_tune.config.data import Data
from guidino_tune.config.segmenters import Segmenter
from guidino_tune.data.sources import SOURCES

PACKAGE = Path(__file__).parents[2] / "guidino_tune"

SECTIONS, DATA_SECTION = "config/sections.py", "config/data.py"
SEGMENTER_SECTIONS = "config/segmenters.py"
SEGMENTER_PLACES = {SEGMENTER_SECTIONS, "models/segmenters/__init__.py"}  # dataclass, registry
SOURCE_PLACES = {DATA_SECTION, "data/sources/__init__.py"}
FRAMED = {*SOURCE_PLACES, "space/recipes.py"}  # whose published HD95 has a frame of its own
DOWNLOADS = {"data/download.py", "prepare.py", "doctor.py"}  # where an archive lies, and commands that offer the kind

PLACES: dict[str, set[str]] = {
    **dict.fromkeys(("unet", "nnwnet", "swinunet", "h2former", "ukan", "segdino", "segguidino", "dinounet", "meddino"), SEGMENTER_PLACES),
    "kvasir": {*FRAMED, *DOWNLOADS, "data/sources/kvasir.py", "reproduce.py"},  # the default there
    "isic2017": {*FRAMED, *DOWNLOADS, "data/sources/isic2017.py"},
    "tn3k": {*FRAMED, *DOWNLOADS, "data/sources/tn3k.py"},
    "nnunet": {*SEGMENTER_PLACES, DATA_SECTION, "data/augmentation.py"},  # a segmenter, and the augmentation of that name
    "mse": {SECTIONS, "losses.py"},
    "softmax": {SECTIONS, "models/tokenbook.py", "space/check.py"},  # the only one in which prototypes count
    "adamw": {SECTIONS, "training/optimisers.py"},
    "sgd": {SECTIONS, "training/optimisers.py"},
    "poly": {SECTIONS, "training/optimisers.py"},
    # tables are lists, and so are seeds and repetitions
    "listed": {"config/study.py", "study/samplers.py", "space/recipes.py", "workflows/listed.py", "workflows/record.py"},
    "tpe": {"config/study.py", "study/samplers.py"},
    "qmc": {"config/study.py", "study/samplers.py"},
    "asha": {"config/study.py", "study/pruners.py"},
    "promotion": {"config/study.py", "study/pruners.py"},
}
"""Where the name of a kind may stand, besides docstrings: a new place is a new step for everyone who adds one."""


@functools.cache
def strings(package: Path) -> dict[str, set[str]]:
    """Files by the strings of the program that stand in them; a docstring is one string, which no kind is equal to."""
    found: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.setdefault(node.value, set()).add(str(path.relative_to(package)))
    return found


@pytest.mark.parametrize("kind", PLACES)
def test_a_kind_is_named_in_its_places_only(kind: str) -> None:
    assert strings(PACKAGE)[kind] == PLACES[kind]


def test_places_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""About unet."""\nif kind == "unet":\n    pass\n')
    (tmp_path / "b.py").write_text('"""About unet."""\n# unet\nname = "unet3d"\n')
    assert strings(tmp_path)["unet"] == {"a.py"}


def test_every_kind_of_the_configuration_is_counted_or_general() -> None:
    general = {"none", "folder", "demo", "dino", "custom"}  # words of other meanings too; `dino` is the only guide
    kinds = {*get_args(get_type_hints(Data)["kind"]), *(cls().kind for cls in get_args(get_args(Segmenter)[0]))}
    assert kinds - general <= set(PLACES)


def test_registries_and_commands_hold_every_kind() -> None:
    kinds = set(get_args(get_type_hints(Data)["kind"]))
    assert set(SOURCES) == set(doctor.KINDS) == kinds
    assert set(prepare.KINDS) == kinds - {"folder"}  # a folder of one's own needs no preparation
    registry = (PACKAGE / "models/segmenters/__init__.py").read_text(encoding="utf-8")  # read, for importing it imports torch
    assert dict(re.findall(r'^    "(\w+)": (\w+),$', registry, re.MULTILINE)) == {
        cls().kind: cls.__name__ for cls in get_args(get_args(Segmenter)[0])
    }
