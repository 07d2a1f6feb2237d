"""How fast a node of the cluster makes, reads and trains on images, measured by a task that books what a trial does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guidino_tune import paths, targets
from guidino_tune.config import Experiment, Resources
from guidino_tune.data.makers import number_of
from guidino_tune.known_backbones import adopt, packed
from guidino_tune.running.cluster import Plan, living

if TYPE_CHECKING:
    from guidino_tune.training.view_speeds import Speeds

PATIENCE = 300.0
"""Seconds for the measurement, with the wait for a free place, and with the images that the node decodes for its trials anyway."""


class Unmeasured(Exception):
    """Why a node's speeds are not known."""


def speeds_on_node(experiment: Experiment, split_file: Path, resources: Resources, booked: Plan, stored: int) -> Speeds:
    """What one training of the plan does alone on a node, see ``training.view_speeds.measure``.

    Args:
        experiment: Of the study.
        split_file: Of the study.
        resources: Of the space.
        booked: The plan of the search, in whose cluster this process is.
        stored: Bytes of all views and tokens of the study.

    Raises:
        Unmeasured: No place was free in time, or it failed there.
    """
    import ray

    worker = booked.worker
    typed = {name: part for name, part in worker.booked.items() if name not in ("CPU", "GPU", "memory")}
    settings = {
        "home": str(paths.home()), "backbones": packed(), "own_code": targets.packed(), "cpus": worker.cpus, "stored": stored,
        "device": "cuda" if worker.gpus else "cpu", "makers": number_of(resources.view_makers, worker.cpus, worker.gpus),
        "folder": resources.views_folder, "gigabytes": resources.views_gigabytes,
    }  # fmt: skip
    # A process of its own: what it takes of a GPU is given back.
    remote = ray.remote(num_cpus=worker.cpus, num_gpus=worker.gpus, resources=typed, max_calls=1, max_retries=0)(_measured)
    task = remote.remote(experiment.to_dict(), str(split_file), settings)
    try:
        found: Speeds = ray.get(task, timeout=PATIENCE)
    except TimeoutError:  # Ray's own is one
        ray.cancel(task, force=True)
        raise Unmeasured(f"no place was free for it, or it took more than {PATIENCE:g} s") from None
    except ray.exceptions.RayError as error:
        raise Unmeasured(str(error).strip().splitlines()[-1]) from None
    return found


def _measured(experiment: Mapping[str, Any], split_file: str, settings: Mapping[str, Any]) -> Speeds:
    import os

    import torch

    from guidino_tune.data.opening import open_for_search
    from guidino_tune.data.store import ChunkStore
    from guidino_tune.training.view_speeds import measure

    os.environ["GUIDINO_TUNE_HOME"] = settings["home"]
    torch.set_num_threads(settings["cpus"])
    adopt(settings["backbones"])
    targets.adopt(settings["own_code"])
    trained = Experiment.from_dict(experiment)
    data = open_for_search(trained.data, split_file=Path(split_file))
    gigabytes = settings["gigabytes"]
    store = ChunkStore(Path(settings["folder"] or paths.views()), None if gigabytes is None else int(gigabytes * 1e9))
    return measure(trained, data, store, device=settings["device"], makers=settings["makers"], stored=settings["stored"])


def side_by_side(booked: Plan) -> tuple[int, int, int]:
    """Processes of trials on the node that carries most of them, those that share a GPU, and the nodes that carry any."""
    places = [places for has in living().values() if (places := booked.worker_on(has).places(has))]
    shares = [1 / worker.gpus for worker in (booked.worker, *booked.kinds.values()) if 0 < worker.gpus < 1]
    most = min(max(places, default=1), booked.concurrent * booked.workers)
    return most, round(max(shares, default=1.0)), max(1, len(places))
