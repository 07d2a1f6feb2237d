"""Which gives most images a second on one GPU: a trial alone, the same as CUDA graphs, or two or four side by side?"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import BrokenBarrierError
from typing import Any

import torch
from gpu_bench import Bench, Row, rate, wait

FAMILIES = ("unet", "nnwnet", "segguidino")
ALONE, GRAPHS = "1 eager", "1 cuda-graphs"
WAYS: dict[str, tuple[int, str]] = {ALONE: (1, "none"), "2 eager": (2, "none"), "4 eager": (4, "none"), GRAPHS: (1, "cuda-graphs")}
"""How many trials, and their ``training.compile``."""

SETTINGS = {
    ALONE: "resources.trials_per_gpu=1 training.compile=none",
    "2 eager": "resources.trials_per_gpu=2 training.compile=none",
    "4 eager": "resources.trials_per_gpu=4 training.compile=none",
    GRAPHS: "resources.trials_per_gpu=1 training.compile=cuda-graphs",
}
WORTH = 1.05
"""Times as fast as a trial alone, from which another setting is worth its memory."""

PATIENCE = 180
"""Seconds for whatever comes next from another process; a compilation is the longest."""


def packing(bench: Bench) -> Iterator[Row]:
    """Images a second of all trials together, in each way, and what to set; every trial is a process of its own."""
    ways = [way for way, (_, how) in WAYS.items() if how == "none" or bench.device.type == "cuda"]
    kinds = [kind for kind in FAMILIES if kind in bench.kinds]
    context, most = multiprocessing.get_context("spawn"), max(WAYS[way][0] for way in ways)
    barrier, answers = context.Barrier(most), context.Queue()
    shared = (kinds, ways, str(bench.device), bench.size, bench.seconds, str(bench.scratch), bench.threads, barrier, answers)
    children = [context.Process(target=_trials, args=(number, *shared), daemon=True) for number in range(most)]
    for child in children:
        child.start()
    try:
        for kind in kinds:
            rates = {}
            for way in ways:
                found = [answers.get(timeout=PATIENCE) for _ in range(WAYS[way][0])]
                problems = [answer for answer in found if isinstance(answer, str)]
                if not problems:
                    rates[way] = sum(found)
                note = problems[0] if problems else f"{rates[way] / rates[ALONE]:.2f} of a trial alone" if ALONE in rates else ""
                yield Row("packing", f"{kind} {way}", rates.get(way), "img/s", note)
            if rates:
                yield Row("packing", kind, None, note=advice(rates))
    finally:
        for child in children:
            child.terminate()
            child.join(PATIENCE)


def advice(rates: Mapping[str, float]) -> str:
    """What to set, by the images a second of each way."""
    best = max(rates, key=lambda way: rates[way])
    if ALONE in rates and rates[best] < WORTH * rates[ALONE]:
        best = ALONE
    return f"fastest: {best}; set {SETTINGS[best]}"


def _trials(
    number: int, kinds: Sequence[str], ways: Sequence[str], device: str, size: int, seconds: float, scratch: str, threads: int,
    barrier: Any, answers: Any,
) -> None:  # fmt: skip
    """One of the processes: takes part in what needs so many, and waits while others do."""
    torch.set_num_threads(threads)
    bench = Bench(torch.device(device), size, list(kinds), seconds, Path(scratch), time.monotonic() + PATIENCE)
    for kind in kinds:
        for way in ways:
            trials, how = WAYS[way]
            step, answer = None, ""
            if number < trials:
                try:
                    run = bench.run(bench.experiment(kind, compile=how), f"packing-{kind}-{number}-{way.replace(' ', '-')}")
                    batch = bench.batch(run)
                    run.module.train()
                    step = lambda run=run, batch=batch: run.step(batch)  # noqa: E731
                    for _ in range(4):  # a graph is recorded in the second
                        step()
                    wait()
                except Exception as error:
                    answer = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            try:
                barrier.wait(PATIENCE)
            except BrokenBarrierError:
                return
            if number < trials:
                answers.put(answer or rate(step, len(batch.ids), seconds, 0))  # type: ignore[arg-type]
            step = run = batch = None  # type: ignore[assignment]
            bench.close()
