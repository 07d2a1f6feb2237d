"""What do the seeds of one retraining gain by sharing?

    python tests/benchmarks/retraining.py --data /data/kvasir

Trains three seeds, one after the other on all cores, validated after every epoch as ``retrain`` does, in three ways: as ``retrain`` does it
(the guide's tokens of the validation images are shared, and the training images and tokens of each seed, made ahead, are removed after
their epoch), with nothing kept, and with everything kept. The ratios are of the seconds from the first epoch's beginning to the last one's
end; the notes tell what lay on the disk then. All three must give the same numbers.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from measuring import kvasir_root, parser, ratios, report
from searching import FAMILIES, make_space

from guidino_tune.cli import positive

SEEDS = 3
SIZES = {"segguidino": 128, "convolutional": 96}
TIMES = ("epoch_seconds", "images_per_second", "latency", "memory")

Share = bool | Literal["once"]


def main(argv: Sequence[str] | None = None) -> int:
    """Trains and prints; the exit code is 1 when two ways differed in more than their speed."""
    made = parser(__doc__)
    made.add_argument("--images", type=positive, default=32, help="for training, and an eighth of it for validation; default: %(default)s")
    made.add_argument("--epochs", type=positive, default=6, help="of a seed; default: %(default)s")
    made.add_argument("--rounds", type=positive, default=3, help="retrainings of each way; default: %(default)s")
    options = made.parse_args(argv)
    options.data = str(Path(kvasir_root(options)).absolute())
    from guidino_tune.running.connection import connected

    ways: tuple[Share, ...] = ("once", False, True)
    with connected():
        return max([compare(family, options, ways) for family in FAMILIES])


def compare(family: str, options: argparse.Namespace, ways: Sequence[Share]) -> int:
    """Prints the lines of a family."""
    found = [[retrain(family, options, share) for share in ways] for _ in range(options.rounds)]
    seconds, sizes = [[each[0] for each in one] for one in found], [each[1] for each in found[0]]
    scores = [each[2] for one in found for each in one]
    same = all(other == scores[0] for other in scores)
    about = f"{SEEDS} seeds of {options.epochs} epochs of {FAMILIES[family]['words']} at {SIZES[family]} px, {options.images} images"
    for name, way, words in (("nothing", 1, "nothing kept"), ("all", 2, "all kept")):
        report(
            f"retraining.{family}.{name}",
            f"{about}: views kept for their epoch / {words}",
            ratios([one[0] for one in seconds], [one[way] for one in seconds]),
            output=options.output,
            note=f"{sizes[0] / 1e6:.1f} MB / {sizes[way] / 1e6:.1f} MB on the disk; {'the same' if same else 'DIFFERENT'} numbers",
        )
    return 0 if same else 1


def retrain(family: str, options: argparse.Namespace, share: Share) -> tuple[float, int, list[Any]]:
    """Seconds, bytes of the views, and all numbers but times, in a home folder of its own."""
    from guidino_tune.data.opening import open_for_search
    from guidino_tune.training.folder import TrialFolder
    from guidino_tune.workflows.listed import Training, train_all, with_seed
    from guidino_tune.workflows.progress import silent_console

    with tempfile.TemporaryDirectory() as home:
        os.environ["GUIDINO_TUNE_HOME"] = home
        resources = {"executor": "actor", "share_views": share, "concurrent": 1, "cpus_per_worker": os.cpu_count() or 1}
        space = make_space(
            family, root=options.data, image_size=SIZES[family], images=options.images, epochs=options.epochs, study={}, resources=resources
        )
        split = Path(home) / "split.json"
        open_for_search(space.base.data, split_file=split)
        folders = {seed: TrialFolder(Path(home) / f"seed-{seed}") for seed in range(SEEDS)}
        trainings = [Training(f"seed {seed}", with_seed(space.base, seed), folder, split) for seed, folder in folders.items()]
        train_all(trainings, Path(home), space.resources, silent_console())
        records = [record for folder in folders.values() for record in folder.history()]
        size = sum(file.stat().st_size for file in Path(home).rglob("views/*/*/*.arrow"))
        scores = [{name: value for name, value in record.metrics.items() if name not in TIMES} for record in records]
        return max(r.time for r in records) - min(r.time - r.metrics["epoch_seconds"] for r in records), size, scores


if __name__ == "__main__":
    sys.exit(main())
