"""The one error that a user's mistake may cause: a clear message, and exit code 2. No message shows a password."""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import os
import re
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from guidino_tune import paths

_LOGIN = re.compile(
    r"(?:(?P<git>git\+(?:https|http|ssh))|(?<!git\+https)(?<!git\+http)(?<!git\+ssh))"
    r"://[^:/?#@\s]*(?P<password>:(?!\d{1,5}[/?#])(?(git)[^/\s]*|\S*))?@"
)
"""A password may hold what should be quoted in a URL. But ``host:5000/`` is a port, and ``git+https://host:path/name@tag`` a path."""

_TOKEN = re.compile(r"\bhttps?://(?P<token>[^:/?#@\s]+)@", re.IGNORECASE)
_OPTION = re.compile(r"(?P<name>[?&;][\w.-]*(?:password|passwd|token|secret|api_?key)[\w.-]*=)(?P<value>[^&;#\s'\")\]]+)", re.IGNORECASE)
_SECRET_NAME = re.compile(r"(?:PASSWORD|PASSWD|TOKEN|SECRET|SECRET_KEY|ACCESS_KEY|API_KEY)$", re.IGNORECASE)
_SHORTEST = 6  # a shorter value of a variable stands in too many ordinary words to be blotted out
HIDDEN = "***"


class UserError(Exception):
    """Something the user can put right. Commands print its message without a traceback and exit with 2.

    Args:
        what: What is wrong, in one sentence.
        where: The file, the path inside it, or the folder that is meant.
        todo: What to do next.

    Passwords and tokens in all three are hidden, as by ``redacted``.
    """

    def __init__(self, what: str, *, where: str = "", todo: str = "") -> None:
        self.what, self.where, self.todo = redacted(what), redacted(where), redacted(todo)
        super().__init__(self.what, self.where, self.todo)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are rebuilt from positional arguments, and these are named: without it none crosses a process boundary.
        return functools.partial(type(self), where=self.where, todo=self.todo), (self.what,)

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.todo:
            lines.append(f"  -> {self.todo}")
        return "\n".join(lines)


_ACCESS = "make it readable and writable"
_HOME = ", or choose another folder as GUIDINO_TUNE_HOME"
_ROOM = "make room there, and run it again: nothing that was finished is lost"
_STORAGE = {
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("the quota of this disk is used up", _ROOM),
    errno.EFBIG: ("the file would become larger than is allowed", "raise the limit (ulimit -f), and run it again to go on"),
    errno.EROFS: ("this disk can only be read", _ACCESS),
    errno.EACCES: ("access is not permitted", _ACCESS),
    errno.EPERM: ("access is not permitted", _ACCESS),
    errno.ENAMETOOLONG: ("this path is longer than a path can be", "choose another folder"),
    errno.ELOOP: ("a link on this path leads back to itself", "choose another folder"),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "choose another folder"),
    errno.EEXIST: ("here is a file where a folder must be", "move it away, or choose another folder"),
    errno.EIO: ("the disk cannot be read or written (input/output error)", "check the disk, and run it again to go on"),
    errno.ESTALE: ("the disk of another machine is gone", "mount it again, and run it again to go on"),
}


def storage_error(error: OSError, where: str = "") -> UserError | None:
    """What a user can do about an error of a disk or folder; ``None`` for any other.

    Args:
        error: As raised by whatever reads or writes.
        where: The place, if the error does not name it.
    """
    if error.errno not in _STORAGE or (error.errno == errno.EEXIST and not _makes_folder(error)):
        return None
    what, todo = _STORAGE[error.errno]
    place = str(error.filename or where)
    if todo == _ACCESS and place:
        home, path = paths.home(), Path(place).absolute()
        todo += _HOME if path.is_relative_to(home) or home.is_relative_to(path) else ""  # elsewhere, as at an image, it would not help
    return UserError(what, where=place, todo=todo)


def _makes_folder(error: OSError) -> bool:
    """Whether a folder was to be made where there is a file; other code that finds a file in its way has reasons of its own."""
    trace = traceback.extract_tb(error.__traceback__)
    return bool(trace) and trace[-1].name in ("mkdir", "makedirs") and Path(str(error.filename)).is_file()


@contextlib.contextmanager
def about(where: str) -> Iterator[None]:
    """Gives a ``UserError`` that names no place the one that it is about."""
    try:
        yield
    except UserError as error:
        raise error if error.where else UserError(error.what, where=where, todo=error.todo) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint such as ``did you mean 'unet'?``, or the list of known names when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def redacted(text: str, *urls: str) -> str:
    """``text`` as it may be printed, stored or sent: without the login of any URL in it, and without any secret that we know.

    Known are the values of environment variables whose names end like ``HF_TOKEN`` or ``PGPASSWORD``, and the passwords in the URLs of
    other variables (``MLFLOW_TRACKING_URI``).

    Args:
        text: A URL, an error's message, a traceback.
        urls: More URLs whose passwords must not appear, not even alone.
    """
    known = {value for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    for url in (*urls, *(value for value in os.environ.values() if "://" in value)):
        known |= passwords(url)
    for secret in sorted((s for s in known if len(s) >= _SHORTEST), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _OPTION.sub(rf"\g<name>{HIDDEN}", _LOGIN.sub(rf"\g<git>://{HIDDEN}@", text))


def passwords(url: str) -> set[str]:
    """The passwords and tokens in a URL, as they are written and as they are meant; empty when it has none.

    A login without a password is a token where it is sent over HTTP, and the name of a user at a database.
    """
    found = {match["password"][1:] for match in _LOGIN.finditer(url) if match["password"]}
    found |= {match["token"] for match in _TOKEN.finditer(url)} | {match["value"] for match in _OPTION.finditer(url)}
    return {form for secret in found for form in (secret, unquote(secret)) if form}


def first_names(names: Iterable[object], limit: int = 3) -> str:
    """The first few names, sorted, and how many more there are: ``a, b, c and 4 more``."""
    ordered = sorted(str(name) for name in names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + more
