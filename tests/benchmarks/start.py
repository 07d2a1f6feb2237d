"""What the start of one more training process takes: forked from a driver that has imported all, against a process that imports by itself.

    python tests/benchmarks/start.py

Both are what Ray would start: a script under the name of its worker, which then takes one training step of a small network. Ours is forked
by the driver's parent of trials, as in a search; the other is the same script in a Python of its own, as before. Measured when the step is
done: CPU seconds of the process, and the memory that is its own (USS). Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measuring import parser, ratios, report

from guidino_tune.cli import positive

CPU_AIM, MEMORY_AIM = 0.4, 0.6

WORKER = """
import json, re, time
from guidino_tune.running import executors
from guidino_tune.training import loop
from guidino_tune.models.architectures import ARCHITECTURES
ARCHITECTURES["dinov3_vit"].model_class
import torch
torch.set_num_threads(1)
weights = torch.ones(16, 16, 3, 3, requires_grad=True)
torch.nn.functional.conv2d(torch.ones(4, 16, 64, 64), weights).sum().backward()
private = sum(map(int, re.findall(r"^Private_\\w+: +(\\d+) kB", open("/proc/self/smaps_rollup").read(), re.MULTILINE)))
print(json.dumps({"cpu": time.process_time(), "megabytes": private * 1024 / 1e6}))
"""

DRIVER = """
import sys
from guidino_tune.config import Resources
from guidino_tune.running.forking import forked_processes, python_of_trials
with forked_processes(Resources()):
    print(python_of_trials(), flush=True)
    sys.stdin.read()
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints."""
    options = arguments(argv)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["RAY_ADDRESS"] = "local"  # whatever cluster is on this machine
    with (
        tempfile.TemporaryDirectory() as scratch,
        subprocess.Popen(
            [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as driver,
    ):
        script = Path(scratch) / "default_worker.py"
        script.write_text(WORKER)
        assert driver.stdin
        assert driver.stdout
        python = driver.stdout.readline().split()

        def start(command: Sequence[str]) -> dict[str, float]:
            done = subprocess.run([*command, str(script)], env=environment, capture_output=True, text=True, check=True)
            return json.loads(done.stdout)  # type: ignore[no-any-return]

        start(python)  # the first one has the parent import Ray
        start([sys.executable])
        found = [(start(python), start([sys.executable])) for _ in range(options.rounds)]
        driver.stdin.close()
    met = True
    for name, aim in (("cpu", CPU_AIM), ("megabytes", MEMORY_AIM)):
        ours, others = ([pair[side][name] for pair in found] for side in (0, 1))
        note = ", ".join(f"{mine:.2f} / {other:.2f}" for mine, other in zip(ours, others, strict=True))
        compared = f"start of a training process, {name}: forked / by itself"
        met &= report(f"start {name}", compared, ratios(ours, others), output=options.output, aim=aim, note=note)
    return 0 if met else 1


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--rounds", type=positive, default=3, help="default: %(default)s")
    return made.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
