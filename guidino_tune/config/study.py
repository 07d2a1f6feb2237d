"""How a study searches, and what its trials may use."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from guidino_tune.config.fields import STRICT, Count, NonNegative, Positive


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Study:
    """How many trials, how they are chosen and when they are stopped early.

    Attributes:
        name: Of the study; its folder and its MLflow run carry it.
        trials: Trials in all; the same study with a larger number is extended. Without effect with sampler ``listed``.
        time_budget: Seconds after which no new trial starts and running ones are left to be continued; ``None``: no limit.
        sampler: ``tpe`` (multivariate, aware of conditions), ``random``, the control, or ``listed``: the first trials, each once, and
            nothing else, as for a table of systems or a grid.
        pruner: ``asha`` (asynchronous successive halving) or ``none``.
        min_epochs: First rung: no trial is stopped before.
        reduction_factor: One in so many trials goes on at each rung.
        startup_trials: Random trials before ``tpe`` starts to model.
        seed: Of the sampler.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")] = "study"
    trials: Count = 32
    time_budget: Positive | None = None
    sampler: Literal["tpe", "random", "listed"] = "tpe"
    pruner: Literal["asha", "none"] = "asha"
    min_epochs: Count = 1
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    startup_trials: Count = 10
    seed: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Resources:
    """What one trial may use, and how many run side by side.

    Attributes:
        executor: ``train``: a Ray Train worker group per trial; ``actor``: a reused Tune actor, which starts in milliseconds;
            ``auto``: ``train`` with GPUs or several workers, else ``actor``.
        concurrent: Trials side by side; ``None``: as many as the cluster's CPUs and GPUs carry.
        workers: Processes of one trial (DDP).
        cpus_per_worker: CPU cores of each; also the threads torch may use. ``None``: one without GPUs, else its GPU's share of the node.
        gpus_per_worker: May be a fraction, then several trials share a GPU. ``None``: one where there are GPUs.
        max_failures: How often a trial whose process died is continued from its checkpoint.
    """

    executor: Literal["auto", "actor", "train"] = "auto"
    concurrent: Count | None = None
    workers: Count = 1
    cpus_per_worker: Count | None = None
    gpus_per_worker: NonNegative | None = None
    max_failures: Annotated[int, Field(ge=0)] = 2
