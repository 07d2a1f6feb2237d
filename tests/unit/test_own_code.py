"""A user's own network, loss term, sampler and pruner: checked before anything is spent, and never imported for a stranger's file."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from test_study_driver import Run, result
from training_helpers import search_space

from guidino_tune import predict, targets
from guidino_tune.config import Experiment, Study
from guidino_tune.data.sources.demo import generate
from guidino_tune.errors import UserError
from guidino_tune.losses import SegmentationLoss
from guidino_tune.models import build_model
from guidino_tune.space.check import check_space
from guidino_tune.space.space import Space, load_space, override, read_space
from guidino_tune.study.pruners import rungs, validated_epochs
from guidino_tune.study.store import StudyFolder, open_study
from guidino_tune.training.checkpoints import WEIGHTS, save_weights
from guidino_tune.training.failures import failure_kind
from guidino_tune.training.model_folder import export_model, load_model
from guidino_tune.workflows.checks import changed_code, check_decisions, check_models, check_search

NET = {"kind": "custom", "target": "own_parts:plain"}
TINY = {"kind": "custom", "target": "own_parts:TinyNet", "gates": ["bottleneck"]}
GUIDE = {"kind": "dino", "backbone": "tiny", "weights": "random"}
NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process in a folder of its own, which has been told of no code."""
    monkeypatch.setattr(targets, "_trusted", set())
    monkeypatch.setattr(targets, "_folders", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def module(tmp_path: Path) -> Callable[[str], str]:
    """Writes a module into the present folder, and gives its name with that of what is in it."""

    def write(text: str, what: str = "Net") -> str:
        name = f"own_module_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(f"import torch\nfrom torch import nn\n{text}")
        return f"{name}:{what}"

    return write


def space_of(segmenter: dict[str, Any] = NET, space: dict[str, Any] | None = None, trusted: bool = True, **sections: Any) -> Space:
    experiment = {"data": {"kind": "demo", "image_size": 32}, "guide": {"kind": "none"}, "segmenter": segmenter}
    study = {"pruner": "none", **sections.pop("study", {})}
    made = read_space({"experiment": experiment | sections, "space": space or {}, "study": study}, source="mine.yaml")
    targets.trust(*(made.targets if trusted else ()))
    return made


@pytest.mark.usefixtures("few")
def test_the_example_of_the_page_works(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "own-parts.md").read_text()
    (code,), (space,) = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("python", "yaml"))
    (tmp_path / code.split()[1]).write_text(code)
    (tmp_path / "mine.yaml").write_text(space)
    made = load_space("mine.yaml")
    assert check_search(made, StudyFolder(tmp_path / "study")) == []
    assert build_model(made.base).segmenter.network.last.in_channels == 16  # type: ignore[union-attr]
    assert SegmentationLoss(made.base.loss).custom is not None


# -------------------------------------------------------------------------------------------------------------- configuration


def test_it_has_the_name_of_its_class() -> None:
    assert [space_of(TINY, guide=guide).base.name for guide in ({"kind": "none"}, GUIDE)] == ["TinyNet", "GuiDINO-TinyNet"]
    assert space_of(TINY, guide=GUIDE).base.gate == "bottleneck"
    assert space_of(NET, guide=GUIDE).base.gate == "input"


@pytest.mark.parametrize(
    ("segmenter", "message"),
    [
        ({}, "segmenter.target: is missing"),
        ({"target": "own_parts.TinyNet"}, "module:name, such as my_package.nets:MyNet"),
        ({"options": {"width": [1, 2]}}, "width: one value is needed"),
        ({"options": {"no name": 1}}, "'no name' is no name of a keyword argument"),
        ({"options": {"x": float("nan")}}, "x: one value is needed"),
        ({"gates": ["bottle"]}, "did you mean 'bottleneck'?"),
        ({"gates": ["features"]}, "'segmenter.gates.0' = 'features'"),
    ],
)
def test_mistakes_in_its_section(segmenter: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        space_of({"kind": "custom", **({"target": "a:b"} if segmenter else {}), **segmenter})
    assert message in str(caught.value)


def test_its_options_can_be_searched_and_set() -> None:
    options = {"width": 4, "rate": "1e-4"}
    space = space_of(NET | {"options": options}, {"segmenter.options.width": {"type": "int", "low": 4, "high": 8}})
    check_space(space)
    widths = {space.experiment({"segmenter.options.width": width}).segmenter.options["width"] for width in (4, 8)}  # type: ignore[union-attr]
    assert widths == {4, 8}
    assert space.base.segmenter.options["rate"] == 1e-4  # type: ignore[union-attr]
    assert override(space, ["segmenter.options.width=6"]).base.segmenter.options["width"] == 6  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"did you mean 'segmenter\.options\.width'"):
        check_space(space_of(NET | {"options": options}, {"segmenter.options.widht": {"type": "int", "low": 4, "high": 8}}))
    with pytest.raises(UserError, match="sampler 'auto' takes none"):
        space_of(study={"sampler_options": {"seed": 3}})


def test_all_of_its_code_is_known_of_a_space() -> None:
    space = space_of(
        space={"segmenter.target": {"choices": ["a:A", "b:B"]}},
        loss={"custom": {"target": "c:C"}},
        study={"sampler": "optuna.samplers:NSGAIISampler", "pruner": "own_parts:OddPruner"},
        trusted=False,
    )
    assert space.targets == {"a:A", "b:B", "c:C", "own_parts:plain", "optuna.samplers:NSGAIISampler", "own_parts:OddPruner"}


# --------------------------------------------------------------------------------------------------------------------- checks

NETWORK = """class Net(nn.Module):
    def __init__(self, in_channels, num_outputs, image_size, width=4):
        super().__init__()
        """
GIVES = f"""{NETWORK}self.conv = nn.Conv2d(in_channels, num_outputs, 1)
    def forward(self, images, gate=None):
        x = self.conv(images)
"""
WORKS = GIVES + "        return x\n"


@pytest.mark.parametrize(
    ("text", "extra", "messages"),
    [
        ("import no_such_package\n", {}, ["importing it on ", "raises ModuleNotFoundError: No module named 'no_such_package'", "line 3)"]),
        ("1 / 0\n", {}, ["raises ZeroDivisionError"]),
        ("class Nett:\n    pass\n", {}, ["has no 'Net'", "did you mean 'Nett'?"]),
        ("Net = 3\n", {}, ["it is a int, which cannot be called"]),
        ("def Net(**options):\n    return nn.Conv2d\n", {}, ["gives a type, no torch.nn.Module"]),
        (NETWORK + "raise RuntimeError('out of luck')\n", {}, ["it raises RuntimeError: out of luck (", "line 6)"]),
        (GIVES + "        return x\n", {"options": {"depth": 3}}, ["unexpected keyword argument 'depth'"]),
        (GIVES + "        return {'out': x}\n", {}, ["the network gives a dict", "return the logits"]),
        (GIVES + "        return [x, None]\n", {}, ["the network gives a list of NoneType, Tensor"]),
        (GIVES + "        return images\n", {}, ["of shape (2, 3, 32, 32)", "(2, 1, height, width)"]),
        (GIVES + "        return [x[..., ::2, ::2], x]\n", {}, ["heads of sizes [(16, 16), (32, 32)]", "finest first"]),
        (GIVES + "        return x\n", {"gates": ["bottleneck"]}, ["never calls gate('bottleneck', x)"]),
        (GIVES + "        return gate('bottleneck', x)\n", {}, ["it raises TypeError: 'NoneType' object is not callable"]),
    ],
)
def test_a_network_that_does_not_work(text: str, extra: dict[str, Any], messages: list[str], module: Callable[[str], str]) -> None:
    target = module(text)
    with pytest.raises(UserError) as caught:
        check_models(space_of({"kind": "custom", "target": target, **extra}))
    assert all(message in str(caught.value) for message in [*messages, f"segmenter.target={target}"]), caught.value


def test_a_module_that_is_not_there(tmp_path: Path, module: Callable[[str], str]) -> None:
    with pytest.raises(UserError) as caught:
        check_models(space_of({"kind": "custom", "target": "no_such_module.nets:Net"}))
    assert f"there is no module 'no_such_module' on {targets.platform.node()}; looked in {tmp_path}" in str(caught.value)
    assert "ray job submit --working-dir ." in caught.value.todo
    assert failure_kind(caught.value) == "environment"  # another machine may have it
    (tmp_path / "elsewhere").mkdir()
    target = module(WORKS)
    name = target.partition(":")[0]
    (tmp_path / f"{name}.py").rename(tmp_path / "elsewhere" / f"{name}.py")
    space = space_of({"kind": "custom", "target": target})
    with pytest.raises(UserError, match="there is no module"):
        check_models(space)
    targets.look_in(tmp_path / "elsewhere")  # as the message says
    check_models(space)


def test_each_end_of_an_option_is_tried(module: Callable[[str], str]) -> None:
    target = module(WORKS.replace("self.conv", "assert width != 9; self.conv", 1))
    segmenter = {"kind": "custom", "target": target, "options": {"width": 4}}
    check_models(space_of(segmenter, {"segmenter.options.width": {"type": "int", "low": 4, "high": 8}}))
    for spec in ({"type": "int", "low": 4, "high": 9}, {"choices": [4, 9, 12]}):
        with pytest.raises(UserError, match="it raises AssertionError"):
            check_models(space_of(segmenter, {"segmenter.options.width": spec}))


def test_what_counts_operations_needs_a_network_that_can_be_counted(module: Callable[[str], str]) -> None:
    target = module(GIVES + "        return x * float(x.sum() > -1e9)\n")
    check_models(space_of({"kind": "custom", "target": target}))
    with pytest.raises(UserError, match="its operations and memory cannot be counted"):
        check_models(space_of({"kind": "custom", "target": target}, study={"constraints": {"operations": 1e9}}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("return logits", "gives a tensor of shape (2, 1, 64, 64)"),
        ("return 0.5", "gives a float"),
        ("return masks.mean()", "has no gradient"),
        ("return logits @ 3", "it raises TypeError"),
    ],
)
def test_a_loss_term_that_does_not_work(text: str, message: str, module: Callable[[str], str]) -> None:
    target = module(f"def term(logits, masks):\n    {text}\n", "term")
    with pytest.raises(UserError) as caught:
        check_models(space_of(loss={"custom": {"target": target}}))
    assert message in str(caught.value)
    assert f"loss.custom.target={target}" in caught.value.where
    check_models(space_of(loss={"custom": {"target": target, "weight": 0}}))


@pytest.mark.parametrize("name", ["absolute_error", "AbsoluteError"])
def test_a_loss_term_is_added_with_its_weight(name: str) -> None:
    logits, masks = torch.randn(2, 1, 8, 8), (torch.rand(2, 1, 8, 8) > 0.5).float()
    base = space_of()
    own = space_of(loss={"custom": {"target": f"own_parts:{name}", "weight": 0.3, "options": {"power": 2}}})
    check_models(own)
    before, terms = (SegmentationLoss(space.base.loss)([logits, logits[..., ::2, ::2]], None, masks) for space in (base, own))
    expected = ((1 / (1 + (-logits).exp()) - masks) ** 2).mean()
    torch.testing.assert_close(terms["custom"], expected)
    torch.testing.assert_close(terms["total"], before["total"] + 0.3 * expected)


@torch.no_grad()
def test_a_network_without_a_gate_sees_the_gated_image() -> None:
    model, images = build_model(space_of(NET, guide=GUIDE).base).eval(), torch.randn(1, 3, 32, 32)
    mask = model(images).guide
    gated = images * torch.nn.functional.interpolate(mask, size=(32, 32), mode="bilinear")
    expected = torch.nn.functional.interpolate(model.segmenter.network(gated), size=(32, 32), mode="bilinear")  # type: ignore[operator]
    torch.testing.assert_close(model(images).logits[0], expected)


# ---------------------------------------------------------------------------------------------------------- sampler and pruner


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"sampler": "optuna.samplers:NoSampler"}, "has no 'NoSampler'"),
        ({"sampler": "optuna.pruners:NopPruner"}, "gives a NopPruner, no Optuna sampler"),
        ({"pruner": "optuna.samplers:RandomSampler"}, "gives a RandomSampler, no Optuna pruner"),
        ({"pruner": "optuna.pruners:PercentilePruner"}, "study.pruner=optuna.pruners:PercentilePruner: it raises TypeError"),
        ({"sampler": "optuna.samplers:GridSampler", "sampler_options": {"search_space": 3}}, "it raises AttributeError"),
    ],
)
def test_a_sampler_or_pruner_that_does_not_work(study: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_decisions(space_of(study=study, space={"training.lr": {"type": "float", "low": 1e-4, "high": 1e-2}}))
    assert message in str(caught.value)


def test_another_sampler_goes_on_and_does_not_begin_again(tmp_path: Path) -> None:
    space = search_space(first_trials=[], study={"sampler": "optuna.samplers:RandomSampler"})
    targets.trust(*space.targets)
    check_decisions(space)
    drawn = []
    for _ in range(2):
        study = open_study(space, StudyFolder(tmp_path / "study"))
        assert type(study.sampler) is optuna.samplers.RandomSampler
        drawn.append(study.ask({"training.lr": optuna.distributions.FloatDistribution(0, 1)}).params)
    again = open_study(space, StudyFolder(tmp_path / "again"))
    assert drawn[0] == again.ask({"training.lr": optuna.distributions.FloatDistribution(0, 1)}).params  # its seed is the study's
    assert drawn[0] != drawn[1]


def test_another_pruner_decides_at_every_validation(tmp_path: Path) -> None:
    space = search_space(first_trials=[], study={"pruner": "own_parts:OddPruner", "pruner_options": {"epoch": 1}, "min_epochs": 2})
    targets.trust(*space.targets)
    check_decisions(space)
    study = Study(pruner="own_parts:OddPruner", min_epochs=4, validate_every=3)
    assert validated_epochs(study, 10) == (3, 6, 9, 10)
    assert rungs(study, 10) == (6, 9, 10)
    run = Run(tmp_path, space)
    for key in ("even", "odd"):
        assert run.driver.ask(key)["rungs"] == (2, 3, 4)  # type: ignore[index]
    assert [run.driver.report("even", result(epoch, 0.1)) for epoch in (1, 2, 3)] == [True, True, True]
    assert [run.driver.report("odd", result(epoch, 0.9)) for epoch in (1, 2)] == [True, False]
    # A driver that dies here has decided, and not recorded it: the next one decides the same.
    assert Run(tmp_path, space).trial(1).state == optuna.trial.TrialState.PRUNED


# ---------------------------------------------------------------------------------------------------------------------- trust


@pytest.fixture
def model(tmp_path: Path, module: Callable[[str], str], home: Path) -> tuple[Path, str]:
    """A model folder whose network lies in the present folder, as somebody else may send both; and the network's target."""
    target = module(WORKS)
    space = space_of({"kind": "custom", "target": target})
    (tmp_path / "best").mkdir()
    save_weights(tmp_path / "best" / WEIGHTS, build_model(space.base).trained_state())
    folder = export_model(tmp_path / "best", space.base, tmp_path / "model", {"study": "theirs"})
    assert yaml.safe_load((folder / "provenance.yaml").read_text())["own_code"].keys() == {target}
    del sys.modules[target.partition(":")[0]]
    targets._trusted.clear()
    return folder, target


def test_a_model_from_elsewhere_imports_nothing(
    model: tuple[Path, str], tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    from PIL import Image

    (folder, target), image = model, tmp_path / "image.png"
    Image.fromarray(generate(0, 32)[0]).save(image)
    command = [str(folder), str(image), "--output", str(tmp_path / "out")]
    assert predict.main(command) == 2
    shown = capsys.readouterr().err
    assert f"segmenter.target={target}: this code is named by a file that may come from elsewhere" in shown
    assert "--trust" in shown
    assert target.partition(":")[0] not in sys.modules
    assert predict.main([*command, "--trust"]) == 0
    assert (tmp_path / "out" / "masks" / "image.png").is_file()

    # What a study of this home names was named by its owner.
    targets._trusted.clear()
    study = home / "studies" / "mine" / "study.yaml"
    study.parent.mkdir(parents=True)
    study.write_text(yaml.safe_dump({"experiment": {"segmenter": {"target": f"{target}2"}}}))
    with pytest.raises(UserError, match="--trust"):
        load_model(folder)
    study.write_text(yaml.safe_dump({"experiment": {"segmenter": {"target": target}}}))
    assert load_model(folder)[1].targets == {"segmenter.target": target}
    assert "is not as it was" not in caplog.text
    with (tmp_path / f"{target.partition(':')[0]}.py").open("a") as file:
        file.write("# another version\n")
    load_model(folder)
    assert f"the file of {target} is not as it was when this model was trained" in caplog.text


def test_what_one_process_trusts_another_can_take_over(tmp_path: Path) -> None:
    targets.trust("own_parts:plain")
    targets.look_in(tmp_path / "x")
    told = targets.packed()
    targets._trusted.clear()
    targets._folders.clear()
    with pytest.raises(UserError):
        targets.load("own_parts:plain", "segmenter.target")
    targets.adopt(told)
    assert targets.load("own_parts:plain", "segmenter.target").__name__ == "plain"
    assert str(tmp_path / "x") in sys.path


def test_a_study_says_when_its_code_has_changed(tmp_path: Path, module: Callable[[str], str]) -> None:
    target = module(WORKS)
    space = space_of({"kind": "custom", "target": target})
    check_models(space)
    study = open_study(space, StudyFolder(tmp_path / "study"))
    assert changed_code(study, space) == changed_code(study, space) == []
    (tmp_path / f"{target.partition(':')[0]}.py").write_text("# other\n")
    (note,) = changed_code(study, space)
    assert note.startswith(f"the file of {target} is not as it was when this study began")


def test_an_experiment_with_own_parts_comes_back_from_yaml(tmp_path: Path) -> None:
    made = space_of(TINY | {"options": {"deep": False}}, loss={"custom": {"target": "own_parts:absolute_error", "weight": 0.3}}).base
    (tmp_path / "made.yaml").write_text(made.to_yaml())
    again = Experiment.from_yaml(tmp_path / "made.yaml")
    assert (again, again.hash) == (made, made.hash)
