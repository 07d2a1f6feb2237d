"""Ctrl-C, SIGTERM and SIGHUP: each of them interrupts a command, which then saves what it has and ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Of the keyboard; of a stopped job or a machine going down; of a terminal that is closed."""


_MOMENT = 0.01  # seconds after which an interrupt that Python has dropped comes again

_depth = _received = 0
"""Blocks of ``stop_signals`` within each other, and interrupts since the outermost one began."""


def raise_swallowed() -> None:
    """Interrupts a command here whose interrupt before was lost: some libraries swallow every exception while they are imported.

    Raises:
        KeyboardInterrupt: There was one.
    """
    if _received:
        raise KeyboardInterrupt


def _send(number: int) -> None:
    """To the main thread, while it is in a block of ``stop_signals``."""
    if _depth:
        signal.pthread_kill(threading.main_thread().ident or 0, number)


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Within the block each of ``SIGNALS`` is a ``KeyboardInterrupt``; afterwards their handlers are those from before.

    SIGTERM and SIGHUP go the way of SIGINT, so that a library which handles SIGINT for a while, as Ray Tune does, handles all three. Put
    around such a library it also takes back what that has left behind. SIGHUP stays ignored where it is, as under ``nohup``, and so does
    SIGINT, as in the background of a script; SIGTERM ends the command there. Where Python drops an interrupt, as in what it calls while it
    collects objects, the signal is given once more. In another thread than the main one, which gets no signals, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminals = [number for number in (1, 2) if os.isatty(number)]
    last, dropped = signal.SIGINT.value, sys.unraisablehook

    def give_again(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            threading.Timer(_MOMENT, _send, (last,)).start()
        else:
            dropped(unraisable)

    def stop(number: int, frame: Any) -> None:
        global _received
        nonlocal last
        _received, last = _received + 1, number
        if number == signal.SIGHUP:
            _silence(terminals)
        if number == signal.SIGINT or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)

    global _depth, _received
    _depth, _received = _depth + 1, _received if _depth else 0
    taken = [n for n in SIGNALS if n == signal.SIGTERM or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in taken}
    sys.unraisablehook = give_again
    try:
        yield
    finally:
        sys.unraisablehook = dropped
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _depth -= 1
        _received = _received if _depth else 0


def _silence(numbers: list[int]) -> None:
    """Sends what is still printed nowhere: a terminal that is gone answers every line with an error."""
    for number in numbers:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
