"""The command ``search``: start, continue or extend a study."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from guidino_tune.cli import add_backbone_option, add_storage_option, parser, positive, run, seconds

EXAMPLES = """\
  guidino-tune search demo                                  a small search on generated images, minutes on two cores
  guidino-tune search kvasir --data-root /data/Kvasir-SEG   the full space on your copy of the data set
  guidino-tune search kvasir --trials 200                   the same study goes on, up to 200 trials
  guidino-tune search my_space.yaml --from kvasir tn3k       what was best there is tried first here
  guidino-tune search kvasir --name plain --set guide.kind=none
                                                            another study: the plain networks, without guide
  guidino-tune search kvasir --set guide.backbone=/models/dinov3-vits16 --dry-run
                                                            check everything and show the plan, spend nothing
  guidino-tune search kvasir --name sizes --pruner none --set 'study.objectives=[val_dice,parameters]'
                                                            a Pareto front of Dice against size, not one best trial
  guidino-tune search my_space.yaml --set data.kind=folder --data-root /data/mine
  guidino-tune search kvasir --name mine --set segmenter.kind=custom --set segmenter.target=my_parts:MyNet
                                                            a network of your own (docs/own-parts.md)
  ray job submit --working-dir . -- python -m guidino_tune.search kvasir
                                                            the same on a cluster

A value that is --set is no longer searched. The same command continues a study that was stopped or killed."""

OPTIONS = {
    "name": "study.name",
    "trials": "study.trials",
    "time_budget": "study.time_budget",
    "sampler": "study.sampler",
    "pruner": "study.pruner",
    "max_epochs": "training.epochs",
    "concurrent": "resources.concurrent",
    "executor": "resources.executor",
    "data_root": "data.root",
    "group_duplicates": "data.group_duplicates",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and searches; see ``--help``."""
    made = parser("search", "Search hyper-parameters with Optuna on Ray, logged to MLflow.", EXAMPLES)
    made.add_argument("space", help="demo, kvasir, isic2017, tn3k, or a YAML file of your own")
    made.add_argument("--data-root", metavar="DIR", help="folder of the data set, in its published layout")
    add_backbone_option(made)
    made.add_argument(
        "--group-duplicates", action="store_const", const="true",
        help="keep copies and near-copies of an image in one part of the split (compares all images once)",
    )  # fmt: skip
    made.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="another value in experiment, study or resources")
    made.add_argument("--name", help="name of the study (default: that of the space)")
    made.add_argument("--trials", type=positive, help="trials in all; more than before extends the study")
    made.add_argument("--time-budget", type=seconds, metavar="TIME", help="stop after 30m, 2h, ...; the same command goes on later")
    made.add_argument("--max-epochs", type=positive, help="full budget of a trial")
    made.add_argument(
        "--from", nargs="+", default=[], dest="start_from", metavar="STUDY",
        help="earlier studies, also of other data: their best configurations are tried first, behind the space's own first trials",
    )  # fmt: skip
    made.add_argument("--concurrent", type=positive, help="trials side by side (default: as many as fit)")
    made.add_argument("--seed", type=int, help="of the sampler, of initial weights and of views")
    made.add_argument(
        "--sampler", help="how configurations are chosen: auto, tpe, random (the control), qmc, or another one as module:name"
    )
    made.add_argument("--pruner", help="how trials are stopped early: auto, promotion, asha, none, or another one as module:name")
    made.add_argument("--executor", choices=["auto", "actor", "train"], help="reused actor, or a Ray Train worker group per trial")
    add_storage_option(made)
    made.add_argument(
        "--tracking", choices=["spool", "wait", "stop"], default="spool",
        help="when MLflow is away at the start: keep everything and send it later (default), wait for it, or do not start",
    )  # fmt: skip
    made.add_argument("--dry-run", action="store_true", help="check everything, print experiment, space and plan, and spend nothing")
    return run(_search, made, argv)


def _search(options: argparse.Namespace) -> int:
    from guidino_tune.api import load_space

    assignments = [f"{path}={getattr(options, name)}" for name, path in OPTIONS.items() if getattr(options, name) is not None]
    if options.seed is not None:
        assignments += [f"study.seed={options.seed}", f"training.seed={options.seed}"]
    if options.max_epochs is not None and options.max_epochs < load_space(options.space).study.min_epochs:
        assignments.append("study.min_epochs=1")
    space = load_space(options.space, [*assignments, *options.set])

    from guidino_tune.workflows.backbones import moved
    from guidino_tune.workflows.progress import make_console

    console = make_console()
    with moved(space, options.backbone):
        if options.dry_run:
            from guidino_tune.workflows.dry_run import show_plan

            return show_plan(space, console, options.storage, options.start_from)
        from guidino_tune.running.forking import forked_processes

        guided = space.base.guide.kind == "dino" or "guide.kind" in space.parameters
        # Before all else: this process is still alone, and holds nothing.
        with forked_processes(space.resources, guided=guided):
            from guidino_tune.workflows.search import run_search

            given = {"storage": options.storage, "start_from": options.start_from, "tracking": options.tracking}
            return run_search(space, console=console, **given).exit_code


if __name__ == "__main__":
    sys.exit(main())
