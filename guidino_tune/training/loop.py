"""The training loop: one experiment from its first epoch to its last, whoever runs it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed
from torch import nn

from guidino_tune.config import Experiment
from guidino_tune.config.study import OBJECTIVE, Shared
from guidino_tune.data.batches import Batch
from guidino_tune.data.opening import SearchData
from guidino_tune.data.store import ChunkStore
from guidino_tune.data.views import TrainViews, validation_batches, view_seed
from guidino_tune.inference import slide, to_labels
from guidino_tune.losses import SegmentationLoss
from guidino_tune.models import build_model, start_pretrained
from guidino_tune.models.backbone import Features
from guidino_tune.models.parts.convolutions import batch_counter
from guidino_tune.models.precision import autocast_in, channels_last_pays, use_bf16
from guidino_tune.training import checkpoints
from guidino_tune.training.backbones import check_fingerprint
from guidino_tune.training.case_scores import SHOWN, Shown, Validated, scores_of
from guidino_tune.training.compile_choice import make_chooser
from guidino_tune.training.compiling import Compiled, way_of
from guidino_tune.training.costs import costs_of, forget_peak
from guidino_tune.training.failures import Diverged
from guidino_tune.training.kernels import quick_kernels
from guidino_tune.training.optimisers import make_optimizer, set_learning_rates
from guidino_tune.training.pace import Pace
from guidino_tune.training.ranks import Ranks
from guidino_tune.training.reporter import Decision, EpochRecord, Reporter
from guidino_tune.training.saving import Saver
from guidino_tune.training.tokens import make_encoder, shared_backbone, to_features

log = logging.getLogger(__name__)

OVERLAP = 0.25
"""Of the windows in which patches are validated in a search; the full protocol takes its own."""


class TrainingRun:
    """One experiment in training.

    Args:
        experiment: What to train.
        data: Its training and validation cases.
        reporter: Where checkpoints go and epochs are told.
        device: Of the model.
        rank: Of this process among ``world_size`` (DDP over torch.distributed when more than one).
        reported: Epochs that the reporter already knows; later ones found in the checkpoint are told again.
        store: Where views and tokens are shared with other trials; ``None``: they are made here, with the same content.
        share_views: See ``Resources``; with ``device`` the store has tokens of validation images only.
        validated: Epochs (from 1) after which the model is validated, besides the last; ``None``: all.
        micro_batches: Parts in which a batch goes through the network, one after the other, to take less memory. Gradients add up to those
            of the whole batch but for what is computed over a batch: batch normalisation, Dice and Tversky with ``batch_dice``, the hardest
            pixels (top-k), and, where pixels are ignored or classes have weights, the means over pixels.
        saved: Epochs that are told only when their checkpoint is written, however long that takes, besides the last one: after them a
            trial may end. Better ones are always saved, others at the ``Pace``; both are written while the training goes on.
        measure: The first epoch in this process also tells ``memory`` (10^9 bytes) and ``latency`` (seconds), see ``training.costs``.
        synced_norm: On GPUs batch normalisation is over the images of all workers; off, and on CPUs, over each worker's own.
        time_left: Seconds from now after which each epoch may be the last one in this process.
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
        store: ChunkStore | None = None,
        share_views: Shared = True,
        validated: Collection[int] | None = None,
        saved: Collection[int] = (),
        micro_batches: int = 1,
        measure: bool = False,
        synced_norm: bool = True,
        time_left: float = math.inf,
    ) -> None:
        self.experiment, self.data, self.reporter = experiment, data, reporter
        self.device, self.rank, self.world_size = torch.device(device), rank, world_size
        self.store, self.validated, self.micro_batches = store, validated, micro_batches
        self.measure, self.saved = measure, saved
        self._pace, self._saver, self._whole = Pace(time_left), Saver(), False
        self.history: list[EpochRecord] = []
        self.shown: list[Shown] = []
        """Of the last validation: the first cases, always the same ones, so that trials can be compared by eye."""
        self.best_shown: list[Shown] = []
        """Of the validation that gave the best objective in this process."""
        self.num_shown = SHOWN
        self.validation = Validated()
        """Of the last validation: the scores of every case, and the worst and the best of them."""
        self.best_validation: tuple[int, Validated] | None = None
        """The epoch that gave the best objective in this process, and its validation."""
        training = experiment.training
        bf16 = use_bf16(training.precision, self.device)
        self.autocast = autocast_in(training.precision, self.device)
        # Small gradients are zero in fp16 unless the loss is large; where they become infinite, the scaler leaves the step out.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=training.precision == "fp16")
        self.model = build_model(experiment, backbone=shared_backbone(experiment, bf16=bf16)).to(self.device)
        if world_size > 1 and self.device.type == "cuda" and synced_norm:
            # The statistics of a few images alone would be another training. On CPUs torch has no such layer.
            nn.SyncBatchNorm.convert_sync_batchnorm(self.model.segmenter)
        self.channels_last = training.channels_last and channels_last_pays(self.model.segmenter, self.device, bf16)
        if self.channels_last:
            self.model.segmenter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        share = -(-training.batch_size // (world_size * micro_batches))
        self.compiled, self.ranks = Compiled(self.model.segmenter, way_of(training.compile, micro_batches), share), Ranks(world_size)
        self.loss = SegmentationLoss(experiment.loss, experiment.data.num_classes, experiment.data.has_ignored).to(self.device)
        self.optimizer, self._count_batch = make_optimizer(self.model.named_parameters(), training), batch_counter(self.model.segmenter)
        self.encoder = make_encoder(experiment, self.model, bf16=bf16, parts=micro_batches)
        self.views = TrainViews(
            data.train, experiment.data, training.seed, training.batch_size, rank, world_size,
            store=None if share_views == "device" else store, once=share_views == "once", encoder=self.encoder,
            num_epochs=training.epochs, steps=training.steps_per_epoch, device=self.device if share_views == "device" else None,
        )  # fmt: skip
        self.chooser = make_chooser(self.compiled, experiment, self.device, self.ranks, micro_batches, self.channels_last)
        self._continue()
        self._saved = self.epoch
        self._backlog = [r for r in self.history if r.epoch > reported]
        self.module: nn.Module = self.model
        if world_size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.module = nn.parallel.DistributedDataParallel(self.model, device_ids=ids)
        self._end_kernels = quick_kernels(self.device)  # at last: who cannot be made is not closed

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
        return max((r.metrics[OBJECTIVE] for r in self.history if OBJECTIVE in r.metrics), default=-math.inf)

    def run(self) -> None:
        """Trains until the budget is used up or the reporter says stop."""
        while not self.finished:
            if self.run_epoch() is Decision.STOP:
                return

    def close(self) -> None:
        """Ends what works for later epochs, and saves a whole epoch that was not worth its time; without it both end with the process.

        Where that epoch cannot be saved it is trained again, if the trial goes on: no error of this trial, nor of the next one here.
        """
        self.views.close()
        self.finish_saving()
        try:
            if self.rank == 0 and self._whole and not self._saver.failed and self._saved < self.epoch:
                self._save(wait=True)
        except Exception as error:
            log.warning("epoch %d is not saved: %s", self.epoch, error)
        self._saver.close()
        self.compiled.close()
        self._end_kernels()

    def finish_saving(self) -> None:
        """Waits for a checkpoint that is being written: whoever removes it, or its weights, does so for good."""
        try:
            self._saver.finish()
        except Exception as error:
            log.warning("a checkpoint is not saved: %s", error)

    def run_epoch(self) -> Decision:
        """Trains, validates if it is time, saves and tells one epoch; after a restart first tells again what may have been lost.

        An epoch may be told that is not saved, or not yet, see ``Pace``: a run that dies trains it again, on CPUs with the same numbers.

        Raises:
            Diverged: The loss, a weight or a prediction is not finite; nothing of this epoch is saved.
            OSError: This epoch, or an earlier one, could not be saved; no later one is.
        """
        if self._backlog:
            return self.reporter.report(self._backlog.pop(0))
        if self.epoch >= self.experiment.training.epochs:
            return self.reporter.report(self.history[-1])
        if self.measure:
            forget_peak(self.device)
        start, self._whole, measured = time.perf_counter(), False, self.measure
        metrics, images = self._train()
        seconds = time.perf_counter() - start
        last = self.epoch + 1 == self.experiment.training.epochs
        validated = last or self.validated is None or self.epoch + 1 in self.validated
        if validated:
            metrics |= self._validate(distances=last)
        self._check_weights()
        metrics |= {"epoch_seconds": time.perf_counter() - start, "images_per_second": images / seconds}
        if self.micro_batches > 1:
            metrics["micro_batches"] = self.micro_batches
        if self.measure:
            self.measure = False  # later epochs would tell the same
            metrics |= costs_of(self.model, self.experiment.data, self.device, self.autocast, channels_last=self.channels_last)
        if self.chooser is not None:
            metrics |= self.chooser.news()
        improved = metrics.get(OBJECTIVE, -math.inf) > self.best
        if improved:
            self.best_shown, self.best_validation = self.shown, (self.epoch + 1, self.validation)
        record = EpochRecord(self.epoch + 1, metrics, time.time())
        self.history.append(record)
        if self.rank == 0:
            needed = last or record.epoch in self.saved or self._pace.ending or measured  # what was measured may end the trial
            if needed or improved or (self._pace.allows(validated=validated) and self._saver.is_free()):
                self._save(best=improved, wait=needed)
            self._saver.check()
        self._whole = True  # not before: after a save that failed, the end of the run would save the epoch without its best weights
        decision = self.reporter.report(record)
        if decision is Decision.STOP:
            self._saver.finish()
        return decision

    def _save(self, *, best: bool = False, wait: bool) -> None:
        self._saver.finish()  # before the copy: of two the memory would be taken twice
        epoch, write = self.epoch, self._writer()

        def keep() -> None:
            with self._pace.measured():
                self.reporter.save(epoch, write, best=best)
            self._saved = epoch

        self._saver.begin(keep)
        if wait:
            self._saver.finish()

    def _check_weights(self) -> None:
        """The last step may have spoiled the weights, which no loss of this epoch has seen, and no prediction without a validation."""
        finite = [value.isfinite().all() for value in self.model.trained_state().values() if value.is_floating_point()]
        if not self.ranks.all_good(torch.stack(finite).all()):
            raise Diverged(f"a weight is not finite after epoch {self.epoch + 1}")

    def _train(self) -> tuple[dict[str, float], int]:
        """The metrics of one epoch, and the images that all workers saw in it."""
        training = self.experiment.training
        # Everything random in an epoch follows from seed, epoch and rank: a continued run needs no saved random state.
        torch.manual_seed(view_seed(training.seed, self.epoch, f"rank {self.rank}"))
        set_learning_rates(self.optimizer, training, self.epoch)
        self.module.train()
        sums, steps, images = dict[str, torch.Tensor](), 0, 0
        for batch in self.views.epoch(self.epoch, pin=self.device.type == "cuda"):
            terms = self.step(batch)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value
            steps, images = steps + 1, images + len(batch.ids) * self.world_size
        self.optimizer.zero_grad()  # a validation and the copy for a checkpoint take their memory
        # The only read-back of the epoch; NaN or infinity in any step of any worker stays in its sum.
        totals = torch.stack(list(sums.values()))
        if self.world_size > 1:
            torch.distributed.all_reduce(totals)
        means = {f"train_loss_{name}": total / steps / self.world_size for name, total in zip(sums, totals.tolist(), strict=True)}
        if not all(math.isfinite(v) for v in means.values()):
            raise Diverged(f"the training loss is not finite in epoch {self.epoch + 1}: {means}")
        return means | {"lr": self.optimizer.param_groups[0]["lr"]}, images

    def step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One step of the optimiser on a batch from the CPU; gives the terms of its loss, on the device. The module is in train mode."""
        self.optimizer.zero_grad(set_to_none=True)
        moved = self._to_device(batch)
        with self._choosing(moved.split(self.micro_batches)[-1]):  # the largest part
            return self._step(moved)

    def _choosing(self, part: Batch) -> AbstractContextManager[None]:
        if self.chooser is None or self.measure:  # the memory that is told is that of steps as they are, whoever compiles
            return nullcontext()
        end = min((epoch for epoch in self.saved if epoch > self.epoch), default=self.experiment.training.epochs)
        return self.chooser.around(len(part.ids), (end - self.epoch) * self.views.num_steps, lambda: self._rehearse(part))

    def _step(self, batch: Batch) -> dict[str, torch.Tensor]:
        terms = self._backward(batch)
        self.scaler.unscale_(self.optimizer)
        if (limit := self.experiment.training.grad_clip) is not None:
            # With foreach a few operations do what else takes two for each weight.
            nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], limit, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return terms

    def _backward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Adds up the gradients of a batch; gives its loss terms, on the device."""
        parts = batch.split(self.micro_batches)
        sums: dict[str, torch.Tensor] = {}
        for number, part in enumerate(parts, 1):
            share = len(part.ids) / len(batch.ids)
            # Gradients of several workers are exchanged once, with the last part.
            with self.module.no_sync() if self.world_size > 1 and number < len(parts) else nullcontext():  # type: ignore[operator]
                with self.autocast, self.compiled(len(part.ids)):
                    prediction = self.module(part.images, self._features(part))
                self._count_batch()
                terms = self.loss(prediction.logits, prediction.guide, part.masks)
                if len(parts) == 1:
                    self.scaler.scale(terms["total"]).backward()
                    return {name: value.detach() for name, value in terms.items()}
                self.scaler.scale(terms["total"] * share).backward()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach() * share
        return sums

    def _rehearse(self, batch: Batch) -> None:
        """Forward and backward pass, of which nothing remains but what batch norms learned."""
        with self.autocast, self.compiled(len(batch.ids)):
            prediction = self.model(batch.images, self._features(batch))
        total = self.loss(prediction.logits, prediction.guide, batch.masks)["total"]
        torch.autograd.grad(self.scaler.scale(total), [p for p in self.model.parameters() if p.requires_grad], allow_unused=True)

    @torch.no_grad()
    def _validate(self, *, distances: bool) -> dict[str, float]:
        """Mean scores of one forward pass per case at training size; HD95 and ASD only on demand, for they take longer than the network."""
        self.model.eval()
        if self.world_size > 1:
            # Batch norm's running statistics differ between workers after the last step; those of rank 0 are the ones saved.
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)
        section, finite = self.experiment.data, True
        self.shown, self.validation = [], Validated()
        for batch in validation_batches(
            self.data.validation, section, self.experiment.training.batch_size, store=self.store, encoder=self.encoder,
            rank=self.rank, world_size=self.world_size, pin=self.device.type == "cuda",
            begun=not any(OBJECTIVE in record.metrics for record in self.history),
        ):  # fmt: skip
            on_device = self._to_device(batch)
            logits, masks = self._predict(on_device)
            # The label of what is no number would be background, and its score like any other.
            finite &= bool(logits.isfinite().all())
            predictions, truths = to_labels(logits.float()).cpu().numpy(), batch.masks[:, 0].numpy()
            guides = None if masks is None else masks[:, 0].float().cpu().numpy()
            for index, (prediction, truth) in enumerate(zip(predictions, truths, strict=True)):
                scores = scores_of(prediction, truth, section, distances=distances)
                self.validation.add(batch.ids[index], scores, prediction, None if guides is None else guides[index])
            for index in range(min(len(batch.ids), self.num_shown - len(self.shown))):
                self.shown.append(Shown(batch.ids[index], predictions[index], None if guides is None else guides[index]))
        gathered = self.ranks.gathered((self.validation.scores, finite))
        self.validation.scores = {name: scores for part, _ in gathered for name, scores in part.items()}
        if not all(good for _, good in gathered):
            raise Diverged(f"the predictions for the validation cases are not finite after epoch {self.epoch + 1}")
        return {f"val_{name}": value for name, value in self.validation.means(section).items()}

    def _predict(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits and guide mask: of one forward pass, or of patches from windows over the image at its own scale."""
        data = self.experiment.data
        with self.autocast, self.compiled():
            if self.data.validation.native:
                return slide(self.model, batch.images, data.image_size, overlap=OVERLAP)
            output = self.model(batch.images, self._features(batch))
        return output.logits[0], output.guide

    def _features(self, batch: Batch) -> Features | None:
        """Of a frozen guide, in the precision in which they are shared, shared or not: a disk that fills up must not change a trial."""
        if batch.tokens or self.encoder is None:
            return to_features(batch.tokens)
        return to_features([x.float() for x in self.encoder.maps(batch.images)])

    def _to_device(self, batch: Batch) -> Batch:
        moved = batch.to(self.device)
        if not self.channels_last:
            return moved
        images, *tokens = (x.contiguous(memory_format=torch.channels_last) for x in (moved.images, *moved.tokens))
        return replace(moved, images=images, tokens=tuple(tokens))

    def _writer(self) -> Callable[[Path], None]:
        """Writes the state of now into a folder, whenever it is called."""
        state = checkpoints.snapshot(self.model.trained_state(), self.optimizer)
        return partial(
            checkpoints.write_checkpoint, state=state, experiment_hash=self.experiment.hash, history=tuple(self.history),
            backbone=self.model.fingerprint, scaler=self.scaler.state_dict(),
        )  # fmt: skip

    def _continue(self) -> None:
        """Goes on from the newest checkpoint that is whole; where there is none, from pretrained weights if any are named."""
        folder, saved = checkpoints.newest_whole(self.reporter.checkpoints())
        if saved is None:
            start_pretrained(self.model.segmenter, self.experiment)
            return
        if self.experiment.hash not in (saved.experiment, self.reporter.experiment_hash()):
            raise ValueError(f"{folder} belongs to experiment {saved.experiment}, not {self.experiment.hash}")
        check_fingerprint(self.experiment, self.model, saved.backbone, str(folder))
        self.model.load_trained_state(saved.weights)
        checkpoints.restore_optimizer(self.optimizer, saved.optimizer)
        if saved.scaler:
            self.scaler.load_state_dict(saved.scaler)
        self.history = saved.history
