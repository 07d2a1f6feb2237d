"""Tables beside the paper and the scaling study, from rows that are known by hand."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from guidino_tune.analysis import scaling, tables
from guidino_tune.analysis.scaling import Point
from guidino_tune.analysis.tables import TableRow

THREE = [
    {"iou": 0.80, "dice": 0.90, "hd95": 10.0, "hd95_percent": 1.5},
    {"iou": 0.82, "dice": 0.92, "hd95": 14.0, "hd95_percent": 3.5},
    {"iou": 0.84, "dice": 0.94, "hd95": 12.0, "hd95_percent": 2.5},
]
ROW = TableRow("kvasir", "GuiDINO-W", THREE, (84.82, 90.86, 17.50), frame="native")


def test_means_deviations_and_differences() -> None:
    assert ROW.mean_sd("dice") == (pytest.approx(92.0), pytest.approx(2.0))
    assert ROW.mean_sd("hd95") == (pytest.approx(12.0), pytest.approx(2.0))  # in pixels, not in per cent
    assert ROW.difference("iou") == pytest.approx(82.0 - 84.82)
    assert ROW.difference("hd95") == pytest.approx(-5.5)
    assert ROW.mean_sd("hd95_percent") == (pytest.approx(2.5), pytest.approx(1.0))
    earlier = TableRow("kvasir", "GuiDINO-W", [*THREE, {"iou": 0.8, "dice": 0.9, "hd95": 10.0}])
    assert earlier.mean_sd("hd95_percent") is None  # one was measured before there was such a number


def test_pixels_of_another_frame_than_the_paper_s_have_no_difference() -> None:
    other = TableRow("tn3k", "GuiDINO-W", THREE, (84.82, 90.86, 17.50), frame="native", like_paper=False)
    assert other.difference("hd95") is None
    assert other.difference("dice") == pytest.approx(92 - 90.86)
    assert tables.cells(other)[9:14] == ["12.00 ± 2.00", "17.50", "-", "native", "2.50 ± 1.00"]


def test_cells_are_what_people_read() -> None:
    assert tables.cells(ROW) == [
        "kvasir", "GuiDINO-W", "3",
        "82.00 ± 2.00", "84.82", "-2.82", "92.00 ± 2.00", "90.86", "+1.14", "12.00 ± 2.00", "17.50", "-5.50",
        "native", "2.50 ± 1.00", "",
    ]  # fmt: skip
    assert len(tables.cells(ROW)) == len(tables.headings())


def test_one_seed_has_no_deviation_and_a_missing_result_no_mean() -> None:
    one = TableRow("tn3k", "H2Former", THREE[:1], None, "seed 1: diverged")
    assert tables.cells(one)[3:6] == ["80.00", "-", "-"]
    none = TableRow("tn3k", "H2Former", [], (1.0, 2.0, 3.0), "seed 0: out of memory")
    assert tables.cells(none)[3:6] == ["-", "1.00", "-"]


def test_markdown_is_a_table_with_the_protocol() -> None:
    page = tables.markdown([ROW, TableRow("kvasir", "U-KAN", [])], "Comparison", ["metrics: native resolution"])
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert "- metrics: native resolution" in page


def test_csv_reads_back() -> None:
    (row,) = csv.DictReader(io.StringIO(tables.csv_text([ROW], "native resolution, whole image")))
    assert (row["system"], row["seeds"], row["protocol"]) == ("GuiDINO-W", "3", "native resolution, whole image")
    assert float(row["dice_mean"]) == pytest.approx(92.0)
    assert float(row["dice_sd"]) == pytest.approx(2.0)
    assert float(row["hd95_difference"]) == pytest.approx(-5.5)
    assert (float(row["hd95_percent_mean"]), float(row["hd95_percent_sd"]), row["frame"]) == (2.5, 1.0, "native")


def point(backbone: str, size: int, cost: float, *dice: float) -> Point:
    return Point(backbone, size, cost, 1000, 2.0, dice)


@pytest.mark.parametrize(
    ("points", "answer"),
    [
        ([point("s", 256, 1, 0.80, 0.81), point("l", 256, 9, 0.90, 0.91)], "Bigger helps here"),
        ([point("s", 256, 1, 0.90, 0.91), point("l", 256, 9, 0.80, 0.81)], "Bigger harms here"),
        ([point("s", 256, 1, 0.80, 0.90), point("l", 256, 9, 0.82, 0.92)], "Bigger is not clearly better here"),
        ([point("s", 256, 1, 0.80), point("l", 256, 9, 0.99)], "With one seed each"),
        ([point("s", 256, 1, 0.80)], "One combination only"),
    ],
)
def test_verdict_asks_whether_the_gain_exceeds_the_scatter(points: list[Point], answer: str) -> None:
    assert scaling.verdict(points).startswith(answer)


def test_verdict_names_the_best_even_in_the_middle() -> None:
    points = [point("s", 256, 1, 0.8, 0.8), point("b", 256, 3, 0.95, 0.95), point("l", 256, 9, 0.85, 0.85)]
    assert "the best is b at 256 px with 0.9500" in scaling.verdict(points)


def test_the_figure_is_an_image_that_is_not_blank(tmp_path: Path) -> None:
    points = [point("vits16", 256, 10, 0.8, 0.82), point("vitb16", 256, 40, 0.83, 0.85), point("vits16", 512, 41, 0.9, 0.91)]
    scaling.draw(points, tmp_path / "reports" / "scaling.png", "GuiDINO-W on kvasir")
    with Image.open(tmp_path / "reports" / "scaling.png") as picture:
        assert picture.size == (1200, 750)
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 20
    assert [p.name for p in (tmp_path / "reports").iterdir()] == ["scaling.png"]
    page = scaling.markdown(points, "Scaling", ["one"], "scaling.png")
    assert re.search(r"\| vits16 \| 512 \| 2 \| 0\.9050 ± 0\.0071 \|", page)
    rows = list(csv.DictReader(io.StringIO(scaling.csv_text(points, "p"))))
    assert [(r["backbone"], r["image_size"]) for r in rows] == [("vits16", "256"), ("vitb16", "256"), ("vits16", "512")]
