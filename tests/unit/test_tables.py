"""The leaderboard and the live table of any space, at any width: numbers are never cut, and the parameters that differ stand first."""

from __future__ import annotations

import io
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from guidino_tune.config import Data, Experiment, Resources, Study
from guidino_tune.space.parameters import Parameter
from guidino_tune.space.space import Space
from guidino_tune.space.suggest import suggest
from guidino_tune.workflows.closing import leaderboard_text
from guidino_tune.workflows.progress import Progress, hidden_line, leaderboard
from guidino_tune.workflows.tables import headings, most_telling, print_table

LONG = "/models/of/the/clinic/dinov3-vits16-pretrain-lvd1689m-and-more"
RANGE: dict[str, Any] = {"type": "float", "low": 0.001, "high": 0.9}
FIFTEEN = {
    "training.lr": {**RANGE, "log": True},
    "training.lora_lr": {**RANGE, "log": True},
    "training.backbone_lr": RANGE,
    "training.weight_decay": RANGE,
    "training.batch_size": {"type": "int", "low": 1, "high": 64},
    "training.epochs": {"choices": [9, 18]},
    "loss.lambda_guide": RANGE,
    "loss.hinge_weight": RANGE,
    "loss.focal.weight": RANGE,
    "loss.tversky.weight": RANGE,
    "guide.kind": {"choices": ["none", "dino"]},
    "guide.backbone": {"choices": [LONG, LONG[::-1]]},
    "guide.lora.rank": {"choices": [0, 4]},
    "guide.tokenbook.num_prototypes": {"type": "int", "low": 8, "high": 1024},
    "segmenter.kind": {"choices": ["unet", "nnwnet"]},
}


def space_of(parameters: dict[str, dict[str, Any]]) -> Space:
    made = {path: Parameter(**({"type": "choice"} | given)) for path, given in parameters.items()}
    return Space(
        base=Experiment(data=Data(kind="demo")), parameters=made, first_trials=(), study=Study(name="mine"), resources=Resources(),
        source="a test",
    )  # fmt: skip


def study_of(space: Space, trials: int = 14) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=3), study_name="mine")
    for number in range(trials):
        trial = study.ask()
        suggest(space, trial)
        trial.set_user_attr("epochs", 18)
        trial.set_user_attr("name", ("GuiDINO-U", "Seg-GuiDINO-LoRA")[number % 2])
        trial.report(0.01 * number + 0.1, 18)
        if number < trials - 1:
            study.tell(trial, 0.01 * number + 0.1) if number % 3 else study.tell(trial, state=TrialState.PRUNED)
    return study


def printed(what: Any, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), soft_wrap=True, markup=False, emoji=False, highlight=False)
    if hasattr(what, "columns"):
        print_table(console, what)
    else:
        console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_headings_are_short_and_tell_every_parameter_apart() -> None:
    found = headings(space_of(FIFTEEN))
    assert len(set(found.values())) == len(FIFTEEN)
    assert found["loss.lambda_guide"] == "lambda"
    assert found["guide.lora.rank"] == "LoRA rank"
    assert (found["segmenter.kind"], found["guide.kind"]) == ("segmenter", "guide")
    assert (found["loss.focal.weight"], found["loss.tversky.weight"]) == ("focal.weight", "tversky.weight")
    assert found["training.weight_decay"] == "weight_decay"
    assert found["training.epochs"] == "training.epochs"  # `epochs` are those that a trial has trained


def test_parameters_that_differ_most_between_the_shown_trials_stand_first() -> None:
    space = space_of({"training.lr": {**RANGE, "log": True}, "loss.lambda_guide": RANGE, "guide.lora.rank": {"choices": [0, 4]}})
    rows = [(0.01, 0.001, 4), (0.011, 0.45, 4), (0.012, 0.9, 4)]
    trials = [optuna.trial.create_trial(params=dict(zip(space.parameters, row, strict=True)), value=0.5, distributions={
        path: optuna.distributions.CategoricalDistribution([value]) for path, value in zip(space.parameters, row, strict=True)
    }) for row in rows]  # fmt: skip
    assert most_telling(space, trials) == ["loss.lambda_guide", "training.lr", "guide.lora.rank"]
    assert most_telling(space, trials[:1]) == most_telling(space, []) == list(space.parameters)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_width_cuts_rank_trial_epochs_dice_or_state(width: int) -> None:
    space = space_of(FIFTEEN)
    study = study_of(space)
    table, hidden = leaderboard(study, space, 10, width)
    lines = printed(table, width).splitlines()
    heading = lines[0]
    assert max(len(line.rstrip()) for line in lines) <= width
    assert heading.split()[:2] == ["rank", "trial"]
    assert heading.split()[-4:] == ["epochs", "val", "Dice", "state"]
    assert "…" not in "".join(lines)
    at = heading.rindex("epochs")
    rows = [line for line in lines[1:] if line[5:10].strip()]
    assert [row[:10].split()[-1] for row in rows if row[:4].strip()] == ["11", "10", "8", "7", "5", "4", "2", "1"]
    for row in rows:
        epochs, dice, *state = row[at:].split()
        assert (epochs, dice) == ("18", f"{0.01 * int(row[5:10]) + 0.1:.4f}")
        assert " ".join(state) in ("complete", "stopped early")
    shown = [name for name in headings(space).values() if name not in hidden]
    assert all(name in heading for name in shown)
    assert len(shown) + len(hidden) == 15 + ("system" in hidden)
    assert bool(hidden) == (width < 200) or width == 200
    line = hidden_line(hidden, "mine", "leaderboard.txt")
    assert line.startswith(f"{len(hidden)} columns do not fit (")
    assert line.endswith("show mine --format csv, leaderboard.txt")
    assert hidden_line([], "mine") == ""


def test_a_long_value_is_folded_and_not_cut() -> None:
    space = space_of({"guide.backbone": FIFTEEN["guide.backbone"], "training.lr": RANGE})
    lines = printed(leaderboard(study_of(space, 3), space, 10, 120)[0], 120).splitlines()
    at = lines[0].index("backbone")
    assert LONG in "".join(line[at : at + 24].strip() for line in lines) or LONG[::-1] in "".join(
        line[at : at + 24].strip() for line in lines
    )


def test_the_file_has_every_column_in_whole_lines() -> None:
    space = space_of(FIFTEEN)
    study = study_of(space, 40)
    title, heading, *rows = leaderboard_text(study, space).splitlines()
    assert title == "Study mine"
    assert all(name in heading for name in headings(space).values())
    assert len(rows) == 39
    assert all(LONG in row or LONG[::-1] in row or " none " in row for row in rows)  # without a guide there is no backbone


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_live_table_fits_too(width: int) -> None:
    space = space_of(FIFTEEN)
    console = Console(width=width, file=io.StringIO(), force_terminal=True)
    lines = printed(Progress(study_of(space), space, console).draw(), width).splitlines()
    table = [line.rstrip() for line in lines if line[:4] in ("best", "now ")]  # none of them waits
    heading = next(line for line in lines if line.split()[:1] == ["trial"])
    assert len(table) == 4
    assert max(map(len, table)) <= width
    assert all(line.split()[-2] == "18/18" for line in table)
    assert all(f"{0.01 * int(line.split()[1]) + 0.1:.4f}" == line.split()[-1] for line in table)
    assert heading.split()[-2:] == ["epoch", "Dice"]
