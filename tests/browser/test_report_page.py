"""The report of a study as a person sees it: from the disk, at the width of a desk and of a telephone, light and dark, sorted by clicks."""

import base64
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))  # where its helpers lie
from report_helpers import failed, simulated, split_file, stored
from test_report_ensembles import MADE

from guidino_tune.reporting.known import Price
from guidino_tune.study.ensembles import note_ensemble
from guidino_tune.workflows.report import write_report
from guidino_tune.workflows.study_page import page_of_stored

pytestmark = pytest.mark.timeout(180)

WIDE, NARROW = 1400, 500

COLUMN = """
const table = document.querySelector('#trials table');
const at = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent.trim() === arguments[0]);
return [...table.tBodies[0].rows].map(row => row.cells[at].textContent);
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of some eighty trials, one of which failed with a text that would run."""
    folder = tmp_path_factory.mktemp("report")
    made = simulated(folder / "first")
    trials = made.study.get_trials(deepcopy=False)
    evil = failed(trials[3], "bug", "<img src=x onerror='document.title=1'><script>document.title=2</script>")
    whole = stored(folder / "synthetic", made.space, [*trials, evil])
    split_file(whole.folder)
    note_ensemble(whole.folder, MADE)
    pictures = whole.folder.trial(max(trials, key=lambda t: t.value or 0 if t.state.name == "COMPLETE" else 0).number).pictures
    pictures.mkdir()
    Image.new("RGB", (1200, 400), (200, 30, 60)).save(pictures / "worst-and-best.png")
    return write_report(page_of_stored(whole), price=Price(per_hour=2, currency="EUR"))


@pytest.fixture
def shown(chromium: WebDriver, file: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Opens the page at a width and with the system's colours."""

    def show(width: int, theme: str = "light") -> WebDriver:
        chromium.execute_cdp_cmd("Network.enable", {})
        chromium.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        )
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})
        chromium.get_log("browser")
        chromium.get(file.as_uri())
        return chromium

    yield show
    shot = chromium.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})["data"]
    (file.parent / f"{request.node.name}.png").write_bytes(base64.b64decode(shot))
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_page_fits_its_window_and_nothing_goes_wrong(shown: Any, width: int) -> None:
    page = shown(width)
    assert page.get_log("browser") == []
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    spilled = page.execute_script(
        """return [...document.querySelectorAll('section, p, dd, figure, h1')]
            .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 200))"""
    )
    assert spilled == []
    assert page.title == "synthetic: report"
    assert page.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_every_picture_and_drawing_is_seen(shown: Any) -> None:
    page = shown(WIDE)
    assert page.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
    sizes = page.execute_script("return [...document.querySelectorAll('main svg')].map(s => [s.clientWidth, s.clientHeight])")
    assert len(sizes) > 10
    assert min(width for width, _ in sizes) > 200
    outside = page.execute_script(
        """return [...document.querySelectorAll('main svg')].flatMap(svg => [...svg.querySelectorAll('text')].filter(text => {
            const a = text.getBoundingClientRect(), b = svg.getBoundingClientRect();
            return a.left < b.left - 2 || a.right > b.right + 2 || a.top < b.top - 2 || a.bottom > b.bottom + 2;
        }).map(text => svg.getAttribute('aria-label') + ': ' + text.textContent))"""
    )
    assert outside == []


def test_a_click_sorts_the_leaderboard_and_its_heading_stays(shown: Any) -> None:
    page = shown(NARROW)
    heading = next(b for b in page.find_elements(By.CSS_SELECTOR, "#trials th button") if b.text == "training.lr")
    page.execute_script("arguments[0].click()", heading)
    rates = [float(text) for text in page.execute_script(COLUMN, "training.lr")]
    assert len(rates) > 50
    assert rates == sorted(rates, reverse=True)
    page.execute_script("arguments[0].click()", heading)
    assert [float(text) for text in page.execute_script(COLUMN, "training.lr")] == sorted(rates)
    rank = next(b for b in page.find_elements(By.CSS_SELECTOR, "#trials th button") if b.text == "rank")
    page.execute_script("arguments[0].click(); arguments[0].click()", rank)
    ranks = page.execute_script(COLUMN, "rank")
    whole = [int(text) for text in ranks if text != "–"]
    assert whole == sorted(whole)
    assert ranks == [*map(str, whole), *["–"] * (len(ranks) - len(whole))]  # what has no rank stands last, whichever way
    frame = page.find_element(By.CSS_SELECTOR, "#trials .scroll")
    page.execute_script("arguments[0].scrollTop = 400; arguments[0].scrollLeft = 200", frame)
    top = "return document.querySelector('#trials th').getBoundingClientRect().top - arguments[0].getBoundingClientRect().top"
    assert -2 <= page.execute_script(top, frame) <= 3
    assert page.execute_script("return arguments[0].scrollLeft", frame) > 100


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_those_of_the_system_until_one_chooses(shown: Any, theme: str) -> None:
    page = shown(WIDE, theme)

    def brightness() -> float:
        colour = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour[colour.index("(") + 1 : -1].split(",")[:3])) / 765

    is_dark = theme == "dark"
    assert (brightness() < 0.2) is is_dark
    page.find_element(By.ID, "theme").click()
    assert (brightness() < 0.2) is not is_dark
    page.find_element(By.ID, "theme").click()
    assert (brightness() < 0.2) is is_dark


def test_it_can_be_printed(shown: Any) -> None:
    page = shown(WIDE, "dark")
    data = page.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    assert base64.b64decode(data).startswith(b"%PDF")
    assert len(data) > 50_000
