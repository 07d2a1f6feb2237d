"""Which settings mattered: importance by rung, all settings at once, each by itself, and what was never tried."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from guidino_tune.analysis.certainty import FEWEST, Estimate
from guidino_tune.reporting import charts
from guidino_tune.reporting.document import Block, Cell, Chart, Charts, Section, Table, Text
from guidino_tune.reporting.known import Known
from guidino_tune.reporting.material import Material, Trial, reached
from guidino_tune.reporting.words import listed, many, setting
from guidino_tune.space.parameters import Bounds, Parameter

EDGE = 0.05
"""Share of a range, in its own scale, within which a value lies at its edge."""

GAP = 0.2
"""Share of a range between two neighbouring values that is told as never tried."""

SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}

METHOD = (
    "Method: extremely randomised trees learn the best Dice until a rung from a bootstrap sample of the trials and predict the others; the "
    "importance of a setting is the share of the variance that is no longer predicted when its values are shuffled (permutation importance "
    "on held-out trials, Breiman 2001). A setting that exists only beside another one is shuffled among the trials that have it, and "
    "together with the one it depends on. The interval holds 95 % of what 20 such samples give. Of more than 400 trials at a rung 400 are "
    "looked at, drawn by a fixed seed, and the interval is theirs. fANOVA and PED-ANOVA are not used: they give neither an interval nor a "
    "check on unseen trials."
)


def importance(material: Material, known: Known) -> Section:
    """By rung."""
    lead = "Which settings decide the Dice, at each rung: dark bars are beyond noise, for pale ones the interval holds zero."
    found = {rung: told for rung in material.rungs if (told := _told(material, rung, known.importance.get(rung, {})))}
    if not found:
        came = ", ".join(f"{many(len(reached(material, rung)), 'trial')} came to epoch {rung}" for rung in material.rungs)
        why = known.unsure or f"{came or 'there are no common rungs'}; fewer than {FEWEST}, or their settings do not predict the Dice"
        return Section("importance", "What mattered", lead, [Text(f"Not told: {why}.", "absent"), Text(METHOD)])
    blocks: list[Block] = []
    for rung, told in found.items():
        sure = [f"{name} ({estimate})" for name, estimate in told if estimate.low > 0]
        what = f"beyond noise: {listed(sure)}" if sure else "no setting is beyond noise"
        blocks.append(Text(f"Epoch {rung}, {_looked(material, rung, told)}: {what}."))
    drawings = [
        Chart(
            title=f"Best Dice until epoch {rung}, {_looked(material, rung, told)}",
            svg=charts.shares(told, f"Importance of settings for the best Dice until epoch {rung}"),
            caption="Bar: the share; line: its 95 % bootstrap interval over the trials.",
        )
        for rung, told in found.items()
    ]
    table = Table(
        headings=("setting", "exists when", *(f"epoch {rung} (trials)" for rung in material.rungs)),
        rows=[
            (path, _condition(parameter), *(_share(material, known, rung, path) for rung in material.rungs))
            for path, parameter in material.space.parameters.items()
        ],
        caption=f"Shares of the variance with 95 % intervals, and how many trials have it; of fewer than {FEWEST} nothing is told.",
    )
    return Section("importance", "What mattered", lead, [*blocks, Charts(drawings), table, Text(METHOD)])


def _looked(material: Material, rung: int, told: list[tuple[str, Estimate]]) -> str:
    """How many trials came to a rung, and of how many of them this is."""
    trials, looked = len(reached(material, rung)), told[0][1].trials
    return many(trials, "trial") + (f", of which {looked} were looked at" if looked < trials else "")


def _told(material: Material, rung: int, shares: Mapping[str, Estimate]) -> list[tuple[str, Estimate]]:
    """Without settings that too few trials have."""
    counted = _counted(material, rung)
    return [(path, estimate) for path, estimate in shares.items() if counted.get(path, 0) >= FEWEST]


def _counted(material: Material, rung: int) -> dict[str, int]:
    came = reached(material, rung)
    return {path: sum(path in trial.params for trial in came) for path in material.space.parameters}


def _share(material: Material, known: Known, rung: int, path: str) -> str:
    number = _counted(material, rung)[path]
    estimate = known.importance.get(rung, {}).get(path)
    if number < FEWEST or estimate is None:
        return f"not told ({number})"
    return f"{estimate} ({number})"


def _condition(parameter: Parameter) -> str:
    """Where a setting exists, in words."""
    return " and ".join(f"{path} {_wanted(wanted)}" for path, wanted in (parameter.when or {}).items()) or "always"


def _wanted(wanted: object) -> str:
    if isinstance(wanted, Bounds):
        return " and ".join(f"{sign} {limit:g}" for name, sign in SIGNS.items() if (limit := getattr(wanted, name)) is not None)
    return f"is {' or '.join(map(setting, wanted if isinstance(wanted, list) else [wanted]))}"


def _described(parameter: Parameter) -> str:
    """What a setting may be, and where it exists."""
    text = parameter.describe().partition(", when ")[0]
    return f"{text}; where {_condition(parameter)}" if parameter.when else text


def together(material: Material) -> Section:
    """Parallel coordinates and slices."""
    lead = "All settings of each trial at once, then the Dice against each setting by itself; a pattern is a hint, not a proof."
    scored = [trial for trial in material.trials if trial.dice is not None]
    varied = [(path, parameter) for path, parameter in material.space.parameters.items() if _values(scored, path)]
    if len(scored) < 2 or not varied:
        return Section("settings", "Settings and Dice", lead, [Text("Fewer than two trials have a Dice, or nothing was varied.", "absent")])
    best = material.ranked[0] if material.ranked else None
    shown = f" {charts.LINES} of {len(scored):,} trials are drawn." if len(scored) > charts.LINES else ""
    blocks: list[Block] = [
        Chart(
            title="All settings of each trial",
            svg=charts.parallel(varied, scored, best),
            caption=f"A line is a trial, from its settings to its Dice. Orange: the best; blue: the best fifth.{shown}",
            wide=True,
        ),
        Charts(
            [
                Chart(title=path, svg=charts.slice_of(path, parameter, scored, best), caption=_described(parameter))
                for path, parameter in varied
            ],
            small=True,
        ),
        Text("Disc: whole budget; ring: stopped early, whose Dice is that of fewer epochs; star: the best; cross: failed."),
    ]
    return Section("settings", "Settings and Dice", lead, blocks)


def _values(trials: list[Trial], path: str) -> list[object]:
    return [trial.params[path] for trial in trials if path in trial.params]


def tried(material: Material) -> Section:
    """What was tried of what might be."""
    lead = "What each setting might be, what of that was tried, and where the best trial lies: at an edge, a wider range may be better."
    rows = []
    for path, parameter in material.space.parameters.items():
        values = _values(list(material.trials), path)
        best = material.best.params.get(path) if material.best and path in material.best.params else None
        has = material.best is not None and path in material.best.params
        known = path, _described(parameter), Cell(str(len(values)), len(values)), *_coverage(parameter, values)
        rows.append((*known, setting(best) if has else "–", _edge(parameter, best) if has else ""))
    headings = ("setting", "may be", "trials with it", "tried", "never tried", "best trial", "remark")
    if not rows:
        return Section("tried", "What was tried", lead, [Text("Nothing is searched in this study.", "absent")])
    return Section("tried", "What was tried", lead, [Table(headings=headings, rows=rows)])


def _coverage(parameter: Parameter, values: list[object]) -> tuple[str, str]:
    if parameter.type == "choice":
        counts = {setting(choice): sum(setting(value) == setting(choice) for value in values) for choice in parameter.choices}
        return ", ".join(f"{name} ({n})" for name, n in counts.items() if n) or "nothing", ", ".join(
            n for n, c in counts.items() if not c
        ) or "–"
    numbers = sorted(float(value) for value in values if isinstance(value, int | float))
    if not numbers:
        return "nothing", "all of it"
    scale, _ = charts.axis_of(parameter, numbers)
    low, high = map(float, parameter.limits)
    points = [low, *numbers, high]
    gap, start, end = max((scale(b) - scale(a), a, b) for a, b in pairwise(points))
    widest = f"nothing between {setting(start)} and {setting(end)} ({gap:.0%} of the range)" if gap > GAP else "–"
    return f"{setting(numbers[0])} to {setting(numbers[-1])}", widest


def _edge(parameter: Parameter, value: object) -> str:
    if parameter.type == "choice" or not isinstance(value, int | float):
        return ""
    scale, _ = charts.axis_of(parameter, [value])
    ends = [scale(float(end)) for end in parameter.limits]
    at = (scale(float(value)) - ends[0]) / ((ends[1] - ends[0]) or 1.0)
    return "at the lower edge" if at < EDGE else "at the upper edge" if at > 1 - EDGE else ""
