"""The one error that a user's mistake may cause: a clear message, and exit code 2."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """Something the user can put right. Commands print its message without a traceback and exit with 2.

    Args:
        what: What is wrong, in one sentence.
        where: The file, the path inside it, or the folder that is meant.
        todo: What to do next.
    """

    def __init__(self, what: str, *, where: str = "", todo: str = "") -> None:
        self.what, self.where, self.todo = what, where, todo
        super().__init__(what, where, todo)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are rebuilt from positional arguments, and these are named: without it none crosses a process boundary.
        return functools.partial(type(self), where=self.where, todo=self.todo), (self.what,)

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.todo:
            lines.append(f"  -> {self.todo}")
        return "\n".join(lines)


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint such as ``did you mean 'unet'?``, or the list of known names when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
