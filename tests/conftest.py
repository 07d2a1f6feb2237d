"""What all tests share: a home folder of their own, so that no test reads or writes the user's, and test cases that nothing has sealed."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_searches import SPACE

# Before torch is imported, and for the processes that tests start: two test processes with a thread per core each wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell ignores it for what it runs in the background, and all that this starts inherits that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ONE_BY_ONE = ("cluster", "ray")
"""Folders whose tests need the only Ray cluster that may be on a machine; those of the second one share theirs, which then stays."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those first: they take longest, and one process runs them all."""
    items.sort(key=lambda item: [*ONE_BY_ONE, item.path.parent.name].index(item.path.parent.name))


@pytest.hookimpl(optionalhook=True)  # only with pytest-xdist, whose own `xdist_group` has no effect under pytest 9.2
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several test processes, one of them runs all of those, and each other file stays in one process: its imports are slow."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0])
            return ONE_BY_ONE[0] if file.parent.name in ONE_BY_ONE else str(file)

    config.option.loadscopereorder = False  # else files with many quick tests would come before those that take long
    return ByFile(config, log)


def pytest_collection_finish() -> None:
    """What the imports left is here to stay: half a million objects that no later collection need look at."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


NUMBERS = itertools.count()


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """As pytest's own, which lists the folders of all tests before it to find a free number."""
    folder = tmp_path_factory.getbasetemp() / f"{request.node.originalname[:30]}{next(NUMBERS)}"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``$GUIDINO_TUNE_HOME`` to be made, no tracking server from the environment, and no seal left by a trial of this process."""
    folder = tmp_path_factory.getbasetemp() / f"home{next(NUMBERS)}"
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("GUIDINO_TUNE_SEALED", "0")  # a trial sets it for its process, here that of the tests after it
    return folder


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo images, drawn once for all tests."""
    from guidino_tune.data.sources.demo import find

    root = tmp_path_factory.mktemp("demo")
    find(root)
    return root


@pytest.fixture(scope="session")
def shared_views(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One store of views for all small searches, each of which has a home of its own: who only reads them need not import MONAI."""
    SPACE["resources"]["views_folder"] = str(tmp_path_factory.mktemp("views"))


@pytest.fixture
def space_file(tmp_path: Path, demo: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(SPACE))
    return file


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with all tables and nothing in them, to be copied: MLflow needs seconds to make one."""
    from guidino_tune.tracking.client import connect

    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    connect(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(autouse=True)
def migrated() -> None:
    """A process migrates MLflow's database once and copies it for every other new one: sixty migrations take seconds of a CPU."""
    module: Any = sys.modules.get("mlflow.store.db.utils")
    if module is None or hasattr(module, "first_database"):
        return
    module.first_database, make = sqlite3.connect(":memory:", check_same_thread=False), module._initialize_tables

    def initialize(engine: Any) -> None:
        first = module.first_database
        if engine.dialect.name != "sqlite" or not first.execute("SELECT 1 FROM sqlite_master").fetchone():
            make(engine)
            copied = (engine, first)
        else:
            copied = (first, engine)
        with contextlib.closing(engine.raw_connection()) as own:
            one, other = (own.driver_connection if database is engine else database for database in copied)
            one.backup(other)

    module._initialize_tables = initialize


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo data set has twenty images instead of two hundred, which take seconds to draw."""
    from guidino_tune.data.sources import demo

    monkeypatch.setattr(demo, "COUNTS", {"train": 12, "validation": 4, "test": 4})
