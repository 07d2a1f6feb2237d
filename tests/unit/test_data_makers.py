"""Processes that make views ahead of trials: the same views, nothing left behind, and nothing lost where one dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from table_helpers import table_of
from test_data_views_shared import DATA, Means, chunks, same

from guidino_tune.config import Resources
from guidino_tune.data import makers as module
from guidino_tune.data import sealed, shared_views
from guidino_tune.data.cases import Case
from guidino_tune.data.locking import attempt
from guidino_tune.data.makers import Makers, Wish, number_of, wishes
from guidino_tune.data.making import work
from guidino_tune.data.store import ChunkStore
from guidino_tune.data.table import CaseTable
from guidino_tune.data.views import TrainViews, passes_ahead, views_of
from guidino_tune.running import environment

CASES = 40  # of two chunks


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> CaseTable:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("cases")
    rng = np.random.default_rng(0)
    cases = []
    for index in range(CASES + 1):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / f"i{index}.png")
        Image.fromarray((rng.random((32, 32)) > 0.5).astype(np.uint8) * 255).save(root / f"m{index}.png")
        cases.append(Case(f"c{index:02}", root / f"i{index}.png", root / f"m{index}.png", str(index)))
    return table_of(cases, 32, root / "cache").subset([f"c{index:02}" for index in range(CASES)])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    """With one maker, which the test leaves dead."""
    yield ChunkStore(tmp_path, 10**9, makers=1)
    for process in module._started.values():
        process.kill()
        process.wait(10)
    module._started.clear()


def until(is_so: Callable[[], object], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def made(folder: Path) -> list[str]:
    return [f"{file.parent.name}/{file.stem}" for file in chunks(folder) if file.parts[-3].startswith("views-")]


def at_work(folder: Path, number: int) -> bool:
    """Whether a maker of any training lives."""
    for slot in module._slots(folder, number):
        if slot.exists():
            with open(slot, "a+b") as opened:
                if attempt(opened, shared=True) == "no":
                    return True
    return False


def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wishes are written, and the test itself is the maker."""
    monkeypatch.setattr(module, "_start", lambda *_: None)


def test_the_views_of_another_process_are_the_same(table: CaseTable, store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    no_process(monkeypatch)
    views = TrainViews(table, DATA, 3, 4, store=store, num_epochs=3)
    batches = views.epoch(1)
    next(batches)
    ((_, wish),) = wishes(store.folder)
    assert wish.passes == (1, 2)  # none after the last
    other = views_of(json.loads(json.dumps(wish.recipe)), ChunkStore(store.folder, 10**9))
    assert until(lambda: not other.make_next(wish.passes) and len(made(store.folder)) == 4)  # the trial's own thread may be at one
    (gone,) = store.folder.glob("views-*/00001/0000.arrow")
    gone.unlink()  # to make room
    assert until(lambda: other.make_next(wish.passes))
    assert made(store.folder) == ["00001/0000", "00001/0001", "00002/0000", "00002/0001"]
    list(batches)
    before, alone = store.made, TrainViews(table, DATA, 3, 4)
    same(list(views.epoch(2)), list(alone.epoch(2)))
    assert store.made == before
    views.close()
    assert list(wishes(store.folder)) == []
    with pytest.raises(ValueError, match="instead of of another version"):
        views_of({**wish.recipe, "key": "of another version"}, store)


def test_trainings_are_served_in_turn_nearest_passes_first(table: CaseTable, store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    no_process(monkeypatch)
    both = [Makers(store.folder, 1) for _ in range(2)]
    for seed, wanted in enumerate(both):
        wanted.want(Wish((7, 5), TrainViews(table, DATA, seed, 4, store=store).recipe))
    kept: list[str] = []
    original = ChunkStore._keep

    def keep(self: ChunkStore, path: Path, arrays: object) -> None:
        kept.append(f"{path.parent.parent.name} {path.parent.name}/{path.stem}")
        original(self, path, arrays)  # type: ignore[arg-type]

    monkeypatch.setattr(ChunkStore, "_keep", keep)
    maker = threading.Thread(target=work, args=(ChunkStore(store.folder, 10**9), 0.2))
    maker.start()
    assert until(lambda: len(kept) == 8)
    names = [name.split() for name in kept]
    assert [place for _, place in names] == ["00007/0000"] * 2 + ["00007/0001"] * 2 + ["00005/0000"] * 2 + ["00005/0001"] * 2
    assert all(len({names[n][0], names[n + 1][0]}) == 2 for n in range(0, 8, 2))
    both[0].close()
    assert maker.is_alive()
    both[1].close()
    maker.join(10)  # it ends when nothing is wanted any more
    assert not maker.is_alive()


def test_what_cannot_be_made_is_left_to_its_training(
    table: CaseTable, store: ChunkStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no_process(monkeypatch)
    recipe = TrainViews(table, DATA, 0, 4, store=store).recipe
    both = [Makers(store.folder, 1) for _ in range(2)]
    both[0].want(Wish((0,), {**recipe, "table": "gone.arrow"}))
    both[1].want(Wish((0,), recipe))
    (store.folder / "wanted" / "torn.json").write_text("{")
    (store.folder / "wanted" / "torn.lock").write_text("")
    maker = threading.Thread(target=work, args=(ChunkStore(store.folder, 10**9), 0.1))
    maker.start()
    assert until(lambda: len(made(store.folder)) == 2)
    for one in both:
        one.close()
    maker.join(10)
    assert caplog.text.count("cannot be made ahead") == 1
    assert not list((store.folder / "wanted").glob("torn*"))  # nobody holds its lock: who wrote it is dead


def test_a_maker_works_and_its_death_costs_time_alone(table: CaseTable, store: ChunkStore) -> None:
    encoder = Means()
    views = TrainViews(table, DATA, 3, 4, store=store, encoder=encoder)
    batches = views.epoch(0)
    first = next(batches)
    (process,) = module._started.values()
    assert until(lambda: len(made(store.folder)) >= 6)  # of far epochs, which no thread of a trial would make
    status = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    assert f"{module.SEAL}=1".encode() in status
    assert os.getpriority(os.PRIO_PROCESS, process.pid) > os.getpriority(os.PRIO_PROCESS, 0)
    process.kill()
    process.wait(10)
    assert until(lambda: not at_work(store.folder, 1))
    alone = TrainViews(table, DATA, 3, 4)
    same([first, *batches], list(alone.epoch(0)))
    for epoch in (1, 2, 9):  # the next one starts another maker
        same(list(views.epoch(epoch)), list(alone.epoch(epoch)))
    (again,) = module._started.values()
    assert again.pid != process.pid
    views.close()


PARENT = """
import sys, time
from pathlib import Path
from guidino_tune.data import makers
from guidino_tune.data.makers import Makers, Wish
Makers(Path(sys.argv[1]), 2).want(Wish((0,), {}))
Makers(Path(sys.argv[1]), 2).want(Wish((0,), {}))
print(*(process.pid for process in makers._started.values()), flush=True)
time.sleep(60)
"""


def test_makers_end_with_who_started_them(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(text) for text in parent.stdout.readline().split()]
        assert len(pids) == 2  # and no third for the second training
        assert until(lambda: at_work(tmp_path, 2))
        parent.send_signal(signal.SIGKILL)
    assert until(lambda: not at_work(tmp_path, 2), 10)
    assert not any(Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" for pid in pids)
    assert list(wishes(tmp_path)) == []
    assert not list((tmp_path / "wanted").iterdir())


def test_who_looks_for_makers_is_taken_for_none(table: CaseTable, store: ChunkStore) -> None:
    recipe = TrainViews(table, DATA, 0, 4, store=store).recipe
    locks = store.folder / "locks"
    locks.mkdir()
    with open(locks / "maker-0", "a+b") as looking:
        assert attempt(looking, shared=True) == "alone"
        makers = Makers(store.folder, 1)
        assert not makers.at_work
        threading.Timer(0.05, looking.close).start()
        makers.want(Wish((0,), recipe))
    assert len(module._started) == 1  # once nobody looked any more
    assert makers.at_work


def test_makers_that_make_nothing_hold_nobody_up(table: CaseTable, store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that was stopped: what is needed is made, and the thread is not at it beside them."""
    no_process(monkeypatch)
    monkeypatch.setattr(Makers, "at_work", True)
    monkeypatch.setattr(shared_views, "CHUNK", 4)
    views = TrainViews(table, DATA, 3, 4, store=store, encoder=Means(), num_epochs=2)
    begun = time.monotonic()
    list(views.epoch(0))
    assert time.monotonic() - begun < 2.5
    assert [name.split("/")[0] for name in made(store.folder)] == ["00000"] * 10
    other = TrainViews(table, DATA, 3, 4, store=ChunkStore(store.folder, 10**9))
    while other.make_next([1]):
        pass
    assert until(lambda: len(chunks(store.folder)) == 40)  # the thread has made the tokens
    views.close()


def test_a_wish_that_cannot_be_met_is_left_to_the_thread(table: CaseTable, store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TrainViews.recipe.func  # type: ignore[attr-defined]
    monkeypatch.setattr(TrainViews, "recipe", property(lambda self: {**original(self), "key": "of another version"}))
    views = TrainViews(table, DATA, 3, 4, store=store, num_epochs=2)
    batches = views.epoch(0)
    next(batches)
    assert until(lambda: len(made(store.folder)) == 4)
    (process,) = module._started.values()
    assert process.poll() is None  # it lives, for others
    assert list(wishes(store.folder)) == []
    batches.close()
    views.close()


LEFT_OPEN = """
import sys, time
from pathlib import Path
from guidino_tune.data.makers import Makers
from guidino_tune.data.shared_views import SharedViews
from guidino_tune.data.store import ChunkStore
Makers.at_work, Makers.want = True, lambda *_: None
views = SharedViews(ChunkStore(Path(sys.argv[1]), 10**6, makers=1), None, "ab", lambda _: [("a",)], lambda *_: {})
views.prepare([0], [0], dict)
time.sleep(0.3)
"""


def test_a_process_ends_that_never_closed_its_views(tmp_path: Path) -> None:
    """Though its thread waits for makers that make nothing."""
    subprocess.run([sys.executable, "-c", LEFT_OPEN, str(tmp_path)], check=True, timeout=30)


def test_a_pass_that_is_over_is_left(table: CaseTable, store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is slower than its training goes on with what is wanted now."""
    at_it, go_on = threading.Event(), threading.Event()
    original, kept = ChunkStore._keep, list[str]()

    def keep(self: ChunkStore, path: Path, arrays: object) -> None:
        if path.parent.name == "00001":
            at_it.set()
            assert go_on.wait(10)
        original(self, path, arrays)  # type: ignore[arg-type]
        kept.append(path.parent.name)

    monkeypatch.setattr(ChunkStore, "_keep", keep)
    monkeypatch.setattr(shared_views, "CHUNK", 4)
    store.makers = 0
    views = TrainViews(table, DATA, 3, 4, store=store, once=True)
    list(views.epoch(0))
    assert at_it.wait(10)
    batches = views.epoch(7)
    next(batches)
    go_on.set()
    assert until(lambda: kept.count("00008") == 10)
    assert kept.count("00001") == 1  # which it was at
    assert "00000" not in {name.split("/")[0] for name in made(store.folder)}
    list(batches)
    views.close()
    assert until(lambda: not made(store.folder))


def test_makers_stop_where_only_nearer_passes_would_make_room(table: CaseTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_views, "_REST", 0.3)
    views = TrainViews(table, DATA, 3, 4, store=ChunkStore(tmp_path, 10**9))
    assert views.make_next([0])
    size = sum(file.stat().st_size for file in tmp_path.rglob("*.arrow"))  # of 32 views; a pass has 40
    store = ChunkStore(tmp_path, int(3.4 * size))
    views = TrainViews(table, DATA, 3, 4, store=store)
    while views.make_next([0, 1, 2, 3]):
        assert store.made < 9
    assert made(tmp_path) == ["00000/0000", "00000/0001", "00001/0000", "00001/0001"]
    looks: list[str] = []
    monkeypatch.setattr(store, "has_room", lambda group, nearer, *, ahead: looks.append(group))
    assert not views.make_next([0, 1, 2])
    assert looks == []
    time.sleep(0.3)
    assert not views.make_next([0, 1, 2])
    assert not views.make_next([0, 1, 2])
    assert len(looks) == 1  # no busy loop
    assert store.problem == ""


def test_a_chunk_that_a_maker_is_at_when_its_training_ends_does_not_stay(
    table: CaseTable, store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_process(monkeypatch)
    at_it, go_on = threading.Event(), threading.Event()
    original = ChunkStore._make

    def slow(self: ChunkStore, make: Callable[[], Any]) -> Any:
        if self is not store:
            at_it.set()
            assert go_on.wait(10)
        return original(self, make)

    monkeypatch.setattr(ChunkStore, "_make", slow)
    views = TrainViews(table, DATA, 3, 4, store=store, once=True)
    list(views.epoch(0))
    maker = threading.Thread(target=work, args=(ChunkStore(store.folder, 10**9), 0.2))
    maker.start()
    assert at_it.wait(10)
    views.close()
    assert until(lambda: not made(store.folder))
    go_on.set()
    maker.join(10)
    assert not maker.is_alive()
    assert made(store.folder) == []


def test_a_maker_draws_the_order_of_a_pass_once(table: CaseTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands of cases that takes as long as many looks."""
    drawn: list[int] = []
    original = TrainViews._ordered
    monkeypatch.setattr(TrainViews, "_ordered", lambda self, epoch: drawn.append(epoch) or original(self, epoch))
    views = TrainViews(table, DATA, 3, 4, store=ChunkStore(tmp_path, 10**9))
    _, far = passes_ahead(0, 10, 10)
    while views.make_next(far):
        pass
    assert drawn == list(far)


IDLE = "import sys; from guidino_tune.data import making; making.IDLE = 0.1; sys.exit(making.main(sys.argv[1:]))"


def test_a_maker_that_nobody_needs_ends_without_a_word(tmp_path: Path) -> None:
    command = [sys.executable, "-c", IDLE, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read() == ""  # until it ends, though its standard input is open still
        assert process.wait(30) == 0


def test_how_many() -> None:
    assert [number_of("auto", cpus, 1.0) for cpus in (1, 2, 3, 6, 64)] == [0, 0, 1, 4, 8]
    assert number_of("auto", 64, 0.0) == 0
    assert number_of(3, 2, 0.0) == 3
    for wrong in (-1, 65, 1.5, True, "many"):
        with pytest.raises(ValueError, match="from 0 to 64"):
            Resources(view_makers=wrong)  # type: ignore[arg-type]
    assert module.SEAL == sealed.SEAL == environment.SEAL


def test_where_nothing_can_be_written_there_are_none(table: CaseTable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    views = TrainViews(table, DATA, 0, 4, store=ChunkStore(tmp_path / "file", 10**8, makers=2))
    same(list(views.epoch(0)), list(TrainViews(table, DATA, 0, 4).epoch(0)))
    views.close()
    assert "no process makes views ahead" in caplog.text
