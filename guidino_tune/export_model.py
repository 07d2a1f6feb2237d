"""The command ``export-model``: a trained model in a form that runs without this package."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from guidino_tune.cli import add_backbone_option, add_trust_option, parser, run

EXAMPLES = """\
  guidino-tune export-model ~/guidino_tune/retrained/kvasir-12/model --format onnx --output kvasir-onnx
  guidino-tune export-model MODEL --format hf --output kvasir-hf
  guidino-tune export-model ~/guidino_tune/studies/kvasir/trials/00012 --format torch-export --output kvasir-12
  guidino-tune export-model MODEL --format folder --with-backbone --output kvasir-whole

Formats: onnx (onnxruntime runs it; needs the extra `export`), torch-export (torch alone), torchscript (torch alone, older versions
too), monai-bundle (`monai.bundle.run`), hf (`transformers.AutoModel`), folder (this package's own).

The graph takes RGB pixels (float32, 0 to 255, already of the training size) and gives probabilities. Every export holds use.py, which
segments image files without this package, and is compared with the network before it is kept."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and exports; see ``--help``."""
    made = parser("export-model", "Write a trained model as a folder that other programs run.", EXAMPLES)
    made.add_argument(
        "model", help="model folder of `retrain`, a trial's folder of a study, an ensemble, or models:/NAME/VERSION in MLflow"
    )
    made.add_argument("--format", required=True, metavar="FORMAT", help="onnx, torch-export, torchscript, monai-bundle, hf or folder")
    made.add_argument("--output", required=True, metavar="DIR", help="the new folder; an earlier export there is replaced")
    made.add_argument(
        "--with-backbone", action="store_true", help="of folder: put the frozen backbone in (the other formats always hold it)"
    )
    made.add_argument("--force", action="store_true", help="replace the folder even if it holds something else")
    add_backbone_option(made, several=False)
    add_trust_option(made)
    return run(_export, made, argv)


def _export(options: argparse.Namespace) -> int:
    from rich.console import Console

    from guidino_tune import targets
    from guidino_tune.workflows.export_model import FOLDER, export

    targets.trust(*([targets.EVERYTHING] if options.trust else ()))
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    with console.status("exporting"):
        made = export(
            options.model, options.format, options.output,
            with_backbone=options.with_backbone, backbones=options.backbone, force=options.force,
        )  # fmt: skip
    console.print(f"written: {made.folder} ({made.size / 1e6:.1f} MB)")
    if options.format == FOLDER:
        console.print(f"    use: guidino-tune predict {shlex.quote(str(made.folder))} IMAGES --output masks")
        return 0
    console.print(f"  free: {', '.join(made.dynamic) or 'nothing'} (other sides must be those of the training)")
    console.print(f"checked: at most {made.difference:.1g} from the network's own outputs")
    for note in made.notes:
        console.print(f"   note: {note}")
    console.print(f"    use: python {shlex.quote(str(made.folder / 'use.py'))} IMAGE --output masks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
