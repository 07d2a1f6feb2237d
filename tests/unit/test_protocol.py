"""How a trained model is measured: the options, in words and on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from typing import Any, get_args, get_type_hints

import pytest

from guidino_tune.cli import add_protocol_options, protocol_values
from guidino_tune.config import Protocol
from guidino_tune.config.parsing import parse
from guidino_tune.errors import UserError

CHOICES: dict[str, tuple[Any, ...]] = {
    field.name: get_args(get_type_hints(Protocol)[field.name]) or {"overlap": (0.5, 0.25), "mirror": (False, True)}[field.name]
    for field in dataclasses.fields(Protocol)
}


def arguments(*, scores: bool) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(exit_on_error=False)
    add_protocol_options(made, scores=scores)
    return made


def test_by_default_whole_images_are_scored_at_native_size() -> None:
    assert Protocol().describe() == "native resolution, whole image resized, HD95 and ASD by MONAI's definitions"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"inference": "sliding", "mirror": True, "largest_component": "always", "hd95": "pooled"},
            "native resolution, Gaussian sliding window (0.5 overlap), mean of 4 flips, largest component, "
            "HD95 of both directions pooled, ASD by MONAI's definition",
        ),
        (
            {"resolution": "training", "hd95": "reference", "largest_component": "validation"},
            "training resolution, whole image resized, largest component if validation gains, "
            "HD95 by GuiDINO's code (border to region), ASD by MONAI's definition",
        ),
    ],
)
def test_every_part_has_its_words(values: dict[str, Any], words: str) -> None:
    assert Protocol(**values).describe() == words


def test_no_two_protocols_read_the_same() -> None:
    """But for the overlap of windows where there are none."""
    seen: dict[str, dict[str, Any]] = {}
    for values in (dict(zip(CHOICES, combination, strict=True)) for combination in itertools.product(*CHOICES.values())):
        if values["inference"] == "sliding" and values["resolution"] == "training":
            continue
        words = Protocol(**values).describe()
        assert words.count(",") < len(words) / 10
        if values["inference"] == "resized":
            values["overlap"] = 0.5
        assert seen.setdefault(words, values) == values
    assert len(seen) == 2 * 3 * 3 * (2 + 2)  # mirror, largest component, HD95; sliding at two overlaps, resized at two resolutions


def test_a_prediction_without_scores_is_described_without_their_definitions() -> None:
    protocol = Protocol(inference="sliding", mirror=True, largest_component="always", hd95="pooled")
    assert protocol.describe(scores=False) == "Gaussian sliding window (0.5 overlap), mean of 4 flips, largest component"


def test_windows_at_native_scale_are_not_scored_at_training_size() -> None:
    with pytest.raises(UserError, match="'sliding' works on native ones"):
        parse(Protocol, {"inference": "sliding", "resolution": "training"}, "options")
    with pytest.raises(UserError, match="overlap"):
        parse(Protocol, {"overlap": 1.0}, "options")


# ----------------------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize("scores", [False, True])
def test_without_options_it_is_the_default_protocol(scores: bool) -> None:
    assert Protocol(**protocol_values(arguments(scores=scores).parse_args([]))) == Protocol()


@pytest.mark.parametrize("name", ["inference", "largest_component", "hd95", "resolution"])
def test_the_options_offer_what_the_protocol_knows(name: str) -> None:
    made = arguments(scores=True)
    for value in CHOICES[name]:
        values = protocol_values(made.parse_args([f"--{name.replace('_', '-')}", value]))
        assert getattr(Protocol(**values), name) == value
    with pytest.raises(argparse.ArgumentError) as refused:
        made.parse_args([f"--{name.replace('_', '-')}", "other"])
    assert all(value in str(refused.value) for value in CHOICES[name])


def test_all_options_together() -> None:
    line = "--inference resized --mirror --largest-component validation --hd95 reference --resolution training"
    assert Protocol(**protocol_values(arguments(scores=True).parse_args(line.split()))) == Protocol(
        mirror=True, largest_component="validation", hd95="reference", resolution="training"
    )


def test_without_truth_there_is_nothing_to_score_or_to_decide_on() -> None:
    made = arguments(scores=False)
    assert Protocol(**protocol_values(made.parse_args(["--largest-component", "always"]))).largest_component == "always"
    with pytest.raises(argparse.ArgumentError):
        made.parse_args(["--largest-component", "validation"])
    for unknown in ("--hd95", "--resolution"):
        with pytest.raises((argparse.ArgumentError, SystemExit)):
            made.parse_args([unknown, "native"])
