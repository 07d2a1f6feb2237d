"""What trainings allow CUDA's libraries; a CPU's settings stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training_helpers import Listener, make_data, make_experiment

from guidino_tune.training.kernels import quick_kernels
from guidino_tune.training.loop import TrainingRun

GPU, CPU = torch.device("cuda"), torch.device("cpu")


def of_cpus() -> list[object]:
    mkldnn = torch.backends.mkldnn
    return [mkldnn.fp32_precision, mkldnn.matmul.fp32_precision, mkldnn.conv.fp32_precision, mkldnn.deterministic, mkldnn.enabled]  # type: ignore[attr-defined]


def of_gpus() -> list[bool]:
    return [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark]


def computed() -> torch.Tensor:
    x = torch.randn(2, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(16, 16, 3, 3, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.conv2d(x, weight).flatten() @ torch.linspace(-1, 1, 2 * 16 * 30 * 30)


@pytest.fixture(autouse=True)
def plain() -> Iterator[None]:
    before = of_gpus()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before


def test_a_gpu_may_take_more_until_the_last_training_has_ended() -> None:
    cpu, gpu, result = of_cpus(), of_gpus(), computed()
    assert gpu == [False, True, False]
    ends = [quick_kernels(GPU), quick_kernels(GPU)]
    assert of_gpus() == [True, True, True]
    assert of_cpus() == cpu
    assert torch.equal(computed(), result)
    ends[0]()
    ends[0]()
    assert of_gpus() == [True, True, True]
    ends[1]()
    assert of_gpus() == gpu
    assert of_cpus() == cpu


def test_a_training_on_a_cpu_changes_nothing(tmp_path: Path) -> None:
    before = of_cpus(), of_gpus(), torch.get_float32_matmul_precision()
    quick_kernels(CPU)
    run = TrainingRun(make_experiment(epochs=1), make_data(tmp_path), Listener(tmp_path / "run"))
    run.run()
    assert (of_cpus(), of_gpus(), torch.get_float32_matmul_precision()) == before
    run.close()


def test_a_training_that_cannot_begin_leaves_all_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guidino_tune.training.loop.quick_kernels", lambda _: quick_kernels(GPU))
    before, data = of_gpus(), make_data(tmp_path)
    run = TrainingRun(make_experiment(epochs=1), data, Listener(tmp_path / "run"))
    assert of_gpus() == [True, True, True]
    run.run()
    run.close()
    assert of_gpus() == before
    with pytest.raises(ValueError, match="belongs to experiment"):
        TrainingRun(make_experiment(epochs=2), data, Listener(tmp_path / "run"))
    assert of_gpus() == before
