"""How long a search will still take: held against whole searches on a virtual clock, and against the simplest way of telling it."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path

import pytest
from recorded_journals import FOLDER, recorded
from recorded_journals import replay as replay_journal
from replayed_searches import Known, replay
from synthetic_curves import synthetic_space

from guidino_tune.simulation.sources import Rows
from guidino_tune.space.space import Space, override
from guidino_tune.study.time_left import Left, in_words
from guidino_tune.workflows.simulate import open_table

QUARTER = (0.25,)
RECORDED = sorted(file.name.removesuffix(".jsonl.gz") for file in FOLDER.glob("*.jsonl.gz"))


def space_of(pruner: str, epochs: int = 20, **study: object) -> Space:
    space = override(
        synthetic_space(epochs), {f"study.{name}": value for name, value in {"pruner": pruner, "sampler": "random", **study}.items()}
    )
    return dataclasses.replace(space, first_trials=())


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75])
def test_it_is_exact_where_every_epoch_costs_the_same(workers: int, share: float) -> None:
    total, (look,) = replay(space_of("none"), Known(lambda _: 7.0, 20), trials=24, workers=workers, shares=(share,))
    assert total == pytest.approx(24 / workers * 20 * 7)
    assert look.left is not None
    assert look.left.middle == pytest.approx(total - look.now, rel=0.12)
    assert look.left.low < total - look.now < look.left.high


def test_slow_and_quick_systems_are_told_apart() -> None:
    """One in two is ten times as slow: which of them are to come nobody knows, so the range is wide, and holds the truth."""
    source = Known(lambda values: 10.0 if values["segmenter.kind"] == "unet" else 1.0, 20)
    total, looks = replay(space_of("none"), source, trials=40, workers=2, shares=(0.5, 0.75, 0.97))
    for look in looks:
        assert look.left is not None
        assert look.left.low < total - look.now < look.left.high, look
    assert looks[0].left.middle == pytest.approx(total - looks[0].now, rel=0.35)


def test_nothing_is_told_before_an_epoch_and_something_to_the_very_end() -> None:
    _, looks = replay(space_of("promotion"), Known(lambda _: 3.0, 20), trials=20, workers=2, shares=(0.0, 0.5, 0.99))
    assert looks[0].left is None
    for look in looks[1:]:
        assert look.left is not None
        assert look.left.low > 0


def test_after_a_quarter_recorded_searches_are_told_better_than_by_the_time_for_each_trial_so_far() -> None:
    """Curves that were recorded on real images, with their seconds; trials that wait at a rung have not ended, so the simplest is lost."""
    ours, simplest, inside = [], [], []
    for table in ("kvasir", "isic2017"):
        curves = open_table(f"recorded/{table}")
        source = Rows(curves)
        for pruner, workers in (("promotion", 1), ("promotion", 4), ("asha", 4), ("none", 4)):
            space = override(curves.space, {"study.sampler": "random", "study.pruner": pruner, "study.seed": 1})
            total, (look,) = replay(space, source, trials=50, workers=workers, shares=QUARTER)
            truth = total - look.now
            assert look.left is not None
            ours.append(abs(look.left.middle - truth) / truth)
            simplest.append(abs(look.simplest - truth) / truth if look.simplest is not None else float("inf"))
            inside.append(look.left.low <= truth <= look.left.high)
    told = f"ours {sorted(ours)}, simplest {sorted(simplest)}, inside {sum(inside)} of {len(inside)}"
    assert statistics.median(ours) < 0.30, told
    assert statistics.median(ours) < statistics.median(simplest), told
    assert sum(inside) >= 0.75 * len(inside), told


def test_after_a_quarter_journals_of_real_searches_are_told_within_a_third(tmp_path: Path) -> None:
    """Forty to sixty trials on real images, TPE, two at a time, on a machine with other work as well: epochs took 1 to 2 times as long."""
    missed, inside = [], []
    for name in RECORDED:
        search = recorded(name)
        (folder := tmp_path / name).mkdir()
        for look in replay_journal(search, (0.25, 0.4, 0.5, 0.75), folder):
            assert look.left is not None
            truth = search.end - look.now
            missed.append((name, round(look.now / search.end, 2), look.left.middle / truth - 1))
            inside.append(look.left.low <= truth <= look.left.high)
            assert look.simplest is None or abs(look.simplest / truth - 1) > abs(look.left.middle / truth - 1)
    told = f"{missed}, inside {sum(inside)} of {len(inside)}"
    assert statistics.median(abs(by) for _, at, by in missed if at == 0.25) < 0.30, told
    assert sum(inside) >= 0.75 * len(inside), told


def test_a_sampler_that_learns_goes_on_with_what_did_well() -> None:
    """Quick systems lead, so most trials to come are quick; where lots are drawn, as many are slow as were."""
    left = {}
    for sampler in ("tpe", "random"):
        space = space_of("promotion", sampler=sampler, startup_trials=4)
        source = Known(lambda values: 10.0 if values["segmenter.kind"] == "unet" else 1.0, 20, worse="unet")
        _, (look,) = replay(space_of("promotion", startup_trials=4), source, trials=40, workers=2, shares=(0.4,), told=space)
        assert look.left is not None
        left[sampler] = look.left.middle
    assert left["tpe"] < 0.8 * left["random"], left


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0, 5, "less than a minute left"),
        (5, 100, "up to 2 min left"),
        (65, 170, "1 to 3 min left"),
        (21 * 60, 34 * 60, "20 to 35 min left"),
        (3 * 3600, 4.2 * 3600, "3 to 4.5 h left"),
        (3.1 * 3600, 3.4 * 3600, "3 to 3.5 h left"),
        (30 * 3600, 45 * 3600, "30 to 45 h left"),
        (3 * 86400, 4 * 86400, "3 to 4 days left"),
    ],
)
def test_in_words(low: float, high: float, words: str) -> None:
    assert in_words(Left(low, (low + high) / 2, high)) == words
