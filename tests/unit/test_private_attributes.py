"""Private attributes of libraries: in one file for each library, and each means on the installed version what that file takes it for."""

from __future__ import annotations

import ast
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState

from guidino_tune.models.torch_private import add_to_all
from guidino_tune.running import ray_private
from guidino_tune.study import optuna_private
from guidino_tune.study.journal import Journal, open_journal

PACKAGE = Path(__file__).parents[2] / "guidino_tune"
ALLOWED = {"study/optuna_private.py", "running/ray_private.py", "models/torch_private.py"}
"""One file for each library. Of MLflow and the standard library nothing private is used."""
PUBLIC = {"os._exit"}
"""Documented, in spite of their names."""


def private_uses(text: str) -> list[str]:
    """Attributes with an underscore of anything but ``self`` and ``cls``, and what is imported from private modules of others."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and ast.unparse(node.value) not in ("self", "cls"):
            if ast.unparse(node) in PUBLIC:
                continue
            found.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            names = [part for alias in node.names for part in f"{module}.{alias.name}".split(".")]
            if not module.startswith("guidino_tune") and any(map(_is_private, names)):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr", "delattr"):
            name = node.args[1] if len(node.args) > 1 else None
            found += [f"{node.lineno}: {ast.unparse(node)}"] if isinstance(name, ast.Constant) and _is_private(str(name.value)) else []
    return found


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def test_private_attributes_of_others_stand_in_their_own_files() -> None:
    uses = {path.relative_to(PACKAGE).as_posix(): private_uses(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    assert {file: found for file, found in uses.items() if found and file not in ALLOWED} == {}
    assert all(uses[file] for file in ALLOWED)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("study._storage", 1),
        ("self.study._storage.get(trial._trial_id)", 2),
        ("getattr(study, '_storage')", 1),
        ("from ray._raylet import X", 1),
        ("import ray._private.services", 1),
        ("from optuna.samplers._tpe.sampler import default_gamma", 1),
        ("self._own; cls._own; x.__class__; getattr(self, name); from guidino_tune.a import _b", 0),
    ],
)
def test_the_search_finds_them(text: str, found: int) -> None:
    assert len(private_uses(text)) == found, private_uses(text)


# ----------------------------------------------------------------------------------------------------- what Optuna's must mean


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    study = optuna.create_study(storage=open_journal(tmp_path / "journal"), directions=["maximize", "minimize"])
    for number in range(3):
        study.ask().set_user_attr("place", number)
    return study


def test_study_storage_and_id_lead_to_a_trial_by_its_number(study: optuna.Study) -> None:
    assert [optuna_private.stored_trial(study, n).user_attrs["place"] for n in range(3)] == [0, 1, 2]


def test_the_listed_journal_lists_what_optuna_does_with_every_state(study: optuna.Study) -> None:
    study.enqueue_trial({"x": 1.0})
    study.add_trial(optuna.create_trial(values=[0.0, 1.0]))
    study.enqueue_trial({"x": 2.0})
    storage, plain = study._storage, optuna.storages.JournalStorage(optuna_private.backend(study))  # type: ignore[arg-type]
    for _ in range(4):
        for states in (None, (TrialState.WAITING,), (TrialState.RUNNING, TrialState.COMPLETE)):
            assert storage.get_all_trials(0, False, states) == plain.get_all_trials(0, False, states)
        study.ask()
        study.enqueue_trial({"x": 3.0})
    optuna.create_study(storage=storage, study_name="another").ask()
    assert len(study.get_trials(deepcopy=False)) == len(plain.get_all_trials(0)) == 10
    assert [t.number for t in storage.get_all_trials(1, False)] == [0]


def test_trial_id_of_a_frozen_trial_goes_on_with_that_trial(study: optuna.Study) -> None:
    again = optuna_private.running_trial(study, study.get_trials()[1])
    again.set_user_attr("again", True)
    assert ["again" in t.user_attrs for t in study.get_trials()] == [False, True, False]


def test_storage_takes_a_value_of_an_epoch_with_several_objectives(study: optuna.Study) -> None:
    trial = optuna_private.running_trial(study, study.get_trials()[2])
    with pytest.raises(NotImplementedError):
        trial.report(0.5, 7)  # once it does not, `report` is no longer needed
    optuna_private.report(trial, 0.5, 7)
    assert study.get_trials()[2].intermediate_values == {7: 0.5}


def test_backend_of_a_journal_is_its_file(study: optuna.Study, tmp_path: Path) -> None:
    journal = optuna_private.backend(study)
    assert isinstance(journal, Journal)
    assert journal.path == tmp_path / "journal"
    assert optuna_private.backend(optuna.create_study()) is None


def test_create_new_trial_of_a_database_gives_the_trial_that_it_made(tmp_path: Path) -> None:
    database = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/one.db")
    study = optuna.create_study(storage=database)
    template = optuna.create_trial(state=TrialState.WAITING, user_attrs={"first": True})
    for given in (None, template):
        made = optuna_private.create_trial(database, optuna_private.study_id(study), given)
        assert made == database.get_trial(optuna_private.trial_id(made))


def test_rng_is_where_the_random_sampler_draws_from() -> None:
    sampler = optuna.samplers.RandomSampler()
    study, x = optuna.create_study(sampler=sampler), optuna.distributions.FloatDistribution(0, 1)
    study.add_trial(optuna.create_trial(params={"x": 0.5}, distributions={"x": x}, value=0.0))
    drawn = []
    for seeds in ([1, 2], [1, 2], [1, 3]):
        optuna_private.seed(sampler, seeds)
        drawn.append(sampler.sample_independent(study, study.get_trials()[0], "x", x))
    assert drawn[0] == drawn[1] != drawn[2]


def test_ray_tells_the_loss_of_a_node_in_a_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import worker

    # Whoever listens to messages of the cluster looks the function up in its module, each time.
    assert "print_to_stdstream" in worker.listen_error_messages.__code__.co_names
    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    for _ in range(2):
        ray_private.shorten_messages()
    dead = "The node with address: 10.0.0.2 has been marked dead. This can happen when a \n(1) raylet crashes\n(2) raylet lags"
    worker.print_to_stdstream({"lines": [dead], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    worker.print_to_stdstream(
        {"lines": ["one. two"], "pid": 7, "ip": "10.0.0.2", "is_err": False, "localhost": "10.0.0.1"}, ignore_prefix=True
    )
    shown = capsys.readouterr().out
    assert "10.0.0.2 has been marked dead.\n" in shown
    assert "happen" not in shown
    assert "one. two" in shown


def test_torch_adds_to_all_tensors_in_place() -> None:
    tensors = [torch.tensor(number) for number in range(3)]
    add_to_all(tensors, 2)
    assert [int(tensor) for tensor in tensors] == [2, 3, 4]
