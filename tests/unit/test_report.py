"""The report of a study: what a person with nothing but this file must be able to answer, and that the file needs nothing else.

Ten questions, each with a test below: which setting mattered; is the best trial beyond noise; what failed and why; what did it cost; which
images go wrong; was the search long enough; what did the constant mask give; which values were never tried; how to repeat it; what was
sealed.
"""

from __future__ import annotations

import csv
import json
import re
import time
from pathlib import Path
from statistics import median

import numpy as np
import optuna
import pytest
from PIL import Image
from report_helpers import EPOCH, START, START_UP, Parts, failed, simulated, split_file, stored, write_history
from synthetic_curves import synthetic_space

from guidino_tune.analysis import statistics
from guidino_tune.reporting.data import sheet_file
from guidino_tune.reporting.known import Price
from guidino_tune.reporting.material import collect
from guidino_tune.space.space import override
from guidino_tune.study.store import StoredStudy
from guidino_tune.training.case_scores import FILE, write_cases
from guidino_tune.workflows.report import make_document, write_report
from guidino_tune.workflows.study_page import page_of_stored


def page(study: StoredStudy, **options: object) -> Parts:
    """The report, taken apart."""
    return Parts(write_report(page_of_stored(study), **options).read_text(encoding="utf-8"))  # type: ignore[arg-type]


def section(parts: Parts, title: str, until: str) -> str:
    """The text between two headings; the first ones are those of the links above."""
    text = parts.text
    start = text.index(title, text.index(title) + 1)
    return text[start : text.index(until, start + len(title))]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StoredStudy:
    """Some eighty trials, of which two failed of a machine; the best two and the default with scores of their cases, one with pictures."""
    folder = tmp_path_factory.mktemp("study")
    made = simulated(folder / "first")
    trials = made.study.get_trials(deepcopy=False)
    few = [t for t in trials if t.state == optuna.trial.TrialState.PRUNED][:2]
    broken = [failed(t, "environment", "no space left on /scratch") for t in few]
    whole = stored(folder / "synthetic", made.space, [*trials, *broken])
    split_file(whole.folder)
    ranked = collect(whole).ranked
    random = np.random.default_rng(0)
    hard = random.uniform(0.5, 0.9, 40)
    for place, number in enumerate((*ranked[:2], 0)):
        path = whole.folder.trial(number).path
        dice = np.clip(hard - (0, 0.0, 0.2)[place] + random.normal(0, 0.01, 40), 0, 1)
        scores = {f"case <{n}>": {"dice": float(d), "iou": float(d) / 2} for n, d in enumerate(dice)}
        write_cases(path / FILE, 26, scores, {f"case <{n}>": 0.01 * (n + 1) for n in range(40)})
    pictures = whole.folder.trial(ranked[0]).pictures
    pictures.mkdir()
    Image.new("RGB", (640, 160), (200, 30, 60)).save(pictures / "worst-and-best.png")
    return whole


@pytest.fixture(scope="module")
def parts(study: StoredStudy) -> Parts:
    return page(study, price=Price(per_hour=2.0, currency="CHF"))


# --------------------------------------------------------------------------------------------------------------- the ten questions


def test_which_setting_mattered(parts: Parts) -> None:
    """The learning rate and the network decide the formula's Dice at the first rung."""
    told = section(parts, "What mattered", "Settings and Dice")
    first = re.search(r"Epoch 3, (\d+) trials: beyond noise: (.*)\.", told)
    assert first
    assert int(first[1]) > 50
    assert {"training.lr", "segmenter.kind"} <= {name.split()[0] for name in re.split(", | and ", first[2])}
    assert "permutation importance" in told
    assert re.search(r"training\.lora_lr\nguide\.lora\.rank > 0\n", told)


def test_too_few_trials_tell_nothing_of_a_setting(tmp_path: Path) -> None:
    few = page(simulated(tmp_path / "few", 60))
    told = section(few, "What mattered", "Settings and Dice")
    assert "Not told" in told
    assert "fewer than 10" in told


def test_is_the_best_beyond_noise(study: StoredStudy, parts: Parts) -> None:
    """Against the default, whose cases are all worse, it is; against the next one, which differs by chance alone, it is not."""
    told = section(parts, "Verdict", "Question and data")
    material = collect(study)
    one, other = (material.cases(number) for number in (material.ranked[0], 0))
    low, high = statistics.interval(np.array([one[c]["dice"] - other[c]["dice"] for c in sorted(one)]), np.arange(40))
    assert re.search(rf"the default \(trial 0.*; that is beyond the chance .*{low:.4f} to {high:.4f} over 40 cases", told)
    assert f"above trial {material.ranked[1]} with" in told
    assert "not beyond the chance" in told


def test_what_the_best_trial_has_that_the_default_has_not(study: StoredStudy, parts: Parts) -> None:
    told = section(parts, "Verdict", "Question and data")
    trials, best = study.study.get_trials(deepcopy=False), collect(study).ranked[0]
    for path in ("segmenter.kind", "training.lr"):
        values = [trials[number].params[path] for number in (best, 0)]
        assert "\n".join((path, *(f"{value:.3g}" if isinstance(value, float) else value for value in values))) in told


def test_what_failed_and_why(study: StoredStudy, parts: Parts) -> None:
    told = section(parts, "Failures", "How to repeat it")
    kinds = [t.user_attrs["failure"] for t in study.study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.FAIL]
    assert re.search(rf"diverged\n{kinds.count('diverged')}\n", told)
    assert re.search(r"environment\n2\n\d+\nno space left on /scratch\nnode-", told)


def test_what_it_cost(study: StoredStudy, parts: Parts) -> None:
    trials = study.study.get_trials(deepcopy=False)
    epochs = sum(len(t.intermediate_values) for t in trials)
    at_once = sum(not t.intermediate_values for t in trials)  # failed before their first epoch, after so many seconds
    told = section(parts, "Time and cost", "Failures")
    hours = (epochs * EPOCH + at_once * START_UP) / 3600
    assert f"{2 * hours:,.2f} CHF for training" in told
    assert f"{epochs:,} epochs" in told
    assert {"node-0 (01234567)", "node-1 (01234567)"} <= set(told.split("\n"))


def test_which_images_go_wrong(study: StoredStudy, parts: Parts) -> None:
    told = section(parts, "Images", "Comparison")
    cases = collect(study).cases(collect(study).ranked[0])
    worst = min(cases, key=lambda case: cases[case]["dice"])
    assert re.search(rf"Lowest Dice.*?\n.*\n.*\n.*\n{re.escape(worst)}\n{cases[worst]['dice']:.4f}\n", told)
    assert "the smallest third" in told.lower()
    assert sum(address.startswith("data:image/jpeg;base64,") for address in parts.loads) == 1


def test_was_the_search_long_enough(parts: Parts) -> None:
    told = section(parts, "Verdict", "Question and data")
    assert re.search(r"\d+ further trials like these would probably gain 0\.\d{3} Dice \(95 % interval", told)


def test_what_the_constant_mask_gave(study: StoredStudy, parts: Parts) -> None:
    best = max(t.value or 0 for t in study.study.get_trials(states=(optuna.trial.TrialState.COMPLETE,)))
    assert f"scores 0.2500; the best trial has {best - 0.25:.4f} more" in parts.text


def test_which_values_were_never_tried(tmp_path: Path) -> None:
    made = simulated(tmp_path / "all")
    some = [t for t in made.study.get_trials(deepcopy=False) if t.params["segmenter.kind"] != "ukan" and t.params["training.lr"] < 3e-4]
    told = section(page(stored(tmp_path / "some", made.space, some)), "What was tried", "Pareto front")
    assert re.search(r"segmenter\.kind\n.*\n\d+\n.*\nukan\n", told)
    assert re.search(r"training\.lr\n.*\n\d+\n.*\nnothing between 0\.000\d+ and 0\.003 \(4\d% of the range\)", told)


def test_how_to_repeat_it(study: StoredStudy, parts: Parts) -> None:
    told = section(parts, "How to repeat it", "Words")
    assert "guidino-tune search study.yaml --name synthetic-again" in told
    assert "reduction_factor: 3" in told
    assert "not stored" in told  # versions, which no process of these trials noted


def test_what_was_sealed(study: StoredStudy, tmp_path: Path) -> None:
    told = section(page(study), "Question and data", "History")
    assert "8 training, 2 validation, 3 test cases" in told
    assert "3 cases, which no search can read; never opened" in told
    openings = study.folder.path / "test-openings.jsonl"
    line = {"time": "2026-11-30T09:00:00+00:00", "reason": "the <b>end</b>", "cases": 3, "split": str(study.folder.split)}
    openings.write_text(json.dumps(line) + "\n")
    try:
        assert "opened once afterwards: 2026-11-30T09:00:00+00:00: the <b>end</b>" in page(study).text
    finally:
        openings.unlink()


# ---------------------------------------------------------------------------------------------------------------------- the file


def test_the_page_loads_nothing_and_is_small(study: StoredStudy, parts: Parts) -> None:
    outside = [address for address in parts.loads if not address.startswith(("#", "data:image/"))]
    assert outside == []
    assert {"script", "style", "table", "svg", "section"} <= set(parts.tags)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(parts.tags)
    text = (study.folder.reports / "report.html").read_text()
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|https?://(?!127\.0\.0\.1)", text)
    assert len(text) < 1e6
    assert len(parts.ids) == len(set(parts.ids))
    assert {address[1:] for address in parts.loads if address.startswith("#")} <= set(parts.ids)


def test_text_of_users_is_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&`|"
    made = simulated(tmp_path / "x", 120)
    trials = made.study.get_trials(deepcopy=False)
    trials = [failed(trials[0], "bug", evil), *trials[1:]]
    for trial in trials:
        trial.set_user_attr("name", evil)
        trial.set_user_attr("node", f"{evil} 0123")
    space = override(made.space, {"data.root": f"/data/{evil}"})
    object.__setattr__(space.study, "name", evil)
    named = stored(tmp_path / "named", space, trials)
    named.folder.reports.mkdir(exist_ok=True)
    (named.folder.reports / "table-1.md").write_text(f"# {evil}")
    (named.folder.reports / "a-folder.md").mkdir()
    parts = page(named)
    assert parts.tags.count("script") == 1
    assert parts.text.count("<script>alert(1)</script>") > 10
    assert evil in parts.titles[0]
    told = write_report(page_of_stored(named), tmp_path / "out.md", format="markdown").read_text()
    outside = re.sub(r"(?ms)^(`{3,})$.*?^\1$", "", told)
    assert "<script>" not in outside.replace("\\<", "")


def test_markdown_has_the_same_numbers(study: StoredStudy, parts: Parts, tmp_path: Path) -> None:
    price = Price(per_hour=2.0, currency="CHF")
    told = write_report(page_of_stored(study), tmp_path / "report.md", format="markdown", price=price).read_text()
    plain = re.sub(r"\\(.)", r"\1", told)
    html = parts.text
    for found in ("Verdict", "What mattered", "Time and cost"):
        assert f"## {found}" in plain
    sentences = [line for line in section(parts, "Verdict", "Question and data").split("\n")[2:] if len(line) > 40]
    assert len(sentences) > 4
    assert [sentence for sentence in sentences if sentence not in plain] == []
    numbers = set(re.findall(r"\d\.\d{4}", plain))
    assert len(numbers) > 40
    assert numbers <= set(re.findall(r"\d\.\d{4}", html + "".join(parts.titles)))
    assert all(line.count("|") - line.count("\\|") == 4 for line in told.split("\n") if line.startswith("| best "))


def test_thousands_of_trials_make_a_small_file_in_seconds(tmp_path: Path) -> None:
    made = simulated(tmp_path / "few", 1000)
    trials = made.study.get_trials(deepcopy=False)
    large = stored(tmp_path / "large", made.space, (trials * 20)[:2000], histories=False)
    begun = time.perf_counter()
    file = write_report(page_of_stored(large))
    seconds = time.perf_counter() - begun
    text = file.read_text()
    assert file.stat().st_size < 2e6
    assert seconds < 40  # 20 on a machine that does nothing else
    assert "2,000" in text
    assert "400 of 2,000 trials" in text
    assert re.search(r"120 of \d,\d+ curves are drawn", text)


# ------------------------------------------------------------------------------------------------------- studies that lack something


def test_a_study_without_any_trial_has_a_report(tmp_path: Path) -> None:
    space = override(synthetic_space(27), {"study.name": "empty"})
    parts = page(stored(tmp_path / "empty", space, []))
    assert "No trial has begun yet." in parts.text
    assert parts.tags.count("section") == 16
    assert "not run yet" in parts.text


def test_a_study_of_an_earlier_version_has_a_report(tmp_path: Path) -> None:
    """No attributes, no histories, no folder: nothing but what Optuna stores."""
    made = simulated(tmp_path / "a", 300)
    bare = optuna.create_study(study_name="bare", direction="maximize")
    for trial in made.study.get_trials(deepcopy=False):
        trial.user_attrs = {key: value for key, value in trial.user_attrs.items() if key == "failure"}
        bare.add_trial(trial)
    parts = page(StoredStudy(made.folder, bare, made.space))
    assert "is not stored with this study" in parts.text
    assert "Not told" in parts.text
    elsewhere = StoredStudy(type(made.folder)(tmp_path / "elsewhere"), bare, made.space)
    output = tmp_path / "there.html"
    parts = Parts(write_report(page_of_stored(elsewhere), output).read_text())
    assert "folder is not on this machine" in parts.text
    assert "From the begin and end of each trial" in parts.text
    assert not (tmp_path / "elsewhere").exists()


def test_several_objectives_have_a_front(tmp_path: Path) -> None:
    made = simulated(tmp_path / "one", 300)
    space = override(made.space, {"study.objectives": ["val_dice", "parameters"], "study.pruner": "none", "study.name": "front"})
    whole = [t for t in made.study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.COMPLETE]
    several = [
        optuna.trial.create_trial(
            values=[t.value, 1e6 * (n + 1)], params=t.params, distributions=t.distributions, intermediate_values=t.intermediate_values
        )
        for n, t in enumerate(whole)
    ]
    made = stored(tmp_path / "front", space, several)
    parts = page(made)
    told = section(parts, "Pareto front", "Leaderboard")
    material = collect(made)
    front = re.search(r"Dice\nparameters, millions\n(.*)", told, re.S)
    assert front
    assert front[1].split("\n")[0::4][: len(material.front)] == [str(number) for number in material.front]
    assert "the search looks for several objectives" in parts.text


def test_what_is_not_finite_is_not_drawn(tmp_path: Path) -> None:
    made = simulated(tmp_path / "one", 120)
    space = override(made.space, {"study.objectives": ["val_dice", "val_hd95"], "study.pruner": "none", "study.name": "front"})
    whole = next(t for t in made.study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.COMPLETE)
    odd = [
        optuna.trial.create_trial(
            values=[0.5, distance], params=whole.params, distributions=whole.distributions, intermediate_values={1: dice, 27: 0.5}
        )
        for distance, dice in ((float("inf"), 0.1), (3.0, float("nan")))
    ]
    parts = page(stored(tmp_path / "front", space, odd))
    assert "nan" not in parts.text.lower()
    assert "has the best validation Dice: 0.5000" in section(parts, "Verdict", "Question and data")


def test_a_comparison_is_told_with_its_intervals(tmp_path: Path) -> None:
    made = simulated(tmp_path / "compared", 120)
    made.folder.reports.mkdir()
    random = np.random.default_rng(0)
    with (made.folder.reports / "compare.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["part", "configuration", "seed", "case", "group", "dice"])
        for name, mean in (("trial 5", 0.8), ("default", 0.6)):
            rows = [(part, name, seed, f"{part}{n}") for part in ("validation", "test") for seed in (0, 1, 2) for n in range(30)]
            writer.writerows([*row, row[-1], mean + random.normal(0, 0.02)] for row in rows)
    parts = page(made)
    told = section(parts, "Comparison", "Time and cost")
    verdict = section(parts, "Verdict", "Question and data")
    assert "Winner on validation: trial 5" in verdict
    assert "On the sealed test: trial 5 is better than default" in verdict
    assert re.search(r"default\n3\n0\.[56]\d{3}\n0\.\d{4} to 0\.\d{4}\n0\.[12]\d{3}\n", told)
    assert "Nobody has retrained" not in parts.text


def test_a_search_that_runs_is_marked(tmp_path: Path, home: Path) -> None:
    made = simulated(home / "studies" / "synthetic", 120)
    with made.folder.lock():
        assert make_document(page_of_stored(made)).is_running
        assert re.search(r"running, as of .* to go; driven by process \d+ on ", page(made).text)
        assert not make_document(page_of_stored(made), ended=True).is_running  # by the search itself, at its end


def test_pauses_are_no_idle_time(tmp_path: Path) -> None:
    """Two trials of an hour's quarter each, a day between them: half an hour in all, without idle time."""
    made = simulated(tmp_path / "a", 120)
    whole = [t for t in made.study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.COMPLETE][:2]
    for trial in whole:
        trial.set_user_attr("node", "one 0123")
    paused = stored(tmp_path / "b", made.space, whole)
    for number, day in ((0, 0), (1, 1)):
        write_history(paused.folder.trial(number), whole[number].intermediate_values, START.replace(day=29 + day))
    told = section(page(paused), "Time and cost", "Failures")
    assert re.search(r"search ran for\n27 min, in 2 runs", told)
    assert re.search(r"idle\n0 s of 27 min", told)


def test_what_was_stopped_at_which_rung(study: StoredStudy, parts: Parts) -> None:
    told = section(parts, "Learning curves", "What mattered")
    trials = study.study.get_trials(deepcopy=False)
    for rung in (3, 9, 27):
        best = sorted(max(v for e, v in t.intermediate_values.items() if e <= rung) for t in trials if rung in t.intermediate_values)
        here = [t for t in trials if t.state.name in ("PRUNED", "FAIL") and max(t.intermediate_values, default=0) == rung]
        row = f"\n{rung}\n{len(best)}\n{len(here)}\n{median(best):.4f}\n{best[-1]:.4f}\n"
        assert row in told


def test_the_contact_sheet_of_the_data_is_shown(study: StoredStudy, home: Path) -> None:
    study.study.set_user_attr("data_fingerprint", "f" * 64)
    file = sheet_file("f" * 64)
    file.parent.mkdir(parents=True)
    Image.new("RGB", (300, 200), (9, 90, 9)).save(file)
    assert sum(address.startswith("data:image/jpeg;base64,") for address in page(study).loads) == 2
    file.write_text("no picture")
    assert "No contact sheet" in page(study).text


def test_the_importance_of_thousands_of_trials_says_how_many_were_looked_at(tmp_path: Path) -> None:
    told = section(page(simulated(tmp_path / "many", 5000, histories=False)), "What mattered", "Settings and Dice")
    first = re.search(r"Epoch 3, ([\d,]+) trials, of which 400 were looked at: beyond noise: ", told)
    assert first
    assert int(first[1].replace(",", "")) > 600
    assert "drawn by a fixed seed, and the interval is theirs" in told
    assert re.search(r"Epoch 9, \d+ trials: ", told)  # of fewer all
