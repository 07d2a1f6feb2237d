"""Memory formats in which segmenters train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_helpers import Listener, make_data, make_experiment

from guidino_tune.data.opening import SearchData
from guidino_tune.training.loop import TrainingRun


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SearchData:
    torch.set_num_threads(1)
    return make_data(tmp_path_factory.mktemp("cases"))


@pytest.mark.parametrize(
    ("capability", "kind", "precision", "wanted", "expected"),
    [
        ("AVX2", "unet", "fp32", True, False),
        ("AVX2", "unet", "bf16", True, True),
        ("AVX2", "nnwnet", "fp32", True, True),
        ("AVX512", "unet", "fp32", True, True),
        ("AVX512", "unet", "fp32", False, False),
    ],
)
def test_channels_last_is_taken_where_it_pays(
    capability: str,
    kind: str,
    precision: str,
    wanted: bool,
    expected: bool,
    data: SearchData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    run = TrainingRun(make_experiment(kind, precision=precision, channels_last=wanted), data, Listener(tmp_path))
    weight = max(run.model.segmenter.parameters(), key=torch.Tensor.numel)
    images = run._to_device(next(iter(run.views.epoch(0, pin=False)))).images
    run.close()
    assert weight.is_contiguous(memory_format=torch.channels_last) is expected
    assert images.is_contiguous(memory_format=torch.channels_last) is expected
