"""The command ``track``: how much of a study MLflow lacks, and send it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from guidino_tune import paths
from guidino_tune.cli import add_format_option, add_storage_option, parser, run
from guidino_tune.errors import UserError

EXAMPLES = """\
  guidino-tune track kvasir             how much waits to be sent, and whether MLflow answers
  guidino-tune track kvasir --flush     send it: in order, and nothing twice
  guidino-tune track --all --flush      the same for every study in the home folder
  MLFLOW_TRACKING_URI=https://mlflow.example.org guidino-tune track kvasir --flush
                                        send a whole study to another server

After the home folder was moved or copied, --flush also lets MLflow find its pictures there, as a search does when it starts.
Needs neither images nor Ray. Exit code: 0 when MLflow has everything, 1 when not, 2 for a mistake or a study that a search works on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and shows or sends; see ``--help``."""
    made = parser("track", "Show what MLflow lacks of a study, and send it.", EXAMPLES)
    made.add_argument("study", nargs="?", help="name of the study")
    made.add_argument("--all", action="store_true", help="every study in the home folder")
    made.add_argument("--flush", action="store_true", help="send everything that MLflow lacks")
    add_storage_option(made)
    add_format_option(made)
    return run(_track, made, argv)


def _track(options: argparse.Namespace) -> int:
    if options.all == (options.study is not None):
        raise UserError("name one study, or say --all", todo=f"see: {paths.next_command('track --help')}")

    from guidino_tune.study.store import known_studies
    from guidino_tune.workflows.home import follow_home
    from guidino_tune.workflows.progress import make_console
    from guidino_tune.workflows.tables import print_data
    from guidino_tune.workflows.track import WAITING_HEADINGS, send, show, waiting_rows

    names = known_studies() if options.all else [options.study]
    console = make_console(options.format)
    if options.flush:
        follow_home(console)
    if not names:
        console.print("no studies yet; `guidino-tune search` makes one")
    code = (send if options.flush else show)(names, console, options.storage) if names else 0
    if options.format != "table":
        print_data(options.format, WAITING_HEADINGS, waiting_rows(names, options.storage))
    return code


if __name__ == "__main__":
    sys.exit(main())
