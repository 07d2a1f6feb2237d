"""What went wrong in a trial, as one of a few kinds that decide what happens next.

=============  =====================================  ========  ==============================================================
kind           what happened                          result?   what happens next
=============  =====================================  ========  ==============================================================
diverged       a loss, a weight or a score is NaN or  yes       recorded; its weights are removed
               infinite
out-of-memory  an allocation failed, or Ray's memory  yes       once more with each batch in two parts; once more alone on the
               monitor ended the process                        largest GPU or node, unless it was there; then recorded
bad data       an image, a mask or the weights are    no        recorded; another trial makes up for it
               missing or damaged
environment    disk, files, network, or a module is   no        once more on another node where there is one, or on each other node
               not on this machine; or the node has             where the node says itself what it lacks; then recorded, and
               not what every node needs                        another trial makes up for it
bug            any other error of the code            no        recorded with its traceback; another trial makes up for it
crashed        the process died on a living machine   no        goes on from its checkpoint, ``resources.max_failures`` times;
                                                                then recorded, and another trial makes up for it
preempted      its machine was taken away or lost     no        goes on from its checkpoint on another machine; never counts
                                                                as a failure, unless it gets no further many times
=============  =====================================  ========  ==============================================================

Of several workers Ray's memory monitor ends one without asking the others: such a group goes on as it was, like one that crashed, and is
then recorded as out-of-memory; only an allocation that failed makes it go on in two parts.

A *result* is what the search wanted to know of a configuration; it counts among the trials of a study, and does not stop it. When the
others end a search, and which trials are not repeated, is told in ``guidino_tune.study.outcomes``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from guidino_tune.errors import UserError
from guidino_tune.targets import NotImportable

FailureKind = Literal["diverged", "out-of-memory", "bad data", "environment", "bug", "crashed", "preempted"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What a kind of failure means.

    Attributes:
        is_result: It belongs to the configuration and is a result of the search; the others are made up for.
        todo: What a person may do about it.
    """

    is_result: bool
    todo: str


POLICIES: dict[FailureKind, Policy] = {
    "diverged": Policy(True, "lower the rates that are searched, or set training.grad_clip"),
    "out-of-memory": Policy(True, "lower batch or image size, or run fewer trials side by side (resources.concurrent)"),
    "bad data": Policy(False, "restore the file that is named"),
    "environment": Policy(False, "look after disk space, permissions and network of the machine"),
    "bug": Policy(False, "read the traceback"),
    "crashed": Policy(False, "look into the kernel's log and Ray's (`dmesg`, /tmp/ray/session_latest/logs)"),
    "preempted": Policy(False, "wait until there are machines"),
}
"""By kind; see the table above."""

INFEASIBLE: tuple[FailureKind, ...] = tuple(kind for kind, policy in POLICIES.items() if policy.is_result)
"""Failures that belong to a configuration, and are a result of the search; the others belong to the machine, the data or the code."""

FAILURE = "failure.json"
"""In the folder of a trial whose process could not tell how it failed: another one does."""

_MEMORY_SIGNS = ("allocate memory", "out of memory", "alloc_failed")
"""How the CPU's allocator, CUDA and its libraries say it; only torch's own GPU allocator has an exception of its own."""

_MEMORY_MONITOR = "running low on memory"
"""How Ray says that its memory monitor ended a process. It speaks of the kernel's OOM killer whenever it does not know the cause."""

_NODE_SIGNS = (
    "node has died",
    "node was terminated",
    "was preempted",
    "node preemption",
    "node it was running on is dead",
    "raylet died",
    "actor is temporarily unavailable",
)
"""How Ray says that a process ended with its machine, which was announced or not. Of a machine that has just vanished it only knows that
the process no longer answers; the end of a process alone is told by its machine at once."""


class Diverged(Exception):
    """A loss, a weight or a prediction is no longer a finite number: the configuration is infeasible, and the study is told so."""


class UnfitNode(UserError):
    """A node has not what trials need, though another one may: see ``guidino_tune.running.process``."""


def failure_kind(error: BaseException) -> FailureKind:
    """Sorts an exception from the loop; ``death_kind`` sorts the end of a process, which never gets here."""
    if isinstance(error, Diverged):
        return "diverged"
    text = str(error).lower()
    # Torch's own exception by its name: who only reads of failures does without torch.
    of_torch = type(error).__name__ == "OutOfMemoryError"
    if isinstance(error, MemoryError) or of_torch or any(sign in text for sign in _MEMORY_SIGNS):
        return "out-of-memory"
    if isinstance(error, OSError | NotImportable | UnfitNode):
        return "environment"
    return "bad data" if isinstance(error, UserError) else "bug"


def death_kind(text: str) -> FailureKind:
    """Sorts the end of a trial's process by what Ray says of it.

    Args:
        text: The whole message. Ray's exceptions differ between a task, an actor and a worker group, and a worker group's hold those of its
            workers as text only; the words of the core are the same in all of them.
    """
    lower = text.lower()
    if _MEMORY_MONITOR in lower:
        return "out-of-memory"
    return "preempted" if any(sign in lower for sign in _NODE_SIGNS) else "crashed"


def noted_failure(folder: Path) -> tuple[FailureKind, str] | None:
    """Kind and message of what a trial's process wrote of its failure before it ended; read once."""
    file = folder / FAILURE
    if not file.exists():
        return None
    known = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    return as_kind(known["failure"]), known["message"]


def as_kind(name: object) -> FailureKind:
    """The kind of this name; ``bug`` for any other, such as one of another version."""
    return name if name in get_args(FailureKind) else "bug"  # type: ignore[return-value]
