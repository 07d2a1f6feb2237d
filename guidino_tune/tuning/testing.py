"""The final measurement: trained models on the sealed test cases, each once, side by side on the cluster."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from guidino_tune import paths
from guidino_tune.config import Data, Protocol, Resources
from guidino_tune.data.cases import Case
from guidino_tune.data.sealed import open_test
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import read_split
from guidino_tune.errors import UserError
from guidino_tune.metrics import CaseScore, summarise
from guidino_tune.training.checkpoints import WEIGHTS
from guidino_tune.training.evaluation import choose_largest_component, evaluate_cases, write_scores
from guidino_tune.training.folder import TrialFolder, write_text
from guidino_tune.training.measured import Measured, read_measured
from guidino_tune.training.model_folder import load_model
from guidino_tune.tuning.cluster import connected, plan


def measure_models(
    models: Mapping[str, TrialFolder],
    data: Data,
    split_file: Path,
    protocol: Protocol,
    *,
    resources: Resources,
    reason: str,
    console: Console,
    limit: int | None = None,
) -> dict[str, Measured]:
    """Measures every model that was not measured before, and remembers the results in the models' folders.

    Args:
        models: Folders with best weights, by the name under which a person knows them.
        data: The data set; which parts of it a model needs is in the model's own experiment.
        split_file: Names the test cases, and the validation cases on which post-processing may be chosen.
        protocol: How to measure.
        resources: Of one training; a measurement takes as much.
        reason: Written down beside the split file, once for all models.
        console: For progress.
        limit: Only the first so many test cases; ``None`` takes all.

    Raises:
        UserError: The split has no test cases, or a case or a model cannot be read.
    """
    digests = {name: hashlib.sha256((folder.best / WEIGHTS).read_bytes()).hexdigest() for name, folder in models.items()}
    known = {name: result for name, folder in models.items() if (result := read_measured(folder)) is not None}
    wanted = dataclasses.asdict(protocol) | {"limit": limit}
    results = {name: r for name, r in known.items() if (r.weights, r.asked) == (digests[name], wanted)}
    missing = [name for name in models if name not in results]
    if not missing:
        return results
    test = open_test(data, split_file, reason=f"{reason}: {', '.join(missing)}")[:limit]
    chosen_on = _validation(data, split_file) if protocol.largest_component == "validation" else []
    with connected():
        booked = plan(dataclasses.replace(resources, workers=1))
        remote = ray.remote(num_cpus=booked.cpus, num_gpus=booked.gpus, max_retries=resources.max_failures)(_measure)
        settings = {"home": str(paths.home()), "cpus": booked.cpus, "device": "cuda" if booked.gpus else "cpu"}
        jobs = {remote.remote(str(models[name].path), test, chosen_on, protocol, settings): name for name in missing}
        while jobs:
            (done,), _ = ray.wait(list(jobs), num_returns=1)
            name = jobs.pop(done)
            try:
                scores, used, choice = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise error.cause from None
                raise
            mean = summarise(list(scores.values()))
            results[name] = Measured(digests[name], wanted, used.describe(), len(scores), mean, choice)
            write_scores(scores, models[name].test_cases, used)
            write_text(models[name].test_file, json.dumps(dataclasses.asdict(results[name]), indent=1))
            console.print(
                f"test {name}: Dice {mean['dice']:.4f} on {len(scores)} cases ({len(missing) - len(jobs)} of {len(missing)})",
                highlight=False,
            )
    return results


def _validation(data: Data, split_file: Path) -> list[Case]:
    return find_cases(data).select(read_split(split_file).validation)


def _measure(
    folder: str, test: Sequence[Case], validation: Sequence[Case], protocol: Protocol, settings: Mapping[str, Any]
) -> tuple[dict[str, CaseScore], Protocol, dict[str, float]]:
    """One model, in a process of its own."""
    import os

    import torch

    os.environ["GUIDINO_TUNE_HOME"] = settings["home"]
    torch.set_num_threads(settings["cpus"])
    model, experiment = load_model(Path(folder), settings["device"])
    choice: dict[str, float] = {}
    if protocol.largest_component == "validation":
        protocol, choice = choose_largest_component(model, validation, experiment.data, protocol)
    return evaluate_cases(model, test, experiment.data, protocol), protocol, choice
