"""Operations of a training step: on a GPU each is a launch, and whatever waits for the device stops all that follow."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training_helpers import GUIDE, Listener, make_data, make_experiment

from guidino_tune.data.opening import SearchData
from guidino_tune.training.loop import TrainingRun


class Counting(TorchDispatchMode):
    """Counts what reaches the device, views left out: they compute nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.counts[func.overloadpacket._qualified_op_name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SearchData:
    torch.set_num_threads(1)
    return make_data(tmp_path_factory.mktemp("cases"), size=32)


@pytest.mark.parametrize(("kind", "most"), [("unet", 373), ("nnwnet", 1310), ("segguidino", 161)])
def test_a_step_launches_few_operations_and_never_waits(kind: str, most: int, data: SearchData, tmp_path: Path) -> None:
    run = TrainingRun(make_experiment(kind, guide=GUIDE, epochs=1, precision="bf16"), data, Listener(tmp_path))
    run.module.train()
    batch = next(iter(run.views.epoch(0, pin=False)))
    assert run.encoder is not None
    batch = replace(batch, tokens=tuple(run.encoder.maps(batch.images)))  # as views have them that are shared
    run.step(batch)
    with Counting() as counting:
        run.step(batch)
    run.close()
    total = sum(counting.counts.values())
    assert not {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero"} & set(counting.counts)
    assert total <= most
    # Batch norms count as torch's own do, though all at once.
    counters = [int(value) for name, value in run.model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert counters == [2] * {"unet": 18, "nnwnet": 60, "segguidino": 0}[kind]
