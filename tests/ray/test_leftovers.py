"""A booking whose controller is gone is given back; those of living ones and of others stay."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest

from guidino_tune.running import leftovers
from guidino_tune.running.cluster import Plan
from guidino_tune.running.elastic import _Booking
from guidino_tune.running.executors import CONTROLLER_CPU
from guidino_tune.running.leftovers import Leftovers


@pytest.fixture(autouse=True)
def sent_by_value() -> None:
    """Ray's processes cannot import this file."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class TrainController:
    """Books a CPU as Ray Train's controller does."""

    def book(self) -> str:
        import ray

        self.group = ray.util.placement_group([{"CPU": 0.5}])
        ray.get(self.group.ready())
        return str(self.group.id.hex())


def states() -> dict[str, str]:
    from ray.util.state import list_placement_groups

    return {g.placement_group_id: g.state for g in list_placement_groups(detail=True)}


def until_dead(count: int) -> None:
    from ray.util.state import list_actors

    deadline = time.monotonic() + 20
    while len(list_actors(filters=[("class_name", "=", "TrainController"), ("state", "=", "ALIVE")])) > count:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_booking_is_given_back_when_its_controller_is_gone() -> None:
    import ray

    remote: Any = ray.remote(num_cpus=0)(TrainController)
    other = ray.util.placement_group([{"CPU": CONTROLLER_CPU}])  # as Tune books for a trial
    living, dying = remote.remote(), remote.remote()
    kept, leaked = ray.get(living.book.remote()), ray.get(dying.book.remote())
    try:
        ray.kill(dying)
        until_dead(1)
        found = Leftovers("train")
        assert found.look() == []  # one controller lives, and either booking may be that of workers which it starts
        assert {states()[kept], states()[leaked]} == {"CREATED"}
        ray.kill(living)
        until_dead(0)
        assert Leftovers("actor").look() == []  # the trials of this executor are bookings of this very kind
        assert sorted(found.look()) == sorted([kept, leaked])
        assert {states()[kept], states()[leaked]} == {"REMOVED"}
        assert states()[other.id.hex()] == "CREATED"
        assert found.look() == []
    finally:
        ray.util.remove_placement_group(other)


def test_the_place_of_a_trial_to_come_is_not_left_over() -> None:
    """Nobody controls it, and it may wait for a node for as long as the search lasts."""
    booking = _Booking(Plan("train", 1, 1, 0, 0, 0, 2, None, None))
    try:
        assert Leftovers("train").look() == []
        assert [group for group, state in states().items() if state != "REMOVED"]
    finally:
        booking.close()


def test_a_booking_without_workers_is_left_over_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(leftovers, "IDLE", 0.0)
    remote: Any = ray.remote(num_cpus=0)(TrainController)
    living, dying = remote.remote(), remote.remote()
    leaked = ray.get(dying.book.remote())
    ray.get(living.__ray_ready__.remote())
    ray.kill(dying)
    until_dead(1)
    found = Leftovers("train")
    assert found.look() == []  # seen for the first time
    time.sleep(0.05)
    assert found.look() == [leaked]
    ray.kill(living)
    until_dead(0)
