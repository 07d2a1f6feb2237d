"""Optimisers, schedules, and checkpoints of their state."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from guidino_tune.config import Training
from guidino_tune.errors import UserError
from guidino_tune.training.checkpoints import (
    OPTIMIZER,
    STATE,
    WEIGHTS,
    load_weights,
    read_checkpoint,
    restore_optimizer,
    snapshot,
    write_checkpoint,
)
from guidino_tune.training.failures import Diverged, failure_kind
from guidino_tune.training.optimisers import OPTIMIZERS, SCHEDULES, make_optimizer, set_learning_rates
from guidino_tune.training.reporter import EpochRecord


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.conv = nn.Conv2d(3, 4, 3)
        self.lora_A = nn.Parameter(torch.ones(2, 3))


def step(net: Net, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(seed))
    images = images.contiguous(memory_format=torch.channels_last)
    optimizer.zero_grad()
    (net.conv(images).square().mean() + net.lora_A.cos().sum()).backward()
    optimizer.step()


def test_adapters_have_their_own_rate_and_frozen_weights_none() -> None:
    net = Net()
    optimizer = make_optimizer(net.named_parameters(), Training(lr=1e-3, lora_lr=4e-3))
    groups = [({id(p) for p in g["params"]}, g["lr"]) for g in optimizer.param_groups]
    assert groups == [({id(net.conv.weight), id(net.conv.bias)}, 1e-3), ({id(net.lora_A)}, 4e-3)]


def test_without_adapters_there_is_one_group() -> None:
    assert len(make_optimizer(nn.Linear(2, 2).named_parameters(), Training()).param_groups) == 1


def test_names_are_those_of_the_configuration() -> None:
    import typing

    for registry, field in ((OPTIMIZERS, "optimizer"), (SCHEDULES, "schedule")):
        assert set(registry) == set(typing.get_args(typing.get_type_hints(Training)[field]))


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        ("poly", lambda e: (1 - e / 10) ** 0.9),
        ("cosine", lambda e: (1 + math.cos(math.pi * e / 10)) / 2),
        ("constant", lambda e: 1.0),
    ],
)
def test_schedules_run_over_the_whole_budget(schedule: str, formula) -> None:
    training = Training(lr=0.5, lora_lr=2.0, epochs=10, schedule=schedule)
    optimizer = make_optimizer(Net().named_parameters(), training)
    for epoch in (0, 7, 3, 9):  # no state: any order gives the same
        set_learning_rates(optimizer, training, epoch)
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.5 * formula(epoch), 2.0 * formula(epoch)], rel=1e-12)
        assert all(g["lr"] > 0 for g in optimizer.param_groups)


def test_rates_rise_in_equal_steps_before_they_fall() -> None:
    training = Training(lr=0.8, epochs=10, schedule="linear", warmup_epochs=3)
    optimizer = make_optimizer(nn.Linear(2, 2).named_parameters(), training)
    rates = []
    for epoch in range(5):
        set_learning_rates(optimizer, training, epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.8 * x for x in (1 / 4, 2 / 4 * 0.9, 3 / 4 * 0.8, 0.7, 0.6)])


@pytest.mark.parametrize("training", [Training(), Training(optimizer="sgd"), Training(optimizer="sgd", momentum=0.0)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_restored_optimiser_takes_the_same_step(training: Training, memory_format: torch.memory_format, tmp_path: Path) -> None:
    """Also in channels-last: fused optimisers walk through memory, whatever the strides of weight and moment."""
    torch.manual_seed(0)
    net = Net().to(memory_format=memory_format)  # type: ignore[call-overload]
    optimizer = make_optimizer(net.named_parameters(), training)
    for seed in range(3):
        step(net, optimizer, seed)
    write_checkpoint(
        tmp_path, snapshot(dict(net.state_dict()), optimizer), experiment_hash="abc", history=[EpochRecord(1, {"val_dice": 0.5}, 1.0)]
    )
    other = Net().to(memory_format=memory_format)  # type: ignore[call-overload]
    restored = make_optimizer(other.named_parameters(), training)
    saved = read_checkpoint(tmp_path)
    other.load_state_dict(saved.weights)
    restore_optimizer(restored, saved.optimizer)
    step(net, optimizer, 9)
    step(other, restored, 9)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))
    assert (saved.experiment, saved.history) == ("abc", [EpochRecord(1, {"val_dice": 0.5}, 1.0)])


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, STATE])
@pytest.mark.parametrize("how", ["missing", "empty", "half", "other"])
def test_a_damaged_checkpoint_is_a_clear_error(name: str, how: str, tmp_path: Path) -> None:
    net = Net()
    optimizer = make_optimizer(net.named_parameters(), Training())
    step(net, optimizer, 0)
    write_checkpoint(tmp_path, snapshot(dict(net.state_dict()), optimizer), experiment_hash="abc", history=[])
    file = tmp_path / name
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "half": content[: len(content) // 2], "other": b"[1, 2]"}[how])
    with pytest.raises(UserError, match="damaged") as caught:
        read_checkpoint(tmp_path)
    assert str(tmp_path) in caught.value.where


def test_weights_that_cannot_be_read_are_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_weights(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Diverged("nan"), "diverged"),
        (MemoryError(), "out-of-memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out-of-memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), "out-of-memory"),
        (UserError("cannot read it"), "bad data"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "bug"),
        (ZeroDivisionError(), "bug"),
    ],
)
def test_every_failure_has_its_kind(error: Exception, kind: str) -> None:
    assert failure_kind(error) == kind
