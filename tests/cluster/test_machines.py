"""A trial whose workers are on two machines, which know each other by their addresses alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from clusters import Cluster
from machines import machines, missing
from optuna.trial import TrialState
from small_searches import check_history, slow_space, trials_of


@pytest.mark.timeout(600)
def test_a_group_over_two_machines_trains(tmp_path: Path, home: Path, demo: Path) -> None:
    if why := missing():
        pytest.skip(why)
    file = slow_space(tmp_path, demo, epochs=2, trials=1, pruner="none", validate_every=1)
    space = yaml.safe_load(file.read_text())
    space["resources"] = {"executor": "train", "workers": 2, "cpus_per_worker": 1}
    file.write_text(yaml.safe_dump(space))
    with machines() as make:
        cluster = Cluster(tmp_path, home, make, {})
        cluster.start_head()
        both = [cluster.join(number) for number in (11, 12)]
        printed = cluster.head.run("cluster/submit.sh", str(file), timeout=400)
        assert "complete" in printed, printed
        assert "Traceback" not in printed
        assert all((machine.folder / "worker.txt").read_text().count("Ray runtime started") == 1 for machine in both)
    (trial,) = trials_of(home, "small")
    assert trial.state == TrialState.COMPLETE
    check_history(home, "small", 2)
