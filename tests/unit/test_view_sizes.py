"""The plan's figures for the disk are what trials really write, and it says what to do where that is too much."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training_helpers import GUIDE, LORA, Listener, make_data, make_experiment

from guidino_tune.config import Experiment, Resources
from guidino_tune.data import makers
from guidino_tune.data.opening import SearchData
from guidino_tune.data.store import ChunkStore
from guidino_tune.data.views import TrainViews, views_of
from guidino_tune.training.loop import TrainingRun
from guidino_tune.workflows.view_sizes import Kind, in_words, kinds


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SearchData:
    torch.set_num_threads(1)
    return make_data(tmp_path_factory.mktemp("cases"))


def changed(experiment: Experiment, section: str, **values: object) -> Experiment:
    return Experiment.from_dict({**experiment.to_dict(), section: {**experiment.to_dict()[section], **values}})


def test_what_is_told_is_what_lies_on_the_disk(data: SearchData, tmp_path: Path) -> None:
    experiments = [
        Experiment.from_dict({**make_experiment("unet", guide=GUIDE, epochs=3).to_dict(), "segmenter": {"kind": "segdino"}}),
        make_experiment("segguidino", guide=GUIDE, epochs=1),
        make_experiment("segguidino", guide=LORA, epochs=2),  # shares the images alone
        make_experiment("unet", guide=GUIDE, epochs=2),
        make_experiment(epochs=4),
    ]
    for number, experiment in enumerate(experiments):
        run = TrainingRun(experiment, data, Listener(tmp_path / str(number)), store=ChunkStore(tmp_path / "views", 10**9))
        run.run()
        run.close()
    found = kinds(experiments, len(data.train), len(data.validation))
    assert [kind.passes for kind in found] == [4, 3, 2]
    written = {}
    for folder in (tmp_path / "views").glob("*-*"):
        written[folder.name] = sum(array.nbytes for array in _arrays(folder))
    images = sum(size for name, size in written.items() if name.startswith("views-"))
    assert found[0].bytes == images
    assert sum(kind.bytes for kind in found[1:]) == sum(written.values()) - images


def _arrays(folder: Path):
    for file in folder.rglob("*.arrow"):
        name = str(file.relative_to(folder.parent).with_suffix(""))
        chunk = ChunkStore(folder.parent, 10**9).get(name, lambda: pytest.fail("it is there"))
        assert chunk is not None
        yield from chunk.values()


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        (lambda e: changed(e, "data", view_cycle=3), 3),
        (lambda e: changed(e, "data", view_cycle=99), 8),
        (lambda e: changed(e, "training", steps_per_epoch=7), 19),  # 8 epochs of 7 steps, 3 to a pass
    ],
)
def test_passes_that_can_be_reached(change: Callable[[Experiment], Experiment], passes: int) -> None:
    assert kinds([change(make_experiment(epochs=8))], 9, 2)[0].passes == passes


def test_what_is_removed_again_does_not_count(data: SearchData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many passes lie there at a time, where makers make all that they are asked for."""
    monkeypatch.setattr(makers, "_start", lambda *_: None)
    experiment = make_experiment(epochs=12)
    section, training = experiment.data, experiment.training
    store, most = ChunkStore(tmp_path, 10**9, makers=1), 0
    with contextlib.closing(TrainViews(data.train, section, 0, training.batch_size, store=store, once=True, num_epochs=12)) as views:
        for epoch in range(12):
            list(views.epoch(epoch))
            ((_, wish),) = makers.wishes(tmp_path)
            maker = views_of(wish.recipe, ChunkStore(tmp_path, 10**9))
            assert maker is not None
            while maker.make_next(wish.passes):
                pass
            most = max(most, len(list(tmp_path.glob("views-*/*"))))
    told = kinds([experiment], len(data.train), len(data.validation), once=True)
    assert most == told[0].passes < 12
    assert kinds([changed(experiment, "data", view_cycle=12)], 9, 2, once=True)[0].passes == 12  # stays, to be repeated
    lines = in_words(told, Resources(views_folder=str(tmp_path), share_views="once"))
    assert "what it was trained on is removed" in lines[-1]


def test_precisions_and_sizes_are_kinds_of_their_own() -> None:
    base = make_experiment("unet", guide=GUIDE)
    found = kinds([base, changed(base, "training", precision="bf16"), changed(base, "data", image_size=64)], 9, 2)
    assert [kind.name.split(" ")[0] for kind in found] == ["images"] * 2 + ["tokens"] * 3


def test_too_much_is_told_with_what_to_do(tmp_path: Path) -> None:
    found = [Kind("images", 100, 10**9), Kind("tokens", 100, 3 * 10**9, 10**6)]
    much = in_words(found, Resources(views_folder=str(tmp_path), views_gigabytes=1000))
    assert not any("more than there is" in line for line in much)
    assert any("together up to 400 GB" in line for line in much)
    little = in_words(found, Resources(views_folder=str(tmp_path / "not" / "yet"), views_gigabytes=50))[-1]
    for word in ("more than there is", "resources.views_gigabytes", "resources.views_folder", "data.view_cycle=12"):
        assert word in little
    assert "one pass alone" in in_words(found, Resources(views_folder=str(tmp_path), views_gigabytes=1))[-1]
