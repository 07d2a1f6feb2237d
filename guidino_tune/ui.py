"""The command ``ui``: MLflow's pages of the studies in this home, in a browser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from guidino_tune.cli import add_storage_option, parser, positive, run

EXAMPLES = """\
  guidino-tune ui                       the pages of all studies in the home folder, until Ctrl-C
  guidino-tune ui kvasir                opens the page of one study: its trials, best first
  guidino-tune ui kvasir --no-browser   only prints the address, as over SSH: then `ssh -L 5000:127.0.0.1:5000 MACHINE`

It listens on 127.0.0.1 alone. With MLFLOW_TRACKING_URI set to a server, that server's page is opened. Optuna's dashboard of the study
comes too where it is installed: pip install 'guidino-tune[dashboard]'."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and serves; see ``--help``."""
    made = parser("ui", "Look at studies in a browser: starts MLflow on this machine, and ends it with Ctrl-C.", EXAMPLES)
    made.add_argument("study", nargs="?", help="name of the study whose page is opened")
    made.add_argument("--port", type=positive, help="of MLflow (default: 5000, or another one that is free)")
    made.add_argument("--no-browser", action="store_true", help="print the address, and open nothing")
    add_storage_option(made)
    return run(_ui, made, argv)


def _ui(options: argparse.Namespace) -> int:
    from guidino_tune.study.store import stored_study
    from guidino_tune.workflows.home import follow_home
    from guidino_tune.workflows.progress import make_console
    from guidino_tune.workflows.ui import show_pages

    console = make_console()
    stored = stored_study(options.study, options.storage) if options.study else None
    follow_home(console)
    return show_pages(stored, console, port=options.port, browser=not options.no_browser)


if __name__ == "__main__":
    sys.exit(main())
