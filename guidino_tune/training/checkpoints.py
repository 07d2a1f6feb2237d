"""Checkpoints without pickle: trained weights and optimiser tensors as safetensors, the rest as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from guidino_tune.errors import UserError
from guidino_tune.training.reporter import EpochRecord

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


def write_checkpoint(
    folder: Path,
    weights: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    experiment_hash: str,
    history: Sequence[EpochRecord],
) -> None:
    """Writes everything that an exact continuation needs; random states are derived from seed and epoch, so they are not in it."""
    save_weights(folder / WEIGHTS, weights)
    saved = optimizer.state_dict()
    tensors = {f"{index}.{key}": value for index, entry in saved["state"].items() for key, value in entry.items() if torch.is_tensor(value)}
    save_weights(folder / OPTIMIZER, tensors)
    state = {"experiment": experiment_hash, "epoch": len(history), "history": [r.to_dict() for r in history]}
    (folder / STATE).write_text(json.dumps(state), encoding="utf-8")


def save_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Saves contiguous copies on the CPU; safetensors refuses views and shared storage."""
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, path)


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON part, with ``history`` as records."""
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return state | {"history": [EpochRecord(**r) for r in state["history"]]}


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Reads weights.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the weights cannot be read: {error}", where=str(path), todo="retrain, or name another run") from None


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Restores the optimiser's tensors for the same parameters in the same order."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in load_file(folder / OPTIMIZER).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
