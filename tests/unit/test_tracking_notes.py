"""Descriptions of runs: numbers of trials become addresses of MLflow, and a picture is there in a size that fits its page."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from PIL import Image
from test_tracking_mlflow import Stored, trial

from guidino_tune.tracking import MLflowTracker, StudySnapshot
from guidino_tune.tracking.client import connect
from guidino_tune.tracking.ledger import Ledger
from guidino_tune.tracking.missing import missing
from guidino_tune.tracking.notes import NOTE, addressed, link, picture


def test_numbers_of_trials_become_addresses() -> None:
    note = f"see {link(3, 'trial 3')}\n\n{picture(3, 'a-b.png')}\n\nand {link(4, '4')}.\n\n{picture(4, 'c.png')}\n\nend"
    known = {"3": "run3"}
    shown, lacking = addressed(note, "7", lambda number: known.get(number, ""))
    assert lacking
    small, page = "get-artifact?path=previews%2Fa-b.jpg&run_uuid=run3", "#/experiments/7/runs/run3"
    assert shown == f"see [trial 3]({page})\n\n[![]({small})]({page}/artifacts/pictures/a-b.png)\n\nand 4.\n\nend"
    assert addressed("no [link](elsewhere)", "7", lambda number: "") == ("no [link](elsewhere)", False)


def test_descriptions_reach_mlflow_with_the_addresses_of_its_runs(empty_mlflow: Path, tmp_path: Path) -> None:
    """The study is sent first, when the run of its best trial is not there yet: its description is sent again with the picture."""
    shutil.copy(empty_mlflow, tmp_path)
    uri, ledger, pictured = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "ledger.jsonl", tmp_path / "worst-and-best.png"
    Image.new("RGB", (1600, 800), "red").save(pictured)
    study = StudySnapshot("small", tags={NOTE: f"best: {link(5, 'trial 5')}\n\n{picture(5, pictured.name)}"}, id="one")
    tracker = MLflowTracker(uri, "notes", study, ledger, tmp_path / "artifacts")
    tracker.start()
    assert tracker.flush(30)
    seen = Stored(uri, "notes")
    assert seen.parent().data.tags[NOTE] == "best: trial 5\n\n"
    ended = trial(5, (0.5,), state="complete", tags={NOTE: f"done\n\n{picture(5, pictured.name)}"}, pictures=(pictured,))
    tracker.update(ended)
    assert tracker.close(30), tracker.message
    (run,) = seen.children()
    page = f"#/experiments/{seen.id}/runs/{run.info.run_id}"
    small = f"get-artifact?path=previews%2Fworst-and-best.jpg&run_uuid={run.info.run_id}"
    address = f"[![]({small})]({page}/artifacts/pictures/worst-and-best.png)"
    assert run.data.tags[NOTE] == f"done\n\n{address}"
    assert seen.parent().data.tags[NOTE] == f"best: [trial 5]({page})\n\n{address}"
    assert seen.files(run, "pictures") == ["pictures/worst-and-best.png"]
    assert seen.files(run, "previews") == ["previews/worst-and-best.jpg"]
    with Image.open(tmp_path / "artifacts" / run.info.run_id / "artifacts" / "previews" / "worst-and-best.jpg") as preview:
        assert preview.size == (640, 320)
    assert not missing(Ledger(ledger, read_only=True), [ended], (), uri)
    assert missing(Ledger(ledger, read_only=True), [replace(ended, tags={NOTE: "other"})], (), uri).trials == 1


def test_a_description_that_a_person_wrote_stays_and_ours_is_brought_up_to_date(empty_mlflow: Path, tmp_path: Path) -> None:
    """Also when it was there before the trial ended, and when a later version of this package words its own in another way."""
    shutil.copy(empty_mlflow, tmp_path)
    uri, ledger, client = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "ledger.jsonl", connect(f"sqlite:///{tmp_path}/mlflow.db", 5)

    def send(text: str | None) -> dict[str, str]:
        tracker = MLflowTracker(uri, "notes", StudySnapshot("small", id="one"), ledger, tmp_path / "artifacts")
        for number in range(3):
            ended = {} if text is None else {"state": "complete", "tags": {NOTE: f"{text} {link(number, 'here')}"}}
            tracker.update(trial(number, (0.5,), **ended))
        tracker.start()
        assert tracker.close(30), tracker.message
        runs = {run.data.tags["guidino.trial"]: run for run in Stored(uri, "notes").children()}
        for number, written in (("0", "mine, early" if text is None else ""), ("1", "mine, late" if text == "one" else "")):
            if written:
                client.set_tag(runs[number].info.run_id, NOTE, written)
        return {number: run.data.tags.get(NOTE, "").split(" [")[0] for number, run in sorted(runs.items())}

    assert send(None) == {"0": "", "1": "", "2": ""}
    assert send("one") == {"0": "mine, early", "1": "one", "2": "one"}
    assert send("two") == {"0": "mine, early", "1": "mine, late", "2": "two"}
    assert send("three") == {"0": "mine, early", "1": "mine, late", "2": "three"}
