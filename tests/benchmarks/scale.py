"""What a search on a large cluster costs its driver: 100 nodes of 8 GPUs, a thousand trials at once, ten thousand in all.

    python tests/benchmarks/scale.py
    python tests/benchmarks/scale.py --parts search growth

Trials train nothing. ``search``: a whole search over curves by formula, whose epochs take a minute, on the simulator's clock, its study in
a journal on the disk; then what it costs to go on with it, to fill every place, and to hand out again what a tenth of the nodes carried.
``growth``: a question, a report and an end beside ten times as many trials. ``database``: the same in a database of which the driver has
the lease. ``mlflow``: how far MLflow is behind a thousand trials that tell their epochs as fast as the driver takes them. ``tune``: Ray
Tune with our searcher and scheduler, against its own, on actors that do nothing. What is compared are seconds of CPU of the driver's thread
where nothing else is said.
"""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from asking import Curves
from measuring import parser, ratios, report

from guidino_tune.cli import positive
from guidino_tune.config import Experiment
from guidino_tune.simulation.executor import simulate
from guidino_tune.space.space import Space, load_space, override
from guidino_tune.study.driver import Driver
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.tracking import MLflowTracker, StudySnapshot, flatten
from guidino_tune.training.reporter import EpochRecord
from guidino_tune.workflows.recorder import Recorder

EPOCHS = 100
GROWTH = 1.5
"""Aim: a trial beside ten times as many others, over one beside few."""

SHARE = 0.05
"""Aim: of the time of a search whose epochs take a minute, the part in which its driver works."""


class Watched(Driver):
    """A driver that notes the CPU seconds of each call, of its thread."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.spent: dict[str, list[float]] = {"ask": [], "report": [], "tell": []}

    def ask(self, key: str) -> dict[str, Any] | None:
        """See ``Driver.ask``."""
        start = time.thread_time()
        found = super().ask(key)
        self.spent["ask"].append(time.thread_time() - start)
        return found

    def report(self, *args: Any, **options: Any) -> bool:
        """See ``Driver.report``."""
        start = time.thread_time()
        goes_on = super().report(*args, **options)
        self.spent["report"].append(time.thread_time() - start)
        return goes_on

    def tell(self, *args: Any, **options: Any) -> None:
        """See ``Driver.tell``."""
        start = time.thread_time()
        super().tell(*args, **options)
        self.spent["tell"].append(time.thread_time() - start)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the parts and prints a line for each figure."""
    made = parser(__doc__)
    made.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=[*PARTS], help="default: all")
    made.add_argument("--places", type=positive, default=800, help="trials side by side; default: %(default)s")
    made.add_argument("--trials", type=positive, default=3000, help="of the search; default: %(default)s")
    made.add_argument("--running", type=positive, default=1000, help="trials at once, most; a tenth of it, few; default: %(default)s")
    made.add_argument("--finished", type=positive, default=10_000, help="likewise, of those that ended; default: %(default)s")
    made.add_argument("--rounds", type=positive, default=10, help="epochs that each of the trials tells MLflow; default: %(default)s")
    made.add_argument("--url", help="database of the part database; default: SQLite")
    made.add_argument("--mlflow", metavar="URI", help="of a server, in place of an SQLite database")
    made.add_argument("--actors", type=positive, default=16, help="processes of Ray Tune; default: %(default)s")
    options = made.parse_args(argv)
    for name in options.parts:
        with tempfile.TemporaryDirectory() as home:
            PARTS[name](Path(home), options)
    return 0


def space_of(trials: int, **more: Any) -> Space:
    """The space of Kvasir-SEG with its usual sampler and pruner, without its images."""
    asked = {"study.trials": trials, "training.epochs": EPOCHS, "data.kind": "demo", "study.name": "scale"}
    return override(load_space("kvasir"), asked | {name.replace("__", "."): value for name, value in more.items()})


def search(home: Path, options: Any) -> None:
    """A whole search on the virtual clock, then its continuation."""
    space, folder, drivers = space_of(options.trials), StudyFolder(home), list[Watched]()

    def make_driver(*args: Any, **settings: Any) -> Watched:
        drivers.append(Watched(*args, **settings))
        return drivers[-1]

    begun = time.perf_counter()
    told, study = simulate(
        space, Curves(EPOCHS), workers=options.places, epochs=10**9, trials=options.trials, journal=folder.journal, make_driver=make_driver
    )
    wall, spent, size = time.perf_counter() - begun, drivers[0].spent, folder.journal.stat().st_size
    trials, used = study.get_trials(deepcopy=False), sum(sum(calls) for calls in spent.values())
    reports = sum(len(trial.intermediate_values) for trial in trials)
    note = ", ".join(f"{what} {1000 * statistics.median(calls):.2f} ms ({len(calls)})" for what, calls in spent.items())
    length = f"{told.total_seconds:,.0f} simulated seconds of {len(trials)} trials"
    report("scale search", f"driver's work / {length} on {options.places} places", [used / told.total_seconds],
           output=options.output, aim=SHARE, note=f"{note}; simulated in {wall:.0f} s")  # fmt: skip
    # What fills the places first is drawn at random: from then on there is a model.
    asks, part = spent["ask"][options.places :], len(spent["ask"]) // 10
    report("scale search ask", f"the last {part} questions of the search / the {part} after the places were filled",
           [_median(asks[-part:]) / _median(asks[:part])], output=options.output, aim=GROWTH)  # fmt: skip
    print(f"journal: {size / 1e6:.1f} MB, {size / len(trials) / 1e3:.1f} kB a trial with {reports / len(trials):.1f} reports, "
          f"{_report_bytes(folder)} bytes a report\n")  # fmt: skip
    resumed(folder, space, options)


def resumed(folder: StudyFolder, space: Space, options: Any) -> None:
    """Opens the study of the search again, fills all places, and loses a tenth of them."""
    space = override(space, {"study.trials": 100_000})
    begun = time.perf_counter()
    study = open_study(space, folder)
    driver = Driver(study, space, folder, lambda number, experiment, record: None, {"executor": "actor"}, has_others=lambda node: True)
    opened, lines = time.perf_counter() - begun, sum(1 for _ in folder.journal.open("rb"))
    begun = time.perf_counter()
    asked = [driver.ask(str(n)) for n in range(options.places)]
    filled = time.perf_counter() - begun
    keys = [str(n) for n, found in enumerate(asked) if found][: options.places // 10]
    begun = time.perf_counter()
    for key in keys:
        driver.died(key, "The actor died because its node has died.")
        driver.tell(key, crashed=True)
    for key in keys:
        driver.ask(f"again {key}")
    lost = time.perf_counter() - begun
    report("scale lost", f"{len(keys)} trials handed back and out again / all {options.places} handed out, by the wall clock",
           [lost / filled], output=options.output, aim=0.2, note=f"{lost:.2f} s; all places {filled:.1f} s, {options.places / filled:.0f} "
           f"questions a second; to open the study of {options.trials} trials ({lines} lines) {opened:.1f} s")  # fmt: skip


def growth(home: Path, options: Any) -> None:
    """A question, a report at a rung, and an end, beside few trials and beside ten times as many, in turns."""
    for name, few, many, ended in (("running", options.running // 10, options.running, False),
                                   ("finished", options.finished // 10, options.finished, True)):  # fmt: skip
        drivers = [study_of(home / f"{name} {number}", number, ended=ended) for number in (few, many)]
        rng = np.random.default_rng(1)
        for n in range(40):
            dice = float(rng.random())
            for driver in drivers:
                driver.ask(key := f"measured {n}")
                if not driver.report(key, [EpochRecord(3, {"val_dice": dice}, 0.0)]):
                    driver.tell(key, crashed=False)
        for what in ("ask", "report", "tell"):
            small, large = (_median(driver.spent[what][-30:]) for driver in drivers)
            report(f"scale {name} {what}", f"{what} beside {many} {name} trials / beside {few}", [large / small], output=options.output,
                   aim=GROWTH, note=f"{1000 * large:.2f} ms")  # fmt: skip


def study_of(home: Path, trials: int, *, ended: bool, url: str | None = None) -> Watched:
    """A new study with so many trials, which run, after forty others, or have come to their ends or to a rung at which they wait.

    The driver of one in a database has its lease.
    """
    space, folder, rng = space_of(100_000, study__name=home.name), StudyFolder(home), np.random.default_rng(0)
    if url:
        folder.lock()
    driver = Watched(open_study(space, folder, url), space, folder, lambda number, experiment, record: None)
    for number in range(trials if ended else trials + 40):
        driver.stored(partial(driver.ask, key := str(number)), None)
        for epoch in range(3, EPOCHS + 1) if ended or number < 40 else ():
            if not driver.stored(partial(driver.report, key, [EpochRecord(epoch, {"val_dice": float(rng.random())}, 0.0)]), False):
                driver.stored(partial(driver.tell, key, crashed=False), None)
                break
    return driver


def database(home: Path, options: Any) -> None:
    """The same beside running trials of a study in a database, by the wall clock: with what the database takes."""
    few, many, rng = options.running // 10, options.running, np.random.default_rng(1)
    url = options.url or f"sqlite:///{home}/studies.db"
    with contextlib.ExitStack() as held:
        drivers = list[Watched]()
        for trials in (few, many):
            drivers.append(study_of(home / f"scale-{trials}-{int(time.time())}", trials, ended=False, url=url))
            if lock := drivers[-1].folder.held:
                held.enter_context(lock)
        spent: dict[str, tuple[list[float], list[float]]] = {"ask": ([], []), "report": ([], []), "tell": ([], [])}

        def timed(what: str, place: int, call: Any) -> Any:
            begun = time.perf_counter()
            answer = drivers[place].stored(call, None)
            spent[what][place].append(time.perf_counter() - begun)
            return answer

        for n in range(40):
            told = [EpochRecord(3, {"val_dice": float(rng.random())}, 0.0)]
            for place, driver in enumerate(drivers):
                timed("ask", place, partial(driver.ask, key := f"measured {n}"))
                if not timed("report", place, partial(driver.report, key, told)):
                    timed("tell", place, partial(driver.tell, key, crashed=False))
    for what, (small, large) in spent.items():
        report(f"scale database {what}", f"{what} in {url.partition(':')[0]} beside {many} running trials / beside {few}",
               [_median(large[-30:]) / _median(small[-30:])], output=options.output, aim=GROWTH,
               note=f"{1000 * _median(large[-30:]):.1f} ms; beside {few} {1000 * _median(small[-30:]):.1f}")  # fmt: skip


def mlflow(home: Path, options: Any) -> None:
    """A thousand trials that tell epoch after epoch, and the time that MLflow has it later."""
    space, folder = space_of(100_000, study__pruner="none"), StudyFolder(home / "study")
    study = open_study(space, folder)
    snapshot = StudySnapshot("scale", params=flatten(space.base.to_dict()), id=f"scale {time.time()}")
    place = options.mlflow or f"sqlite:///{home}/mlflow.db"
    tracker = MLflowTracker(place, "scale", snapshot, folder.ledger, home / "artifacts")
    recorder = Recorder(study, space, folder, tracker, snapshot)
    tracker.start()

    def listener(number: int, experiment: Experiment, record: EpochRecord | None) -> None:
        recorder.changed(number, experiment, record)

    driver = Driver(study, space, folder, listener, {"executor": "actor"})
    keys = [str(n) for n in range(options.running)]
    begun = time.perf_counter()
    for key in keys:
        driver.ask(key)
    filled = time.perf_counter() - begun
    tracker.flush(1200)
    runs, before = time.perf_counter() - begun, _memory()
    waiting, took = list[int](), list[float]()
    for epoch in range(1, options.rounds + 1):
        begun = time.perf_counter()
        for key in keys:
            metrics = {f"metric_{n}": epoch / (n + 1) for n in range(10)} | {"val_dice": 0.5}
            driver.report(key, [EpochRecord(epoch, metrics, time.time())])
        took.append(time.perf_counter() - begun)
        waiting.append(tracker.pending)
    begun = time.perf_counter()
    done = tracker.flush(1200)
    lag = time.perf_counter() - begun
    all_there = "" if done else ", NOT ALL"
    name = f"MLflow behind {len(keys)} trials that told {options.rounds} epochs / the driver's time for one of each"
    report("scale mlflow", name, [lag / statistics.median(took)], output=options.output,
           note=f"{lag:.1f} s behind at the end{all_there}, one epoch of each in {statistics.median(took):.2f} s; waiting "
           f"after each round {waiting}; runs made within {runs:.0f} s, asked for in {filled:.0f} s; memory "
           f"{(_memory() - before) / 1e6:+.0f} MB of {_memory() / 1e6:.0f}")  # fmt: skip
    tracker.close(timeout=60)


def tune(home: Path, options: Any) -> None:
    """Ray Tune with our searcher and scheduler, and with its own, on reused actors that do nothing."""
    from guidino_tune.running import tune_adapter  # isort: skip  # before Ray: it sets what Ray reads of the environment
    import ray
    from ray import tune as ray_tune

    class Nothing(ray_tune.Trainable):
        """Tells epochs at once."""

        def setup(self, config: dict[str, Any]) -> None:
            """See ``Trainable``."""
            self.length = int(config["length"])

        def reset_config(self, config: dict[str, Any]) -> bool:
            """See ``Trainable``."""
            return True

        def step(self) -> dict[str, Any]:
            """See ``Trainable``; the iteration, from 0, is that of the trial."""
            epoch = self.iteration + 1
            record = EpochRecord(epoch, {"val_dice": 0.5}, 0.0).to_dict()
            return {"records": json.dumps([record]), "epoch": epoch, "done": epoch >= self.length}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing."""

    def run(**config: Any) -> tuple[float, float]:
        cpu, begun = time.process_time(), time.perf_counter()
        kept = ray_tune.RunConfig(storage_path=str(home / "ray"), name=f"run-{begun}", verbose=0)
        settings = ray_tune.TuneConfig(reuse_actors=True, **config)
        ray_tune.Tuner(
            ray_tune.with_resources(Nothing, {"CPU": 1}), tune_config=settings, run_config=kept, param_space=None if "search_alg" in config
            else {"lr": ray_tune.loguniform(1e-5, 1e-2), "length": length},
        ).fit()  # fmt: skip
        return time.perf_counter() - begun, time.process_time() - cpu

    length, found = 4, dict[tuple[str, int], list[tuple[float, float]]]()
    ray.init("local", num_cpus=options.actors, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    sizes = (4 * options.actors, 16 * options.actors)
    run(num_samples=options.actors)  # starts the processes
    for turn in range(2):
        for trials in sizes:
            found.setdefault(("own", trials), []).append(run(num_samples=trials))
            space, folder = space_of(trials, training__epochs=length, study__pruner="none"), StudyFolder(home / f"{turn} {trials}")
            driver = Driver(open_study(space, folder), space, folder, lambda *told: None, {"executor": "train", "length": length})
            searcher = tune_adapter.StudySearcher(driver, lambda: options.actors)
            scheduler = tune_adapter.StudyScheduler(driver)
            found.setdefault(("ours", trials), []).append(run(num_samples=-1, search_alg=searcher, scheduler=scheduler))
    ray.shutdown()
    for place, clock in enumerate(("wall clock", "CPU of the driver's process")):
        each = {key: [times[place] / key[1] / length for times in turns] for key, turns in found.items()}
        for trials in sizes:
            ours, own = each["ours", trials], each["own", trials]
            report(f"scale tune {trials} {clock}", f"{trials} trials on {options.actors} actors, {clock}: study behind Tune / Tune's own",
                   ratios(ours, own), output=options.output,
                   note=f"{1000 * _median(ours):.1f} and {1000 * _median(own):.1f} ms a result, {length} of each trial")  # fmt: skip


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _memory() -> float:
    """Bytes of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _report_bytes(folder: StudyFolder) -> int:
    with folder.journal.open("rb") as file:
        return round(statistics.mean(len(line) for line in file if b"intermediate_value" in line))


PARTS = {"search": search, "growth": growth, "database": database, "mlflow": mlflow, "tune": tune}

if __name__ == "__main__":
    sys.exit(main())
