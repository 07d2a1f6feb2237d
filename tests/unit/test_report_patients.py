"""Intervals of the report: images of one patient are drawn together, as an independent formula says, and the page tells which it was."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from layout_helpers import touch
from report_helpers import simulated, stored
from test_report import page, section

from guidino_tune.reporting.material import collect
from guidino_tune.reporting.verdict import paired
from guidino_tune.space.space import override
from guidino_tune.study.store import StoredStudy
from guidino_tune.training.case_scores import FILE, write_cases

PATIENTS, EACH = 20, 5
NAMES = [f"P{patient:02}_s{image}" for patient in range(PATIENTS) for image in range(EACH)]


def study_of(folder: Path, differences: np.ndarray, names: list[str] = NAMES, group: str | None = "^(P[0-9]+)_") -> StoredStudy:
    """A study over images of a folder, whose best two trials and default have scores of each case: the best has so much more."""
    root = folder / "data"
    touch(root, *(f"{kind}/{name}.png" for kind in ("images", "masks") for name in names))
    made = simulated(folder / "first", 300)
    space = override(made.space, {"data.kind": "folder", "data.root": str(root), **({"data.group": group} if group else {})})
    whole = stored(folder / "synthetic", space, made.study.get_trials(deepcopy=False))
    ranked = collect(whole).ranked
    for number in {*ranked[:2], 0}:
        more = differences if number == ranked[0] else np.zeros_like(differences)
        scores = {name: {"dice": 0.5 + float(one)} for name, one in zip(names, more, strict=True)}
        write_cases(whole.folder.trial(number).path / FILE, 26, scores, dict.fromkeys(names, 0.1))
    return whole


def cluster_error(values: np.ndarray, groups: np.ndarray) -> float:
    """Standard error of a mean over clusters of equal size: the sample deviation of their means over the root of their number."""
    means = [values[groups == group].mean() for group in np.unique(groups)]
    return float(np.std(means, ddof=1) / math.sqrt(len(means)))


def told_interval(told: str) -> tuple[float, float]:
    found = re.search(r"95 % interval (-?[\d.]+) to (-?[\d.]+) over", told)
    assert found, told
    return float(found[1]), float(found[2])


@pytest.fixture(scope="module")
def duplicated() -> np.ndarray:
    """Five images of each patient that are the same: nothing more is known than of one."""
    drawn = np.random.default_rng(0).normal(size=PATIENTS)
    return np.repeat(0.03 + 0.1 * (drawn - drawn.mean()) / drawn.std(), EACH)


def test_copies_of_an_image_are_no_further_evidence(tmp_path: Path, duplicated: np.ndarray) -> None:
    """The width is that of the formula over patients, more than twice that over images, and what images alone would call sure is not."""
    whole = study_of(tmp_path / "a", duplicated)
    told = section(page(whole), "Verdict", "Question and data")
    low, high = told_interval(told)
    groups = np.repeat(np.arange(PATIENTS), EACH)
    by_patient = 2 * 1.96 * cluster_error(duplicated, groups)
    by_image = 2 * 1.96 * float(duplicated.std(ddof=1)) / math.sqrt(len(duplicated))
    assert by_patient / by_image == pytest.approx(math.sqrt(EACH), rel=0.05)
    assert high - low == pytest.approx(by_patient, rel=0.15)
    assert f"over {len(NAMES)} cases of {PATIENTS} patients" in told
    assert f"draw whole patients: the {len(NAMES)} validation cases are of {PATIENTS}" in told
    # The same numbers of a data set that names no patients.
    other = section(page(study_of(tmp_path / "b", duplicated, group=None)), "Verdict", "Question and data")
    narrow = told_interval(other)
    assert narrow[1] - narrow[0] == pytest.approx(by_image, rel=0.1)
    assert f"over {len(NAMES)} cases" in other
    assert "names no patients (data.group)" in other
    assert narrow[0] > 0 > low
    assert ("not beyond the chance" in told, "not beyond the chance" in other) == (True, False)


def test_a_cluster_bootstrap_of_its_own_gives_the_same(tmp_path: Path) -> None:
    """Patients differ, and their images too; of some patients there are more images."""
    random = np.random.default_rng(3)
    counts = random.integers(1, 9, 40)
    groups = np.repeat(np.arange(40), counts)
    values = random.normal(0.02, 0.05, 40)[groups] + random.normal(0, 0.02, len(groups))
    names = [f"P{group:02}_s{n}" for n, group in enumerate(groups)]
    order = np.argsort(names)
    whole = study_of(tmp_path, values[order], [names[n] for n in order])
    drawn = []
    for _ in range(4000):
        taken = random.integers(40, size=40)
        drawn.append(np.concatenate([values[groups == group] for group in taken]).mean())
    low, high = np.quantile(drawn, (0.025, 0.975))
    found = told_interval(section(page(whole), "Verdict", "Question and data"))
    assert found == pytest.approx((low, high), abs=0.15 * (high - low))


def test_of_few_patients_nothing_is_said(tmp_path: Path) -> None:
    names = [f"P{patient}_s{image:02}" for patient in range(3) for image in range(20)]
    whole = study_of(tmp_path, np.full(len(names), 0.1), names, "^(P[0-9]+)_")
    told = section(page(whole), "Verdict", "Question and data")
    assert "over 60 cases of 3 patients nothing can be said of others" in told
    assert "beyond the chance" not in told


def test_without_the_images_it_is_not_known_who_is_a_patient(tmp_path: Path, duplicated: np.ndarray) -> None:
    whole = study_of(tmp_path, duplicated)
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    told = section(page(whole), "Verdict", "Question and data")
    assert "which of them are of one patient is not known here" in told
    assert re.search(rf"over {len(NAMES)} cases[),]", told)
    (tmp_path / "elsewhere").rename(tmp_path / "data")
    (tmp_path / "data" / "images" / f"{NAMES[0]}.png").unlink()  # no longer the images of the study
    (tmp_path / "data" / "masks" / f"{NAMES[0]}.png").unlink()
    assert "is not known here" in section(page(whole), "Verdict", "Question and data")


def test_a_report_draws_no_images_of_the_demo(tmp_path: Path, home: Path, duplicated: np.ndarray) -> None:
    """Of a search on another machine: a report only reads."""
    whole = study_of(tmp_path, duplicated)
    whole = stored(
        tmp_path / "synthetic", override(whole.space, {"data.kind": "demo", "data.root": None, "data.group": None}), whole.study.trials
    )
    assert "is not known here" in section(page(whole), "Verdict", "Question and data")
    assert not home.exists()


def test_trials_on_other_cases_are_not_compared(tmp_path: Path, duplicated: np.ndarray) -> None:
    whole = study_of(tmp_path, duplicated)
    material = collect(whole)
    one, other = material.ranked[:2]
    assert paired(material, one, other, {}) is not None
    (whole.folder.trial(other).path / FILE).unlink()
    assert paired(material, one, other, {}) is None


@pytest.mark.parametrize(("patients", "few"), [(8, True), (20, False)])
def test_of_few_patients_it_says_that_intervals_are_too_narrow(patients: int, few: bool, tmp_path: Path) -> None:
    names = [f"P{patient:02}_s{image}" for patient in range(patients) for image in range(2)]
    whole = study_of(tmp_path, np.random.default_rng(0).normal(0.03, 0.1, len(names)), names)
    assert ("somewhat too narrow" in section(page(whole), "Verdict", "Question and data")) == few
