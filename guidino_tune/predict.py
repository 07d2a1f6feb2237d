"""The command ``predict``: masks and overlays for a folder of images, at their original size; no file of the user's is replaced."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from guidino_tune.cli import add_backbone_option, add_protocol_options, parser, protocol_values, run

EXAMPLES = """\
  guidino-tune predict ~/guidino_tune/retrained/kvasir-12/model images/ --output masks
  guidino-tune predict MODEL images/ --output masks --inference sliding --mirror --largest-component always
  guidino-tune predict MODEL one.jpg --output masks --threshold 0.4

Writes OUTPUT/masks/NAME.png and OUTPUT/overlays/NAME.png, for images of sub-folders in the same sub-folders, for
slice 12 of a volume as VOLUME#12.png. Masks have the image's
own size: 0 and 255, or of a model with several classes the labels 0 (background) to K, which look almost black.

The same command replaces what it wrote before. Where any other file would be replaced, or its masks would lie among others, nothing is
written (exit code 2). Two images `a.png` and `a.jpg` become `a.png.png` and `a.jpg.png`. Exit code 1: an image could not be read."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and predicts; see ``--help``."""
    made = parser("predict", "Segment images with a trained model.", EXAMPLES)
    made.add_argument("model", help="model folder of `retrain`, or a trial's folder of a study")
    made.add_argument("images", help="folder of images, with its sub-folders, or one image")
    made.add_argument("--output", required=True, metavar="DIR", help="folder for masks and overlays")
    made.add_argument("--threshold", type=float, default=0.5, help="of the probability, between 0 and 1; for binary masks (default: 0.5)")
    add_backbone_option(made, several=False)
    add_protocol_options(made, scores=False)
    made.add_argument("--no-overlays", action="store_true", help="masks only")
    return run(_predict, made, argv)


def _predict(options: argparse.Namespace) -> int:
    from pathlib import Path

    from rich.console import Console

    from guidino_tune.config import Protocol
    from guidino_tune.config.parsing import parse
    from guidino_tune.errors import UserError
    from guidino_tune.known_backbones import chosen, expecting
    from guidino_tune.workflows.predict import predict_folder

    for where, text in (("MODEL", options.model), ("IMAGES", options.images), ("--output", options.output)):
        if not text:
            raise UserError("is empty", where=where, todo="name a path; an empty one would be the present folder")
    protocol = parse(Protocol, protocol_values(options), "options")
    console = Console(markup=False, emoji=False)
    notes: list[str] = []
    with expecting(chosen(options.backbone)), console.status("predicting") as status:
        done, failed, used = predict_folder(
            Path(options.model),
            Path(options.images),
            Path(options.output),
            protocol=protocol,
            threshold=options.threshold,
            overlays=not options.no_overlays,
            progress=lambda number, total: status.update(f"predicting: {number} of {total} images"),
            tell=notes.append,
        )
    console.print(
        f"{done} mask{'' if done == 1 else 's'} in {Path(options.output) / 'masks'} ({used.describe(scores=False)})",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    for message in failed:
        print(f"left out: {message}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
