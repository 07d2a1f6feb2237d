"""What came of a search, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from guidino_tune.analysis.comparison import Result
from guidino_tune.reporting.document import Block, Chart, Charts, Code, Folded, Kind, Section, Table, Text
from guidino_tune.reporting.known import Comparison, Known
from guidino_tune.reporting.material import COMPLETE, Material, Trial
from guidino_tune.reporting.words import NONE, dice, dice_cell, interval, many, setting

SMALL = 0.005
"""A gain in Dice below which more trials are hardly worth their time."""

SAME = 1e-4
"""Difference of two means that are meant to be the same, below which nothing is said of it."""

FEWEST = 6
"""Patients, or cases where no patients are known, below which no interval is made of them."""

FEW_PATIENTS = 15
"""Below which an interval of 95 % holds less than it says: with 6 patients 86 % in a simulation, with 10 it was 90 %, and with 20, 93 %."""

CAUTION = (
    "An interval over cases says how sure a difference is for these trained models on other images. It does not know what another seed "
    "would have given, for each configuration was trained once, nor that the best of many is chosen on these very cases, which flatters it."
)


def verdict(material: Material, known: Known) -> Section:
    """The answers, the most important first."""
    lead = "The answers first: what was found, whether it is more than chance, and whether a longer search would have found more."
    best = material.best
    if best is None:
        return Section("verdict", "Verdict", lead, [Text(_nothing(material, known), "bad")])
    blocks: list[Block] = [Text(_found(material, best), "plain"), *_against_mask(material, best), *_against_default(material, known, best)]
    blocks += [
        *_against_next(material, known, best),
        *_units(material, known, best),
        *_compared(known),
        *_gain(known),
        _values(material, best),
    ]
    if known.ending:
        blocks.append(Text(known.ending))
    if not known.comparisons:
        blocks.append(Text(CAUTION + _decided(known)))
    return Section("verdict", "Verdict", lead, blocks)


def _decided(known: Known) -> str:
    return " To decide it, guidino-tune compare retrains the best with several seeds." if "compare" in known.commands else ""


def _nothing(material: Material, known: Known) -> str:
    if not material.trials:
        return "No trial has begun yet."
    failed = sum(failure.count for failure in known.failures)
    told = f" {many(failed, 'trial')} failed; see the failures below." if failed else ""
    return f"No trial has run its whole budget yet, so there is no best one.{told}"


def _found(material: Material, best: Trial) -> str:
    front = f" It is one of {len(material.front)} trials on the Pareto front." if material.front else ""
    complete = len(material.ranked)
    return (
        f"Trial {best.number} ({best.name or 'no name'}) has the best validation Dice: {dice(best.dice)}, in epoch {best.epoch} of "
        f"{best.budget or best.reached}. It is the best of {many(complete, 'trial')} that ran the whole budget, of "
        f"{many(len(material.trials), 'trial')} in all.{front}"
    )


def _values(material: Material, best: Trial) -> Table:
    """What the best trial has, beside the default."""
    default = material.trial(material.default) if material.default not in (None, best.number) else None
    shown = [best, *([default] if default else ())]
    rows = []
    for path in material.space.parameters:
        values = [setting(trial.params[path]) if path in trial.params else NONE for trial in shown]
        if set(values) != {NONE}:
            rows.append((path, *values))
    names = [f"trial {best.number}, the best", *([f"trial {default.number}, the default"] if default else ())]
    marked = frozenset(n for n, row in enumerate(rows) if len(set(row[1:])) > 1)
    caption = "What the best trial has" + ("; bold: other than the default." if default else ".")
    return Table(headings=("setting", *names), rows=rows, caption=caption, marked=marked)


def _against_mask(material: Material, best: Trial) -> Iterator[Text]:
    if material.baseline is None:
        yield Text("What the best constant mask would score is not stored with this study.", "open", "Better than no network at all?")
        return
    over = (best.dice or 0.0) - material.baseline
    verb = "more" if over > 0 else "less"
    yield Text(
        f"The best constant mask, the same for every image, scores {material.baseline:.4f}; the best trial has {abs(over):.4f} {verb}.",
        "good" if over > 0 else "bad",
        "Better than no network at all?",
    )


def _against_default(material: Material, known: Known, best: Trial) -> Iterator[Text]:
    question = "Better than the default?"
    if material.default is None:
        yield Text("This study has no first trial with default values to hold the best one against.", "open", question)
        return
    if material.default == best.number:
        yield Text(
            "The best trial is the default itself, the first of the space's first trials: nothing better was found.", "bad", question
        )
        return
    default = material.trial(material.default)
    name = f"trial {default.number}, the first of the space's first trials"
    if default.state != COMPLETE:
        told = f"its Dice was {dice(default.dice)} after {many(default.reached, 'epoch')}"
        yield Text(f"The default ({name}) did not run its whole budget ({default.state}); {told}. No fair comparison.", "open", question)
        return
    yield _held_against(material, known, best, default, question, f"the default ({name})")


def _against_next(material: Material, known: Known, best: Trial) -> Iterator[Text]:
    others = [number for number in material.ranked[1:] if number != material.default]
    if others:
        yield _held_against(material, known, best, material.trial(others[0]), "Better than the next one?", f"trial {others[0]}")


def _held_against(material: Material, known: Known, best: Trial, other: Trial, question: str, name: str) -> Text:
    difference = (best.dice or 0.0) - (other.dice or 0.0)
    told = f"{difference:.4f} above {name} with {dice(other.dice)}"
    pair = paired(material, best.number, other.number, known.patients or {})
    if pair is None:
        why = "no scores of single cases are stored for both, so it is not known whether that is beyond chance"
        return Text(f"{told}; {why}.", "open", question)
    if pair.groups < FEWEST:
        return Text(f"{told}; over {pair} nothing can be said of others.", "open", question)
    sure = "beyond" if pair.low > 0 else "not beyond"
    kept = "" if abs(pair.mean - difference) < SAME else f", of a difference of {pair.mean:.4f} in the epochs whose scores are kept"
    spread = f"95 % interval {interval(pair.low, pair.high)} over {pair}{kept}"
    return Text(f"{told}; that is {sure} the chance of these images ({spread}).", "good" if pair.low > 0 else "open", question)


@dataclass(frozen=True, slots=True)
class Paired:
    """Two trials on the same cases: their mean difference in Dice, its 95 % interval, and how many cases of how many patients."""

    mean: float
    low: float
    high: float
    cases: int
    groups: int

    def __str__(self) -> str:
        return many(self.cases, "case") + (f" of {many(self.groups, 'patient')}" if self.groups < self.cases else "")


def paired(material: Material, one: int, other: int, patients: Mapping[str, str]) -> Paired | None:
    """Compares two trials; of cases of one patient all or none are drawn.

    Args:
        material: The study.
        one: A trial.
        other: From which it is told.
        patients: Patient by case; a case that is not in it is one of its own.

    Returns:
        ``None`` where the scores of single cases are not stored, or are of other cases.
    """
    first, second = material.cases(one), material.cases(other)
    both = sorted(first.keys() & second.keys())
    if not both or first.keys() != second.keys():
        return None
    from guidino_tune.analysis import statistics  # pandas and SciPy: not for a study without these files

    differences = np.array([first[case]["dice"] - second[case]["dice"] for case in both])
    groups = np.unique([patients.get(case, case) for case in both], return_inverse=True)[1]
    low, high = statistics.interval(differences, groups)
    return Paired(float(differences.mean()), low, high, len(both), len(set(groups.tolist())))


def _units(material: Material, known: Known, best: Trial) -> Iterator[Text]:
    """What the intervals over cases are drawn from."""
    cases = material.cases(best.number)
    if not cases:
        return
    patients = len({(known.patients or {}).get(case, case) for case in cases})
    if known.patients is None:
        why = "which of them are of one patient is not known here, for the data set is not on this machine, or has changed"
    elif patients < len(cases):
        few = " Of so few they are somewhat too narrow." if patients < FEW_PATIENTS else ""
        yield Text(f"Intervals over cases draw whole patients: the {many(len(cases), 'validation case')} are of {patients} patients.{few}")
        return
    else:
        why = "the data set names no patients (data.group)"
    yield Text(f"Intervals over cases draw single images: {why}. Where several images are of one patient, they are too narrow.")


def _compared(known: Known) -> Iterator[Text]:
    if not known.comparisons:
        yield Text("Nobody has retrained the best configurations with several seeds yet.", "open", "Better with other seeds too?")
    for comparison in known.comparisons:
        for number, answer in enumerate(comparison.answers):
            kind = _kind(answer)
            first = f"Better with other seeds too ({comparison.page})?" if number == 0 else ""
            yield Text(answer[:1].upper() + answer[1:], kind, first)


def _kind(answer: str) -> Kind:
    """Of a sentence of ``analysis.comparison``."""
    if any(doubt in answer for doubt in ("cannot", "no test can decide", "may turn it round")):
        return "open"
    return "good" if " is better than " in answer else "bad" if " is worse than " in answer else "plain"


def _gain(known: Known) -> Iterator[Text]:
    question = "Was the search long enough?"
    if not known.gain:
        yield Text(f"Not told: {known.unsure or 'too few trials'}.", "open", question)
        return
    more, gain = known.gain
    sure = f"95 % interval {interval(gain.low, gain.high, 3)}"
    told = f"{many(more, 'further trial')} like these would probably gain {gain.value:.3f} Dice ({sure})"
    judged = f"less than {SMALL}, so hardly worth it" if gain.value < SMALL else f"at least {SMALL}, so it may pay to go on"
    yield Text(f"{told}: {judged}.", "good" if gain.value < SMALL else "open", question)


def comparisons(known: Known) -> Section:
    """What ``compare`` found."""
    from guidino_tune.reporting import charts

    lead = "The best configurations, trained again with several seeds and measured on the same cases; the answers stand in the verdict."
    if not known.comparisons:
        hint = "No comparison has been made of this study; guidino-tune compare makes one."
        return Section("compare", "Comparison", lead, [Text(hint, "absent"), *_pages(known)])
    blocks: list[Block] = []
    for found in known.comparisons:
        blocks += _scores(found)
        rows = [(s.name, s.mean, s.low, s.high, list(s.seeds.values())) for s in found.validation.summaries]
        caption = f"Disc: mean over seeds; line: 95 % interval over the {_drawn(found.validation)}; rings: single seeds."
        chart = Chart(title=f"{found.page}, validation", svg=charts.intervals(rows), caption=caption, numbers=None)
        blocks.append(Charts([chart]))
    return Section("compare", "Comparison", lead, [*blocks, *_pages(known)])


def _drawn(result: Result) -> str:
    """What an interval is drawn from."""
    return "patients" if result.table["group"].nunique() < result.table["case"].nunique() else "cases"


def _pages(known: Known) -> Iterator[Folded]:
    for name, text in known.pages.items():
        yield Folded(f"Another report of this study: {name}", [Code(text)])


def _scores(found: Comparison) -> Iterator[Table]:
    for part, result in (("validation", found.validation), ("sealed test", found.test)):
        if not result:
            continue
        behind = {comparison.second: comparison for comparison in result.comparisons}
        rows = []
        for s in result.summaries:
            c = behind.get(s.name)
            rows.append(
                (
                    s.name, str(len(s.seeds)), dice_cell(s.mean), interval(s.low, s.high), dice_cell(c.difference if c else None),
                    f"{c.p_holm:.3g}" if c else "–", c.verdict if c else "–",
                )
            )  # fmt: skip
        headings = (
            "configuration",
            "seeds",
            "mean Dice",
            f"95 % interval over {_drawn(result)}",
            "behind the winner",
            "p (Holm)",
            "the winner is",
        )
        yield Table(headings=headings, rows=rows, caption=f"{found.page}, {part}: {result.cases}")
