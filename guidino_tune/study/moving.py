"""Trials that go on elsewhere: a node, and not their configuration, may be what ended them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import optuna

from guidino_tune.study.nodes import ENVIRONMENT, shown
from guidino_tune.study.outcomes import as_key

if TYPE_CHECKING:
    from guidino_tune.study.driver import Driver


def goes_elsewhere(driver: Driver, trial: optuna.Trial) -> bool:
    """Keeps a trial that is to be tried on another node.

    - Disk, files or network of its node ended it, and there is another node: that moves a trial once.
    - Its node is not fit for the search, such as one without the study's folder: that moves it as long as there is a node that it has not
      tried, and that is not avoided. So nodes that join and are not fit end no search.
    - It ran out of memory on a GPU that it shared, or that is smaller than the largest ones of the cluster (without GPUs: on a smaller
      node). It goes on alone on one of the largest. What runs out of memory there is the configuration's result.
    """
    number, nodes = trial.number, driver.outcomes.nodes
    kind, message = driver.reasons.get(number, ("", ""))
    if kind == ENVIRONMENT:
        if driver.has_others is None or not (left := nodes.leave(number)) or not driver.has_others(*left):
            return False
        nodes.failed(number, as_key(driver.frozen(trial).params), kind)
    elif kind == "out-of-memory" and driver.roomier is not None and (node := nodes.node_of(number)) and not nodes.had_most_memory(number):
        if not (roomier := driver.roomier(node)):
            return False
        nodes.keep_to(number, roomier)
        message = f"{' '.join(message.split())[:200]}; once more where a trial has most memory, by itself"
    else:
        return False
    del driver.reasons[number]
    driver.keep(trial, kind, f"node {shown(nodes.node_of(number))}: {message}")
    driver.warn_of_nodes()
    return True
