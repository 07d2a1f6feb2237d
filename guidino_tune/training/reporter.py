"""What a training run needs from whoever runs it: somewhere to save, and somebody to tell."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

_EARLIER = {f"train_{term}": f"train_loss_{term}" for term in ("total", "dice", "bce", "cross_entropy", "guide", "hinge")}
"""Names that metrics had before: the Dice loss stood beside the Dice score as if both were one."""


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """What one epoch gave.

    Attributes:
        epoch: Counted from 1.
        metrics: By name; ``val_dice``, a score, is the objective. Terms of the training loss are ``train_loss_total``,
            ``train_loss_dice`` and so on: lower is better.
        time: End of the epoch, Unix seconds.
    """

    epoch: int
    metrics: Mapping[str, float]
    time: float

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self) | {"metrics": dict(self.metrics)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpochRecord:
        """What ``to_dict`` gave, also that of earlier versions, whose names of metrics become the present ones.

        Raises:
            TypeError: A field is missing or unknown, or ``values`` or its metrics are no mapping.
        """
        record = cls(**values)
        if not isinstance(record.metrics, Mapping):
            raise TypeError(f"metrics: {record.metrics!r} is no mapping")
        return replace(record, metrics={_EARLIER.get(name, name): value for name, value in record.metrics.items()})


class Decision(enum.Enum):
    """The answer to a report."""

    CONTINUE = "continue"
    STOP = "stop"


class Reporter(Protocol):
    """The only thing that the loop knows of Ray, of a study, or of a terminal."""

    def report(self, record: EpochRecord) -> Decision:
        """Hands over an epoch; it is saved, or will be trained again with the same numbers by a run that goes on from before it."""
        ...

    def save(self, epoch: int, write: Callable[[Path], None], *, best: bool) -> None:
        """Keeps what ``write`` puts into the folder it is given, whole or not at all; with ``best`` also as the best so far."""
        ...

    def checkpoints(self) -> list[Path]:
        """The folders saved, newest first; at least the newest and, in case it is damaged, the one before it."""
        ...

    def experiment_hash(self) -> str | None:
        """Hash of the experiment that the checkpoints belong to, as this version computes it: an earlier one may have noted another."""
        ...
