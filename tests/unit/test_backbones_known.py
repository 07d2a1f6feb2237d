"""Guide backbones are known by what they are: other weights at the same path are refused, the same ones at another path accepted."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from backbone_helpers import guide_on, of, save_model, small_model
from training_helpers import Listener, make_data, make_experiment, train

from guidino_tune import known_backbones as known
from guidino_tune.config import DINOGuide, Experiment
from guidino_tune.errors import UserError
from guidino_tune.known_backbones import Known, expecting
from guidino_tune.models import fingerprints
from guidino_tune.models.backbone import check_backbone, fingerprint_of, load_backbone
from guidino_tune.training.loop import TrainingRun
from guidino_tune.training.model_folder import export_model, load_model

FINGERPRINT = "[0-9a-f]{32}"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    assert known.packed() == []  # nothing that a command expected outlives it


# ------------------------------------------------------------------------------------------------------------- fingerprints


def test_a_fingerprint_is_of_the_weights_not_of_their_place_or_files(tmp_path: Path) -> None:
    first = check_backbone(of(save_model(tmp_path / "a")))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    small_model("dinov3_vit").save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(first) == fingerprints.DIGITS
    assert check_backbone(of(tmp_path / "b")) == check_backbone(of(tmp_path / "parts")) == first
    assert check_backbone(of(save_model(tmp_path / "c", other=True))) != first


@pytest.mark.parametrize(("field", "value"), [("num_attention_heads", 4), ("rope_theta", 1000.0), ("layer_norm_eps", 1e-3)])
def test_a_configuration_that_changes_features_changes_the_fingerprint(tmp_path: Path, field: str, value: float) -> None:
    folder = save_model(tmp_path / "a")
    images = torch.rand(1, 3, 32, 32)
    first, before = fingerprint_of(of(folder)), load_backbone(of(folder))(images).last
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    assert not torch.equal(load_backbone(of(folder))(images).last, before)
    assert fingerprint_of(of(folder)) != first


def test_what_no_feature_has_part_in_leaves_the_fingerprint(tmp_path: Path) -> None:
    first = fingerprint_of(of(save_model(tmp_path / "a")))
    model = small_model("dinov3_vit", drop_path_rate=0.1)
    with torch.no_grad():
        model.embeddings.mask_token += 1.0
    model.save_pretrained(tmp_path / "b")
    assert fingerprint_of(of(tmp_path / "b")) == first


def test_random_weights_are_known_by_their_architecture(tmp_path: Path) -> None:
    tiny = DINOGuide(backbone="tiny", weights="random")
    assert check_backbone(tiny) == fingerprint_of(tiny) == load_backbone(tiny).fingerprint
    folder = save_model(tmp_path / "a")
    random = DINOGuide(backbone=str(folder), weights="random")
    first = fingerprint_of(random)
    assert first not in (fingerprint_of(tiny), fingerprint_of(of(folder)))
    assert fingerprint_of(DINOGuide(backbone=str(save_model(tmp_path / "b", other=True)), weights="random")) == first


def test_a_fingerprint_is_kept_for_the_same_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "a")
    computed: list[bool] = []
    whole = fingerprints.fingerprint
    monkeypatch.setattr(fingerprints, "fingerprint", lambda *a, **k: computed.append(True) or whole(*a, **k))  # type: ignore[func-returns-value]
    monkeypatch.setattr(fingerprints, "_SETTLED", 0.0)
    time.sleep(0.01)
    first = fingerprint_of(of(folder))
    assert load_backbone(of(folder)).fingerprint == fingerprint_of(of(folder)) == first
    assert len(computed) == 1
    times = (folder / "model.safetensors").stat()
    save_model(tmp_path / "b", other=True)
    shutil.copyfile(tmp_path / "b" / "model.safetensors", folder / "model.safetensors")
    os.utime(folder / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))  # as `cp --preserve` does: size and time are the same
    assert fingerprint_of(of(folder)) != first
    assert len(computed) == 2
    monkeypatch.setattr(fingerprints, "_SETTLED", 3600.0)  # what changed just now may change again within the same tick
    (folder / "config.json").touch()
    fingerprint_of(of(folder)), fingerprint_of(of(folder))
    assert len(computed) == 4


def test_a_cache_that_cannot_be_written_or_read_is_no_problem(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_SETTLED", 0.0)
    folder = save_model(tmp_path / "a")
    home.mkdir(parents=True)
    (home / "cache").write_text("a file")
    first = fingerprint_of(of(folder))
    (home / "cache").unlink()
    assert fingerprint_of(of(folder)) == first
    for file in (home / "cache" / "backbones").iterdir():
        file.write_text("{")
    assert fingerprint_of(of(folder)) == first


# --------------------------------------------------------------------------------------------------------------- expectations


def test_places_and_fingerprints_are_expected_inside_only(tmp_path: Path) -> None:
    here, there = save_model(tmp_path / "here"), save_model(tmp_path / "there", other=True)
    with expecting({str(here): Known(place=str(there))}), expecting({str(here): Known(place="/nowhere")}):
        assert known.place_of(str(here)) == str(there)  # what was said first holds
        assert fingerprint_of(of(here)) == fingerprint_of(of(there))
        layers = known.packed()
    assert known.place_of(str(here)) == str(here)
    known.adopt(layers)
    assert known.place_of(str(here)) == str(there)
    known.adopt(())
    wanted = Known(fingerprint=fingerprint_of(of(here)), owner="study 'x'", otherwise="do that")
    with expecting({str(here): wanted}), expecting({known.ANY: Known(place=str(there))}), pytest.raises(UserError) as error:
        load_backbone(of(here))
    text = str(error.value)
    for part in (fingerprint_of(of(here)), fingerprint_of(of(there)), "study 'x'", str(there), "--backbone DIR", "do that"):
        assert part in text


def test_the_option_names_one_of_several(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "a=b")
    place = {"place": str(folder)}
    assert {k: v.place for k, v in known.chosen([str(folder)]).items()} == {known.ANY: str(folder)}
    assert known.chosen([str(folder)], ["vits16", "/old"]) == {"/old": Known(**place)}
    assert known.chosen([f"vits16={folder}"], ["vits16", "/old"]) == {"vits16": Known(**place)}
    for text, names, message in (
        (str(folder), ["/old", "/older"], "--backbone OLD=DIR: /old, /older"),
        (f"/oldest={folder}", ["/old"], "no backbone is called '/oldest'"),
        ("/nowhere", ["/old"], "no such folder"),
        (str(folder), [], "leave it out"),
    ):
        with pytest.raises(UserError) as error:
            known.chosen([text], names)
        assert message in str(error.value)


# ------------------------------------------------------------------------------------------------------- trials and their models


def test_a_trial_does_not_go_on_with_other_weights(tmp_path: Path) -> None:
    data, folder = make_data(tmp_path), save_model(tmp_path / "weights")
    experiment = make_experiment(guide=guide_on(folder))
    train(experiment, data, tmp_path / "trial", stop_after=2)
    first = fingerprint_of(of(folder))
    assert json.loads((tmp_path / "trial" / "checkpoints" / "epoch-00002" / "state.json").read_text())["backbone"] == first
    shutil.move(folder, tmp_path / "moved")
    with expecting({str(folder): Known(place=str(tmp_path / "moved"))}):
        assert TrainingRun(experiment, data, Listener(tmp_path / "trial")).epoch == 2
    save_model(folder, other=True)
    with pytest.raises(UserError, match=f"checkpoint.*fingerprint {FINGERPRINT}, not {first}"):
        TrainingRun(experiment, data, Listener(tmp_path / "trial"))
    # Nor does an older checkpoint, which has no fingerprint, keep anybody from going on.
    state = next((tmp_path / "trial" / "checkpoints").glob("*2")) / "state.json"
    state.write_text(json.dumps({k: v for k, v in json.loads(state.read_text()).items() if k != "backbone"}))
    assert TrainingRun(experiment, data, Listener(tmp_path / "trial")).epoch == 2


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Path, Experiment]:
    """A trial's folder, the folder of its backbone, and what was trained."""
    folder = save_model(tmp_path / "weights")
    experiment = make_experiment(guide=guide_on(folder), epochs=1)
    train(experiment, make_data(tmp_path), tmp_path / "trial")
    (tmp_path / "trial" / "experiment.yaml").write_text(experiment.to_yaml())
    return tmp_path / "trial", folder, experiment


@pytest.mark.parametrize("exported", [True, False])
def test_a_model_is_not_used_with_other_weights(tmp_path: Path, model: tuple[Path, Path, Experiment], exported: bool) -> None:
    trial, folder, experiment = model
    first = fingerprint_of(of(folder))
    used = export_model(trial / "best", experiment, tmp_path / "model", {"trial": 3}) if exported else trial
    if exported:
        noted = yaml.safe_load((used / "provenance.yaml").read_text())
        assert noted["backbone"] == {"name": str(folder), "fingerprint": first, "place": str(folder)}
    images = torch.rand(1, 3, 32, 32)
    before = load_model(used)[0](images).logits[0]
    shutil.move(folder, tmp_path / "moved")
    with pytest.raises(UserError, match="no such folder") as refused:
        load_model(used)
    assert "name the folder where they are now by --backbone DIR" in refused.value.todo  # and no other backbone
    with expecting(known.chosen([str(tmp_path / "moved")])):
        assert torch.equal(load_model(used)[0](images).logits[0], before)
    save_model(folder, other=True)
    with pytest.raises(UserError, match=f"the model in .*fingerprint {FINGERPRINT}, not {first}"):
        load_model(used)


def test_a_model_finds_the_place_where_it_was_trained(tmp_path: Path, model: tuple[Path, Path, Experiment]) -> None:
    trial, folder, experiment = model
    shutil.move(folder, tmp_path / "moved")
    with expecting(known.chosen([str(tmp_path / "moved")])):
        used = export_model(trial / "best", experiment, tmp_path / "model", {})
    load_model(used)
    (tmp_path / "backbones.yaml").write_text(yaml.safe_dump({str(folder): {"fingerprint": "", "place": str(tmp_path / "moved")}}))
    load_model(trial)  # its study, above it, knows


def test_an_older_model_is_used_with_a_note(model: tuple[Path, Path, Experiment], caplog: pytest.LogCaptureFixture) -> None:
    trial, folder, _ = model
    load_model(trial)
    assert not caplog.records
    state = trial / "best" / "state.json"
    values = json.loads(state.read_text())
    del values["backbone"]
    state.write_text(json.dumps(values))
    load_model(trial)
    assert f"did not note the fingerprint of {folder}" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_trained_weights_that_are_no_numbers_are_refused(model: tuple[Path, Path, Experiment], value: float) -> None:
    from safetensors.torch import load_file, save_file

    trial, _, _ = model
    weights = load_file(trial / "best" / "weights.safetensors")
    name = sorted(weights)[3]
    weights[name].view(-1)[0] = value
    save_file(weights, trial / "best" / "weights.safetensors")
    with pytest.raises(UserError, match=f"NaN or infinity in {name}"):
        load_model(trial)
