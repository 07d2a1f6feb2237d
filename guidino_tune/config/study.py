"""How a study searches, and what its trials may use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from guidino_tune.config.fields import (
    LARGEST,
    STRICT,
    Count,
    FrozenOptions,
    NonNegative,
    Number,
    Options,
    PathText,
    Positive,
    Seed,
    target,
)
from guidino_tune.errors import nearest

OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {
    "val_dice": "maximize",
    "val_hd95": "minimize",
    "seconds": "minimize",
    "parameters": "minimize",
    "operations": "minimize",
}
"""What a study may look for, and which way; where each comes from is in ``guidino_tune.study.objectives``."""

CONSTRAINTS = ("parameters", "operations", "latency", "memory")
"""What may be bounded from above."""

OBJECTIVE = "val_dice"
"""The objective of every study, mean Dice over validation cases (and classes) at training size: its best epoch is the one whose weights
are kept."""


SAMPLERS = ("auto", "tpe", "prior", "random", "qmc", "gp", "nsga2", "grid", "listed")
_BY_LOT = ("random", "qmc", "grid", "listed")
PRUNERS = ("auto", "promotion", "asha", "none")
"""By name; any other one of Optuna or of the user's own is named as ``module:name``."""


def _one_of(names: tuple[str, ...]) -> AfterValidator:
    def check(value: str) -> str:
        if value in names:
            return value
        if ":" in value:
            return target(value)
        raise ValueError(f"unknown name; {nearest(value, names)}, or another one as module:name")

    return AfterValidator(check)


def _known(names: Iterable[Any], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"unknown name {name!r}; {nearest(str(name), known)}")


def _objectives(value: tuple[str, ...]) -> tuple[str, ...]:
    _known(value, OBJECTIVES)
    if len(set(value)) < len(value):
        raise ValueError("the same objective stands twice")
    if OBJECTIVE not in value:
        raise ValueError(f"{OBJECTIVE} must be one of them, for the weights of its best epoch are those that are kept")
    return value


def _constraints(value: Mapping[str, float]) -> Mapping[str, float]:
    _known(value, CONSTRAINTS)
    return value


PATIENCE = 80
"""Trials in a row without a better one before ``study.stop: auto`` ends a search."""


def _stop(value: Any) -> Any:
    if value is None or value == "auto" or (type(value) is int and 1 <= value <= LARGEST):
        return value
    raise ValueError("a number of trials from 1 is needed, auto, or null for never")


def _kept(value: Any) -> Any:
    if value == "all" or (type(value) is int and 1 <= value <= LARGEST):
        return value
    raise ValueError("a number of trials from 1 is needed, or all")


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Study:
    """How many trials, how they are chosen and when they are stopped early.

    Attributes:
        name: Of the study; its folder and its MLflow run carry it.
        trials: Trials in all; the same study with a larger number is extended. Without effect with sampler ``listed``.
        stop: After how many trials in a row without a better one the search ends, though not all of its trials were run: the best of each
            rung goes on to the end, and then the others are stopped. ``auto``: 80. ``None``: never. See ``docs/searching.md`` for what it
            saves and costs; more ``trials`` later go on. Not with several objectives, nor with sampler ``listed``.
        time_budget: Seconds after which no new trial starts and running ones are left to be continued; ``None``: no limit.
        sampler: ``auto``: what did best in ``docs/searching.md``, now ``tpe``; a study that was begun with another one goes on with that.
            ``tpe``: models which values the good trials have, comparing all at the highest rung that ``startup_trials`` of them have come
            to; with several objectives it compares front by front. ``prior``: like it, but at first most proposals, and later ever fewer,
            are near the space's first trials. ``random``: draws lots, the control. ``qmc``: covers the space evenly (Sobol points; what
            only some configurations have is drawn at random), to look at the space rather than to find the best.
            ``gp`` and ``nsga2`` are Optuna's, and look at complete trials only: for a few numbers without a pruner, and for several
            objectives with hundreds of trials. ``grid``: every configuration of a finite space once, in order. ``listed``: the first
            trials, each once, and nothing else, as for a table of systems. Any other as ``module:name`` of a class or function that gives
            an Optuna sampler, such as ``optuna.samplers:CmaEsSampler``.
        sampler_options: Keyword arguments of a sampler that is named so; ``seed`` follows from the study where it takes one.
        pruner: ``promotion``: at each rung a trial waits, with its checkpoint, until it is among the best one in ``reduction_factor`` that
            came there, and then goes on; with the last trial the best of each rung goes on, and the others are stopped. The first of the
            space's ``first_trials`` runs to its end all the same. ``asha``: decides at once and for good, which keeps no checkpoints
            and starts no trial twice. Both are asynchronous successive halving. ``auto``: ``promotion``, or ``none`` with several
            objectives; as for ``sampler``, a begun study goes on with its own. ``none``; or another one as ``module:name``, which is asked
            at every validation.
        pruner_options: Keyword arguments of a pruner that is named so.
        min_epochs: First rung: no trial is stopped before.
        reduction_factor: One in so many trials goes on at each rung.
        validate_every: Epochs between two validations; ``None``: about twenty validations over the whole budget. Rungs and the last epoch
            are validated in any case.
        keep_weights: How many trials keep the weights of their best epoch: the best complete ones, and all on the Pareto front; what
            is exported is trained anew in any case. ``all``: every trial, a few megabytes to half a gigabyte each; so it is always with
            the sampler ``listed``, whose trials are compared with each other.
        startup_trials: Trials that must have come to a rung before ``tpe`` models them; until then it draws at random.
        seed: Of the sampler.
        objectives: ``val_dice`` (mean validation Dice of the best epoch, maximised) and any of these, all minimised: ``val_hd95`` (mean
            HD95 after the last epoch, pixels at training size), ``seconds`` (training and validation of all epochs, each as quick as the
            quickest that did the same work, times the workers: GPU-seconds where each has one), ``parameters`` (of the whole network,
            backbone included), ``operations`` (floating point operations of one forward pass of one image, 2 per multiplication and
            addition). With several, the study has a Pareto front instead of one best trial, and trials are stopped early only by pruner
            ``promotion``, which compares their Dice alone; ``val_dice`` must then be the first.
        constraints: Largest ``parameters`` and ``operations`` (as above), ``latency`` (seconds of a forward pass of one image, the quickest
            of twenty in the trial) and ``memory`` (peak in the first epoch, 10^9 bytes: what torch took of the GPU, or without GPUs the
            whole process). A trial beyond one of them is not trained, or no further once it is measured, and never the best.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")] = "study"
    trials: Count = 32
    stop: Annotated[int | Literal["auto"] | None, BeforeValidator(_stop)] = None
    time_budget: Positive | None = None
    sampler: Annotated[str, _one_of(SAMPLERS)] = "auto"
    sampler_options: Options = Field(default_factory=FrozenOptions)
    pruner: Annotated[str, _one_of(PRUNERS)] = "auto"
    pruner_options: Options = Field(default_factory=FrozenOptions)
    min_epochs: Count = 1
    reduction_factor: Annotated[int, Field(ge=2, le=LARGEST), Number] = 3
    validate_every: Count | None = None
    keep_weights: Annotated[int | Literal["all"], BeforeValidator(_kept)] = 20
    startup_trials: Count = 10
    seed: Seed = 0
    objectives: Annotated[tuple[str, ...], AfterValidator(_objectives)] = (OBJECTIVE,)
    constraints: Annotated[dict[str, Positive], AfterValidator(_constraints)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> Study:
        for name, chosen, options in (("sampler", self.sampler, self.sampler_options), ("pruner", self.pruner, self.pruner_options)):
            if options and ":" not in chosen:
                raise ValueError(f"{name}_options: {name} {chosen!r} takes none; they are for one that is named as module:name")
        if self.stop and (self.is_list or len(self.objectives) > 1):
            raise ValueError(f"stop: {'a list is run whole' if self.is_list else 'several objectives have no best trial'}; leave it out")
        return self

    @property
    def patience(self) -> int | None:
        """Trials in a row without a better one after which the search ends; ``None``: it does not."""
        return PATIENCE if self.stop == "auto" else self.stop

    @property
    def kept_weights(self) -> int | None:
        """How many trials keep their weights; ``None``: all."""
        return None if self.keep_weights == "all" or self.is_list else self.keep_weights

    @property
    def waits(self) -> bool:
        """True when trials wait at rungs until they are promoted. With several objectives ``auto`` stops none."""
        return self.pruner == "promotion" or (self.pruner == "auto" and len(self.objectives) == 1)

    @property
    def has_rungs(self) -> bool:
        """True when trials are compared at ``min_epochs`` and its multiples by powers of ``reduction_factor``."""
        return self.waits or self.pruner == "asha"

    @property
    def is_list(self) -> bool:
        """True when every listed set of values is run once, as for a table of systems or a grid, and nothing is drawn."""
        return self.sampler == "listed"

    @property
    def learns(self) -> bool:
        """True when the sampler chooses by what earlier trials gave."""
        return self.sampler not in _BY_LOT


_SHARES = frozenset(map(str, range(1, 65)))


def _share(value: Any) -> Any:
    if value is None or value == "auto" or (isinstance(value, int | str) and str(value) in _SHARES):
        return value
    raise ValueError("a whole number from 1 to 64 is needed, or auto")


def _makers(value: Any) -> Any:
    if value == "auto" or (type(value) is int and 0 <= value <= 64):
        return value
    raise ValueError("a whole number from 0 to 64 is needed, or auto")


Shared = bool | Literal["once", "device"]
"""Ways in which trials get their views, see ``Resources.share_views``."""


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Resources:
    """What one trial may use, and how many run side by side.

    Attributes:
        executor: ``train``: a Ray Train worker group per trial; ``actor``: a reused Tune actor, which starts in milliseconds;
            ``auto``: ``train`` with several workers, else ``actor``.
        concurrent: Trials side by side at most; ``None``: as many as the cluster's CPUs and GPUs carry, also when nodes join or leave.
        workers: Processes of one trial (DDP).
        cpus_per_worker: CPU cores of each; also the threads torch may use. ``None``: one without GPUs, else its GPU's share of the node.
        gpus_per_worker: With one worker it may be a part of one, then several trials share a GPU. ``None``: one where there are GPUs when
            the search starts, unless ``trials_per_gpu``.
        accelerator: GPUs of this type alone, as Ray names it, such as ``H200`` or ``A100-80G``; ``ray status`` shows what there is as
            ``accelerator_type:...``. Of a search that mixes types all trials have one precision (``training.precision``), not one speed.
        trials_per_gpu: How many trials share a GPU, instead of ``gpus_per_worker``. A number names GPUs as that does: trials wait for them
            and never run on CPUs. ``auto``: as many as fit into the memory of each type of GPU, found by two training steps of the largest
            models before the search, on a GPU that is free; where none is, trials share none. CUDA graphs are counted where trials may
            use them (``training.compile``). Without GPUs each trial books as much of its
            node's memory as that, so that nodes which join or leave count with theirs.
        wait_for_nodes: Seconds for which a search waits at its start for nodes that carry a trial, where other people started the
            cluster: they may be booting, or an autoscaler adds them.
        max_failures: How often a trial whose process died is continued from its checkpoint.
        share_views: Augmented images and the frozen guide's tokens are made once per node, kept on disk, and read by all trials. Off,
            every trial makes its own: the same ones. ``once``: what was trained on is removed again, as ``retrain`` does by itself unless
            ``data.view_cycle`` repeats views: each of its seeds sees training images of its own. ``device``: every trial augments its own
            images on its GPU, and tokens of validation images alone are kept; for nodes whose cores or disks are too slow for their GPUs.
            A GPU rounds otherwise: such trials differ from others in the last digits, so that a study stays with one way. ``auto``: on
            CPUs as ``true``; of a search on GPUs both are measured when it begins, on its own images, and the study keeps ``device`` or
            ``true``, whichever feeds its trials faster. Whatever is not a search takes it as ``true``.
        views_folder: Where they are kept, best on a disk of the node itself; ``None``: ``views`` in the cache folder of the home, or, where
            that is on a network file system, ``/var/tmp/guidino_tune-UID/views`` of each node.
        views_gigabytes: Disk space for them (10^9 bytes); what fewest trainings read makes room, and of what is not read yet the farthest
            pass. ``None``: half of what the disk has for them, at most 200.
        view_makers: Processes of each node that make augmented images ahead of its trials, of one thread and 300 MB each, as long as that
            takes no room of what is needed earlier; they end with the trials. ``0``: a thread of each trial makes them. ``auto``: on CPUs
            0, for trials leave no core idle there; with GPUs as many as a trial has cores beyond two, at most 8. With any number trials
            give the same results.
    """

    executor: Literal["auto", "actor", "train"] = "auto"
    concurrent: Count | None = None
    workers: Count = 1
    cpus_per_worker: Count | None = None
    gpus_per_worker: NonNegative | None = None
    accelerator: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    trials_per_gpu: Annotated[int | Literal["auto"] | None, BeforeValidator(_share)] = None
    wait_for_nodes: NonNegative = 900.0
    max_failures: Annotated[int, Field(ge=0, le=LARGEST), Number] = 2
    share_views: Shared | Literal["auto"] = "auto"
    views_folder: PathText | None = None
    views_gigabytes: NonNegative | None = None
    view_makers: Annotated[int | Literal["auto"], BeforeValidator(_makers)] = "auto"

    @property
    def shared(self) -> Shared:
        """``share_views`` where nothing was measured."""
        return True if self.share_views == "auto" else self.share_views

    @model_validator(mode="after")
    def _one_share(self) -> Resources:
        gpus = self.gpus_per_worker or 0.0
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_worker: {gpus:g} is no whole number of GPUs; a part of a GPU is below 1")
        if 0 < gpus < 1 and self.workers > 1:
            raise ValueError(
                f"gpus_per_worker: {gpus:g} needs workers: 1; two workers of one trial cannot share a GPU (NCCL): "
                "give each a whole one, or the trial one worker"
            )
        if self.trials_per_gpu is None:
            return self
        if self.gpus_per_worker is not None:
            raise ValueError("gpus_per_worker and trials_per_gpu both say how much of a GPU a trial gets; give one of them")
        if self.workers > 1 and self.trials_per_gpu not in (1, "auto"):
            raise ValueError(f"trials_per_gpu: {self.trials_per_gpu} needs workers: 1; two workers of one trial cannot share a GPU (NCCL)")
        return self
