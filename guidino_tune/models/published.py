"""Reads checkpoints of backbones as others publish them: Meta's ``.pth``, timm's safetensors, the teacher of somebody's pretraining."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from guidino_tune.errors import UserError

ANCHORS = ("patch_embed.proj.weight", "downsample_layers.0.0.weight", "stem.0.weight")
"""Every network that we can convert has exactly one weight of these names; what stands before it, stands before all of its weights."""

BACKBONE = "a DINOv3 or DINOv2 checkpoint in Meta's or timm's layout, or a model folder of Hugging Face"

WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
"""What training code puts into the names of weights, in whatever place."""

IN_FOLDER = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin")
"""Files of weights in timm's folders, the best first."""


@dataclass(frozen=True, slots=True)
class Published:
    """The weights of one network, without what stood before their names.

    Attributes:
        weights: By their published names.
        part: Where in the file they were, such as ``teacher.backbone``; empty when it holds nothing else.
        left_out: What else the file holds, by the beginnings of the names, with the number of weights.
    """

    weights: dict[str, Tensor]
    part: str
    left_out: dict[str, int]


def read_published(path: Path, anchors: Sequence[str] = ANCHORS, wanted: str = BACKBONE) -> Published:
    """Finds the network in a file or in timm's folder; of a teacher and a student, the teacher.

    Args:
        path: ``.safetensors``, what ``torch.save`` wrote of tensors alone, or a folder with ``config.json`` and one of ``IN_FOLDER``.
        anchors: Names of weights of which such a network has exactly one.
        wanted: What such a network is, for messages.

    Raises:
        UserError: The file is missing or damaged, is a pickle that needs more than tensors, or holds no such network, or several of which
            none is a teacher; names its weights.
    """
    file = _file(path)
    found = {name: value for name, value in _flat(_load(file)) if isinstance(value, Tensor)}
    names = {_unwrapped(name): name for name in found}
    places = sorted({name.removesuffix(anchor) for name in names for anchor in anchors if ("." + name).endswith("." + anchor)})
    if not places:
        raise _no_network(file, sorted(names), anchors, wanted)
    places.sort(key=lambda p: (*_rank(p), p.count("."), p))
    place = places[0]
    if alike := [other for other in places[1:] if _rank(other) == _rank(place)]:
        names_of_parts = ", ".join(p.rstrip(".") or "one without a name" for p in (place, *alike))
        raise UserError(
            f"holds several networks, and which of them is meant is not known: {names_of_parts}",
            where=str(file),
            todo="save the weights of one of them alone, a dict of tensors, with torch.save, and give that file",
        )
    weights = {name.removeprefix(place): found[names[name]] for name in names if name.startswith(place)}
    left: dict[str, int] = {}
    for name in names:
        if not name.startswith(place):
            left["/".join(_head(name))] = left.get("/".join(_head(name)), 0) + 1
    return Published(weights, place.rstrip("."), left)


def _rank(place: str) -> tuple[bool, bool, bool]:
    """Of a teacher and a student the teacher comes first."""
    return "teacher" not in place, "ema" not in place, "student" in place


def _head(name: str) -> list[str]:
    parts = name.split(".")
    return parts[:2] if len(parts) > 2 else parts[:1]


def _file(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in IN_FOLDER if (path / name).is_file()]
        if not found:
            raise UserError(f"holds none of {', '.join(IN_FOLDER)}", where=str(path), todo="give the file of the weights itself")
        return found[0]
    if not path.is_file():
        raise UserError("no such file", where=str(path), todo="give a checkpoint (.pth, .safetensors) or the folder of a timm model")
    return path


def _load(file: Path) -> Any:
    archive = zipfile.is_zipfile(file)
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # Nothing but tensors and plain containers: an unrestricted pickle runs code as it is read.
        with warnings.catch_warnings(action="ignore"):  # of pickles of another kind, which are refused below
            return torch.load(file, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # of garbage the reader of pickles raises whatever it stumbles over
        text = str(error)
        if "Unsupported operand" in text and not archive and _begins(file, b"\x80"):
            raise UserError(
                "is a pickle that torch.save did not write, and may run any code when it is read: it is not read here",
                where=str(file),
                todo="where you trust its source, load it yourself, and save its tensors alone with torch.save",
            ) from None
        if not ("GLOBAL" in text or "Unsupported class" in text or (archive and "Unsupported operand" in text)):
            why = (text.strip().splitlines() or [""])[0][:200]
            why = "torch.save did not write it" if "weights_only" in why else why  # torch's advice is to read it all the same
            raise UserError(
                f"is no checkpoint, or damaged ({type(error).__name__}: {why})", where=str(file), todo="download or copy it again"
            ) from None
    take = "c.get('teacher', c.get('model', c.get('state_dict', c)))"
    code = f"import torch; c = torch.load({str(file)!r}, map_location='cpu', weights_only=False); torch.save({take}, 'tensors.pth')"
    raise UserError(
        "is a pickle that needs more than tensors, and may run any code when it is read: it is not read here",
        where=str(file),
        todo=f'where you trust its source, save its tensors alone and give tensors.pth instead: python -c "{code}"',
    )


def _begins(file: Path, mark: bytes) -> bool:
    with open(file, "rb") as stream:
        return stream.read(len(mark)) == mark


def _flat(values: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Everything in nested mappings, with dotted names."""
    if isinstance(values, Mapping) and depth < 4:
        for key, value in values.items():
            yield from _flat(value, f"{prefix}{key}.", depth + 1)
    elif prefix:
        yield prefix[:-1], values


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _no_network(file: Path, names: list[str], anchors: Sequence[str], wanted: str) -> UserError:
    own = wanted == BACKBONE and any(name.endswith("embeddings.cls_token") or "downsample_layers.0.weight" in name for name in names)
    if own:
        return UserError(
            "holds weights in Hugging Face's own layout, which need no conversion",
            where=str(file),
            todo="give the folder that holds them with their config.json as guide.backbone=DIR",
        )
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return UserError(
        f"holds no network that is known here: none of its weights is called {', '.join(anchors)}; it has {shown or 'no weights at all'}",
        where=str(file),
        todo=f"give {wanted}",
    )


def is_timm_folder(folder: Path) -> bool:
    """True where ``config.json`` is timm's: it names an ``architecture`` and no ``model_type``."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "architecture" in values and "model_type" not in values
