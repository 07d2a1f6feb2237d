"""The command ``retrain``: an exported configuration with several seeds, the sealed test once, a registered model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from guidino_tune.cli import add_backbone_option, add_protocol_options, add_trust_option, parser, positive, protocol_values, run

EXAMPLES = """\
  guidino-tune retrain best.yaml                    three seeds with the full budget of the file
  guidino-tune retrain best.yaml --epochs 400 --seeds 5
  guidino-tune retrain best.yaml --seeds 1 --workers 2 --set training.batch_size=8
                                                    one training over two workers (DDP)
  guidino-tune retrain best.yaml --folds 5          cross-validation: every case scored by a model that has not seen it

The split is that of the search: from NAME.split.json beside NAME.yaml, or the study's folder; without it nothing is trained.
The same command continues what was interrupted. The seed that is best on validation becomes the model."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and retrains; see ``--help``."""
    made = parser("retrain", "Train a configuration with several seeds side by side, test each once, and register the model.", EXAMPLES)
    made.add_argument("file", help="an export of `guidino-tune export`, or any experiment as YAML")
    made.add_argument("--seeds", type=positive, help="how many trainings, side by side where they fit (default: 3, of each fold 1)")
    made.add_argument(
        "--folds", type=positive, help="cross-validation over so many folds of all but the test; an ensemble becomes the model"
    )
    made.add_argument("--epochs", type=positive, help="budget of each (default: that of the file)")
    made.add_argument("--name", help="of the result (default: study and trial, or the file's name)")
    made.add_argument("--data-root", metavar="DIR", help="folder of the data set")
    add_backbone_option(made, several=False)
    add_trust_option(made)
    made.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="another value in the experiment")
    made.add_argument("--split-file", metavar="FILE", help="split of the search (default: beside the file, or in the study's folder)")
    made.add_argument("--workers", type=positive, default=1, help="processes of one training (default: 1)")
    made.add_argument("--cpus-per-worker", type=positive, help="CPU cores of each (default: 1 without GPUs, else their share)")
    made.add_argument("--gpus-per-worker", type=float, help="a part of one with one worker (default: 1 where there are GPUs)")
    made.add_argument("--concurrent", type=positive, help="trainings side by side (default: as many as fit)")
    made.add_argument(
        "--with-backbone", action="store_true", help="put the frozen backbone's weights into the model, which then needs nothing else"
    )
    add_protocol_options(made, scores=True)
    return run(_retrain, made, argv)


def _retrain(options: argparse.Namespace) -> int:
    from guidino_tune import targets
    from guidino_tune.config import Protocol
    from guidino_tune.config.parsing import parse

    # What is typed on the command line is named by whoever runs it.
    targets.trust_values(text.partition("=")[2] for text in options.set)
    targets.trust(*([targets.EVERYTHING] if options.trust else ()))
    protocol = parse(Protocol, protocol_values(options), "--inference and others")

    from guidino_tune.workflows.progress import make_console
    from guidino_tune.workflows.retrain import retrain_model

    names = ("workers", "cpus_per_worker", "gpus_per_worker", "concurrent")
    retrain_model(
        options.file, seeds=options.seeds, folds=options.folds, epochs=options.epochs, name=options.name, data_root=options.data_root,
        settings=options.set, backbones=options.backbone, split_file=options.split_file, protocol=protocol,
        with_backbone=options.with_backbone,
        resources={name: getattr(options, name) for name in names}, console=make_console(),
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
