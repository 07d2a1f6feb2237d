"""What the probe of a trial's memory runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from training_helpers import make_experiment

from guidino_tune.running import probing


def test_the_probe_counts_what_a_trial_may_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, int]] = []
    steps: list[str] = []

    class Noted(probing.Compiled):
        def take(self, way: str) -> None:
            taken.append((way, len(steps)))
            if way == "cuda-graphs":
                raise RuntimeError("no triton")

    class Loss(probing.SegmentationLoss):
        def forward(self, *args: Any) -> dict[str, torch.Tensor]:
            steps.append("step")
            return super().forward(*args)

    monkeypatch.setattr(probing, "Compiled", Noted)
    monkeypatch.setattr(probing, "SegmentationLoss", Loss)
    cpu = torch.device("cpu")
    assert probing._two_steps(make_experiment(compile="auto"), 1, cpu) > 0  # as it is
    assert (taken, len(steps)) == ([], 2)
    monkeypatch.setattr(probing, "ways_for", lambda *_: ("cuda-graphs", "default"))
    probing._two_steps(make_experiment(compile="auto"), 1, cpu)  # a GPU without a compiler: a trial does as the probe
    assert (taken, len(steps)) == ([("cuda-graphs", 4)], 4)
    monkeypatch.setattr(probing, "ways_for", lambda *_: ("default",))
    probing._two_steps(make_experiment(compile="auto"), 1, cpu)
    assert (taken[1:], len(steps)) == ([("default", 6)], 6 + probing.GRAPH_STEPS)
    probing._two_steps(make_experiment(compile="none"), 1, cpu)
    assert (len(taken), len(steps)) == (2, 12)
