"""Connecting to Ray: the cluster of a job, a running one on this machine, or a new one of our own."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
from collections.abc import Iterator

from guidino_tune import paths
from guidino_tune.config import Resources
from guidino_tune.errors import UserError
from guidino_tune.running.cluster import may_change, note_own, uses_actors
from guidino_tune.running.environment import protect_token
from guidino_tune.running.forking import python_of_trials
from guidino_tune.running.inspection import known_cluster
from guidino_tune.running.ray_private import few_helpers, shorten_messages
from guidino_tune.stopping import stop_signals

DASHBOARD = "GUIDINO_TUNE_DASHBOARD"
"""Set to anything, this variable has a search's own cluster start with Ray's dashboard."""

_dashboard = ""
"""Address of the connected cluster's dashboard."""

_starting: _Start | None = None
"""A cluster that starts while something else is done."""

_beginning = threading.Lock()
"""Of several threads, one begins to start a cluster."""


@contextlib.contextmanager
def connecting(resources: Resources) -> Iterator[None]:
    """A Ray cluster of this machine's own starts beside what is done in the block; ``connected`` waits for it.

    Where another cluster would be joined, or this process is in one, nothing is done. It ends with the block, also for those who joined it
    meanwhile from other threads: where several searches are to run at once in one process, ``ray.init()`` comes first, which none ends.

    Args:
        resources: Of the search.
    """
    global _starting
    import ray

    with _beginning:
        started = None if _starting or ray.is_initialized() or not _starts_own() else _Start(resources)
        _starting = started or _starting
    try:
        yield
    finally:
        if started:
            _starting = None
            started.end()


class _Start:
    """Starts a cluster, in a thread that lives as long as it: Linux ends Ray's processes with the thread that has started them."""

    def __init__(self, resources: Resources) -> None:
        self._resources, self._error = resources, None
        self._done, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="guidino-tune-ray", daemon=True)
        self._thread.start()

    _error: BaseException | None

    def _run(self) -> None:
        try:
            _join(self._resources)
            _warm_up()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()
        self._over.wait()

    def wait(self) -> None:
        """Until it is started.

        Raises:
            UserError: It does not start.
        """
        self._done.wait()
        if self._error:
            raise self._error

    def end(self) -> None:
        """Ends the cluster, once it is started."""
        self._done.wait()
        _leave()
        self._over.set()


@contextlib.contextmanager
def connected(resources: Resources | None = None) -> Iterator[str]:
    """A Ray cluster for the time of a block; gives the dashboard's address, empty when there is none.

    Args:
        resources: Of a search, which needs less of a cluster of its own than others do.

    Raises:
        UserError: A cluster is named but cannot be joined.
    """
    import ray

    starting = _starting  # once: another thread may end it
    if starting:
        starting.wait()
    mine = not ray.is_initialized()
    if mine:
        _join(resources)
    try:
        yield _dashboard
    finally:
        if mine:
            _leave()


def no_dashboard() -> str:
    """What is said in the place of a dashboard's address; of a cluster of others, what they have started is all there is."""
    return "none" if may_change() else f"off, {DASHBOARD}=1 starts it"


def _warm_up() -> None:
    """Has a first process start, which stays for whoever is next; nobody waits for it."""
    import ray

    ray.remote(num_cpus=0, max_retries=0)(_nothing).remote()


def _nothing() -> None:
    pass


def _starts_own() -> bool:
    return known_cluster(os.environ) in ("", "local")


def _join(resources: Resources | None) -> None:
    """Joins a cluster, or starts one: for trials in reused processes without dashboard, of which Ray Train's need the state service."""
    import ray

    global _dashboard
    protect_token()  # its folder, before Ray makes a token
    own = _starts_own()
    lean = own and resources is not None and uses_actors(resources) and not os.environ.get(DASHBOARD)
    python = python_of_trials() if own else None
    try:
        # Ray puts a handler of its own in the place of ours, which is back afterwards.
        with stop_signals(), few_helpers(dashboard=not lean) if own else contextlib.nullcontext():
            context = ray.init(
                "local" if own else None, include_dashboard=not lean, log_to_driver=False, logging_level=logging.ERROR,
                runtime_env={"py_executable": python} if python else None,
            )  # fmt: skip
        shorten_messages()
        note_own(own)
        _dashboard = f"http://{context.dashboard_url}" if context.dashboard_url else ""
    except (KeyboardInterrupt, SystemExit):
        ray.shutdown()
        raise KeyboardInterrupt from None  # Ray's handler exits
    except (ConnectionError, RuntimeError, ValueError, PermissionError) as error:
        raise UserError(
            f"cannot join the Ray cluster: {str(error).splitlines()[0]}",
            where=os.environ.get("RAY_ADDRESS", "this machine"),
            todo=f"check RAY_ADDRESS and RAY_AUTH_MODE, or see: {paths.next_command('doctor')}",
        ) from None
    protect_token()


def _leave() -> None:
    import ray

    global _dashboard
    # Where a thread gives up a reference to an object of Ray while that shuts down, Ray ends this process with code 1. What lies in cycles
    # is given up by whichever thread collects them, such as the one that sends to MLflow; afterwards that is harmless.
    collects = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if collects:
            gc.enable()
    _dashboard = ""
    note_own(False)
