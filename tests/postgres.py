"""A PostgreSQL server of a test's own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)

MISSING = "needs PostgreSQL: apt-get install postgresql"


class Server:
    """A server on a free port; its files lie in ``/tmp``, for its user may not look into a test's own folder.

    Args:
        address: Where it listens.
        network: Who is let in without a password besides loopback, such as ``10.77.0.0/24``.
    """

    def __init__(self, address: str = "127.0.0.1", network: str = "") -> None:
        assert BINARIES is not None, MISSING
        self.folder = Path(tempfile.mkdtemp(prefix="guidino-postgres-", dir="/tmp"))
        self.data, self.binaries, self.address = self.folder / "data", BINARIES, address
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres")
        with socket.create_server((address, 0)) as free:
            self.port = free.getsockname()[1]
        self.url = self.database("postgres")
        self.run("initdb", "-U", "postgres", "--auth=trust", "--no-sync")
        if network:
            with (self.data / "pg_hba.conf").open("a") as file:
                file.write(f"host all all {network} trust\n")
        self.start()

    def database(self, name: str) -> str:
        """URL of one of its databases."""
        return f"postgresql://postgres@{self.address}:{self.port}/{name}"

    def run(self, program: str, *arguments: str) -> None:
        # It refuses to run as root.
        user = pwd.getpwnam("postgres").pw_uid if os.geteuid() == 0 else None
        command = [str(self.binaries / program), "-D", str(self.data), *arguments]
        subprocess.run(command, check=True, user=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)

    def create(self, name: str) -> str:
        """Makes a database; gives its URL."""
        command = [str(self.binaries / "createdb"), "-h", self.address, "-p", str(self.port), "-U", "postgres", name]
        subprocess.run(command, check=True, timeout=60)
        return self.database(name)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses={self.address} -c unix_socket_directories={self.data} -c fsync=off"
        self.run("pg_ctl", "-w", "-l", str(self.data / "log"), "-o", options, "start")

    def stop(self) -> None:
        """As a crash: connections break in the middle of what they do."""
        self.run("pg_ctl", "-w", "-m", "immediate", "stop")

    def remove(self) -> None:
        """Stops it, and takes its files away."""
        self.stop()
        shutil.rmtree(self.folder)
