"""What is private in Ray, and is needed nevertheless."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

NOT_NEEDED = ("start_monitor", "start_log_monitor")
"""What a head starts that nobody asks on one machine: the autoscaler, and what copies logs to a driver that has said it wants none."""


@contextlib.contextmanager
def few_helpers(*, dashboard: bool) -> Iterator[None]:
    """A cluster that is started in the block has the processes that trials need, and no others: each takes half a second of CPU and 50 MB.

    Args:
        dashboard: Keeps that, with its state service, which is ten processes more.
    """
    from ray._private.node import Node

    unwanted = [*NOT_NEEDED, *([] if dashboard else ["start_api_server"])]
    kept = {name: getattr(Node, name) for name in unwanted}
    for name in unwanted:
        setattr(Node, name, lambda self, **options: None)
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(Node, name, method)


def shorten_messages() -> None:
    """Has Ray tell in a sentence what it says of nodes, such as that one is gone: by itself it adds advice, and the end of that node's log.

    A search says what follows from it, in a line of its own.
    """
    from ray._private import worker

    whole = worker.print_to_stdstream
    if getattr(whole, "shortens", False):
        return

    def shortened(data: dict[str, Any], *arguments: Any, **options: Any) -> None:
        if data.get("pid") == "raylet":
            data = data | {"lines": [first_sentence(line) for line in data["lines"]]}
        whole(data, *arguments, **options)

    shortened.shortens = True  # type: ignore[attr-defined]
    worker.print_to_stdstream = shortened


def first_sentence(text: str) -> str:
    """Up to the first full stop, within the first line."""
    line = text.strip().partition("\n")[0]
    sentence, stop, _ = line.partition(". ")
    return sentence + stop.rstrip()
