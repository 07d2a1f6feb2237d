"""The command ``simulate``: which sampler and pruner would have been the best, on recorded curves."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from guidino_tune.cli import add_format_option, not_negative, parser, positive, run

EXAMPLES = """\
  guidino-tune simulate recorded/kvasir                     random with ASHA, what auto does, random alone, on a table that comes along
  guidino-tune simulate kvasir --methods random+asha,tpe+promotion --workers 4
                                                            on the trials of your own study
  guidino-tune simulate recorded/ddti --methods tpe+promotion,tpe+promotion/min_epochs=3
                                                            with other settings of the study
  guidino-tune simulate curves.parquet --curves surrogate --seeds 20 --epochs 2000 --jobs 8
                                                            on a model of the curves, in eight processes

Trains nothing and needs no Ray: the real driver runs on a virtual clock. `guidino-tune record` makes a table."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and simulates; see ``--help``."""
    made = parser("simulate", "Compare samplers and pruners on recorded learning curves.", EXAMPLES)
    made.add_argument(
        "curves_of",
        metavar="TABLE|STUDY",
        help="a table that ends in .parquet; recorded/kvasir, isic2017 or ddti, which come along; or a study by name or path",
    )
    made.add_argument(
        "--methods", default="random+asha,auto+auto,random+none", help="SAMPLER+PRUNER[/SETTING=VALUE...],... (default: %(default)s)"
    )
    made.add_argument("--seeds", type=positive, default=50, help="studies of each method (default: 50)")
    made.add_argument("--workers", type=_counts, default=[1, 4, 16], metavar="N,...", help="trials side by side (default: 1,4,16)")
    made.add_argument("--epochs", type=positive, help="budget of a search, of all its trials (default: that of 20 whole trainings)")
    made.add_argument(
        "--curves", choices=["auto", "exact", "surrogate"], default="auto",
        help="exact: the nearest recorded configuration; surrogate: a fitted model; auto: exact if no curve was stopped and luck is 1",
    )  # fmt: skip
    made.add_argument("--losses", type=not_negative, default=0.0, metavar="RATE", help="losses of a machine in an hour (default: 0)")
    made.add_argument(
        "--luck", type=not_negative, default=1.0, metavar="FACTOR",
        help="of a seed, on a surrogate: 0.3 is a third of what was recorded, as with more validation images (default: 1)",
    )  # fmt: skip
    made.add_argument("--no-first-trials", action="store_true", help="as where nothing is known beforehand")
    made.add_argument("--jobs", type=positive, default=1, help="processes (default: 1)")
    made.add_argument("--output", default="simulation", metavar="DIR", help="for simulation.md, .csv and .png (default: simulation)")
    add_format_option(made)
    return run(_simulate, made, argv)


def _counts(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def _simulate(options: argparse.Namespace) -> int:
    from guidino_tune.analysis.searches import HEADINGS, method_rows
    from guidino_tune.workflows.progress import make_console
    from guidino_tune.workflows.simulate import REFERENCE, simulate_searches
    from guidino_tune.workflows.tables import print_data

    searches = simulate_searches(
        options.curves_of, options.methods.split(","), console=make_console(options.format), output=Path(options.output),
        seeds=options.seeds,
        workers=options.workers, epochs=options.epochs, curves=options.curves, losses=options.losses, luck=options.luck,
        first_trials=not options.no_first_trials, jobs=options.jobs,
    )  # fmt: skip
    if options.format != "table":
        print_data(options.format, HEADINGS, method_rows(searches, REFERENCE))
    return 0


if __name__ == "__main__":
    sys.exit(main())
