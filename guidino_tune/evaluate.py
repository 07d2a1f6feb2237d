"""The command ``evaluate``: scores of a model on the validation or the sealed test split."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from guidino_tune.cli import add_backbone_option, add_format_option, add_protocol_options, add_trust_option, parser, protocol_values, run

EXAMPLES = """\
  guidino-tune evaluate ~/guidino_tune/retrained/kvasir-12/model
  guidino-tune evaluate ~/guidino_tune/studies/kvasir/trials/00012 --split validation
  guidino-tune evaluate MODEL --split test --reason "figure 3 of the paper" --output scores.csv
  guidino-tune evaluate MODEL --inference sliding --mirror --largest-component validation
  guidino-tune evaluate MODEL --kind folder --data-root /data/other_hospital --split all

Every opening of the test split is written down beside the split file, with its reason."""


METRICS = ("dice", "iou", "hd95", "asd")


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and evaluates; see ``--help``."""
    made = parser("evaluate", "Score a model per case and on average: Dice, IoU, HD95 and ASD.", EXAMPLES)
    made.add_argument("model", help="model folder of `retrain`, or a trial's folder of a study")
    made.add_argument("--split", choices=["validation", "test", "all"], default="validation", help="all: every case of another data set")
    made.add_argument("--reason", help="why the test split is opened; needed for --split test")
    made.add_argument("--kind", help="another data set: kvasir, isic2017, tn3k, folder or demo")
    made.add_argument("--data-root", metavar="DIR", help="folder of the data set")
    made.add_argument("--split-file", metavar="FILE", help="split of the study (default: found beside the model)")
    add_backbone_option(made, several=False)
    add_trust_option(made)
    add_protocol_options(made, scores=True)
    add_format_option(made)
    made.add_argument("--output", metavar="FILE", help="write one line per case (CSV); replaces scores, and no other file")
    return run(_evaluate, made, argv)


def _evaluate(options: argparse.Namespace) -> int:
    from rich.console import Console

    from guidino_tune import targets
    from guidino_tune.config import Protocol
    from guidino_tune.config.parsing import parse
    from guidino_tune.workflows.evaluate import evaluate_model
    from guidino_tune.workflows.tables import print_data

    targets.trust(*([targets.EVERYTHING] if options.trust else ()))
    console = Console(markup=False, emoji=False, stderr=options.format != "table")
    names = ("split", "reason", "kind", "data_root", "split_file", "output")
    found = evaluate_model(
        options.model, backbones=options.backbone, protocol=parse(Protocol, protocol_values(options), "options"), console=console,
        **{name: getattr(options, name) for name in names},
    )  # fmt: skip
    data = found.experiment.data
    if options.format != "table":
        classes = enumerate(data.class_names, 1) if data.num_classes > 1 else ()
        parts = {"all": "", **{name: f"_class_{number}" for number, name in classes}}
        about = [found.experiment.name, options.split, options.kind or data.kind, len(found.scores), found.protocol.describe()]
        rows = [[name, *(found.mean[metric + suffix] for metric in METRICS), *about] for name, suffix in parts.items()]
        print_data(options.format, ["class", *METRICS, "system", "split", "data", "cases", "protocol"], rows)
        return 0
    where = f"{options.split} split of {options.kind or data.kind}, {len(found.scores)} cases, {found.protocol.describe()}"
    console.print(f"{found.experiment.name}, {where}: {_line(found.mean, '')}", highlight=False, soft_wrap=True)
    for number, name in enumerate(data.class_names, 1) if data.num_classes > 1 else ():
        console.print(f"  {name}: {_line(found.mean, f'_class_{number}')}", highlight=False, soft_wrap=True)
    return 0


def _line(mean: Mapping[str, float], suffix: str) -> str:
    dice, iou, hd95, asd = (mean[name + suffix] for name in METRICS)
    return f"Dice {dice:.4f}, IoU {iou:.4f}, HD95 {hd95:.2f} px, ASD {asd:.2f} px"


if __name__ == "__main__":
    sys.exit(main())
