"""How long a search takes before it trains and after it has trained: this code against an older commit of it.

    python tests/benchmarks/first_epoch.py --than HEAD~10 --rounds 3

Runs the demo search of both, in turn, each with a home folder of its own that already holds the images. Measured are the seconds from the
command to the end of the first trained epoch without that epoch's own, and from the end of the last epoch to the exit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from measuring import parser, ratios, report
from process_tree import Taken, run

from guidino_tune.cli import positive

AIM = 0.5
ROOT = Path(__file__).parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints."""
    options = arguments(argv)
    found: dict[str, list[tuple[float, float, Taken]]] = {"now": [], "then": []}
    with tempfile.TemporaryDirectory() as scratch:
        then = Path(scratch) / "then"
        subprocess.run(["git", "worktree", "add", "--detach", str(then), options.than], cwd=ROOT, check=True, capture_output=True)
        try:
            for number in range(options.rounds + 1):
                for name, code in (("now", ROOT), ("then", then)):
                    measured = search(code, Path(scratch) / f"home-{name}", f"run{number}", options)
                    if number:  # the first one draws the images, and reads all libraries from the disk
                        found[name].append(measured)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(then)], cwd=ROOT, check=True)
    for index, what in enumerate(("from the command to the first epoch", "from the last epoch to the exit")):
        seconds = {name: [(one[0], one[1])[index] for one in rounds] for name, rounds in found.items()}
        told = ", ".join(f"{mine:.1f} / {other:.1f} s" for mine, other in zip(seconds["now"], seconds["then"], strict=True))
        cpu = ", ".join(f"{a[2].cpu:.0f} / {b[2].cpu:.0f} s" for a, b in zip(found["now"], found["then"], strict=True))
        memory = ", ".join(f"{a[2].memory:.0f} / {b[2].memory:.0f} MB" for a, b in zip(found["now"], found["then"], strict=True))
        report(
            f"first epoch {('start', 'end')[index]}", f"the demo search, {what}: now / {options.than}",
            ratios(seconds["now"], seconds["then"]),
            output=options.output, aim=AIM, note=f"{told}; CPU of the whole search {cpu}; most memory {memory}",
        )  # fmt: skip
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--than", default="4bcd326", metavar="COMMIT", help="what this code is compared with; default: %(default)s")
    made.add_argument("--rounds", type=positive, default=2, help="default: %(default)s")
    made.add_argument("--trials", type=positive, default=2, help="of each search; default: %(default)s")
    return made.parse_args(argv)


def search(code: Path, home: Path, name: str, options: argparse.Namespace) -> tuple[float, float, Taken]:
    """Seconds before the first epoch and after the last one of a new study, and what all of it took."""
    command = [sys.executable, "-m", "guidino_tune.search", "demo", "--name", name, "--trials", str(options.trials), "--max-epochs", "2"]
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    begun = time.time()
    taken = run([command], environment=environment | {"GUIDINO_TUNE_HOME": str(home), "PYTHONPATH": str(code)}, folder=code)
    lines = [line for file in home.glob(f"studies/{name}/trials/*/history.jsonl") for line in file.read_text().splitlines()]
    epochs = sorted((record["time"], record["metrics"]["epoch_seconds"]) for record in map(json.loads, lines))
    return epochs[0][0] - epochs[0][1] - begun, begun + taken.wall - epochs[-1][0], taken


if __name__ == "__main__":
    sys.exit(main())
