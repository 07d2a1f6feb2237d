"""Scores by a protocol, with a network whose answer is known."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from guidino_tune.config import Data, Protocol
from guidino_tune.config.data import IGNORED
from guidino_tune.data.cases import Case
from guidino_tune.data.rules import Rules, plain_rules
from guidino_tune.framing import shrink_mask
from guidino_tune.metrics import score_case
from guidino_tune.training.evaluation import choose_largest_component, evaluate_cases, write_scores

BINARY = Data(kind="demo", image_size=32)
CLASSES = Data(kind="demo", image_size=32, num_classes=2)
GREY = {0: 10, 1: 128, 2: 250}
"""Brightness of each label; binary truth is whatever is bright."""


class _Prediction(NamedTuple):
    logits: tuple[Tensor, ...]
    guide: Tensor | None


class _Brightness(nn.Module):
    """Binary: bright is foreground. Two classes: grey is the first, bright the second."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.num_classes = data.num_classes
        self.calls = 0
        self.eval()

    def forward(self, images: Tensor) -> _Prediction:
        self.calls += len(images)
        grey = images[:, :1] * 0.229 + 0.485
        if self.num_classes == 1:
            return _Prediction((20 * (grey - 0.25),), None)
        return _Prediction((torch.cat([10 * (0.25 - grey), 2 - 10 * (grey - 0.5).abs(), 10 * (grey - 0.75)], dim=1),), None)


def _case(folder: Path, name: str, seen: np.ndarray, truth: np.ndarray | None = None) -> Case:
    """An image of what the network shall see, and the true labels."""
    image = np.vectorize(GREY.get)(seen).astype(np.uint8)
    truth = seen if truth is None else truth
    case = Case(name, folder / f"{name}.png", folder / f"{name}-mask.png", name)
    Image.fromarray(np.repeat(image[..., None], 3, axis=2)).save(case.image)
    Image.fromarray((truth if truth.max() > 1 else truth * 255).astype(np.uint8)).save(case.mask)
    return case


def _boxes(shape: tuple[int, int], *boxes: tuple[int, int, int, int, int]) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    for label, y0, y1, x0, x1 in boxes:
        labels[y0:y1, x0:x1] = label
    return labels


def _rules(data: Data) -> Rules:
    return plain_rules(data)


def _evaluate(cases: list[Case], data: Data, protocol: Protocol) -> dict:
    return evaluate_cases(_Brightness(data), cases, data, protocol, rules=_rules(data))  # type: ignore[arg-type]


def _choose(model: _Brightness, cases: list[Case], data: Data, protocol: Protocol) -> tuple[Protocol, dict[str, float]]:
    return choose_largest_component(model, cases, data, protocol, rules=_rules(data))  # type: ignore[arg-type]


def test_distances_are_in_the_pixels_of_the_resolution(tmp_path: Path) -> None:
    """A box that is 16 of 128 pixels off: at a training size of 32 these are 4."""
    seen, truth = _boxes((128, 128), (1, 32, 64, 32, 64)), _boxes((128, 128), (1, 32, 64, 48, 80))
    cases = [_case(tmp_path, "a", seen, truth)]
    native, training = (_evaluate(cases, BINARY, Protocol(resolution=r))["a"] for r in ("native", "training"))
    assert native.hd95 == pytest.approx(16, abs=1.5)
    assert training.hd95 == pytest.approx(4, abs=0.5)
    small = [m[::4, ::4] for m in (seen, truth)]
    assert training.dice == score_case(*small).dice


def test_the_truth_of_another_aspect_is_squeezed_as_the_image_is(tmp_path: Path) -> None:
    seen = _boxes((64, 160), (1, 8, 40, 20, 100))
    training = _evaluate([_case(tmp_path, "a", seen)], BINARY, Protocol(resolution="training"))["a"]
    assert training == score_case(seen[1::2, 2::5], seen[1::2, 2::5])


def test_a_padded_case_is_scored_in_its_own_frame(tmp_path: Path) -> None:
    """At training size an image of 64 x 160 is 13 x 32 pixels, and its margin is no background that would be easy to find."""
    seen = _boxes((64, 160), (1, 8, 40, 20, 100))
    truth = _boxes((64, 160), (1, 8, 40, 20, 60))
    case, data = _case(tmp_path, "a", seen, truth), dataclasses.replace(BINARY, resize="pad")
    native, training = (_evaluate([case], data, Protocol(resolution=r))["a"] for r in ("native", "training"))
    assert native.dice == pytest.approx(2 / 3, abs=0.03)  # a half of the box is right
    small = [shrink_mask(mask, (13, 32)) for mask in (seen, truth)]
    assert training.dice == pytest.approx(score_case(*small).dice, abs=0.02)


def test_ignored_pixels_count_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from guidino_tune.training import evaluation

    seen, truth = _boxes((64, 64), (1, 16, 48, 16, 48)), _boxes((64, 64), (1, 16, 48, 16, 32))
    unknown = truth.copy()
    unknown[:, 32:] = IGNORED
    case, data = _case(tmp_path, "a", seen, truth), dataclasses.replace(BINARY, ignore_label=7)
    real = evaluation.read_case
    monkeypatch.setattr(evaluation, "read_case", lambda *args: (real(*args)[0], unknown))
    for resolution in ("native", "training"):
        protocol = Protocol(resolution=resolution)  # type: ignore[arg-type]
        assert _evaluate([case], data, protocol)["a"].dice == 1
        assert _choose(_Brightness(data), [case], data, protocol)[1] == {"never": 1.0, "always": 1.0}
        assert _evaluate([case], BINARY, protocol)["a"].dice < 1


def test_windows_see_what_squeezing_loses(tmp_path: Path) -> None:
    """Dots of two pixels in an image of 256 are less than one at a size of 32."""
    seen = np.zeros((256, 256), np.uint8)
    seen[4::32, 4::32] = seen[5::32, 4::32] = 1
    cases = [_case(tmp_path, "a", seen)]
    assert _evaluate(cases, BINARY, Protocol(inference="sliding"))["a"].dice == 1
    assert _evaluate(cases, BINARY, Protocol())["a"].dice < 0.5


def test_the_hd95_is_the_protocol_s(tmp_path: Path) -> None:
    y, x = np.mgrid[:128, :128] - 64
    disc, hole = y**2 + x**2 <= 30**2, y**2 + x**2 <= 20**2
    cases = [_case(tmp_path, "a", (disc & ~hole).astype(np.uint8), disc.astype(np.uint8))]
    found = {d: _evaluate(cases, BINARY, Protocol(inference="sliding", hd95=d))["a"].hd95 for d in ("reference", "pooled", "monai")}
    assert found == {"reference": 0, "pooled": pytest.approx(9.00, abs=5e-3), "monai": pytest.approx(9.22, abs=5e-3)}


def test_several_classes(tmp_path: Path) -> None:
    seen = _boxes((64, 64), (1, 4, 30, 4, 40), (2, 40, 60, 10, 50))
    truth = _boxes((64, 64), (1, 4, 30, 4, 40), (2, 40, 60, 30, 50))
    cases = [_case(tmp_path, "a", seen, truth), _case(tmp_path, "b", truth * (truth == 2), truth)]
    scores = _evaluate(cases, CLASSES, Protocol(inference="sliding"))
    assert [c.dice for c in scores["a"].classes] == [1, pytest.approx(2 * 20 * 20 / (20 * 40 + 20 * 20))]
    assert [c.dice for c in scores["b"].classes] == [0, 1]
    assert scores["b"].dice == 0.5


# -------------------------------------------------------------------------------------------------------------- post-processing


def _speck(folder: Path, name: str, *, true: bool) -> Case:
    """A large box and a small one apart from it; the small one is a part of the truth, or not."""
    large, small = (1, 4, 40, 4, 40), (1, 50, 60, 50, 60)
    return _case(folder, name, _boxes((64, 64), large, small), _boxes((64, 64), large, small) if true else _boxes((64, 64), large))


@pytest.mark.parametrize(("specks", "chosen"), [([False, False, True], "always"), ([True, True, False], "never")])
def test_the_largest_component_is_kept_where_validation_gains(tmp_path: Path, specks: list[bool], chosen: str) -> None:
    cases = [_speck(tmp_path, f"c{number}", true=true) for number, true in enumerate(specks)]
    model, told = _Brightness(BINARY), []
    protocol = Protocol(inference="resized", resolution="training", largest_component="validation", hd95="pooled")
    found, dice = choose_largest_component(model, cases, BINARY, protocol, lambda *done: told.append(done), rules=_rules(BINARY))  # type: ignore[arg-type]
    assert found == Protocol(inference="resized", resolution="training", largest_component=chosen, hd95="pooled")
    assert model.calls == len(cases)  # predicted once, post-processed twice
    assert told == [(1, 3), (2, 3), (3, 3)]
    for keep in ("never", "always"):
        each = _evaluate(cases, BINARY, Protocol(resolution="training", largest_component=keep)).values()
        assert dice[keep] == pytest.approx(np.mean([score.dice for score in each]))
    with_it, without = (18 * 18) / (18 * 18 + 25 / 2), (18 * 18) / (18 * 18 + 25 / 2)  # 5 by 5 missed, or 5 by 5 too much
    expected = {"never": [1.0 if true else without for true in specks], "always": [with_it if true else 1.0 for true in specks]}
    assert dice == pytest.approx({keep: np.mean(values) for keep, values in expected.items()}, abs=1e-9)


def test_a_tie_is_decided_against_it(tmp_path: Path) -> None:
    cases = [_speck(tmp_path, "a", true=False), _speck(tmp_path, "b", true=True)]
    protocol, dice = _choose(_Brightness(BINARY), cases, BINARY, Protocol(resolution="training", largest_component="validation"))
    assert dice["always"] == dice["never"] < 1
    assert protocol.largest_component == "never"


def test_each_class_keeps_its_own_largest_component(tmp_path: Path) -> None:
    large, small = [(1, 4, 30, 4, 30), (2, 4, 30, 36, 60)], [(1, 50, 60, 50, 60), (2, 44, 52, 4, 20)]
    cases = [_case(tmp_path, "a", _boxes((64, 64), *large, *small), _boxes((64, 64), *large))]
    protocol, dice = _choose(_Brightness(CLASSES), cases, CLASSES, Protocol(inference="sliding", largest_component="validation"))
    expected = [2 * 26 * n / (2 * 26 * n + extra) for n, extra in ((26, 100), (24, 128))]
    assert dice == {"never": pytest.approx(np.mean(expected)), "always": 1.0}
    assert protocol == Protocol(inference="sliding", largest_component="always")
    assert _evaluate(cases, CLASSES, protocol)["a"].dice == 1


def test_nothing_is_evaluated_before_the_decision(tmp_path: Path) -> None:
    cases = [_speck(tmp_path, "a", true=True)]
    with pytest.raises(ValueError, match="choose_largest_component"):
        _evaluate(cases, BINARY, Protocol(largest_component="validation"))
    with pytest.raises(ValueError, match="no validation cases"):
        _choose(_Brightness(BINARY), [], BINARY, Protocol())


# ------------------------------------------------------------------------------------------------------------------------ files


def test_files_read_as_tables_with_the_protocol_in_each_line(tmp_path: Path) -> None:
    truth = _boxes((64, 64), (1, 4, 30, 4, 40), (2, 40, 60, 30, 50))
    scores = {
        name: score_case(truth, np.roll(truth, shift), num_classes=2, hd95="pooled") for name, shift in {"a": 0, 'b,"x': 3, "c": 64}.items()
    }
    protocol = Protocol(hd95="pooled", mirror=True)
    write_scores(
        scores, tmp_path / "scores.csv", protocol, Data(kind="folder", root="x", labels={"Optic disc": 1, "cup": 2}, num_classes=2)
    )
    table = pandas.read_csv(tmp_path / "scores.csv", index_col="case")
    names = [name + suffix for suffix in ("", "_optic_disc", "_cup") for name in ("dice", "iou", "hd95", "asd")]
    assert list(table.columns) == [*names, "protocol"]
    assert list(table.index) == ["a", 'b,"x', "c"]
    assert set(table["protocol"]) == {protocol.describe()}
    assert table.loc['b,"x', "hd95_cup"] == pytest.approx(scores['b,"x'].classes[1].hd95, rel=1e-5)
    assert table["dice"].mean() == pytest.approx(np.mean([s.dice for s in scores.values()]), rel=1e-5)


def test_binary_scores_have_no_columns_of_classes(tmp_path: Path) -> None:
    truth = _boxes((16, 16), (1, 4, 8, 4, 8))
    write_scores({"a": score_case(truth, truth)}, tmp_path / "scores.csv", Protocol(), Data(kind="demo"))
    with (tmp_path / "scores.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["case", "dice", "iou", "hd95", "asd", "protocol"]
