"""A real PostgreSQL for a test: a server of its own, started and stopped as often as the test likes."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def newest_server(folder: Path) -> Path | None:
    """Where the programs of the newest one are; ``None`` without any: a client alone has a folder too."""
    return max((program.parent for program in folder.glob("*/bin/initdb")), key=lambda found: float(found.parent.name), default=None)


BINARIES = newest_server(Path("/usr/lib/postgresql"))

needs_postgres = pytest.mark.skipif(BINARIES is None, reason="needs PostgreSQL: apt-get install postgresql")


class Server:
    """A server with its data in a folder; see ``started``."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        assert BINARIES is not None
        self.data, self.binaries, self.address = folder / "data", BINARIES, address
        with socket.create_server((address, 0)) as free:
            self.port = free.getsockname()[1]
        self.url = self.url_of("postgres")

    def url_of(self, database: str, user: str = "postgres") -> str:
        return f"postgresql://{user}@{self.address}:{self.port}/{database}"

    def run(self, program: str, *arguments: str) -> None:
        # It refuses to run as root.
        user = pwd.getpwnam("postgres").pw_uid if os.geteuid() == 0 else None
        command = [str(self.binaries / program), "-D", str(self.data), *arguments]
        subprocess.run(command, check=True, user=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses={self.address} -c unix_socket_directories={self.data} -c fsync=off"
        self.run("pg_ctl", "-w", "-l", str(self.data / "log"), "-o", options, "start")

    def stop(self) -> None:
        """As a crash: connections break in the middle of what they do."""
        self.run("pg_ctl", "-w", "-m", "immediate", "stop")

    def ask(self, statement: str, database: str = "postgres") -> str:
        """What ``psql`` answers."""
        command = [str(self.binaries / "psql"), "-v", "ON_ERROR_STOP=1", "-tAc", statement, self.url_of(database)]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    def create(self, database: str) -> str:
        """Makes a database; gives its URL."""
        self.ask(f'CREATE DATABASE "{database}"')
        return self.url_of(database)


@contextmanager
def started(address: str = "127.0.0.1", network: str = "") -> Iterator[Server]:
    """A server with nothing in it, until the end of the block.

    Args:
        address: Where it listens, on a free port.
        network: Who is let in without a password besides loopback, such as ``10.77.0.0/24``.
    """
    folder = Path(tempfile.mkdtemp(prefix="guidino-postgres-", dir="/tmp"))  # whose user may not look into the test's own
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        server = Server(folder, address)
        server.run("initdb", "-U", "postgres", "--auth=trust", "--no-sync")
        if network:
            with (server.data / "pg_hba.conf").open("a") as file:
                file.write(f"host all all {network} trust\n")
        try:
            server.start()
            yield server
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):  # it is down, as a test that failed meanwhile left it
                server.stop()
    finally:
        shutil.rmtree(folder)
