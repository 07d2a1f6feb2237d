"""The drawings of the report, each from plain rows. Of many trials a part is drawn: see ``thinned``."""

from __future__ import annotations

from collections.abc import Sequence

from guidino_tune.analysis.certainty import Estimate
from guidino_tune.reporting.material import COMPLETE, FAILED, Trial
from guidino_tune.reporting.svg import Drawing, Linear, Scale, Steps, dice_scale, scale_of
from guidino_tune.reporting.words import dice, duration, figure, setting
from guidino_tune.space.parameters import Parameter

POINTS, LINES, EPOCHS = 400, 120, 100
"""Trials in a drawing of points, and in one of lines; and points of a line, besides its last and its highest."""

NAMES = 34
"""Letters below an axis of a small drawing; more are written slanted."""

KINDS = {COMPLETE: "complete", FAILED: "failed"}
"""Classes of marks; those of all other trials are ``stopped``."""


def thinned(trials: Sequence[Trial], most: int) -> list[Trial]:
    """At most so many: the best half of them, and of the others evenly by number."""
    if len(trials) <= most:
        return list(trials)
    order = sorted(trials, key=lambda trial: -(trial.dice or 0.0))
    kept, rest = order[: most // 2], sorted(order[most // 2 :], key=lambda trial: trial.number)
    every = len(rest) / (most - len(kept))
    return sorted([*kept, *(rest[int(place * every)] for place in range(most - len(kept)))], key=lambda trial: trial.number)


def about(trial: Trial, *more: str) -> str:
    """A tooltip."""
    return ", ".join((f"trial {trial.number} {trial.name}".strip(), f"Dice {dice(trial.dice)}", trial.state, *more))


def mark(drawing: Drawing, trial: Trial, x: float, y: float, best: int | None, *more: str) -> None:
    """A trial as a disc, a ring where it was stopped, a cross where it failed, and a star if it is the best."""
    text = about(trial, *more)
    if trial.number == best:
        drawing.star(x, y, "best", text)
    elif trial.state == FAILED:
        drawing.cross(x, y, "failed", text)
    else:
        drawing.dot(x, y, KINDS.get(trial.state, "stopped"), text)


def history(trials: Sequence[Trial], best: int | None, lines: Sequence[tuple[str, float]], *, by_time: bool) -> str:
    """Dice of each trial over their order or over hours, and the best so far as a staircase.

    Args:
        trials: With a Dice.
        best: The number of the best.
        lines: What it is held against: names and Dice.
        by_time: Over the hours from the start to each trial's end.
    """
    start = min((t.begun.timestamp() for t in trials if t.begun), default=0.0)

    def place(trial: Trial) -> float:
        return ((trial.last or start) - start) / 3600 if by_time else float(trial.number)

    rows = sorted(((place(t), t) for t in trials), key=lambda row: (row[0], row[1].number))
    scores = [t.dice or 0.0 for t in trials]
    longest = max(x for x, _ in rows)
    unit, factor = ("hours", 1.0) if longest >= 2 or not by_time else ("minutes", 60.0)
    across, upright = Linear(0, max(longest * factor, 1e-6 if by_time else 1.0)), dice_scale([*scores, *(value for _, value in lines)])
    drawing = Drawing("Dice of every trial and the best so far, over " + (unit if by_time else "trials"))
    drawing.axes(across, upright, f"{unit} since the start, at the last epoch of each trial" if by_time else "trial", "validation Dice")
    for name, value in lines:  # below the marks, or its name would hide the last trials
        y = drawing.y(upright(value))
        drawing.line(drawing.left, y, drawing.right, y, "reference")
        drawing.text(drawing.right, y - 5, name, "note end")
    stairs, highest = list[tuple[float, float]](), 0.0
    for x, trial in rows:  # only trials that ran their whole budget may become the best
        if trial.state == COMPLETE and (trial.dice or 0.0) > highest:
            at = drawing.x(across(x * factor))
            stairs += (
                [(at, stairs[-1][1]), (at, drawing.y(upright(trial.dice or 0.0)))]
                if stairs
                else [(at, drawing.y(upright(trial.dice or 0.0)))]
            )
            highest = trial.dice or 0.0
    if stairs:
        drawing.path([*stairs, (drawing.right - 5, stairs[-1][1])], "stairs")
    for trial in thinned([t for _, t in rows], POINTS):
        mark(drawing, trial, drawing.x(across(place(trial) * factor)), drawing.y(upright(trial.dice or 0.0)), best)
    return str(drawing)


def curves(trials: Sequence[Trial], best: int | None, rungs: Sequence[int]) -> str:
    """Dice over epochs, a line for each trial; a ring where a trial was stopped, a cross where it failed."""
    shown = [t for t in thinned(trials, LINES) if t.curve]
    across = Linear(0, max((max(t.curve) for t in shown), default=1))
    upright = dice_scale([value for t in shown for value in t.curve.values()])
    drawing = Drawing("Learning curves: validation Dice over epochs of each trial", 1080, 360)
    drawing.axes(across, upright, "epoch", "validation Dice")
    for rung in rungs[:-1]:
        x = drawing.x(across(rung))
        drawing.line(x, drawing.top, x, drawing.bottom, "rung")
        drawing.text(x - 4, drawing.top + 10, f"rung {rung}", "note end")
    for trial in sorted(shown, key=lambda t: (t.number == best, t.state == COMPLETE)):
        epochs = sorted(trial.curve)
        every = -(-len(epochs) // EPOCHS)
        kept = sorted({*epochs[::every], epochs[-1], trial.epoch})
        points = [(drawing.x(across(epoch)), drawing.y(upright(trial.curve[epoch]))) for epoch in kept]
        kind = "best" if trial.number == best else KINDS.get(trial.state, "stopped")
        drawing.path(points, f"curve {kind}", about(trial, f"{trial.reached} epochs"))
        if trial.number == best:
            drawing.text(points[-1][0] - 4, points[-1][1] - 8, f"trial {trial.number}, the best", "note end strong")
        elif trial.state == FAILED:
            drawing.cross(*points[-1], "failed", about(trial, trial.failure))
        elif trial.state != COMPLETE:
            drawing.dot(*points[-1], "stopped", about(trial, f"after {trial.reached} epochs"), 3)
    return str(drawing)


def shares(found: Sequence[tuple[str, Estimate]], title: str) -> str:
    """Estimates with their intervals, from the top down; those whose interval holds 0 are pale."""
    high = min(1.5, max([0.2, *(estimate.high for _, estimate in found)]))
    across = Linear(min(0.0, max(-0.3, min(estimate.low for _, estimate in found))), high, 5)
    drawing = Drawing(title, 560, 62 + 24 * len(found), (212, 14, 8, 46))
    rows = Steps([name for name, _ in found][::-1])
    drawing.axes(across, None, "share of the variance of Dice, with its 95 % interval")
    zero = drawing.x(across(0))
    drawing.line(zero, drawing.top, zero, drawing.bottom, "axis")
    for number, (name, estimate) in enumerate(reversed(found)):
        y = drawing.y(rows(number))
        low, high_end = (drawing.x(across(min(max(end, across.low), across.high))) for end in (estimate.low, estimate.high))
        kind = "sure" if estimate.low > 0 else "unsure"
        text = f"{name}: {estimate} of {estimate.trials} trials"
        drawing.text(drawing.left - 8, y + 4, name, "tick end")
        drawing.bar(zero, y - 6, drawing.x(across(min(max(estimate.value, across.low), across.high))), 12, kind, text)
        drawing.line(low, y, high_end, y, "whisker")
    return str(drawing)


def axis_of(parameter: Parameter, values: Sequence[object]) -> tuple[Scale, dict[int, float]]:
    """A scale for a parameter, and for each value its number on it, by the value's place in ``values``."""
    if parameter.type == "choice":
        names = [setting(choice) for choice in parameter.choices]
        return Steps(names), {n: float(names.index(setting(v))) for n, v in enumerate(values) if setting(v) in names}
    numbers = {n: float(v) for n, v in enumerate(values) if isinstance(v, int | float)}
    low, high = map(float, parameter.limits)
    return scale_of([low, high, *numbers.values()], log=parameter.log), numbers


def slice_of(path: str, parameter: Parameter, trials: Sequence[Trial], best: int | None) -> str:
    """Dice over the values of one parameter."""
    rows = thinned([t for t in trials if path in t.params and t.dice is not None], POINTS)
    scale, places = axis_of(parameter, [t.params[path] for t in rows])
    upright = dice_scale([t.dice or 0.0 for t in rows])
    upright.most = 5
    slanted = isinstance(scale, Steps) and sum(map(len, scale.names)) > NAMES
    longest = max(map(len, scale.names)) if isinstance(scale, Steps) else 0
    margins = (56, 10, 8, 42 + min(60, 5 * longest)) if slanted else (56, 10, 8, 42)
    drawing = Drawing(f"Dice over {path}", 340, 178 + margins[-1], margins)
    drawing.axes(scale, upright, path + (" (log)" if parameter.log else ""), "Dice", slanted=slanted)
    width = (drawing.right - drawing.left) / (3 * len(scale.names)) if isinstance(scale, Steps) else 0.0
    for number, trial in sorted(enumerate(rows), key=lambda row: (row[1].number == best, row[1].state == COMPLETE)):
        if number in places:
            # Of equal values beside each other, in an order that says nothing.
            aside = width * ((trial.number * 0.618) % 1 - 0.5) * 2
            x, y = drawing.x(scale(places[number])) + aside, drawing.y(upright(trial.dice or 0.0))
            mark(drawing, trial, x, y, best, f"{path} {setting(trial.params[path])}", f"{trial.reached} epochs")
    return str(drawing)


def parallel(parameters: Sequence[tuple[str, Parameter]], trials: Sequence[Trial], best: int | None) -> str:
    """A line for each trial over all parameters to its Dice; below an axis where a trial does not have the parameter."""
    rows = [t for t in thinned(trials, LINES) if t.dice is not None]
    width = max(1080, 104 * (len(parameters) + 1))
    drawing = Drawing("Parallel coordinates: the values of each trial and its Dice", width, 330, (92, 56, 40, 34))
    gap = (drawing.right - drawing.left) / len(parameters)
    order = sorted((t.dice or 0.0 for t in rows), reverse=True)
    good = order[max(0, len(order) // 5 - 1)] if order else 1.0
    absent = drawing.bottom + 16
    lines: list[list[tuple[float, float]]] = [[] for _ in rows]
    upright = dice_scale([t.dice or 0.0 for t in rows])
    for column, (path, parameter) in enumerate(parameters):
        x = drawing.left + column * gap
        scale, places = axis_of(parameter, [t.params.get(path) if path in t.params else _ABSENT for t in rows])
        _upright(drawing, x, path.rpartition(".")[2] if "." in path else path, path, scale, raised=column % 2 == 1)
        for number, line in enumerate(lines):
            line.append((x, drawing.y(scale(places[number])) if number in places else absent))
    _upright(drawing, drawing.right, "Dice", "validation Dice", upright, right=True, raised=len(parameters) % 2 == 1)
    if any(y == absent for line in lines for _, y in line):
        drawing.text(drawing.left - 8, absent + 4, "not set", "tick end")
    for trial, line in sorted(zip(rows, lines, strict=True), key=lambda row: row[0].dice or 0.0):
        line.append((drawing.right, drawing.y(upright(trial.dice or 0.0))))
        kind = "best" if trial.number == best else "good" if (trial.dice or 0.0) >= good else "other"
        drawing.path(line, f"curve {kind}", about(trial))
    return str(drawing)


_ABSENT = object()


def _upright(drawing: Drawing, x: float, name: str, path: str, scale: Scale, *, right: bool = False, raised: bool = False) -> None:
    drawing.line(x, drawing.top, x, drawing.bottom, "axis")
    ticks = scale.ticks()
    for value, text in ticks[:: max(1, len(ticks) // 6)]:
        drawing.text(x + (6 if right else -5), drawing.y(scale(value)) + 3, text[:12], "note" if right else "note end")
    drawing.add(f"<g><title>{_escaped(path)}</title>")
    drawing.text(x, 12 if raised else 27, name[:18], "label mid")
    drawing.add("</g>")


def _escaped(text: str) -> str:
    from html import escape

    return escape(text)


def timeline(
    lanes: Sequence[tuple[str, Sequence[tuple[float, float, Trial]]]], span: float, breaks: Sequence[float], best: int | None
) -> str:
    """What each place worked on; ``lanes`` have names and stretches in seconds, ``breaks`` are where time was cut out."""
    height = 14 if len(lanes) <= 24 else max(3, 340 // len(lanes))
    drawing = Drawing("Timeline: when each place trained which trial", 1080, 58 + (height + 4) * len(lanes), (150, 14, 6, 46))
    unit, factor = ("hours", 3600.0) if span >= 7200 else ("minutes", 60.0)
    across = Linear(0, max(span / factor, 1e-6), 10)
    drawing.axes(across, None, f"{unit} since the start" + (", pauses of the search left out" if breaks else ""))
    small, last = span / 1500, ""
    for row, (name, stretches) in enumerate(lanes):
        y = drawing.top + row * (height + 4)
        if name != last and height >= 9:
            drawing.text(drawing.left - 8, y + height - 3, name[:22], "tick end")
        last = name
        drawing.bar(drawing.left + 5, y, drawing.right - 5, height, "idle")
        begun = end = -1.0
        if len(stretches) * len(lanes) <= 1500:
            for start, stop, trial in stretches:
                kind = "best" if trial.number == best else KINDS.get(trial.state, "stopped")
                text = about(trial, f"{duration(stop - start)} here")
                drawing.bar(drawing.x(across(start / factor)), y, drawing.x(across(stop / factor)), height, f"busy {kind}", text)
            continue
        for start, stop, _ in [*stretches, (span + 2 * small, span + 2 * small, None)]:  # of many stretches no single one is to be seen
            if begun >= 0 and start - end > small:
                drawing.bar(drawing.x(across(begun / factor)), y, drawing.x(across(end / factor)), height, "busy stopped")
                begun = -1.0
            begun, end = (start if begun < 0 else begun), max(end, stop)
    for at in breaks:
        x = drawing.x(across(at / factor))
        drawing.line(x, drawing.top - 4, x, drawing.bottom, "break")
    return str(drawing)


def front(trials: Sequence[Trial], on_front: Sequence[int], other: str, label: str, factor: float = 1.0, *, joined: bool = True) -> str:
    """Dice against another objective; the front is numbered, and ``joined`` where there is no third one."""
    rows = [t for t in trials if other in t.values and t.dice is not None]
    across = scale_of([t.values[other] / factor for t in rows])
    upright = dice_scale([t.dice or 0.0 for t in rows])
    drawing = Drawing(f"Pareto front: Dice against {label}")
    drawing.axes(across, upright, label, "validation Dice")

    def place(trial: Trial) -> tuple[float, float]:
        return drawing.x(across(trial.values[other] / factor)), drawing.y(upright(trial.dice or 0.0))

    leading = sorted((t for t in rows if t.number in on_front), key=lambda t: t.values[other])
    if joined:
        drawing.path([place(trial) for trial in leading], "stairs")
    for trial in thinned([t for t in rows if t.number not in on_front], POINTS):
        drawing.dot(*place(trial), "stopped", about(trial, f"{label} {figure(trial.values[other] / factor)}"))
    for trial in leading:
        x, y = place(trial)
        drawing.dot(x, y, "complete", about(trial, f"{label} {figure(trial.values[other] / factor)}"), 4.5)
        drawing.text(x + 7, y - 6, str(trial.number), "note")
    return str(drawing)


def sizes(cases: Sequence[tuple[str, float, float]]) -> str:
    """Dice of each case (name, share of foreground, Dice) against its size."""
    some = [share for _, share, _ in cases if share > 0]
    across, upright = scale_of([share * 100 for share in some], log=True), Linear(0, 1)
    drawing = Drawing("Dice of each validation case against the size of its foreground")
    drawing.axes(across, upright, "foreground, % of the image (log)", "Dice of the case")
    for name, share, score in cases:
        if share > 0:
            drawing.dot(drawing.x(across(share * 100)), drawing.y(upright(score)), "complete", f"{name}: Dice {score:.3f}, {share:.2%}")
    return str(drawing)


def intervals(rows: Sequence[tuple[str, float, float, float, Sequence[float]]]) -> str:
    """Means with intervals, and a ring for each seed: name, mean, low, high, seeds."""
    known = [value for _, mean, low, high, seeds in rows for value in (mean, low, high, *seeds) if value == value]
    across = Linear(min(known), max(known), 6)
    drawing = Drawing("Dice of the retrained configurations", 560, 62 + 28 * len(rows), (170, 14, 8, 46))
    places = Steps([name for name, *_ in rows][::-1])
    drawing.axes(across, None, "Dice: mean, 95 % interval over cases, and each seed")
    for number, (name, mean, low, high, seeds) in enumerate(reversed(rows)):
        y = drawing.y(places(number))
        drawing.text(drawing.left - 8, y + 4, name[:26], "tick end")
        if low == low:
            drawing.line(drawing.x(across(low)), y, drawing.x(across(high)), y, "whisker")
        for seed in seeds:
            drawing.dot(drawing.x(across(seed)), y + 7, "stopped", f"{name}: {seed:.4f}", 2.5)
        drawing.dot(drawing.x(across(mean)), y, "complete", f"{name}: {mean:.4f}", 4.5)
    return str(drawing)
