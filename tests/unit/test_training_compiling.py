"""A compiled training, with the compiler that is really used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from training_helpers import Listener, make_data, make_experiment, values

from guidino_tune.training.loop import TrainingRun


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler on a CPU")
def test_whole_batches_are_compiled_once_and_others_run_as_they_are(tmp_path: Path) -> None:
    data = make_data(tmp_path, train=6)
    runs = []
    for how in ("none", "default"):
        torch._dynamo.reset()
        counters.clear()
        run = TrainingRun(make_experiment(epochs=2, batch_size=4, compile=how), data, Listener(tmp_path / how))
        with torch._dynamo.config.patch(error_on_recompile=True):
            run.run()  # each epoch has a batch of four and one of two, and a validation
        runs.append(run)
        assert counters["stats"]["unique_graphs"] == (how == "default")
        run.close()
    assert runs[0].model.trained_state().keys() == runs[1].model.trained_state().keys()
    for plain, compiled in zip(*map(values, runs), strict=True):
        assert compiled == pytest.approx(plain, rel=1e-4)
