"""The command ``list``: all studies of the home folder or of a database, a row each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from guidino_tune.cli import add_format_option, add_storage_option, parser, run

EXAMPLES = """\
  guidino-tune list                                   the studies of the home folder, newest first
  guidino-tune list --storage postgresql://reader@127.0.0.1/studies
                                                      those of a team, from a laptop without any of their files
  guidino-tune list --format json                     for a program: also how many trials are left, who drives it since when

Only reads; needs neither images nor GPUs. Times are those of the machine that searched."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and lists; see ``--help``."""
    made = parser("list", "List studies: what they search over, who drives them, and how far they are.", EXAMPLES)
    add_storage_option(made)
    add_format_option(made)
    return run(_list, made, argv)


def _list(options: argparse.Namespace) -> int:
    from guidino_tune.study.reading import Reader
    from guidino_tune.workflows.overview import overviews
    from guidino_tune.workflows.printing import print_list
    from guidino_tune.workflows.tables import terminal

    reader = Reader(options.storage)
    print_list(overviews(reader), reader.place, options.format, terminal())
    return 0


if __name__ == "__main__":
    sys.exit(main())
