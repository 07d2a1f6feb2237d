"""What all benchmarks share: two ways measured side by side, one line and one file for each result, and the table of them all.

    python tests/benchmarks/measuring.py --output build/benchmarks

prints the Markdown table of the results that the benchmarks left there. Only ratios are told: seconds say more about the machine than
about the code.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch

from guidino_tune.errors import UserError

OUTPUT = Path("build/benchmarks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One comparison: ``compared`` says of what with what in words, ``ratios`` are ours over the other's (below 1 is better), one per
    round, ``aim`` is what their median should be at most, and ``note`` what else there is to say."""

    name: str
    compared: str
    ratios: list[float]
    aim: float | None
    note: str
    machine: str
    date: str

    @property
    def met(self) -> bool:
        """Whether the median is at most the aim; true without one."""
        return self.aim is None or statistics.median(self.ratios) <= self.aim

    def cells(self) -> list[str]:
        """Name, what is compared, ratio, aim, verdict and note."""
        rounds = f"{len(self.ratios)} round{'s' if len(self.ratios) > 1 else ''}"
        ratio = f"{statistics.median(self.ratios):.3g} ({min(self.ratios):.3g} to {max(self.ratios):.3g}) over {rounds}"
        aim, verdict = ("no aim", "-") if self.aim is None else (f"at most {self.aim:g}", "met" if self.met else "missed")
        return [self.name, self.compared, ratio, aim, verdict, self.note]


def interleaved(ours: Callable[[], object], other: Callable[[], object], rounds: int, warmup: int = 1) -> tuple[list[float], list[float]]:
    """Seconds of both, taken in turns, so that a machine that gets slower or busier is so for both; ``warmup`` rounds do not count.

    Raises:
        ValueError: Not one round.
    """
    if rounds < 1:
        raise ValueError(f"{rounds} rounds measure nothing")
    times = [(seconds_of(ours), seconds_of(other)) for _ in range(warmup + rounds)][warmup:]
    return [first for first, _ in times], [second for _, second in times]


def seconds_of(call: Callable[[], object]) -> float:
    """How long one call takes, with what it left to the GPU."""
    _synchronise()
    start = time.perf_counter()
    call()
    _synchronise()
    return time.perf_counter() - start


def ratios(ours: Sequence[float], other: Sequence[float]) -> list[float]:
    """Ours over the other's, round by round."""
    return [a / b for a, b in zip(ours, other, strict=True)]


def report(name: str, compared: str, found: Sequence[float], *, output: Path = OUTPUT, aim: float | None = None, note: str = "") -> bool:
    """Prints the one line of a result, writes its file, and says whether the aim is met; see ``Result`` and ``ratios``."""
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    result = Result(name=name, compared=compared, ratios=list(found), aim=aim, note=note, machine=machine(), date=date)
    print(" | ".join(cell for cell in result.cells() if cell), flush=True)
    output.mkdir(parents=True, exist_ok=True)
    numbers = {"median": statistics.median(found), "spread": [min(found), max(found)]}
    file = output / f"{re.sub(r'[^A-Za-z0-9.+-]+', '-', name)}.json"
    file.write_text(json.dumps(dataclasses.asdict(result) | numbers, indent=1), encoding="utf-8")
    return result.met


def machine() -> str:
    """One line: processor, cores, torch, its threads, and GPU."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*:\s*(.+)", info.read_text(encoding="utf-8")) if info.exists() else []
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    threads = f"{os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads"
    return f"{models[0] if models else platform.processor()}, {threads}, {gpu}"


def parser(about: str | None) -> argparse.ArgumentParser:
    """The parser of a benchmark, with what all of them take: ``--data`` and ``--output``."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", metavar="DIR", help="folder of Kvasir-SEG (default: $GUIDINO_TUNE_DATA/kvasir-352)")
    made.add_argument("--output", metavar="DIR", type=Path, default=OUTPUT, help="gets one file per result (default: %(default)s)")
    return made


def kvasir_root(options: argparse.Namespace) -> str:
    """The folder of Kvasir-SEG from ``--data``, else from the environment; without one, a message and exit code 2."""
    root = os.environ.get("GUIDINO_TUNE_DATA")
    folder = options.data or (f"{root}/kvasir-352" if root else None)
    if folder is None or not Path(folder).is_dir():
        what = "no images" if folder is None else f"no folder {folder}"
        print(UserError(what, where="--data", todo="name a folder of Kvasir-SEG, or set GUIDINO_TUNE_DATA"), file=sys.stderr)
        raise SystemExit(2)
    return str(folder)


def table(folder: Path) -> str:
    """The Markdown table of all results in a folder, by name, one for each machine that they come from."""
    read = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    results = [Result(**{field.name: values[field.name] for field in dataclasses.fields(Result)}) for values in read]
    lines = []
    for where in dict.fromkeys(result.machine for result in results):
        own = [result for result in results if result.machine == where]
        heading = f"{where} ({min(r.date for r in own)[:10]} to {max(r.date for r in own)[:10]})"
        lines += ["", heading, "", "| result | compared | ratio | aim | | note |", "|---|---|---|---|---|---|"]
        lines += [f"| {' | '.join(result.cells())} |" for result in own]
    return "\n".join(lines[1:])


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table, and gives the exit code."""
    options = parser(__doc__).parse_args(argv)
    print(table(options.output) or f"no results in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
