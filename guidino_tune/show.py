"""The command ``show``: one study, from what it searched to its failures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from guidino_tune.cli import add_format_option, add_storage_option, parser, positive, run

EXAMPLES = """\
  guidino-tune show kvasir                            what was searched, the best trials, failures, and how to go on
  guidino-tune show kvasir --storage postgresql://reader@127.0.0.1/studies
                                                      a study of a team, from a laptop without any of its files
  guidino-tune show kvasir --format csv               every trial with all parameters, for a file or another program

Only reads, also while the search runs; needs neither images nor GPUs. Times are those of the machine that searched."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and shows; see ``--help``."""
    made = parser("show", "Show a study: what it searched, its leaderboard, its failures, and how to go on.", EXAMPLES)
    made.add_argument("study", help="name of the study")
    made.add_argument("--rows", type=positive, default=10, metavar="N", help="so many of the best trials in the table (default: 10)")
    add_storage_option(made)
    add_format_option(made)
    return run(_show, made, argv)


def _show(options: argparse.Namespace) -> int:
    from guidino_tune.study.reading import Reader
    from guidino_tune.workflows.printing import print_study
    from guidino_tune.workflows.study_page import page_of
    from guidino_tune.workflows.tables import terminal

    print_study(page_of(Reader(options.storage), options.study), options.format, terminal(), options.rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
