"""Failures of every kind, each told apart and each with what follows from it: real exceptions, a real study, real training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from optuna.trial import TrialState
from ray.core.generated import common_pb2
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, OutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError
from ray.tune.search import Searcher
from test_running_executors import actor, config, demo  # noqa: F401
from test_study_driver import Run, result
from test_workflows_recorder import Tracker
from training_helpers import search_space

from guidino_tune.running.tune_adapter import StudyScheduler, StudySearcher
from guidino_tune.running.worker_groups import GroupNotStarted, group_failure
from guidino_tune.space.space import Space
from guidino_tune.study.outcomes import INTERRUPTION, PREEMPTIONS, in_words, same_way
from guidino_tune.study.tally import Tally
from guidino_tune.study.trials import finished
from guidino_tune.tracking.snapshots import StudySnapshot
from guidino_tune.training import failures
from guidino_tune.training.failures import POLICIES, FailureKind, death_kind
from guidino_tune.workflows.recorder import Recorder

KILLED = (
    "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed by the "
    "OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed unexpectedly due to SIGSEGV"
)
LOST = "The actor died because its node has died. Node Id: f00\n\tthe actor's node was terminated unexpectedly: health check failed"
MONITOR = "Task was killed due to the node running low on memory. 1 worker(s) were killed due to the node running low on memory."


def died(text: str, **fields: Any) -> ActorDiedError:
    """As Ray makes it from what its core says."""
    return ActorDiedError(
        common_pb2.ActorDiedErrorContext(error_message=text, class_name="TrialActor", pid=7, actor_id=b"0" * 16, **fields)
    )


DRAINED = died(
    "The actor died because its node has died.\n\tthe actor's node was preempted: spot",
    node_death_info=common_pb2.NodeDeathInfo(reason=common_pb2.NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED),
)


def group(error: Exception) -> WorkerGroupError:
    """A worker group of two, one of which is gone."""
    failed = WorkerHealthCheckFailedError("A worker health check failed.", failure=error)
    return WorkerGroupError("[Rank 1]\n... (Output truncated) ...", {1: failed})


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (died(LOST), "preempted"),
        (DRAINED, "preempted"),
        (NodeDiedError("Task failed because the node it was running on is dead or unavailable. Node IP: 10.0.0.1"), "preempted"),
        (ActorUnavailableError("The actor is temporarily unavailable: RpcError: keepalive watchdog timeout", b"0" * 16), "preempted"),
        (died(KILLED), "crashed"),
        (died("BlockingIOError: [Errno 11] Resource temporarily unavailable"), "crashed"),
        (died("The actor is dead because it was killed by `ray.kill`."), "crashed"),
        (OutOfMemoryError(MONITOR), "out-of-memory"),
    ],
)
def test_the_ends_of_a_process_are_told_apart(error: Exception, kind: FailureKind) -> None:
    assert death_kind(str(error)) == kind
    assert group_failure(group(error))["failure"] == kind  # a worker group keeps the words


def test_an_announced_preemption_of_a_worker_group_is_one() -> None:
    assert group_failure(PreemptionError(SimpleNamespace(preempted_ranks=[0])))["failure"] == "preempted"  # type: ignore[arg-type]
    assert DRAINED.preempted  # else the message above would be no preemption for Ray either


def test_a_group_whose_workers_do_not_come_together_is_started_again() -> None:
    trace = "\x1b[36mray::execute()\x1b[39m (ip=10.0.0.1)\n  File ...\nRuntimeError: Gloo connectFullMesh failed: Connection refused\n"
    with pytest.raises(GroupNotStarted, match=r"^its workers did not come together: RuntimeError: Gloo connect"):
        group_failure(ControllerError(RuntimeError(trace)))
    assert group_failure(ControllerError(died(LOST)))["failure"] == "preempted"


def test_every_kind_has_its_policy_and_its_line_in_the_table() -> None:
    assert set(POLICIES) == set(get_args(FailureKind))
    table = (failures.__doc__ or "").splitlines()
    for kind, policy in POLICIES.items():
        (line,) = [line for line in table if line[:15].strip() == kind]
        assert (" yes " in line) == policy.is_result


class Death:
    """Trials of a driver that end in some way."""

    def __init__(self, path: Path, space: Space | None = None, max_failures: int = 2) -> None:
        self.run = Run(path, space or search_space(first_trials=[], study={"trials": 30}))
        self.driver = self.run.driver
        self.driver.outcomes.max_failures = max_failures
        self.warnings: list[str] = []
        self.driver.warn = self.warnings.append

    def ask(self) -> dict[str, Any]:
        asked = self.driver.ask("t")
        assert asked is not None
        return asked

    def die(self, text: str) -> None:
        self.driver.died("t", text)
        self.driver.tell("t", crashed=True)

    def fail(self, kind: str, message: str = "oh") -> int:
        number = int(self.ask()["number"])
        self.driver.fail("t", kind, message)
        self.driver.tell("t", crashed=False)
        return number

    def succeed(self) -> None:
        self.ask()
        for epoch in (1, 2, 3, 4):
            self.driver.report("t", result(epoch, 0.5))
        self.driver.tell("t", crashed=False)


def test_what_a_lost_machine_did_to_the_other_workers_is_no_reason(tmp_path: Path) -> None:
    """They cannot reach its part of the group, or of Ray Train, and note that, while the controller of the group goes with it."""
    death = Death(tmp_path)
    note = Path(death.ask()["folder"]) / failures.FAILURE
    note.parent.mkdir(parents=True)
    note.write_text('{"failure": "bug", "message": "The actor died unexpectedly: SynchronizationActor", "epoch": 0}')
    death.die(LOST)
    assert death.run.trial(0).state == TrialState.RUNNING
    assert not note.exists()
    assert death.ask()["number"] == 0


def test_a_trial_whose_machine_is_lost_goes_on_and_nothing_counts_against_it(tmp_path: Path) -> None:
    death = Death(tmp_path, max_failures=0)
    first = death.ask()
    for round_ in range(3 * PREEMPTIONS):
        epoch = 1 + round_ // PREEMPTIONS  # a new epoch now and then shows that it gets on
        if round_ % PREEMPTIONS == 0:
            assert death.driver.report("t", result(epoch, 0.5))
        death.die(LOST)
        trial = death.run.trial(0)
        assert trial.state == TrialState.RUNNING
        assert trial.user_attrs[INTERRUPTION].startswith("preempted: ")
        again = death.ask()
        assert (again["number"], again["reported"], again["experiment"]) == (0, epoch, first["experiment"])
        assert death.run.trial(0).user_attrs[INTERRUPTION] == ""
    assert not death.driver.given_up
    assert death.run.driver.remaining == 30
    assert "trial 0" in death.warnings[0]
    assert "node has died" in death.warnings[0]
    assert not death.driver.report("t", result(4, 0.7, (3, 0.6)))
    death.driver.tell("t", crashed=False)
    assert death.run.trial(0).state == TrialState.COMPLETE


def test_a_trial_that_never_gets_on_is_given_up_in_the_end(tmp_path: Path) -> None:
    death = Death(tmp_path)
    for _ in range(PREEMPTIONS + 1):
        assert death.ask()["number"] == 0
        death.die(LOST)
    trial = death.run.trial(0)
    assert (trial.state, trial.user_attrs["failure"]) == (TrialState.FAIL, "crashed")
    assert "21 times without an epoch" in trial.user_attrs["message"]


@pytest.mark.parametrize("max_failures", [0, 2])
def test_a_crash_is_repeated_as_often_as_allowed_whatever_machines_do(max_failures: int, tmp_path: Path) -> None:
    death = Death(tmp_path, max_failures=max_failures)
    for _ in range(max_failures):
        death.ask()
        death.die(KILLED)
        death.ask()
        death.die(LOST)
    death.ask()
    death.die(KILLED)
    trial = death.run.trial(0)
    assert (trial.state, trial.user_attrs["failure"]) == (TrialState.FAIL, "crashed")
    assert "max_failures" in trial.user_attrs["message"]
    assert "SIGSEGV" in trial.user_attrs["message"]


def test_a_process_ended_for_memory_goes_on_in_parts_once(tmp_path: Path) -> None:
    death = Death(tmp_path, max_failures=0)
    assert not death.ask()["short_of_memory"]
    death.die(MONITOR)
    again = death.ask()
    assert (again["number"], again["short_of_memory"]) == (0, True)
    death.die(MONITOR)
    trial = death.run.trial(0)
    assert (trial.state, trial.user_attrs["failure"]) == (TrialState.FAIL, "out-of-memory")
    assert len(finished(death.run.study)) == 1
    assert not death.ask()["short_of_memory"]


def test_a_worker_group_that_lost_its_machine_goes_on(tmp_path: Path) -> None:
    death = Death(tmp_path, max_failures=0)
    assert death.fail("preempted", "its node was preempted") == 0
    assert death.run.trial(0).state == TrialState.RUNNING
    assert death.ask()["number"] == 0


def test_what_a_process_wrote_before_its_end_is_the_reason(tmp_path: Path) -> None:
    death = Death(tmp_path)
    file = Path(death.ask()["folder"]) / failures.FAILURE
    file.parent.mkdir(parents=True)
    file.write_text('{"failure": "bug", "message": "device-side assert", "epoch": 0}')
    death.die("RuntimeError: device-side assert")
    trial = death.run.trial(0)
    assert (trial.state, trial.user_attrs["failure"], trial.user_attrs["message"]) == (TrialState.FAIL, "bug", "device-side assert")
    assert not file.exists()


def test_the_scheduler_hears_what_ray_says(tmp_path: Path) -> None:
    death = Death(tmp_path, max_failures=0)
    death.ask()
    file = tmp_path / "error.txt"  # as Tune writes it: every failure with a heading
    file.write_text(f"Failure # 1 (occurred at noon)\n{KILLED}\nFailure # 1 (occurred at one)\n{LOST}\n")
    StudyScheduler(death.driver).on_trial_error(None, SimpleNamespace(trial_id="t", error_file=str(file)))  # type: ignore[arg-type]
    StudySearcher(death.driver).on_trial_complete("t", error=True)
    assert death.run.trial(0).state == TrialState.RUNNING
    StudyScheduler(death.driver).on_trial_error(None, SimpleNamespace(trial_id="u", error_file=None))  # type: ignore[arg-type]


def test_tune_is_asked_to_wait_while_a_trial_may_have_to_be_made_up_for(tmp_path: Path) -> None:
    death = Death(tmp_path, search_space(first_trials=[], study={"trials": 2}))
    searcher, driver = StudySearcher(death.driver), death.driver
    assert [searcher.suggest(name)["number"] for name in "ab"] == [0, 1]
    assert searcher.suggest("c") is None
    driver.report("a", result(4, 0.5))
    driver.tell("a", crashed=False)
    assert searcher.suggest("c") is None
    driver.fail("b", "bug", "oh")
    driver.tell("b", crashed=False)
    assert searcher.suggest("c")["number"] == 2
    driver.fail("c", "diverged", "nan")
    driver.tell("c", crashed=False)
    assert searcher.suggest("d") == Searcher.FINISHED
    assert death.run.driver.remaining == 0


def test_reasons_are_grouped_by_kind(tmp_path: Path) -> None:
    death = Death(tmp_path)
    for kind, message in (("out-of-memory", "CUDA"), ("diverged", "nan in epoch 1"), ("diverged", "nan in epoch 2"), ("diverged", "inf")):
        death.fail(kind, message)
    trials = death.run.study.get_trials()
    first, second = in_words(trials)
    assert first.startswith("3 diverged (trial 1, 2, 3): nan in epoch 1. What to do: lower the rates")
    assert second.startswith("1 out-of-memory (trial 0): CUDA. What to do: ")
    assert same_way(trials) is None
    assert same_way(trials[1:]) == "diverged"
    assert Tally(death.run.study).failures == {"diverged": 3, "out-of-memory": 1}
    death.succeed()
    assert same_way(death.run.study.get_trials()[1:]) is None


def test_weights_of_a_trial_that_diverges_later_are_removed(tmp_path: Path) -> None:
    death = Death(tmp_path, search_space(first_trials=[], study={"trials": 30, "keep_weights": "all"}))
    folders = []
    for kind in ("diverged", "bug"):
        folders.append(death.run.folder.trial(len(folders)))
        folders[-1].best.mkdir(parents=True)
        death.fail(kind)
    assert [folder.best.exists() for folder in folders] == [False, True]


def test_a_trial_that_waits_for_a_machine_is_shown_as_interrupted_with_its_reason(tmp_path: Path) -> None:
    death, tracker = Death(tmp_path), Tracker()
    run = death.run
    recorder = Recorder(run.study, run.space, run.folder, tracker, StudySnapshot("small"))
    run.driver.listener = recorder.changed
    death.ask()
    death.die(LOST)
    death.ask()
    death.driver.fail("t", "diverged", "nan")
    death.driver.tell("t", crashed=False)
    told = [(trial.state, trial.reason.split(":")[0]) for trial in tracker.trials]
    assert told == [("running", ""), ("interrupted", "preempted"), ("running", ""), ("fail", "diverged")]
