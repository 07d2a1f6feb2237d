"""The command ``evaluate``: scores of a model on the validation or the sealed test split."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from guidino_tune.cli import add_backbone_option, add_protocol_options, add_trust_option, parser, protocol_values, run

EXAMPLES = """\
  guidino-tune evaluate ~/guidino_tune/retrained/kvasir-12/model
  guidino-tune evaluate ~/guidino_tune/studies/kvasir/trials/00012 --split validation
  guidino-tune evaluate MODEL --split test --reason "figure 3 of the paper" --output scores.csv
  guidino-tune evaluate MODEL --inference sliding --mirror --largest-component validation
  guidino-tune evaluate MODEL --kind folder --data-root /data/other_hospital --split all

Every opening of the test split is written down beside the split file, with its reason."""


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
    made.add_argument("--output", metavar="FILE", help="write one line per case (CSV); replaces scores, and no other file")
    return run(_evaluate, made, argv)


def _evaluate(options: argparse.Namespace) -> int:
    from pathlib import Path

    from rich.console import Console

    from guidino_tune import targets
    from guidino_tune.config import Protocol
    from guidino_tune.config.parsing import parse
    from guidino_tune.data.openings import earlier_openings, openings
    from guidino_tune.errors import UserError
    from guidino_tune.known_backbones import chosen, expecting
    from guidino_tune.metrics import summarise
    from guidino_tune.training.evaluation import (
        check_scores_file,
        choose_cases,
        choose_largest_component,
        evaluate_cases,
        find_split,
        rules_for,
        validation_cases,
        write_scores,
    )  # fmt: skip
    from guidino_tune.training.model_folder import best_device, find_rules, load_model

    if options.split == "test" and not options.reason:
        raise UserError("opening the sealed test split needs a reason", where="--split test", todo='add --reason "..."')
    if options.output:
        check_scores_file(Path(options.output))
    targets.trust(*([targets.EVERYTHING] if options.trust else ()))
    protocol = parse(Protocol, protocol_values(options), "options")
    console = Console(markup=False, emoji=False)
    folder = Path(options.model)
    with expecting(chosen(options.backbone)):
        model, experiment = load_model(folder, best_device())
    data, rules = experiment.data, find_rules(folder, experiment.data)
    protocol = protocol.of(data)
    choosing = protocol.largest_component == "validation"
    # With --split all the folder is that of another data set, and post-processing is chosen on the model's own.
    own_root = None if options.split == "all" else options.data_root
    chosen_on = validation_cases(folder, data, root=own_root, split_file=options.split_file) if choosing else []
    split = find_split(folder, options.split_file)
    before = earlier_openings(openings(split)) if split and options.split == "test" else ""
    cases = choose_cases(
        folder, data, options.split,
        kind=options.kind, root=options.data_root, split_file=options.split_file, reason=options.reason,
    )  # fmt: skip
    if before:
        console.print(f"note: {before}", style="yellow", highlight=False, soft_wrap=True)
    own = rules_for(cases, data, rules) if options.split == "all" else rules
    with console.status("evaluating") as status:
        if choosing:
            protocol, dice = choose_largest_component(
                model, chosen_on, data, protocol,
                lambda done, total: status.update(f"choosing the post-processing: {done} of {total} validation images"),
                rules=rules,
            )  # fmt: skip
            console.print(
                f"largest component {protocol.largest_component}: on {len(chosen_on)} validation cases Dice {dice['always']:.4f} with it, "
                f"{dice['never']:.4f} without"
                + (" (the cases that are scored too: their score is a little too good)" if options.split == "validation" else ""),
                highlight=False,
                soft_wrap=True,
            )
        scores = evaluate_cases(
            model, cases, data, protocol, lambda done, total: status.update(f"evaluating: {done} of {total} images"), rules=own
        )
    mean = summarise(list(scores.values()))
    if options.output:
        write_scores(scores, Path(options.output), protocol, data)
    title = f"{experiment.name}, {options.split} split of {options.kind or data.kind}, {len(scores)} cases, {protocol.describe()}"
    console.print(f"{title}: {_line(mean, '')}", highlight=False, soft_wrap=True)
    for number, name in enumerate(data.class_names, 1) if data.num_classes > 1 else ():
        console.print(f"  {name}: {_line(mean, f'_class_{number}')}", highlight=False, soft_wrap=True)
    return 0


def _line(mean: dict[str, float], suffix: str) -> str:
    dice, iou, hd95, asd = (mean[name + suffix] for name in ("dice", "iou", "hd95", "asd"))
    return f"Dice {dice:.4f}, IoU {iou:.4f}, HD95 {hd95:.2f} px, ASD {asd:.2f} px"


if __name__ == "__main__":
    sys.exit(main())
