"""How a study searches, and what its trials may use."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
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
        validate_every: Epochs between two validations; ``None``: about twenty validations over the whole budget. Rungs and the last epoch
            are validated in any case.
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
    validate_every: Count | None = None
    startup_trials: Count = 10
    seed: Annotated[int, Field(ge=0)] = 0


def _share(value: Any) -> Any:
    if value is None or value == "auto" or (str(value).isdecimal() and 1 <= int(value) <= 64):
        return value
    raise ValueError("a whole number from 1 to 64 is needed, or auto")


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Resources:
    """What one trial may use, and how many run side by side.

    Attributes:
        executor: ``train``: a Ray Train worker group per trial; ``actor``: a reused Tune actor, which starts in milliseconds;
            ``auto``: ``train`` with GPUs or several workers, else ``actor``.
        concurrent: Trials side by side; ``None``: as many as the cluster's CPUs and GPUs carry.
        workers: Processes of one trial (DDP).
        cpus_per_worker: CPU cores of each; also the threads torch may use. ``None``: one without GPUs, else its GPU's share of the node.
        gpus_per_worker: May be a fraction, then several trials share a GPU. ``None``: one where there are GPUs, unless ``trials_per_gpu``.
        trials_per_gpu: How many trials share a GPU, instead of ``gpus_per_worker``. ``auto``: as many as fit into its memory, found by two
            training steps of the largest models before the search; without GPUs this bounds ``concurrent`` by the nodes' memory.
        max_failures: How often a trial whose process died is continued from its checkpoint.
        share_views: Augmented images and the frozen guide's tokens are made once per node, kept on disk, and read by all trials. Off,
            every trial makes its own: the same ones.
        views_folder: Where they are kept, best on a disk of the node itself; ``None``: ``views`` in the cache folder of the home.
        views_gigabytes: Disk space for them (10^9 bytes); what was not used for longest makes room. ``None``: half of what the disk
            has for them, at most 200.
    """

    executor: Literal["auto", "actor", "train"] = "auto"
    concurrent: Count | None = None
    workers: Count = 1
    cpus_per_worker: Count | None = None
    gpus_per_worker: NonNegative | None = None
    trials_per_gpu: Annotated[int | Literal["auto"] | None, BeforeValidator(_share)] = None
    max_failures: Annotated[int, Field(ge=0)] = 2
    share_views: bool = True
    views_folder: str | None = None
    views_gigabytes: NonNegative | None = None

    @model_validator(mode="after")
    def _one_share(self) -> Resources:
        if self.trials_per_gpu is None:
            return self
        if self.gpus_per_worker is not None:
            raise ValueError("gpus_per_worker and trials_per_gpu both say how much of a GPU a trial gets; give one of them")
        if self.workers > 1 and self.trials_per_gpu not in (1, "auto"):
            raise ValueError(f"trials_per_gpu: {self.trials_per_gpu} needs workers: 1; two workers of one trial cannot share a GPU (NCCL)")
        return self
