"""The command ``report``: one study as one page that needs nothing else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from guidino_tune.cli import add_storage_option, not_negative, parser, run

EXAMPLES = """\
  guidino-tune report kvasir                          reports/report.html in the study's folder: to read, to send, to print
  guidino-tune report kvasir --format markdown --output supplement.md
                                                      the same sentences and tables for the supplement of a paper
  guidino-tune report kvasir --price-per-hour 2.5 --currency EUR
                                                      what it cost, at so much for an hour of one worker
  guidino-tune report kvasir --storage postgresql://reader@127.0.0.1/studies
                                                      a study of a team, from a laptop without any of its files

One file without network or anything beside it. Searches write it at their end; of one that runs it is marked as such. Only reads the study;
see docs/reading-the-report.md."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and writes; see ``--help``."""
    made = parser("report", "Write what a study found, and how sure it is, as one HTML file or as Markdown.", EXAMPLES)
    made.add_argument("study", help="name of the study")
    made.add_argument("--output", metavar="FILE", help="file to write (default: report.html or report.md in the study's reports/)")
    made.add_argument("--format", choices=["html", "markdown"], default="html", help="page (default), or text for a paper's supplement")
    made.add_argument(
        "--price-per-hour",
        type=not_negative,
        metavar="X",
        help="price of an hour of one worker, such as one GPU; where trials share a GPU, of their share of it",
    )
    made.add_argument("--currency", default="EUR", metavar="NAME", help="of that price (default: EUR)")
    add_storage_option(made)
    return run(_report, made, argv)


def _report(options: argparse.Namespace) -> int:
    from pathlib import Path

    from guidino_tune.reporting.known import Price
    from guidino_tune.workflows.progress import make_console
    from guidino_tune.workflows.report import report_of

    price = None if options.price_per_hour is None else Price(per_hour=options.price_per_hour, currency=options.currency)
    output = Path(options.output).expanduser().absolute() if options.output else None
    report_of(options.study, options.storage, make_console(), output=output, format=options.format, price=price)
    return 0


if __name__ == "__main__":
    sys.exit(main())
