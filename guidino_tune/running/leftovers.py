"""Gives back what Ray Train forgets to: bookings of worker groups whose controller is gone.

Ray Train's own helper frees the booking of a trial that is stopped, but learns of it only when the worker group is up. A controller that
ends while it starts workers, as after the death of a machine, leaves one that nobody frees: with enough of them a search waits for ever.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from guidino_tune.running.elastic import AHEAD
from guidino_tune.running.executors import CONTROLLER_CPU

log = logging.getLogger(__name__)

EVERY = 15.0
"""Seconds between two looks."""

ENDING = 30.0
"""Seconds for which a search waits at its end until controllers of stopped trials are gone, so that their bookings are seen to."""

INTERRUPTED = 3.0
"""The same after a second Ctrl-C, which waits for nothing that takes long."""

UNANSWERED = 3
"""Looks in a row without an answer after which a search waits no more: a cluster without dashboard has no state service."""

PAUSE = 0.5
"""Seconds between two looks at the end."""

TELL = 2.0
"""Seconds of waiting after which people are told."""

IDLE = 120.0
"""Seconds after which a booking without workers is left over although some controller lives: Ray Train gives up a start after 60."""


LIVING = ("DEPENDENCIES_UNREADY", "PENDING_CREATION", "ALIVE", "RESTARTING")
"""States of an actor that is not dead."""


class Leftovers:
    """A thread that looks for such bookings while trials run, with a cluster connected.

    Only those of drivers of this package that have ended are touched, and with Ray Train trials those of this driver.

    Args:
        executor: Of the trials; without ``train`` it looks only once, for what a killed driver left.
    """

    def __init__(self, executor: str) -> None:
        self._wanted = executor == "train"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="guidino-tune-leftovers", daemon=True)
        self._idle_since: dict[str, float] = {}
        self._any = False

    def __enter__(self) -> Leftovers:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._stopped.set()
        self._thread.join(1.0)  # a question to a cluster that is away may take longer, and nobody waits for its answer
        if self._wanted:
            self._wait(INTERRUPTED if kind is KeyboardInterrupt else ENDING)

    def _wait(self, seconds: float) -> None:
        begun, unanswered, told = time.monotonic(), 0, False
        while not (answer := self._all_given_back()):
            unanswered = unanswered + 1 if answer is None else 0
            waited = time.monotonic() - begun
            if unanswered == UNANSWERED or waited > seconds:
                return
            if waited > TELL and answer is not None and not told:
                told = True
                log.warning("waiting until the cluster has taken back what stopped trials have booked, for %.0f s at most", seconds)
            time.sleep(PAUSE)

    def _work(self) -> None:
        self._all_given_back()
        while self._wanted and not self._stopped.wait(EVERY):
            self._all_given_back()

    def _all_given_back(self) -> bool | None:
        """Looks; true when there are no bookings of ours, used or not, and nobody who might make one. ``None`` when nobody answers."""
        try:
            self.look()
        except Exception as error:  # the state service may be away, and is asked again
            log.debug("no look at the bookings: %s", error)
            return None
        return not self._any

    def look(self) -> list[str]:
        """Frees what is left over now; gives the ids of the placement groups."""
        import ray
        from ray.util.placement_group import PlacementGroup, remove_placement_group
        from ray.util.state import list_actors, list_jobs, list_placement_groups

        ended = {j.job_id for j in list_jobs(limit=10_000) if j.status not in ("RUNNING", "PENDING") and "guidino" in (j.entrypoint or "")}
        ours = ended | ({ray.get_runtime_context().get_job_id()} if self._wanted else set())
        # Bookings first: the controller of one that is seen here is either alive in the second list, or gone.
        booked = [g for g in list_placement_groups(detail=True, limit=10_000) if _is_worker_group(g) and g.creator_job_id in ours]
        jobs = {g.creator_job_id for g in booked} | (ours - ended)  # a controller of ours may be about to book
        # The state service filters by what is equal alone; asked for all but the dead ones it fails above 10,000 actors of a long search.
        actors: list[Any] = [
            actor
            for job in jobs
            for state in LIVING
            for actor in list_actors(filters=[("job_id", "=", job), ("state", "=", state)], detail=True, limit=10_000)
        ]
        controlled = {a.job_id for a in actors if a.class_name == "TrainController"}
        self._any = bool(booked) or bool(controlled - ended)
        used = {a.placement_group_id for a in actors}
        idle = {g.placement_group_id: g.creator_job_id for g in booked if g.placement_group_id not in used}
        now = time.monotonic()
        self._idle_since = {g: self._idle_since.get(g, now) for g in idle}
        left = [g for g, since in self._idle_since.items() if idle[g] not in controlled or now - since > IDLE]
        for group in left:
            log.warning("the booking %s of a worker group whose controller is gone is given back", group)
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))
        return left


def _is_worker_group(group: Any) -> bool:
    """Told from Tune's own bookings, for controllers, by their size, and from those for a trial to come by their name."""
    sizes = [bundle["unit_resources"].get("CPU", 0.0) for bundle in group.bundles or ()]
    return group.state != "REMOVED" and sizes != [CONTROLLER_CPU] and not (group.name or "").startswith(AHEAD)
