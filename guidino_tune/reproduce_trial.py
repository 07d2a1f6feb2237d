"""The command ``reproduce-trial``: one trial trained once more, and compared with what it gave."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from guidino_tune.cli import add_backbone_option, add_storage_option, not_negative, parser, positive, run

EXAMPLES = """\
  guidino-tune reproduce-trial kvasir 12                 all epochs of trial 12, compared one by one
  guidino-tune reproduce-trial kvasir 12 --epochs 3      the first three only
  guidino-tune reproduce-trial kvasir 12 --tolerance 1e-3
                                                         on another machine or GPU: may differ a little

The trial is trained in this process, without Ray, with its seed, views, number of threads and precision. Its study is only read, and may
be running. The exit code is 0 when nothing differs by more than the tolerance, 1 when something does, and 2 for a mistake."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and repeats a trial; see ``--help``."""
    made = parser("reproduce-trial", "Train one trial of a study once more, and print the difference per epoch.", EXAMPLES)
    made.add_argument("study", help="name of the study")
    made.add_argument("trial", type=_number, metavar="NUMBER", help="of the trial, as in the leaderboard and in MLflow")
    made.add_argument("--epochs", type=positive, metavar="N", help="only the first N (default: as far as the trial came)")
    made.add_argument("--output", metavar="DIR", help="folder for the repetition (default: repeats/NUMBER in the study's folder)")
    made.add_argument(
        "--tolerance", type=not_negative, default=0.0, metavar="X",
        help="largest difference of loss or validation Dice that counts as equal (default: 0, bit by bit in every metric)",
    )  # fmt: skip
    add_backbone_option(made)
    add_storage_option(made)
    return run(_repeat, made, argv)


def _number(text: str) -> int:
    """A trial's number, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no trial's number")
    return int(text)


def _repeat(options: argparse.Namespace) -> int:
    from pathlib import Path

    from rich.console import Console
    from rich.progress import Progress

    from guidino_tune.workflows.repeat_trial import repeat_trial

    console = Console(markup=False, emoji=False)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("epochs", total=None)

        def started(epochs: int, text: str) -> None:
            console.print(text, highlight=False)
            progress.update(bar, total=epochs)

        repeated = repeat_trial(
            options.study, options.trial, epochs=options.epochs, output=Path(options.output) if options.output else None,
            storage=options.storage, backbones=options.backbone, started=started,
            on_epoch=lambda epoch: progress.update(bar, completed=epoch),
        )  # fmt: skip
    console.print(repeated.table())
    console.print(repeated.verdict(), highlight=False)
    if repeated.differing:
        why = repeated.reasons or ("no cause is known: versions, device and threads are the same",)
        console.print("why: " + "; ".join(why), highlight=False, soft_wrap=True)
    console.print(f"repetition: {repeated.folder}", highlight=False, soft_wrap=True)
    return 0 if repeated.within(options.tolerance) else 1


if __name__ == "__main__":
    sys.exit(main())
