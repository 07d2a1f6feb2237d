"""What Ray would do here: the cluster that a search would join, and the token that it would show. Nothing is started."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from guidino_tune.findings import Finding


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster that a search would join.

    Attributes:
        address: As Ray would be given it; empty when a search would start a cluster of its own.
        origin: Where the address comes from: ``RAY_ADDRESS`` or a file.
        resources: Such as ``4 CPU, 1 GPU``; empty when the cluster does not tell.
        problem: Why it cannot be joined; empty when it can.
        todo: What to do about the problem.
    """

    address: str = ""
    origin: str = ""
    resources: str = ""
    problem: str = ""
    todo: str = ""


@dataclass(frozen=True, slots=True)
class Token:
    """The token with which Ray's processes know each other.

    Attributes:
        place: A variable or a file; empty when there is no token.
        mode: ``RAY_AUTH_MODE`` in lower case; empty when it is not set.
        exposed: Other users of this machine can read the file.
    """

    place: str = ""
    mode: str = ""
    exposed: bool = False


def ray_version() -> str:
    """Imports Ray and gives its version; the import itself is the check."""
    import ray

    version: str = ray.__version__
    return version


def find_token(environ: Mapping[str, str]) -> Token:
    """Looks in the places, and in the order, in which Ray looks.

    Args:
        environ: The environment of the user's shell: importing ``guidino_tune.running`` changes our own.
    """
    mode = environ.get("RAY_AUTH_MODE", "").lower()
    if environ.get("RAY_AUTH_TOKEN"):
        return Token("RAY_AUTH_TOKEN", mode)
    file = Path(environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not file.is_file():
        return Token("", mode)
    return Token(str(file), mode, bool(file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)))


def find_cluster(environ: Mapping[str, str], timeout: float = 20.0) -> Cluster:
    """The cluster that ``ray.init()`` would join: that of ``RAY_ADDRESS``, else the last one that ``ray start`` started here.

    Args:
        environ: As for ``find_token``.
        timeout: For the cluster's answer, in seconds.
    """
    address, origin = environ.get("RAY_ADDRESS", ""), "RAY_ADDRESS"
    if address == "local":
        return Cluster()
    if address.startswith(("http://", "https://")):
        return Cluster(
            address,
            origin,
            problem="is the address of a dashboard, which a search cannot join",
            todo="unset RAY_ADDRESS; for `ray job submit` set RAY_API_SERVER_ADDRESS instead",
        )
    todo = "correct RAY_ADDRESS, or unset it to let the search start a cluster of its own"
    if address in ("", "auto"):
        file = _address_file(environ)
        found = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
        if not found:
            return Cluster(address, origin, problem="no cluster runs on this machine", todo=todo) if address else Cluster()
        address, origin = found, str(file)
        todo = f"that cluster is gone: remove {file} (or run `ray stop`), and start another one if you need it"
    if problem := _unreachable(address):
        return Cluster(address, origin, problem=problem, todo=todo)
    if address.startswith("ray://"):
        return Cluster(address, origin)  # a Ray Client server, which `ray status` cannot ask
    return _ask(address, origin, timeout)


def known_cluster(environ: Mapping[str, str]) -> str:
    """The address that Ray would join: what ``RAY_ADDRESS`` says, else that of the last cluster that was started on this machine; empty
    when there is none.

    One that is gone, as after its processes were killed, is none: Ray itself would try for minutes, and then give up. The note of its
    address is removed, as ``ray stop`` does it: every process that asks the state service would ask there, so that what frees the bookings
    of stopped trials would do nothing, and stay.
    """
    file = _address_file(environ)
    if named := environ.get("RAY_ADDRESS"):
        return named
    known = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    if known and _unreachable(known):
        with contextlib.suppress(OSError):  # another user's
            file.unlink()
        return ""
    return known


def _address_file(environ: Mapping[str, str]) -> Path:
    folder = environ.get("RAY_TMPDIR") or environ.get("TMPDIR") or ("/tmp" if os.name == "posix" else tempfile.gettempdir())
    return Path(folder) / "ray" / "ray_current_cluster"


def _unreachable(address: str) -> str:
    """Why nothing answers at ``address``, or an empty string. Asked first: Ray itself would try for most of a minute."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        with socket.create_connection((parts.hostname or "", parts.port or 10001), timeout=2):
            return ""
    except (OSError, ValueError) as error:
        return f"nothing answers there ({error})"


def _ask(address: str, origin: str, timeout: float) -> Cluster:
    # In a process of its own: Ray ends a process that shows a wrong token or none, without an exception.
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Cluster(address, origin, problem=f"gives no status within {timeout:g} s", todo="look at it with: ray status")
    if asked.returncode == 0:
        return Cluster(address, origin, resources(asked.stdout))
    if "token" in asked.stderr.lower():
        return Cluster(
            address,
            origin,
            problem="refuses us: the token is wrong or missing",
            todo="copy ~/.ray/auth_token from the cluster's head to this machine, and export RAY_AUTH_MODE=token",
        )
    last = (asked.stderr.strip().splitlines() or [f"`ray status` failed with exit code {asked.returncode}"])[-1]
    return Cluster(address, origin, problem=last[:300], todo=f"look at it with: ray status --address {address}")


def resources(status: str) -> str:
    """CPUs and GPUs, all together, from what ``ray status`` prints: `` 1.0/4.0 CPU`` gives ``4 CPU``."""
    found = re.findall(r"^\s*[\d.]+/([\d.]+) (CPU|GPU)\b", status, re.MULTILINE)
    return ", ".join(f"{float(total):g} {name}" for total, name in found)


def look(shell: Mapping[str, str]) -> Iterator[Finding]:
    """What there is of Ray, a cluster and its token, and what to do about what is not.

    Args:
        shell: The environment as the user has it.
    """
    token = find_token(shell)
    generate = "ray get-auth-token --generate"
    if not token.place and token.mode == "token":
        yield Finding(
            "missing", "Ray token", "RAY_AUTH_MODE=token, but there is no token", f"{generate}   (or copy that of the cluster's head)"
        )
        return  # Ray would end this process
    yield Finding("ok", "Ray", f"version {ray_version()}")
    cluster = find_cluster(shell)
    if cluster.problem:
        yield Finding("missing", "Ray cluster", f"{cluster.address} (from {cluster.origin}): {cluster.problem}", cluster.todo)
    elif cluster.address:
        yield Finding("ok", "Ray cluster", f"{cluster.address} answers: {cluster.resources or 'it does not tell its resources'}")
    else:
        yield Finding("ok", "Ray cluster", "none runs: a search starts one on this machine, for itself")
    if token.mode == "disabled":
        found = "RAY_AUTH_MODE=disabled: whoever reaches a cluster's ports can run code on it"
        yield Finding("note", "Ray token", found, f"unset RAY_AUTH_MODE; {generate}; export RAY_AUTH_MODE=token")
    elif not token.place:
        found = "none yet: a search makes one, but `ray start --head` before that starts a cluster open to everybody"
        yield Finding("note", "Ray token", found, f"{generate}; export RAY_AUTH_MODE=token")
    elif token.mode != "token":
        found = f"{token.place}; a search uses it, but `ray job submit` and `ray status` with an address do not by themselves"
        yield Finding("note", "Ray token", found, "export RAY_AUTH_MODE=token")
    else:
        yield Finding("ok", "Ray token", token.place)
    if token.exposed:
        yield Finding(
            "note", "Ray token", f"other users of this machine can read {token.place}", f"chmod 600 {shlex.quote(str(token.place))}"
        )
