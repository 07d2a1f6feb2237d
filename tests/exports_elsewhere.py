"""Runs what an export brings along in a Python that cannot import guidino_tune."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

BLOCKED = """
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "guidino_tune":
            raise ImportError("guidino_tune is not here")
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert "guidino_tune" not in sys.modules
"""


def use(folder: Path, image: Path, output: Path) -> np.ndarray:
    """The mask (H, W) that ``use.py`` of an export writes for an image, as labels."""
    command = [sys.executable, "-I", "-c", BLOCKED, str(folder / "use.py"), str(image), "--output", str(output)]
    return _mask(command, folder.parent, image, output)


def use_monai(folder: Path, images: Path, image: Path, output: Path) -> np.ndarray:
    """The same by ``monai.bundle`` itself, in the bundle's folder."""
    call = "from monai.bundle import run; run(config_file='configs/inference.json', images=sys.argv[0], output=sys.argv[1])"
    script = BLOCKED.replace('runpy.run_path(sys.argv[0], run_name="__main__")', call)
    words = [str(images), str(output)]
    return _mask([sys.executable, "-c", script, *words], folder, image, output)


def _mask(command: list[str], cwd: Path, image: Path, output: Path) -> np.ndarray:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_MODULES_CACHE": str(output / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    mask = np.asarray(Image.open(output / f"{image.stem}.mask.png"))
    return mask // 255 if mask.max() == 255 else mask
