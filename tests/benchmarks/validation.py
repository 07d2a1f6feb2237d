"""How much faster is validation during a search than the full protocol?

    python tests/benchmarks/validation.py --data /data/kvasir

Ours is one forward pass per image at training size with the guide's tokens from the store, then Dice and IoU. The other is the protocol
that the reference validates by after every epoch: windows of the training size over the image at its native scale, half overlapping, each
mirrored in four ways, then Dice, IoU, HD95 and ASD there. Both use the same trained network, images, precision and memory format; the
ratio is of seconds per image: ours of all validation images in batches, the protocol's of one of them in every round.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from measuring import interleaved, kvasir_root, parser, ratios, report

from guidino_tune.cli import positive
from guidino_tune.config import Experiment, Protocol
from guidino_tune.data.opening import open_for_search
from guidino_tune.data.sources import find_cases
from guidino_tune.data.store import ChunkStore
from guidino_tune.errors import UserError
from guidino_tune.training.evaluation import evaluate_cases
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.reporter import Decision, EpochRecord

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SEGMENTERS = "unet,nnwnet,segguidino"
FULL = Protocol(inference="sliding", overlap=0.5, mirror=True, hd95="monai", resolution="native")
AIM = 0.1


class Reporter(TrialFolder):
    """Never stops a run."""

    def report(self, record: EpochRecord) -> Decision:
        """See ``guidino_tune.training.reporter.Reporter``."""
        return Decision.CONTINUE


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; the exit code is 2 for a mistake in the arguments or the data."""
    options = arguments(argv)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        for kind in options.segmenters.split(","):
            try:
                compare(kind, options, Path(scratch))
            except UserError as error:
                print(error, file=sys.stderr)
                return 2
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--segmenters", default=SEGMENTERS, help="some, with commas; default: %(default)s")
    made.add_argument("--image-size", type=positive, default=256, help="in pixels; default: %(default)s")
    made.add_argument("--images", type=positive, default=4, help="for validation; default: %(default)s")
    made.add_argument("--train-images", type=positive, default=16, help="that the network learns from first; default: %(default)s")
    made.add_argument("--rounds", type=positive, default=2, help="that count, after one that does not; default: %(default)s")
    made.add_argument("--threads", type=positive, default=1, help="of torch, as CPUs of a trial; default: %(default)s")
    options = made.parse_args(argv)
    options.data = kvasir_root(options)
    return options


def experiment_of(kind: str, options: argparse.Namespace) -> Experiment:
    """The guided segmenter at its defaults."""
    data = {"kind": "kvasir", "root": options.data, "image_size": options.image_size, "augmentation": "none"}
    limits = {"max_train_cases": options.train_images, "max_validation_cases": options.images}
    guide = {"kind": "dino", "backbone": "vits16", "weights": "random"}
    return Experiment.from_dict(
        {"data": data | limits, "guide": guide, "segmenter": {"kind": kind}, "training": {"lr": 1e-3, "steps_per_epoch": "cases"}}
    )


def compare(kind: str, options: argparse.Namespace, scratch: Path) -> None:
    """Prints the line of one segmenter."""
    experiment = experiment_of(kind, options)
    data = open_for_search(experiment.data, cache=scratch / "cache")
    run = TrainingRun(experiment, data, Reporter(scratch / kind), device=str(DEVICE), store=ChunkStore(scratch / "views"), validated=())
    run._train()  # masks of an untrained network are noise
    run.close()
    names = set(data.validation.ids)
    cases = [case for case in find_cases(experiment.data).cases if case.id in names]
    turn = iter(cases * (1 + options.rounds))

    def full() -> None:
        with run.autocast:
            evaluate_cases(run.model.eval(), [next(turn)], experiment.data, FULL, rules=data.rules)

    times, full_times = interleaved(lambda: run._validate(distances=False), full, options.rounds)
    per_image = ratios([seconds / len(cases) for seconds in times], full_times)
    name = f"validation {kind} {options.image_size}"
    compared = f"validation of {experiment.name} during a search / {FULL.describe()}, per image"
    report(name, compared, per_image, output=options.output, aim=AIM, note=f"{len(cases)} images against one in each round")


if __name__ == "__main__":
    sys.exit(main())
