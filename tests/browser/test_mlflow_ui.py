"""What a person sees of a study in MLflow's pages, opened with the command and the address that the tracker prints."""

import re
from typing import Any

import pytest
from browser_study import BEST_FIRST, DICES, EVIL, SEARCHED, Pages, until
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

pytestmark = pytest.mark.timeout(180)

TABLE = """
const cells = {};
for (const cell of document.querySelectorAll('.ag-row .ag-cell')) {
    const row = Number(cell.closest('.ag-row').getAttribute('row-index'));
    (cells[row] ??= {})[cell.getAttribute('col-id')] = cell.innerText.trim().split('\\n').pop();
}
return Object.keys(cells).sort((a, b) => a - b).map(row => cells[row]);
"""
NAME = "attributes.`Run Name`"


def table(browser: WebDriver) -> list[dict[str, str]]:
    """The rows of the table of runs, top to bottom: what stands in which column."""
    rows: list[dict[str, str]] = browser.execute_script(TABLE)
    return rows


def numbers(browser: WebDriver) -> list[int]:
    """The trials in the table of runs, top to bottom."""
    found = [re.match(r"trial (\d+)", row.get(NAME, "")) for row in table(browser)]
    return [int(match[1]) for match in found if match]


def click(browser: WebDriver, xpath: str) -> None:
    element = until(lambda: next(iter(browser.find_elements(By.XPATH, xpath)), None))
    assert element, f"{xpath} is not on the page: {browser.find_element(By.TAG_NAME, 'body').text}"
    element.click()


def test_trials_unfold_below_their_study(browser: WebDriver, pages: Pages) -> None:
    browser.get(f"{pages.experiment}?workflowType=machine_learning")
    until(lambda: table(browser))
    assert [row[NAME] for row in table(browser)] == ["polyps"]  # the study alone, its trials folded away
    click(browser, "//div[contains(@class, 'ag-row')][contains(., 'polyps')]//button")
    assert until(lambda: len(table(browser)) == 7)
    assert sorted(numbers(browser)) == sorted(DICES)
    assert table(browser)[0][NAME] == "polyps"


def test_study_page_links_to_its_trials(browser: WebDriver, pages: Pages) -> None:
    browser.get(pages.parent)
    links = until(lambda: {a.text for a in browser.find_elements(By.PARTIAL_LINK_TEXT, "trial 000")})
    assert links == {f"trial {n:04d} GuiDINO-U" for n in DICES}


def test_printed_address_shows_trials_best_first_with_what_was_searched(browser: WebDriver, pages: Pages) -> None:
    browser.get(pages.view)
    # The failed one, without a score, is last; the study's own run is not among them.
    assert until(lambda: numbers(browser) == [*BEST_FIRST, 5]), browser.find_element(By.TAG_NAME, "body").text
    until(lambda: "searched" in browser.find_element(By.CLASS_NAME, "ag-header").text)
    shown = table(browser)
    assert [float(row["metrics.`best_val_dice`"]) for row in shown[:5]] == [max(DICES[n]) for n in BEST_FIRST]
    assert [row["tags.`guidino.state`"] for row in shown] == ["COMPLETE", "COMPLETE", "COMPLETE", "PRUNED", "PRUNED", "FAIL"]
    headings = browser.find_element(By.CLASS_NAME, "ag-header").text
    assert all(f"searched/{path}" in headings for path in SEARCHED)
    assert [float(row["params.`searched/loss.lambda_guide`"]) for row in shown] == [0.1 + n for n in numbers(browser)]
    assert "polyps: trials, best first" in browser.find_element(By.TAG_NAME, "body").text


@pytest.mark.parametrize("ascending", [False, True])
def test_any_metric_sorts(browser: WebDriver, pages: Pages, ascending: bool) -> None:
    last = sorted((n for n in DICES if DICES[n]), key=lambda n: DICES[n][-1], reverse=not ascending)
    browser.get(f"{pages.experiment}?workflowType=machine_learning&orderByKey=metrics.%60val_dice%60&orderByAsc={str(ascending).lower()}")
    assert until(lambda: numbers(browser)[:5] == last), numbers(browser)


def test_curve_of_a_trial_has_every_epoch(browser: WebDriver, pages: Pages) -> None:
    browser.get(f"{pages.runs[2]}/model-metrics")
    curve: Any = until(
        lambda: browser.execute_script(
            """for (const card of document.querySelectorAll('[data-testid=experiment-view-compare-runs-card]')) {
                const plot = card.querySelector('.js-plotly-plot');
                if (plot && card.innerText.split('\\n').includes('val_dice') && plot.querySelector('.scatterlayer .point'))
                    return [Array.from(plot.data[0].x), Array.from(plot.data[0].y)];
            }"""
        )
    )
    assert curve == [[1, 2, 3], list(DICES[2])]


def test_picture_of_a_trial_is_shown_whole(browser: WebDriver, pages: Pages) -> None:
    browser.get(f"{pages.runs[2]}/artifacts")
    click(browser, "//*[normalize-space(text())='pictures']")
    click(browser, "//*[normalize-space(text())='validation.png']")
    script = "return [...document.images].filter(i => i.complete).map(i => [i.naturalWidth, i.naturalHeight])"
    with Image.open(pages.picture) as picture:
        size = list(picture.size)
    assert until(lambda: size in browser.execute_script(script)), browser.execute_script(script)


def test_failed_trial_says_why(browser: WebDriver, pages: Pages) -> None:
    browser.get(pages.runs[5])
    assert until(lambda: "out of memory" in browser.find_element(By.TAG_NAME, "body").text)
    assert "Failed" in browser.find_element(By.TAG_NAME, "body").text


DESCRIPTION = ".note-editor-preview-content"


def description(browser: WebDriver) -> Any:
    """The description of a run, once its picture is there; it is as wide as that picture."""
    script = f"return [...document.querySelectorAll('{DESCRIPTION} img')].map(i => [i.complete, i.naturalWidth])"
    assert until(lambda: browser.execute_script(script) == [[True, 640]]), browser.find_element(By.TAG_NAME, "body").text
    return browser.find_element(By.CSS_SELECTOR, DESCRIPTION)


def test_description_of_the_study_shows_the_picture_of_its_best_trial_and_leads_to_it(browser: WebDriver, pages: Pages) -> None:
    browser.get(pages.parent)
    links = [link.get_attribute("href") for link in description(browser).find_elements(By.TAG_NAME, "a")]
    assert links == [pages.runs[2], f"{pages.runs[2]}/artifacts/pictures/{pages.picture.name}"]
    browser.get(str(links[1]))
    script = "return [...document.images].filter(i => i.complete).map(i => i.naturalWidth)"
    with Image.open(pages.picture) as picture:
        assert until(lambda: picture.width in browser.execute_script(script))


def test_text_of_users_is_no_markup_in_a_description(browser: WebDriver, pages: Pages) -> None:
    browser.get(pages.runs[2])
    shown = description(browser)  # with one picture: that in the text of a user is none
    assert [code.get_attribute("textContent") for code in shown.find_elements(By.CSS_SELECTOR, "p code")] == [EVIL.replace("`", "'")]
    assert str(shown.find_element(By.CSS_SELECTOR, "td code").get_attribute("textContent")).startswith("x' ![](http://127.0.0.1:9/p.png)")
    assert len(shown.find_elements(By.CSS_SELECTOR, "tbody td")) == 2
    assert len(shown.find_elements(By.TAG_NAME, "a")) == 1
    assert browser.title != "1"
