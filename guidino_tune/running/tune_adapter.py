"""A study behind Ray Tune: a searcher that asks and tells, a scheduler that reports and prunes, and the run of both.

Stock ``OptunaSearch`` keeps a second state and tells trials that were stopped early as complete. Here the study is the only state.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Collection
from functools import cache, partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from guidino_tune.errors import UserError
from guidino_tune.running.cluster import Plan, Worker, elsewhere, living, may_change, others, places_for
from guidino_tune.running.elastic import LOOK, Places, Say
from guidino_tune.running.executors import trainable
from guidino_tune.running.leftovers import Leftovers
from guidino_tune.stopping import stop_signals
from guidino_tune.study.driver import Driver
from guidino_tune.training.failures import as_kind
from guidino_tune.training.reporter import EpochRecord


def run_trials(driver: Driver, resources: Plan, say: Say = lambda text: None) -> None:
    """Runs what remains of a study on the cluster that is connected; ``driver.ended`` and ``driver.error`` say how it ended.

    Args:
        driver: Of the study.
        resources: As the cluster is now.
        say: Told when more or fewer trials run side by side, because nodes joined or left.

    Raises:
        UserError: Ray ended the search.
        KeyboardInterrupt: A second signal came while the first was stopping it.
    """
    folder, places = driver.folder, Places(resources, say)
    scheduler = StudyScheduler(driver, resources)
    places.bound, places.wanted = scheduler.bound, lambda: driver.remaining > 0
    scheduler.look = places.now  # also when there is nothing to ask for any more
    tuner = tune.Tuner(
        trainable(resources),
        tune_config=tune.TuneConfig(
            search_alg=StudySearcher(driver, places.now),
            scheduler=scheduler,
            num_samples=-1,  # the searcher says when it is enough: some trials are made up for, or handed out again
            reuse_actors=resources.executor == "actor",
        ),
        # A name of its own for each run keeps Tune from looking for its earlier state: the study is the only one.
        run_config=tune.RunConfig(
            name=f"run-{uuid.uuid4().hex[:12]}",
            storage_path=str(folder.ray),
            verbose=0,
            progress_reporter=tune.CLIReporter(),  # which is silent then; that of a notebook leaves an empty line
            # The searcher hands out again what shall go on: Tune counts the loss of a machine as a failure of the trial.
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )
    # On a full disk Tune would tell, with a traceback, that it cannot copy its state there; nobody reads that state.
    logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
    try:
        # Tune takes the first signal as a request to end, and leaves its handler behind.
        with contextlib.closing(places), _leftovers(resources), stop_signals():
            tuner.fit()
    except ray.tune.TuneError as error:
        raise UserError(f"Ray ended the search: {error}", where=str(folder.path), todo="run it again to continue") from error
    finally:
        shutil.rmtree(folder.ray, ignore_errors=True)


def _leftovers(resources: Plan) -> contextlib.AbstractContextManager[object]:
    """Nobody has left anything in a cluster of this search's own, which may have no state service to ask."""
    return Leftovers(resources.executor) if may_change() or resources.executor == "train" else contextlib.nullcontext()


class StudySearcher(Searcher):
    """Tune's side of ask and tell.

    Args:
        driver: Of the study.
        places: How many trials may be under way now.
    """

    def __init__(self, driver: Driver, places: Callable[[], float] = lambda: math.inf) -> None:
        super().__init__()  # no metric: a result may be a failure, and the study knows its objective
        self.driver, self.places = driver, places

    def suggest(self, trial_id: str) -> Any:
        """See ``Searcher.suggest``."""
        return self.driver.stored(lambda: self._next(trial_id), Searcher.FINISHED)

    def _next(self, trial_id: str) -> Any:
        driver = self.driver
        if driver.expired or driver.given_up:
            return Searcher.FINISHED
        # Tune's own limit, `max_concurrent_trials`, is a number that stays; it asks again.
        if driver.waits or len(driver.running) >= self.places():
            return None
        asked = driver.ask(trial_id) if driver.remaining > 0 else None
        return asked or (None if driver.waits else Searcher.FINISHED)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The scheduler reports: it must know the answer."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """See ``Searcher.on_trial_complete``."""
        self.driver.stored(lambda: self.driver.tell(trial_id, crashed=error), None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is saved with every call."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is opened instead."""


class StudyScheduler(FIFOScheduler):
    """Tune's side of report and should_prune."""

    def __init__(self, driver: Driver, booked: Plan | None = None) -> None:
        super().__init__()
        self.driver, self.booked = driver, booked
        self.look: Callable[[], object] = lambda: None
        self._looked = time.monotonic()
        self._alone: dict[str, TuneTrial] = {}
        self._beside: tuple[set[str], float, int] = set(), -math.inf, 0
        self._workers: dict[str, Worker] = {}
        self._elsewhere: dict[str, tuple[tuple[str, ...], Worker, tuple[str, ...], int]] = {}
        self._next: deque[TuneTrial] = deque()

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """See ``TrialScheduler.on_trial_add``; a reused actor has another booking, so that it is not taken where it is to be avoided."""
        self._next.append(trial)
        if not (self.booked and trial.placement_group_factory):
            return
        config, plan = trial.config, self.booked
        avoided, only = config.get("avoided", ()), config.get("only", ())
        if only and not places_for(avoided, plan.alone, only, plan.workers):
            only = config["only"] = []  # those nodes are gone, or avoided: it begins as any other
        if only and plan.shares_gpus:
            self._keep_free(trial)
        elif not only and (kept := self._kept) and others({*avoided, *kept}, plan.worker, plan.workers):
            avoided = config["avoided"] = sorted({*avoided, *kept})
        worker = self._workers[trial.trial_id] = plan.alone if only else self._next_worker(tune_controller, avoided)
        bundles = trial.placement_group_factory.bundles
        if worker != plan.worker:
            # The trainings of a Ray Train trial are booked by its controller, from these.
            config.update(cpus=worker.cpus, gpus=worker.gpus, accelerator=worker.accelerator, memory=worker.memory)
            bundles = [worker.booked] if plan.executor == "actor" else bundles
        selector = elsewhere(avoided, worker, only, plan.workers)
        config["pinned"] = bool(selector) or worker in plan.kinds.values()
        if selector or worker != plan.worker:
            self._elsewhere[trial.trial_id] = tuple(avoided), worker, tuple(only), plan.workers
        if selector or bundles != trial.placement_group_factory.bundles:
            trial.update_resources(tune.PlacementGroupFactory(bundles, bundle_label_selector=[selector] * len(bundles)))

    def _next_worker(self, tune_controller: Any, avoided: Collection[str]) -> Worker:
        """What a trial's workers book: where GPUs differ, for the type of which most places are free."""
        assert self.booked
        if not self.booked.kinds:
            return self.booked.worker
        under_way = (self._workers.get(t.trial_id) for t in tune_controller.get_trials() if not t.is_finished())
        return self.booked.freest(list(living(avoided).values()), Counter(filter(None, under_way)))

    def _keep_free(self, trial: TuneTrial) -> None:
        """Others, which share GPUs, would take each part that becomes free, and a trial that needs a whole one would wait for ever."""
        self._alone[trial.trial_id] = trial
        names = ", ".join(name[:8] for name in trial.config["only"])
        self.driver.warn(f"trial {trial.config['number']} needs a whole GPU: until it has one, no other trial begins on {names}")

    @property
    def _kept(self) -> set[str]:
        """Ray's ids of the nodes that are kept free for trials that wait for a whole GPU."""
        for key, trial in list(self._alone.items()):
            # A Ray Train trial, of which Tune knows the controller only, has begun once it was heard.
            waits = trial.status == TuneTrial.PENDING or (
                trial.config["executor"] == "train" and trial.config["number"] in self.driver.unplaced
            )
            if not waits or key not in self.driver.running:
                del self._alone[key]
        return {node for trial in self._alone.values() for node in trial.config["only"]}

    def bound(self) -> float:
        """How many trials may be under way: while nodes are kept free, what others carry, who is on those still, and who waits."""
        if not (kept := self._kept):
            return math.inf
        assert self.booked
        known, looked, beside = self._beside
        if known != kept or time.monotonic() - looked >= LOOK:
            beside = self.booked.places(list(living(kept).values())) // self.booked.workers
            self._beside = kept, time.monotonic(), beside
        nodes, running = self.driver.outcomes.nodes, self.driver.running.items()
        there = sum(nodes.node_of(trial.number).rpartition(" ")[2] in kept for key, trial in running if key not in self._alone)
        return beside + there + len(self._alone)

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """See ``TrialScheduler.choose_trial_to_run``; now and then it looks at what waits for a place.

        It is asked in every step, and Tune's own looks at all trials that there ever were. Here a trial that has begun never waits again,
        so that those before the oldest one that waits need no second look.
        """
        if time.monotonic() - self._looked >= LOOK:
            self._looked = time.monotonic()
            self.look()
            self._take_back(tune_controller)
        while self._next and self._next[0].status != TuneTrial.PENDING:
            self._next.popleft()
        return self._next[0] if self._next else None

    def _take_back(self, tune_controller: Any) -> None:
        """What waits is not to begin once the search is over; nor to wait for other nodes when there are none any more."""
        there = cache(places_for)  # hundreds may wait that avoid the same node
        for trial in [t for t in tune_controller.get_trials() if t.status == TuneTrial.PENDING]:
            where = self._elsewhere.get(trial.trial_id)
            if self._over or (where and not there(*where)):
                self.driver.stored(partial(self.driver.give_back, trial.trial_id), None)
                tune_controller.stop_trial(trial)

    @property
    def _over(self) -> bool:
        return bool(self.driver.error or self.driver.expired or self.driver.given_up)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """See ``TrialScheduler.on_trial_result``."""
        go_on = self.driver.stored(lambda: self._take(trial.trial_id, result), False)
        if self._over:  # before its place is free for what waits
            self._take_back(tune_controller)
        return TrialScheduler.CONTINUE if go_on else TrialScheduler.STOP

    def _take(self, key: str, result: dict[str, Any]) -> bool:
        if "failure" in result:
            unfit = bool(result.get("unfit"))
            self.driver.fail(key, as_kind(result["failure"]), result["message"], result.get("node", ""), unfit=unfit)
            return False
        return self.driver.report(key, map(EpochRecord.from_dict, json.loads(result["records"])), result.get("note", ""))

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """See ``TrialScheduler.on_trial_error``; the searcher, which closes the trial, is not told what happened."""
        self.driver.died(trial.trial_id, last_error(trial))


def last_error(trial: TuneTrial) -> str:
    """What Ray said of the last failure of a Tune trial; empty when it left no file."""
    file = trial.error_file
    text = Path(file).read_text(encoding="utf-8", errors="replace") if file and Path(file).exists() else ""
    return text.rpartition("Failure # ")[2].partition("\n")[2]
