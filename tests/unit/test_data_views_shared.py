"""Shared views: the same as those that a trial makes for itself, made once, and ready before they are needed."""

import glob
import time
from collections.abc import Sequence
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
from guidino_tune.data import shared_views as module
from guidino_tune.data.batches import Batch
from guidino_tune.data.cases import Case
from guidino_tune.data.store import Arrays, ChunkStore
from guidino_tune.data.table import CaseTable
from guidino_tune.data.views import TrainViews, validation_batches

DATA = Data(kind="folder", augmentation="nnunet")


class Means:
    """An encoder whose tokens are easily checked, and which counts the images that it saw."""

    names = ("last", "layer_0", "last")

    def __init__(self, key: str = "means") -> None:
        self.key, self.seen = key, 0

    def __call__(self, images: torch.Tensor) -> Arrays:
        self.seen += len(images)
        return {"last": images.float().mean((2, 3)).half().numpy(), "layer_0": images[:, :1].numpy()}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> CaseTable:
    root = tmp_path_factory.mktemp("cases")
    rng = np.random.default_rng(0)
    cases = []
    for index in range(11):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / f"i{index}.png")
        Image.fromarray((rng.random((32, 32)) > 0.5).astype(np.uint8) * 255).save(root / f"m{index}.png")
        cases.append(Case(f"c{index:02}", root / f"i{index}.png", root / f"m{index}.png", str(index)))
    return table_of(cases, 32, root / "cache")


def same(ours: list[Batch], others: list[Batch]) -> None:
    assert [batch.ids for batch in ours] == [batch.ids for batch in others]
    for a, b in zip(ours, others, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.masks, b.masks)


@examples(10)
@given(
    batch_size=st.integers(1, 8),
    workers=st.integers(1, 3),
    epoch=st.integers(0, 5),
    cycle=st.sampled_from([None, 1, 2]),
    encoded=st.booleans(),
)
def test_shared_views_are_those_that_a_trial_would_make(
    batch_size: int, workers: int, epoch: int, cycle: int | None, encoded: bool, table: CaseTable, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = Data(kind="folder", augmentation="nnunet", view_cycle=cycle)
    store = ChunkStore(tmp_path_factory.getbasetemp() / "all", 10**8)  # others have filled it in their own way
    encoder = Means() if encoded else None
    size = min(batch_size * workers, 9 // workers * workers)
    for rank in range(workers):
        alone = TrainViews(table, data, 3, size, rank, workers)
        shared = TrainViews(table, data, 3, size, rank, workers, store=store, encoder=encoder)
        batches = list(shared.epoch(epoch))
        shared.close()
        same(batches, list(alone.epoch(epoch)))
        for batch in batches:
            if encoded:
                assert torch.equal(batch.tokens[0], batch.images.float().mean((2, 3)).half())
                assert torch.equal(batch.tokens[1], batch.images[:, :1])
                assert batch.tokens[2] is batch.tokens[0]
                assert batch.to(torch.device("cpu")).tokens[2].dtype == torch.float32
            else:
                assert batch.tokens == ()


def test_the_second_trial_makes_nothing_and_copies_nothing(table: CaseTable, tmp_path: Path) -> None:
    encoder = Means()
    first = TrainViews(table, DATA, 0, 4, store=ChunkStore(tmp_path, 10**8), encoder=encoder, num_epochs=1)
    list(first.epoch(0))
    assert encoder.seen == 11
    store = ChunkStore(tmp_path, 10**8)
    second = TrainViews(table, DATA, 0, 2, store=store, encoder=encoder, num_epochs=1)
    batches = list(second.epoch(0))
    assert (encoder.seen, store.made) == (11, 0)
    name = next(iter((tmp_path).glob("views-*/00000/0001.arrow"))).relative_to(tmp_path).with_suffix("")
    whole = torch.from_numpy(store.get(str(name), lambda: pytest.fail("it is there"))["images"])  # type: ignore[index]
    assert torch.equal(whole[2:], batches[3].images)
    # Both are windows of a mapped file, not of memory of their own.
    assert batches[2].images.untyped_storage().data_ptr() == batches[3].images.untyped_storage().data_ptr() - 2 * 3 * 32 * 32 * 2


def test_what_others_depend_on_is_in_the_key(table: CaseTable, tmp_path: Path) -> None:
    def folders() -> set[str]:
        return {p.name for p in tmp_path.iterdir() if p.name != "locks" and not p.name.startswith(".")}

    def fill(data: Data = DATA, seed: int = 0, encoder: Means | None = None, cases: CaseTable = table) -> set[str]:
        before = folders()
        list(TrainViews(cases, data, seed, 4, store=ChunkStore(tmp_path, 10**8), encoder=encoder, num_epochs=1).epoch(0))
        return folders() - before

    assert len(fill()) == 1
    assert fill(Data(kind="kvasir", root="elsewhere", augmentation="nnunet", view_cycle=7)) == set()  # of no influence on a view
    assert len(fill(seed=1)) == 1
    assert len(fill(Data(kind="folder", augmentation="none"))) == 1
    assert len(fill(Data(kind="folder", normalisation="zscore"))) == 1
    assert len(fill(cases=table.subset(table.ids[:9]))) == 1
    (tokens,) = fill(encoder=Means())
    (others,) = fill(encoder=Means("another backbone"))
    assert tokens.startswith("tokens-")
    assert tokens != others


def _wait_for(folder: Path, pattern: str, count: int) -> list[Path]:
    deadline = time.monotonic() + 10
    while len(found := sorted(folder.glob(pattern))) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def test_the_next_epoch_is_made_meanwhile_but_none_after_the_last(table: CaseTable, tmp_path: Path) -> None:
    views = TrainViews(table, DATA, 0, 4, store=ChunkStore(tmp_path, 10**8), encoder=Means(), num_epochs=2)
    batches = views.epoch(0)
    next(batches)
    assert len(_wait_for(tmp_path, "tokens-*/00001/*.arrow", 3)) == 3
    list(batches)
    list(views.epoch(1))
    time.sleep(0.1)
    assert sorted({p.parent.name for p in tmp_path.rglob("*.arrow")}) == ["00000", "00001"]
    views.close()


@pytest.mark.parametrize("passes", [1.4, 2.4])
def test_where_few_passes_fit_no_chunk_is_made_again_and_again(passes: float, tmp_path: Path) -> None:
    """The thread makes what the next pass needs, and not what it has made room for."""
    ids = [f"c{number:02}" for number in range(32)]

    def make(epoch: int, names: Sequence[str]) -> Arrays:
        return {"images": np.full((len(names), 3, 16, 16), epoch, np.float16), "masks": np.zeros((len(names), 1, 16, 16), np.uint8)}

    store = ChunkStore(tmp_path, int(passes * sum(array.nbytes for array in make(0, ids).values())))
    views = module.SharedViews(store, None, "ab", lambda _: module.in_chunks(ids), make)
    for epoch in range(3):
        views.prepare([epoch, epoch + 1], [], dict)
        for names in module.in_chunks(ids):
            assert views.batch(epoch, names).images.eq(epoch).all()
        time.sleep(0.3)
        assert store.made <= 8 * (epoch + 2) + 4  # on a busy machine thread and trial may both make one
        assert len(chunks(tmp_path)) >= 8 * int(passes)
    views.close(wait=True)


def test_a_closed_trial_prepares_nothing_more(table: CaseTable, tmp_path: Path) -> None:
    class Slow(Means):
        def __call__(self, images: torch.Tensor) -> Arrays:
            time.sleep(0.1)
            return super().__call__(images)

    encoder = Slow()
    views = TrainViews(table, DATA, 0, 4, store=ChunkStore(tmp_path, 10**8), encoder=encoder, num_epochs=9)
    list(views.epoch(0))
    views.close()
    time.sleep(0.25)  # for the chunk that it was at
    made = encoder.seen
    time.sleep(0.3)
    assert encoder.seen == made < 22


def chunks(folder: Path) -> list[Path]:
    """Sorted; folders may vanish meanwhile, which is an error to those of ``Path``."""
    return sorted(folder / name for name in glob.glob("*/*/*.arrow", root_dir=folder))


def test_what_is_kept_for_one_training_is_removed_when_its_thread_ends(table: CaseTable, tmp_path: Path) -> None:
    """The thread may be at a chunk when the training ends, which does not wait for it."""

    class Slow(Means):
        def __call__(self, images: torch.Tensor) -> Arrays:
            time.sleep(0.2)
            return super().__call__(images)

    views = TrainViews(table, DATA, 0, 4, store=ChunkStore(tmp_path, 10**8), once=True, encoder=Slow(), num_epochs=9)
    list(views.epoch(0))
    assert _wait_for(tmp_path, "views-*/00001/*.arrow", 1)  # its tokens are being made
    begun = time.monotonic()
    views.close()
    assert time.monotonic() - begun < 0.1
    deadline = time.monotonic() + 10
    while chunks(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert not chunks(tmp_path)


def test_a_cycle_repeats_views_in_new_orders(table: CaseTable) -> None:
    views = TrainViews(table, Data(kind="folder", augmentation="nnunet", view_cycle=2), 0, 4)
    plain = TrainViews(table, DATA, 0, 4)
    name = table.ids[0]
    assert torch.equal(views.views(4, [name])[0], plain.views(0, [name])[0])
    assert torch.equal(views.views(5, [name])[0], plain.views(1, [name])[0])
    assert len({tuple(views.order(epoch)) for epoch in range(6)}) == 6


def test_views_that_cannot_be_kept_are_made_all_the_same(table: CaseTable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    encoder = Means()
    views = TrainViews(table, DATA, 0, 4, store=ChunkStore(tmp_path / "file", 10**8), encoder=encoder)
    same(list(views.epoch(0)), list(TrainViews(table, DATA, 0, 4).epoch(0)))
    same(list(views.epoch(1)), list(TrainViews(table, DATA, 0, 4).epoch(1)))
    assert not any(batch.tokens for batch in views.epoch(2))  # the model encodes what is not kept, batch by batch


def test_validation_tokens_do_not_depend_on_the_order_of_the_table(table: CaseTable, tmp_path: Path) -> None:
    """Tables of the same cases have the same fingerprint in any order."""
    store, encoder = ChunkStore(tmp_path, 10**8), Means()
    for ids in (table.ids, table.ids[::-1]):
        for batch in validation_batches(table.subset(ids), DATA, 4, store=store, encoder=encoder):
            assert torch.equal(batch.tokens[0], batch.images.mean((2, 3)).half())
    assert encoder.seen == 11


def test_validation_tokens_are_made_once_for_all_ranks_and_sizes(table: CaseTable, tmp_path: Path) -> None:
    encoder = Means()
    store = ChunkStore(tmp_path, 10**8)
    for batch_size, workers in ((4, 1), (3, 2), (11, 1)):
        seen = []
        for rank in range(workers):
            batches = validation_batches(table, DATA, batch_size, store=store, encoder=encoder, rank=rank, world_size=workers)
            for batch in batches:
                seen += batch.ids
                assert torch.equal(batch.tokens[0], batch.images.mean((2, 3)).half())
        assert sorted(seen) == list(table.ids)
    assert encoder.seen == 11
