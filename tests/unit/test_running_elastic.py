"""A cluster whose nodes come and go, as far as it can be told without Ray's processes."""

from __future__ import annotations

from typing import Any

import pytest

from guidino_tune.config import Resources
from guidino_tune.errors import UserError
from guidino_tune.running import cluster, elastic
from guidino_tune.running.cluster import Packed, Worker


class Machines:
    """The nodes of a faked cluster, and its clock, which a sleep moves on."""

    def __init__(self, patch: pytest.MonkeyPatch, *cpus: float, own: bool = False) -> None:
        import ray

        self.cpus, self.time, self.booked = list(cpus), 100.0, list[Any]()
        self.joins: dict[float, float] = {}
        patch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": c} if c else {}} for c in self.cpus])
        patch.setattr(cluster, "_own", own)
        patch.setattr(elastic.time, "monotonic", lambda: self.time)
        patch.setattr(elastic.time, "sleep", self.sleep)
        patch.setattr(ray.util, "placement_group", lambda bundles, name: self.booked.append(bundles) or bundles)
        self.state = "PENDING"
        patch.setattr(ray.util, "placement_group_table", lambda group: {"state": self.state})
        patch.setattr(ray.util, "remove_placement_group", lambda group: self.booked.remove(group))

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.cpus += [self.joins.pop(moment) for moment in list(self.joins) if moment <= self.time]


def test_a_node_that_joins_or_leaves_is_seen_soon_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machines, told = Machines(monkeypatch, 2), list[str]()
    places = elastic.Places(cluster.plan(Resources(cpus_per_worker=1)), told.append)
    assert places.now() == 3  # one waits, so that an autoscaler sees what is wanted
    machines.cpus.append(4)
    assert places.now() == 3
    machines.time += elastic.LOOK
    assert [places.now(), places.now()] == [7, 7]
    machines.cpus = [4]
    machines.time += elastic.LOOK
    assert places.now() == 5
    machines.cpus = []
    machines.time += elastic.LOOK
    assert places.now() == 1
    assert [text.split(": ")[1] for text in told] == [
        "6 trials side by side, 2 before", "4 trials side by side, 6 before", "0 trials side by side, 4 before",
    ]  # fmt: skip


def test_what_was_asked_for_is_never_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    machines, told = Machines(monkeypatch, 2), list[str]()
    places = elastic.Places(cluster.plan(Resources(concurrent=3)), told.append)
    assert places.now() == 3
    machines.cpus.append(64)
    machines.time += elastic.LOOK
    assert places.now() == 3
    assert cluster.plan(Resources(concurrent=1)).concurrent == elastic.Places(cluster.plan(Resources(concurrent=1)), told.append).now() == 1


def test_in_a_cluster_of_its_own_a_search_asks_for_no_more_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = Machines(monkeypatch, 2, own=True)
    places = elastic.Places(cluster.plan(Resources()), print)
    machines.time += elastic.LOOK
    assert places.now() == 2


def test_workers_of_one_trial_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    machines = Machines(monkeypatch, 4)
    places = elastic.Places(cluster.plan(Resources(workers=2, cpus_per_worker=2)), print)
    machines.cpus.append(3)  # room for one worker more
    machines.time += elastic.LOOK
    assert places.now() == 1
    machines.cpus.append(2)
    machines.time += elastic.LOOK
    assert places.now() == 2


def test_a_booking_stands_for_the_ray_train_trial_that_would_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes would take the hundredths of a CPU that the workers of the others need."""
    machines = Machines(monkeypatch, 2)
    places = elastic.Places(cluster.plan(Resources(executor="train", cpus_per_worker=1)), print)
    assert places.now() == 2
    assert machines.booked == [[{"CPU": 1.0}]]
    machines.cpus.append(1)
    machines.time += elastic.LOOK
    machines.state = "CREATED"  # on the node that joined
    assert (places.now(), machines.booked) == (3, [])
    machines.time += elastic.LOOK
    assert (places.now(), machines.booked) == (3, [])  # the place is for a trial that is starting
    machines.time += elastic.REST
    machines.state = "PENDING"
    assert (places.now(), len(machines.booked)) == (3, 1)
    places.wanted = lambda: False  # the last trial was given out
    machines.time += elastic.LOOK
    assert (places.now(), machines.booked) == (3, [])
    bounded = elastic.Places(cluster.plan(Resources(executor="train", cpus_per_worker=1, concurrent=3)), print)
    assert (bounded.now(), machines.booked) == (3, [])


def test_a_node_that_carries_no_trial_is_no_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def there(**nodes: dict[str, float]) -> None:
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "NodeID": n, "Resources": r} for n, r in nodes.items()])

    gpu, head = {"CPU": 8.0, "GPU": 1.0}, {"CPU": 16.0}
    there(head=head, gpu=gpu)
    booked = cluster.plan(Resources(gpus_per_worker=1))
    assert not cluster.has_others("host gpu", booked=booked)  # the head has no GPU
    assert cluster.elsewhere(["gpu"], booked.worker) == {}
    there(head=head, gpu=gpu, other=gpu)
    assert cluster.has_others("host gpu", booked=booked)
    assert cluster.elsewhere(["gpu"], booked.worker) == {"ray.io/node-id": "!in(gpu)"}
    assert not cluster.others(["gpu"], Worker(16, 1.0))
    assert not cluster.others([], Worker(8, 1.0, "H200"))
    assert cluster.elsewhere([], booked.worker, only=["other", "gpu", "gone"]) == {"ray.io/node-id": "in(gpu, other)"}
    assert cluster.elsewhere(["gpu"], booked.worker, only=["gpu"]) == {}  # nowhere to be had, so anywhere


def test_a_group_goes_elsewhere_only_where_it_fits_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of two waited for ever for its second place, next to a node that it avoided."""
    import ray

    cpus = {"one": 1.0, "bad": 2.0}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "NodeID": n, "Resources": {"CPU": c}} for n, c in cpus.items()])
    booked = cluster.plan(Resources(workers=2, cpus_per_worker=1))
    assert not cluster.has_others("host bad", booked=booked)
    assert cluster.elsewhere(["bad"], booked.worker, workers=2) == {}
    cpus["third"] = 1.0
    assert cluster.has_others("host bad", booked=booked)
    assert cluster.elsewhere(["bad"], booked.worker, workers=2) == {"ray.io/node-id": "!in(bad)"}
    assert cluster.elsewhere([], booked.worker, only=["one"], workers=2) == {}


def test_nodes_are_waited_for_with_a_booking_that_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    machines, told = Machines(monkeypatch, 0), list[str]()
    machines.joins = {130.0: 1.0, 160.0: 4.0}
    booked = elastic.plan_when_possible(Resources(cpus_per_worker=2), told.append)
    assert booked.concurrent == 2
    assert 160 <= machines.time < 165
    assert not machines.booked
    assert "waiting 15 minutes for nodes (resources.wait_for_nodes)" in told[0]


def test_the_booking_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    machines, seen = Machines(monkeypatch, 8), list[Any]()
    asked = Resources(gpus_per_worker=1, workers=2, cpus_per_worker=4, wait_for_nodes=10)
    monkeypatch.setattr(elastic, "plan", lambda resources, packed: seen.append([*machines.booked]) or cluster.plan(resources))
    with pytest.raises(UserError, match="none came within 10 s"):
        elastic.plan_when_possible(asked, print)
    assert seen[0] == []
    assert seen[1] == [[{"CPU": 4.0, "GPU": 1.0}] * 2]


@pytest.mark.parametrize(("own", "wait"), [(True, 900), (False, 0)])
def test_where_nobody_adds_nodes_the_message_comes_at_once(own: bool, wait: float, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = Machines(monkeypatch, 8, own=own)
    with pytest.raises(UserError, match="one trial needs"):
        elastic.plan_when_possible(Resources(cpus_per_worker=16, wait_for_nodes=wait), print)
    assert machines.time == 100


def test_of_mixed_gpus_one_type_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    nodes = [{"CPU": 16.0, "GPU": 4.0, "accelerator_type:T4": 1.0}, {"CPU": 16.0, "GPU": 2.0, "accelerator_type:H200": 1.0}, {"CPU": 64.0}]
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    monkeypatch.setattr(cluster, "_own", True)
    plan = cluster.plan(Resources(accelerator="H200"))
    assert (plan.concurrent, plan.cpus, plan.gpus) == (2, 8, 1.0)
    assert plan.booked == {"CPU": 8.0, "GPU": 1.0, "accelerator_type:H200": 0.001}
    assert cluster.plan(Resources()).booked == {"CPU": 4.0, "GPU": 1.0}
    with pytest.raises(cluster.NoRoom, match=r"0 node\(s\) of type A100 with 0 CPUs"):
        cluster.plan(Resources(accelerator="A100"))


def test_the_bound_by_memory_follows_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a number found at the start: a search that began on one of a hundred nodes stayed at that one's memory."""
    import ray

    def node(gigabytes: int) -> dict[str, Any]:
        return {"Alive": True, "Resources": {"CPU": 16.0, "memory": gigabytes * 1e9}}

    nodes, now = [node(10)], 100.0
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "_own", False)
    monkeypatch.setattr(elastic.time, "monotonic", lambda: now)
    booked = cluster.plan(Resources(cpus_per_worker=1), Packed(memory=3 * 10**9))
    assert (booked.concurrent, booked.booked) == (3, {"CPU": 1.0, "memory": 3e9})
    places = elastic.Places(booked, lambda text: None)
    assert places.now() == 4  # one waits
    for more, expected in ((node(25), 11 + 1), (node(2), 11 + 1), (node(1000), 27 + 1)):  # the last one's CPUs carry 16
        nodes.append(more)
        now += elastic.LOOK
        assert places.now() == expected
    nodes[:] = [node(25)]
    now += elastic.LOOK
    assert places.now() == 8 + 1


def test_what_no_node_s_memory_holds_has_the_largest_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    sizes = (10, 40)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0, "memory": s * 1e9}} for s in sizes])
    booked = cluster.plan(Resources(), Packed(memory=10**12))
    assert (booked.concurrent, booked.memory) == (1, 40 * 10**9)
