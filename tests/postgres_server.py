"""A PostgreSQL of a test's own, which may be stopped as by a crash."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
"""Of the newest one that is installed; ``None`` without any."""


class Server:
    """A server on a port of loopback, with its data in a folder."""

    def __init__(self, folder: Path) -> None:
        assert BINARIES is not None
        self.data, self.binaries = folder / "data", BINARIES
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def run(self, program: str, *arguments: str) -> None:
        # It refuses to run as root.
        user = pwd.getpwnam("postgres").pw_uid if os.geteuid() == 0 else None
        command = [str(self.binaries / program), "-D", str(self.data), *arguments]
        subprocess.run(command, check=True, user=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.data} -c fsync=off"
        self.run("pg_ctl", "-w", "-l", str(self.data / "log"), "-o", options, "start")

    def stop(self) -> None:
        """As a crash: connections break in the middle of what they do."""
        self.run("pg_ctl", "-w", "-m", "immediate", "stop")


@contextlib.contextmanager
def running_server() -> Iterator[Server]:
    """A new server, which is gone after the block."""
    folder = Path(tempfile.mkdtemp(prefix="guidino-postgres-", dir="/tmp"))  # whose user may not look into the test's own
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    server = Server(folder)
    server.run("initdb", "-U", "postgres", "--auth=trust", "--no-sync")
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)
