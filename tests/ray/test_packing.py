"""The memory probe in real processes of a real cluster."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from rich.console import Console
from small_searches import SPACE, slow_space, study_folder

import guidino_tune as gt
from guidino_tune.config import Resources
from guidino_tune.data.opening import open_for_search
from guidino_tune.running import view_speeds
from guidino_tune.running.cluster import Packed, plan
from guidino_tune.running.packing import pack
from guidino_tune.running.view_speeds import Unmeasured, side_by_side, speeds_on_node
from guidino_tune.space.space import read_space

TOO_MANY = 10**8
"""Images of a batch that no machine's memory holds; the system refuses it at once."""


def test_two_networks_and_one_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[dict[str, Any]] = [
        {"segmenter.base_width": 2, "training.batch_size": 4},
        {"segmenter.base_width": 64, "training.batch_size": 4},
        {"segmenter.base_width": 2, "training.batch_size": TOO_MANY},
    ]
    values = {
        "experiment": {**SPACE["experiment"], "guide": {"kind": "none"}},
        "space": {path: {"choices": list(dict.fromkeys(v[path] for v in listed))} for path in listed[0]},
        "first_trials": listed,
        "study": {"sampler": "listed", "trials": 3},
        "resources": {"trials_per_gpu": "auto", "concurrent": 1},
    }
    space, text = read_space(values, source="packing.yaml"), io.StringIO()
    first = pack(space, tmp_path, Console(file=text, width=300))
    assert first[0] == Resources(concurrent=1)
    stored = json.loads((tmp_path / "memory.json").read_text())["peaks"]
    peaks = {(p["shape"]["segmenter"]["base_width"], p["shape"]["training.batch_size"]): p["bytes"] for p in stored.values()}
    small, large = peaks[2, 4], peaks[64, 4]
    assert first[1] == Packed(memory=large)
    # Weights, gradients and AdamW's two moments of a U-Net with 31 million weights take 500 MB.
    assert small + 400e6 < large < small + 1500e6
    assert small > 100e6  # Python and its imports
    assert peaks[2, TOO_MANY] is None
    assert f"with {TOO_MANY} image(s) of 32 x 32: does not fit" in text.getvalue()
    assert f"takes {large / 1e9:.2f} of" in text.getvalue()

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a second search starts no task")

    monkeypatch.setattr(ray, "remote", never)
    again = io.StringIO()
    assert pack(space, tmp_path, Console(file=again, width=300)) == first
    assert again.getvalue() == text.getvalue()


@pytest.mark.parametrize("executor", ["actor", "train"])
def test_trials_book_the_memory_that_was_measured(executor: str, home: Path, tmp_path: Path, demo: Path) -> None:
    file = slow_space(tmp_path, demo, epochs=1, trials=1, pruner="none")
    values = yaml.safe_load(file.read_text())
    values["resources"] |= {"trials_per_gpu": "auto", "executor": executor, "concurrent": 1, "cpus_per_worker": 1}
    file.write_text(yaml.safe_dump(values))
    booked = list[float]()

    class Watch:
        def epoch_ended(self, trial: gt.TrialResult, record: Any) -> None:
            booked.append(ray.cluster_resources()["memory"] - ray.available_resources()["memory"])

    assert gt.run_search(gt.load_space(str(file)), callbacks=[Watch()]).exit_code == 0
    stored = json.loads((study_folder(home, "small").path / "memory.json").read_text())["peaks"]
    (peak,) = (p["bytes"] for p in stored.values())
    assert booked[0] >= peak


def test_both_ways_of_getting_views_are_measured_on_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the trials are; here without a GPU."""
    space = read_space({**SPACE, "resources": {"concurrent": 1}}, source="views.yaml")
    data = open_for_search(space.base.data, split_file=tmp_path / "split.json")
    assert len(data.train)
    resources = Resources(views_folder=str(tmp_path / "views"))
    booked = plan(resources)
    found = speeds_on_node(space.base, tmp_path / "split.json", resources, booked, 10**6)
    assert found.cached
    assert min(found.step, found.read, found.made, found.device) > 0
    assert side_by_side(booked) == (2, 1, 1)
    assert not list((tmp_path / "views").rglob("*.arrow"))
    monkeypatch.setattr(view_speeds, "PATIENCE", 0.01)
    with pytest.raises(Unmeasured, match="no place was free"):
        speeds_on_node(space.base, tmp_path / "split.json", resources, booked, 10**6)
