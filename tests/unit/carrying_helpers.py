"""A study's split and its export, for tests of what travels with a configuration."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from guidino_tune.config import Data
from guidino_tune.data.carrying import beside, provenance_of
from guidino_tune.data.opening import open_for_search


def make_images(root: Path, count: int = 20) -> Path:
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for index in range(count):
        rng = np.random.default_rng(index)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / "images" / f"c{index:02}.png")
        Image.fromarray((rng.random((32, 32)) > 0.5).astype(np.uint8) * 255).save(root / "masks" / f"c{index:02}.png")
    return root


def data_at(root: Path, **changes: Any) -> Data:
    return Data(kind="folder", root=str(root), image_size=32, test_fraction=0.2, validation_fraction=0.2, **changes)


class Search:
    """A study's split, its exported configuration, and the images that it was drawn from."""

    def __init__(self, tmp_path: Path) -> None:
        self.images = make_images(tmp_path / "here" / "images of today")
        self.split_file = tmp_path / "home" / "studies" / "mine" / "split.json"
        self.split = open_for_search(data_at(self.images), split_file=self.split_file, cache=tmp_path / "cache").split
        self.file = tmp_path / "exported" / "best.yaml"
        self.file.parent.mkdir()
        self.provenance = {"study": "mine", "trial": 3, **provenance_of(self.split_file)}
        beside(self.file).write_text(self.split_file.read_text())

    def leave(self) -> None:
        """To another machine: of the study nothing is there but what was exported."""
        shutil.rmtree(self.split_file.parents[2])
