"""Views: what training sees of each case in each epoch. They depend on ``training.seed``, the epoch and the case, and on nothing else.

So they, and a frozen guide's tokens of them, can be made by one trial and read by all others of the node (see ``ChunkStore``).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guidino_tune.config.data import Data
from guidino_tune.config.epochs import Steps, batches_per_pass, steps_per_epoch
from guidino_tune.config.parsing import parse
from guidino_tune.data.augmentation import make_augmentation
from guidino_tune.data.batches import Batch, made_ahead
from guidino_tune.data.cases import stable_hash
from guidino_tune.data.patches import MARGIN, centre, cut_patch
from guidino_tune.data.shared_views import OPEN_CHUNKS, VERSIONS, Encoder, SharedViews, in_chunks, key_of
from guidino_tune.data.store import Arrays, ChunkStore
from guidino_tune.data.table import CaseTable
from guidino_tune.errors import UserError
from guidino_tune.normalisation import normalise

DECISIVE = ("normalisation", "augmentation", "patch_foreground", "image_size")
"""Fields of ``Data`` on which a view depends besides its decoded case."""

AHEAD = 3
"""Epochs beyond the next one whose passes makers are asked for: not all, which might not be wanted in the end, nor fit on the disk."""

_ORDERS = 2 * (AHEAD + 2)  # of passes that are remembered: a maker walks again and again over all that it is asked for

TOGETHER = 8
"""Views that are made at once: of more, what lies between two operations does not stay in a CPU's cache."""


def view_seed(seed: int, epoch: int, case_id: str) -> int:
    """The seed of one view: 63 bits, the same for every trial of a study, on every machine and for any batch size."""
    return stable_hash("view", seed, epoch, case_id)


def passes_ahead(epoch: int, steps: int, batches: int) -> tuple[range, range]:
    """Passes of an epoch and the next one, which a training makes if nobody else does; and with those that makers are asked for.

    Args:
        epoch: From 0.
        steps: Batches of an epoch.
        batches: Of a pass.
    """
    near = range(epoch * steps // batches, ((epoch + 2) * steps - 1) // batches + 1)
    return near, range(near.start, near.stop + AHEAD * steps // batches + 1)


class TrainViews:
    """The training cases, augmented and in a new order in each pass over them, the same in every trial of a study.

    An epoch is a number of batches, which go on in the pass where the epoch before it ended; or just one pass.

    With several workers every rank takes its equal share of each batch of ``batch_size``, so that their union is what one worker sees.
    The last batch of a pass may be incomplete, see ``batches_per_pass``; in the next pass other cases are the last ones.

    Args:
        table: The training cases.
        data: How images are normalised and augmented.
        seed: Of order and augmentation; trials with the same one share their views.
        batch_size: Cases per optimiser step over all workers; a multiple of ``world_size``.
        rank: This worker, from 0.
        world_size: Number of workers.
        store: Where views are shared with other trials; ``None``: they are made here, batch by batch, with the same content.
        once: Passes that were trained on are removed from it again, but for those that others have made.
        encoder: Its tokens of the views are shared too; without a store it is not asked.
        num_epochs: Budget of the trial: no pass after it is prepared.
        steps: Batches of an epoch, see ``config.epochs.steps_per_epoch``.
        device: Where views that are not shared are augmented, and stay; ``None``: on the CPU. They equal those of the CPU to the rounding
            of float16.

    Raises:
        UserError: ``batch_size`` cannot be shared equally, or there are too few cases for one batch.
        ValueError: ``rank`` is not in the range of ``world_size``.
    """

    def __init__(
        self,
        table: CaseTable,
        data: Data,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        store: ChunkStore | None = None,
        once: bool = False,
        encoder: Encoder | None = None,
        num_epochs: int | None = None,
        steps: Steps = "cases",
        device: torch.device | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} workers")
        if batch_size % world_size:
            raise UserError(
                f"{batch_size} cases cannot be shared equally by {world_size} workers",
                where="training.batch_size",
                todo=f"choose a multiple of {world_size}",
            )
        self._table = table
        self._data = data
        self._seed, self._device = seed, device
        self._batch_size = batch_size
        self._share = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self.num_batches = batches_per_pass(len(table), batch_size, world_size)
        """Batches of a pass, the same on every rank."""
        if self.num_batches == 0:
            raise UserError(
                f"{len(table)} training cases are too few for a batch of {batch_size} on {world_size} workers",
                where="training.batch_size",
                todo="use smaller batches, or more cases (data.max_train_cases)",
            )
        self.num_steps = steps_per_epoch(steps, self.num_batches)
        """Batches of an epoch."""
        self._sequence = lru_cache(maxsize=_ORDERS)(self._ordered)
        self._shared = (
            SharedViews(store, encoder, self._views_key(), self._chunk_ids, self._make, once=once and not data.view_cycle)
            if store
            else None
        )
        self._passes = None if num_epochs is None else -(-num_epochs * self.num_steps // self.num_batches)  # that are begun

    def order(self, number: int) -> list[tuple[str, ...]]:
        """The ids of this rank's batches in a pass (from 0)."""
        ids = self._sequence(number)
        starts = range(0, self.num_batches * self._batch_size, self._batch_size)
        return [ids[start : start + self._batch_size][self._share] for start in starts]

    def views(self, number: int, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Views of a pass, made anew: images (B, C, S, S), float16, and masks (B, 1, S, S), uint8."""
        parts = [self._augmented(number, ids[start : start + TOGETHER]) for start in range(0, len(ids), TOGETHER)]
        images, masks = zip(*parts, strict=True)
        return torch.cat(images), torch.cat(masks)

    def _augmented(self, number: int, ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        seeds = [view_seed(self._seed, self._source(number), name) for name in ids]
        cases = [self._case(name, seed) for name, seed in zip(ids, seeds, strict=True)]
        images, masks = (torch.stack(tensors).to(self._device or "cpu") for tensors in zip(*cases, strict=True))
        images, masks = make_augmentation(self._data.augmentation)(images, masks, seeds)
        if self._table.native:
            images, masks = centre(images, self._data.image_size), centre(masks, self._data.image_size)
        return images.half(), masks.to(torch.uint8)

    def _case(self, case_id: str, seed: int) -> tuple[Tensor, Tensor]:
        """What a view is made of: image (C, L, L), normalised, and mask (1, L, L); of a native one a window that is drawn for it."""
        data, row = self._data, self._table.positions[case_id]
        image = normalise(self._table.image(row), data.normalisation)
        mask = torch.tensor(self._table.mask(row), dtype=torch.float32)[None]
        if not self._table.native:
            return image, mask
        rng = np.random.default_rng((seed, 1))  # not that of the augmentation
        margin = 1.0 if data.augmentation == "none" else MARGIN
        return cut_patch(image, mask, data.image_size, data.patch_foreground, rng, margin=margin)

    def epoch(self, epoch: int, *, pin: bool = False) -> Generator[Batch, None, None]:
        """The batches of an epoch (from 0). A thread makes the next one while the caller works on this one; ``close()`` ends it early.

        Args:
            epoch: From 0.
            pin: For a GPU; see ``Batch.pinned``.
        """
        first = epoch * self.num_steps
        if self._shared:
            passes, far = passes_ahead(epoch, self.num_steps, self.num_batches)
            near, wanted = ([*dict.fromkeys(self._source(p) for p in some if p < (self._passes or far.stop))] for some in (passes, far))
            self._shared.prepare(near, wanted, lambda: self.recipe)
        places = [divmod(step, self.num_batches) for step in range(first, first + self.num_steps)]
        orders = {number: self.order(number) for number in dict(places)}
        return made_ahead([(number, orders[number][index]) for number, index in places], self._batch, pin)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """All that decides about the images of a pass, for ``views_of``."""
        data = {name: getattr(self._data, name) for name in DECISIVE}
        return {"key": self._views_key(), "table": str(self._table.path), "rows": self._table.rows, "data": data, "seed": self._seed}

    def make_next(self, passes: Sequence[int]) -> bool:
        """Makes a missing chunk of these passes ahead of a training; see ``SharedViews.make_next``."""
        return self._shared is not None and self._shared.make_next(passes)

    def close(self, *, wait: bool = False) -> None:
        """Ends the preparation of further epochs; see ``SharedViews.close``."""
        if self._shared:
            self._shared.close(wait=wait)

    def _source(self, number: int) -> int:
        """The pass whose views are shown."""
        return number % self._data.view_cycle if self._data.view_cycle else number

    def _batch(self, number: int, ids: tuple[str, ...]) -> Batch:
        if self._shared and not self._shared.store.problem:
            return self._shared.batch(self._source(number), ids)
        return Batch(*self.views(number, ids), ids)

    def _ordered(self, epoch: int) -> tuple[str, ...]:
        return tuple(sorted(self._table.ids, key=lambda name: (stable_hash("order", self._seed, epoch, name), name)))

    def _chunk_ids(self, epoch: int) -> list[tuple[str, ...]]:
        return in_chunks(self._sequence(epoch))

    def _make(self, epoch: int, ids: Sequence[str]) -> Arrays:
        images, masks = self.views(epoch, ids)
        return {"images": images.numpy(), "masks": masks.numpy()}

    def _views_key(self) -> str:
        data = self._data
        patch = data.patch_foreground if self._table.native else ""
        return key_of(self._table.fingerprint, data.normalisation, data.augmentation, patch, self._seed, *VERSIONS)


def views_of(recipe: Mapping[str, Any], store: ChunkStore, *, once: bool = False) -> TrainViews:
    """The views of a training in another process.

    Args:
        recipe: Of a ``makers.Wish``.
        store: Of both.
        once: What is made here is removed by ``close``.

    Raises:
        ValueError: This process would make others, as with another version of a library.
    """
    data = parse(Data, {"kind": "folder", **recipe["data"]}, "recipe of views")
    views = TrainViews(CaseTable(Path(recipe["table"]), recipe["rows"]), data, recipe["seed"], 1, store=store, once=once)
    if views.recipe["key"] != recipe["key"]:
        raise ValueError(f"key {views.recipe['key']} instead of {recipe['key']}")
    return views


def validation_batches(
    table: CaseTable,
    data: Data,
    batch_size: int,
    *,
    store: ChunkStore | None = None,
    encoder: Encoder | None = None,
    rank: int = 0,
    world_size: int = 1,
    pin: bool = False,
    begun: bool = True,
) -> Generator[Batch, None, None]:
    """Every case once, normalised but not augmented, in the order of the table; the last batch may be smaller.

    Native cases come one by one, without tokens: windows of them are seen, which are not known here.

    Args:
        table: The validation cases.
        data: How images are normalised.
        batch_size: Of each batch.
        store: With an encoder: where its tokens are kept; they are made once, whatever trials and epochs ask for them.
        encoder: See there.
        rank: Of ``world_size`` workers, who take the batches in turn.
        world_size: Their number.
        pin: For a GPU; see ``Batch.pinned``.
        begun: By a training that has not validated before, see ``ChunkStore.use``.
    """
    ids = table.ids
    if table.native:
        batch_size, encoder = 1, None
    batches = [ids[start : start + batch_size] for start in range(0, len(ids), batch_size)][rank::world_size]
    # A table's fingerprint does not say in which order its cases stand; here they stand in that of their ids.
    chunks = in_chunks(sorted(ids))
    places = {name: (number, row) for number, names in enumerate(chunks) for row, name in enumerate(names)}
    group = f"tokens-{key_of(table.fingerprint, data.normalisation, *VERSIONS, encoder.key)}/validation" if store and encoder else ""

    @lru_cache(maxsize=OPEN_CHUNKS)
    def chunk(number: int) -> Arrays:
        assert store is not None
        assert encoder is not None
        tokens = store.get(f"{group}/{number:04d}", lambda: encoder(torch.stack([_image(table, data, name) for name in chunks[number]])))
        assert tokens is not None
        nonlocal begun
        store.use(group, begun=begun)
        begun = False
        return tokens

    def build(names: tuple[str, ...]) -> Batch:
        rows = [table.positions[name] for name in names]
        masks = torch.from_numpy(np.stack([table.mask(row) for row in rows]))[:, None]
        tokens: tuple[Tensor, ...] = ()
        if store and encoder and not store.problem:
            parts = [{key: maps[row] for key, maps in chunk(number).items()} for number, row in (places[name] for name in names)]
            found = {key: torch.from_numpy(np.stack([part[key] for part in parts])) for key in parts[0]}
            tokens = tuple(found[key] for key in encoder.names)
        return Batch(torch.stack([_image(table, data, name) for name in names]), masks, names, tokens)

    return made_ahead([(0, names) for names in batches], lambda _, names: build(names), pin)


def _image(table: CaseTable, data: Data, case_id: str) -> Tensor:
    return normalise(table.image(table.positions[case_id]), data.normalisation)
