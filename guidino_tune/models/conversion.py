"""Published checkpoints become the model folders that everything else takes: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from guidino_tune import paths
from guidino_tune.errors import UserError, first_names
from guidino_tune.models import fingerprints, weights
from guidino_tune.models.architectures import ARCHITECTURES, SIZES
from guidino_tune.models.backbone import Backbone
from guidino_tune.models.layouts import Network, recognise
from guidino_tune.models.published import Published, is_timm_folder, read_published
from guidino_tune.models.weights import not_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Converted:
    """A model folder that was made of a checkpoint.

    Attributes:
        folder: Of the model.
        about: What it is, in words.
        fingerprint: Of its weights.
        notes: What was left out of the file, and what it does not tell.
    """

    folder: Path
    about: str
    fingerprint: str
    notes: tuple[str, ...]


def convert(source: Path, target: Path, heads: int | None = None) -> Converted:
    """Writes a model folder, whole or not at all, and loads it once as a search does.

    Args:
        source: A file or timm's folder, see ``read_published``.
        target: The new folder; nothing is replaced.
        heads: See ``recognise``.

    Raises:
        UserError: The source cannot be read, or is none of the networks that are known; or the target is there.
    """
    if os.path.lexists(target) and (target.is_symlink() or not target.is_dir() or any(target.iterdir())):
        raise UserError("is there already, and nothing is replaced", where=str(target), todo="choose another --output")
    published, network = _read(source, heads)
    model = _module(network, source)
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        with weights.quiet():
            model.save_pretrained(draft)
        loaded = Backbone(weights.load_pretrained(str(draft)))
        if target.is_dir():
            target.rmdir()  # empty, see above
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    notes = list(network.notes)
    notes += [f"taken from {published.part!r} in the file"] if published.part else []
    notes += [f"left out: {name}.* ({count} weights)" for name, count in published.left_out.items()]
    return Converted(target, _known_as(network), fingerprints.fingerprint(loaded), tuple(notes))


def _read(source: Path, heads: int | None = None) -> tuple[Published, Network]:
    published = read_published(source)
    try:
        return published, recognise(published.weights, heads)
    except UserError as error:
        raise UserError(error.what, where=str(source), todo=error.todo) from None


def _module(network: Network, source: Path) -> PreTrainedModel:
    """The network of ``transformers`` with these weights, every one of them and no other."""
    architecture = ARCHITECTURES[network.model_type]
    with torch.device("meta"):
        model = architecture.model_class(architecture.configure(network.config))
    own = model.state_dict()
    lacks = sorted(own.keys() - network.weights.keys())
    extra = sorted(network.weights.keys() - own.keys())
    shapes = [
        f"{name}: {tuple(network.weights[name].shape)}, not {tuple(own[name].shape)}"
        for name in sorted(own.keys() & network.weights.keys())
        if own[name].shape != network.weights[name].shape
    ]
    for what, names in (("lacks", lacks), ("has too much:", extra), ("has other shapes:", shapes)):
        if names:
            raise UserError(
                f"looks like a {network.about}, but {what} {first_names(names)}", where=str(source), todo="download or copy it again"
            )
    no_numbers = sorted(
        f"{name}: {str(value.dtype).removeprefix('torch.')}, {str(value.layout).removeprefix('torch.')}"
        for name, value in network.weights.items()
        if not value.is_floating_point() or value.layout != torch.strided
    )
    odd = [] if no_numbers else not_finite({name: value.float() for name, value in network.weights.items()})
    for what, names in (("holds what are no plain numbers:", no_numbers), ("is damaged: NaN or infinity in", odd)):
        if names:
            raise UserError(
                f"{what} {first_names(names)}", where=str(source), todo="give the file as it was published, or download it again"
            )
    model.load_state_dict({name: value.contiguous() for name, value in network.weights.items()}, assign=True)
    return model


def _known_as(network: Network) -> str:
    """What it is, with the named backbone of the same shape where there is one."""
    for name, size in SIZES.items():
        same = size.model_type == network.model_type and all(
            value == network.config[key] for key, value in size.values.items() if key in network.config and key != "image_size"
        )
        if same and name != "tiny":
            return f"{network.about} (the shape of {name})"
    return network.about


def not_a_model_folder(path: Path) -> UserError | None:
    """What to tell who gives a published checkpoint where a model folder is needed; ``None`` for anything else."""
    if not path.is_file() and not is_timm_folder(path):
        return None
    where = f"guide.backbone={path}"
    try:
        published, network = _read(path)
    except UserError as error:
        return UserError(f"is no model folder; as a checkpoint it {error.what}", where=where, todo=error.todo)
    layout = "timm's layout" if any("gamma_1" in n or "reg_token" in n or n.startswith("stem.") for n in published.weights) else ""
    target = path.with_name(f"{path.stem if path.is_file() else path.name}-hf")
    part = f", in its part {published.part!r}" if published.part else ""
    command = paths.next_command(f"prepare backbone {shlex.quote(str(path))} --output {shlex.quote(str(target))}")
    return UserError(
        f"is a checkpoint{f' in {layout}' if layout else ''} ({_known_as(network)}{part}), not a model folder of Hugging Face",
        where=where,
        todo=f"convert it once: {command}; then set guide.backbone={target}",
    )
