"""The command ``delete``: a study, its checkpoints, and what MLflow has of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from guidino_tune.cli import add_storage_option, parser, run
from guidino_tune.errors import UserError

EXAMPLES = """\
  guidino-tune delete kvasir            says what goes and how much it is, and asks
  guidino-tune delete kvasir --yes      does not ask

Registered models, exports and what retrain trained stay; so does the data set. What compare trained lies in the study's folder and goes.
A study that is searched or compared now is not deleted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and deletes; see ``--help``."""
    made = parser("delete", "Delete a study: its folder, its trials and its runs in MLflow.", EXAMPLES)
    made.add_argument("study", help="name of the study")
    made.add_argument("--yes", action="store_true", help="do not ask")
    add_storage_option(made)
    return run(_delete, made, argv)


def _delete(options: argparse.Namespace) -> int:
    from guidino_tune.workflows.delete import delete_study, doomed
    from guidino_tune.workflows.home import follow_home
    from guidino_tune.workflows.progress import make_console

    console = make_console()
    follow_home(console)
    what = doomed(options.study, options.storage)
    for line in what.lines:
        console.print(line, highlight=False, soft_wrap=True)
    if not options.yes:
        if not sys.stdin.isatty():
            raise UserError("nobody is there to be asked", where=f"delete {options.study}", todo="add --yes to delete all of this")
        if _answer("delete all of this? [y/N] ") not in ("y", "yes"):
            console.print("nothing was deleted")
            return 1
    delete_study(what, console)
    return 0


def _answer(question: str) -> str:
    """What is typed, in small letters; nothing where the input is closed instead (Ctrl-D)."""
    try:
        return input(question).strip().lower()
    except EOFError:
        print()
        return ""


if __name__ == "__main__":
    sys.exit(main())
