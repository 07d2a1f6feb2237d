"""The command ``retrain``: an exported configuration with several seeds, the sealed test once, a registered model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from guidino_tune import paths
from guidino_tune.cli import add_backbone_option, add_protocol_options, parser, positive, protocol_values, run

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
    made = parser("retrain", "Train a configuration with several seeds on Ray Train, test each once, and register the model.", EXAMPLES)
    made.add_argument("file", help="an export of `guidino-tune export`, or any experiment as YAML")
    made.add_argument("--seeds", type=positive, help="how many trainings, side by side where they fit (default: 3, of each fold 1)")
    made.add_argument(
        "--folds", type=positive, help="cross-validation over so many folds of all but the test; an ensemble becomes the model"
    )
    made.add_argument("--epochs", type=positive, help="budget of each (default: that of the file)")
    made.add_argument("--name", help="of the result (default: study and trial, or the file's name)")
    made.add_argument("--data-root", metavar="DIR", help="folder of the data set")
    add_backbone_option(made, several=False)
    made.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="another value in the experiment")
    made.add_argument("--split-file", metavar="FILE", help="split of the search (default: beside the file, or in the study's folder)")
    made.add_argument("--workers", type=positive, default=1, help="processes of one training (default: 1)")
    made.add_argument("--cpus-per-worker", type=positive, help="CPU cores of each (default: 1 without GPUs, else their share)")
    made.add_argument("--gpus-per-worker", type=float, help="a part of one with one worker (default: 1 where there are GPUs)")
    made.add_argument("--concurrent", type=positive, help="trainings side by side (default: as many as fit)")
    add_protocol_options(made, scores=True)
    return run(_retrain, made, argv)


def _retrain(options: argparse.Namespace) -> int:
    from pathlib import Path

    from guidino_tune.config import Protocol, Resources
    from guidino_tune.config.parsing import parse, read_yaml
    from guidino_tune.data.carrying import provenance_beside
    from guidino_tune.errors import UserError
    from guidino_tune.space.space import absolute, override, read_space

    values = read_yaml(options.file)
    provenance = values.get("provenance") or provenance_beside(Path(options.file))
    resources = {
        "workers": options.workers,
        "cpus_per_worker": options.cpus_per_worker,
        "gpus_per_worker": options.gpus_per_worker,
        "concurrent": options.concurrent,
    }
    space = read_space({"experiment": values.get("experiment", values), "resources": resources}, source=options.file)
    assignments = [f"training.epochs={options.epochs}"] if options.epochs else []
    assignments += [f"data.root={options.data_root}"] if options.data_root else []
    assignments += options.set
    if any(text.partition(".")[0] in ("study", "resources") for text in assignments):
        raise UserError("takes paths of the experiment only", where="--set", todo="see the options --workers, --concurrent and others")
    space = absolute(override(space, assignments))
    if options.folds == 1:
        raise UserError("one fold is no cross-validation", where="--folds 1", todo="choose 2 or more, or leave it out")
    name = f"{provenance['study']}-{provenance['trial']}" if "study" in provenance and "trial" in provenance else Path(options.file).stem
    name += f"-{options.folds}-folds" if options.folds else ""

    from guidino_tune.known_backbones import chosen, expecting
    from guidino_tune.workflows.backbones import retrained_backbone
    from guidino_tune.workflows.cross_validate import cross_validate
    from guidino_tune.workflows.progress import make_console
    from guidino_tune.workflows.resolve import resolve_data
    from guidino_tune.workflows.retrain import retrain

    space = resolve_data(space)
    settings: Resources = space.resources
    protocol = parse(Protocol, protocol_values(options), "--inference and others")
    common: dict[str, Any] = {
        "name": options.name or name, "resources": settings, "protocol": protocol, "console": make_console(),
        "file": Path(options.file), "given": Path(options.split_file) if options.split_file else None,
    }  # fmt: skip
    home = paths.home() / "retrained" / common["name"]
    with expecting(chosen(options.backbone)), retrained_backbone(space.base, provenance, home, common["console"]) as experiment:
        if options.folds:
            cross_validate(experiment, provenance, folds=options.folds, seeds=options.seeds or 1, **common)
        else:
            retrain(experiment, provenance, seeds=options.seeds or 3, **common)
    return 0


if __name__ == "__main__":
    sys.exit(main())
