"""Trials that go on elsewhere: a node, and not their configuration, may be what ended them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna

from guidino_tune.study.nodes import ENVIRONMENT, shown
from guidino_tune.study.outcomes import as_key

if TYPE_CHECKING:
    from guidino_tune.study.driver import Driver


def goes_elsewhere(driver: Driver, trial: optuna.Trial) -> bool:
    """Keeps a trial that is to be tried on another node; each of the two reasons moves a trial once.

    - Disk, files or network of its node ended it, and there is another node.
    - It ran out of memory, and did not have the most that a node of the cluster has for a trial: a whole one of the largest GPUs, or,
      without GPUs, the largest node. What ends there is the configuration's result.
    """
    number, nodes = trial.number, driver.outcomes.nodes
    kind, message = driver.reasons.get(number, ("", ""))
    if kind == ENVIRONMENT:
        if driver.has_others is None or not (node := nodes.leave(number)) or not driver.has_others(node):
            return False
        nodes.failed(number, as_key(driver.frozen(trial).params), kind)
    elif kind == "out-of-memory" and driver.roomier is not None and (node := nodes.node_of(number)) and not nodes.only_for(number):
        if not (roomier := driver.roomier(node)):
            return False
        nodes.keep_to(number, roomier)
        message = f"{' '.join(message.split())[:200]}; once more where a trial has most memory, by itself"
    else:
        return False
    del driver.reasons[number]
    driver.keep(trial, kind, f"node {shown(node)}: {message}")
    driver.warn_of_nodes()
    return True
