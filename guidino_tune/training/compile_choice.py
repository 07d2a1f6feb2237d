"""Whether a segmenter is compiled (``training.compile: auto``): measured in the trial itself, and remembered for the next one of its kind.

Compiling pays when the steps to come save more time than it takes. The first whole steps of a trial are timed as they are. Where even
half of their time, saved in each step until the trial may end, would not repay a typical compilation, nothing happens: small trials never
compile. Else the segmenter is compiled, and forward and backward pass are timed both ways, in turns, on the batch of the next step; their
results are thrown away, and the state of batch norms and random numbers is put back. CUDA graphs come first; ``default`` is tried where
they fail or are no quicker. What was found is kept in the cache folder of the home: the next trial of that kind decides at once.

A GPU that several trials share, or that reaches its limit, gains less: that is in the figures, for trials measure where they run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from guidino_tune import __version__, paths
from guidino_tune.config import DINOGuide, Experiment
from guidino_tune.errors import redacted
from guidino_tune.training.compiling import GRAPHS, NONE, Compiled, way_of
from guidino_tune.training.ranks import Ranks

log = logging.getLogger(__name__)

TYPICAL = 40.0
"""Seconds of a compilation of which nothing is known yet."""

MOST = 0.5
"""The largest part of a step that compiling is expected to save."""

WARM_UP, TIMED = 3, 5
"""Steps before those that are timed, and these. A CUDA graph is recorded in the second of the former."""

ATTEMPTS = 2
"""Processes that may begin to compile a kind without telling how it went: one may have been ended by it."""


@dataclass(slots=True)
class Way:
    """What is known of one way to compile: seconds of a whole ``step`` and of ``compiling``, or the ``error``; how often it was begun."""

    step: float | None = None
    compiling: float = 0.0
    error: str = ""
    begun: int = 0

    @property
    def hopeless(self) -> bool:
        """It failed, or whoever tried it was never heard of again."""
        return bool(self.error) or (self.step is None and self.begun >= ATTEMPTS)


@dataclass(slots=True)
class Figures:
    """What is known of a kind: seconds of a step as it is, and the ways to compile by name."""

    eager: float | None = None
    ways: dict[str, Way] = field(default_factory=dict)


class Memory:
    """The figures of one kind of training, on disk. Written whole or not at all; what cannot be read is as if it were not there.

    Args:
        kind: What decides about them, in plain types.
        folder: One file for each kind.
    """

    def __init__(self, kind: Mapping[str, Any], folder: Path) -> None:
        self.kind = kind
        self.file = folder / f"{hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:24]}.json"

    def read(self) -> Figures:
        """What was written last; nothing where it is missing or damaged."""
        try:
            values = json.loads(self.file.read_text(encoding="utf-8"))
            found = Figures(values["eager"], {str(name): Way(**way) for name, way in values["ways"].items()})
            seconds = [found.eager, *(x for way in found.ways.values() for x in (way.step, way.compiling))]
            if all(x is None or 0 <= x < math.inf for x in seconds) and all(way.begun >= 0 for way in found.ways.values()):
                return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return Figures()

    def write(self, figures: Figures) -> None:
        """Other processes see the former figures or these."""
        draft = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        with suppress(OSError):  # a cache that cannot be written costs time, nothing else
            self.file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps({"kind": self.kind, **asdict(figures)}, indent=1), encoding="utf-8")
            draft.replace(self.file)


class Chooser:
    """Decides, around the steps of a trial, how its segmenter runs.

    Args:
        compiled: The segmenter, not compiled yet.
        ways: To compile it, best first.
        memory: What earlier trials found.
        device: Where the network is.
        ranks: The workers of the trial: they do what rank 0 measured.
        clock: Seconds.
        wait: For the device.
    """

    def __init__(
        self,
        compiled: Compiled,
        ways: Sequence[str],
        memory: Memory,
        *,
        device: torch.device,
        ranks: Ranks | None = None,
        clock: Callable[[], float] = time.perf_counter,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        self.compiled, self.ways, self.memory, self.device = compiled, ways, memory, device
        self.ranks, self.clock, self.wait = ranks or Ranks(), clock, wait
        self.figures: Figures = self.ranks.first(memory.read())
        self._steps: list[float] = []
        self._news: dict[str, float] = {}
        self._warned = False

    @contextmanager
    def around(self, images: int, steps_left: int, rehearse: Callable[[], None]) -> Iterator[None]:
        """Around a step.

        Args:
            images: Of its batch; steps of other than whole batches are neither timed nor compiled.
            steps_left: Until the trial may end.
            rehearse: Forward and backward pass of such a batch, which keep no gradients.
        """
        whole = images == self.compiled.batch
        if whole and self.compiled.way == NONE:
            self._choose(steps_left, rehearse)
        if not whole or self.compiled.way != NONE or self.figures.eager is not None:
            yield
            return
        begun = self._now()
        yield
        self._steps.append(self._now() - begun)
        if len(self._steps) == WARM_UP + TIMED:
            # Others may have compiled meanwhile.
            self.figures = self.ranks.first(self.memory.read())
            self.figures.eager = self.ranks.first(statistics.median(self._steps[WARM_UP:]))
            self._remember()

    def news(self) -> dict[str, float]:
        """Seconds of steps and of compiling that were found or taken since the last call, as metrics of an epoch.

        Also takes over what trials beside this one have found since: of those that begin together only some try.
        """
        if self.compiled.way == NONE and self.figures.eager is not None:
            for name, found in self.ranks.first(self.memory.read()).ways.items():
                own = self.figures.ways.get(name, found)
                if own.step is None and not own.error:
                    self.figures.ways[name] = found
        news, self._news = self._news, {}
        return news

    def _choose(self, steps: int, rehearse: Callable[[], None]) -> None:
        """Takes the first way that pays. What is known of a way is not tried; the others are, where they may pay."""
        eager = self.figures.eager
        if eager is None:
            return
        for name in self.ways:
            way = self.figures.ways.setdefault(name, Way())
            if way.hopeless:
                continue
            if way.step is None:
                if steps * eager * MOST <= TYPICAL:
                    return
                if self._try(name, eager, rehearse):
                    return
            elif way.step < eager:
                if steps * (eager - way.step) > way.compiling:
                    self._take(name, rehearse)
                return

    def _try(self, name: str, eager: float, rehearse: Callable[[], None]) -> bool:
        """Compiles, measures and remembers; whether it is quicker, and taken."""
        quick: list[float] = []
        plain: list[float] = []

        def measure() -> None:
            for _ in range(TIMED):
                quick.append(self._seconds(rehearse))
                with self.compiled.paused():
                    plain.append(self._seconds(rehearse))

        way = self.figures.ways[name]
        way.begun += 1
        self._remember()
        if not self._take(name, rehearse, measure):
            return False
        saved = statistics.median(plain) - statistics.median(quick)
        way.step, way.begun = self.ranks.first(max(0.0, eager - saved)), 0
        assert way.step is not None
        self._remember()
        self._news |= {"eager_step_seconds": eager, "compiled_step_seconds": way.step, "compile_seconds": way.compiling}
        if way.step < eager:
            log.info("the segmenter is compiled (%s): %.4g instead of %.4g s a step", name, way.step, eager)
            return True
        self.compiled.take(NONE)
        return False

    def _take(self, name: str, rehearse: Callable[[], None], measure: Callable[[], None] = lambda: None) -> bool:
        """Compiles; where that fails, for whatever reason, trials of this kind run as they are from now on, in this way."""
        way, error = self.figures.ways[name], ""
        try:
            self.compiled.take(name)
            with unchanged(self.compiled.segmenter, self.device):
                begun = self._now()
                for _ in range(WARM_UP):
                    rehearse()
                took = self._now() - begun
                measure()
        except Exception as failure:
            error = redacted(str(failure)).strip() or type(failure).__name__
        if any(errors := self.ranks.gathered(error)):
            way.error = next(filter(None, errors))[:500]  # the same in all workers, for each of them writes it
            self.compiled.take(NONE)
            self._remember()
            log.log(
                logging.INFO if self._warned else logging.WARNING,  # the next way mostly fails for the same reason
                "the segmenter runs without torch.compile (%s), which failed: %s; remove %s to have it tried again",
                name, way.error.splitlines()[0], self.memory.file,
            )  # fmt: skip
            self._warned = True
            return False
        way.compiling = self.ranks.first(took)
        self._remember()
        self._news |= {"compile_seconds": way.compiling}
        return True

    def _seconds(self, call: Callable[[], None]) -> float:
        begun = self._now()
        call()
        return self._now() - begun

    def _now(self) -> float:
        self.wait()
        return self.clock()

    def _remember(self) -> None:
        self.memory.write(self.figures)


@contextmanager
def unchanged(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Puts a module's buffers (such as means of batch norms) and torch's random numbers back to what they were."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for buffer, value in before:
                buffer.copy_(value)


def kind_of(experiment: Experiment, device: torch.device, *, batch: int, channels_last: bool, workers: int) -> dict[str, Any]:
    """What decides how quick a step is, in plain types."""
    values, guide = experiment.effective(), experiment.guide
    guided = {"backbone": guide.backbone, "trained": guide.trained} if isinstance(guide, DINOGuide) else {}
    return {
        "segmenter": {name: value for name, value in values["segmenter"].items() if name not in ("pretrained", "sha256")},
        "guide": guided,
        "gate": experiment.gate,
        "image": [experiment.data.channels, experiment.data.image_size],
        "outputs": experiment.num_outputs,
        "batch": batch,
        "precision": experiment.training.precision,
        "channels_last": channels_last,
        "workers": workers,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "guidino_tune": __version__,
    }


def ways_for(segmenter: nn.Module, device: torch.device, parts: int) -> tuple[str, ...]:
    """The ways that are worth a measurement, best first; none on CPUs, whose trials repeat bit by bit and gain nothing.

    Batch norms over several workers wait for each other within a pass: one that failed to compile would leave the others waiting.
    """
    if device.type != "cuda" or any(isinstance(part, nn.SyncBatchNorm) for part in segmenter.modules()):
        return ()
    return tuple(dict.fromkeys(way_of(way, parts) for way in (GRAPHS, "default")))


def make_chooser(
    compiled: Compiled, experiment: Experiment, device: torch.device, ranks: Ranks, parts: int, channels_last: bool
) -> Chooser | None:
    """The chooser of a trial whose batches go through the network in so many parts; ``None`` where there is nothing to choose."""
    ways = ways_for(compiled.segmenter, device, parts) if experiment.training.compile == "auto" else ()
    if not ways:
        return None
    kind = kind_of(experiment, device, batch=compiled.batch, channels_last=channels_last, workers=ranks.world_size)
    memory = Memory(kind | {"parts": parts}, paths.cache() / "compiling")
    return Chooser(compiled, ways, memory, device=device, ranks=ranks, wait=lambda: torch.cuda.synchronize(device))
