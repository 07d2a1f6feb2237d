"""Which way trials get their images: measured for real on this CPU, and decided by what a study and its nodes are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from training_helpers import GUIDE, make_data, make_experiment

from guidino_tune.config import Experiment
from guidino_tune.data.opening import SearchData
from guidino_tune.data.store import ChunkStore
from guidino_tune.training import view_speeds as module
from guidino_tune.training.view_speeds import Speeds, measure


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SearchData:
    torch.set_num_threads(1)
    return make_data(tmp_path_factory.mktemp("cases"), size=64, train=12)


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.2)


def made(kind: str, guide: dict[str, object] | None = None, augmentation: str = "nnunet") -> Experiment:
    values = make_experiment(kind, guide=guide, size=64).to_dict()
    return Experiment.from_dict({**values, "data": {**values["data"], "augmentation": augmentation}})


def test_both_ways_are_measured_and_nothing_stays(data: SearchData, tmp_path: Path) -> None:
    found = measure(made("segguidino", {**GUIDE, "backbone": "vits16"}), data, ChunkStore(tmp_path), device="cpu")
    assert not list(tmp_path.rglob("*.arrow"))
    assert found.cached
    assert found.bare < found.step  # the backbone runs
    assert found.device < found.step  # it does so there, too
    # Many trials on a node read what few of them make; a trial alone makes all of it, and its steps with it.
    many = found.stored(beside=1, sharing=1, kinds=1, first=0.05)
    alone = found.stored(beside=1, sharing=1, kinds=1, first=1.0)
    assert many > alone
    assert many > found.augmented(sharing=1)


def test_many_trials_that_read_one_disk_had_better_augment(data: SearchData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without augmentation and a guide, images are made nearly as quickly as they are read; a thousand trials wait for each other."""
    found = measure(made("tiny", augmentation="none"), data, ChunkStore(tmp_path), device="cpu", stored=10**15)
    assert not found.cached
    assert found.bare == found.step
    assert found.augmented(sharing=1) > module.MARGIN * found.stored(beside=1000, sharing=1, kinds=1, first=0.1)


def test_the_formula() -> None:
    """By hand: steps 100, backbone 50, reading 400, making 20 images a second."""
    speeds = Speeds(step=100.0, bare=50.0, read=400.0, made=20.0, device=40.0, cached=True)
    assert speeds.stored(beside=8, sharing=1, kinds=1, first=0.0) == pytest.approx(100)
    assert speeds.stored(beside=8, sharing=1, kinds=1, first=1.0) == pytest.approx(20)
    assert speeds.stored(beside=8, sharing=1, kinds=4, first=1.0) == pytest.approx(5)
    assert speeds.stored(beside=2, sharing=1, kinds=4, first=1.0) == pytest.approx(10)
    assert speeds.stored(beside=8, sharing=4, kinds=1, first=0.5) == pytest.approx(1 / (0.5 * 4 / 50 + 0.5 * 4 / 100))
    assert speeds.augmented(sharing=4) == pytest.approx(10)
    shared = Speeds(step=100.0, bare=100.0, read=400.0, made=1e9, device=90.0, cached=False)
    assert shared.stored(beside=8, sharing=1, kinds=1, first=0.0) == pytest.approx(50)


@examples(40)
@given(
    rates=st.tuples(*[st.floats(1, 1e5)] * 5), beside=st.integers(1, 64), sharing=st.integers(1, 8), kinds=st.integers(1, 9),
    first=st.floats(0, 1), cached=st.booleans(),
)  # fmt: skip
def test_more_trials_and_more_to_make_are_never_quicker(
    rates: tuple[float, ...], beside: int, sharing: int, kinds: int, first: float, cached: bool
) -> None:
    speeds = Speeds(*rates, cached=cached)
    here = speeds.stored(beside=beside, sharing=sharing, kinds=kinds, first=first)
    slack = 1 + 1e-9
    assert here <= speeds.step / sharing * slack
    assert speeds.stored(beside=beside + 1, sharing=sharing, kinds=kinds, first=first) <= here * slack
    assert speeds.stored(beside=beside, sharing=sharing + 1, kinds=kinds, first=first) <= here * slack
    assert speeds.stored(beside=beside, sharing=sharing, kinds=kinds + 1, first=first) <= here * slack
    assert speeds.stored(beside=beside, sharing=sharing, kinds=kinds, first=min(1.0, first + 0.1)) <= here * slack


def test_what_others_remove_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / f"views-{name}" / "00000").mkdir(parents=True)
        (tmp_path / f"views-{name}" / "00000" / "0000.arrow").write_bytes(b"x")
    forgotten: list[int] = []

    def forget(file: int, *_: int) -> None:
        forgotten.append(file)
        for kind in tmp_path.iterdir():
            shutil.rmtree(kind)

    monkeypatch.setattr(module.os, "posix_fadvise", forget)
    module._forget(tmp_path, 0.0)
    assert len(forgotten) == 1
