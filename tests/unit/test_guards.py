"""Guards found by review: each of these once lost results, hung, or let a mistake through."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from test_study_driver import Run, result
from training_helpers import search_space

from guidino_tune.config import Data, Experiment, Resources
from guidino_tune.data import sealed
from guidino_tune.data.sources import find_cases
from guidino_tune.errors import UserError
from guidino_tune.running import cluster, environment
from guidino_tune.running.tune_adapter import StudySearcher
from guidino_tune.study.journal import mend_journal
from guidino_tune.study.outcomes import PATIENCE
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.study.trials import finished
from guidino_tune.training.evaluation import choose_cases
from guidino_tune.training.failures import failure_kind
from guidino_tune.workflows.checks import check_workers
from guidino_tune.workflows.search import _unwritable


def fail(driver: Run, kind: str) -> None:
    driver.driver.ask("t")
    driver.driver.report("t", result(1, 0.5))
    driver.driver.fail("t", kind, "no space left on device")
    driver.driver.tell("t", crashed=False)


def test_failures_of_the_machine_stop_a_search_and_do_not_use_it_up(tmp_path: Path) -> None:
    driver = Run(tmp_path)
    for _ in range(PATIENCE - 1):
        fail(driver, "environment")
    assert not driver.driver.given_up
    fail(driver, "environment")
    assert "no space left" in driver.driver.given_up
    assert StudySearcher(driver.driver).suggest("next") == "FINISHED"
    again = Run(tmp_path)
    assert [t.state for t in again.study.get_trials()] == [TrialState.FAIL] * PATIENCE
    assert again.driver.remaining == again.space.study.trials


def test_infeasible_configurations_are_results(tmp_path: Path) -> None:
    driver = Run(tmp_path)
    for kind in ("diverged", "out-of-memory", "diverged", "diverged"):
        fail(driver, kind)
    assert not driver.driver.given_up
    assert len(finished(driver.study)) == 4


def test_a_success_in_between_resets_the_patience(tmp_path: Path) -> None:
    driver = Run(tmp_path)
    fail(driver, "bug")
    fail(driver, "bug")
    driver.driver.ask("good")
    for epoch in range(1, driver.space.base.training.epochs + 1):
        driver.driver.report("good", result(epoch, 0.9))
    driver.driver.tell("good", crashed=False)
    fail(driver, "bug")
    assert not driver.driver.given_up


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("CUDA error: out of memory"), "out-of-memory"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), "out-of-memory"),
        (MemoryError(), "out-of-memory"),
        (OSError(28, "No space left on device"), "environment"),
        (UserError("corrupt"), "bad data"),
        (KeyError("x"), "bug"),
    ],
)
def test_failures_are_told_apart(error: Exception, kind: str) -> None:
    assert failure_kind(error) == kind


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_torn_last_line_of_the_journal_is_cut_off(tmp_path: Path, cut: int) -> None:
    space, folder = search_space(first_trials=[]), StudyFolder(tmp_path)
    study = open_study(space, folder)
    for _ in range(3):
        study.tell(study.ask(), 0.5)
    whole = folder.journal.read_bytes()
    folder.journal.write_bytes(whole[:-cut])
    for _ in range(2):  # the first opening after the crash always worked; the second one did not
        study = open_study(space, folder)
        study.tell(study.ask(), 0.5)
    assert len(study.get_trials()) in (4, 5)


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (OSError("Can't load the model for 'vits16'"), ["Can't load the model"]),
        (FileNotFoundError(2, "No such file or directory", "/weights/model.safetensors"), ["/weights/model.safetensors: No such file"]),
        (PermissionError(13, "Permission denied", "/weights/model.safetensors"), ["/weights/model.safetensors: access is not"]),
        (OSError(28, "No space left on device"), ["studies/small: the disk is full"]),
        (StorageInternalError("the server is gone"), ["studies/small: the study's database refuses (the server is gone)"]),
    ],
)
def test_an_error_while_a_trial_is_asked_for_tells_what_it_is_about(error: Exception, parts: list[str]) -> None:
    found = _unwritable(error, StudyFolder(Path("studies/small")))
    assert isinstance(found, UserError)
    for part in parts:
        assert part in str(found)


def test_a_whole_journal_is_left_alone(tmp_path: Path) -> None:
    for text in (b"", b"{}\n", b"{}\n" * 70_000):
        (tmp_path / "journal").write_bytes(text)
        mend_journal(tmp_path / "journal")
        assert (tmp_path / "journal").read_bytes() == text


def test_a_shared_database_refuses_another_search(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/team.db"
    open_study(search_space(first_trials=[]), StudyFolder(tmp_path / "mine"), url)
    open_study(search_space(first_trials=[]), StudyFolder(tmp_path / "yours"), url)
    with pytest.raises(UserError, match="other settings"):
        open_study(search_space(first_trials=[], study={"seed": 9}), StudyFolder(tmp_path / "theirs"), url)


def nodes(*sizes: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"Alive": True, "Resources": {"CPU": float(c), "GPU": float(g)} if g else {"CPU": float(c)}} for c, g in sizes]


def test_a_worker_must_fit_on_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: nodes((16, 0), (16, 1)))
    plan = cluster.plan(Resources())
    assert (plan.executor, plan.cpus, plan.gpus, plan.concurrent) == ("actor", 16, 1.0, 1)
    monkeypatch.setattr(ray, "nodes", lambda: nodes((16, 0), (4, 1), (4, 1)))
    plan = cluster.plan(Resources())
    assert (plan.cpus, plan.concurrent) == (4, 2)
    assert cluster.plan(Resources(gpus_per_worker=0.5)).concurrent == 4
    monkeypatch.setattr(ray, "nodes", lambda: nodes((8, 0), (8, 0)))
    assert cluster.plan(Resources(cpus_per_worker=8, workers=2)).concurrent == 1
    with pytest.raises(UserError, match="on one node each"):
        cluster.plan(Resources(cpus_per_worker=12))


def test_a_batch_is_shared_out_evenly() -> None:
    experiment = Experiment.from_dict({"data": {"kind": "demo"}})
    check_workers(experiment, 2)
    with pytest.raises(UserError, match="3 workers"):
        check_workers(experiment, 3)


def test_errors_cross_processes() -> None:
    error = pickle.loads(pickle.dumps(UserError("what", where="here", todo="this")))
    assert str(error) == str(UserError("what", where="here", todo="this"))


def test_the_seal_has_one_name() -> None:
    assert environment.SEAL == sealed.SEAL


def test_no_other_name_opens_the_sealed_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guidino_tune.data.sources.demo.COUNTS", {"train": 2, "validation": 1, "test": 1})
    data = Data(kind="demo", root=str(tmp_path / "demo"))
    images = find_cases(data).cases[0].image.parents[1]
    link = tmp_path / "innocent"
    link.symlink_to(images)
    for root in (images, link):
        with pytest.raises(UserError, match="sealed test"):
            choose_cases(tmp_path, data, "all", kind="folder", root=str(root), split_file=None, reason=None)


def test_another_data_set_has_other_names_of_files_and_patients(tmp_path: Path) -> None:
    data = Data(kind="folder", root=str(tmp_path / "mine"), images="photos", masks="instances:outlines", group="^(P[0-9]+)_")
    for name in ("images", "masks"):
        (tmp_path / "kvasir" / name).mkdir(parents=True)
        (tmp_path / "kvasir" / name / "a.jpg").touch()
    (tmp_path / "mine").mkdir()
    for name in ("photos", "outlines"):
        (tmp_path / "mine" / name).mkdir()
        (tmp_path / "mine" / name / "P1_0.png").touch()
        (tmp_path / "mine" / name / "P2_0.png").touch()
    cases = choose_cases(tmp_path, data, "all", kind="kvasir", root=str(tmp_path / "kvasir"), split_file=None, reason=None)
    assert [case.id for case in cases] == ["a"]


@pytest.mark.parametrize(("address", "named", "joined"), [("127.0.0.1:1", "", ""), ("127.0.0.1:1", "auto", "auto"), ("", "", "")])
def test_a_cluster_that_died_with_its_driver_is_not_joined(address: str, named: str, joined: str, tmp_path: Path) -> None:
    from guidino_tune.running.inspection import known_cluster

    (tmp_path / "ray").mkdir()
    note = tmp_path / "ray" / "ray_current_cluster"
    if address:
        note.write_text(address)
    assert known_cluster({"RAY_TMPDIR": str(tmp_path), "RAY_ADDRESS": named}) == joined
    assert note.exists() == bool(address and joined)  # else the state service would be looked for there


def test_a_cluster_that_answers_is_joined(tmp_path: Path) -> None:
    import socket

    from guidino_tune.running.inspection import known_cluster

    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        assert known_cluster({"RAY_TMPDIR": str(tmp_path)}) == address
