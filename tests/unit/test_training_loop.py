"""The loop: it learns, continues exactly, tells every epoch, and stops on divergence."""

import copy
import json
import math
import shutil
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import GUIDE, LORA, Listener, make_data, make_experiment, train, values

from guidino_tune.config.study import OBJECTIVE
from guidino_tune.data.opening import SearchData
from guidino_tune.metrics import score_cases, summarise
from guidino_tune.models import build_model
from guidino_tune.models.precision import use_bf16
from guidino_tune.training.checkpoints import OPTIMIZER, STATE, WEIGHTS, save_weights
from guidino_tune.training.failures import Diverged, failure_kind
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.reporter import Decision
from guidino_tune.training.showing import shown_cases


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SearchData:
    torch.set_num_threads(1)
    return make_data(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def straight(data: SearchData, tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    return train(make_experiment(), data, tmp_path_factory.mktemp("straight"))


@pytest.fixture(scope="module")
def broken_off(data: SearchData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run, stopped after its third epoch."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    train(make_experiment(), data, folder, stop_after=3)
    return folder


def same_state(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_optimizer(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> bool:
    left, right = a.state_dict(), b.state_dict()
    tensors = [left["state"], right["state"]]
    assert tensors[0].keys() == tensors[1].keys()
    same = all(
        entry.keys() == tensors[1][index].keys() and all(torch.equal(entry[k], tensors[1][index][k]) for k in entry)
        for index, entry in tensors[0].items()
    )
    return same and left["param_groups"] == right["param_groups"]


@pytest.mark.parametrize(
    ("kind", "guide", "training"),
    [
        ("unet", GUIDE, {"optimizer": "adamw", "schedule": "poly"}),
        ("tiny", None, {"optimizer": "sgd", "schedule": "cosine", "momentum": 0.9}),
        ("tiny", None, {"optimizer": "sgd", "schedule": "constant", "momentum": 0.0}),
        ("segguidino", LORA, {"optimizer": "adamw", "schedule": "poly"}),
        ("tiny", LORA, {"optimizer": "sgd", "schedule": "cosine"}),
    ],
)
def test_two_halves_equal_one_run_bit_by_bit(kind: str, guide: dict | None, training: dict, data: SearchData, tmp_path: Path) -> None:
    experiment = make_experiment(kind, guide=guide, **training)
    straight = train(experiment, data, tmp_path / "straight")
    train(experiment, data, tmp_path / "halves", stop_after=2)
    torch.manual_seed(12345)  # the continuing process has another random state
    continued = TrainingRun(experiment, data, Listener(tmp_path / "halves"), reported=2)
    assert continued.epoch == 2
    continued.run()
    assert continued.reporter.epochs == [3, 4]
    assert values(continued) == values(straight)
    assert same_state(continued.model.trained_state(), straight.model.trained_state())
    assert same_optimizer(continued.optimizer, straight.optimizer)
    for name in (WEIGHTS, OPTIMIZER):
        files = [(tmp_path / run / "checkpoints" / "epoch-00004" / name).read_bytes() for run in ("straight", "halves")]
        assert files[0] == files[1]


@pytest.mark.parametrize(("schedule", "factor"), [("poly", (1 - 2 / 4) ** 0.9), ("cosine", 0.5 * (1 + math.cos(math.pi * 2 / 4)))])
def test_the_rate_of_a_continued_epoch(schedule: str, factor: float, data: SearchData, tmp_path: Path) -> None:
    experiment = make_experiment("segguidino", guide=LORA, schedule=schedule, lr=1e-3, lora_lr=7e-3)
    train(experiment, data, tmp_path, stop_after=2)
    run = TrainingRun(experiment, data, Listener(tmp_path), reported=2)
    run.run_epoch()
    assert run.history[2].metrics["lr"] == pytest.approx(1e-3 * factor, rel=1e-12)
    assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([1e-3 * factor, 7e-3 * factor], rel=1e-12)


def test_unknown_epochs_are_told_again_and_none_is_trained_twice(data: SearchData, tmp_path: Path) -> None:
    experiment = make_experiment()
    first = train(experiment, data, tmp_path, stop_after=3)
    again = TrainingRun(experiment, data, Listener(tmp_path), reported=1)
    assert not again.finished
    again.run()
    assert again.reporter.epochs == [2, 3, 4]
    assert again.reporter.saved == [4]
    assert again.reporter.told[:2] == first.history[1:3]


def test_a_finished_run_with_a_backlog_is_not_finished_until_it_is_told(data: SearchData, tmp_path: Path) -> None:
    experiment = make_experiment(epochs=2)
    train(experiment, data, tmp_path)
    again = TrainingRun(experiment, data, Listener(tmp_path), reported=1)
    again.run()
    assert (again.reporter.epochs, again.reporter.saved) == ([2], [])


def test_a_finished_run_tells_its_last_epoch_once_more_when_asked(data: SearchData, tmp_path: Path) -> None:
    experiment = make_experiment(epochs=2)
    first = train(experiment, data, tmp_path)
    again = TrainingRun(experiment, data, Listener(tmp_path), reported=2)
    assert again.finished
    assert again.run_epoch() is Decision.CONTINUE
    assert again.reporter.told == [first.history[-1]]
    assert again.reporter.saved == []


def test_stop_ends_the_run_after_that_epoch(data: SearchData, tmp_path: Path) -> None:
    run = train(make_experiment(), data, tmp_path, stop_after=2)
    assert (run.epoch, run.reporter.epochs, run.finished) == (2, [1, 2], False)


def test_another_experiment_is_not_continued(data: SearchData, tmp_path: Path) -> None:
    train(make_experiment(), data, tmp_path, stop_after=1)
    with pytest.raises(ValueError, match="belongs to experiment"):
        TrainingRun(make_experiment(lr=1e-4), data, Listener(tmp_path))


def test_a_checkpoint_with_the_hash_of_an_earlier_version_is_continued(
    data: SearchData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has no effect was left out of the hash by and by; the stored experiment tells that it is the same one."""
    experiment = make_experiment()
    with monkeypatch.context() as earlier:
        earlier.setattr(type(experiment), "hash", "0123456789ab")
        train(experiment, data, tmp_path, stop_after=2)
    with pytest.raises(ValueError, match="belongs to experiment 0123456789ab"):
        TrainingRun(experiment, data, Listener(tmp_path))
    (tmp_path / "experiment.yaml").write_text(make_experiment(lr=1e-4).to_yaml())
    with pytest.raises(ValueError, match="belongs to experiment 0123456789ab"):
        TrainingRun(experiment, data, Listener(tmp_path))
    (tmp_path / "experiment.yaml").write_text(experiment.to_yaml())
    assert TrainingRun(experiment, data, Listener(tmp_path)).epoch == 2


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_huge_rate_diverges_and_nothing_of_that_epoch_is_saved(optimizer: str, data: SearchData, tmp_path: Path) -> None:
    experiment = make_experiment(optimizer=optimizer, lr=1e38, grad_clip=None, schedule="constant")
    run = TrainingRun(experiment, data, Listener(tmp_path))
    with pytest.raises(Diverged, match="not finite") as caught:
        run.run()
    assert failure_kind(caught.value) == "diverged"
    assert run.reporter.epochs == run.reporter.saved == list(range(1, run.epoch + 1))
    assert [p.name for p in run.reporter.checkpoints()] == [f"epoch-{e:05d}" for e in run.reporter.saved[::-1][:2]]


def test_weights_that_are_nan_diverge(data: SearchData, tmp_path: Path) -> None:
    run = train(make_experiment(), data, tmp_path, stop_after=1)
    with torch.no_grad():
        next(run.model.segmenter.parameters()).fill_(math.nan)
    with pytest.raises(Diverged):
        run.run_epoch()
    assert run.reporter.saved == [1]
    assert run.epoch == 1


def test_weights_that_the_last_step_spoiled_are_not_saved(data: SearchData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the losses of the epoch have seen them, nor, without a validation, any prediction."""
    run = TrainingRun(make_experiment(), data, Listener(tmp_path), validated=())
    run.run_epoch()
    step, steps = run.optimizer.step, []

    def spoil() -> None:
        step()
        steps.append(None)
        if len(steps) == 2:  # of six images in batches of three
            with torch.no_grad():
                next(run.model.segmenter.parameters()).fill_(math.inf)

    monkeypatch.setattr(run.optimizer, "step", spoil)
    with pytest.raises(Diverged, match="a weight is not finite after epoch 2") as caught:
        run.run_epoch()
    assert failure_kind(caught.value) == "diverged"
    assert (run.reporter.saved, run.epoch) == ([1], 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER])
def test_a_checkpoint_with_nan_is_damaged_and_says_nothing_of_the_configuration(
    name: str, value: float, data: SearchData, straight: TrainingRun, broken_off: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever wrote it and whatever its checksum: the trial must not be told as one that diverged."""
    experiment = make_experiment()
    shutil.copytree(broken_off, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "epoch-00003"
    tensors = load_file(newest / name)
    spoiled = sorted(key for key in tensors if tensors[key].ndim)[0]
    tensors[spoiled].view(-1)[0] = value
    save_weights(newest / name, tensors)
    state = json.loads((newest / STATE).read_text())
    state["checksums"][name] = zlib.crc32((newest / name).read_bytes())
    (newest / STATE).write_text(json.dumps(state))
    run = TrainingRun(experiment, data, Listener(tmp_path / "run"), reported=3)
    if name == OPTIMIZER and value == math.inf:
        assert run.epoch == 3  # the square of a large gradient may be infinite, and a run without a break goes on with it
        return
    assert run.epoch == 2
    assert f"the checkpoint is damaged: NaN or infinity in {spoiled}" in caplog.text
    assert str(newest) in caplog.text
    run.run()
    assert values(run) == values(straight)


def test_a_guide_that_is_nan_diverges(data: SearchData, tmp_path: Path) -> None:
    run = TrainingRun(make_experiment(guide=GUIDE), data, Listener(tmp_path))
    with torch.no_grad():
        run.model.tokenbook.prototypes.fill_(math.nan)  # type: ignore[union-attr]
    with pytest.raises(Diverged):
        run.run_epoch()


@pytest.mark.parametrize("kind", ["unet", "segguidino"])
def test_a_frozen_guide_never_changes_and_is_not_saved(kind: str, data: SearchData, tmp_path: Path) -> None:
    run = TrainingRun(make_experiment(kind, guide=GUIDE, epochs=2, weight_decay=0.1), data, Listener(tmp_path))
    backbone = run.model.backbone
    assert backbone is not None
    before = copy.deepcopy(backbone.state_dict())
    modes = []
    backbone.vit.register_forward_hook(lambda module, *_: modes.append(any(m.training for m in module.modules())))
    run.run()
    assert modes
    assert not any(modes)
    assert same_state(dict(backbone.state_dict()), dict(before))
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "checkpoints" / "epoch-00002" / WEIGHTS)
    assert not [name for name in saved if name.startswith("backbone.")]
    assert not any("backbone" in n for n, p in run.model.named_parameters() if p.requires_grad)


def test_only_adapters_of_a_lora_guide_change_and_are_saved(data: SearchData, tmp_path: Path) -> None:
    run = TrainingRun(make_experiment("segguidino", guide=LORA, epochs=1), data, Listener(tmp_path))
    before = copy.deepcopy(run.model.state_dict())
    run.run()
    changed = {n for n, v in run.model.state_dict().items() if n.startswith("backbone.") and not torch.equal(v, before[n])}
    assert changed
    assert all("lora_" in name for name in changed)
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "best" / WEIGHTS)
    assert {n for n in saved if n.startswith("backbone.")} == {n for n in before if n.startswith("backbone.") and "lora_" in n}


def test_validation_is_the_mean_score_of_thresholded_logits(data: SearchData, tmp_path: Path) -> None:
    table = data.validation
    run = TrainingRun(make_experiment(epochs=2), data, Listener(tmp_path))
    run.num_shown = len(table)
    run.run()
    shown = shown_cases(run, run.shown)
    assert [case.id for case in shown] == list(table.ids)
    scores = score_cases([c.prediction for c in shown], [table.mask(i) for i in range(len(table))])
    for name, value in summarise(scores).items():
        assert run.history[-1].metrics[f"val_{name}"] == pytest.approx(value, abs=1e-12)


def test_the_best_epoch_keeps_its_weights(data: SearchData, tmp_path: Path) -> None:
    run = train(make_experiment(epochs=4, lr=2e-2), data, tmp_path)
    best = max(run.history, key=lambda r: (r.metrics[OBJECTIVE], -r.epoch))
    state = json.loads((tmp_path / "best" / STATE).read_text())
    assert state["epoch"] == best.epoch
    assert run.best == best.metrics[OBJECTIVE]


def test_eight_demo_images_are_learned_by_heart(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    data = make_data(tmp_path, size=48, train=8, validation=1)
    data = SearchData(data.train, data.train, data.split, data.fingerprint, (), data.rules)  # validated on what it learns
    values = {"data": {"kind": "demo", "image_size": 48, "augmentation": "none"}, "guide": {"kind": "none"},
              "segmenter": {"kind": "unet", "base_width": 8},
              "training": {"epochs": 60, "batch_size": 4, "lr": 3e-3, "precision": "fp32", "schedule": "cosine",
                           "steps_per_epoch": "cases"}}  # fmt: skip
    run = TrainingRun(type(make_experiment()).from_dict(values), data, Listener(tmp_path / "run"))
    while not run.finished and run.best < 0.9:
        run.run_epoch()
    losses = [r.metrics["train_loss_total"] for r in run.history]
    assert run.best > 0.9
    assert losses[-1] < 0.75 * losses[0]


def test_the_same_experiment_trains_the_same_whatever_happened_before(data: SearchData, tmp_path: Path) -> None:
    experiment = make_experiment("unet", guide=GUIDE, epochs=1)
    runs = []
    for number in range(2):
        torch.manual_seed(number)
        runs.append(train(experiment, data, tmp_path / str(number)))
    assert values(runs[0]) == values(runs[1])
    other = train(make_experiment("unet", guide=GUIDE, epochs=1, seed=1), data, tmp_path / "other")
    assert values(other) != values(runs[0])


def test_a_shared_frozen_backbone_is_not_spoiled_by_lora_trials(data: SearchData, tmp_path: Path) -> None:
    frozen = TrainingRun(make_experiment("segguidino", guide=GUIDE, epochs=1), data, Listener(tmp_path / "a"))
    before = copy.deepcopy(dict(frozen.model.backbone.state_dict()))  # type: ignore[union-attr]
    train(make_experiment("segguidino", guide=LORA, epochs=1), data, tmp_path / "b")
    after = TrainingRun(make_experiment("segguidino", guide=GUIDE, epochs=1), data, Listener(tmp_path / "c"))
    assert after.model.backbone is frozen.model.backbone
    assert same_state(dict(after.model.backbone.state_dict()), before)  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", ["weights", "optimizer", "state", "missing state", "empty weights"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    damage: str, data: SearchData, straight: TrainingRun, broken_off: Path, tmp_path: Path
) -> None:
    experiment = make_experiment()
    shutil.copytree(broken_off, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "epoch-00003"
    name = {"weights": WEIGHTS, "optimizer": OPTIMIZER, "empty weights": WEIGHTS}.get(damage, STATE)
    content = (newest / name).read_bytes()
    if damage == "missing state":
        (newest / name).unlink()
    else:
        (newest / name).write_bytes(b"" if damage == "empty weights" else content[: len(content) // 2])
    run = TrainingRun(experiment, data, Listener(tmp_path / "run"), reported=3)
    assert run.epoch == 2
    run.run()
    assert values(run) == values(straight)
    assert same_state(run.model.trained_state(), straight.model.trained_state())


def test_when_all_checkpoints_are_damaged_it_starts_again(data: SearchData, tmp_path: Path) -> None:
    experiment = make_experiment(epochs=3)
    straight = train(experiment, data, tmp_path / "straight")
    train(experiment, data, tmp_path / "run", stop_after=2)
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        content = (folder / OPTIMIZER).read_bytes()
        (folder / OPTIMIZER).write_bytes(content[:100])
    run = TrainingRun(experiment, data, Listener(tmp_path / "run"), reported=2)
    assert run.epoch == 0
    run.run()
    assert same_state(run.model.trained_state(), straight.model.trained_state())
    assert values(run) == values(straight)


def test_a_crash_between_best_and_checkpoint_repeats_the_epoch(data: SearchData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that counts while ``best`` is still older would leave the wrong weights in ``best`` for good."""
    experiment = make_experiment(epochs=3)
    straight = train(experiment, data, tmp_path / "straight")
    best = max(range(3), key=lambda e: straight.history[e].metrics[OBJECTIVE]) + 1
    run = TrainingRun(experiment, data, Listener(tmp_path / "run"))
    for _ in range(best - 1):
        run.run_epoch()

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run.reporter, "_replace_best", crash)
    with pytest.raises(KeyboardInterrupt):
        run.run_epoch()
    shutil.rmtree(tmp_path / "run" / "best", ignore_errors=True)  # the worst that a crash between two renames leaves
    train(experiment, data, tmp_path / "run", reported=best - 1)
    for name in (WEIGHTS, STATE):
        left, right = (tmp_path / folder / "best" / name for folder in ("straight", "run"))
        if name == WEIGHTS:
            assert left.read_bytes() == right.read_bytes()
        assert right.exists()


def test_bf16_only_where_it_is_asked_for_or_native() -> None:
    cpu = torch.device("cpu")
    assert use_bf16("bf16", cpu)
    assert not use_bf16("fp32", cpu)
    assert isinstance(use_bf16("auto", cpu), bool)


def test_bf16_and_channels_last_train_to_finite_numbers(data: SearchData, tmp_path: Path) -> None:
    run = train(make_experiment("segguidino", guide=LORA, epochs=1, precision="bf16", channels_last=True), data, tmp_path)
    assert all(math.isfinite(v) for v in run.history[0].metrics.values())
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_initial_weights_do_not_depend_on_the_checkpoint_folder(data: SearchData, tmp_path: Path) -> None:
    experiment = make_experiment()
    run = TrainingRun(experiment, data, Listener(tmp_path))
    assert same_state(run.model.trained_state(), build_model(experiment).trained_state())
