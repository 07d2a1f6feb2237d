"""What a search takes, against a queue of plain training scripts: the same configurations, two at a time, on the same machine.

    python tests/benchmarks/against_reference.py --configurations 6 --family unet

Ours is the whole command ``search`` over a list of configurations, with a Ray of its own, its driver and MLflow's records. The others are
processes of ``peers/plain_training.py``, one for each configuration. Both use the same networks, losses, images and precision, one thread
for each training, and validate with one forward pass for each image. Measured of both with all their processes: wall clock, CPU time, and
the most memory at a time (PSS, in which shared pages count once). Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from measuring import parser, report
from process_tree import Taken, run

from guidino_tune.cli import positive
from guidino_tune.config import Experiment

SCRIPT = Path(__file__).parent / "peers/plain_training.py"
FAMILIES = {"unet": {"kind": "unet"}, "seg": {"kind": "segguidino"}}
AIMS = {"wall": 0.6, "cpu": 0.6, "memory": 1.0}
FEW, MANY = 6, 24
AIMS_OF_MANY = {"unet": {"wall": 0.4, "cpu": 0.4, "memory": 1.0}, "seg": {"wall": 0.15, "cpu": 0.15, "memory": 1.0}}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs both in turn and prints."""
    options = arguments(argv)
    found: list[tuple[Taken, Taken]] = []
    with tempfile.TemporaryDirectory() as scratch:
        search(Path(scratch), "first", options, 1)  # draws the images, and reads all libraries from the disk
        for number in range(options.rounds):
            ours = search(Path(scratch), f"run{number}", options, options.configurations)
            found.append((ours, queue(Path(scratch), options)))
    aims = AIMS_OF_MANY[options.family] if options.configurations >= MANY else AIMS if options.configurations == FEW else {}
    what = f"{options.configurations} configurations of {options.family}, {options.epochs} epochs, two at a time: search / plain scripts"
    met = True
    for name, unit in (("wall", "s"), ("cpu", "s"), ("memory", "MB")):
        pairs = [(getattr(mine, name), getattr(other, name)) for mine, other in found]
        note = ", ".join(f"{mine:.0f} / {other:.0f} {unit}" for mine, other in pairs)
        line = (f"against reference {options.family} {options.configurations} {name}", f"{what}, {name}")
        met &= report(*line, [mine / other for mine, other in pairs], output=options.output, aim=aims.get(name), note=note)
    return 0 if met else 1


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--configurations", type=positive, default=FEW, help="default: %(default)s")
    made.add_argument("--family", choices=list(FAMILIES), default="unet", help="GuiDINO-U or Seg-GuiDINO; default: %(default)s")
    made.add_argument("--epochs", type=positive, default=4, help="of each; default: %(default)s")
    made.add_argument("--images", type=positive, default=16, help="for training; default: %(default)s")
    made.add_argument("--image-size", type=positive, default=64, help="in pixels; default: %(default)s")
    made.add_argument("--rounds", type=positive, default=1, help="default: %(default)s")
    return made.parse_args(argv)


def experiment(options: argparse.Namespace) -> dict[str, Any]:
    """The base of all configurations."""
    limits = {"max_train_cases": options.images, "max_validation_cases": max(1, options.images // 4)}
    return {
        "data": {"kind": "demo", "image_size": options.image_size, **limits},
        "guide": {"kind": "dino", "backbone": "vits16", "weights": "random"},
        "segmenter": FAMILIES[options.family],
        "training": {"epochs": options.epochs, "batch_size": 4, "steps_per_epoch": "cases"},
    }


def rates(number: int) -> list[float]:
    """Learning rates, one for each configuration."""
    return [round(1e-4 * 1.2**i, 8) for i in range(number)]


def environment(scratch: Path) -> dict[str, str]:
    """One home folder for both, so that both find the images."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    return kept | {"GUIDINO_TUNE_HOME": str(scratch / "home")}


def search(scratch: Path, name: str, options: argparse.Namespace, number: int) -> Taken:
    """A search over the list."""
    space = {
        "experiment": experiment(options),
        "space": {"training.lr": {"choices": rates(max(2, number))}},
        "first_trials": [{"training.lr": rate} for rate in rates(number)],
        "study": {"name": name, "sampler": "listed", "pruner": "none"},
        # Views and tokens of its own: what an earlier round has made would be a gift.
        "resources": {"concurrent": 2, "cpus_per_worker": 1, "views_folder": str(scratch / f"views-{name}")},
    }
    file = scratch / f"{name}.yaml"
    file.write_text(yaml.safe_dump(space))
    return run([[sys.executable, "-m", "guidino_tune.search", str(file)]], environment=environment(scratch))


def queue(scratch: Path, options: argparse.Namespace) -> Taken:
    """The plain scripts, two at a time."""
    commands = []
    for number, rate in enumerate(rates(options.configurations)):
        base = experiment(options)
        base["training"] = base["training"] | {"lr": rate}
        folder = scratch / f"plain-{number}"
        folder.mkdir(exist_ok=True)
        (folder / "configuration.json").write_text(json.dumps(Experiment.from_dict(base).to_dict()))
        commands.append([sys.executable, str(SCRIPT), str(folder / "configuration.json"), str(folder)])
    return run(commands, side_by_side=2, environment=environment(scratch))


if __name__ == "__main__":
    sys.exit(main())
