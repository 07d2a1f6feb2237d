"""The command ``doctor``: what is here, and what to do about what is not."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from guidino_tune import paths
from guidino_tune.cli import add_format_option, add_storage_option, parser, run

EXAMPLES = """\
  guidino-tune doctor                                       can a demo search run, and what else is here?
  guidino-tune doctor --kind kvasir --data-root /data/Kvasir-SEG
                                                            is this data set whole?
  guidino-tune doctor --backbone vits16                     load these weights, after a download if need be
  guidino-tune doctor --backbone /models/dinov3-vits16      is this a usable model folder?
  guidino-tune doctor --kind folder --data-root /data/mine --images
                                                            read all images and masks: how they are understood, damage, copies
  guidino-tune doctor --kind folder --data-root /data/mine --images --set 'data.labels={lesion: [255, 0, 0]}'
  guidino-tune doctor --space my_space.yaml                 every problem that a search of this space would meet
  guidino-tune doctor --study kvasir                        is this study whole, and what is left to do?

Without options everything is surveyed; with them only what you ask for is looked at, which is quicker.
Nothing is changed, started or downloaded (but for the --backbone that you name; --images puts a picture into the cache). `ok` is fine, a
`note` limits what you can do, and what is `missing` stops even a demo search, or is what you asked for. Exit code 0 when nothing is
missing, else 1."""

KINDS = ("kvasir", "isic2017", "tn3k", "folder", "demo")
COLOURS = {"ok": "green", "note": "yellow", "missing": "red"}


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and looks around; see ``--help``."""
    made = parser("doctor", "Says what is here and what to do about what is not.", EXAMPLES)
    made.add_argument("--kind", choices=KINDS, help="a data set that must be whole, as in data.kind")
    made.add_argument("--data-root", metavar="DIR", help="its folder (default: where `prepare` puts it)")
    made.add_argument("--backbone", metavar="NAME_OR_PATH", help="a guide backbone that must load, as in guide.backbone")
    made.add_argument("--space", metavar="NAME_OR_FILE", help="a search space that must be ready to be searched")
    made.add_argument("--study", metavar="NAME", help="a study that must be ready to go on")
    made.add_argument("--images", action="store_true", help="read the training and validation images and masks too (test stays sealed)")
    made.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="another value for --space, or of the data set (data.labels=...)"
    )
    add_storage_option(made)
    add_format_option(made)
    return run(_doctor, made, argv)


def _doctor(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.text import Text

    from guidino_tune.workflows.survey import CHECKS, asked, survey

    _check_options(options)
    console = Console(markup=False, emoji=False)
    num_missing = 0
    chosen = asked(CHECKS, options)
    if options.format != "table":
        from guidino_tune.workflows.tables import print_data

        found = list(survey(chosen, options))
        print_data(options.format, ["mark", "name", "found", "todo"], [[f.mark, f.name, " ".join(f.found.split()), f.todo] for f in found])
        return int(any(row.mark == "missing" for row in found))
    for row in survey(chosen, options):
        num_missing += row.mark == "missing"
        line = Text.assemble((f"{row.mark:<8} ", COLOURS[row.mark]), (f"{row.name:<14} ", "bold"), " ".join(row.found.split()))
        console.print(line, soft_wrap=True)
        if row.todo:
            console.print(Text(f"{'':<24}-> {row.todo}", "dim"), soft_wrap=True)
    if num_missing:
        console.print(Text(f"\n{num_missing} missing: see the lines marked so.", "red"))
        return 1
    verdict = (
        f"Nothing needed is missing. Try: {paths.next_command('search demo')}"
        if chosen == CHECKS
        else "Nothing of what you asked for is missing."
    )
    console.print(Text(f"\n{verdict}"))
    return 0


def _check_options(options: argparse.Namespace) -> None:
    from guidino_tune.config import BACKBONES, is_local_backbone
    from guidino_tune.errors import UserError, nearest

    if options.data_root and not options.kind and not options.space:
        raise UserError("says where, but not what", where="--data-root", todo=f"add --space, or --kind: {', '.join(KINDS)}")
    if options.images and not options.kind and not options.space:
        raise UserError("of which data set?", where="--images", todo=f"add --space, or --kind: {', '.join(KINDS)}")
    if options.kind == "folder" and not options.data_root:
        raise UserError("has no default place", where="--kind folder", todo="add --data-root DIR")
    if options.backbone and options.backbone not in BACKBONES and not is_local_backbone(options.backbone):
        raise UserError(f"unknown backbone; {nearest(options.backbone, BACKBONES)}", where=f"--backbone {options.backbone}")


if __name__ == "__main__":
    sys.exit(main())
