"""What is private in Ray, and is needed nevertheless."""

from __future__ import annotations

from typing import Any


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
