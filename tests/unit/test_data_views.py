"""Views: the same for every trial, rank and batch size; equal shares; nothing twice."""

import hashlib
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from table_helpers import table_of

from guidino_tune.config import Data
from guidino_tune.data import views as module
from guidino_tune.data.cases import Case
from guidino_tune.data.table import CaseTable
from guidino_tune.data.views import TrainViews, validation_batches, view_seed
from guidino_tune.errors import UserError
from guidino_tune.normalisation import normalise

NNUNET, PLAIN = Data(kind="folder", augmentation="nnunet"), Data(kind="folder", augmentation="none")


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine torch's threads wait for each other tens of times longer than these small images take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> CaseTable:
    root: Path = tmp_path_factory.mktemp("views")
    rng = np.random.default_rng(0)
    cases = []
    for index in range(11):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / f"i{index}.png")
        Image.fromarray((rng.random((32, 32)) > 0.5).astype(np.uint8) * 255).save(root / f"m{index}.png")
        cases.append(Case(f"c{index:02}", root / f"i{index}.png", root / f"m{index}.png", str(index)))
    return table_of(cases, 32, root / "cache")


def by_id(views: TrainViews, epoch: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {name: (batch.images[i], batch.masks[i]) for batch in views.epoch(epoch) for i, name in enumerate(batch.ids)}


def test_seed_is_pinned_and_separates_its_parts():
    assert view_seed(1, 2, "a") == int(hashlib.sha256(b"view\x001\x002\x00a").hexdigest()[:16], 16) >> 1
    assert len({view_seed(s, e, c) for s in range(4) for e in range(4) for c in ("a", "b")}) == 32
    assert view_seed(1, 11, "a") != view_seed(11, 1, "a")


def test_batches_have_the_promised_form(table):
    batches = list(TrainViews(table, NNUNET, 0, 4).epoch(0))
    assert [len(batch.ids) for batch in batches] == [4, 4, 3]
    first = batches[0]
    assert (first.images.shape, first.masks.shape) == ((4, 3, 32, 32), (4, 1, 32, 32))
    assert (first.images.dtype, first.masks.dtype) == (torch.float16, torch.uint8)
    moved = first.to(torch.device("cpu"))
    assert moved.images.dtype == moved.masks.dtype == torch.float32
    assert sorted(name for batch in batches for name in batch.ids) == sorted(table.ids)


def test_views_do_not_depend_on_batch_size_rank_or_time(table):
    alone = by_id(TrainViews(table, NNUNET, 3, 1), 5)
    for views in (TrainViews(table, NNUNET, 3, 4), TrainViews(table, NNUNET, 3, 8, rank=1, world_size=2)):
        list(views.epoch(4))
        for name, (image, mask) in by_id(views, 5).items():
            assert torch.equal(image, alone[name][0])
            assert torch.equal(mask, alone[name][1])


def test_epochs_and_seeds_differ(table):
    views = TrainViews(table, NNUNET, 3, 4)
    assert views.order(0) != views.order(1)
    assert views.order(0) != TrainViews(table, NNUNET, 4, 4).order(0)
    first, second = by_id(views, 0), by_id(views, 1)
    assert sum(torch.equal(first[name][0], second[name][0]) for name in first.keys() & second.keys()) <= 2


def test_every_case_leads_an_epoch_sometimes(table):
    """An order that were not drawn evenly would always begin with the same few."""
    views = TrainViews(table, PLAIN, 0, 1)
    leaders = [views.order(epoch)[0][0] for epoch in range(330)]
    assert all(10 <= leaders.count(name) <= 55 for name in table.ids)


class Ids:
    """A table of names only."""

    def __init__(self, count: int) -> None:
        self.ids = tuple(f"c{i}" for i in range(count))

    def __len__(self) -> int:
        return len(self.ids)


@examples(40)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_ranks_share_what_one_worker_sees(count, share, world_size, epoch):
    batch_size = share * world_size
    try:
        ranks = [TrainViews(Ids(count), PLAIN, 1, batch_size, rank, world_size) for rank in range(world_size)]
    except UserError:
        assert count < batch_size
        assert count == 1 or world_size > 1
        return
    orders = [views.order(epoch) for views in ranks]
    assert {len(order) for order in orders} == {ranks[0].num_batches}
    together = [tuple(name for part in parts for name in part) for parts in zip(*orders, strict=True)]
    names = [name for batch in together for name in batch]
    assert len(set(names)) == len(names)
    left_out = count - len(names)
    if world_size == 1:
        assert left_out == (1 if batch_size > 1 and count % batch_size == 1 else 0)
        assert batch_size == 1 or min(map(len, together)) >= 2
    else:
        assert left_out == count % batch_size
        single = TrainViews(Ids(count), PLAIN, 1, batch_size).order(epoch)
        assert together == single[: len(together)]
        assert {len(batch) for order in orders for batch in order} == {share}


def test_impossible_batches_are_errors(table):
    with pytest.raises(UserError, match="cannot be shared equally by 3 workers"):
        TrainViews(table, PLAIN, 0, 4, world_size=3)
    with pytest.raises(UserError, match="11 training cases are too few for a batch of 12 on 2 workers"):
        TrainViews(table, PLAIN, 0, 12, world_size=2)
    with pytest.raises(UserError, match="too few"):
        TrainViews(table.subset(["c00"]), PLAIN, 0, 4)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        TrainViews(table, PLAIN, 0, 4, rank=2, world_size=2)


def test_validation_is_every_case_once_as_it_is(table):
    batches = list(validation_batches(table, NNUNET, 4))
    assert [name for batch in batches for name in batch.ids] == list(table.ids)
    assert [len(batch.ids) for batch in batches] == [4, 4, 3]
    assert torch.equal(batches[1].images[2], normalise(table.image(6)))
    assert torch.equal(batches[1].masks[2, 0], torch.tensor(table.mask(6)))


@pytest.mark.parametrize("kind", ["imagenet", "zscore"])
def test_views_and_validation_are_normalised_as_the_data_section_says(table, kind):
    data = Data(kind="folder", augmentation="none", normalisation=kind)
    for batch in (*TrainViews(table, data, 0, 4).epoch(0), *validation_batches(table, data, 4)):
        for name, image in zip(batch.ids, batch.images, strict=True):
            expected = normalise(table.image(table.positions[name]), kind)
            assert torch.equal(image, expected.to(image.dtype))
            assert (image.float() - expected).abs().max() < 1 / 255 / 0.229 / 8  # far less than a grey level


@pytest.mark.parametrize("augmentation", ["nnunet", "none"])
def test_batches_hold_labels(tmp_path, augmentation):
    rng, cases = np.random.default_rng(0), []
    for index in range(4):
        image, mask = tmp_path / f"i{index}.png", tmp_path / f"m{index}.png"
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(image)
        Image.fromarray(rng.integers(0, 4, (4, 4), dtype=np.uint8).repeat(8, 0).repeat(8, 1)).save(mask)
        cases.append(Case(f"c{index}", image, mask, str(index)))
    table = table_of(cases, 32, tmp_path / "cache", num_classes=3)
    data = Data(kind="folder", num_classes=3, augmentation=augmentation)
    (batch,) = TrainViews(table, data, 0, 4).epoch(0)
    assert (batch.masks.shape, batch.masks.dtype) == ((4, 1, 32, 32), torch.uint8)
    assert set(batch.masks.unique().tolist()) == {0.0, 1.0, 2.0, 3.0}
    (batch,) = validation_batches(table, data, 4)
    assert all(torch.equal(mask[0], torch.tensor(table.mask(i))) for i, mask in enumerate(batch.masks))


def test_next_batch_is_made_meanwhile_and_only_that(table, monkeypatch):
    made: list[str] = []
    original = module.normalise
    monkeypatch.setattr(module, "normalise", lambda *args: (made.append(threading.current_thread().name), original(*args))[1])
    batches = TrainViews(table, PLAIN, 0, 2).epoch(0)
    next(batches)
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert len(made) == 4  # this batch of two and the next one
    assert all(name.startswith("views") for name in made)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("views")]


def test_an_error_while_making_a_batch_reaches_the_caller(table, monkeypatch):
    def broken(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(module, "normalise", broken)
    with pytest.raises(MemoryError, match="no room"):
        list(TrainViews(table, PLAIN, 0, 2).epoch(0))


def test_views_are_augmented_where_they_are_asked_for(table: CaseTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device has no numbers, but tells whether anything was left behind on the CPU."""
    seen = []

    def augment(images: torch.Tensor, masks: torch.Tensor, seeds: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((images.device.type, masks.device.type))
        return images, masks

    monkeypatch.setattr(module, "make_augmentation", lambda _: augment)
    batch = next(TrainViews(table, NNUNET, 0, 4, device=torch.device("meta")).epoch(0))
    assert seen[0] == (batch.images.device.type, batch.masks.device.type) == ("meta", "meta")
    assert (batch.images.dtype, batch.masks.dtype) == (torch.float16, torch.uint8)
    assert batch.pinned().images.device.type == "meta"
