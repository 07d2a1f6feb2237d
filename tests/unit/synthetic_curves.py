"""Learning curves by formula over a space with nine networks and conditions: what recorded ones could look like, parallel or crossing."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence

import numpy as np
import optuna

from guidino_tune.simulation.curves import COMPLETE, STOPPED, Curve, CurveTable
from guidino_tune.simulation.sources import luck
from guidino_tune.space.parameters import Values
from guidino_tune.space.space import Space, read_space

NETWORKS = ("unet", "nnunet", "nnwnet", "swinunet", "h2former", "ukan", "segdino", "segguidino", "dinounet")
PAPER: Values = {"segmenter.kind": "nnwnet", "guide.lora.rank": 0, "loss.lambda_guide": 0.1, "loss.hinge_weight": 0.0, "training.lr": 1e-4}


def synthetic_space(epochs: int = 100, highest_rate: float = 3e-3, **study: object) -> Space:
    """A space whose rungs are 3, 9, 27 and 81; with a ``highest_rate`` of 0.03 a quarter of it diverges."""
    return read_space(
        {
            "experiment": {"data": {"kind": "demo"}, "training": {"epochs": epochs}},
            "space": {
                "segmenter.kind": {"choices": list(NETWORKS)},
                "guide.lora.rank": {"choices": [0, 4, 8, 16]},
                "training.lora_lr": {"type": "float", "low": 1e-5, "high": 2e-3, "log": True, "when": {"guide.lora.rank": {"gt": 0}}},
                "loss.lambda_guide": {"type": "float", "low": 0.01, "high": 1.0, "log": True},
                "loss.hinge_weight": {"choices": [0.0, 0.05, 0.1, 0.3]},
                "training.lr": {"type": "float", "low": 1e-5, "high": highest_rate, "log": True},
            },
            "first_trials": [dict(PAPER)],
            "study": {"min_epochs": 3, "reduction_factor": 3, "validate_every": 1, **study},
        },
        source="synthetic",
    )


class Formula:
    """Final Dice from networks and rates; slow starters end higher where ``crossing`` is above 0. Rates near the top end diverge."""

    note = "a formula"
    known: Sequence[Values] = ()

    def __init__(self, crossing: float = 0.0, epochs: int = 100) -> None:
        self.crossing, self.epochs = crossing, epochs
        generator = random.Random(1)
        self.networks = {name: (generator.uniform(0, 0.12), generator.uniform(-3.8, -2.9), generator.uniform(0, 1)) for name in NETWORKS}

    @functools.cached_property
    def best(self) -> float:
        generator = random.Random(1)
        return max(self.quality(v) for v in (drawn(generator) for _ in range(20_000)) if not self.diverges(v))

    def diverges(self, values: Values) -> bool:
        return math.log10(float(values["training.lr"])) > self.networks[str(values["segmenter.kind"])][1] + 0.9  # type: ignore[arg-type]

    def clean(self, values: Values) -> np.ndarray:
        bonus, optimum, slow = self.networks[str(values["segmenter.kind"])]
        far = abs(math.log10(float(values["training.lr"])) - optimum)  # type: ignore[arg-type]
        final = 0.68 + bonus - 0.09 * far**1.5 - 0.03 * (math.log10(float(values["loss.lambda_guide"])) + 1.3) ** 2  # type: ignore[arg-type]
        final += {0.0: 0.0, 0.05: 0.01, 0.1: 0.015, 0.3: -0.01}[float(values["loss.hinge_weight"])]  # type: ignore[arg-type]
        if rank := values["guide.lora.rank"]:
            final += 0.02 + 0.005 * math.log2(float(rank)) / 4 - 0.03 * (math.log10(float(values["training.lora_lr"])) + 3.5) ** 2  # type: ignore[arg-type]
        speed = 6.0 * math.exp(self.crossing * (slow - 0.5 + 4 * (final - 0.7)))
        return np.clip(final * (1 - 0.75 * np.exp(-np.arange(1, self.epochs + 1) / speed)), 0, 1)

    def curve(self, values: Values, seed: int) -> Curve:
        generator = luck(values, seed)
        noise = 0.01 * generator.normal() + 0.015 * generator.normal(size=self.epochs)
        dice = np.clip(self.clean(values) + noise, 0, 1)
        failed = self.diverges(values)
        dice = dice[: generator.integers(0, 8)] if failed else dice
        seconds = np.full(len(dice), 20.0 + 10 * NETWORKS.index(str(values["segmenter.kind"])))
        return Curve(-1, seed, values, dice, seconds, "diverged" if failed else COMPLETE)

    def quality(self, values: Values) -> float:
        return float(self.clean(values).max())

    def first(self, trials: Sequence[Values], seed: int) -> Sequence[Values]:
        return trials

    def sampler(self, inner: optuna.samplers.BaseSampler) -> optuna.samplers.BaseSampler:
        return inner


def drawn(generator: random.Random) -> Values:
    rank = generator.choice([0, 4, 8, 16])
    return {
        "segmenter.kind": generator.choice(NETWORKS), "guide.lora.rank": rank,
        **({"training.lora_lr": 10 ** generator.uniform(-5, math.log10(2e-3))} if rank else {}),
        "loss.lambda_guide": 10 ** generator.uniform(-2, 0), "loss.hinge_weight": generator.choice([0.0, 0.05, 0.1, 0.3]),
        "training.lr": 10 ** generator.uniform(-5, math.log10(3e-3)),
    }  # fmt: skip


def synthetic_table(
    configurations: int = 100, *, epochs: int = 27, repeat: int = 10, crossing: float = 0.0, stopped: int = 0
) -> CurveTable:
    """Random configurations of the formula; ``repeat`` with a second seed, ``stopped`` ended after a third of their epochs."""
    formula, generator = Formula(crossing, epochs), random.Random(0)
    curves = []
    for number in range(configurations):
        values = drawn(generator)
        for seed in range(1 + (number < repeat)):
            made = formula.curve(values, seed)
            cut = epochs // 3 if number >= configurations - stopped and not made.failed else epochs
            state = STOPPED if cut < epochs else made.state
            curves.append(Curve(number, seed, values, made.dice[:cut], made.seconds[:cut], state))
    return CurveTable(synthetic_space(epochs), tuple(curves), {"data": "formula", "date": "2026-01-01"})
