"""Studies that start from the best configurations of studies of two other data sets: what it gains, and when it misleads.

    python tests/benchmarks/warm_start.py --seeds 30

First two cold searches, one on each of the other data sets; then searches of the data set that was left out, begun in several ways, through
the real driver and the real selection on a virtual clock. The data sets are formulas whose optima agree by a correlation (``Task``), or the
recorded tables, as they are (``rows``) or through a model (``surrogate``). Prints the table of docs/searching.md. ``best:5`` is five
configurations of each earlier study, the best first; see ``orders``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from synthetic_curves import NETWORKS, Formula, synthetic_space

from guidino_tune.analysis.searches import Search, epochs_ratio, mean_interval
from guidino_tune.simulation.curves import read_table
from guidino_tune.simulation.executor import NOWHERE, simulate
from guidino_tune.simulation.sources import Rows, Source, Surrogate
from guidino_tune.space.parameters import Values
from guidino_tune.space.space import Space, override
from guidino_tune.space.suggest import suggest
from guidino_tune.study.outcomes import as_key
from guidino_tune.study.seeding import choose_seeds
from guidino_tune.study.store import StoredStudy, StudyFolder
from guidino_tune.study.trials import ranking
from guidino_tune.workflows.simulate import SHIPPED, as_search

TABLES = ("kvasir", "isic2017", "ddti")
COLD = "cold"
AFRESH = 10_000
"""Seeds of earlier studies are beyond those of the new one, or a configuration that had luck would have the same again."""


class Task(Formula):
    """One of several related data sets: bonus and best rate of each network, and the best lambda and LoRA rate, differ.

    Args:
        seed: Of the data set that is searched, number 0.
        number: Of this data set.
        correlation: Of its quantities (normal ones, of which the uniform ones are made) with those of number 0, from -1 to 1.
    """

    def __init__(self, seed: int, number: int, correlation: float, crossing: float = 0.5, epochs: int = 27) -> None:
        super().__init__(crossing, epochs)
        aim, own = (np.random.default_rng([seed, n]).normal(size=3 * len(NETWORKS) + 2) for n in (0, number))
        mixed = correlation * aim + math.sqrt(1 - correlation**2) * own if number else aim
        *each, of_lambda, of_rate = (0.5 * (1 + math.erf(x / math.sqrt(2))) for x in mixed)
        self.networks = {
            name: (0.12 * each[3 * n], -3.8 + 0.9 * each[3 * n + 1], each[3 * n + 2]) for n, name in enumerate(NETWORKS)
        }  # fmt: skip
        self.shifts = {"loss.lambda_guide": of_lambda - 0.5, "training.lora_lr": 1.4 * (of_rate - 0.5)}

    def clean(self, values: Values) -> np.ndarray:
        moved = {path: float(values[path]) * 10**by for path, by in self.shifts.items() if path in values}  # type: ignore[arg-type]
        return super().clean({**values, **moved})


Order = Callable[[optuna.Study], Sequence[FrozenTrial]]


def diverse(study: optuna.Study) -> list[FrozenTrial]:
    """The best of each network or recipe first, then the second of each."""
    before, places = Counter[object](), dict[int, int]()
    for trial in ranking(study):
        network = trial.params.get("recipe", trial.params.get("segmenter.kind"))
        places[trial.number] = before[network]
        before[network] += 1
    return sorted(ranking(study), key=lambda trial: places[trial.number])


def reached(study: optuna.Study) -> list[FrozenTrial]:
    """The complete ones, then those that came farthest, the best of them first: more than ``ranking`` has."""
    rest = [t for t in study.get_trials(deepcopy=False) if t.intermediate_values and t.state.name in ("PRUNED", "RUNNING")]
    return [*ranking(study), *sorted(rest, key=lambda t: (-max(t.intermediate_values), -max(t.intermediate_values.values()), t.number))]


def by_lot(seed: int, study: optuna.Study) -> list[FrozenTrial]:
    """Any trials that did not fail."""
    return random.Random(seed).sample(trials := reached(study), len(trials))


def mean_rank(earlier: Sequence[StoredStudy], study: optuna.Study) -> list[FrozenTrial]:
    """By the mean place, 0 to 1, in all earlier studies that know the configuration."""
    places = defaultdict[object, list[float]](list)
    for stored in earlier:
        order = reached(stored.study)
        for place, trial in enumerate(order):
            places[as_key(trial.params)].append(place / len(order))
    return sorted(reached(study), key=lambda trial: float(np.mean(places[as_key(trial.params)])))


def modelled(stored: StoredStudy, number: int) -> list[FrozenTrial]:
    """What the earlier study would try next: proposals of its sampler, none of which it trains."""
    asked = []
    for _ in range(number):
        suggest(stored.space, trial := stored.study.ask())
        asked.append(stored.study.tell(trial, state=TrialState.FAIL))
    return asked


def orders(name: str, number: int, seed: int, earlier: Sequence[StoredStudy]) -> Order:
    """The order in which configurations are taken from an earlier study."""
    models = {id(stored.study): stored for stored in earlier}
    known: dict[str, Order] = {
        "best": ranking,
        "reached": reached,
        "diverse": diverse,
        "rank": lambda study: mean_rank(earlier, study),
        "random": lambda study: by_lot(seed, study),
        "model": lambda study: modelled(models[id(study)], number),
    }
    return known[name]


def searched(way: str, space: Space, source: Source, earlier: Callable[[], Sequence[StoredStudy]], workers: int, epochs: int) -> Search:
    """A search begun this way."""
    name, _, number = way.partition(":")
    first = () if way == "nothing" else space.first_trials
    if number:
        studies = earlier()
        seeds = choose_seeds(space, studies, int(number), orders(name, int(number), space.study.seed, studies))
        first = (*first, *(seed.values for seed in seeds.trials))
    s, _ = simulate(dataclasses.replace(space, first_trials=first), source, workers=workers, epochs=epochs)
    return as_search(way, workers, space.study.seed, s, source.best)


class DataSets(NamedTuple):
    """In words; each with its space for a seed, the one that is searched first; and the epochs of a search."""

    words: str
    of_seed: Callable[[int], list[tuple[Space, Source]]]
    epochs: int


def formulas(correlation: float, epochs: int) -> DataSets:
    """Three related tasks."""
    space = synthetic_space(27, min_epochs=1)

    def of_seed(seed: int) -> list[tuple[Space, Source]]:
        return [(space, aim(seed)), *((space, Task(seed, number, correlation)) for number in (1, 2))]

    return DataSets(f"formula, correlation {correlation:g}", of_seed, epochs)


def tables(curves: str, epochs: int, folder: Path) -> Iterator[DataSets]:
    """Each of the recorded tables, left out in turn."""
    known: dict[str, tuple[Space, Source]] = {}
    for name in TABLES:
        table = read_table(folder / f"{name}.parquet")
        known[name] = table.space, Rows(table) if curves == "rows" else Surrogate(table)
        size = len({curve.configuration for curve in table.curves})
    for name in TABLES:
        ordered = [known[name], *(known[other] for other in TABLES if other != name)]
        # A search must not see all of a small table.
        most = min(epochs, 3 * size) if curves == "rows" else epochs
        yield DataSets(f"{curves} of {name} ({size})", functools.partial(_the_same, ordered), most)


def _the_same(ordered: list[tuple[Space, Source]], seed: int) -> list[tuple[Space, Source]]:
    return ordered


@functools.cache
def aim(seed: int) -> Task:
    """The data set that is searched: the same, with its best Dice, whatever the correlation."""
    return Task(seed, 0, 1.0)


def begun(space: Space, seed: int) -> Space:
    """The space of a study with this seed, sampler and pruner as in a new study."""
    return override(space, {"study.sampler": "auto", "study.pruner": "auto", "study.seed": seed})


Known = dict[int, tuple[Source, StoredStudy]]
"""Earlier studies by the source that they are of, with it: its id is that of no other while it lives."""


def earlier_studies(data_sets: Sequence[tuple[Space, Source]], seed: int, epochs: int, known: Known) -> list[StoredStudy]:
    """A cold study of each of these data sets, by four workers."""
    for number, (space, source) in enumerate(data_sets, 1):
        if id(source) not in known:
            space = begun(space, AFRESH * number + seed)
            study = simulate(space, source, workers=4, epochs=epochs)[1]
            known[id(source)] = source, StoredStudy(StudyFolder(NOWHERE), study, space)
    return [known[id(source)][1] for _, source in data_sets]


def row(words: str, group: Sequence[Search], cold: Sequence[Search]) -> str:
    """One line of the table; differences to the cold search by seed, brackets are 95 % intervals by bootstrap over seeds."""
    cells = [words, str(group[0].workers), group[0].method, str(len(group))]
    for part in (0.5, 1.0):
        mine, others = ([s.regret(part * s.total_epochs) for s in searches] for searches in (group, cold))
        difference = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*mean_interval(np.subtract(mine, others)))
        cells += [f"{np.mean(mine):.4f}", "-" if group == cold else difference]
    numbers = [f"{x:.2f}" if math.isfinite(x) else "never" for x in epochs_ratio(group, cold, paired=True)]
    return f"| {' | '.join([*cells, '1' if group == cold else '{} [{}, {}]'.format(*numbers)])} |"


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--curves", default="formula,rows,surrogate")
    made.add_argument("--correlations", default="0.9,0.5,0,-1", help="of the formulas' optima with those of the data set that is searched")
    made.add_argument(
        "--ways", default="nothing,random:5,best:5", help="beside cold: ORDER:NUMBER, or nothing (not the space's first trials)"
    )
    made.add_argument("--workers", default="4,16")
    made.add_argument("--seeds", type=int, default=30)
    made.add_argument("--epochs", type=int, default=270, help="of a search, of all its trials together; a whole trial has 27")
    made.add_argument(
        "--tables", type=Path, default=SHIPPED / "recorded", help="folder of kvasir.parquet, isic2017.parquet and ddti.parquet"
    )
    made.add_argument("--keep", type=Path, help="a file of searches: those in it are not simulated again, the others are added")
    asked = made.parse_args()
    sets = list[DataSets]()
    for curves in asked.curves.split(","):
        formula = curves == "formula"
        sets += (
            [formulas(float(c), asked.epochs) for c in asked.correlations.split(",")]
            if formula
            else tables(curves, asked.epochs, asked.tables)
        )
    lines = asked.keep.read_text(encoding="utf-8").splitlines() if asked.keep and asked.keep.exists() else []
    kept = {key: Search(*values) for key, values in map(json.loads, lines)}
    found: dict[tuple[str, int, str], list[Search]] = {}
    ways = list(dict.fromkeys([COLD, *asked.ways.split(",")]))
    for seed in range(asked.seeds):
        studies = Known()
        for words, of_seed, epochs in sets:
            (space, source), *others = of_seed(seed)

            earlier = functools.partial(earlier_studies, others, seed, asked.epochs, studies)
            for workers in map(int, asked.workers.split(",")):
                for way in ways:
                    # A search without earlier studies is the same whatever the correlation.
                    key = f"{words if ':' in way else words.partition(',')[0]}|{workers}|{way}|{seed}|{epochs}"
                    if key not in kept:
                        kept[key] = searched(way, begun(space, seed), source, earlier, workers, epochs)
                        if asked.keep:
                            with asked.keep.open("a", encoding="utf-8") as file:
                                file.write(json.dumps([key, dataclasses.astuple(kept[key])]) + "\n")
                    found.setdefault((words, workers, way), []).append(dataclasses.replace(kept[key], method=way))
    print("| data sets | workers | first trials | seeds | regret at half | difference | regret at the end | difference | ratio of epochs |")
    print("|---|--:|---|--:|--:|--:|--:|--:|--:|")
    for (words, workers, _), group in found.items():
        print(row(words, group, found[words, workers, COLD]))


if __name__ == "__main__":
    main()
