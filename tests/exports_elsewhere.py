"""Runs what an export brings along in a Python that cannot import guidino_tune."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BLOCKER = """
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "guidino_tune":
            raise ImportError("guidino_tune is not here")
sys.meta_path.insert(0, Blocker())
"""
BLOCKED = f"""{BLOCKER}
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
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=_without_us(output / "cache"), timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return read_mask(output / f"{image.stem}.mask.png")


def read_mask(file: Path) -> np.ndarray:
    """Labels (H, W) of a mask's picture."""
    mask = np.asarray(Image.open(file))
    return mask // 255 if mask.max() == 255 else mask


def _without_us(cache: Path) -> dict[str, str]:
    """The environment without the path to this package, and with a place for the code of Hugging Face folders."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_MODULES_CACHE": str(cache)}


# Each gets the folder of an export and an image file, and gives the arrays that the program computes of the pixels in `pixels`.
PROGRAMS = {
    "hf": """
from transformers import AutoModel
def of(folder, image, pixels):
    found = AutoModel.from_pretrained(folder, trust_remote_code=True)(pixels)
    return {"probabilities": found.probabilities, **({} if found.guide is None else {"guide": found.guide})}
""",
    "monai-bundle": """
from monai.bundle import ConfigParser, run
def of(folder, image, pixels):
    os.chdir(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]  # of another bundle
    run(config_file="configs/inference.json", images=image, output=folder + ".masks")
    parser = ConfigParser()
    parser.read_config("configs/inference.json")
    return {"probabilities": parser.get_parsed_content("network_def")(pixels)}
""",
}
LOOP = """
import os
import numpy as np, torch
with torch.no_grad():
    for line in sys.stdin:
        folder, image = line.rstrip("\\n").split("\\t")
        found = of(folder, image, torch.from_numpy(np.load(folder + ".npy")))
        np.savez(folder + ".npz", **{name: one.numpy() for name, one in found.items()})
        assert "guidino_tune" not in sys.modules
        print("\\ndone", folder, flush=True)
"""


class Program:
    """MONAI or transformers in a process of its own, started once for many exports: its imports take seconds.

    Args:
        form: Of the exports, in ``PROGRAMS``.
        scratch: For its messages, and the code that it copies; it runs there.
    """

    def __init__(self, form: str, scratch: Path) -> None:
        self.log = scratch / f"{form}.log"
        command = [sys.executable, "-c", BLOCKER + PROGRAMS[form] + LOOP]
        with self.log.open("wb") as log:
            self.process: Any = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=scratch,
                env=_without_us(scratch / "cache"),
            )

    def __call__(self, folder: Path, image: Path, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """What the program computes of pixels (N, C, H, W), float32; a bundle also writes the mask of the image beside its folder."""
        np.save(folder.with_name(f"{folder.name}.npy"), pixels)
        self.process.stdin.write(f"{folder}\t{image}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line == f"done {folder}\n":
                with np.load(folder.with_name(f"{folder.name}.npz")) as found:
                    return dict(found)
        raise AssertionError(self.log.read_text()[-3000:])

    def close(self) -> None:
        """Ends the process at once: it has nothing to put in order."""
        self.process.kill()
        self.process.communicate()
