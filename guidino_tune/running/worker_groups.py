"""Ray Train's worker groups: on which network their processes find each other, and what the failure of one means."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil

from guidino_tune.errors import redacted
from guidino_tune.training.failures import FailureKind, UnfitNode, death_kind

if TYPE_CHECKING:
    import ray.train
    from ray.train.torch import TorchConfig

_INTERFACE = "GLOO_SOCKET_IFNAME"


class UnfitGroup(Exception):
    """A node of a group is not fit; every worker of the group knows why, and which one."""

    def __init__(self, message: str, node: str) -> None:
        super().__init__(message)
        self.node = node


class GroupNotStarted(Exception):
    """The processes of a group did not come together; ends the trial's process, which goes on as after any other death."""


def on_nodes_network() -> TorchConfig:
    """Process groups of torch that use the network on which Ray's nodes know each other.

    Gloo would look up the host's own name. Where that leads to loopback, as Debian has it in ``/etc/hosts``, or nowhere, workers on two
    machines would never find each other. NCCL chooses its interfaces by itself.
    """
    from ray.train.torch import TorchConfig

    class NodesNetwork(TorchConfig):
        @property
        def backend_cls(self) -> Any:
            class Backend(super().backend_cls):  # type: ignore[misc]
                def on_start(self, worker_group: Any, backend_config: Any) -> None:
                    worker_group.execute(name_interface)
                    super().on_start(worker_group, backend_config)

            return Backend

    return NodesNetwork()


def name_interface() -> None:
    """Tells gloo, in this process, the interface that has the address of this process's node; a name that is set stays."""
    import ray

    if _INTERFACE not in os.environ and (name := interface_of(ray.util.get_node_ip_address())):
        os.environ[_INTERFACE] = name


def interface_of(address: str) -> str:
    """The network interface of this machine that has an address; empty when none has."""
    return next((name for name, known in psutil.net_if_addrs().items() if address in {a.address for a in known}), "")


def check_together(check: Callable[[], None], node: str, workers: int) -> None:
    """Has each worker of a group look at its node before any of them begins.

    They end together then: after the exception of one, Ray Train would start all of them again in the same places.

    Args:
        check: Raises ``UnfitNode``, as ``check_node`` does.
        node: On which this worker is.
        workers: Of the group.

    Raises:
        UnfitNode: The only worker's node is not fit.
        UnfitGroup: That of one of several workers is not.
    """
    found = None
    try:
        check()
    except UnfitNode as error:
        if workers == 1:
            raise
        found = " ".join(str(error).split()), node
    if workers > 1:
        from torch import distributed

        told: list[tuple[str, str] | None] = [None] * workers
        # By way of the CPUs: a GPU may be what is not fit.
        distributed.all_gather_object(told, found, group=distributed.new_group(backend="gloo"))
        if unfit := next(filter(None, told), None):
            raise UnfitGroup(*unfit)


def group_failure(error: ray.train.TrainingFailedError) -> dict[str, Any]:
    """What is told of a group that failed for good, as a result of its trial.

    Raises:
        GroupNotStarted: Its processes never came together, or no more after one of them was lost: no configuration does that.
    """
    from ray.train import ControllerError

    words = _workers_words(error)
    kind, said = _death(error), redacted(str(error))
    if isinstance(error, ControllerError) and kind == "crashed":
        raise GroupNotStarted(f"its workers did not come together: {_last_line(words)}") from None
    return {"failure": kind, "message": said, "epoch": 0}


def not_placed(error: ray.train.TrainingFailedError) -> bool:
    """Whether the processes of a group got no place in time; the exceptions that say so are Ray's own, known by their names alone."""
    return type(getattr(error, "controller_failure", None)).__name__.startswith("WorkerGroupStartup")


def _death(error: ray.train.TrainingFailedError) -> FailureKind:
    """How it ended; Ray has one exception for machines that were announced to go, and words for those that are gone."""
    from ray.train.v2.api.exceptions import PreemptionError

    return "preempted" if isinstance(error, PreemptionError) else death_kind(_workers_words(error))


def _workers_words(error: ray.train.TrainingFailedError) -> str:
    """The message of a group, which shortens those of its workers, and these."""
    return "\n".join(map(str, (error, *getattr(error, "worker_failures", {}).values())))


def _last_line(text: str) -> str:
    """That of a traceback says what it is about; without colours."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[\d;]*m", "", redacted(text)).splitlines() if line.strip()]
    return lines[-1] if lines else ""
