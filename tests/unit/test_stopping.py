"""Ctrl-C, SIGTERM and SIGHUP end a command in the same way, with real signals."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from guidino_tune.stopping import SIGNALS, raise_swallowed, stop_signals

COMMAND = """
import signal, sys, time
from pathlib import Path
from guidino_tune.cli import parser, run

def work(options):
    try:
        print("started", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("saving", flush=True)
        Path(sys.argv[1]).write_text("saved")
        raise
    return 0

sys.exit(run(work, parser("test", "A test.", ""), []))
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_interrupts_a_command(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(tmp_path / "state")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (130, "saving\n", "interrupted\n")
    assert (tmp_path / "state").read_text() == "saved"


def test_a_closed_terminal_lets_the_command_save(tmp_path: Path) -> None:
    """As when an ssh session ends: the terminal is gone, and every line written to it would be an error."""
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", COMMAND, str(tmp_path / "state")])
    seen = b""
    while b"started" not in seen:
        try:
            seen += os.read(terminal, 1000)
        except OSError:  # as Linux says that nobody writes there any more
            pytest.fail(f"the command ended early: {seen.decode()}")
    os.close(terminal)
    deadline = time.monotonic() + 20
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    if found[0] == 0:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(found[1]) == 130
    assert (tmp_path / "state").read_text() == "saved"


def test_under_nohup_a_closed_terminal_changes_nothing(tmp_path: Path) -> None:
    def ignoring() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(tmp_path / "state")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=ignoring
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 130


def test_in_the_background_of_a_script_ctrl_c_is_not_meant_for_it(tmp_path: Path) -> None:
    """A shell without job control starts such a command with SIGINT ignored."""

    def ignoring() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(tmp_path / "state")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=ignoring
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 130
    assert (tmp_path / "state").read_text() == "saved"


def test_what_a_library_leaves_behind_is_taken_back() -> None:
    """Ray takes SIGTERM for itself, and Tune leaves a handler for SIGINT that only sets a flag."""
    before = [signal.getsignal(number) for number in SIGNALS]
    heard: list[int] = []
    with stop_signals():
        with stop_signals():
            for number in SIGNALS:
                signal.signal(number, lambda number, frame: heard.append(number))
            signal.raise_signal(signal.SIGTERM)
        for number in SIGNALS:
            with pytest.raises(KeyboardInterrupt):
                _raise(number)
    assert heard == [signal.SIGTERM]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_all_three_reach_whoever_handles_ctrl_c_meanwhile() -> None:
    heard: list[int] = []
    with stop_signals():
        signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
        _raise(signal.SIGTERM)
        _raise(signal.SIGHUP)
    assert heard == [signal.SIGINT, signal.SIGINT]


def test_another_thread_is_left_alone() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    done: list[bool] = []

    def work() -> None:
        with stop_signals():
            done.append(True)

    _in_thread(work)
    assert done == [True]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def _raise(number: int) -> None:
    signal.raise_signal(number)
    time.sleep(0.01)  # Python calls handlers between two steps of its own


def _in_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)


def test_an_interrupt_that_a_library_swallowed_interrupts_later_and_once() -> None:
    with stop_signals():
        with stop_signals(), contextlib.suppress(KeyboardInterrupt):  # as a bare except does at some imports
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            raise_swallowed()
    raise_swallowed()  # of another command
    with stop_signals():
        raise_swallowed()


@pytest.mark.parametrize("number", SIGNALS)
def test_an_interrupt_that_python_drops_comes_again(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    """What is raised while objects are collected is dropped, and told with a traceback."""

    class Thing:
        pass

    thing = Thing()
    kept = weakref.ref(thing, lambda _: signal.raise_signal(number))
    hook = sys.unraisablehook
    begun = time.monotonic()

    def collected() -> None:
        nonlocal thing
        thing = Thing()
        time.sleep(20)

    with pytest.raises(KeyboardInterrupt), stop_signals():
        collected()
    assert time.monotonic() - begun < 10
    assert (kept(), sys.unraisablehook) == (None, hook)
    assert "ignored" not in capsys.readouterr().err
