"""Processes of trials that are forked from one that has imported what all of them need, instead of each importing it for itself.

    driver, alone in its thread, with torch imported -> fork -> the parent, which imports Ray as well, and waits
    Ray wants a process of a trial -> ``launcher`` in the place of Python -> asks the parent -> fork -> becomes Ray's worker

The imports take seconds of CPU and hundreds of megabytes for each process; forked, all share them. The driver is forked while Python has
one thread there, has computed nothing, and knows no GPU. Libraries have threads of their own by then, OpenBLAS under numpy and jemalloc
under pyarrow: both have handlers for a fork, which start them anew where they are needed, so that it is sound. The parent ends with the
driver, however that ends; Ray ends the processes of trials, as ever. Where the parent is gone, or knows another cluster, the launcher
starts Python as Ray would have done.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import runpy
import selectors
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from guidino_tune.config import Resources
from guidino_tune.running import launcher
from guidino_tune.running.cluster import uses_actors
from guidino_tune.running.inspection import known_cluster
from guidino_tune.stopping import SIGNALS

_NVIDIA = Path("/proc/driver/nvidia")

_SCRIPT = "default_worker.py"
"""What Ray runs as a worker; anything else is not forked."""

_KNOWN = ("RAY_JOB_ID", "RAY_RAYLET_PID")
"""Variables that Ray reads when it is imported: they are the same in all processes of one search on one node."""

_LAUNCHER, _ENDING = 30.0, 10.0
"""Seconds that the parent waits for the words of a launcher, which it has ready; and the driver for the end of its parent."""

_IDS = 2000
"""So many IDs of Ray are left to each process: they come at random from a generator that a fork copies."""

_address = ""
"""Of the socket of this process's parent of trials."""


@contextlib.contextmanager
def forked_processes(resources: Resources, *, guided: bool = True) -> Iterator[None]:
    """Processes of a Ray cluster that is started in the block are forked from this one as it is now.

    To be entered before this process has another thread of Python, or has computed anything with torch, and before any lock that is not
    to be held by the processes of trials. Elsewhere than on Linux, and where there are GPUs of NVIDIA, nothing is done: there imports are
    a small part of a process.

    Args:
        resources: Of the search; those of Ray Train start processes that need no torch.
        guided: Whether trials may have a guide, whose library takes more than a second to import.
    """
    global _address
    alone = threading.active_count() == 1 and "ray" not in sys.modules
    own = known_cluster(os.environ) in ("", "local") and uses_actors(resources)
    if sys.platform != "linux" or _NVIDIA.exists() or not (alone and own):
        yield
        return
    _import_for_trials(guided)
    folder = tempfile.mkdtemp(prefix="guidino-tune-")  # of this user alone: who reaches the socket runs code
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"{folder}/parent")
        listener.listen(64)  # who asks before the parent is ready waits
        read, write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.fork()
        if not parent:
            os.close(write)
            _leave(_serve, listener, read, folder)
    os.close(read)
    _address = f"{folder}/parent"
    try:
        yield
    finally:
        _address = ""
        os.close(write)
        shutil.rmtree(folder, ignore_errors=True)  # the parent may have been killed
        _await_end(parent)


def python_of_trials() -> str | None:
    """The command that Ray runs in the place of Python; ``None`` where processes are not forked."""
    return shlex.join([sys.executable, "-I", "-S", launcher.__file__, _address]) if _address else None


def _await_end(parent: int) -> None:
    """Waits for the end of the parent, which comes by itself; ends it where it does not come."""
    deadline = time.monotonic() + _ENDING
    with contextlib.suppress(ChildProcessError):
        while not os.waitpid(parent, os.WNOHANG)[0]:
            if time.monotonic() > deadline:
                os.kill(parent, signal.SIGKILL)
            time.sleep(0.01)


def _import_for_trials(guided: bool) -> None:
    """What training imports, and the driver's checks too; the rest is imported by the parent."""
    from guidino_tune.models.architectures import ARCHITECTURES
    from guidino_tune.training import loop  # noqa: F401

    if guided:
        ARCHITECTURES["dinov3_vit"].model_class  # noqa: B018  # imports the network


def _serve(listener: socket.socket, alive: int, folder: str) -> None:
    """Forks whatever is asked for, until the other end of the pipe ``alive`` is closed."""
    os.setsid()  # Ctrl-C is for the driver
    for stop in SIGNALS:
        signal.signal(stop, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, _reap)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):  # else whoever reads what the driver prints would wait for this process, too
        os.dup2(nowhere, number)
    from guidino_tune.analysis import pictures  # noqa: F401

    known: tuple[str, ...] | None = None
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(alive, selectors.EVENT_READ)
        while not any(key.fd == alive for key, _ in selector.select()):
            files = list[int]()
            try:
                with listener.accept()[0] as connection:
                    connection.settimeout(_LAUNCHER)
                    folder_of_it, arguments, environment = _request(connection, files)
                    known = known or tuple(environment.get(name, "") for name in _KNOWN)
                    same = known == tuple(environment.get(name, "") for name in _KNOWN)
                    if same and Path(arguments[0]).name == _SCRIPT:
                        _import_ray(environment)
                        _leave_ids_behind()
                        if not os.fork():
                            selector.close()
                            listener.close()
                            os.close(alive)
                            _leave(_become, connection, folder_of_it, arguments, environment, files)
                    else:
                        connection.sendall(b"0")
            except (OSError, ValueError, EOFError):
                continue  # a launcher that was killed, which Ray knows; one that lives becomes Python by itself
            finally:
                for file in files:
                    os.close(file)
    shutil.rmtree(folder, ignore_errors=True)


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _request(connection: socket.socket, files: list[int]) -> tuple[str, list[str], dict[str, str]]:
    """Folder, arguments and environment of a launcher; its standard streams are put into ``files``.

    Raises:
        EOFError: It ended before it had said all.
        ValueError: It is no launcher.
        OSError: It is gone, or says nothing for too long.
    """
    length, streams, _, _ = socket.recv_fds(connection, 8, 3)
    files += streams
    if len(length) < 8:
        raise EOFError
    told = b""
    while len(told) < int.from_bytes(length, "little"):
        part = connection.recv(1 << 20)
        if not part:
            raise EOFError
        told += part
    folder, number, *words = os.fsdecode(told).split("\0")
    arguments, environment = words[: int(number)], dict(word.split("=", 1) for word in words[int(number) :])
    if not arguments or len(files) < 3:
        raise ValueError
    return folder, arguments, environment


def _import_ray(environment: dict[str, str]) -> None:
    """Once it is known what Ray reads at its import, of which a process of another cluster must know nothing."""
    if "ray" in sys.modules:
        return
    os.environ.update({name: value for name, value in environment.items() if name.startswith("RAY_")})
    from guidino_tune.running import executors  # noqa: F401

    gc.collect()
    gc.freeze()  # pages that the collector does not write to stay shared


def _leave_ids_behind() -> None:
    """Goes on to IDs that no process forked before has.

    The first object of a worker is only there for a moment, to warm up the store; two that begin at the same time with one ID for it end
    with an error, and Ray starts no other in the place of such a worker.
    """
    import ray

    for _ in range(_IDS):
        ray.ObjectRef.from_random()


def _become(connection: socket.socket, folder: str, arguments: list[str], environment: dict[str, str], files: list[int]) -> None:
    """Turns this process into what the launcher would have started."""
    os.setpgid(0, 0)  # Ray ends a process together with its group
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    connection.sendall(b"1")
    connection.close()
    _draw_anew()
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], None, "__main__")


def _draw_anew() -> None:
    """Gives each process random numbers of its own, as those have that Python starts: what was forked would draw the same ones."""
    import numpy
    import torch

    random.seed()
    numpy.random.seed()  # the generator of all who have none of their own
    torch.seed()


def _leave(work: object, *given: object) -> None:
    """Does the last thing of a forked process, which must not return into the driver's calls."""
    code = 1
    try:
        work(*given)  # type: ignore[operator]
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        if "ray" in sys.modules:
            import ray

            ray.shutdown()  # what Ray does at the end of Python, which is not reached
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
