"""Batches of views, and how they are made while training works on the one before."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Some views.

    Attributes:
        images: (B, C, S, S), normalised; float16 in training (11 bits, of a pixel that has 8), float32 in validation.
        masks: uint8 (B, 1, S, S) of 0 and 1, or of labels 0 to the number of classes.
        ids: The B case ids.
        tokens: Maps of the guide, in the order of the encoder's names; the same tensor wherever a name stands twice. Empty where the guide
            has to be run.
    """

    images: Tensor
    masks: Tensor
    ids: tuple[str, ...]
    tokens: tuple[Tensor, ...] = ()

    def pinned(self) -> Batch:
        """A copy in memory from which a GPU can read while the CPU works on; what lies on a GPU stays there."""
        return self._each(lambda x: x.pin_memory() if x.device.type == "cpu" else x)

    def split(self, parts: int) -> list[Batch]:
        """Cuts the batch into at most so many parts of about equal size."""
        parts = min(parts, len(self.ids))
        bounds = [len(self.ids) * i // parts for i in range(parts + 1)]
        cuts = [slice(start, stop) for start, stop in pairwise(bounds)]
        return [Batch(self.images[c], self.masks[c], self.ids[c], tuple(x[c] for x in self.tokens)) for c in cuts]

    def to(self, device: torch.device) -> Batch:
        """Moves all to a device, then makes it float32: the smaller numbers of the storage are copied, and the CPU does not wait."""
        return self._each(lambda x: x.to(device, non_blocking=True).float())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """A copy with every tensor changed, each once."""
        changed = {id(x): change(x) for x in {id(x): x for x in self.tokens}.values()}
        return replace(self, images=change(self.images), masks=change(self.masks), tokens=tuple(changed[id(x)] for x in self.tokens))


def made_ahead(
    batches: Sequence[tuple[int, tuple[str, ...]]], make: Callable[[int, tuple[str, ...]], Batch], pin: bool
) -> Generator[Batch, None, None]:
    """The batches, each made by a thread while the caller works on the one before; closing the generator ends the thread.

    Args:
        batches: The pass and the ids of each.
        make: Called with them.
        pin: For a GPU; see ``Batch.pinned``.
    """

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
