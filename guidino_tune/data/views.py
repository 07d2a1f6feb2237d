"""Views: what training sees of each case in each epoch. They depend on the study's seed, the epoch and the case, and on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from guidino_tune.config.sections import Data
from guidino_tune.data.augmentation import make_augmentation
from guidino_tune.data.cases import stable_hash
from guidino_tune.data.table import CaseTable
from guidino_tune.errors import UserError
from guidino_tune.normalisation import normalise


@dataclass(frozen=True, slots=True)
class Batch:
    """Some views.

    Attributes:
        images: float32 (B, 3, S, S), normalised.
        masks: float32 (B, 1, S, S) of 0 and 1, or of labels 0 to the number of classes.
        ids: The B case ids.
    """

    images: Tensor
    masks: Tensor
    ids: tuple[str, ...]


def view_seed(study_seed: int, epoch: int, case_id: str) -> int:
    """The seed of one view: 63 bits, the same for every trial of a study, on every machine and for any batch size."""
    return stable_hash("view", study_seed, epoch, case_id)


class TrainViews:
    """The training cases, augmented and in a new order each epoch, the same in every trial of a study.

    With several workers every rank takes its equal share of each batch of ``batch_size``, so that their union is what one worker sees.
    The last batch of an epoch may be incomplete: one worker keeps it, unless it would hold a single case, which batch normalisation
    cannot learn from: that case is left out of the epoch (another one in the next). Several workers leave out an incomplete last batch.

    Args:
        table: The training cases.
        data: How images are normalised and augmented.
        study_seed: Seed of order and augmentation.
        batch_size: Cases per optimiser step over all workers; a multiple of ``world_size``.
        rank: This worker, from 0.
        world_size: Number of workers.

    Raises:
        UserError: ``batch_size`` cannot be shared equally, or there are too few cases for one batch.
        ValueError: ``rank`` is not in the range of ``world_size``.
    """

    def __init__(self, table: CaseTable, data: Data, study_seed: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} workers")
        if batch_size % world_size:
            raise UserError(
                f"{batch_size} cases cannot be shared equally by {world_size} workers",
                where="training.batch_size",
                todo=f"choose a multiple of {world_size}",
            )
        self._table = table
        self._normalisation = data.normalisation
        self._augment = make_augmentation(data.augmentation)
        self._seed = study_seed
        self._batch_size = batch_size
        self._share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        full, rest = divmod(len(table), batch_size)
        self.num_batches: int = full + int(world_size == 1 and rest >= 2)
        """Batches per epoch, the same on every rank."""
        if self.num_batches == 0:
            raise UserError(
                f"{len(table)} training cases are too few for a batch of {batch_size} on {world_size} workers",
                where="training.batch_size",
                todo="use smaller batches, or more cases (data.max_train_cases)",
            )

    def order(self, epoch: int) -> list[tuple[str, ...]]:
        """The ids of this rank's batches in an epoch."""
        ids = sorted(self._table.ids, key=lambda name: (stable_hash("order", self._seed, epoch, name), name))
        starts = range(0, self.num_batches * self._batch_size, self._batch_size)
        return [tuple(ids[start : start + self._batch_size][self._share]) for start in starts]

    def view(self, epoch: int, case_id: str) -> tuple[Tensor, Tensor]:
        """One view: image (3, S, S) and mask (1, S, S)."""
        return self._augment(*_case(self._table, self._normalisation, case_id), view_seed(self._seed, epoch, case_id))

    def epoch(self, epoch: int) -> Generator[Batch, None, None]:
        """The batches of an epoch (from 0). A thread makes the next one while the caller works on this one; ``close()`` ends it early."""
        return _ahead(self.order(epoch), lambda name: self.view(epoch, name))


def validation_batches(table: CaseTable, data: Data, batch_size: int) -> Generator[Batch, None, None]:
    """Every case once, normalised but not augmented, in the order of the table; the last batch may be smaller."""
    ids = table.ids
    batches = [ids[start : start + batch_size] for start in range(0, len(ids), batch_size)]
    return _ahead(batches, lambda name: _case(table, data.normalisation, name))


def _case(table: CaseTable, normalisation: str, case_id: str) -> tuple[Tensor, Tensor]:
    index = table.positions[case_id]
    return normalise(table.image(index), normalisation), torch.tensor(table.mask(index), dtype=torch.float32)[None]


def _ahead(batches: Sequence[tuple[str, ...]], make: Callable[[str], tuple[Tensor, Tensor]]) -> Generator[Batch, None, None]:
    def build(ids: tuple[str, ...]) -> Batch:
        images, masks = zip(*(make(name) for name in ids), strict=True)
        return Batch(torch.stack(images), torch.stack(masks), ids)

    with ThreadPoolExecutor(1, thread_name_prefix="views") as thread:
        upcoming = thread.submit(build, batches[0]) if batches else None
        for following in (*batches[1:], None):
            if upcoming is None:
                return
            batch = upcoming.result()
            upcoming = thread.submit(build, following) if following is not None else None
            yield batch
