"""What the machines did: when, with which failures, at what cost, and how to do it again."""

from __future__ import annotations

import contextlib
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from guidino_tune.reporting import charts
from guidino_tune.reporting.document import Block, Cell, Chart, Code, Facts, Folded, Section, Table, Text
from guidino_tune.reporting.known import Known
from guidino_tune.reporting.material import FAILED, Material, Trial, plain
from guidino_tune.reporting.words import duration, listed, many, number_cell

PAUSE = 300.0
"""Seconds without any training anywhere, after which the search itself has paused."""

SHARE = 0.15
"""Of the whole time; a shorter silence is no pause of the search."""

TOLERANCE = 1.0
"""Seconds by which clocks may make two trials of one place overlap."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One place: its node, and what it trained, in seconds since the start without pauses."""

    node: str
    stretches: Sequence[tuple[float, float, Trial]]


@dataclass(frozen=True, slots=True)
class Times:
    """When what was trained.

    Attributes:
        lanes: As many as ever worked at once, by node.
        span: Seconds that the search ran, pauses left out.
        breaks: Where pauses were cut out.
        busy: Seconds of training, of all places together.
        measured: Whether it is from histories; else from the begin and end of trials, waiting included.
    """

    lanes: Sequence[Lane]
    span: float
    breaks: Sequence[float]
    busy: float
    measured: bool

    @property
    def idle(self) -> float:
        """Seconds in which places had nothing to train."""
        return max(0.0, self.span * len(self.lanes) - self.busy)


def times(trials: Sequence[Trial]) -> Times:
    """Puts all stretches of training in lanes."""
    measured = any(trial.busy for trial in trials)
    rows: list[tuple[float, float, Trial]] = []
    for trial in trials:
        # What failed before its first epoch took its place as well.
        stretches = trial.busy or (_whole(trial) if not measured or trial.state == FAILED else [])
        rows += [(start, end, trial) for start, end in stretches]
    rows.sort(key=lambda row: row[0])
    if not rows:
        return Times([], 0.0, [], 0.0, measured)
    pause = max(PAUSE, SHARE * (max(end for _, end, _ in rows) - rows[0][0])) if len(rows) > 1 else PAUSE
    origin = latest = rows[0][0]
    cut, breaks = 0.0, list[float]()
    lanes: dict[str, list[list[tuple[float, float, Trial]]]] = {}
    for start, end, trial in rows:
        if start - latest > pause:
            breaks.append(latest - origin - cut)
            cut += start - latest
        latest = max(latest, end)
        mine = lanes.setdefault(trial.node, [])
        at = start - origin - cut
        free = next((lane for lane in mine if lane[-1][1] <= at + TOLERANCE), None)
        if free is None:
            mine.append(free := [])
        free.append((at, end - origin - cut, trial))
    flat = [Lane(node, lane) for node in sorted(lanes) for lane in lanes[node]]
    return Times(flat, latest - origin - cut, breaks, sum(end - start for start, end, _ in rows), measured)


def _whole(trial: Trial) -> list[tuple[float, float]]:
    if not (trial.begun and trial.ended):
        return []
    return [(trial.begun.timestamp(), max(trial.ended.timestamp(), trial.begun.timestamp()))]


def timeline(material: Material, known: Known) -> Section:
    """Who worked when, and what it cost."""
    lead = "When each place trained which trial; pale stretches are idle, and below stands what all of it took and cost."
    found = times(material.trials)
    if not found.lanes:
        return Section("time", "Time and cost", lead, [Text("No times are stored: no trial has ended an epoch.", "absent")])
    best = material.ranked[0] if material.ranked else None
    source = (
        "From the epochs in the trials' histories, and of what failed before the first from its begin to its end; what starts, ends and "
        "saves a trial counts as idle."
        if found.measured
        else "From the begin and end of each trial, for no histories are here: waiting at rungs is part of it."
    )
    merged = " Too many stretches for single trials: only busy and idle are told apart." if _crowded(found) else ""
    chart = Chart(
        title="Timeline",
        svg=charts.timeline([(lane.node or "this machine", lane.stretches) for lane in found.lanes], found.span, found.breaks, best),
        caption=f"Blue: ran to the end; grey: stopped early; red: failed; orange: the best trial. {source}{merged}",
        wide=True,
    )
    return Section("time", "Time and cost", lead, [chart, *_nodes(found, material.trials), Facts(_cost(material, known, found))])


def _crowded(found: Times) -> bool:
    return any(len(lane.stretches) * len(found.lanes) > 1500 for lane in found.lanes)


def _nodes(found: Times, every: Sequence[Trial]) -> list[Block]:
    nodes = Counter(lane.node for lane in found.lanes)
    rows = []
    for node, places in sorted(nodes.items()):
        stretches = [row for lane in found.lanes if lane.node == node for row in lane.stretches]
        busy = sum(end - start for start, end, _ in stretches)
        here = [trial for trial in every if trial.node == node]
        failed = sum(bool(trial.failure) for trial in here)
        rows.append(
            (
                node or "not stored", Cell(str(places), places), Cell(str(len(here)), len(here)), Cell(str(failed), failed),
                Cell(duration(busy), busy), Cell(f"{max(0.0, 1 - busy / (places * found.span)):.0%}" if found.span else "–", busy),
            )
        )  # fmt: skip
    caption = "A place is what one trial takes; as many are counted on a node as ever worked there at once."
    return [Table(headings=("node", "places", "trials", "failed", "trained", "idle"), rows=rows, caption=caption)]


def _cost(material: Material, known: Known, found: Times) -> list[tuple[str, str]]:
    resources = material.space.resources
    workers, epochs = resources.workers, sum(trial.reached for trial in material.trials)
    hours, booked = found.busy * workers / 3600, found.span * len(found.lanes) * workers / 3600
    rows = [
        ("search ran for", duration(found.span) + (f", in {len(found.breaks) + 1} runs" if found.breaks else "")),
        ("trained", f"{duration(hours * 3600)} of {'all workers' if workers > 1 else 'all trials'} together, {many(epochs, 'epoch')}"),
        ("idle", f"{duration(max(0.0, booked - hours) * 3600)} of {duration(booked * 3600)} of all places together"),
    ]
    stopped = sum(max(0, trial.budget - trial.reached) for trial in material.trials if trial.state == "stopped early")
    if stopped:
        rows.append(("saved by stopping early", many(stopped, "epoch")))
    if known.price:
        per, currency = known.price.per_hour, known.price.currency
        told = f"{hours * per:,.2f} {currency} for training, {booked * per:,.2f} {currency} with idle places"
        rows.append(("cost", f"{told} ({per:g} {currency} an hour of one worker)"))
    else:
        rows.append(("cost", "no price was named: guidino-tune report --price-per-hour X --currency EUR"))
    return rows


def failures(material: Material, known: Known) -> Section:
    """What failed and why."""
    lead = "Which trials failed, how often in each way, and what to do about it; configurations that diverge are results of the search."
    if not known.failures:
        return Section("failures", "Failures", lead, [Text("No trial failed.")])
    rows = [(f.kind, Cell(str(f.count), f.count), str(f.trial), f.message[:600], f.node or "–", f.todo) for f in known.failures]
    table = Table(headings=("kind", "trials", "first", "reason of the first", "node", "what to do"), rows=rows)
    every = [trial for trial in material.trials if trial.failure]
    blocks: list[Block] = [table]
    if len(every) > len(known.failures):
        numbers = [
            (str(t.number), t.name or "–", t.failure, number_cell(float(t.reached)), t.message[:160], t.node or "–") for t in every[:200]
        ]
        more = Table(headings=("trial", "system", "kind", "epochs", "reason", "node"), rows=numbers, tall=True)
        blocks.append(Folded(f"All {len(every)} failed trials" + (", the first 200" if len(every) > 200 else ""), [more]))
    return Section("failures", "Failures", lead, blocks)


def repeat(material: Material, known: Known) -> Section:
    """Versions, hardware, commands and the whole definition."""
    lead = "By what and on what this was computed, the commands that go on with it, and all that is needed to search it again."
    blocks: list[Block] = [Facts(_computed(material, known)), *_commands(known)]
    definition = yaml.safe_dump(material.space.to_dict(), sort_keys=False, allow_unicode=True, width=120)
    again = shlex.join(["guidino-tune", "search", "study.yaml", "--name", f"{material.name}-again"])
    label = f"Saved as study.yaml, with the same version and the same images it is searched again by: {again}"
    blocks.append(Folded("The study's whole definition (study.yaml)", [Code(definition, label)]))
    best = material.folder.best if material.folder else None
    if best is not None and best.is_file() and material.ranked:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = best.read_text(encoding="utf-8")
            label = f"Of trial {material.ranked[0]}; saved as best.yaml it is trained again with: guidino-tune retrain best.yaml"
            blocks.append(Folded("The best configuration (best.yaml)", [Code(text, label)]))
    return Section("repeat", "How to repeat it", lead, blocks)


def _commands(known: Known) -> list[Block]:
    lines = [f"# {what}\n{command}" for what, command in known.commands.items()]
    return [Code("\n".join(lines), "Commands:")] if lines else []


def _computed(material: Material, known: Known) -> list[tuple[str, str]]:
    from guidino_tune.training.noted_machines import read_machines

    machines = [found for t in _sample(material) if (path := material.trial_folder(t.number)) for found in read_machines(path)]

    def of(name: str) -> str:
        values = sorted({plain(found[name]) for found in machines if found.get(name) not in (None, "")})
        return listed(values) if values else "not stored"

    packages = ", ".join(f"{name} {of(name)}" for name in ("torch", "transformers", "peft", "monai", "numpy", "python"))
    resources = material.space.resources
    precision = {"True": "bf16", "False": "no bf16"}
    told = (
        listed([precision.get(value, value) for value in sorted({plain(found.get("bf16")) for found in machines})])
        if machines
        else "not stored"
    )
    return [
        ("guidino-tune", f"{of('guidino_tune')} searched; {known.version} made this report"),
        ("packages", packages if machines else "not stored"),
        ("machines", f"{of('machine')}; processor {of('processor')}; device {of('device')}" if machines else "not stored"),
        ("each trial", f"{many(resources.workers, 'worker')} of {of('threads')} thread(s); {told}"),
        ("backbone", of("backbone")),
        *((what, where) for what, where in known.links.items()),
    ]


def _sample(material: Material) -> Sequence[Trial]:
    """Some trials: of thousands, one in so many."""
    every = max(1, len(material.trials) // 200)
    best = [material.best] if material.best else []
    return [*best, *material.trials[::every]]
