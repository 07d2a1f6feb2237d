"""Views: what training sees of each case in each epoch. They depend on ``training.seed``, the epoch and the case, and on nothing else.

So they, and a frozen guide's tokens of them, can be made by one trial and read by all others of the node (see ``ChunkStore``).
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from guidino_tune.config.data import Data
from guidino_tune.config.epochs import Steps, batches_per_pass, steps_per_epoch
from guidino_tune.data.cases import stable_hash
from guidino_tune.data.patches import MARGIN, centre, cut_patch
from guidino_tune.data.store import Arrays, ChunkStore
from guidino_tune.data.table import CaseTable
from guidino_tune.errors import UserError
from guidino_tune.normalisation import normalise

log = logging.getLogger(__name__)

FORMAT = 1
"""Raised whenever views change, as by another augmentation under an old name: stored ones are then passed over."""

VERSIONS = tuple(version(name) for name in ("torch", "monai", "numpy", "Pillow"))
"""Of what decodes, draws and resamples: another one may give other pixels."""

CHUNK = 32
"""Views per stored chunk: the unit that one process makes while others wait. Any batch size fits: chunks follow the epoch's order."""

_OPEN = 4  # chunks that stay mapped; batches walk through them in order


@dataclass(frozen=True, slots=True)
class Batch:
    """Some views.

    Attributes:
        images: (B, C, S, S), normalised; float16 in training (11 bits, of a pixel that has 8), float32 in validation.
        masks: uint8 (B, 1, S, S) of 0 and 1, or of labels 0 to the number of classes.
        ids: The B case ids.
        tokens: Maps of the guide, as the encoder gave them; empty where the guide has to be run.
    """

    images: Tensor
    masks: Tensor
    ids: tuple[str, ...]
    tokens: tuple[Tensor, ...] = ()

    def pinned(self) -> Batch:
        """A copy in memory from which a GPU can read while the CPU works on."""
        return replace(
            self, images=self.images.pin_memory(), masks=self.masks.pin_memory(), tokens=tuple(map(Tensor.pin_memory, self.tokens))
        )

    def split(self, parts: int) -> list[Batch]:
        """In at most so many parts of about equal size."""
        parts = min(parts, len(self.ids))
        bounds = [len(self.ids) * i // parts for i in range(parts + 1)]
        cuts = [slice(start, stop) for start, stop in pairwise(bounds)]
        return [Batch(self.images[c], self.masks[c], self.ids[c], tuple(x[c] for x in self.tokens)) for c in cuts]

    def to(self, device: torch.device) -> Batch:
        """On a device, everything in float32; the copy is made in the storage's precision, and nobody waits for it."""
        images, masks, *tokens = (x.to(device, non_blocking=True).float() for x in (self.images, self.masks, *self.tokens))
        return Batch(images, masks, self.ids, tuple(tokens))


class Encoder(Protocol):
    """A frozen guide as the views see it: a function of the image."""

    @property
    def key(self) -> str:
        """Says all that the tokens depend on besides the image: weights, layers, precision."""

    def __call__(self, images: Tensor) -> Arrays:
        """Maps of (N, C, S, S) images, by name, in an order that is always the same; each of N rows."""


def view_seed(seed: int, epoch: int, case_id: str) -> int:
    """The seed of one view: 63 bits, the same for every trial of a study, on every machine and for any batch size."""
    return stable_hash("view", seed, epoch, case_id)


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
        encoder: Its tokens of the views are shared too; without a store it is not asked.
        num_epochs: Budget of the trial: no pass after it is prepared.
        steps: Batches of an epoch, see ``config.epochs.steps_per_epoch``.

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
        encoder: Encoder | None = None,
        num_epochs: int | None = None,
        steps: Steps = "cases",
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
        self._seed = seed
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
        self._sequence = lru_cache(maxsize=4)(self._ordered)
        self._shared = _Shared(store, encoder, self._views_key(), self._chunk_ids, self._make) if store else None
        self._passes = None if num_epochs is None else -(-num_epochs * self.num_steps // self.num_batches)  # that are begun

    def order(self, number: int) -> list[tuple[str, ...]]:
        """The ids of this rank's batches in a pass (from 0)."""
        ids = self._sequence(number)
        starts = range(0, self.num_batches * self._batch_size, self._batch_size)
        return [ids[start : start + self._batch_size][self._share] for start in starts]

    def view(self, number: int, case_id: str) -> tuple[Tensor, Tensor]:
        """One view of a pass, made anew: image (C, S, S), float16, and mask (1, S, S), uint8."""
        # MONAI takes seconds to import, and memory: a trial that finds all its views needs neither.
        from guidino_tune.data.augmentation import make_augmentation

        index = self._table.positions[case_id]
        image = normalise(self._table.image(index), self._data.normalisation)
        mask = torch.tensor(self._table.mask(index), dtype=torch.float32)[None]
        seed = view_seed(self._seed, self._source(number), case_id)
        augmentation = make_augmentation(self._data.augmentation)
        if self._table.native:
            size, rng = self._data.image_size, np.random.default_rng((seed, 1))  # not that of the augmentation
            margin = 1.0 if self._data.augmentation == "none" else MARGIN
            image, mask = augmentation(*cut_patch(image, mask, size, self._data.patch_foreground, rng, margin=margin), seed)
            image, mask = centre(image, size), centre(mask, size)
        else:
            image, mask = augmentation(image, mask, seed)
        return image.half(), mask.to(torch.uint8)

    def epoch(self, epoch: int, *, pin: bool = False) -> Generator[Batch, None, None]:
        """The batches of an epoch (from 0). A thread makes the next one while the caller works on this one; ``close()`` ends it early.

        Args:
            epoch: From 0.
            pin: For a GPU; see ``Batch.pinned``.
        """
        first = epoch * self.num_steps
        if self._shared:
            passes = range(first // self.num_batches, (first + 2 * self.num_steps - 1) // self.num_batches + 1)  # of the next epoch too
            self._shared.prepare(dict.fromkeys(self._source(p) for p in passes if self._passes is None or p < self._passes))
        places = [divmod(step, self.num_batches) for step in range(first, first + self.num_steps)]
        orders = {number: self.order(number) for number in dict(places)}
        return _ahead([(number, orders[number][index]) for number, index in places], self._batch, pin)

    def close(self) -> None:
        """Ends the preparation of further epochs."""
        if self._shared:
            self._shared.close()

    def _source(self, number: int) -> int:
        """The pass whose views are shown."""
        return number % self._data.view_cycle if self._data.view_cycle else number

    def _batch(self, number: int, ids: tuple[str, ...]) -> Batch:
        if self._shared and not self._shared.store.problem:
            return self._shared.batch(self._source(number), ids)
        images, masks = zip(*(self.view(number, name) for name in ids), strict=True)
        return Batch(torch.stack(images), torch.stack(masks), ids)

    def _ordered(self, epoch: int) -> tuple[str, ...]:
        return tuple(sorted(self._table.ids, key=lambda name: (stable_hash("order", self._seed, epoch, name), name)))

    def _chunk_ids(self, epoch: int) -> list[tuple[str, ...]]:
        ids = self._sequence(epoch)
        return [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]

    def _make(self, epoch: int, ids: Sequence[str]) -> Arrays:
        images, masks = zip(*(self.view(epoch, name) for name in ids), strict=True)
        return {"images": torch.stack(images).numpy(), "masks": torch.stack(masks).numpy()}

    def _views_key(self) -> str:
        data = self._data
        patch = data.patch_foreground if self._table.native else ""
        return _key(self._table.fingerprint, data.normalisation, data.augmentation, patch, self._seed, *VERSIONS)


class _Shared:
    """The chunks of all epochs, as a training run reads and fills them."""

    def __init__(
        self,
        store: ChunkStore,
        encoder: Encoder | None,
        key: str,
        chunk_ids: Callable[[int], list[tuple[str, ...]]],
        make: Callable[[int, Sequence[str]], Arrays],
    ) -> None:
        self.store = store
        self._encoder, self._chunk_ids, self._make = encoder, chunk_ids, make
        self._views = f"views-{key}"
        self._tokens = f"tokens-{_key(key, encoder.key)}" if encoder else ""
        self._kinds = [kind for kind in (self._views, self._tokens) if kind]
        self._open: OrderedDict[tuple[int, int], Arrays] = OrderedDict()  # of the thread that makes batches
        self._rows = lru_cache(maxsize=2)(self._positions)
        self._thread: ThreadPoolExecutor | None = None
        self._closed = threading.Event()

    def batch(self, epoch: int, ids: tuple[str, ...]) -> Batch:
        """Views in this order; without a copy where they stand together in one chunk, as in an epoch's own order."""
        rows = [self._rows(epoch)[name] for name in ids]
        chunks = {number: self._chunk(epoch, number) for number in sorted({row // CHUNK for row in rows})}
        first, number = rows[0] % CHUNK, rows[0] // CHUNK
        together = len(chunks) == 1 and rows == list(range(rows[0], rows[0] + len(rows)))

        def taken(name: str) -> Tensor:
            if together:
                return torch.from_numpy(chunks[number][name][first : first + len(rows)])
            return torch.from_numpy(np.stack([chunks[row // CHUNK][name][row % CHUNK] for row in rows]))

        images, masks, *tokens = (taken(name) for name in chunks[number])
        return Batch(images, masks, ids, tuple(tokens))

    def prepare(self, epochs: Iterable[int]) -> None:
        """Makes what is missing of these epochs, in a thread, after what it is at."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="shared views")
        for epoch in epochs:
            self._thread.submit(self._fill, epoch)

    def close(self) -> None:
        """Lets the thread end after the chunk that it is at."""
        self._closed.set()
        if self._thread:
            self._thread.shutdown(wait=False, cancel_futures=True)
        self._open.clear()  # mapped files; the object itself may wait long for a collection

    def _fill(self, epoch: int) -> None:
        try:
            for number in range(len(self._chunk_ids(epoch))):
                if self._closed.is_set() or self.store.problem:
                    return
                # Usually another trial has made it: opening it here would be the work of whoever reads it.
                if not all(self.store.has(f"{kind}/{epoch:05d}/{number:04d}") for kind in self._kinds):
                    self._get(epoch, number, wait=False)
        except Exception:
            # Whoever needs the chunk meets the same error where it can be told.
            log.exception("a chunk of epoch %d could not be prepared", epoch)

    def _positions(self, epoch: int) -> dict[str, int]:
        return {name: row for row, name in enumerate(name for ids in self._chunk_ids(epoch) for name in ids)}

    def _chunk(self, epoch: int, number: int) -> Arrays:
        if (epoch, number) not in self._open:
            chunk = self._get(epoch, number, wait=True)
            assert chunk is not None
            for kind in self._kinds:
                self.store.use(f"{kind}/{epoch:05d}")
            self._open[epoch, number] = chunk
            while len(self._open) > _OPEN:
                self._open.popitem(last=False)
        return self._open[epoch, number]

    def _get(self, epoch: int, number: int, *, wait: bool) -> Arrays | None:
        ids, place = self._chunk_ids(epoch)[number], f"{epoch:05d}/{number:04d}"
        views = self.store.get(f"{self._views}/{place}", lambda: self._make(epoch, ids), wait=wait)
        if views is None or self._encoder is None:
            return views
        encoder = self._encoder
        tokens = self.store.get(f"{self._tokens}/{place}", lambda: encoder(torch.from_numpy(views["images"])), wait=wait)
        return None if tokens is None else {**views, **tokens}


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
    """
    ids = table.ids
    if table.native:
        batch_size, encoder = 1, None
    batches = [ids[start : start + batch_size] for start in range(0, len(ids), batch_size)][rank::world_size]
    # A table's fingerprint does not say in which order its cases stand; here they stand in that of their ids.
    ordered = sorted(ids)
    places = {name: place for place, name in enumerate(ordered)}
    group = f"tokens-{_key(table.fingerprint, data.normalisation, *VERSIONS, encoder.key)}/validation" if store and encoder else ""
    if store and encoder:
        store.use(group)

    @lru_cache(maxsize=_OPEN)
    def chunk(number: int) -> Arrays:
        assert store is not None
        assert encoder is not None
        names = ordered[number * CHUNK : (number + 1) * CHUNK]
        tokens = store.get(f"{group}/{number:04d}", lambda: encoder(torch.stack([_image(table, data, name) for name in names])))
        assert tokens is not None
        return tokens

    def build(names: tuple[str, ...]) -> Batch:
        rows = [table.positions[name] for name in names]
        masks = torch.from_numpy(np.stack([table.mask(row) for row in rows]))[:, None]
        tokens: tuple[Tensor, ...] = ()
        if store and encoder and not store.problem:
            parts = [{k: a[places[name] % CHUNK] for k, a in chunk(places[name] // CHUNK).items()} for name in names]
            tokens = tuple(torch.from_numpy(np.stack([part[k] for part in parts])) for k in parts[0])
        return Batch(torch.stack([_image(table, data, name) for name in names]), masks, names, tokens)

    return _ahead([(0, names) for names in batches], lambda _, names: build(names), pin)


def _image(table: CaseTable, data: Data, case_id: str) -> Tensor:
    return normalise(table.image(table.positions[case_id]), data.normalisation)


def _key(*parts: object) -> str:
    return hashlib.sha256("\0".join(str(part) for part in (FORMAT, CHUNK, *parts)).encode()).hexdigest()[:16]


def _ahead(
    batches: Sequence[tuple[int, tuple[str, ...]]], make: Callable[[int, tuple[str, ...]], Batch], pin: bool
) -> Generator[Batch, None, None]:
    def build(batch: tuple[int, tuple[str, ...]]) -> Batch:
        return make(*batch).pinned() if pin else make(*batch)

    with ThreadPoolExecutor(1, thread_name_prefix="views") as thread:
        upcoming = thread.submit(build, batches[0]) if batches else None
        for following in (*batches[1:], None):
            if upcoming is None:
                return
            batch = upcoming.result()
            upcoming = thread.submit(build, following) if following is not None else None
            yield batch
