"""The command ``reproduce``: the papers' tables and the scaling study, on your machines and your copy of the data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from guidino_tune.cli import add_format_option, add_protocol_options, parser, positive, protocol_values, run

EXAMPLES = """\
  guidino-tune reproduce all --budget tiny --data-root /data/Kvasir-SEG
                                        every system for two epochs on 40 images: shows that all of it runs here
  guidino-tune reproduce table1 --rows GuiDINO-W,nnWNet --dataset kvasir,isic2017
                                        two rows of table 1 on two data sets, with the paper's budget and three seeds
  guidino-tune reproduce table2 --variant reference --inference sliding --mirror
                                        the settings of GuiDINO's code, measured as nnU-Net does
  guidino-tune reproduce table3 --budget short --seeds 1 --dry-run
                                        what would be trained
  guidino-tune reproduce scaling --backbones vits16,vitb16,vitl16 --image-sizes 256,512
                                        is bigger better on this data set?

The same command continues what was stopped or killed; more rows or seeds extend the same study."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and reproduces; see ``--help``."""
    made = parser("reproduce", "Train the rows of a paper's table on Ray, test them once, and print them beside the paper.", EXAMPLES)
    made.add_argument("what", choices=["table1", "table2", "table3", "all", "other", "scaling"], help="all: every system of the tables")
    made.add_argument("--dataset", default="kvasir", metavar="NAMES", help="kvasir, isic2017 and tn3k, with commas (default: kvasir)")
    made.add_argument("--rows", default="", metavar="NAMES", help="systems, with commas (default: all; GuiDINO-W for scaling)")
    made.add_argument("--variant", choices=["paper", "reference"], default="paper", help="settings of the paper, or of its code")
    made.add_argument("--budget", choices=["full", "short", "tiny"], default="full", help="full: as the paper; short: 40 epochs; tiny")
    made.add_argument("--epochs", type=positive, help="of each training, instead of the budget's")
    made.add_argument("--seeds", type=positive, help="of each system, instead of the budget's")
    made.add_argument("--test-cases", type=positive, help="only the first so many test cases, instead of the budget's")
    made.add_argument("--backbones", default="vits16,vitb16", metavar="NAMES", help="for scaling (default: vits16,vitb16)")
    made.add_argument("--image-sizes", default="256,512", metavar="PIXELS", help="for scaling (default: 256,512)")
    made.add_argument("--data-root", metavar="DIR", help="folder of the data set; with one --dataset")
    made.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="another value in every recipe that has the field")
    made.add_argument("--name", help="of the study (default: tables-DATASET or scaling-DATASET, with the budget)")
    made.add_argument("--concurrent", type=positive, help="trainings side by side (default: as many as fit)")
    made.add_argument("--executor", choices=["auto", "actor", "train"], help="see: guidino-tune search --help")
    made.add_argument("--dry-run", action="store_true", help="list what would be trained, and spend nothing")
    add_protocol_options(made, scores=True, frames=True)
    add_format_option(made)
    return run(_reproduce, made, argv)


def _reproduce(options: argparse.Namespace) -> int:
    from guidino_tune.config import Protocol
    from guidino_tune.config.parsing import parse
    from guidino_tune.space.recipes import Request, planned

    request = Request(
        what=options.what, datasets=_names(options.dataset), rows=_names(options.rows), reference=options.variant == "reference",
        budget=options.budget, epochs=options.epochs, seeds=options.seeds, test_cases=options.test_cases, name=options.name,
        backbones=_names(options.backbones), image_sizes=_names(options.image_sizes), settings=_settings(options),
    )  # fmt: skip
    protocol = parse(Protocol, protocol_values(options), "--inference and others")
    plan = planned(request)

    from guidino_tune.workflows.progress import make_console

    console = make_console(options.format)
    if options.dry_run:
        from guidino_tune.workflows.dry_run import show_plan

        return max(show_plan(space, console) for space in plan.spaces.values())
    from guidino_tune.workflows.reproduce import framed, run_scaling, run_table

    if plan.table is None:
        ((dataset, space),) = plan.spaces.items()
        return run_scaling(space, protocol, console, dataset=dataset, about=plan.about, limit=plan.test_cases, form=options.format)
    protocols = {dataset: framed(protocol, dataset, options.resolution) for dataset in plan.spaces}
    return run_table(plan.table, plan.rows, plan.spaces, protocols, console, about=plan.about, limit=plan.test_cases, form=options.format)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _settings(options: argparse.Namespace) -> tuple[str, ...]:
    paths = {"data_root": "data.root", "concurrent": "resources.concurrent", "executor": "resources.executor"}
    return (*(f"{path}={value}" for name, path in paths.items() if (value := getattr(options, name)) is not None), *options.set)


if __name__ == "__main__":
    sys.exit(main())
