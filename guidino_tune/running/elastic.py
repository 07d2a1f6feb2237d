"""A cluster that changes while a search runs: the wait for its first nodes, and how many trials it carries now."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from guidino_tune.config import Resources
from guidino_tune.running.cluster import NoRoom, Plan, count_places, may_change, node_resources, plan

LOOK = 2.0
"""Seconds for which it is taken as known what the cluster carries."""

Say = Callable[[str], None]


def plan_when_possible(resources: Resources, say: Say) -> Plan:
    """Fits the trials to the connected cluster, and waits for nodes where they may come, for ``resources.wait_for_nodes`` seconds.

    Meanwhile the place of one trial is booked, for that is what an autoscaler looks at; the booking ends with this process.

    Args:
        resources: Of the space.
        say: Told what is waited for.

    Raises:
        UserError: One trial needs more than the cluster has, and nodes that carry it did not come.
    """
    try:
        return plan(resources)
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
                return plan(resources)
            except NoRoom as error:
                lacking = error
    raise NoRoom(f"{lacking.what}, and none came within {resources.wait_for_nodes:g} s", where=lacking.where, todo=lacking.todo)


@contextlib.contextmanager
def _booking(resources: Resources) -> Iterator[None]:
    import ray.util

    named = resources.accelerator or isinstance(resources.trials_per_gpu, int)
    gpus = resources.gpus_per_worker or (1.0 if named else 0.0)
    wanted = Plan("", 1, resources.cpus_per_worker or 1, gpus, 0, 0, accelerator=resources.accelerator)
    group = ray.util.placement_group([wanted.booked] * resources.workers)
    try:
        yield
    finally:
        ray.util.remove_placement_group(group)


class Places:
    """How many trials may be under way in the connected cluster now.

    In a cluster that other people started, one more than it carries: the booking that waits makes an autoscaler add a node, and begins at
    once on a node that joins.

    Args:
        booked: The plan with which the search began. What a trial books stays as it is.
        say: Told when the number of trials side by side changes.
    """

    def __init__(self, booked: Plan, say: Say) -> None:
        self.booked, self.say = booked, say
        self._carried, self._looked = booked.concurrent, time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps a copy of its searcher, which never runs."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Places:
        """Itself: whoever is told is there once."""
        return self

    def now(self) -> int:
        """Looks at the nodes, though not more often than every ``LOOK`` seconds."""
        booked = self.booked
        if not may_change():
            return booked.concurrent
        if time.monotonic() - self._looked >= LOOK:
            nodes = node_resources(booked.accelerator)
            fits = count_places(nodes, booked.cpus, booked.gpus) // booked.workers
            carried, self._looked = min(fits, booked.most or fits), time.monotonic()
            if carried != self._carried:
                self.say(f"{len(nodes)} node(s) now: {carried} trials side by side, {self._carried} before")
                self._carried = carried
        return min(self._carried + 1, booked.most or self._carried + 1)
