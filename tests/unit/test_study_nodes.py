"""Failures on several nodes: one bad node ends no search, what all nodes share does, and a bad node is left alone for a while."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from test_outcomes import Death
from test_study_driver import result
from training_helpers import search_space

from guidino_tune.study import nodes
from guidino_tune.study.nodes import AVOIDED, KEPT, NODE, QUICK, UNFIT
from guidino_tune.study.outcomes import LIMIT, PATIENCE


class Cluster(Death):
    """Trials of a driver, on nodes."""

    keys = 0

    def begin(self, node: str) -> str:
        self.keys += 1
        asked = self.driver.ask(str(self.keys))
        assert asked is not None
        self.asked: dict[str, Any] = asked
        if node:
            Path(asked["folder"]).mkdir(parents=True, exist_ok=True)
            (Path(asked["folder"]) / NODE).write_text(node)
        return str(self.keys)

    def fails(self, node: str, kind: Any = "environment", message: str = "no driver of the GPU") -> None:
        key = self.begin(node)
        self.driver.fail(key, kind, message)
        self.driver.tell(key, crashed=False)

    def hears(self, key: str, epoch: int) -> None:
        self.driver.report(key, result(epoch, 0.5))


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path, search_space(first_trials=[], study={"trials": 99, "pruner": "none"}))


def test_one_bad_node_does_not_end_the_search_of_the_others(cluster: Cluster) -> None:
    busy = [cluster.begin("good-1 aaa"), cluster.begin("good-2 bbb")]
    for epoch in range(1, 4):
        for key in busy:
            cluster.hears(key, epoch)
        for _ in range(LIMIT):
            cluster.fails("bad 0123456789abcdef")
            assert not cluster.driver.given_up
    assert cluster.run.trial(2).user_attrs[NODE] == "bad 0123456789abcdef"
    (line,) = cluster.warnings
    assert "node bad (01234567): one configuration after the other failed there" in line


def test_trials_that_are_only_starting_elsewhere_are_waited_for(cluster: Cluster) -> None:
    """The first epochs of the others take minutes, and a broken machine fails in seconds."""
    starting = cluster.begin("")
    for _ in range(LIMIT - 1):
        cluster.fails("bad")
    assert not cluster.driver.given_up
    Path(cluster.asked["folder"]).with_name("00000").mkdir()
    (Path(cluster.asked["folder"]).with_name("00000") / NODE).write_text("good")
    for _ in range(LIMIT):
        cluster.fails("bad")
    assert not cluster.driver.given_up
    cluster.driver.tell(starting, crashed=True)  # and nobody else is left
    assert "no driver of the GPU" in cluster.driver.given_up


def test_what_several_nodes_share_ends_the_search(cluster: Cluster) -> None:
    cluster.begin("one")
    for node in ("one", "one", "two"):
        assert not cluster.driver.given_up
        cluster.fails(node, message="no space left on device")
    assert "no space left" in cluster.driver.given_up


def test_an_epoch_on_a_node_where_nothing_failed_starts_the_counting_again(cluster: Cluster) -> None:
    third, first = cluster.begin("three"), cluster.begin("one")
    cluster.hears(third, 1)
    cluster.hears(first, 1)
    cluster.fails("one")
    cluster.fails("two")
    cluster.hears(first, 2)  # something failed there as well
    cluster.hears(third, 1)  # no news
    cluster.fails("one", kind="bug")
    cluster.hears(third, 2)
    cluster.fails("one")
    cluster.fails("two")
    assert not cluster.driver.given_up
    cluster.hears(first, 3)
    cluster.fails("one")
    assert "3 trials in a row failed the same way" in cluster.driver.given_up


@pytest.mark.parametrize("node", ["only", ""])
def test_a_search_with_one_node_or_none_known_ends_as_soon_as_ever(node: str, cluster: Cluster) -> None:
    busy = cluster.begin(node)
    cluster.hears(busy, 1)
    for _ in range(PATIENCE):
        assert not cluster.driver.given_up
        cluster.fails(node)
        cluster.hears(busy, len(cluster.run.study.trials))
    assert cluster.driver.given_up
    assert not cluster.driver.outcomes.nodes.avoided
    assert not cluster.warnings


def test_a_node_where_everything_fails_is_avoided_and_tried_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(nodes.time, "monotonic", lambda: now)
    good = cluster.begin("good aaa")
    cluster.hears(good, 1)
    for _ in range(QUICK):
        assert cluster.asked["avoided"] == []
        cluster.fails("bad bbb", kind="bug")
    cluster.begin("good aaa")
    assert cluster.asked["avoided"] == ["bbb"]
    now += AVOIDED + 1
    again = cluster.begin("bad bbb")
    assert cluster.asked["avoided"] == []
    cluster.driver.died(again, "the actor died")
    cluster.driver.outcomes.max_failures = 0
    cluster.driver.tell(again, crashed=True)
    assert cluster.run.trial(cluster.asked["number"]).state == TrialState.FAIL
    cluster.begin("good aaa")
    assert cluster.asked["avoided"] == ["bbb"]
    now += AVOIDED + 1
    mended = cluster.begin("bad bbb")
    cluster.hears(mended, 1)
    cluster.fails("bad bbb")
    cluster.begin("good aaa")
    assert cluster.asked["avoided"] == []


def test_a_trial_that_moved_is_known_where_it_went(cluster: Cluster) -> None:
    key = cluster.begin("one")
    cluster.hears(key, 1)
    cluster.driver.died(key, "node was terminated")
    cluster.driver.tell(key, crashed=True)
    again = cluster.begin("two")
    cluster.hears(again, 2)
    assert cluster.run.trial(0).user_attrs[NODE] == "two"


def test_what_a_node_did_to_a_trial_is_tried_once_elsewhere_from_its_last_epoch(cluster: Cluster) -> None:
    cluster.driver.has_others = lambda node: True
    cluster.hears(cluster.begin("good aaa"), 1)
    key = cluster.begin("full bbb")
    number = cluster.asked["number"]
    cluster.hears(key, 1)
    cluster.driver.fail(key, "environment", "no space left on device")
    cluster.driver.tell(key, crashed=False)
    assert cluster.run.trial(number).state == TrialState.RUNNING
    assert (
        f"trial {number} was interrupted and goes on from its checkpoint (environment: node full (bbb): no space left"
        in cluster.warnings[0]
    )
    key = cluster.begin("")
    assert (cluster.asked["number"], cluster.asked["reported"], cluster.asked["avoided"]) == (number, 1, ["bbb"])
    cluster.driver.fail(key, "environment", "no space left on device", "other ccc")
    cluster.driver.tell(key, crashed=False)
    stored = cluster.run.trial(number)
    assert (stored.state, stored.user_attrs[NODE]) == (TrialState.FAIL, "other ccc")


@pytest.mark.parametrize("kind", ["bug", "bad data", "diverged"])
def test_what_is_not_the_nodes_is_not_tried_elsewhere(kind: str, cluster: Cluster) -> None:
    cluster.driver.has_others = lambda node: True
    cluster.fails("one aaa", kind=kind)
    assert cluster.run.trial(0).state == TrialState.FAIL


def test_a_node_without_the_shared_folder_is_known_by_its_own_account_and_left_alone(cluster: Cluster) -> None:
    """It cannot write into the folders of its trials, and fails each within a second: a search of hundreds ended so."""
    cluster.driver.has_others = lambda node: True
    good = cluster.begin("good aaa")
    cluster.hears(good, 1)
    lost = []
    for _ in range(UNFIT):
        key = cluster.begin("")
        cluster.driver.orphans.clear()  # of the one before: it waits for the good node
        lost.append(cluster.asked["number"])
        assert "bbb" not in cluster.asked["avoided"]
        cluster.driver.fail(key, "environment", "the study's folder is not there", "empty bbb")
        cluster.driver.tell(key, crashed=False)
        cluster.driver.orphans.clear()
    cluster.begin("")
    assert cluster.asked["avoided"] == ["bbb"]
    assert [cluster.run.trial(n).state for n in lost] == [TrialState.RUNNING] * UNFIT
    assert any("node empty (bbb): one configuration after the other failed there" in text for text in cluster.warnings)
    assert not cluster.driver.given_up


def test_a_trial_that_only_waits_for_a_place_is_no_node_that_may_be_sound(cluster: Cluster) -> None:
    """In a cluster that other people started, one always does."""
    cluster.driver.outcomes.nodes.has_others = lambda node: False
    cluster.begin("")
    for _ in range(PATIENCE):
        assert not cluster.driver.given_up
        cluster.fails("only", kind="bug")
    assert cluster.driver.given_up


def test_what_no_process_has_begun_is_handed_out_again(cluster: Cluster) -> None:
    key = cluster.begin("")
    number = cluster.asked["number"]
    cluster.driver.give_back(key)
    cluster.driver.tell(key, crashed=False)  # as Tune does when it stops it
    cluster.driver.give_back(key)
    assert cluster.run.trial(number).state == TrialState.RUNNING
    cluster.begin("one aaa")
    assert cluster.asked["number"] == number
    assert len(cluster.run.study.trials) == 1


def test_what_is_too_large_for_a_small_gpu_is_tried_once_where_there_is_most_memory(cluster: Cluster) -> None:
    """It was the configuration's result, whichever card it had met."""
    cluster.driver.roomier = lambda node: ["bbb", "ccc"] if node == "small aaa" else []
    key = cluster.begin("small aaa")
    number = cluster.asked["number"]
    assert cluster.asked["only"] == []
    cluster.hears(key, 1)
    cluster.driver.fail(key, "out-of-memory", "CUDA out of memory.\nTried to allocate 20 GiB")
    cluster.driver.tell(key, crashed=False)
    assert cluster.run.trial(number).state == TrialState.RUNNING
    (line,) = cluster.warnings
    assert (
        f"trial {number} was interrupted and goes on from its checkpoint (out-of-memory: node small (aaa): CUDA out of memory. Tried to "
        "allocate 20 GiB; once more where a trial has most memory, by itself)"
    ) == line
    key = cluster.begin("large bbb")
    assert (cluster.asked["number"], cluster.asked["reported"], cluster.asked["only"]) == (number, 1, ["bbb", "ccc"])
    cluster.driver.roomier = lambda node: ["ccc"]  # nobody asks: it had the most
    cluster.driver.fail(key, "out-of-memory", "CUDA out of memory")
    cluster.driver.tell(key, crashed=False)
    stored = cluster.run.trial(number)
    assert (stored.state, stored.user_attrs["failure"], stored.user_attrs[NODE]) == (TrialState.FAIL, "out-of-memory", "large bbb")


def test_what_is_too_large_for_the_largest_gpu_is_a_result_at_once(cluster: Cluster) -> None:
    cluster.driver.roomier = lambda node: []
    cluster.fails("large bbb", kind="out-of-memory", message="CUDA out of memory")
    assert cluster.run.trial(0).user_attrs["failure"] == "out-of-memory"
    assert not cluster.warnings


def test_a_process_that_the_memory_monitor_ended_moves_as_well(cluster: Cluster) -> None:
    cluster.driver.roomier = lambda node: ["bbb"]
    for only in ([], [], ["bbb"]):  # as it was; in parts; on the larger node
        assert cluster.run.trial(0).state == TrialState.RUNNING if cluster.keys else True
        key = cluster.begin("large bbb" if only else "small aaa")
        assert (cluster.asked["number"], cluster.asked["only"]) == (0, only)
        cluster.driver.died(key, "Task was killed due to the node running low on memory")
        cluster.driver.tell(key, crashed=True)
    assert cluster.run.trial(0).user_attrs["failure"] == "out-of-memory"


def test_what_met_a_small_gpu_again_is_no_result_yet(cluster: Cluster) -> None:
    """The nodes with the most memory had left when it began: it began on a small one, and lacked memory there for good."""
    cluster.driver.roomier = lambda node: ["bbb"]
    for only in ([], *[["bbb"]] * KEPT):
        assert cluster.run.trial(0).state == TrialState.RUNNING if cluster.keys else True
        key = cluster.begin("small aaa")
        assert cluster.asked["only"] == only
        cluster.driver.fail(key, "out-of-memory", "CUDA out of memory")
        cluster.driver.tell(key, crashed=False)
    assert cluster.run.trial(0).user_attrs["failure"] == "out-of-memory"  # in the end
    assert len(cluster.warnings) == KEPT


def test_nodes_that_join_and_are_not_fit_end_no_search(cluster: Cluster) -> None:
    """Three of them: each trial met a second one, and was a failure then; three such failures ended a search that ran elsewhere."""
    names, unfit = {"good aaa"} | {f"t4-{n} {n}" for n in range(3)}, [f"t4-{n} {n}" for n in range(3)]
    cluster.driver.has_others = lambda *left: bool({n.rpartition(" ")[2] for n in names} - {n.rpartition(" ")[2] for n in left})
    cluster.hears(cluster.begin("good aaa"), 1)
    begun = [cluster.begin("") for _ in unfit]
    for key, node in zip(begun, unfit, strict=True):
        cluster.driver.fail(key, "environment", "its GPU does not compute in bf16", node, unfit=True)
        cluster.driver.tell(key, crashed=False)
    for _ in range(2 * len(unfit)):
        key = cluster.begin("")
        free = [node for node in unfit if node.rpartition(" ")[2] not in cluster.asked["avoided"]]
        if not free:
            break
        cluster.driver.fail(key, "environment", "its GPU does not compute in bf16", free[0], unfit=True)
        cluster.driver.tell(key, crashed=False)
    assert cluster.asked["avoided"] == ["0", "1", "2"]
    assert not cluster.driver.given_up
    assert {t.state for t in cluster.run.study.trials} == {TrialState.RUNNING}


def test_where_no_node_is_fit_the_search_ends_with_the_reason(cluster: Cluster) -> None:
    names = [f"n{n} {n}" for n in range(4)]
    cluster.driver.has_others = lambda *left: bool({n.rpartition(" ")[2] for n in names} - {n.rpartition(" ")[2] for n in left})
    for _ in range(4 * len(names)):
        if cluster.driver.given_up:
            break
        key = cluster.begin("")
        node = next((n for n in names if n.rpartition(" ")[2] not in cluster.asked["avoided"]), names[0])
        cluster.driver.fail(key, "environment", "the study's folder is not there", node, unfit=True)
        cluster.driver.tell(key, crashed=False)
    assert "the study's folder is not there" in cluster.driver.given_up
