"""The command ``evaluate``: scores of a model on the validation or the sealed test split."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from guidino_tune.cli import parser, run

EXAMPLES = """\
  guidino-tune evaluate ~/guidino_tune/retrained/kvasir-12/model
  guidino-tune evaluate ~/guidino_tune/studies/kvasir/trials/00012 --split validation
  guidino-tune evaluate MODEL --split test --reason "figure 3 of the paper" --output scores.csv
  guidino-tune evaluate MODEL --kind folder --data-root /data/other_hospital --split all

Every opening of the test split is written down beside the split file, with its reason."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and evaluates; see ``--help``."""
    made = parser("evaluate", "Score a model per case and on average: Dice, IoU, HD95 and ASD at native resolution.", EXAMPLES)
    made.add_argument("model", help="model folder of `retrain`, or a trial's folder of a study")
    made.add_argument("--split", choices=["validation", "test", "all"], default="validation", help="all: every case of another data set")
    made.add_argument("--reason", help="why the test split is opened; needed for --split test")
    made.add_argument("--kind", help="another data set: kvasir, isic2017, tn3k, folder or demo")
    made.add_argument("--data-root", metavar="DIR", help="folder of the data set")
    made.add_argument("--split-file", metavar="FILE", help="split of the study (default: found beside the model)")
    made.add_argument("--mirror", action="store_true", help="average over the four flips")
    made.add_argument("--output", metavar="FILE", help="write one line per case (CSV)")
    return run(_evaluate, made, argv)


def _evaluate(options: argparse.Namespace) -> int:
    from pathlib import Path

    from rich.console import Console

    from guidino_tune.errors import UserError
    from guidino_tune.metrics import summarise
    from guidino_tune.training.evaluation import RESOLUTION, choose_cases, evaluate_cases, write_scores
    from guidino_tune.training.model_folder import best_device, load_model

    if options.split == "test" and not options.reason:
        raise UserError("opening the sealed test split needs a reason", where="--split test", todo='add --reason "..."')
    console = Console()
    model, experiment = load_model(Path(options.model), best_device())
    cases = choose_cases(
        Path(options.model),
        experiment.data,
        options.split,
        kind=options.kind,
        root=options.data_root,
        split_file=options.split_file,
        reason=options.reason,
    )
    with console.status("evaluating") as status:
        scores = evaluate_cases(
            model, cases, experiment.data.image_size, mirror=options.mirror,
            progress=lambda done, total: status.update(f"evaluating: {done} of {total} images"),
        )  # fmt: skip
    mean = summarise(list(scores.values()))
    if options.output:
        write_scores(scores, Path(options.output))
    console.print(
        f"{experiment.name}, {options.split} split of {options.kind or experiment.data.kind}, {len(scores)} cases, {RESOLUTION}: "
        f"Dice {mean['dice']:.4f}, IoU {mean['iou']:.4f}, HD95 {mean['hd95']:.2f} px, ASD {mean['asd']:.2f} px (MONAI's definitions)",
        highlight=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
