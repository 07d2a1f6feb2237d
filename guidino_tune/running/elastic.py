"""A cluster that changes while a search runs: the wait for its first nodes, and how many trials it carries now."""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from guidino_tune.config import Resources
from guidino_tune.running.cluster import NoRoom, Packed, Plan, may_change, node_resources, plan

LOOK = 2.0
"""Seconds for which it is taken as known what the cluster carries."""

Say = Callable[[str], None]


def plan_when_possible(resources: Resources, say: Say, packed: Packed | None = None) -> Plan:
    """Fits the trials to the connected cluster, and waits for nodes where they may come, for ``resources.wait_for_nodes`` seconds.

    Meanwhile the place of one trial is booked, for that is what an autoscaler looks at; the booking ends with this process.

    Args:
        resources: Of the space.
        say: Told what is waited for.
        packed: What was measured of its trials.

    Raises:
        UserError: One trial needs more than the cluster has, and nodes that carry it did not come.
    """
    try:
        return plan(resources, packed)
    except NoRoom as error:
        if not may_change() or not resources.wait_for_nodes:
            raise
        say(f"{error.what}: waiting {resources.wait_for_nodes / 60:.0f} minutes for nodes (resources.wait_for_nodes); Ctrl-C ends it")
        lacking = error
    deadline = time.monotonic() + resources.wait_for_nodes
    with _booking(resources):
        while time.monotonic() < deadline:
            time.sleep(min(LOOK, deadline - time.monotonic() + 0.01))
            try:
                return plan(resources, packed)
            except NoRoom as error:
                lacking = error
    raise NoRoom(f"{lacking.what}, and none came within {resources.wait_for_nodes:g} s", where=lacking.where, todo=lacking.todo)


@contextlib.contextmanager
def _booking(resources: Resources) -> Iterator[None]:
    named = resources.accelerator or isinstance(resources.trials_per_gpu, int)
    gpus = resources.gpus_per_worker or (1.0 if named else 0.0)
    with contextlib.closing(
        _Booking(Plan("", 1, resources.cpus_per_worker or 1, gpus, 0, 0, resources.workers, None, resources.accelerator))
    ):
        yield


REST = 30.0
"""Seconds between two bookings ahead: a trial whose processes are starting takes the place of the first one, not the second one."""

AHEAD = "guidino-tune-ahead-"
"""Beginning of the names of bookings without a trial, for whoever looks for those that were left behind."""


class _Booking:
    """The place of a trial, booked without one: it waits, which is what an autoscaler looks at, and is given back once it is there."""

    def __init__(self, booked: Plan) -> None:
        import ray.util

        self._group = ray.util.placement_group([booked.booked] * booked.workers, name=f"{AHEAD}{uuid.uuid4().hex}")

    @property
    def is_there(self) -> bool:
        """Whether nodes have the place."""
        import ray.util

        return bool(ray.util.placement_group_table(self._group)["state"] == "CREATED")

    def close(self) -> None:
        """Gives it back."""
        import ray.util

        ray.util.remove_placement_group(self._group)


class Places:
    """How many trials may be under way in the connected cluster now.

    In a cluster that other people started, one more is booked than it carries: the booking that waits makes an autoscaler add a node, and
    begins at once on a node that joins. With the ``actor`` executor it is a trial's own. A Ray Train trial that waits would already have
    processes, whose CPU the others' workers may need to the last hundredth, so there a booking stands for it.

    Args:
        booked: The plan with which the search began. What a trial books on a kind of node stays as it is; how many nodes of a kind there
            are, and with them what their CPUs, GPUs and memory carry, is looked at anew.
        say: Told when the number of trials side by side changes.

    Attributes:
        wanted: Says whether there are trials to come, for which a place may be booked ahead.
        bound: Gives how many trials may be under way while nodes are kept free for one that waits; infinite while none are.
    """

    def __init__(self, booked: Plan, say: Say) -> None:
        self.booked, self.say = booked, say
        self._carried, self._looked = booked.concurrent, -math.inf
        self._ahead: _Booking | None = None
        self._next = -math.inf
        self.wanted: Callable[[], bool] = lambda: True
        self.bound: Callable[[], float] = lambda: math.inf

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps a copy of its searcher, which never runs."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Places:
        """Itself: whoever is told is there once."""
        return self

    def close(self) -> None:
        """Books nothing ahead any more."""
        if self._ahead:
            self._ahead.close()
            self._ahead = None

    def now(self) -> float:
        """Looks at the nodes, though not more often than every ``LOOK`` seconds."""
        booked, bound = self.booked, self.bound()
        if not may_change():
            return min(booked.concurrent, bound)
        if time.monotonic() - self._looked >= LOOK:
            nodes = node_resources(booked.accelerator)
            fits = booked.places(nodes) // booked.workers
            carried, self._looked = min(fits, booked.most or fits), time.monotonic()
            if carried != self._carried:
                self.say(f"{len(nodes)} node(s) now: {carried} trials side by side, {self._carried} before")
                self._carried = carried
            if booked.executor == "train":
                if bound < math.inf:
                    self.close()  # it would take what is kept free
                else:
                    self._book_ahead()
        one_ahead = self._carried + (booked.executor != "train")
        return min(one_ahead, booked.most or one_ahead, bound)

    def _book_ahead(self) -> None:
        if self._ahead:
            if self._ahead.is_there or not self.wanted():
                self.close()
                self._next = time.monotonic() + REST
        elif self.wanted() and time.monotonic() >= self._next and (self.booked.most is None or self._carried < self.booked.most):
            self._ahead = _Booking(self.booked)
