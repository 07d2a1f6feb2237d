"""The command ``predict``: masks and overlays for a folder of images, at their original size; no file of the user's is replaced."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from guidino_tune.cli import add_backbone_option, add_protocol_options, add_trust_option, parser, positive, protocol_values, run, size

EXAMPLES = """\
  guidino-tune predict ~/guidino_tune/retrained/kvasir-12/model images/ --output masks
  guidino-tune predict MODEL images/ --output masks --inference sliding --mirror --largest-component always
  guidino-tune predict MODEL one.jpg --output masks --threshold 0.4
  guidino-tune predict MODEL images/ --output masks --csv areas.csv --polygons coco.json --probabilities
  guidino-tune predict MODEL volumes/ --output masks --masks-as auto
  guidino-tune predict MODEL incoming/ --output masks --watch --csv areas.csv
  guidino-tune predict models:/guidino-tune-kvasir-12/1 images/ --output masks

Writes OUTPUT/masks/NAME.png and OUTPUT/overlays/NAME.png, for images of sub-folders in the same sub-folders, for
slice 12 of a volume as VOLUME#12.png. Masks have the image's own size: 0 and 255, or of a model with several classes
the labels 0 (background) to K, which look almost black. With --masks-as auto the masks of a NIfTI volume are one
label volume masks/VOLUME.nii.gz with its geometry, and that of a DICOM file is a DICOM label image masks/NAME.dcm
with its patient, study and position. The true masks of a data set are passed over.

Images are read and results are written beside the network (--workers); what is written does not depend on it. An
image that does not fit into the memory (--memory) whole is predicted tile by tile, with the same mask.

The same command replaces what it wrote before. Where any other file would be replaced, or its masks would lie among others, nothing is
written (exit code 2). Two images `a.png` and `a.jpg` become `a.png.png` and `a.jpg.png`. Exit code 1: an image could not be read."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and predicts; see ``--help``."""
    made = parser("predict", "Segment images with a trained model.", EXAMPLES)
    made.add_argument("model", help="model folder of `retrain`, a trial's folder of a study, or models:/NAME/VERSION in MLflow")
    made.add_argument("images", help="folder of images, with its sub-folders, or one image")
    made.add_argument("--output", required=True, metavar="DIR", help="folder for masks and overlays")
    made.add_argument("--threshold", type=float, default=0.5, help="of the probability, between 0 and 1; for binary masks (default: 0.5)")
    add_backbone_option(made, several=False)
    add_trust_option(made)
    add_protocol_options(made, scores=False)
    made.add_argument(
        "--masks-as", choices=["png", "auto", "nifti", "dicom"], default="png",
        help="png (default); auto: in the format and geometry of the image where that is NIfTI or DICOM; nifti, dicom: all of them so",
    )  # fmt: skip
    made.add_argument("--no-overlays", action="store_true", help="masks only")
    made.add_argument("--probabilities", action="store_true", help="also OUTPUT/probabilities/NAME.png, 16 bits, one a class")
    made.add_argument("--csv", metavar="FILE", help="also a table: area, objects and mean probability of each class in each image")
    made.add_argument("--polygons", metavar="FILE", help="also the objects as COCO's JSON, as polygons and exactly as run lengths")
    made.add_argument("--watch", action="store_true", help="stay, and segment images as they come into the folder, until Ctrl-C")
    made.add_argument("--workers", type=positive, metavar="N", help="threads that read and write (default: one a core, 4 at most)")
    made.add_argument("--memory", type=size, metavar="SIZE", help="most memory for images, such as 4G (default: half of what is free)")
    return run(_predict, made, argv)


def _predict(options: argparse.Namespace) -> int:
    from pathlib import Path

    from rich.console import Console

    from guidino_tune import targets
    from guidino_tune.config import Protocol
    from guidino_tune.config.parsing import parse
    from guidino_tune.errors import UserError
    from guidino_tune.workflows.predict import load_model
    from guidino_tune.workflows.predict_folder import predict_folder
    from guidino_tune.workflows.watching import watch_folder

    for where, text in (("MODEL", options.model), ("IMAGES", options.images), ("--output", options.output)):
        if not text:
            raise UserError("is empty", where=where, todo="name a path; an empty one would be the present folder")
    targets.trust(*([targets.EVERYTHING] if options.trust else ()))
    protocol = parse(Protocol, protocol_values(options), "options")
    console = Console(markup=False, emoji=False)
    with console.status("predicting") as status:
        model = load_model(options.model, protocol=protocol, backbone=options.backbone[-1] if options.backbone else None)
        notes = [] if model.protocol == protocol else ["the model was trained on patches: images are seen in windows at their own scale"]
        place = Path(options.images), Path(options.output)
        extras = {name: getattr(options, name) for name in ("probabilities", "csv", "polygons")}
        how: dict[str, Any] = {name: getattr(options, name) for name in ("threshold", "masks_as", "workers", "memory")}
        how |= {"overlays": not options.no_overlays, "extras": extras}
        if options.watch:
            return _watch(console, watch_folder, model, place, how)
        done, failed = predict_folder(
            model,
            *place,
            **how,
            progress=lambda number, total: status.update(f"predicting: {number} of {total} images"),
            tell=notes.append,
        )
    console.print(
        f"{done} mask{'' if done == 1 else 's'} in {Path(options.output) / 'masks'} ({model.protocol.describe(scores=False)})",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    for message in failed:
        print(f"left out: {message}", file=sys.stderr)
    return 1 if failed else 0


def _watch(console: Any, watch: Callable[..., None], model: Any, place: tuple[Any, Any], how: Mapping[str, Any]) -> int:
    """Until it is interrupted, which is its end and no failure."""
    written = 0

    def told(done: int, failed: list[str]) -> None:
        nonlocal written
        written += done
        console.print(f"{done} mask{'' if done == 1 else 's'} in {place[1] / 'masks'}", highlight=False, soft_wrap=True)
        for message in failed:
            print(f"left out: {message}", file=sys.stderr)

    try:
        watch(model, *place, told=told, tell=lambda _: None, **how)
    except KeyboardInterrupt:
        console.print(f"stopped after {written} masks", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
