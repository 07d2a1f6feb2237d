"""The store of chunks: made once, whole or not at all, within its budget, and never in the way of the work."""

import errno
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from table_helpers import damage

from guidino_tune.data import room
from guidino_tune.data import store as module
from guidino_tune.data.store import ChunkStore

FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload([__name__])  # imported once for all of them


def chunk(value: int = 0, rows: int = 4) -> dict[str, np.ndarray]:
    return {"images": np.full((rows, 3, 8), value, np.float16), "masks": np.full((rows, 5), value % 2, np.uint8)}


def never() -> dict[str, np.ndarray]:
    raise AssertionError("it was there")


def test_what_is_kept_comes_back_mapped_and_is_not_made_again(tmp_path: Path) -> None:
    first = ChunkStore(tmp_path, 10**6)
    made = first.get("views-a/0/0", lambda: chunk(3))
    again = ChunkStore(tmp_path, 10**6).get("views-a/0/0", never)
    assert made is not None
    assert again is not None
    assert list(again) == list(made)
    for name in made:
        assert again[name].dtype == made[name].dtype
        np.testing.assert_array_equal(again[name], made[name])
        assert not again[name].flags.writeable
    assert first.made == 1


arrays = st.sampled_from([np.float16, np.uint8, np.float32, np.int64]).flatmap(
    lambda dtype: numpy_strategies.arrays(dtype, numpy_strategies.array_shapes(min_dims=1, max_dims=4, max_side=5))
)


@examples(25)
@given(array=arrays, order=st.sampled_from("CF"))
def test_every_array_comes_back_as_it_was(array: np.ndarray, order: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("store")
    store = ChunkStore(folder, 10**6)
    given_ = np.asarray(array, order=order)
    store.get("views-a/0/0", lambda: {"x": given_, "y": np.arange(len(array))})
    back = store.get("views-a/0/0", never)
    assert back is not None
    assert (back["x"].dtype, back["x"].shape) == (array.dtype, array.shape)
    assert back["x"].tobytes() == np.ascontiguousarray(array).tobytes()


def test_the_maker_sees_what_readers_will_see(tmp_path: Path) -> None:
    """Another memory order would let the first trial add up the same numbers in another order than the next."""
    made = ChunkStore(tmp_path, 10**6).get("views-a/0/0", lambda: {"x": np.asfortranarray(np.arange(24).reshape(2, 3, 4))})
    assert made is not None
    assert made["x"].flags.c_contiguous


def _fill(folder: Path, log: Path, start: float) -> None:
    store = ChunkStore(folder, 10**8)
    time.sleep(max(0.0, start - time.time()))

    def slow(name: str) -> dict[str, np.ndarray]:
        with log.open("a") as file:
            file.write(f"{name}\n")
        time.sleep(0.02)
        return chunk(int(name))

    for number in range(12):
        found = store.get(f"views-a/0/{number}", lambda name=str(number): slow(name))
        assert found is not None
        assert (found["images"] == number).all()


def test_several_processes_make_every_chunk_once(tmp_path: Path) -> None:
    start = time.time() + 1.5
    workers = [FRESH.Process(target=_fill, args=(tmp_path / "store", tmp_path / "log", start)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sorted((tmp_path / "log").read_text().split(), key=int) == [str(n) for n in range(12)]


def _die(folder: Path, where: str) -> None:
    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if where == "writing":
        os.fsync = kill  # type: ignore[assignment]
    elif where == "renaming":
        os.replace = kill  # type: ignore[assignment]
    ChunkStore(folder, 10**6).get("views-a/0/0", kill if where == "making" else chunk)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["making", "writing", "renaming"])
def test_a_killed_process_leaves_no_half_chunk_and_no_lock(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = FRESH.Process(target=_die, args=(tmp_path, where))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert not list(tmp_path.rglob("*.arrow"))
    store = ChunkStore(tmp_path, 10**6)
    assert store.get("views-a/0/0", lambda: chunk(5)) is not None
    assert store.made == 1
    monkeypatch.setattr(room, "_STALE", -1.0)
    ChunkStore(tmp_path, 10**6).get("views-a/0/1", chunk)  # looks at what lies there
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: bytes(len(b)), lambda b: b"x" * len(b)])
def test_a_damaged_chunk_is_made_again(damage, tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, 10**6)
    store.get("views-a/0/0", lambda: chunk(1))
    file = tmp_path / "views-a" / "0" / "0.arrow"
    file.write_bytes(damage(file.read_bytes()))
    again = store.get("views-a/0/0", lambda: chunk(2))
    assert again is not None
    assert (again["images"] == 2).all()
    assert store.get("views-a/0/0", never) is not None


@examples(25)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), length=st.sampled_from([1, 1, 64, 5000]))
def test_no_flipped_bit_and_no_lost_page_is_ever_given_back(
    place: float, bit: int, length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Wherever it is in the file: the chunk is as it was made, or made again."""
    folder = tmp_path_factory.mktemp("store")
    store = ChunkStore(folder, 10**6)
    images = np.random.default_rng(0).integers(1, 255, (4, 3, 1000), np.uint8)
    made = store.get("views-a/0/0", lambda: {"images": images, "masks": images[:, 0, :7]})
    assert made is not None
    file = folder / "views-a" / "0" / "0.arrow"
    damage(file, place, bit, length)
    back = ChunkStore(folder, 10**6).get("views-a/0/0", lambda: dict(made))
    assert back is not None
    for name, array in made.items():
        np.testing.assert_array_equal(back[name], array)


def test_the_content_of_a_file_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, checked = ChunkStore(tmp_path, 10**6), []
    real = module.checksum
    monkeypatch.setattr(module, "checksum", lambda array: checked.append(array.nbytes) or real(array))
    store.get("views-a/0/0", chunk)
    assert len(checked) == 2  # as they are written
    for _ in range(3):
        store.get("views-a/0/0", never)
    assert len(checked) == 4


def test_nobody_waits_who_does_not_want_to(tmp_path: Path) -> None:
    store, begun, finish = ChunkStore(tmp_path, 10**6), threading.Event(), threading.Event()

    def slow() -> dict[str, np.ndarray]:
        begun.set()
        assert finish.wait(10)
        return chunk(1)

    other = threading.Thread(target=store.get, args=("views-a/0/0", slow))
    other.start()
    assert begun.wait(10)
    assert store.get("views-a/0/0", never, wait=False) is None
    finish.set()
    waited = store.get("views-a/0/0", never)  # is there when the other one is done
    other.join()
    assert waited is not None


def test_a_chunk_may_need_one_of_another_kind_whatever_its_name(tmp_path: Path) -> None:
    """With one lock for both, some pairs of names would wait for themselves."""
    store = ChunkStore(tmp_path, 10**8)
    done: list[int] = []

    def work() -> None:
        for number in range(400):
            store.get(f"tokens-b/0/{number}", lambda n=number: store.get(f"views-a/{n % 7}/{n}", lambda: chunk(1, rows=1)))  # type: ignore[arg-type,return-value]
            done.append(number)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert len(done) == 400


def test_an_error_while_making_is_the_caller_s_and_keeps_nothing(tmp_path: Path) -> None:
    store = ChunkStore(tmp_path, 10**6)

    def broken() -> dict[str, np.ndarray]:
        raise OSError(errno.EIO, "the image cannot be read")

    with pytest.raises(OSError, match="cannot be read"):
        store.get("views-a/0/0", broken)
    assert store.problem == ""
    assert store.get("views-a/0/0", chunk) is not None


def _age(folder: Path, seconds: float) -> None:
    os.utime(folder, (time.time() - seconds,) * 2)


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    big = {"x": np.zeros((10, 1000), np.uint8)}
    store = ChunkStore(tmp_path, 45_000)
    for number in range(4):
        store.get(f"views-a/{number}/0", lambda: big)
        _age(tmp_path / "views-a" / str(number), 1000 - number)
    store.use("views-a/0")  # the oldest is read again
    ChunkStore(tmp_path, 45_000).get("views-a/9/0", lambda: big)
    assert sorted(p.name for p in (tmp_path / "views-a").iterdir()) == ["0", "2", "3", "9"]
    assert sum(p.stat().st_size for p in tmp_path.rglob("*.arrow")) <= 45_000


def test_what_all_trials_read_stays_beside_the_tokens_of_few(tmp_path: Path) -> None:
    """Long runs, and backbones that one trial has, must not push out what every trial begins with."""
    big = {"x": np.zeros((10, 1000), np.uint8)}
    store = ChunkStore(tmp_path, 75_000)
    groups = {"views-a/00000": (9, 500), "views-a/00001": (9, 400), "views-a/00030": (1, 300), "tokens-b/00000": (8, 200)}
    groups |= {"views-a/00002": (0, 600)}  # made for somebody's next epoch
    groups |= {"tokens-c/00000": (1, 190), "views-d/00000": (99, 3000)}  # the last one of a search that has ended
    for name, (readers, seconds) in groups.items():
        store.get(f"{name}/0", lambda: big)
        for _ in range(readers):
            store.use(name, begun=True)
        _age(tmp_path / name, seconds)
    gone = []
    for number in range(4):
        before = {name for name in groups if (tmp_path / name).exists()}
        ChunkStore(tmp_path, 75_000).get(f"views-a/{40 + number:05d}/0", lambda: big)  # of a trial that goes on
        gone += sorted(before - {name for name in groups if (tmp_path / name).exists()})
    assert gone == ["views-d/00000", "views-a/00030", "tokens-c/00000", "tokens-b/00000"]


def test_of_what_nobody_has_read_yet_the_farthest_pass_makes_room(tmp_path: Path) -> None:
    """Makers made the nearest first, which is therefore the oldest."""
    big = {"x": np.zeros((10, 1000), np.uint8)}
    store = ChunkStore(tmp_path, 45_000)
    for number in (1, 2, 3):
        store.get(f"views-a/{number:05d}/0", lambda: big)
        _age(tmp_path / "views-a" / f"{number:05d}", 100 - number)
    store.get("tokens-b/validation/0", lambda: big)
    _age(tmp_path / "tokens-b" / "validation", 200)
    ChunkStore(tmp_path, 45_000).get("views-a/00000/0", lambda: big)  # of a trial that begins
    assert sorted(p.parent.name for p in tmp_path.rglob("*.arrow")) == ["00000", "00001", "00002", "validation"]


def test_what_is_made_ahead_takes_no_room_of_what_is_wanted_before_it(tmp_path: Path) -> None:
    big = {"x": np.zeros((10, 1000), np.uint8)}
    for number in (2, 3, 4, 6):
        ChunkStore(tmp_path, 45_000).get(f"views-a/{number:05d}/0", lambda: big)
    store = ChunkStore(tmp_path, 45_000)
    assert store.has_room("views-a/00005", ["views-a/00004"])  # that of pass 6
    store.get("views-a/00005/0", lambda: big)
    assert sorted(p.parent.name for p in tmp_path.rglob("*.arrow")) == ["00002", "00003", "00004", "00005"]
    store = ChunkStore(tmp_path, 45_000)
    assert not store.has_room("views-a/00007", [f"views-a/{number:05d}" for number in (3, 4, 5)])
    _age(tmp_path / "views-a" / "00004", 1000)  # made long ago, and wanted still
    assert not store.has_room("views-a/00007", [f"views-a/{number:05d}" for number in (3, 4, 5)])
    _age(tmp_path / "views-a" / "00002", 900)  # left by another training
    assert store.has_room("views-a/00007", [f"views-a/{number:05d}" for number in (3, 4, 5)])
    assert sorted(p.parent.name for p in tmp_path.rglob("*.arrow")) == ["00003", "00004", "00005"]
    assert store.problem == ""


def test_the_size_of_one_group_does_not_decide_what_another_may_take(tmp_path: Path) -> None:
    """Wherever they stand in the folder: a tiny group must not end the sharing, a huge one must not be removed for ten bytes."""
    budget = 1_000_000
    for number, rows in enumerate((10, 80_000, 10)):
        store = ChunkStore(tmp_path, budget)
        store.get(f"views-a/{number}/0", lambda rows=rows: {"x": np.zeros((rows, 10), np.uint8)})
    store = ChunkStore(tmp_path, budget)
    store.get("views-b/0/0", lambda: {"x": np.zeros((1, 10), np.uint8)})
    assert len(list(tmp_path.rglob("*.arrow"))) == 4  # there was room without removing anything
    assert store._room._allowance <= budget / 128
    store = ChunkStore(tmp_path, budget)
    store.get("views-c/0/0", lambda: {"x": np.zeros((10_000, 10), np.uint8)})
    assert store.problem == ""
    assert (tmp_path / "views-c" / "0" / "0.arrow").exists()


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    others = [tmp_path / "thesis" / "data" / "a.bin", tmp_path / "download.tmp", tmp_path / "views-a" / "0" / "notes.txt"]
    others += [tmp_path / "tokens.old" / "x.arrow", tmp_path / "locks" / "mine"]
    for file in others:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(50_000))
        _age(file, 10_000)
    for number in range(6):
        ChunkStore(tmp_path, 25_000).get(f"views-a/{number}/0", lambda: {"x": np.zeros((10, 1000), np.uint8)})
    assert all(file.exists() for file in others)
    assert 1 <= len(list(tmp_path.glob("views-a/*/*.arrow"))) <= 2  # foreign files do not count


def _crowd(folder: Path, seed: int, start: float) -> None:
    rng = np.random.default_rng(seed)
    store = ChunkStore(folder, 60_000)
    time.sleep(max(0.0, start - time.time()))
    for _ in range(200):
        group, number = rng.integers(0, 12), rng.integers(0, 3)
        value = int(group * 3 + number)
        found = store.get(f"views-a/{group}/{number}", lambda value=value: {"x": np.full((5, 1000), value, np.uint8)})
        assert found is not None
        assert (found["x"] == value).all()
    assert store.problem == "", store.problem


def test_processes_that_make_room_for_each_other_go_on_sharing(tmp_path: Path) -> None:
    start = time.time() + 1.5
    workers = [FRESH.Process(target=_crowd, args=(tmp_path, seed, start)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 3
    assert sum(p.stat().st_size for p in tmp_path.rglob("*.arrow")) <= 60_000 + 3 * 8_000


def test_after_a_while_it_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, original = ChunkStore(tmp_path, 10**6), os.fsync

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    store.get("views-a/0/0", chunk)
    assert store.problem
    monkeypatch.setattr(os, "fsync", original)
    monkeypatch.setattr(store, "_again", time.monotonic() - 1)
    assert not store.problem
    store.get("views-a/0/0", chunk)
    assert store.get("views-a/0/0", never) is not None


def test_views_that_do_not_fit_are_told_once_and_made_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ChunkStore(tmp_path, 25_000)
    for number in range(5):
        assert store.get(f"views-a/0/{number}", lambda: {"x": np.ones((10, 1000), np.uint8)}) is not None
    assert "raise resources.views_gigabytes" in store.problem
    assert caplog.text.count("do not fit") == 1
    assert 1 <= len(list(tmp_path.rglob("*.arrow"))) <= 2
    assert sum(p.stat().st_size for p in tmp_path.rglob("*.arrow")) <= 25_000


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_told_once_and_costs_nothing_but_time(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = ChunkStore(tmp_path, 10**6)
    store.get("views-a/0/0", lambda: chunk(1))

    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    for _ in range(2):
        made = store.get("views-a/0/1", lambda: chunk(2))
        assert made is not None
        assert (made["images"] == 2).all()
    assert store.get("views-a/0/0", never) is not None  # what is there is still read
    assert caplog.text.count("cannot be kept") == 1
    assert ("free some space" in store.problem) == (number != errno.EROFS)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_folder_that_cannot_be_made_is_no_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ChunkStore(tmp_path / "file" / "views", 10**6)
    assert store.get("views-a/0/0", chunk) is not None
    assert "cannot be kept" in store.problem


def test_without_a_budget_half_of_the_disk_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 50_000

    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: Usage)
    store = ChunkStore(tmp_path)
    for number in range(4):
        store.get(f"views-a/{number}/0", lambda: {"x": np.ones((10, 1000), np.uint8)})
        _age(tmp_path / "views-a" / str(number), 1000 - number)
    names = sorted(p.name for p in (tmp_path / "views-a").iterdir())
    assert names[-1] == "3"
    assert len(names) < 4
