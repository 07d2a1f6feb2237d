"""The command ``record``: learning curves of random configurations, as a table for ``simulate``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from guidino_tune.cli import parser, positive, run
from guidino_tune.errors import UserError

EXAMPLES = """\
  guidino-tune record demo --configurations 40 --output demo.parquet
  guidino-tune record kvasir --data-root /data/Kvasir-SEG --configurations 400 --repeat 40 --set training.epochs=27 \\
      --output kvasir.parquet                               40 of them with a second seed, for the noise

Nothing is stopped early, and every epoch is validated. The same command goes on after a stop; more --configurations extend it, also
on another machine that has the table."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and records; see ``--help``."""
    made = parser("record", "Record learning curves of random configurations.", EXAMPLES)
    made.add_argument("space", help="demo, kvasir, isic2017, tn3k, or a YAML file of your own")
    made.add_argument("--configurations", type=positive, required=True, help="how many to train")
    made.add_argument("--output", required=True, metavar="TABLE", help="the table to write; its name ends in .parquet")
    made.add_argument("--repeat", type=positive, default=0, metavar="K", help="train the first K once more with another seed")
    made.add_argument("--data-root", metavar="DIR", help="folder of the data set, in its published layout")
    made.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="another value in experiment, study or resources")
    return run(_record, made, argv)


def _record(options: argparse.Namespace) -> int:
    if not options.output.endswith(".parquet"):
        raise UserError("the name of a table ends in .parquet", where=f"--output {options.output}", todo="add .parquet to it")

    from guidino_tune.api import load_space
    from guidino_tune.workflows.progress import make_console
    from guidino_tune.workflows.record import record_curves

    root = [f"data.root={options.data_root}"] if options.data_root else []
    space, console = load_space(options.space, [*root, *options.set]), make_console()
    table, complete = record_curves(space, options.configurations, Path(options.output), repeat=options.repeat, console=console)
    console.print(f"{len(table.curves)} curves written to {options.output}", highlight=False, soft_wrap=True)
    if not complete:
        console.print("not all curves are there yet; the same command goes on", highlight=False)
    return 0 if complete else 75


if __name__ == "__main__":
    sys.exit(main())
