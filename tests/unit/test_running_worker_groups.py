"""Workers of one trial on several nodes: they look at these together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from guidino_tune.running.worker_groups import check_together, interface_of
from guidino_tune.training.failures import UnfitNode

WORKER = """
import sys
from torch import distributed
from guidino_tune.running.worker_groups import UnfitGroup, check_together
from guidino_tune.training.failures import UnfitNode

rank, store = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

def check():
    if rank == 1:
        raise UnfitNode("the data are not there", where="/data", todo="mount them")

check_together(lambda: None, f"node-{rank}", 2)
try:
    check_together(check, f"node-{rank}", 2)
except UnfitGroup as error:
    print(error.node, "|", error)
"""


def test_all_workers_know_which_node_is_not_fit(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store")] for rank in (0, 1)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands]
    told = [worker.communicate(timeout=120) for worker in workers]
    assert told[0][0] == told[1][0], told
    assert told[0][0].startswith("node-1 | "), told
    assert "the data are not there" in told[0][0]
    assert "mount them" in told[0][0]


def test_a_single_worker_says_it_by_itself() -> None:
    def check() -> None:
        raise UnfitNode("the data are not there", where="/data", todo="mount them")

    check_together(lambda: None, "node", 1)
    with pytest.raises(UnfitNode, match="not there"):
        check_together(check, "node", 1)


def test_the_interface_of_an_address() -> None:
    assert interface_of("127.0.0.1").startswith("lo")
    assert interface_of("192.0.2.1") == ""  # of nobody
