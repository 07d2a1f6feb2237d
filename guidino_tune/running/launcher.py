"""Run in the place of Python by Ray, for a process of a trial: has it forked, see ``forking``, or becomes that Python.

It imports nothing of this package, and next to nothing else, for it is started with every process.
"""

import os
import socket
import sys


def forked(address: str, arguments: list[str]) -> bool:
    """Whether a process with this one's folder, environment, streams and arguments was forked; not where nobody answers.

    Args:
        address: Of the parent's socket.
        arguments: A script's file, and what it is given.
    """
    words = [os.getcwd(), str(len(arguments)), *arguments, *(f"{name}={value}" for name, value in os.environ.items())]
    told = os.fsencode("\0".join(words))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(address)
            socket.send_fds(connection, [len(told).to_bytes(8, "little")], [0, 1, 2])
            connection.sendall(told)
            return connection.recv(1) == b"1"
    except OSError:
        return False


if __name__ == "__main__" and not forked(sys.argv[1], sys.argv[2:]):
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
