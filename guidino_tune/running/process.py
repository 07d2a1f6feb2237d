"""What every training process is told beside its experiment, and what it looks at before it trains on its node."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from guidino_tune import __version__, paths
from guidino_tune.config import Data, Resources
from guidino_tune.data.makers import number_of
from guidino_tune.running.cluster import Plan
from guidino_tune.training.failures import UnfitNode
from guidino_tune.training.folder import write_text

MARKER = "marker"
"""In the folder of a run: a text that only its driver can have written. A node that does not see it has another folder there."""

MOUNTS = 20.0
"""Seconds that a network file system may take to show what another machine has written."""

LEAST_FREE = 20 * 10**6
"""Bytes that a trial's folder needs at least; fewer fail in the middle of a checkpoint."""

SAME_VERSIONS = ("torch", "transformers", "guidino-tune")
"""With other versions of these a trial computes something else."""


def process_settings(plan: Plan, resources: Resources, *, ray_folder: Path, precision: str = "", rules: int = 1) -> dict[str, Any]:
    """What every training process must know beside its experiment; paths are absolute, for it runs in another folder or on another node.

    Writes the marker of this run, see ``check_node``.

    Args:
        plan: Of the run.
        resources: Of the space.
        ray_folder: Of the run.
        precision: That was settled for the study, see ``study.precision``: a node must compute in it natively.
        rules: Of the study, see ``study.store.BEGUN_BY``.
    """
    from guidino_tune import targets
    from guidino_tune.known_backbones import packed

    makers = number_of(resources.view_makers, plan.cpus, plan.gpus) if resources.shared in (True, "once") else 0
    mark = uuid.uuid4().hex
    ray_folder.mkdir(parents=True, exist_ok=True)
    write_text(ray_folder / MARKER, mark)
    return {
        "home": str(paths.home()),
        "mark": (str(ray_folder / MARKER), mark),
        "versions": {name: _release(name) for name in SAME_VERSIONS},
        "backbones": packed(),
        "own_code": targets.packed(),
        "ray_folder": str(ray_folder / "train"),
        "executor": plan.executor,
        "cpus": plan.cpus,
        "gpus": plan.gpus,
        "accelerator": plan.accelerator,
        "memory": plan.memory,
        "precision": precision,
        "rules": rules,
        "workers": resources.workers,
        "max_failures": resources.max_failures,
        "views": (resources.views_folder, resources.views_gigabytes, makers) if resources.shared else None,
        "share_views": resources.shared,
    }


def check_node(config: Mapping[str, Any], data: Data) -> None:
    """Looks whether trials can run on the node of this process; what once was right is not looked at again.

    Args:
        config: From ``process_settings``, with the folder of the trial.
        data: Of its experiment.

    Raises:
        UnfitNode: The study's folder or the data are not there, the disk is full, versions differ, the GPU does not work, or it has not the
            precision of the study.
    """
    if "mark" not in config:
        return
    marker, mark = config["mark"]
    _check_folder(Path(marker), mark)
    if data.root:
        _check_data(data.root)
    _check_versions(tuple(config["versions"].items()))
    if config["gpus"]:
        _check_gpu()
    if config.get("precision") in ("bf16", "fp16"):
        _check_precision(config["precision"], "cuda" if config["gpus"] else "cpu")
    free = shutil.disk_usage(Path(marker).parent).free
    if free < LEAST_FREE:
        raise UnfitNode(f"only {free / 1e6:.0f} MB are free", where=config["folder"], todo="make room, or take the node out of the cluster")


@lru_cache
def _check_folder(marker: Path, mark: str) -> None:
    deadline = time.monotonic() + (MOUNTS if marker.parent.parent.is_dir() else 0)
    while _read(marker) != mark:
        if time.monotonic() > deadline:
            what = "is another folder there than on the driver's machine" if marker.parent.parent.is_dir() else "is not there"
            raise UnfitNode(
                f"the study's folder {what}", where=str(marker.parent.parent),
                todo="mount GUIDINO_TUNE_HOME on every node, under the same path",
            )  # fmt: skip
        time.sleep(0.2)


def _read(file: Path) -> str:
    try:
        os.listdir(file.parent)  # asks a network file system anew
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""


@lru_cache
def _check_data(root: str) -> None:
    if not Path(root).expanduser().exists():
        raise UnfitNode("the data are not there", where=root, todo="mount them on every node, under the same path")


@lru_cache
def _check_versions(wanted: tuple[tuple[str, str], ...]) -> None:
    other = [f"{name} {_release(name)} instead of {release}" for name, release in wanted if _release(name) != release]
    if other:
        raise UnfitNode(
            f"it has {', '.join(other)}, so that its trials could not be compared with others",
            todo="install the same versions on every node",
        )


def _release(name: str) -> str:
    """A version without what is behind a plus, which names the build: a head without GPUs has another one than its nodes.

    Of this package it is that of its code, which may have come with the job, and not that of an installation beside it.
    """
    if name == "guidino-tune":
        return __version__
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return "none"


@lru_cache
def _check_gpu() -> None:
    import torch

    try:
        torch.zeros(1, device="cuda").item()
    except torch.OutOfMemoryError:
        return  # taken, but at work
    except Exception as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnfitNode(f"its GPU does not work: {said}", todo="look at nvidia-smi and the driver's version on that node") from None


@lru_cache
def _check_precision(precision: str, device: str) -> None:
    import torch

    from guidino_tune.models.precision import has_fp16, use_bf16

    here = torch.device(device)
    if not (has_fp16(here) if precision == "fp16" else use_bf16("auto", here)):  # GPUs that multiply bf16 do fp16 as well
        what = f"its GPU ({torch.cuda.get_device_name()})" if device == "cuda" else "its processor"
        raise UnfitNode(
            f"{what} does not compute in {precision}, the precision of this study, which all nodes had when it began",
            todo="take the node out, name a type of GPU (resources.accelerator), or begin another study with training.precision=fp32",
        )
