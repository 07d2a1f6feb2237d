"""The command ``compare``: the best configurations of a study, retrained with several seeds and compared case by case."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from guidino_tune.cli import (
    add_backbone_option,
    add_format_option,
    add_protocol_options,
    add_storage_option,
    add_trust_option,
    parser,
    positive,
    protocol_values,
    run,
)

EXAMPLES = """\
  guidino-tune compare kvasir                       the best three and the default, three seeds each
  guidino-tune compare kvasir --top 5 --seeds 5     more of both: what is trained and measured already is used again
  guidino-tune compare kvasir --epochs 400          with another budget than the search had
  guidino-tune compare kvasir --against default 17  also against trial 17
  guidino-tune compare kvasir --inference sliding --mirror

The winner is chosen on validation; the test cases are opened once, for the winner and what it is held against, and every opening is
written down. The same command continues what was stopped or killed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and compares; see ``--help``."""
    made = parser(
        "compare", "Retrain a study's best configurations and its default, tell them apart by statistics, test the winner.", EXAMPLES
    )
    made.add_argument("study", help="name of the study")
    made.add_argument("--top", type=positive, default=3, help="how many of the best configurations (default: 3)")
    made.add_argument("--seeds", type=positive, default=3, help="trainings of each configuration (default: 3)")
    made.add_argument("--epochs", type=positive, help="budget of each training (default: that of the search)")
    made.add_argument(
        "--against", nargs="+", default=["default"], metavar="WHAT",
        help="numbers of trials, or the word default: the search space's experiment with the first of its first_trials (default: default)",
    )  # fmt: skip
    made.add_argument("--data-root", metavar="DIR", help="folder of the data set, if it has moved")
    add_backbone_option(made)
    made.add_argument("--workers", type=positive, help="processes of one training (default: as in the search, like the next three)")
    made.add_argument("--cpus-per-worker", type=positive, help="CPU cores of each")
    made.add_argument("--gpus-per-worker", type=float, help="a part of one with one worker")
    made.add_argument("--concurrent", type=positive, help="trainings side by side")
    add_storage_option(made)
    add_trust_option(made)
    add_protocol_options(made, scores=True)
    add_format_option(made)
    return run(_compare, made, argv)


def _compare(options: argparse.Namespace) -> int:
    from guidino_tune import targets
    from guidino_tune.config import Protocol
    from guidino_tune.config.parsing import parse

    targets.trust(*([targets.EVERYTHING] if options.trust else ()))
    protocol = parse(Protocol, protocol_values(options), "--inference and others")

    from guidino_tune.workflows.compare import RESULT_HEADINGS, compare_study, result_rows
    from guidino_tune.workflows.progress import make_console
    from guidino_tune.workflows.tables import print_data

    names = ("workers", "cpus_per_worker", "gpus_per_worker", "concurrent")
    found = compare_study(
        options.study, top=options.top, seeds=options.seeds, epochs=options.epochs, against=options.against,
        data_root=options.data_root, resources={name: getattr(options, name) for name in names}, protocol=protocol,
        storage=options.storage, backbones=options.backbone, console=make_console(options.format),
    )  # fmt: skip
    if options.format != "table":
        print_data(options.format, RESULT_HEADINGS, result_rows(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
