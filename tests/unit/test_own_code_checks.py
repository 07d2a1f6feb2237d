"""What the checks of a search, and a doctor, see of a user's own parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from test_own_code import module, space_of, stranger  # noqa: F401

from guidino_tune import targets
from guidino_tune.custom_loss import check_term
from guidino_tune.errors import UserError
from guidino_tune.losses import SegmentationLoss
from guidino_tune.space.space import read_space
from guidino_tune.workflows.checks import check_decisions
from guidino_tune.workflows.doctor import look_at_space


def test_a_terms_buffers_follow_the_loss_and_weights_of_its_own_are_refused(module: Callable[[str], str]) -> None:  # noqa: F811
    text = "class Term(nn.Module):\n    def __init__(self):\n        super().__init__()\n        {}\n    def forward(self, x, y):\n        "
    text += "return (x * self.own).mean()\n"
    buffer, weight = (
        module(text.format(line), "Term")
        for line in ('self.register_buffer("own", torch.ones(1))', "self.own = nn.Parameter(torch.ones(1))")
    )
    targets.trust(buffer, weight)
    fine = space_of(loss={"custom": {"target": buffer}}).base
    check_term(fine)
    assert SegmentationLoss(fine.loss).to("meta").custom.own.is_meta  # type: ignore[union-attr]
    with pytest.raises(UserError, match="has weights of its own, which nothing trains"):
        check_term(space_of(loss={"custom": {"target": weight}}).base)


def test_a_pattern_among_the_settings_trusts_nothing() -> None:
    targets.trust_values(["*", "images/*.png", "os:system ", "0.5"])
    assert targets.packed()["trusted"] == ["os:system"]


def test_a_short_list_is_rehearsed_no_longer_than_it_is() -> None:
    values = space_of(space={"training.lr": {"type": "float", "low": 1e-4, "high": 1e-2}}).to_dict() | {
        "first_trials": [{"training.lr": 1e-3}]
    }
    values["study"] |= {"sampler": "listed", "pruner": "optuna.pruners:MedianPruner"}
    targets.trust(values["study"]["pruner"])
    check_decisions(read_space(values, source="mine.yaml"))


def test_a_doctor_sees_a_space_with_own_parts_as_a_search_does(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(space_of(trusted=False, study={"pruner": "optuna.pruners:NoSuchPruner"}).to_dict()))
    problems = {f.name: f.found for f in look_at_space("mine.yaml") if f.mark == "missing"}
    assert "models" not in problems
    assert "has no 'NoSuchPruner'" in problems["sampler and pruner"]
