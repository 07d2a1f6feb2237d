"""The study in its server, and a browser to look at it as people do."""

import shutil
import socket
from collections.abc import Iterator

import pytest
from browser_study import Pages, draw, serving, track
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webdriver import WebDriver

from guidino_tune.tracking.client import connect

CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")
ABSENT = "no Chromium here: apt-get update && apt-get install -y chromium chromium-driver"
OPTIONS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage --window-size=2200,950"""


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip(ABSENT)
    folder = tmp_path_factory.mktemp("home")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    picture = draw(folder / "validation.png")
    tracker = track(uri, folder, picture)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = tracker.ui_command.replace("--port 5000", f"--port {port}")
    assert str(port) in command
    with serving(command, port, folder):
        base = f"http://127.0.0.1:{port}"
        view = tracker.url.replace("http://127.0.0.1:5000", base)
        experiment = connect(uri).get_experiment_by_name("guidino_tune").experiment_id
        runs = {r.data.tags.get("guidino.trial", "study"): r.info.run_id for r in connect(uri).search_runs([experiment])}
        place = f"{base}/#/experiments/{experiment}/runs"
        parent = f"{place}/{runs.pop('study')}"
        yield Pages(place, view, {int(n): f"{place}/{run}" for n, run in runs.items()}, parent, picture, folder)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    """The browser alone."""
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip(ABSENT)
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (*OPTIONS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(str(CHROMEDRIVER)))  # with a path, selenium looks for no download
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def driver(pages: Pages, chromium: WebDriver) -> WebDriver:
    """The same, once there are pages to look at."""
    return chromium


@pytest.fixture
def browser(driver: WebDriver, pages: Pages, request: pytest.FixtureRequest) -> Iterator[WebDriver]:
    """The browser without memories of the test before; what it shows at the end of each test is kept as a picture."""
    driver.get(pages.experiment.partition("#")[0] + "version")  # a page of the same server, which has the same storage
    driver.execute_script("localStorage.clear()")
    yield driver
    driver.save_screenshot(str(pages.shots / f"{request.node.name}.png"))
