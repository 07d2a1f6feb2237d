"""Fingerprints of guide backbones: what weights and architecture are, wherever they lie."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from guidino_tune import paths

if TYPE_CHECKING:
    from guidino_tune.models.backbone import Backbone

DIGITS = 32
"""Hexadecimal digits of a fingerprint."""

_SETTLED = 2.0
"""Seconds since the last change of a file after which its time tells a later change apart, on every file system."""

_RECIPE = 1
"""Of ``fingerprint``; another one makes what was kept on disk void."""

Stamp = list[list[str | int]]


def fingerprint(backbone: Backbone, *, values: bool = True) -> str:
    """``DIGITS`` digits of all weights and of what else decides the features, such as the number of attention heads.

    Equal for the same weights in one file or several, in another folder, or in a file that stores them with fewer bits exactly. The token
    that stands for masked patches in pretraining takes no part: nothing that we compute has one.

    Args:
        backbone: Without adapters.
        values: ``False`` leaves out what the weights are, as for random ones, which follow from the architecture.
    """
    config: Any = backbone.vit.config
    decides = {name: getattr(config, name, None) for name in backbone.architecture.decides}
    digest = hashlib.sha256(json.dumps([config.model_type, decides, values], sort_keys=True, default=str).encode())
    # In the order in which the network has them, not by name: names change between versions of transformers.
    for name, value in backbone.vit.state_dict().items():
        if name.endswith("mask_token"):
            continue
        digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
        if values:
            array: np.ndarray = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            digest.update(array.data)
    return digest.hexdigest()[:DIGITS]


def stamp(folder: Path) -> Stamp:
    """Name, size and times of the files of a model folder; the same as long as nobody changes or replaces one."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
    found: Stamp = []
    for file in files:
        with suppress(OSError):
            status = file.stat()
            found.append([file.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    return found


def remembered(folder: Path) -> str:
    """The fingerprint that was computed of these very files before; empty where none was."""
    try:
        values = json.loads(_file(folder).read_text(encoding="utf-8"))
        return str(values["fingerprint"]) if values["key"] == _key(stamp(folder)) else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def kept(folder: Path, before: Stamp, compute: Callable[[], str]) -> str:
    """The fingerprint of what was loaded from a folder, computed once for the same files and then kept in the cache.

    Args:
        folder: It was loaded from here.
        before: The folder's ``stamp`` before it was loaded.
        compute: The fingerprint of what was loaded.
    """
    known = remembered(folder) if stamp(folder) == before else ""
    if known:
        return known
    found = compute()
    newest = max((max(int(times[2]), int(times[3])) for times in before), default=0)
    if before and stamp(folder) == before and time.time() - newest / 1e9 > _SETTLED:
        _keep(_file(folder), json.dumps({"folder": str(folder), "key": _key(before), "fingerprint": found}))
    return found


def _key(of: Stamp) -> list[object]:
    return [_RECIPE, version("transformers"), of]


def _file(folder: Path) -> Path:
    return paths.cache() / "backbones" / f"{hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:24]}.json"


def _keep(file: Path, text: str) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(file)
