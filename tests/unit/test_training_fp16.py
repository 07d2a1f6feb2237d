"""Training in fp16 with a scaled loss, on a CPU that emulates it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_helpers import Listener, make_data, make_experiment, train, values

from guidino_tune.data.opening import SearchData
from guidino_tune.models.precision import autocast_in, has_fp16, use_bf16
from guidino_tune.training.loop import TrainingRun


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SearchData:
    torch.set_num_threads(1)
    return make_data(tmp_path_factory.mktemp("cases"))


def test_it_learns_what_fp32_learns(data: SearchData, tmp_path: Path) -> None:
    half = train(make_experiment(epochs=2, precision="fp16"), data, tmp_path / "half")
    single = train(make_experiment(epochs=2), data, tmp_path / "single")
    assert half.scaler.is_enabled()
    assert not single.scaler.is_enabled()
    losses = [values(run)[-1]["train_loss_total"] for run in (half, single)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert losses[0] != losses[1]


def test_a_step_whose_gradients_are_infinite_is_left_out(data: SearchData, tmp_path: Path) -> None:
    run = TrainingRun(make_experiment(epochs=1, precision="fp16"), data, Listener(tmp_path))
    run.module.train()
    batch = next(iter(run.views.epoch(0, pin=False)))
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)  # every gradient in fp16 is infinite
    weights = [p.detach().clone() for p in run.model.parameters()]
    run.step(batch)
    assert run.scaler.get_scale() == 2.0**59
    assert all(torch.equal(a, b) for a, b in zip(weights, run.model.parameters(), strict=True))
    run.scaler.update(1024.0)
    run.step(batch)
    assert not all(torch.equal(a, b) for a, b in zip(weights, run.model.parameters(), strict=True))
    run.close()


def test_a_trial_that_goes_on_scales_as_it_did(data: SearchData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.amp.GradScaler
    # The scale doubles every third step, of two in an epoch: what is saved must count steps, too.
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: original(device, enabled=enabled, growth_interval=3))
    experiment = make_experiment(epochs=4, precision="fp16")
    whole = train(experiment, data, tmp_path / "whole")
    train(experiment, data, tmp_path / "parts", stop_after=2)
    resumed = train(experiment, data, tmp_path / "parts", reported=2)
    assert values(resumed) == values(whole)
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()
    assert whole.scaler.get_scale() > 65536


def test_gpus_with_tensor_cores_have_it_and_only_who_names_it_trains_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study that begins names it; one that was begun when nobody did goes on as it was."""
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    for capability, expected in (((8, 0), True), ((7, 5), True), ((6, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert has_fp16(gpu) is expected
        assert autocast_in("auto", torch.device("cpu")).fast_dtype is torch.bfloat16
    assert not has_fp16(torch.device("cpu"))
    assert autocast_in("fp16", torch.device("cpu")).fast_dtype is torch.float16
    assert not use_bf16("fp16", gpu)
