"""Results of several seeds beside the numbers of a paper, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

METRICS = ("iou", "dice", "hd95")
"""In the order of the papers' tables; IoU and Dice are printed in per cent, HD95 in pixels of its frame."""

PERCENT = "hd95_percent"
"""Beside them: HD95 in per cent of the diagonal of the frame, for which no paper has a number."""

HEADINGS = {"iou": "IoU %", "dice": "Dice %", "hd95": "HD95 px", PERCENT: "HD95 % of diagonal"}


@dataclass(frozen=True, slots=True)
class TableRow:
    """One system on one data set.

    Attributes:
        dataset: Such as ``kvasir``.
        system: Such as ``GuiDINO-W``.
        results: ``iou`` and ``dice`` in [0, 1], ``hd95`` in pixels and ``hd95_percent`` of the diagonal, of each seed that was measured.
        paper: IoU and Dice in per cent and HD95 in pixels; ``None`` where the paper has none.
        note: What a reader must know, such as seeds that failed.
        frame: In whose pixels masks were compared: ``native``, or such as ``256 x 256``.
        like_paper: Whether the paper's HD95 may be in pixels of that frame; else the two have no difference.
    """

    dataset: str
    system: str
    results: Sequence[Mapping[str, float]]
    paper: tuple[float, float, float] | None = None
    note: str = ""
    frame: str = ""
    like_paper: bool = True

    def mean_sd(self, metric: str) -> tuple[float, float | None] | None:
        """Mean and sample standard deviation over the seeds, as printed; one seed has no deviation, none has no mean.

        Nor is there a mean where a seed lacks the metric, as those may that an earlier version measured.
        """
        values = [result[metric] * (100 if metric in ("iou", "dice") else 1) for result in self.results if metric in result]
        if not values or len(values) < len(self.results):
            return None
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None

    def difference(self, metric: str) -> float | None:
        """Measured mean minus the paper's number."""
        mine = self.mean_sd(metric)
        if metric == "hd95" and not self.like_paper:
            return None
        return None if mine is None or self.paper is None else mine[0] - self.paper[METRICS.index(metric)]


def cells(row: TableRow) -> list[str]:
    """The row as text: data set, system, seeds; measured, paper and difference of each metric; the frame, HD95 in per cent, the note."""
    found = [row.dataset, row.system, str(len(row.results))]
    for metric in METRICS:
        difference = row.difference(metric)
        found.append(_printed(row, metric))
        found.append("-" if row.paper is None else f"{row.paper[METRICS.index(metric)]:.2f}")
        found.append("-" if difference is None else f"{difference:+.2f}")
    return [*found, row.frame or "-", _printed(row, PERCENT), row.note]


def _printed(row: TableRow, metric: str) -> str:
    mine = row.mean_sd(metric)
    return "-" if mine is None else f"{mine[0]:.2f}" + ("" if mine[1] is None else f" ± {mine[1]:.2f}")


def headings() -> list[str]:
    """Of ``cells``."""
    measured = (text for m in METRICS for text in (HEADINGS[m], "paper", "difference"))
    return ["data set", "system", "seeds", *measured, "HD95 frame", HEADINGS[PERCENT], "note"]


def markdown(rows: Sequence[TableRow], title: str, remarks: Sequence[str]) -> str:
    """A Markdown page: title, remarks (protocol, budget), table."""
    lines = ["| " + " | ".join(headings()) + " |", "|---|---|" + "--:|" * (3 + 3 * len(METRICS)) + "---|"]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    return "\n".join([f"# {title}", "", *(f"- {remark}" for remark in remarks), "", *lines, ""])


def csv_text(rows: Sequence[TableRow], protocol: str) -> str:
    """One line per system, with the protocol in a column; numbers are not rounded to what people read."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{metric}_{part}" for metric in METRICS for part in ("mean", "sd", "paper", "difference")]
    writer.writerow(["dataset", "system", "seeds", *columns, f"{PERCENT}_mean", f"{PERCENT}_sd", "frame", "note", "protocol"])
    for row in rows:
        numbers: list[float | None] = []
        for metric in METRICS:
            mean, sd = row.mean_sd(metric) or (None, None)
            paper = None if row.paper is None else row.paper[METRICS.index(metric)]
            numbers += [mean, sd, paper, row.difference(metric)]
        numbers += row.mean_sd(PERCENT) or (None, None)
        values = ["" if number is None else f"{number:.6g}" for number in numbers]
        writer.writerow([row.dataset, row.system, len(row.results), *values, row.frame, row.note, protocol])
    return text.getvalue()
