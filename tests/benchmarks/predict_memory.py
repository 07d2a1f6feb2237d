"""How much memory does a pixel of a large image take, predicted tile by tile against whole, and is the mask the same?

    python tests/benchmarks/predict_memory.py --data /data/kvasir --side 5000

Both ways are the command's, from a TIFF file to mask and overlay, with a small trained network on a real image that is repeated until it
is large enough. Each run is a process of its own, and they take turns: what counts is the most that it held at one time beyond what it
held before the first pixel, divided by the pixels. The bound of ours is what it says that it needs. Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
import torch
from measuring import kvasir_root, parser, ratios, report
from PIL import Image
from predicting import small_model

from guidino_tune.cli import positive
from guidino_tune.config import Protocol
from guidino_tune.training.costs import forget_peak, peak_gigabytes
from guidino_tune.workflows.predict import load_model
from guidino_tune.workflows.predict_folder import predict_folder
from guidino_tune.workflows.prediction_memory import Room

CPU = torch.device("cpu")
WHOLE = 1 << 50  # a bound that everything fits into


def main(argv: Sequence[str] | None = None) -> int:
    """Measures both kinds of inference and prints their lines; the exit code is 1 where the masks differ."""
    options = arguments(argv)
    equal = True
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        model = small_model(options.data, options.image_size, options.steps, scratch)
        write_image(options, scratch)
        for inference in ("resized", "sliding"):
            equal &= measure(model, inference, scratch, options)
    return 0 if equal else 1


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--side", type=positive, default=4000, help="of the image, in pixels; default: %(default)s")
    made.add_argument("--image-size", type=positive, default=256, help="that the network sees, in pixels; default: %(default)s")
    made.add_argument("--rounds", type=positive, default=2, help="default: %(default)s")
    made.add_argument("--steps", type=positive, default=20, help="of training before; default: %(default)s")
    options = made.parse_args(argv)
    options.data = kvasir_root(options)
    return options


def write_image(options: argparse.Namespace, scratch: Path) -> None:
    """``large.tif`` and a small one."""
    with Image.open(sorted((Path(options.data) / "images").iterdir())[0]) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    times = -(-options.side // min(pixels.shape[:2]))
    large = np.tile(pixels, (times, times, 1))[: options.side, : options.side]
    for name, image in (("large", large), ("small", pixels)):
        tifffile.imwrite(scratch / f"{name}.tif", np.ascontiguousarray(image), photometric="rgb", compression="deflate")


def measure(model: Path, inference: str, scratch: Path, options: argparse.Namespace) -> bool:
    """Prints the line of one kind of inference, and says whether the masks are the same."""
    pixels = options.side**2
    needed = next(bound for bound in range(pixels, WHOLE, pixels) if Room(bound, 1).alone >= pixels)
    ours: list[float] = []
    whole: list[float] = []
    masks: set[str] = set()
    for _ in range(options.rounds):
        for bound, found in ((needed, ours), (WHOLE, whole)):
            with multiprocessing.get_context("spawn").Pool(1) as process:
                taken, mask = process.apply(run, (str(model), inference, str(scratch), bound))
            found.append(taken / pixels)
            masks.add(mask)
    note = f"{np.median(ours):.1f} against {np.median(whole):.1f} bytes a pixel, bound {needed / pixels:.0f}; "
    note += "the same masks" if len(masks) == 1 else "DIFFERENT MASKS"
    what = f"image of {options.side}x{options.side}, U-Net on {options.image_size}, {inference}: memory tile by tile / whole"
    return report(f"predict memory {inference}", what, ratios(ours, whole), note=note, output=options.output) and len(masks) == 1


def run(model: str, inference: str, scratch: str, bound: int) -> tuple[float, str]:
    """In a process of its own: bytes that it took for the large image, and a digest of its mask."""
    trained = load_model(model, protocol=Protocol(inference=inference), device="cpu")  # type: ignore[arg-type]
    predict_folder(trained, Path(scratch) / "small.tif", Path(scratch) / "small", workers=1)  # imports, threads, buffers of torch
    forget_peak(CPU)
    before = peak_gigabytes(CPU)
    out = Path(scratch) / "large"
    predict_folder(trained, Path(scratch) / "large.tif", out, workers=1, memory=bound)
    taken = (peak_gigabytes(CPU) - before) * 1e9
    return taken, hashlib.sha256((out / "masks" / "large.png").read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
