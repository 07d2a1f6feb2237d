"""The command ``ensemble``: several trained models as one."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from guidino_tune import paths
from guidino_tune.cli import add_backbone_option, add_storage_option, add_trust_option, parser, positive, run

if TYPE_CHECKING:
    from guidino_tune.workflows.ensemble import Ensembled

EXAMPLES = """\
  guidino-tune ensemble kvasir --output team        the best of a study's models, chosen on its validation images
  guidino-tune ensemble kvasir --output team --candidates 10 --members 3
  guidino-tune ensemble RETRAINED/seed-0 RETRAINED/seed-1 RETRAINED/seed-2 --all --output seeds
                                                    named models, each with the same weight

From the best model on, whichever improves the mean most is added, the same one too (Caruana 2004). What that gains is told on
images that had no part in the choice. OUTPUT is a model: predict, evaluate and others take it. Each member costs a pass."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and makes the ensemble; see ``--help``."""
    made = parser("ensemble", "Average the best models of a study, or models that are named, as one model.", EXAMPLES)
    made.add_argument(
        "sources", nargs="+", metavar="STUDY or MODEL", help="a study, by its name or folder; or folders of models or trials of one split"
    )
    made.add_argument("--output", required=True, metavar="DIR", help="the new model folder")
    made.add_argument("--candidates", type=positive, default=20, help="of a study: its best so many with weights (default: 20)")
    made.add_argument("--members", type=positive, default=5, help="different models that are chosen at most (default: 5)")
    made.add_argument("--all", action="store_true", help="choose none: all named models, each with the same weight")
    made.add_argument("--data-root", metavar="DIR", help="folder of the data set")
    made.add_argument("--force", action="store_true", help="replace an ensemble that is there")
    add_backbone_option(made)
    add_trust_option(made)
    add_storage_option(made)
    return run(_ensemble, made, argv)


def _ensemble(options: argparse.Namespace) -> int:
    from rich.console import Console

    from guidino_tune import targets
    from guidino_tune.workflows.ensemble import make_ensemble

    targets.trust(*([targets.EVERYTHING] if options.trust else ()))
    console = Console(markup=False, emoji=False)
    found = make_ensemble(
        options.sources, options.output, candidates=options.candidates, most=options.members, every=options.all, force=options.force,
        storage=options.storage, data_root=options.data_root, backbones=options.backbone, console=console,
    )  # fmt: skip
    for line in _lines(found):
        console.print(line, highlight=False, soft_wrap=True)
    return 0


def _lines(found: Ensembled) -> list[str]:
    dice, seconds = found.dice, found.seconds
    names = ", ".join(f"{name}{f' x{weight}' if weight > 1 else ''}" for name, weight in found.members.items())
    lines = [
        f"ensemble of {len(found.members)}: {names}",
        f"validation Dice {dice['ensemble']:.4f}; the best of them alone {dice['alone']:.4f} (at training size)",
    ]
    if found.gains:
        gain, plain = found.gains["greedy"], found.gains["best"]
        lines.append("chosen on these images, so that is too good. Chosen on one half and scored on the other, over the best alone:")
        lines.append(f"  this choice {gain}, the plain mean of as many as are allowed {plain} Dice (95 %)")
        if gain.low <= 0:
            lines.append("  no gain beyond chance: the best model alone may be as good, and is cheaper")
    times = seconds["ensemble"] / seconds["alone"]
    lines.append(f"an image takes {seconds['ensemble']:.2g} s instead of {seconds['alone']:.2g} s, {times:.1f} times as long")
    lines.append(f"with test-time flips (--mirror): Dice {dice['flips']:.4f}, {seconds['flips']:.2g} s")
    model = shlex.quote(str(found.model))
    lines.append(f"written: {found.model}")
    lines.append(f" predict: {paths.next_command(f'predict {model} IMAGES --output masks')}")
    lines.append(f"evaluate: {paths.next_command(f'evaluate {model} --split validation')}")
    if found.study:
        lines.append(f"  report: {paths.next_command(f'report {found.study}')}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
