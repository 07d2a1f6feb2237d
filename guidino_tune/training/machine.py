"""On what a run was computed: kept beside its results, for the same numbers come out only where all of it is the same."""

from __future__ import annotations

import json
import platform
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from guidino_tune import __version__
from guidino_tune.models.precision import use_bf16
from guidino_tune.training.compiling import NONE
from guidino_tune.training.folder import write_text
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.noted_machines import FILE, read_machines

PACKAGES = ("torch", "transformers", "peft", "monai", "numpy")


def describe(run: TrainingRun) -> dict[str, Any]:
    """Versions, machine, device, threads and precision of a run in this process, in plain types; ``compile`` where steps are compiled."""
    cuda = run.device.type == "cuda"
    return {
        "guidino_tune": __version__,
        **_versions(),
        "python": platform.python_version(),
        "machine": platform.node(),
        "processor": _processor(),
        "device": torch.cuda.get_device_name(run.device) if cuda else run.device.type,
        "cuda": torch.version.cuda if cuda else None,
        "threads": torch.get_num_threads(),
        "bf16": use_bf16(run.experiment.training.precision, run.device),
        "fp16": run.experiment.training.precision == "fp16",
        "workers": run.world_size,
        **({} if run.compiled.way == NONE else {"compile": run.compiled.way}),
        "backbone": run.model.fingerprint,
    }


def note_machine(folder: Path, run: TrainingRun) -> None:
    """Adds what this process computes on to the folder's list, unless the process before it said the same; again once steps are compiled.

    That is rounded otherwise.
    """
    run.compiled.changed = partial(note_machine, folder, run)
    known, now = read_machines(folder), describe(run)
    if not known or {**known[-1], "after_epoch": 0} != {**now, "after_epoch": 0}:
        write_text(folder / FILE, json.dumps([*known, {"after_epoch": run.epoch, **now}], indent=1) + "\n")


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


@cache
def _processor() -> str:
    """The processor's name as Linux tells it; elsewhere the kind of machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
