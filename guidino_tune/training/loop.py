"""The training loop: one experiment from its first epoch to its last, whoever runs it."""

from __future__ import annotations

import logging
import math
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from torch import nn

from guidino_tune.config import DINOGuide, Experiment
from guidino_tune.data.opening import SearchData
from guidino_tune.data.views import Batch, TrainViews, validation_batches, view_seed
from guidino_tune.errors import UserError
from guidino_tune.inference import to_labels
from guidino_tune.losses import SegmentationLoss
from guidino_tune.metrics import score_cases, summarise
from guidino_tune.models import build_model
from guidino_tune.models.backbone import Backbone, load_backbone
from guidino_tune.training import checkpoints
from guidino_tune.training.failures import Diverged
from guidino_tune.training.optimisers import make_optimizer, set_learning_rates
from guidino_tune.training.reporter import Decision, EpochRecord, Reporter

log = logging.getLogger(__name__)

OBJECTIVE = "val_dice"
"""The metric that a study maximises: mean Dice over validation cases (and classes) at training size."""


class TrainingRun:
    """One experiment in training.

    Args:
        experiment: What to train.
        data: Its training and validation cases.
        reporter: Where checkpoints go and epochs are told.
        device: Of the model.
        rank: Of this process among ``world_size`` (DDP over torch.distributed when more than one).
        reported: Epochs that the reporter already knows; later ones found in the checkpoint are told again.
    """

    def __init__(
        self,
        experiment: Experiment,
        data: SearchData,
        reporter: Reporter,
        *,
        device: str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        reported: int = 0,
    ) -> None:
        self.experiment, self.data, self.reporter = experiment, data, reporter
        self.device, self.rank, self.world_size = torch.device(device), rank, world_size
        self.history: list[EpochRecord] = []
        training = experiment.training
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=use_bf16(training.precision, self.device))
        self.model = build_model(experiment, backbone=_shared_backbone(experiment)).to(self.device)
        if training.channels_last:
            self.model.segmenter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss = SegmentationLoss(experiment.loss, experiment.data.num_classes)
        self.optimizer = make_optimizer(self.model.named_parameters(), training)
        self.views = TrainViews(data.train, experiment.data, training.seed, training.batch_size, rank=rank, world_size=world_size)
        self._continue()
        self._backlog = [r for r in self.history if r.epoch > reported]
        self.module: nn.Module = self.model
        if world_size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.module = nn.parallel.DistributedDataParallel(self.model, device_ids=ids)

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.history)

    @property
    def finished(self) -> bool:
        """True when the whole budget is trained and told."""
        return self.epoch >= self.experiment.training.epochs and not self._backlog

    @property
    def best(self) -> float:
        """Best objective so far; minus infinity before the first epoch."""
        return max((r.metrics[OBJECTIVE] for r in self.history), default=-math.inf)

    def run(self) -> None:
        """Trains until the budget is used up or the reporter says stop."""
        while not self.finished:
            if self.run_epoch() is Decision.STOP:
                return

    def run_epoch(self) -> Decision:
        """Trains, validates, saves and tells one epoch; after a restart first tells again what may have been lost.

        Raises:
            Diverged: The loss is not finite; nothing of this epoch is saved.
        """
        if self._backlog:
            return self.reporter.report(self._backlog.pop(0))
        if self.epoch >= self.experiment.training.epochs:
            return self.reporter.report(self.history[-1])
        start = time.perf_counter()
        metrics = self._train()
        seconds = time.perf_counter() - start
        metrics |= self._validate()
        metrics |= {"epoch_seconds": time.perf_counter() - start, "images_per_second": len(self.data.train) / seconds}
        improved = metrics[OBJECTIVE] > self.best
        record = EpochRecord(self.epoch + 1, metrics, time.time())
        self.history.append(record)
        if self.rank == 0:
            self.reporter.save(record.epoch, self._write, best=improved)
        return self.reporter.report(record)

    def _train(self) -> dict[str, float]:
        training = self.experiment.training
        # Everything random in an epoch follows from seed, epoch and rank: a continued run needs no saved random state.
        torch.manual_seed(view_seed(training.seed, self.epoch, f"rank {self.rank}"))
        set_learning_rates(self.optimizer, training, self.epoch)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.module.train()
        sums: dict[str, torch.Tensor] = {}
        steps = 0
        for batch in self.views.epoch(self.epoch):
            images, masks = self._to_device(batch)
            with self.autocast:
                prediction = self.module(images)
            terms = self.loss(prediction.logits, prediction.guide, masks)
            self.optimizer.zero_grad(set_to_none=True)
            terms["total"].backward()
            if training.grad_clip is not None:
                nn.utils.clip_grad_norm_(parameters, training.grad_clip)
            self.optimizer.step()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach()
            steps += 1
        # The only read-back of the epoch; NaN or infinity in any step of any worker stays in its sum.
        totals = torch.stack(list(sums.values()))
        if self.world_size > 1:
            torch.distributed.all_reduce(totals)
        means = {f"train_{name}": total / steps / self.world_size for name, total in zip(sums, totals.tolist(), strict=True)}
        if not all(math.isfinite(v) for v in means.values()):
            raise Diverged(f"the training loss is not finite in epoch {self.epoch + 1}: {means}")
        return means | {"lr": self.optimizer.param_groups[0]["lr"]}

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        self.model.eval()
        if self.world_size > 1:
            # Batch norm's running statistics differ between workers after the last step; those of rank 0 are the ones saved.
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)
        section, scores = self.experiment.data, []
        for number, batch in enumerate(validation_batches(self.data.validation, section, self.experiment.training.batch_size)):
            if number % self.world_size != self.rank:
                continue
            images, _ = self._to_device(batch)
            with self.autocast:
                logits = self.model(images).logits[0]
            predictions, truths = to_labels(logits.float()).cpu().numpy(), batch.masks[:, 0].numpy().astype(np.uint8)
            scores += score_cases(list(predictions), list(truths), num_classes=section.num_classes)
        if self.world_size > 1:
            gathered: list = [None] * self.world_size
            torch.distributed.all_gather_object(gathered, scores)
            scores = [score for part in gathered for score in part]
        return {f"val_{name}": value for name, value in summarise(scores).items()}

    def _to_device(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        images, masks = batch.images, batch.masks
        if self.device.type == "cuda":
            images, masks = images.pin_memory(), masks.pin_memory()
        images = images.to(self.device, non_blocking=True)
        if self.experiment.training.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, masks.to(self.device, non_blocking=True)

    def _write(self, folder: Path) -> None:
        checkpoints.write_checkpoint(
            folder, self.model.trained_state(), self.optimizer, experiment_hash=self.experiment.hash, history=self.history
        )

    def _continue(self) -> None:
        """Goes on from the newest checkpoint that is whole, if there is one."""
        for folder in self.reporter.checkpoints():
            try:
                saved = checkpoints.read_checkpoint(folder)
            except UserError as error:
                log.warning("%s", error)
                continue
            if saved.experiment != self.experiment.hash:
                raise ValueError(f"{folder} belongs to experiment {saved.experiment}, not {self.experiment.hash}")
            self.model.load_trained_state(saved.weights)
            checkpoints.restore_optimizer(self.optimizer, saved.optimizer)
            self.history = saved.history
            return


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to autocast to bfloat16; ``auto`` does so where the hardware multiplies it natively (else it is slower than fp32)."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


@lru_cache(maxsize=2)
def _frozen_backbone(guide: DINOGuide) -> Backbone:
    return load_backbone(guide)


def _shared_backbone(experiment: Experiment) -> Backbone | None:
    """The frozen guide backbone of this process, read once for all trials; adapters change it, so LoRA trials read their own."""
    guide = experiment.guide
    if not isinstance(guide, DINOGuide) or guide.lora.rank > 0:
        return None
    return _frozen_backbone(DINOGuide(backbone=guide.backbone, weights=guide.weights, sha256=guide.sha256))
