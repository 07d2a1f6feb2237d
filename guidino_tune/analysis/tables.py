"""Results of several seeds beside the numbers of a paper, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

METRICS = ("iou", "dice", "hd95")
"""In the order of the papers' tables; IoU and Dice are printed in per cent, HD95 in pixels."""

HEADINGS = {"iou": "IoU %", "dice": "Dice %", "hd95": "HD95 px"}


@dataclass(frozen=True, slots=True)
class TableRow:
    """One system on one data set.

    Attributes:
        dataset: Such as ``kvasir``.
        system: Such as ``GuiDINO-W``.
        results: ``iou`` and ``dice`` in [0, 1] and ``hd95`` in pixels, of each seed that was measured.
        paper: IoU and Dice in per cent and HD95 in pixels; ``None`` where the paper has none.
        note: What a reader must know, such as seeds that failed.
    """

    dataset: str
    system: str
    results: Sequence[Mapping[str, float]]
    paper: tuple[float, float, float] | None = None
    note: str = ""

    def mean_sd(self, metric: str) -> tuple[float, float | None] | None:
        """Mean and sample standard deviation over the seeds, as printed; one seed has no deviation, none has no mean."""
        values = [result[metric] * (1 if metric == "hd95" else 100) for result in self.results]
        if not values:
            return None
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None

    def difference(self, metric: str) -> float | None:
        """Measured mean minus the paper's number."""
        mine = self.mean_sd(metric)
        return None if mine is None or self.paper is None else mine[0] - self.paper[METRICS.index(metric)]


def cells(row: TableRow) -> list[str]:
    """The row as text: data set, system, seeds, then measured, paper and difference of each metric, then the note."""
    found = [row.dataset, row.system, str(len(row.results))]
    for metric in METRICS:
        mine, difference = row.mean_sd(metric), row.difference(metric)
        found.append("-" if mine is None else f"{mine[0]:.2f}" + ("" if mine[1] is None else f" ± {mine[1]:.2f}"))
        found.append("-" if row.paper is None else f"{row.paper[METRICS.index(metric)]:.2f}")
        found.append("-" if difference is None else f"{difference:+.2f}")
    return [*found, row.note]


def headings() -> list[str]:
    """Of ``cells``."""
    return ["data set", "system", "seeds", *(text for m in METRICS for text in (HEADINGS[m], "paper", "difference")), "note"]


def markdown(rows: Sequence[TableRow], title: str, remarks: Sequence[str]) -> str:
    """A Markdown page: title, remarks (protocol, budget), table."""
    lines = ["| " + " | ".join(headings()) + " |", "|---|---|" + "--:|" * (1 + 3 * len(METRICS)) + "---|"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    return "\n".join([f"# {title}", "", *(f"- {remark}" for remark in remarks), "", *lines, ""])


def csv_text(rows: Sequence[TableRow], protocol: str) -> str:
    """One line per system, with the protocol in a column; numbers are not rounded to what people read."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{metric}_{part}" for metric in METRICS for part in ("mean", "sd", "paper", "difference")]
    writer.writerow(["dataset", "system", "seeds", *columns, "note", "protocol"])
    for row in rows:
        numbers: list[float | None] = []
        for metric in METRICS:
            mean, sd = row.mean_sd(metric) or (None, None)
            paper = None if row.paper is None else row.paper[METRICS.index(metric)]
            numbers += [mean, sd, paper, row.difference(metric)]
        values = ["" if number is None else f"{number:.6g}" for number in numbers]
        writer.writerow([row.dataset, row.system, len(row.results), *values, row.note, protocol])
    return text.getvalue()
