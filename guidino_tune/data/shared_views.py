"""Views and tokens that the trials of a node share: stored chunk by chunk, made by the trial that needs one first."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from guidino_tune.data.batches import Batch
from guidino_tune.data.makers import Makers, Wish
from guidino_tune.data.store import Arrays, ChunkStore

log = logging.getLogger(__name__)

FORMAT = 2
"""Raised whenever views change, as by another augmentation under an old name: stored ones are then passed over."""

VERSIONS = tuple(version(name) for name in ("torch", "numpy", "Pillow"))
"""Of what decodes, draws and resamples: another one may give other pixels."""

CHUNK = 32
"""Views per stored chunk: the unit that one process makes while others wait. Any batch size fits: chunks follow the epoch's order."""

_LOOK = 0.1  # seconds between two looks at what others have made
_REST = 5.0  # seconds after which a maker without room looks again, through the whole folder

OPEN_CHUNKS = 4
"""Chunks that stay mapped; batches walk through them in order."""


class Encoder(Protocol):
    """A frozen guide as the views see it: a function of the image."""

    @property
    def key(self) -> str:
        """Says all that the tokens depend on besides the image: weights, layers, precision."""

    @property
    def names(self) -> Sequence[str]:
        """Of the maps that a batch has, in their order; one that is asked for twice is made and kept once."""

    def __call__(self, images: Tensor) -> Arrays:
        """Maps of (N, C, S, S) images, by name; each of N rows."""


def key_of(*parts: object) -> str:
    """The name of what depends on these parts, and on how views are stored; 16 hex digits."""
    return hashlib.sha256("\0".join(str(part) for part in (FORMAT, CHUNK, *parts)).encode()).hexdigest()[:16]


def in_chunks(ids: Sequence[str]) -> list[tuple[str, ...]]:
    """Ids, in their order, as the chunks hold them."""
    return [tuple(ids[start : start + CHUNK]) for start in range(0, len(ids), CHUNK)]


class SharedViews:
    """The chunks of all epochs, as a training run reads and fills them."""

    def __init__(
        self,
        store: ChunkStore,
        encoder: Encoder | None,
        key: str,
        chunk_ids: Callable[[int], list[tuple[str, ...]]],
        make: Callable[[int, Sequence[str]], Arrays],
        *,
        once: bool = False,
    ) -> None:
        self.store = store
        self._encoder, self._chunk_ids, self._make = encoder, chunk_ids, make
        self._views = f"views-{key}"
        self._tokens = f"tokens-{key_of(key, encoder.key)}" if encoder else ""
        self._kinds = [kind for kind in (self._views, self._tokens) if kind]
        self._chunk = lru_cache(OPEN_CHUNKS)(self._opened)  # of the thread that makes batches
        self._rows = lru_cache(maxsize=2)(self._positions)
        self._thread: ThreadPoolExecutor | None = None
        self._near: Sequence[int] = ()  # passes that the thread is to make now
        self._tried: set[tuple[str, int, int]] = set()  # kind, pass and number of the chunks of these that it has made
        self._makers = Makers(store.folder, store.makers, store.budget) if store.makers else None
        self._once = once
        self._own: set[tuple[str, int]] = set()  # kind and pass of what was not there before this training asked for it
        self._read: set[int] = set()
        self._rests_until = 0.0  # by the monotonic clock: until then there is no room to make anything ahead

    def batch(self, epoch: int, ids: tuple[str, ...]) -> Batch:
        """Views in this order. Where they follow each other in one chunk, as in an epoch's own order, nothing is copied."""
        rows = [self._rows(epoch)[name] for name in ids]
        chunks = {number: self._chunk(epoch, number) for number in sorted({row // CHUNK for row in rows})}
        first, number = rows[0] % CHUNK, rows[0] // CHUNK
        contiguous = len(chunks) == 1 and rows == list(range(rows[0], rows[0] + len(rows)))

        def views_of(name: str) -> Tensor:
            if contiguous:
                return torch.from_numpy(chunks[number][name][first : first + len(rows)])
            return torch.from_numpy(np.stack([chunks[row // CHUNK][name][row % CHUNK] for row in rows]))

        found = {name: views_of(name) for name in chunks[number]}
        tokens = tuple(found[name] for name in self._encoder.names) if self._encoder else ()
        return Batch(found["images"], found["masks"], ids, tokens)

    def prepare(self, epochs: Sequence[int], ahead: Sequence[int], recipe: Callable[[], Mapping[str, Any]]) -> None:
        """Makes the missing chunks of these epochs, in a thread; those of earlier calls no more.

        Args:
            epochs: Nearest first.
            ahead: These and further ones, which makers are asked for, where there are any: the thread then leaves the images to them.
            recipe: See ``makers.Wish``.
        """
        if self._once:
            self._note_own(ahead)
        if self._makers:
            self._makers.want(Wish(tuple(ahead), recipe(), self._once))
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="shared views")
        self._near, self._tried = epochs, set()
        if self._once and epochs:
            # Another worker may still be at the end of the pass before. By the thread: what it is at would come back after its removal.
            self._thread.submit(self._remove, epochs[0] - 1)
        self._thread.submit(self._make_near, self._thread, epochs)

    def make_next(self, epochs: Sequence[int]) -> bool:
        """Makes the first missing chunk that nobody else is at; False where there is none, or no room but that of nearer passes.

        Args:
            epochs: Nearest first.
        """
        if time.monotonic() < self._rests_until:
            return False
        if self._once:
            self._note_own(epochs)
        for kind, epoch, number in self._missing(epochs):
            if self.store.problem:
                return False
            if not self._has_room(kind, epoch, epochs, ahead=True):
                self._rests_until = time.monotonic() + _REST
                return False
            if self._get(epoch, number, wait=False):
                return True
        return False

    def close(self, *, wait: bool = False) -> None:
        """Lets the thread end with the chunk that it is making; its last act is to remove what is kept for this training alone.

        Args:
            wait: For that.
        """
        self._near = ()
        if self._makers:
            self._makers.close()  # a maker that is at a chunk removes it itself
        thread, self._thread = self._thread, None
        if thread:
            if self._once:
                thread.submit(self._remove, None)
            thread.shutdown(wait=wait)
        elif self._once:
            self._remove(None)
        self._chunk.cache_clear()  # mapped files; the object itself may wait long for a collection

    def _note_own(self, epochs: Sequence[int]) -> None:
        self._own |= {(k, e) for k in self._kinds for e in epochs if not (self.store.folder / k / f"{e:05d}").exists()}

    def _remove(self, before: int | None) -> None:
        """Removes what this training had made, of passes before one, or of all."""
        for kind, epoch in [own for own in list(self._own) if before is None or own[1] < before]:
            self.store.remove(f"{kind}/{epoch:05d}")
            self._own.discard((kind, epoch))

    def _make_near(self, thread: ThreadPoolExecutor, epochs: Sequence[int]) -> None:
        """Makes a missing chunk, and goes on until none is missing, or until others are wanted; what makers are at is left to them.

        Each is made once, and takes no room of what this training needs before it: else both would be made again and again.
        """
        try:
            missing = [place for place in self._missing(epochs) if place not in self._tried]
            if self._near is not epochs or self.store.problem or not missing:
                return
            left = self._views if self._makers and self._makers.at_work else ""
            for place in missing:
                kind, epoch, number = place
                if kind == left:
                    continue
                if not self._has_room(kind, epoch, epochs, ahead=False):
                    return
                if self._get(epoch, number, wait=False):
                    self._tried.add(place)
                    break
            else:
                time.sleep(_LOOK)
        except Exception:
            # Whoever needs the chunk meets the same error where it can be told.
            log.exception("a chunk of epoch %d or later could not be prepared", epochs[0])
        else:
            with contextlib.suppress(RuntimeError):  # closed; or the interpreter ends, which would wait for a loop
                thread.submit(self._make_near, thread, epochs)

    def _has_room(self, kind: str, epoch: int, epochs: Sequence[int], *, ahead: bool) -> bool:
        nearer = [f"{kind}/{before:05d}" for before in epochs[: epochs.index(epoch)]]
        return self.store.has_room(f"{kind}/{epoch:05d}", nearer, ahead=ahead)

    def _missing(self, epochs: Sequence[int]) -> Iterator[tuple[str, int, int]]:
        """The chunks that are not there whole: the kind that is to be made first, the epoch and the number."""
        for epoch in epochs:
            there = {kind: self.store.names(f"{kind}/{epoch:05d}") for kind in self._kinds}
            for number in range(len(self._chunk_ids(epoch))):
                if kind := next((kind for kind in self._kinds if f"{number:04d}" not in there[kind]), ""):
                    yield kind, epoch, number

    def _positions(self, epoch: int) -> dict[str, int]:
        return {name: row for row, name in enumerate(name for ids in self._chunk_ids(epoch) for name in ids)}

    def _opened(self, epoch: int, number: int) -> Arrays:
        chunk = self._get(epoch, number, wait=True)
        assert chunk is not None
        for kind in self._kinds:
            self.store.use(f"{kind}/{epoch:05d}", begun=epoch not in self._read)
        self._read.add(epoch)
        return chunk

    def _get(self, epoch: int, number: int, *, wait: bool) -> Arrays | None:
        views = self._images(epoch, number, wait=wait)
        if views is None or self._encoder is None:
            return views
        encoder = self._encoder
        place = f"{epoch:05d}/{number:04d}"
        tokens = self.store.get(f"{self._tokens}/{place}", lambda: encoder(torch.from_numpy(views["images"])), wait=wait)
        return None if tokens is None else {**views, **tokens}

    def _images(self, epoch: int, number: int, *, wait: bool) -> Arrays | None:
        ids = self._chunk_ids(epoch)[number]
        return self.store.get(f"{self._views}/{epoch:05d}/{number:04d}", lambda: self._make(epoch, ids), wait=wait)
