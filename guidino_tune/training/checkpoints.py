"""Checkpoints without pickle: trained weights and optimiser tensors as safetensors, the rest as JSON."""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from guidino_tune.data.file_server import AWAY, os_error, outlast
from guidino_tune.errors import UserError, first_names
from guidino_tune.models.weights import not_finite
from guidino_tune.training.folder import STATE, named
from guidino_tune.training.reporter import EpochRecord

log = logging.getLogger(__name__)

WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Copies of all that training changes, on the CPU: they can be written while it goes on.

    Attributes:
        weights: By name.
        optimizer: The optimiser's tensors, by the parameter's index and their name there.
        copied: Of a GPU: when the copies are whole, which nobody waits for but who writes them.
    """

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    copied: torch.cuda.Event | None = None


def snapshot(weights: Mapping[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> Snapshot:
    """Copies trained weights and the optimiser's tensors; those of a GPU while it works on."""
    state = optimizer.state_dict()["state"]
    tensors = {f"{index}.{key}": value for index, entry in state.items() for key, value in entry.items() if torch.is_tensor(value)}
    copies = Snapshot(_copies(weights), _copies(tensors))
    device = next((t.device for t in weights.values() if t.is_cuda), None)
    if device is None:
        return copies
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return replace(copies, copied=event)


def write_checkpoint(
    folder: Path,
    state: Snapshot,
    *,
    experiment_hash: str,
    history: Sequence[EpochRecord],
    backbone: str = "",
    scaler: Mapping[str, float] | None = None,
) -> None:
    """Writes everything that an exact continuation needs; random states are derived from seed and epoch, so they are not in it.

    Of a backbone it takes the fingerprint, and the weights only where they are trained: those of the rest are worth nothing with another.
    ``scaler`` is the state of what scales the loss in fp16; empty in other precisions.
    """
    if state.copied:
        state.copied.synchronize()
    _write(folder / WEIGHTS, state.weights)
    _write(folder / OPTIMIZER, state.optimizer)
    noted = {
        "experiment": experiment_hash,
        "backbone": backbone,
        "epoch": len(history),
        "history": [r.to_dict() for r in history],
        "scaler": dict(scaler or {}),
        # safetensors notices a file that is too short, not one with other numbers in it.
        "checksums": {name: checksum_of(folder / name) for name in (WEIGHTS, OPTIMIZER)},
    }
    with named(folder / STATE):
        (folder / STATE).write_text(json.dumps(noted), encoding="utf-8")


def save_weights(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Saves tensors as they are now.

    Raises:
        OSError: The file cannot be written.
    """
    copies = _copies(tensors)
    for device in {t.device for t in tensors.values() if t.is_cuda}:
        torch.cuda.synchronize(device)
    _write(path, copies)


def _copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous copies on the CPU: safetensors refuses views and shared storage. Of a GPU they are whole when its stream comes to here."""
    copies = {}
    for name, tensor in tensors.items():
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copies[name] = copy.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
    return copies


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # It tells a full disk in words only.
        number = os_error(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
    # safetensors makes files that only their owner may read; a study is shared with colleagues as the other files of its folder are.
    path.chmod(path.parent.stat().st_mode & 0o666)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What ``write_checkpoint`` wrote: hash of the experiment, its epochs so far, trained weights, and the optimiser's tensors by name.

    The backbone's fingerprint is empty without one, or where an earlier version wrote it; the scaler's state but in fp16.
    """

    experiment: str
    history: list[EpochRecord]
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    backbone: str = ""
    scaler: dict[str, float] = field(default_factory=dict)


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads a checkpoint, all of it or nothing.

    Raises:
        UserError: A file is missing or damaged, or holds NaN.
        OSError: The file server does not give it now: it may be whole, and an older one, or none, would not do instead.
    """
    try:
        return outlast(folder, lambda: _read(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        if os_error(error) in AWAY:
            raise
        raise UserError(f"the checkpoint is damaged: {error}", where=str(folder), todo="an older one is used where there is one") from None


def newest_whole(folders: Iterable[Path]) -> tuple[Path | None, Checkpoint | None]:
    """The first of these checkpoints that can be read, and its folder; a warning for each that is damaged."""
    for folder in folders:
        try:
            return folder, read_checkpoint(folder)
        except UserError as error:
            log.warning("%s", error)
    return None, None


def _read(folder: Path) -> Checkpoint:
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    history = [EpochRecord.from_dict(r) for r in state["history"]]
    for name, checksum in state.get("checksums", {}).items():
        if checksum_of(folder / name) != checksum:
            raise ValueError(f"{name} is not as it was written")
    weights, optimizer = load_file(folder / WEIGHTS), load_file(folder / OPTIMIZER)
    # None is saved with a weight that is not finite. An infinite square of a gradient may belong to an optimiser, NaN never.
    odd = not_finite(weights) + sorted(name for name, value in optimizer.items() if value.is_floating_point() and value.isnan().any())
    if odd:
        raise ValueError(f"NaN or infinity in {first_names(odd)}")
    return Checkpoint(state["experiment"], history, weights, optimizer, str(state.get("backbone", "")), dict(state.get("scaler", {})))


def checksum_of(path: Path) -> int:
    """CRC-32 of a file's content."""
    value = 0
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            value = zlib.crc32(part, value)
    return value


def noted_checksum(folder: Path) -> int | None:
    """What ``checksum_of`` gave when the weights in a checkpoint, or a trial's best ones, were written; ``None`` where it is not noted."""
    try:
        return int(json.loads((folder / STATE).read_text(encoding="utf-8"))["checksums"][WEIGHTS])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Reads weights.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the weights cannot be read: {error}", where=str(path), todo="retrain, or name another run") from None


def check_finite(weights: Mapping[str, torch.Tensor], file: Path) -> None:
    """Raises where a weight is no number: what is predicted with it would be background, and look like an answer.

    Raises:
        UserError: Names the weights.
    """
    if odd := not_finite(weights):
        raise UserError(f"the weights hold NaN or infinity in {first_names(odd)}", where=str(file), todo="retrain, or copy the model again")


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Restores the optimiser's tensors for the same parameters in the same order."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            # In the parameter's own memory format: fused optimisers walk through memory and would pair the wrong numbers.
            tensor = torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
