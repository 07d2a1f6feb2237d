"""What all commands share: the parser, and exit code 2 with one clear message for a user's mistake."""

from __future__ import annotations

import argparse
import atexit
import difflib
import gc
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import metadata
from types import TracebackType
from typing import Any, NoReturn

from guidino_tune import paths
from guidino_tune.errors import UserError, passwords, redacted, storage_error
from guidino_tune.stopping import stop_signals


class Parser(argparse.ArgumentParser):
    """Says in two lines what is wrong with a command line; argparse would print every option before it."""

    @property
    def arguments(self) -> list[argparse.Action]:
        """All that it takes."""
        return list(self._actions)

    def error(self, message: str) -> NoReturn:
        """See ``ArgumentParser``: ends the process with exit code 2."""
        options = [option for option in self._option_string_actions if option.startswith("--")]
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown and (close := difflib.get_close_matches(unknown[1], options, n=1)):
            message += f"; did you mean {close[0]!r}?"
        command = self.prog.partition(" ")[2]
        self.exit(2, f"error: {redacted(message)}\n  -> see: {paths.next_command(f'{command} --help')}\n")


def parser(name: str, about: str, examples: str) -> Parser:
    """An argument parser that keeps the layout of its examples and knows ``--home``."""
    made = Parser(
        prog=f"guidino-tune {name}",
        description=about,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--home", metavar="DIR", help="folder for studies, data sets and caches (default: $GUIDINO_TUNE_HOME or ~/guidino_tune)"
    )
    return made


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return value


def not_negative(text: str) -> float:
    """A number from 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0")
    return value


def seconds(text: str) -> float:
    """A duration such as ``90``, ``30m``, ``2h`` or ``1.5d``, for argparse; seconds without a unit."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    try:
        value = float(number) * unit
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 90s, 30m or 2h")
    return value


def size(text: str) -> int:
    """Bytes such as ``500M``, ``4G`` or ``1.5G`` (powers of 1024), for argparse; without a unit they are bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    value = int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500M or 4G")
    return value


def add_protocol_options(arguments: argparse.ArgumentParser, *, scores: bool, frames: bool = False) -> None:
    """Adds the fields of ``config.Protocol`` as options; see ``protocol_values``.

    Args:
        arguments: The command's parser.
        scores: Whether the command has true masks: else there is nothing to score, and nothing to decide post-processing on.
        frames: Whether each data set has a resolution of its own, where none is named.
    """
    arguments.add_argument(
        "--inference", choices=["resized", "sliding"], default="resized",
        help="resized: the whole image squeezed to the training size (default); sliding: windows of that size at the image's own scale",
    )  # fmt: skip
    arguments.add_argument("--mirror", action="store_true", help="average over the four flips")
    arguments.add_argument(
        "--largest-component", choices=["never", "always", *(["validation"] if scores else [])], default="never",
        help="keep only the largest connected component of each class"
        + ("; validation: if that improves the mean Dice of the study's validation split" if scores else ""),
    )  # fmt: skip
    if scores:
        arguments.add_argument(
            "--hd95", choices=["monai", "pooled", "reference"], default="monai",
            help="monai: larger of both directions' 95th percentiles (default); pooled: of both directions together; "
            "reference: GuiDINO's code, to the other mask's region instead of its border",
        )  # fmt: skip
        arguments.add_argument(
            "--resolution", choices=["native", "training"], default=None if frames else "native",
            help=f"where masks are compared: at the image's own size{'' if frames else ' (default)'}, or at the training size, with "
            f"distances in its pixels{' (default: as the code behind the tables does on that data set)' if frames else ''}",
        )  # fmt: skip


def protocol_values(options: argparse.Namespace) -> dict[str, Any]:
    """The values for ``config.Protocol`` that ``add_protocol_options`` has parsed; those without an option or value keep their default."""
    names = ("inference", "mirror", "largest_component", "hd95", "resolution")
    return {name: value for name in names if (value := getattr(options, name, None)) is not None}


def add_storage_option(arguments: argparse.ArgumentParser) -> None:
    """Adds ``--storage``, the database of the Optuna study; a URL with a password comes from ``GUIDINO_TUNE_STORAGE`` instead."""
    arguments.add_argument(
        "--storage", metavar="URL", type=_without_password,
        help="database of the Optuna study, for teams (default: $GUIDINO_TUNE_STORAGE, which may hold a password, or a file in the "
        "study's folder)",
    )  # fmt: skip


def add_format_option(arguments: argparse.ArgumentParser) -> None:
    """Adds ``--format``: how tables are printed."""
    arguments.add_argument(
        "--format", choices=["table", "json", "csv", "markdown"], default="table", help="table for people (default), or for a program"
    )


def add_backbone_option(arguments: argparse.ArgumentParser, *, several: bool = True) -> None:
    """Adds ``--backbone``: where the folder of a guide backbone is now, which must hold the same weights."""
    arguments.add_argument(
        "--backbone", action="append", default=[], metavar="OLD=DIR" if several else "DIR",
        help="folder in which the same backbone weights lie now"
        + ("; DIR alone where only one can be meant (may be given several times)" if several else ""),
    )  # fmt: skip


def add_trust_option(arguments: argparse.ArgumentParser) -> None:
    """Adds ``--trust``: import the code that a file from elsewhere names."""
    arguments.add_argument(
        "--trust", action="store_true",
        help="import the code of its own that the file names (segmenter.target, loss.custom.target), though no study here names it",
    )  # fmt: skip


def _without_password(url: str) -> str:
    """Refuses what every user of the machine could read in the list of processes, and Ray's dashboard shows as the job's command."""
    if passwords(url):
        raise UserError(
            "a password on the command line is seen by every user of this machine, and in Ray's dashboard",
            where=f"--storage {redacted(url)}",
            todo="put the URL into the variable GUIDINO_TUNE_STORAGE instead, or the password into a file that the database's driver reads",
        )
    return url


def _show_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints the traceback of a bug as Python does, without passwords."""
    print(redacted("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _check_home() -> None:
    """Refuses a home folder with a name that something below would stumble over later.

    Raises:
        UserError: Names the character.
    """
    home = str(paths.home())
    todo = "choose another folder with --home or GUIDINO_TUNE_HOME"
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in home):
        raise UserError("the home folder's name has a line break or another control character", where=repr(home), todo=todo)
    if any("\ud800" <= letter <= "\udfff" for letter in home):  # how Python shows bytes that are no UTF-8
        raise UserError("the home folder's name is no UTF-8", where=repr(home), todo=todo)
    strange = next((letter for letter in "%?" if letter in home), "")
    if strange and tuple(map(int, metadata.version("SQLAlchemy").split(".")[:2])) < (2, 1):
        what = f"MLflow's database cannot lie in a folder with {strange!r} in its name while SQLAlchemy is older than 2.1"
        raise UserError(what, where=home, todo=f"install SQLAlchemy 2.1, or {todo}")


_asked_for: list[list[Parser]] = []


def parser_of(main: Callable[[Sequence[str] | None], int]) -> Parser:
    """The parser that a command's ``main`` makes; the command is not run."""
    found: list[Parser] = []
    _asked_for.append(found)
    try:
        main([])
    finally:
        _asked_for.pop()
    return found[0]


def run(command: Callable[[argparse.Namespace], int], arguments: Parser, argv: Sequence[str] | None) -> int:
    """Parses, runs, and turns a user's mistake into one message on standard error.

    Returns:
        The exit code: the command's own, 2 for a mistake or a disk that cannot be written, 130 for Ctrl-C, SIGTERM and SIGHUP.
    """
    if _asked_for:
        _asked_for[-1].append(arguments)
        return 0
    sys.excepthook = _show_redacted
    # Imports leave half a million objects that stay. To look through them again and again, and at the end, was a quarter of the start.
    gc.set_threshold(20_000, 20, 20)
    atexit.register(gc.freeze)
    try:
        options = arguments.parse_args(argv)
        paths.use_home(options.home)
        _check_home()
        with stop_signals():
            return command(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        known = storage_error(error, str(paths.home()))
        if known is None:
            raise
        print(f"error: {known}", file=sys.stderr)
        return 2
