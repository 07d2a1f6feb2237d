"""A comparison of configurations as a Markdown page, a CSV of every case, and a figure."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from guidino_tune.analysis.statistics import CONFIDENCE, Comparison, Summary, compare, mean_sd, summarise

SCORES = {"dice": "Dice", "iou": "IoU", "hd95": "HD95 px", "asd": "ASD px"}

METHOD = (
    "± is the standard deviation over seeds: with so few of them it is a rough guess itself. Where Welch's t test over the seeds "
    "does not tell two apart (95%), other trainings may turn the difference round, whatever the cases say",
    f"intervals: {CONFIDENCE:.0%}, bootstrap over cases (over patients where cases share one), of Dice averaged over the seeds. They tell "
    "how sure a difference is for these trained models on other images, not for trainings with other seeds. "
    "From fewer than about 30 cases or patients they are a little too narrow",
    "p: Wilcoxon signed-rank over the same units, two-sided, zero differences ranked as Pratt does, with Holm's correction: on validation, "
    "where the winner is picked by the same scores, over all pairs of configurations, on the test over the comparisons of the table. "
    "So p accounts for the picking among those compared here, but not for the search before, in which their settings were chosen. "
    "Two are told apart where p is below 0.05 after it, the interval leaves out zero, and ranks and mean point the same way",
    "best epoch and winner were chosen on the validation cases: there the winner's lead is a little flattering",
)


@dataclass(frozen=True, slots=True)
class Result:
    """What was found on the cases of one part.

    Attributes:
        table: The scores; see ``statistics``.
        summaries: Best first.
        comparisons: Of the winner with each of the others.
    """

    table: pd.DataFrame
    summaries: Sequence[Summary]
    comparisons: Sequence[Comparison]

    @property
    def cases(self) -> str:
        """How many, in words."""
        cases, groups = self.table["case"].nunique(), self.table["group"].nunique()
        return f"{cases} cases" + (f" of {groups} patients" if groups < cases else "")


def analyse(table: pd.DataFrame, winner: str | None = None) -> Result:
    """Summarises a table of scores and compares the winner with all others.

    Args:
        table: Of scores.
        winner: Its name, where it was chosen before; ``None`` takes the best mean Dice.
    """
    summaries = summarise(table)
    picked = winner is None
    winner = winner or summaries[0].name
    others = [summary.name for summary in summaries if summary.name != winner]
    return Result(table, summaries, compare(table, winner, others, picked=picked))


def markdown(
    title: str,
    about: Mapping[str, str],
    validation: Result,
    test: Result | None,
    remarks: Sequence[str],
    openings: Sequence[str],
    figure: str,
) -> str:
    """The page: the answer first.

    Args:
        title: Of the page.
        about: What each configuration is, by name.
        validation: On which the winner was chosen.
        test: Of the winner and what it is held against; ``None`` where the test cases were not measured.
        remarks: On budget, data, protocol, and what is missing.
        openings: When the test cases were opened and why.
        figure: File beside the page.
    """
    lines = [f"# {title}", "", *answers(validation, test), "", f"![Dice on the validation cases]({figure})", ""]
    lines += ["## Configurations", "", *(f"- **{name}**: {text}" for name, text in about.items()), ""]
    lines += [f"## Validation: {validation.cases}", "", *_tables(validation)]
    if test:
        lines += [f"## Sealed test: {test.cases}", "", *_tables(test)]
    if openings:
        number = "once" if len(openings) == 1 else f"{len(openings)} times"
        lines += [f"The test cases were opened {number}, as far as is recorded here:", "", *(f"- {line}" for line in openings), ""]
    return "\n".join([*lines, "## How to read this", "", *(f"- {remark}" for remark in (*remarks, *METHOD)), ""])


def answers(validation: Result, test: Result | None) -> list[str]:
    """The winner, whether the best two can be told apart, every other comparison, and what the test cases say."""
    winner = validation.summaries[0]
    lines = [f"**Winner on validation: {winner.name}** (mean Dice {spread(winner)}, {len(winner.seeds)} seed(s)).", ""]
    lines += [f"- {comparison.sentence()}" for comparison in validation.comparisons] or ["- There is nothing to compare it with."]
    lines += [f"- On the sealed test: {comparison.sentence()}" for comparison in (test.comparisons if test else ())]
    return lines


def csv_text(validation: Result, test: Result | None) -> str:
    """One line for each part, configuration, seed and case."""
    parts = [result.table.assign(part=name) for name, result in (("validation", validation), ("test", test)) if result]
    joined = pd.concat(parts, ignore_index=True)
    text = io.StringIO()
    joined[["part", *(column for column in joined.columns if column != "part")]].to_csv(text, index=False, lineterminator="\n")
    return text.getvalue()


def draw(result: Result, file: Path, title: str) -> None:
    """A PNG: the mean Dice of each configuration with its interval over cases, and a dot for each seed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.5 + 0.6 * len(result.summaries)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, summary in enumerate(reversed(result.summaries)):
        ends = [[summary.mean - summary.low], [summary.high - summary.mean]]
        known = not math.isnan(summary.low)
        axes.errorbar([summary.mean], [place], xerr=ends if known else None, fmt="s", color="C0", capsize=4)
        axes.plot(list(summary.seeds.values()), [place] * len(summary.seeds), "o", color="C1", markersize=4, alpha=0.7)
    axes.set_yticks(range(len(result.summaries)), [summary.name for summary in reversed(result.summaries)])
    axes.set_ylim(-0.6, len(result.summaries) - 0.4)
    axes.set_xlabel(f"Dice (square: mean with {CONFIDENCE:.0%} interval over cases; dots: seeds)")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}")
    figure.savefig(draft, format="png")
    draft.replace(file)


def spread(summary: Summary) -> str:
    """Mean and standard deviation over the seeds; one seed has none."""
    return mean_sd(summary.seeds.values())


def _tables(result: Result) -> list[str]:
    scores = [name for name in SCORES if name in result.summaries[0].scores]
    lines = [
        f"| configuration | seeds | Dice ± sd | {CONFIDENCE:.0%} interval | " + " | ".join(SCORES[name] for name in scores[1:]) + " |",
        "|---|--:|--:|--:|" + "--:|" * (len(scores) - 1),
    ]
    for summary in result.summaries:
        others = " | ".join(f"{summary.scores[name]:.4f}" for name in scores[1:])
        lines.append(f"| {summary.name} | {len(summary.seeds)} | {spread(summary)} | {summary.low:.4f} to {summary.high:.4f} | {others} |")
    lines.append("")
    if result.comparisons:
        lines += [
            f"| {result.comparisons[0].first} minus | difference | {CONFIDENCE:.0%} interval | p | p (Holm) | verdict |",
            "|---|--:|--:|--:|--:|---|",
        ]
        for c in result.comparisons:
            verdict = c.verdict + (", seeds in doubt" if c.verdict in ("better", "worse") and c.seeds_doubt else "")
            lines.append(f"| {c.second} | {c.difference:.4f} | {c.low:.4f} to {c.high:.4f} | {c.p:.3g} | {c.p_holm:.3g} | {verdict} |")
        lines.append("")
    return lines
