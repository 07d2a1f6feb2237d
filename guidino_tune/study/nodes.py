"""On which nodes the trials of a run are, and which nodes are avoided, because whatever begins there fails."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path

from guidino_tune.training.failures import FailureKind

NODE = "node"
"""Attribute of a trial, and the file in its folder in which its process notes this: host name and Ray's id of the node it was on last."""

QUICK = 3
"""Configurations in a row that fail on a node before their first epoch; then it is avoided."""

UNFIT = 2
"""Configurations in a row that fail on a node through disk, files or network, after however many epochs; then it is avoided."""

KEPT = 3
"""Times that a trial is sent to the nodes with the most memory: they may be gone when it begins, so that it is on another one again."""

AVOIDED = 600.0
"""Seconds for which it is; the next failure there makes it so once more."""

OTHERS = f"for {AVOIDED / 60:.0f} minutes trials begin on other nodes"
"""What is done then, in words."""

MANY, REST = 50, 20
"""Where the nodes of more running trials than this are not known yet, their folders are not looked through again for so many times as long
as it took: a server of files needs a second for a thousand, and whether a search gives up is asked in every step."""

ENVIRONMENT: FailureKind = "environment"


class Nodes:
    """Counts what fails where.

    Attributes:
        used: Nodes on which trials of this run have been.
        has_others: Whether another node than these could take a trial.
    """

    has_others: Callable[..., bool] = staticmethod(lambda *nodes: True)

    def __init__(self) -> None:
        self.used: set[str] = set()
        self._of: dict[int, str] = {}
        self._begun: set[tuple[int, str]] = set()
        self._quick: dict[str, set[Hashable]] = {}
        self._unfit: dict[str, set[Hashable]] = {}
        self._until: dict[str, float] = {}
        self._left: dict[int, set[str]] = {}
        self._moved: set[int] = set()
        self._unfit_for: set[int] = set()
        self._only: dict[int, list[str]] = {}
        self._kept: Counter[int] = Counter()

    def placed(self, number: int, node: str) -> bool:
        """A trial is on a node; true when that is news."""
        before, self._of[number] = self._of.get(number), node
        self.used.add(node)
        return before != node

    def progressed(self, number: int) -> str:
        """A trial told an epoch; gives its node, empty where that is unknown."""
        node = self._of.get(number, "")
        if (number, node) not in self._begun:
            self._begun.add((number, node))
            self._quick.pop(node, None)
            self._unfit.pop(node, None)
        return node

    def failed(self, number: int, configuration: Hashable, kind: FailureKind) -> str:
        """A trial ended without a result and for no fault of its own; gives its node."""
        node = self._of.get(number, "")
        for known, most, counts in (
            (self._quick, QUICK, (number, node) not in self._begun),
            (self._unfit, UNFIT, kind == ENVIRONMENT),
        ):
            if node and counts:
                known.setdefault(node, set()).add(configuration)
                if len(known[node]) >= most:
                    self._until[node] = time.monotonic() + AVOIDED
        return node

    def unfit(self, number: int) -> None:
        """The node of a trial has not what every node needs, by its own account: that says nothing of the trial."""
        self._unfit_for.add(number)

    def leave(self, number: int) -> list[str]:
        """Where a trial is not to go on that failed on its node, with that node.

        Returns:
            Empty where its node is unknown; or when it had left this one before, or any other that was fit.
        """
        node, unfit = self._of.get(number, ""), number in self._unfit_for
        self._unfit_for.discard(number)
        left = self._left.setdefault(number, set())
        if not node or node in left or (not unfit and number in self._moved):
            return []
        left.add(node)
        if not unfit:
            self._moved.add(number)
            return [node]
        return sorted({*left, *self._bad})

    def node_of(self, number: int) -> str:
        """Where a trial is, or was last; empty where that is unknown."""
        return self._of.get(number, "")

    def keep_to(self, number: int, nodes: list[str]) -> None:
        """A trial is to begin on one of these nodes alone, given by Ray's ids."""
        self._only[number] = nodes
        self._kept[number] += 1

    def had_most_memory(self, number: int) -> bool:
        """Whether a trial was where it was to begin alone; or was sent there so often that it counts as if."""
        return self._of.get(number, "").rpartition(" ")[2] in self.only_for(number) or self._kept[number] >= KEPT

    def only_for(self, number: int) -> list[str]:
        """Where alone a trial is to begin; empty where it may anywhere."""
        return self._only.get(number, [])

    def avoided_by(self, number: int) -> list[str]:
        """Where a trial is not to begin."""
        return sorted({*self.avoided, *self._left.get(number, ())})

    @property
    def avoided(self) -> list[str]:
        """Where no trial is to begin now; never all nodes that are known."""
        return self._bad if len(self._bad) < len(self.used) else []

    @property
    def _bad(self) -> list[str]:
        """Where one configuration after the other failed, a short while ago."""
        now = time.monotonic()
        return sorted(node for node, until in self._until.items() if (node in self._quick or node in self._unfit) and now < until)

    def one_to_blame(self, failed: Iterable[str], running: Iterable[int], *, few: bool) -> bool:
        """Whether failures may be the fault of a single node.

        Args:
            failed: Where they were; where that is unknown, nothing speaks against a common cause.
            running: Trials that run now.
            few: They are so few that other nodes, used before or by trials that are only starting, may not have had their turn.
        """
        nodes, where = set(failed), {self._of.get(number, "") for number in running}
        if len(nodes) != 1 or "" in nodes or not self.has_others(next(iter(nodes))):
            return False
        return bool(where - nodes - {""}) or (few and ("" in where or len(self.used) > 1))


def read_node(folder: Path) -> str:
    """The node that the process of a trial noted in its folder; empty where it noted none."""
    try:
        return (folder / NODE).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def shown(node: str) -> str:
    """A node in words."""
    host, _, name = node.partition(" ")
    return f"{host} ({name[:8]})" if name else host
