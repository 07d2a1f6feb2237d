"""A line of work in threads: what comes before and after the network is done beside it, and everything comes out in its order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Before = TypeVar("Before")
Between = TypeVar("Between")
After = TypeVar("After")

MOST = 4
"""Threads, where nothing is said: more rarely help one network."""


def automatic_workers() -> int:
    """As many threads as there are cores for this process, but ``MOST`` at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST)


def in_order(
    items: Iterable[Item],
    before: Callable[[Item], Before],
    between: Callable[[Before], Between],
    after: Callable[[Between], After],
    workers: int,
) -> Generator[After, None, None]:
    """``after(between(before(item)))`` of each item, in their order.

    Args:
        items: Taken as they are needed.
        before: Done in threads, for at most ``workers + 1`` items ahead.
        between: Done in the thread of the caller, one item after the other.
        after: Done in threads; at most ``workers + 1`` results wait to be taken.
        workers: Threads; with 1 there are none, and all is done in turn.

    Raises:
        Exception: What any of them raises, at its item; what was done ``between`` before it is finished first. An interruption
            waits only for what the threads are at.
    """
    if workers == 1:
        for item in items:
            yield after(between(before(item)))
        return
    ahead: deque[Future[Before]] = deque()
    behind: deque[Future[After]] = deque()
    source = iter(items)
    with ThreadPoolExecutor(workers, "predict") as pool:
        try:
            while True:
                while len(ahead) <= workers:
                    try:
                        ahead.append(pool.submit(before, next(source)))
                    except StopIteration:
                        break
                if not ahead:
                    break
                behind.append(pool.submit(after, between(ahead.popleft().result())))
                while len(behind) > workers or (behind and behind[0].done()):
                    yield behind.popleft().result()
            while behind:
                yield behind.popleft().result()
        except Exception:
            for future in ahead:
                future.cancel()
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
