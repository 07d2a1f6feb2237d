"""Settings that Ray reads when it is imported; importing ``guidino_tune.running`` makes them first."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

SEAL = "GUIDINO_TUNE_SEALED"
"""While it is ``1``, ``data.sealed`` refuses to open the test split in this process."""


def prepare_environment() -> None:
    """Sets what is not set: a user's own setting wins."""
    for name, value in {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # a report waits for this poll, 2 s by default
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard copies of what the study holds
        "RAY_AIR_NEW_OUTPUT": "0",  # Tune's new output ignores `verbose=0`; the search draws its own table
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_enable_worker_prestart": "0",  # processes that wait for tasks of which a search has next to none
        "RAY_prestart_worker_first_driver": "0",
        "RAY_worker_maximum_startup_concurrency": "4",  # a Ray Train trial is eight small actors; Ray warns of them on two cores
        "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # else one after the other starts; how many there are is the searcher's business
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the loss of a machine is told in one line, by the study, and not as pages of traceback
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is of no use to us
    }.items():
        os.environ.setdefault(name, value)
    # With an address given, Ray uses the machine's token only when told to; told to without a token, it does not start at all.
    if (Path.home() / ".ray" / "auth_token").exists() or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def protect_token() -> None:
    """Keeps the machine's token from its other users: Ray makes it readable for all, and who holds it can run any code as this user."""
    folder = Path.home() / ".ray"
    with contextlib.suppress(OSError):  # a read-only home holds no token that Ray could have made
        folder.mkdir(mode=0o700, exist_ok=True)
        token = folder / "auth_token"
        if token.exists() and token.stat().st_mode & 0o077:
            token.chmod(0o600)


_sealing = threading.Lock()
_sealers: list[str | None] = []


@contextlib.contextmanager
def sealed_tests() -> Iterator[None]:
    """Nothing in this process may open the test split meanwhile, not even by mistake; searches in several threads may overlap."""
    with _sealing:
        _sealers.append(_sealers[0] if _sealers else os.environ.get(SEAL))
        os.environ[SEAL] = "1"
    try:
        yield
    finally:
        with _sealing:
            before = _sealers.pop()
            if not _sealers and before is None:
                del os.environ[SEAL]
            elif not _sealers and before is not None:
                os.environ[SEAL] = before
