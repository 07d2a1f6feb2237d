"""The whole report, from what is known of a study."""

from __future__ import annotations

from guidino_tune.reporting import data, ensembles, machines, results, settings, verdict
from guidino_tune.reporting.document import Document, Facts, Section
from guidino_tune.reporting.known import Known
from guidino_tune.reporting.material import BEYOND, FAILED, STOPPED, Material
from guidino_tune.reporting.words import NONE, dice, duration, many

TERMS = (
    ("trial", "one complete training with one configuration; the search runs many"),
    ("rung", "an epoch at which trials are compared: the better ones go on, the others are stopped early"),
    ("Dice", "overlap of prediction and ground truth: 0 none, 1 perfect; here the mean over the validation cases at training size"),
    ("constant mask", "the same mask for every image, as good as such a mask can be: what a network must beat to have learned anything"),
    ("first trials", "configurations that the space names, such as the paper's settings; the first of them is called the default here"),
    (
        "interval",
        "95 %, by bootstrap: what would come out again with other images, or other trials, of the same kind. Images of one patient are "
        "drawn together, where the data set names patients",
    ),
    ("sealed test", "cases that no search can read; compare and retrain open them at the end, and every opening is recorded"),
)


def build(material: Material, known: Known) -> Document:
    """All sections, in the order in which a stranger reads them."""
    sections = (
        verdict.verdict(material, known),
        data.searched(material, known),
        results.history(material),
        results.learning(material, known),
        settings.importance(material, known),
        settings.together(material),
        settings.tried(material),
        results.front(material),
        results.leaderboard(material),
        data.cases(material),
        verdict.comparisons(known),
        ensembles.ensembles(material, known),
        machines.timeline(material, known),
        machines.failures(material, known),
        machines.repeat(material, known),
        Section("terms", "Words", "What the words of this page mean.", [Facts(TERMS)]),
    )
    searched = many(len(material.space.parameters), "setting")
    return Document(
        title=material.name,
        subtitle=f"Hyper-parameter search over {searched} for segmentation: {known.data}",
        state=_state(known),
        is_running=known.state == "running",
        figures=_figures(material),
        sections=sections,
        colophon=f"Made by guidino-tune {known.version} on {known.at:%Y-%m-%d at %H:%M} ({known.at.astimezone().tzname()}). "
        "This file needs no network and nothing beside it. Times are those of the machine that searched.",
    )


def _state(known: Known) -> str:
    at = f"{known.at:%Y-%m-%d %H:%M}"
    if known.state == "running":
        return f"running, as of {at}; {many(known.left, 'trial')} to go; driven by {known.driver or 'nobody known'}"
    if known.state == "stopped":
        return f"stopped, as of {at}; {many(known.left, 'trial')} not run yet"
    return f"ended, as of {at}"


def _figures(material: Material) -> list[tuple[str, str, str]]:
    best = material.best
    states = [trial.state for trial in material.trials]
    found = machines.times(material.trials)
    over = f"best constant mask {material.baseline:.4f}" if material.baseline is not None else "no constant mask stored"
    hours = found.busy * material.space.resources.workers / 3600
    stopped = sum(state in (STOPPED, BEYOND) for state in states)
    return [
        ("best validation Dice", dice(best.dice if best else None), over),
        ("best trial", str(best.number) if best else NONE, best.name if best else "none has run its whole budget"),
        ("trials", f"{len(states):,}", f"{len(material.ranked)} complete, {stopped} stopped early, {states.count(FAILED)} failed"),
        (
            "time",
            duration(found.span) if found.lanes else NONE,
            f"on {many(len(found.lanes), 'place')} at once" if found.lanes else "not stored",
        ),
        ("trained", duration(hours * 3600) if found.lanes else NONE, many(sum(trial.reached for trial in material.trials), "epoch")),
    ]
