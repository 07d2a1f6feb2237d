"""The command ``export``: the best, or any, trial of a study as a YAML file."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from guidino_tune import paths
from guidino_tune.cli import add_storage_option, parser, run

EXAMPLES = """\
  guidino-tune export kvasir                       the best trial, as best.yaml; its split, as best.split.json
  guidino-tune export kvasir --trial 17 --output trial17.yaml
  guidino-tune export kvasir --output -            print it, with all case ids of its split

`retrain` never tests on a case that the search has seen: keep both files together."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and exports; see ``--help``."""
    made = parser("export", "Write a trial's configuration, with where it comes from, as a YAML file that `retrain` takes.", EXAMPLES)
    made.add_argument("study", help="name of the study")
    made.add_argument("--trial", type=int, metavar="NUMBER", help="default: the best that ran its whole budget")
    made.add_argument("--output", default="best.yaml", metavar="FILE", help="default: best.yaml; - prints it")
    made.add_argument("--force", action="store_true", help="replace the file if it is there")
    add_storage_option(made)
    return run(_export, made, argv)


def _export(options: argparse.Namespace) -> int:
    from pathlib import Path

    from guidino_tune.errors import UserError
    from guidino_tune.training.folder import write_text
    from guidino_tune.workflows.export import export_split, export_trial

    printed = options.output == "-"
    text, line = export_trial(options.study, options.trial, options.storage, ids=printed)
    if printed:
        print(text, end="")
        return 0
    file = Path(options.output)
    if file.exists() and not options.force and file.read_text(encoding="utf-8") != text:
        raise UserError("the file is there already", where=str(file), todo="choose another --output, or --force")
    split = export_split(options.study, file, force=options.force)
    write_text(file, text)
    print(f"{line}\nwritten: {file}")
    if split:
        print(f"written: {split}, the cases it was searched on; keep it beside {file.name}")
    else:
        print("note: the study's split.json is gone: `retrain` needs it, and refuses to guess", file=sys.stderr)
    print(f" retrain: {paths.next_command(f'retrain {shlex.quote(str(file))} --seeds 3')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
