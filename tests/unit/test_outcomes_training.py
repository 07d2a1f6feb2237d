"""Failures of real training runs, and the experiments of the shipped spaces, which must not be mistaken for each other."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from fuzz_helpers import examples
from hypothesis import given
from hypothesis import strategies as st
from test_running_executors import actor, config, demo  # noqa: F401
from training_helpers import make_data, make_experiment, train

from guidino_tune.running import executors
from guidino_tune.space.space import load_space, names, shipped
from guidino_tune.training.failures import Diverged


def _shipped() -> list[str]:
    return [*names(), *(str(path) for path in sorted(Path(str(shipped())).glob("recipes/*/*.yaml")))]


@pytest.mark.parametrize("name", _shipped(), ids=lambda name: "/".join(Path(name).parts[-2:]))
@examples(10)
@given(seed=st.integers(0, 2**32))
def test_different_draws_of_shipped_spaces_are_different_experiments(name: str, seed: int) -> None:
    space, generator = load_space(name), random.Random(seed)
    base, _ = space.walk(lambda _, parameter: parameter.draw(generator))
    drawn = [base]
    for path in base:  # neighbours that differ in one value, and in what depends on it, are the hardest to tell apart
        values, _ = space.walk(lambda p, parameter, path=path: parameter.draw(generator) if p == path or p not in base else base[p])
        drawn.append(values)
    hashes = [space.experiment(values).hash for values in drawn]
    for one, other in combinations(range(len(drawn)), 2):
        assert (drawn[one] == drawn[other]) == (hashes[one] == hashes[other]), (drawn[one], drawn[other])


@pytest.mark.parametrize(("epochs", "lr"), [(1, 1e30), (3, 1e30), (2, 1e38)])
def test_a_run_that_diverges_leaves_no_model(epochs: int, lr: float, tmp_path: Path) -> None:
    """In the last step of an epoch the loss is still finite, the weights it leaves are not, and the mask of no numbers has a Dice."""
    experiment = make_experiment(epochs=epochs, lr=lr, grad_clip=None, optimizer="sgd", batch_size=6)
    with pytest.raises(Diverged, match="not finite"):
        train(experiment, make_data(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run" / "best").exists()
    assert not list((tmp_path / "run").glob("checkpoints/epoch-*"))


def test_an_image_that_is_damaged_during_a_search_is_bad_data(tmp_path: Path, demo: Path, actor: Any) -> None:  # noqa: F811
    images = tmp_path / "images"
    shutil.copytree(demo, images)
    executors._opened.cache_clear()
    assert "records" in actor(config(tmp_path, images, 0)).step()
    damaged = sorted((images / "images").glob("*.png"))[0]
    damaged.write_bytes(damaged.read_bytes()[:100])
    executors._opened.cache_clear()  # another process
    told = actor(config(tmp_path, images, 1)).step()
    assert told["failure"] == "bad data"
    assert damaged.name in told["message"]
    damaged.unlink()
    executors._opened.cache_clear()
    assert actor(config(tmp_path, images, 2)).step()["failure"] == "bad data"


ALLOCATING = """
import resource, sys, torch
from guidino_tune.training.failures import failure_kind
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28,) * 2)
for make in (lambda: bytearray(2**33), lambda: torch.empty(2**33, dtype=torch.uint8)):
    try:
        make()
    except Exception as error:
        print(failure_kind(error), type(error).__name__)
"""


def test_memory_that_the_system_refuses_is_out_of_memory() -> None:
    done = subprocess.run([sys.executable, "-c", ALLOCATING], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n")[:2] == ["out-of-memory MemoryError", "out-of-memory RuntimeError"]
