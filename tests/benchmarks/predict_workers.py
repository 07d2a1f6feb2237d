"""How much sooner are the masks of a folder there with threads that read and write beside the network?

    python tests/benchmarks/predict_workers.py --data /data/kvasir --images 60 --workers 2,4

Both ways are what ``predict`` does with a small trained network on real images: masks, overlays, a table, and with ``--enlarge`` images
of that many times the side, as cameras have them. The other way does one step after the other, in one thread (``--workers 1``). In the
same process and round all take turns, and what they write must be the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measuring import interleaved, kvasir_root, parser, ratios, report
from PIL import Image
from predicting import small_model

from guidino_tune.cli import positive
from guidino_tune.workflows.predict import TrainedModel, load_model
from guidino_tune.workflows.predict_folder import predict_folder


def main(argv: Sequence[str] | None = None) -> int:
    """Measures each number of threads against none and prints its line; the exit code is 1 where the files differ."""
    options = arguments(argv)
    equal = True
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        model = load_model(small_model(options.data, options.image_size, options.steps, scratch), device="cpu")
        for times in map(int, options.enlarge.split(",")):
            images = enlarged(options, times, scratch)
            for workers in map(int, options.workers.split(",")):
                equal &= measure(model, images, times, workers, scratch, options)
    return 0 if equal else 1


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--images", type=positive, default=40, help="default: %(default)s")
    made.add_argument("--image-size", type=positive, default=128, help="that the network sees, in pixels; default: %(default)s")
    made.add_argument("--enlarge", default="1,4", help="times the side of the images, with commas; default: %(default)s")
    made.add_argument("--workers", default="2,4", help="threads, with commas; default: %(default)s")
    made.add_argument("--rounds", type=positive, default=5, help="default: %(default)s")
    made.add_argument("--steps", type=positive, default=20, help="of training before; default: %(default)s")
    options = made.parse_args(argv)
    options.data = kvasir_root(options)
    return options


def enlarged(options: argparse.Namespace, times: int, scratch: Path) -> Path:
    """The images, JPEG as they are or as large ones."""
    folder = scratch / f"images-{times}"
    folder.mkdir()
    for file in sorted((Path(options.data) / "images").iterdir())[: options.images]:
        with Image.open(file) as picture:
            picture.resize((picture.width * times, picture.height * times), Image.Resampling.BICUBIC).save(folder / file.name, quality=92)
    return folder


def measure(model: TrainedModel, images: Path, times: int, workers: int, scratch: Path, options: argparse.Namespace) -> bool:
    """Prints the line of one number of threads, and says whether the files are the same."""

    def run(number: int) -> Path:
        out = scratch / f"out-{times}-{number}"
        predict_folder(model, images, out, extras={"csv": out / "areas.csv"}, workers=number)
        return out

    found = ratios(*interleaved(lambda: run(workers), lambda: run(1), options.rounds))
    equal = digest(run(workers)) == digest(run(1))
    with Image.open(next(images.iterdir())) as picture:
        size = f"{picture.width}x{picture.height}"
    what = f"{options.images} JPEG images of {size}, U-Net on {options.image_size}, masks, overlays and table"
    what += f": {workers} threads / one after the other"
    note = "the same bytes" if equal else "DIFFERENT FILES"
    return report(f"predict {times}x {workers} workers", what, found, note=note, output=options.output) and equal


def digest(folder: Path) -> str:
    """Of all files in a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return hashlib.sha256(b"".join(str(file.relative_to(folder)).encode() + file.read_bytes() for file in files)).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
