"""The page on which a model is tried, in a real browser: an image is dropped, and what the model makes of it is seen."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from guidino_tune.config import Experiment
from guidino_tune.data.sources.demo import generate
from guidino_tune.models import build_model
from guidino_tune.training.checkpoints import WEIGHTS, save_weights
from guidino_tune.workflows.predict import TrainedModel, load_model
from guidino_tune.workflows.serve import bound, make_app

OPTIONS = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-dev-shm-usage"

SLOW = """
const real = window.fetch, t = document.getElementById("threshold");
const set = (value) => { t.value = value; t.dispatchEvent(new Event("input")); };
window.fetch = async (where, ...more) => {
  const reply = await real(where, ...more);
  if (where.endsWith("threshold=0.05")) await new Promise((go) => setTimeout(go, 1200));
  return reply;
};
"""
"""Answers for the lowest threshold take more than a second."""


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple[str, TrainedModel]]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    experiment = Experiment.from_dict(
        {
            "data": {"kind": "demo", "image_size": 32},
            "guide": {"kind": "dino", "backbone": "tiny", "weights": "random"},
            "segmenter": {"kind": "unet", "base_width": 2},
        }
    )
    (tmp_path / "trial" / "best").mkdir(parents=True)
    save_weights(tmp_path / "trial" / "best" / WEIGHTS, build_model(experiment).trained_state())
    (tmp_path / "trial" / "experiment.yaml").write_text(experiment.to_yaml())
    model = load_model(tmp_path / "trial", device="cpu")
    with bound("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(model, "mine"), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/", model
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def chrome(tmp_path: Path) -> Iterator[WebDriver]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no Chromium here: apt-get update && apt-get install -y chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (*OPTIONS.split(), f"--user-data-dir={tmp_path / 'chromium'}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(driver))
    yield found
    found.quit()


def pixels(chrome: WebDriver) -> int:
    return int(chrome.find_element(By.CSS_SELECTOR, "#areas td:nth-child(2)").text.replace(",", ""))


def test_an_image_is_dropped_and_its_mask_is_seen_and_taken_away(chrome: WebDriver, page: tuple[str, TrainedModel], tmp_path: Path) -> None:
    address, model = page
    files = []
    for number, name in enumerate(("one.png", "<i>two.png")):
        files.append(tmp_path / name)
        Image.fromarray(generate(number, 60)[0]).save(files[-1])
    (tmp_path / "no-image.png").write_text("text")
    chrome.set_window_size(1200, 1000)
    chrome.get(address)
    wait = WebDriverWait(chrome, 60)
    wait.until(lambda c: "mine" in c.find_element(By.ID, "about").text)
    chrome.find_element(By.ID, "files").send_keys("\n".join(map(str, files)))
    wait.until(lambda c: len(c.find_elements(By.CSS_SELECTOR, "#strip button")) == 2)
    assert "<i>two.png: 60 × 60 pixels" in chrome.find_element(By.ID, "size").text
    assert pixels(chrome) == int(model.predict(files[1]).sum())
    links = {a.text: a.get_attribute("download") for a in chrome.find_elements(By.CSS_SELECTOR, "#take a")}
    assert links == {"Mask (PNG)": "<i>two-mask.png", "Probability (16-bit PNG)": "<i>two-probability.png"}
    # Another threshold is another mask.
    level = float(np.quantile(model.predict_proba(files[1])[1], 0.5).round(2))
    chrome.execute_script(
        f"let t = document.getElementById('threshold'); t.step = 0.01; t.value = {level}; t.dispatchEvent(new Event('input'))"
    )
    wanted = int(model.predict(files[1], threshold=level).sum())
    wait.until(lambda c: pixels(c) == wanted)
    # An answer that comes after that of a later threshold is too late.
    chrome.execute_script(SLOW + f"set(0.05); setTimeout(() => set({level}), 400)")
    time.sleep(2)
    assert (pixels(chrome), chrome.find_element(By.ID, "at").text) == (wanted, f"{level:.2f}")
    # The guide mask lies over the image.
    before = chrome.find_element(By.ID, "over").get_attribute("src")
    chrome.find_element(By.CSS_SELECTOR, "input[value=guide]").find_element(By.XPATH, "..").click()
    wait.until(lambda c: c.find_element(By.ID, "over").get_attribute("src") != before)
    assert "guide mask from" in chrome.find_element(By.ID, "size").text
    chrome.find_elements(By.CSS_SELECTOR, "#strip button")[0].click()
    wait.until(lambda c: c.find_element(By.ID, "size").text.startswith("one.png"))
    assert not [line for line in chrome.get_log("browser") if line["level"] == "SEVERE"]
    # What is no image is said, and takes nothing away.
    chrome.find_element(By.ID, "files").send_keys(str(tmp_path / "no-image.png"))
    wait.until(lambda c: "no-image.png" in c.find_element(By.ID, "wrong").text)
    assert len(chrome.find_elements(By.CSS_SELECTOR, "#strip button")) == 2
    chrome.set_window_size(500, 1000)
    time.sleep(0.3)
    assert chrome.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
