"""Does it compute the same on this GPU as on a CPU, and how fast?

    python tests/benchmarks/gpu.py

takes at most eight minutes on one GPU and needs no data: images are generated, weights are random. Parts: parity of every segmenter with
the CPU; a ViT-S/16 beside timm's published figures; an epoch of every segmenter on shared views, the share of it that bare steps take, and
how busy the GPU is; a run that is broken off and goes on; running out of memory; NCCL with one rank; a trial alone, as CUDA graphs, two
and four side by side, and what to set for the fastest; views made on the GPU, by the CPU and read from the store; batches of 4 and 16;
eager, compiled and CUDA graphs. A part that fails costs no other part its figures; what has no time left is named. Prints a table and
writes ``gpu.json``; the exit code is 1 where a comparison failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from gpu_bench import Bench, Row
from gpu_parts import PARTS
from measuring import OUTPUT, machine

from guidino_tune.cli import positive
from guidino_tune.errors import UserError, nearest
from guidino_tune.models.segmenters import SEGMENTERS

LEAST = 10.0
"""Seconds that a part is given at least; with less left it does not begin."""


def main(argv: Iterable[str] | None = None) -> int:
    """Measures, prints and writes."""
    begun = time.monotonic()
    options = arguments(argv)
    try:
        kinds = chosen(options.segmenters, [kind for kind in SEGMENTERS if kind != "custom"], "--segmenters")
        parts = chosen(options.parts, list(PARTS), "--parts")
        if options.device == "cuda" and not torch.cuda.is_available():
            raise UserError("torch finds no GPU here", where="--device", todo="look at nvidia-smi, or give --device cpu to try the script")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    print(f"{machine()}\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(
            torch.device(options.device), options.image_size, kinds, options.seconds, Path(scratch), begun + 60 * options.minutes,
            options.threads, options.images,
        )  # fmt: skip
        for part in parts:
            for row in measured(part, bench):
                rows.append(row)
                print(line(row), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), "seconds": time.monotonic() - begun, "rows": [dataclasses.asdict(row) for row in rows]}
    (options.output / "gpu.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    failed = [f"{row.part} {row.what}" for row in rows if row.good is False]
    verdict = f"failed: {', '.join(failed)}" if failed else "nothing failed"
    print(f"\n{verdict}; {time.monotonic() - begun:.0f} s; {options.output / 'gpu.json'}")
    return int(bool(failed))


def measured(part: str, bench: Bench) -> Iterable[Row]:
    """The rows of a part; one that says why there are no more, where it failed."""
    if bench.left < LEAST:
        yield Row(part, "", None, note="not run: no time left")
        return
    begun = time.monotonic()
    try:
        for row in PARTS[part](bench):
            yield row
            if bench.left < LEAST:
                yield Row(part, "", None, note="broken off: no time left")
                return
    except Exception as error:
        traceback.print_exc()
        yield Row(part, "", None, note=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", good=False)
    finally:
        bench.close()
        print(f"  ({part}: {time.monotonic() - begun:.0f} s)", flush=True)


def line(row: Row) -> str:
    """One of the table."""
    value = "" if row.value is None else f"{row.value:.4g} {row.unit}"
    verdict = {True: "good", False: "FAILED", None: ""}[row.good]
    return f"{row.part:<11}{row.what:<38}{value:<26}{verdict:<8}{row.note}".rstrip()


def chosen(given: str | None, known: list[str], where: str) -> list[str]:
    """Names, separated by commas; all where nothing is given.

    Raises:
        UserError: One is unknown.
    """
    names = given.split(",") if given else known
    for name in names:
        if name not in known:
            raise UserError(f"unknown name {name!r}", where=where, todo=nearest(name, known))
    return names


def arguments(argv: Any) -> argparse.Namespace:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the script itself; default: %(default)s")
    made.add_argument("--parts", help=f"some of {', '.join(PARTS)}, with commas; default: all")
    made.add_argument("--segmenters", help="some, with commas; default: all")
    made.add_argument("--image-size", type=positive, default=256, help="in pixels; default: %(default)s")
    made.add_argument("--images", type=positive, default=64, help="of an epoch; default: %(default)s")
    made.add_argument("--seconds", type=float, default=2.0, help="for which each rate is measured; default: %(default)s")
    made.add_argument("--minutes", type=float, default=8.0, help="after which nothing new begins; default: %(default)s")
    made.add_argument("--threads", type=positive, default=1, help="of torch; default: %(default)s")
    made.add_argument("--output", metavar="DIR", type=Path, default=OUTPUT, help="gets gpu.json; default: %(default)s")
    return made.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
