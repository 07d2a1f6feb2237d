"""What a process looks at before it trains on its node."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guidino_tune.config import Data, Resources
from guidino_tune.running import process
from guidino_tune.running.cluster import Plan
from guidino_tune.training.failures import UnfitNode, failure_kind

DATA = Data(kind="demo")
PLAN = Plan("actor", 1, 1, 0.0, 1.0, 0.0)


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process."""
    for check in (process._check_folder, process._check_data, process._check_versions, process._check_gpu, process._check_precision):
        check.cache_clear()
    monkeypatch.setattr(process, "MOUNTS", 0.0)


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    """To every process of a run."""
    return process.process_settings(PLAN, Resources(), ray_folder=tmp_path / "study" / "ray") | {"folder": str(tmp_path / "study/trials/0")}


def test_a_node_like_the_drivers_is_fit(told: dict[str, Any], tmp_path: Path) -> None:
    process.check_node(told, Data(kind="folder", root=str(tmp_path)))


def test_a_folder_that_is_not_shared_is_told_from_one_that_is_missing(told: dict[str, Any], tmp_path: Path) -> None:
    marker = Path(told["mark"][0])
    marker.write_text("of an earlier run, copied here")
    with pytest.raises(UnfitNode, match="study: the study's folder is another folder there than on the driver's machine"):
        process.check_node(told, DATA)
    (tmp_path / "study").rename(tmp_path / "elsewhere")
    with pytest.raises(UnfitNode, match="study: the study's folder is not there") as caught:
        process.check_node(told, DATA)
    assert "mount GUIDINO_TUNE_HOME on every node" in str(caught.value)
    assert failure_kind(caught.value) == "environment"
    assert not (tmp_path / "study").exists()  # else a trial would train into a folder that nobody else sees


def test_a_slow_network_file_system_is_waited_for(told: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    marker, mark = Path(told["mark"][0]), told["mark"][1]
    monkeypatch.setattr(process, "MOUNTS", 20.0)
    marker.unlink()
    late = threading.Timer(0.5, lambda: marker.write_text(mark))
    late.start()
    process.check_node(told, DATA)
    late.join()


def test_missing_data_are_no_damaged_data(told: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnfitNode, match="the data are not there"):
        process.check_node(told, Data(kind="folder", root=str(tmp_path / "not-mounted")))


def test_builds_of_one_version_are_alike_and_versions_are_not(told: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert told["versions"]["torch"] == torch.__version__.partition("+")[0]
    monkeypatch.setattr(process, "version", lambda name: {"torch": told["versions"]["torch"] + "+cu130"}.get(name, told["versions"][name]))
    process.check_node(told, DATA)
    process._check_versions.cache_clear()
    monkeypatch.setattr(process, "version", lambda name: {"torch": "2.11.0"}.get(name, told["versions"][name]))
    with pytest.raises(UnfitNode, match=r"torch 2\.11\.0 instead of "):
        process.check_node(told, DATA)


def test_a_full_disk_is_told_before_a_checkpoint_fails(told: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.shutil, "disk_usage", lambda path: SimpleNamespace(free=3_000_000))
    with pytest.raises(UnfitNode, match="only 3 MB are free"):
        process.check_node(told, DATA)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU works")
def test_a_gpu_that_does_not_work_is_no_bug(told: dict[str, Any]) -> None:
    with pytest.raises(UnfitNode, match="its GPU does not work: "):
        process.check_node(told | {"gpus": 1.0}, DATA)


@pytest.mark.parametrize(
    ("precision", "native", "fit"), [("bf16", False, False), ("bf16", True, True), ("fp32", False, True), ("", False, True)]
)
def test_a_node_without_the_precision_of_the_study_is_unfit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, native: bool, fit: bool
) -> None:
    from guidino_tune.models import precision as computing

    monkeypatch.setattr(computing.torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    told = process.process_settings(PLAN, Resources(), ray_folder=tmp_path / "study" / "ray", precision=precision) | {
        "folder": str(tmp_path)
    }
    if fit:
        process.check_node(told, DATA)
        return
    with pytest.raises(UnfitNode, match="its processor does not compute in bf16, the precision of this study") as caught:
        process.check_node(told, DATA)
    assert "resources.accelerator" in str(caught.value)
    assert failure_kind(caught.value) == "environment"


@pytest.mark.parametrize(("capability", "fit"), [((8, 0), True), ((7, 0), True), ((6, 1), False)])
def test_a_study_in_fp16_is_for_gpus_with_tensor_cores(
    capability: tuple[int, int], fit: bool, told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(process, "_check_gpu", lambda: None)
    wanted = told | {"precision": "fp16"}
    with pytest.raises(UnfitNode, match="its processor does not compute in fp16, the precision of this study"):
        process.check_node(wanted, DATA)
    if fit:
        process.check_node(wanted | {"gpus": 1.0}, DATA)
    else:
        with pytest.raises(UnfitNode, match="does not compute in fp16"):
            process.check_node(wanted | {"gpus": 1.0}, DATA)
