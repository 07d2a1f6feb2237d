"""How parts and folds are drawn: by a seed, whole groups at a time, and alike in kind and in size of the foreground where there are enough.

A cell is a stratum (what the layout tells of a case's kind), or a part of it: cases without foreground, those of one range of sizes, or of
unknown size.
Drawn parts have as much of each cell as all cases have. Rare strata share a cell, and a stratum is divided by size into no more ranges
than leave ``ENOUGH`` cases in each; so of fewer than twice as many cases, or where nothing is known of them, the draw is a plain one.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from guidino_tune.data.cases import Case, stable_hash

ENOUGH = 10
"""Cases of a cell, at least. A tenth for validation then has one of each, and each of five folds two."""

RANGES = 10
"""Of sizes, at most; more would bring little: within a tenth of all cases sizes differ little."""

_WINDOW = 12  # of groups of several cases, so many are looked at for the next one: more would give every seed nearly the same groups

Cells = Mapping[str, str]
"""Case id -> its cell; empty where all cases are in one."""


def cells(pool: Sequence[Case], sizes: Mapping[str, float] | None = None) -> Cells:
    """Sorts cases by kind and size.

    Args:
        pool: Those that are divided.
        sizes: Case id -> share of the image that is foreground, where that is known.

    Returns:
        A cell for every case; nothing where one cell holds them all.
    """
    count = Counter(case.stratum for case in pool)
    by_stratum: dict[str, list[str]] = defaultdict(list)
    for case in pool:
        by_stratum[case.stratum if count[case.stratum] >= ENOUGH else "\0rare"].append(case.id)
    found: dict[str, str] = {}
    for stratum, ids in by_stratum.items():
        apart = {
            "empty": [name for name in ids if sizes and sizes.get(name) == 0],
            "unknown": [name for name in ids if sizes and name not in sizes],
        }
        others = set(ids)
        for kind, names in apart.items():
            if ENOUGH <= len(names) <= len(others) - ENOUGH:
                found |= dict.fromkeys(names, f"{stratum}\0{kind}")
                others.difference_update(names)
        ranked = sorted(others, key=lambda name: ((sizes or {}).get(name, -1.0), stable_hash("tie", name), name))
        ranges = max(1, min(RANGES, len(ranked) // ENOUGH)) if sizes else 1
        found |= {name: f"{stratum}\0{rank * ranges // len(ranked)}" for rank, name in enumerate(ranked)}
    return found if len(set(found.values())) > 1 else {}


def draw_part(pool: Sequence[Case], target: int, part: str, seed: int, kinds: Cells) -> set[str]:
    """Draws about so many cases.

    Groups are taken in an order that depends only on seed, part and the group's name. Without ``kinds`` each is taken that brings the
    number nearer to the target; with them, of the next few that do, the one after which the cells are nearest to their shares.

    Args:
        pool: All cases that may be drawn.
        target: How many; single cases give exactly so many.
        part: Its name, for the seed.
        seed: Of the draw.
        kinds: From ``cells``.

    Returns:
        Case ids; at least one group where there are two.
    """
    groups = _groups(pool)
    order = sorted(groups, key=lambda group: (stable_hash("split", seed, part, group), group))
    drawn: set[str] = set()
    for group in _balanced(order, groups, target, kinds) if kinds else order:
        size = len(groups[group])
        if abs(len(drawn) + size - target) < abs(
            len(drawn) - target
        ):  # a group that would overshoot by more than is missing is passed over
            drawn.update(groups[group])
    if target and not drawn and len(groups) > 1:
        drawn.update(groups[min(order, key=lambda group: len(groups[group]))])
    return drawn


def draw_folds(pool: Sequence[Case], folds: int, seed: int, kinds: Cells) -> list[set[str]]:
    """Divides all cases into folds that are as equal in number, and with ``kinds`` in each cell, as whole groups allow.

    Large groups first, each into a fold with the fewest cases. With ``kinds`` a fold that has a little more may be taken (half a mean
    group; none where groups are single cases), if that makes the cells more equal.

    Args:
        pool: All cases that are divided, of at least ``folds`` groups.
        folds: How many.
        seed: Of the draw.
        kinds: From ``cells``.

    Returns:
        Case ids of each fold, none of them empty.
    """
    groups = _groups(pool)
    content = {group: Counter(kinds.get(name, "") for name in ids) for group, ids in groups.items()}
    slack = len(pool) // len(groups) // 2 if kinds else 0
    # Not in the order of exact sizes, in which every seed would divide groups of many sizes in the same way.
    order = sorted(
        groups,
        key=lambda group: (
            -len(groups[group]).bit_length(),
            max(content[group]) if len(groups[group]) == 1 else "",
            stable_hash("fold", seed, group),
            group,
        ),
    )
    found: list[set[str]] = [set() for _ in range(folds)]
    have: list[Counter[str]] = [Counter() for _ in range(folds)]
    for group in order:
        least = min(len(fold) for fold in found)
        open_ones = [k for k in range(folds) if len(found[k]) <= least + (slack if least else 0)]
        chosen = min(
            open_ones,
            key=lambda k: (
                sum(number * (2 * have[k][cell] + number) for cell, number in content[group].items()),  # growth of the sum of squares
                len(found[k]),
                stable_hash("fold", seed, group, k),
            ),
        )
        found[chosen].update(groups[group])
        have[chosen].update(content[group])
    return found


def _groups(pool: Iterable[Case]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for case in pool:
        groups[case.group].append(case.id)
    return groups


def _balanced(order: Sequence[str], groups: Mapping[str, Sequence[str]], target: int, kinds: Cells) -> Iterable[str]:
    """Groups in another order: at each step the one that leaves the cells of what was taken so far nearest to their shares of all."""
    names = sorted(set(kinds.values()))
    column = {name: number for number, name in enumerate(names)}
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)  # what is in a group -> ranks of such groups, the first one last
    for rank in range(len(order) - 1, -1, -1):
        counts = [0] * len(names)
        for name in groups[order[rank]]:
            counts[column[kinds[name]]] += 1
        alike[tuple(counts)].append(rank)
    number = Counter(kinds.values())
    total = np.array([number[name] for name in names])
    heads = sorted((ranks[-1], content) for content, ranks in alike.items())
    have, taken = np.zeros(len(names), np.int64), 0
    while heads:
        # What would overshoot now will do so later too.
        heads = [head for head in heads if abs(taken + sum(head[1]) - target) < abs(taken - target)]
        single = [head for head in heads if sum(head[1]) == 1]
        near = single + [head for head in heads if sum(head[1]) > 1][:_WINDOW]
        if not near:
            return
        after = have + np.array([content for _, content in near])
        # Whole numbers, so that ties are ties on every machine: deviations from the shares, times the number of all cases.
        deviation: list[int] = np.abs(after * total.sum() - after.sum(1, keepdims=True) * total).sum(1).tolist()
        rank, content = min(zip(deviation, near, strict=True))[1]
        yield order[rank]
        have, taken = have + np.array(content), taken + sum(content)
        heads.remove((rank, content))
        alike[content].pop()
        if alike[content]:
            bisect.insort(heads, (alike[content][-1], content))
