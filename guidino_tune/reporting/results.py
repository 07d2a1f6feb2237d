"""How the search went: its history, learning curves, Pareto front and leaderboard."""

from __future__ import annotations

from datetime import datetime
from statistics import median

from guidino_tune.analysis.certainty import FEWEST
from guidino_tune.config.study import OBJECTIVES
from guidino_tune.reporting import charts
from guidino_tune.reporting.document import Block, Cell, Chart, Charts, Section, Table, Text
from guidino_tune.reporting.known import Known
from guidino_tune.reporting.material import BEYOND, COMPLETE, FAILED, STOPPED, Material, Trial, reached
from guidino_tune.reporting.words import dice_cell, many, number_cell, setting_cell, when

ROWS = 400
"""Trials in the leaderboard; a file with thousands would be too large to send by mail."""

MARKS = "Disc: whole budget; ring: stopped early, or not at its end; star: the best."

UNITS = {"val_hd95": "validation HD95, pixels", "seconds": "seconds of training × workers", "parameters": "parameters, millions",
         "operations": "operations per image, 10⁹"}  # fmt: skip
FACTORS = {"parameters": 1e6, "operations": 1e9}
HEADINGS = {"val_hd95": "HD95, px", "parameters": "parameters, 10⁶", "operations": "operations, 10⁹"}


def history(material: Material) -> Section:
    """Dice over trials and time."""
    lead = "Every trial's best validation Dice in the order of the search, and the best so far: a line that is still rising has not ended."
    scored = [trial for trial in material.trials if trial.dice is not None]
    if not scored:
        return Section("history", "History", lead, [Text("No trial has been validated yet.", "absent")])
    best = material.ranked[0] if material.ranked else None
    lines = [("best constant mask", material.baseline)] if material.baseline is not None else []
    numbers = Table(
        headings=("trial", "last epoch", "Dice", "best so far"),
        rows=_steps(scored),
        caption="Trials that became the best, in order of their end.",
    )
    shown = f" {charts.POINTS} of {len(scored):,} trials are drawn, among them the best." if len(scored) > charts.POINTS else ""
    drawings = [
        Chart(
            title=f"Over {'time' if by_time else 'trials'}",
            svg=charts.history(scored, best, [(n, v) for n, v in lines if v is not None], by_time=by_time),
            caption=f"{MARKS} Line: the best so far of those that ran their whole budget.{shown}",
            numbers=None if by_time else numbers,
        )
        for by_time in (False, True)
        if not by_time or any(trial.begun for trial in scored)
    ]
    return Section("history", "History", lead, [Charts(drawings)])


def _steps(trials: list[Trial]) -> list[tuple[str | Cell, ...]]:
    rows: list[tuple[str | Cell, ...]] = []
    highest = 0.0
    for trial in sorted((t for t in trials if t.state == COMPLETE), key=lambda t: (t.last or 0.0, t.number)):
        if (trial.dice or 0.0) > highest:
            highest = trial.dice or 0.0
            at = datetime.fromtimestamp(trial.last) if trial.last else None
            rows.append((str(trial.number), when(at), dice_cell(trial.dice), dice_cell(highest)))
    return rows


def learning(material: Material, known: Known) -> Section:
    """Curves, and what was stopped at which rung."""
    lead = (
        "How the Dice of each trial rose with its epochs, and at which rungs trials were stopped early to spend their time on better ones."
    )
    if not any(trial.curve for trial in material.trials):
        return Section("curves", "Learning curves", lead, [Text("No trial has been validated yet.", "absent")])
    best = material.ranked[0] if material.ranked else None
    told = sum(1 for trial in material.trials if trial.curve)
    shown = f" {charts.LINES} of {told:,} curves are drawn, the best half of them and of the others evenly." if told > charts.LINES else ""
    blocks: list[Block] = [
        Chart(
            title="Validation Dice over epochs",
            svg=charts.curves(material.trials, best, material.rungs),
            caption=f"Blue: whole budget; grey: stopped early, with a ring where; orange: the best.{shown}",
            wide=True,
        )
    ]
    if material.rungs:
        blocks.append(_rungs(material, known))
    else:
        blocks.append(Text("The trials have different budgets, so there are no common rungs.", "absent"))
    return Section("curves", "Learning curves", lead, blocks)


def _rungs(material: Material, known: Known) -> Table:
    rows: list[tuple[str | Cell, ...]] = []
    for rung in material.rungs:
        came = reached(material, rung)
        values = sorted(value for trial in came if (value := trial.until(rung)) is not None)
        here = [t for t in material.trials if t.reached == rung and t.state in (STOPPED, BEYOND, FAILED)]
        agreement = known.agreement.get(rung)
        rows.append(
            (
                Cell(str(rung), rung), Cell(str(len(came)), len(came)), Cell(str(len(here)), len(here)),
                dice_cell(median(values) if values else None), dice_cell(values[-1] if values else None),
                str(agreement) if agreement else "the end" if rung == material.rungs[-1] else "–",
            )
        )  # fmt: skip
    caption = (
        "Agreement: Kendall's tau between the order at this rung and at the end, 1 = the same order, with its 95 % interval; "
        f"from {FEWEST} trials on that came to the end."
    )
    headings = ("rung (epoch)", "trials that came", "ended here", "median Dice", "best Dice", "agreement with the end")
    return Table(headings=headings, rows=rows, caption=caption)


def front(material: Material) -> Section:
    """Dice against the other objectives."""
    lead = "What a higher Dice costs: no trial on the front is better in one objective and as good in all others."
    others = [name for name in material.space.study.objectives if name != "val_dice"]
    if not others:
        why = "This study has one objective, the validation Dice: there is no front."
        return Section("front", "Pareto front", lead, [Text(why, "absent")])
    ranked = set(material.ranked)
    complete = [trial for trial in material.trials if trial.number in ranked]
    if not complete:
        return Section("front", "Pareto front", lead, [Text("No trial has run its whole budget yet.", "absent")])
    drawings = [
        Chart(
            title=f"Dice against {UNITS.get(name, name)}",
            svg=charts.front(complete, material.front, name, UNITS.get(name, name), FACTORS.get(name, 1.0), joined=not others[1:]),
            caption=f"Numbered discs: the front ({_better(name)} is better); rings: other trials.",
        )
        for name in others
        if any(name in trial.values for trial in complete)
    ]
    leading = [material.trial(number) for number in material.front]
    table = Table(
        headings=("trial", "system", "Dice", *(UNITS.get(name, name) for name in others)),
        rows=[
            (
                str(t.number),
                t.name,
                dice_cell(t.dice),
                *(number_cell(_in_units(t, n)) for n in others),
            )
            for t in leading
        ],
        caption="The front, best Dice first.",
    )
    return Section("front", "Pareto front", lead, [*([Charts(drawings)] if drawings else ()), table])


def _in_units(trial: Trial, name: str) -> float | None:
    return trial.values[name] / FACTORS.get(name, 1.0) if name in trial.values else None


def _better(objective: str) -> str:
    return "higher" if OBJECTIVES[objective] == "maximize" else "lower"


def leaderboard(material: Material) -> Section:
    """All trials with what was searched."""
    lead = "Every trial with all that was searched: the whole budget first, best first, then those that were stopped, failed or run."
    if not material.trials:
        return Section("trials", "Leaderboard", lead, [Text("No trial has begun yet.", "absent")])
    place = {number: rank for rank, number in enumerate(material.ranked, 1)}
    order = sorted(material.trials, key=lambda t: (place.get(t.number, len(place) + 1), -(t.dice or 0.0), t.number))
    paths = list(material.space.parameters)
    more = [name for name in ("val_hd95", "seconds", "parameters", "operations") if any(name in t.values for t in material.trials)]
    rows: list[tuple[str | Cell, ...]] = [
        (
            Cell(str(rank), rank) if (rank := place.get(t.number)) else Cell("–"),
            Cell(str(t.number), t.number), t.name or "–", t.failure or t.state, Cell(str(t.reached), t.reached), dice_cell(t.dice),
            *(number_cell(_in_units(t, name)) for name in more),
            *(setting_cell(t.params[path]) if path in t.params else Cell("–") for path in paths),
        )
        for t in order[:ROWS]
    ]  # fmt: skip
    caption = f"{len(rows)} of {len(order):,} trials" if len(order) > ROWS else many(len(order), "trial")
    hidden = "; all others: guidino-tune show with --format csv" if len(order) > ROWS else ""
    marked = frozenset(n for n, t in enumerate(order[:ROWS]) if t.number in (material.front or material.ranked[:1]))
    table = Table(
        headings=("rank", "trial", "system", "state", "epochs", "Dice", *(HEADINGS.get(name, name) for name in more), *paths),
        rows=rows, caption=f"{caption}{hidden}. A click on a heading sorts.", sortable=True, tall=True, marked=marked,
    )  # fmt: skip
    return Section("trials", "Leaderboard", lead, [table])
