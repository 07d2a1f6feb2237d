"""The final measurement: trained models on the sealed test cases, or on those for validation, each once, side by side on the cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from guidino_tune import paths, targets
from guidino_tune.config import Data, Protocol, Resources
from guidino_tune.data.cases import Case
from guidino_tune.data.openings import earlier_openings, openings
from guidino_tune.data.sealed import open_test
from guidino_tune.data.sources import find_cases
from guidino_tune.data.splits import read_split
from guidino_tune.errors import UserError
from guidino_tune.known_backbones import adopt, packed
from guidino_tune.metrics import CaseScore, hd95_percent, summarise, with_classes
from guidino_tune.running.connection import connected
from guidino_tune.running.elastic import plan_when_possible
from guidino_tune.training.ensemble_folder import weights_digest
from guidino_tune.training.evaluation import choose_largest_component, evaluate_cases, write_scores
from guidino_tune.training.folder import TrialFolder
from guidino_tune.training.measured import Measured, Part, cases_file, read_measured, remember
from guidino_tune.training.model_folder import find_rules, load_model


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
    part: Part = "test",
    split_files: Mapping[str, Path] | None = None,
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Measures every model that was not measured in this way before, and remembers the results in the models' folders.

    Args:
        models: Folders with best weights, by the name under which a person knows them.
        data: The data set; which parts of it a model needs is in the model's own experiment.
        split_file: Names the test cases, and the validation cases on which post-processing may be chosen.
        protocol: How to measure.
        resources: Of one training; a measurement takes as much.
        reason: Written down beside the split file, once for all models.
        console: For progress.
        limit: Only the first so many test cases; ``None`` takes all.
        part: ``test`` opens the seal, and tells when that happened before; ``validation`` does not.
        split_files: Of models that have validation cases of their own, by name.

    Returns:
        The results, and the reasons of those models that could not be measured. One failure costs no other model its result.

    Raises:
        UserError: The split has no test cases.
    """
    protocol = protocol.of(data)
    wanted = dataclasses.asdict(protocol) | {"limit": limit}
    results, missing = {}, {}
    for name, folder in models.items():
        weights = weights_digest(folder.path)
        known = [m for m in read_measured(folder, part) if (m.weights, m.asked) == (weights, wanted)]
        if known:
            results[name] = known[0]
            remember(folder, known[0], part)
        else:
            missing[name] = weights
    if not missing:
        return results, {}
    choosing = protocol.largest_component == "validation"
    validation: dict[str, list[Case]] = {}
    if choosing or part == "validation":
        listing = find_cases(data)
        validation = {name: listing.select(read_split((split_files or {}).get(name, split_file)).validation) for name in missing}
    cases: list[Case] = []
    if part == "test":
        before = earlier_openings(openings(split_file))
        cases = open_test(data, split_file, reason=f"{reason}: {', '.join(missing)}")[:limit]
        if before:
            console.print(f"note: {before}", style="yellow", highlight=False, soft_wrap=True)
    failures: dict[str, str] = {}

    def take(name: str, job: Any) -> None:
        try:
            scores, used, choice = ray.get(job)
        except ray.exceptions.RayError as error:
            failures[name] = _reason(error)
            console.print(f"{part} {name} failed: {failures[name]}", style="red", highlight=False, soft_wrap=True)
            return
        mean = with_classes(summarise(list(scores.values())), data.class_keys) | {"hd95_percent": hd95_percent(list(scores.values()))}
        results[name] = Measured(missing[name], wanted, used.describe(), len(scores), mean, choice)
        write_scores(scores, cases_file(models[name], results[name], part), used, data)
        remember(models[name], results[name], part)
        console.print(f"{part} {name}: Dice {mean['dice']:.4f} on {len(scores)} cases", highlight=False)

    with connected():
        booked = plan_when_possible(dataclasses.replace(resources, workers=1, executor="actor"), console.print)
        typed = {name: part for name, part in booked.booked.items() if name not in ("CPU", "GPU")}
        remote = ray.remote(num_cpus=booked.cpus, num_gpus=booked.gpus, resources=typed, max_retries=resources.max_failures)(_measure)
        settings = {
            "home": str(paths.home()), "backbones": packed(), "own_code": targets.packed(),
            "cpus": booked.cpus, "device": "cuda" if booked.gpus else "cpu",
        }  # fmt: skip
        waiting, jobs = list(missing), dict[Any, str]()
        while waiting or jobs:
            while waiting and len(jobs) < booked.concurrent:
                name = waiting.pop(0)
                scored, chosen_on = validation[name][:limit] if part == "validation" else cases, validation[name] if choosing else []
                jobs[remote.remote(str(models[name].path), scored, chosen_on, protocol, settings)] = name
            (done,), _ = ray.wait(list(jobs), num_returns=1)
            take(jobs.pop(done), done)
    return results, failures


def _reason(error: Exception) -> str:
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError):
        return "; ".join(line.removeprefix("  -> ") for line in str(cause).splitlines())
    return str(error).strip().splitlines()[-1]


def _measure(
    folder: str, cases: Sequence[Case], validation: Sequence[Case], protocol: Protocol, settings: Mapping[str, Any]
) -> tuple[dict[str, CaseScore], Protocol, dict[str, float]]:
    """One model, in a process of its own."""
    import os

    import torch

    os.environ["GUIDINO_TUNE_HOME"] = settings["home"]
    torch.set_num_threads(settings["cpus"])
    adopt(settings["backbones"])
    targets.adopt(settings["own_code"])
    model, experiment = load_model(Path(folder), settings["device"])
    rules, choice = find_rules(Path(folder), experiment.data), dict[str, float]()
    if protocol.largest_component == "validation":
        protocol, choice = choose_largest_component(model, validation, experiment.data, protocol, rules=rules)
    return evaluate_cases(model, cases, experiment.data, protocol, rules=rules), protocol, choice
