"""A real Slurm on machines of namespaces: one has the controller, from which jobs are submitted, and three compute."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from machines import NET, Machine, machines, until

CONTROLLER, COMPUTING = 31, (32, 33, 34)

GRACE = 20
"""Seconds that a job has when it is preempted."""


def missing() -> str:
    """What of Slurm is not installed; empty when all of it is."""
    absent = [program for program in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(program) is None]
    return f"needs {', '.join(absent)}: apt-get install slurm-wlm munge" if absent else ""


class Slurm:
    """What a user sees of it.

    Args:
        controller: Where commands are given.
        nodes: Where jobs run, in Slurm's order.
        log: Folder in which jobs are submitted.
    """

    def __init__(self, controller: Machine, nodes: list[Machine], log: Path) -> None:
        self.controller, self.nodes, self.folder = controller, nodes, log

    def submit(self, *arguments: str) -> int:
        """Number of the job of ``sbatch`` with these arguments."""
        done = subprocess.run(
            self.controller.enter("bash", "-c", 'cd "$0" && exec sbatch "$@"', str(self.folder), *arguments),
            env=self.controller.environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split()[-1])

    def show(self, job: int) -> dict[str, str]:
        """What ``scontrol`` knows of a job."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.controller.run("scontrol", "show", "job", str(job))))

    def output(self, job: int) -> str:
        """What the job has printed, and Ray on its nodes."""
        files = [self.folder / f"slurm-{job}.out", self.folder / f"slurm-{job}-ray.out"]
        return "\n".join(file.read_text() for file in files if file.exists())


@contextlib.contextmanager
def slurm(folder: Path, environment: Mapping[str, str]) -> Iterator[Slurm]:
    """Starts it in a folder; ends it with everything that runs there.

    Args:
        folder: Of all its files, and of those of its machines.
        environment: Of its users.
    """
    names = {number: f"gdtnode{number}" for number in (CONTROLLER, *COMPUTING)}
    _configure(folder, names)
    before = [f"mount --bind {folder}/hosts /etc/hosts", "mkdir -p /var/tmp/slurmd"]
    # The home is on a file system that all machines have, and every machine has its own disk under /var/tmp.
    own = {"SLURM_CONF": f"{folder}/slurm.conf", "TMPDIR": "/var/tmp", **environment}
    with machines() as make:
        made = [make(number, folder, own, before) for number in names]
        controller, nodes = made[0], made[1:]
        controller.start("munge.log", "munged", "--foreground", "--force", *_munge(folder))
        until(lambda: (folder / "munge.socket").exists(), 20, "munge", lambda: controller.log("munge.log"))
        controller.start("slurmctld.log", "slurmctld", "-D", "-c")
        for node in nodes:
            node.start("slurmd.log", "slurmd", "-D", "-N", node.name)
        found = Slurm(controller, nodes, folder)

        def idle() -> bool:
            with contextlib.suppress(AssertionError):
                return controller.run("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D").split() == [str(len(nodes))]
            return False

        until(idle, 60, "Slurm", lambda: "\n".join([controller.log("slurmctld.log"), *(node.log("slurmd.log") for node in nodes)])[-6000:])
        yield found


def _munge(folder: Path) -> list[str]:
    files = {
        "socket": "munge.socket",
        "key-file": "munge.key",
        "pid-file": "munge.pid",
        "log-file": "munged.log",
        "seed-file": "munge.seed",
    }
    return [f"--{option}={folder}/{name}" for option, name in files.items()]


def _configure(folder: Path, names: Mapping[int, str]) -> None:
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{NET}.{number} {name}\n" for number, name in names.items()))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    lines = [
        "ClusterName=gdt",
        f"SlurmctldHost={names[CONTROLLER]}({NET}.{CONTROLLER})",
        "AuthType=auth/munge",
        f"AuthInfo=socket={folder}/munge.socket",
        "SlurmUser=root",
        "SlurmdUser=root",
        f"StateSaveLocation={folder}/state",
        "SlurmdSpoolDir=/var/tmp/slurmd",
        "SlurmctldPidFile=/var/tmp/slurmctld.pid",
        "SlurmdPidFile=/var/tmp/slurmd.pid",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "SwitchType=switch/none",
        "MpiDefault=none",
        "ReturnToService=2",
        "JobRequeue=1",
        "MinJobAge=3600",
        "KillWait=10",
        "GresTypes=gpu",
        "SlurmdParameters=config_overrides",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        *(f"NodeName={names[number]} NodeAddr={NET}.{number} CPUs=8 Gres=gpu:2 State=UNKNOWN" for number in COMPUTING),
        f"PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime={GRACE} MaxTime=INFINITE State=UP",
        "PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE State=UP",
    ]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=yes\n")
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")  # as files alone: nothing opens them
    (folder / "state").mkdir()
