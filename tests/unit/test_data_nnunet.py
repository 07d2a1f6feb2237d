"""nnU-Net's raw layout, and what a data set tells of itself."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from layout_helpers import advised, found, touch
from PIL import Image
from rich.console import Console

from guidino_tune.config import Data
from guidino_tune.data.cases import Case, Listing
from guidino_tune.data.sources import apply_implied, find_cases
from guidino_tune.data.splits import fold_of, fold_splits, make_split
from guidino_tune.errors import UserError
from guidino_tune.space.space import load_space, override, read_space
from guidino_tune.workflows.doctor import look_at_space
from guidino_tune.workflows.dry_run import show_plan
from guidino_tune.workflows.resolve import resolve_data


def nnunet(root: Path, names: list[str], channels: int = 2, end: str = ".png", **described) -> None:
    for name in names:
        touch(root, *(f"imagesTr/{name}_{c:04}{end}" for c in range(channels)), f"labelsTr/{name}{end}")
    names = {str(c): f"T{c}" for c in range(channels)}
    (root / "dataset.json").write_text(json.dumps({"channel_names": names, "labels": {"background": 0, "lesion": 1}} | described))


def test_nnunet_raw(tmp_path):
    nnunet(tmp_path, [f"pat_{n:03}" for n in range(20)], 3, labels={"background": 0, "core": 1, "edema": [2, 3], "ignore": 4})
    listing = found(tmp_path)
    assert listing.cases[4] == Case(
        "pat_004",
        tmp_path / "imagesTr/pat_004_0000.png",
        tmp_path / "labelsTr/pat_004.png",
        "pat_004",
        (tmp_path / "imagesTr/pat_004_0001.png", tmp_path / "imagesTr/pat_004_0002.png"),
    )
    assert listing.implied == {"channels": 3, "labels": {"core": 1, "edema": [2, 3]}, "ignore_label": 4}
    assert listing.notes == (
        "layout: nnU-Net raw, 20 cases",
        "dataset.json tells: 3 channels (T0, T1, T2); labels core = 1, edema = 2 or 3; ignore label 4",
    )


def test_nnunet_test_and_folds(tmp_path):
    names = [f"c{n}_0001" for n in range(10)]
    nnunet(tmp_path, names, 1)
    folds = [{"train": names[:8], "val": names[8:]}, {"train": names[2:], "val": names[:2]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    touch(tmp_path, "imagesTs/c0_0001_0000.png", "imagesTs/x_0000.png")
    listing = found(tmp_path)
    assert sorted(listing.published.values()) == ["train"] * 8 + ["validation"] * 2
    assert any("2 files of imagesTs have no labels" in note for note in listing.notes)
    touch(tmp_path, "labelsTs/c0_0001.png", "labelsTs/x.png")
    second = found(tmp_path, folds=2, fold=1)
    assert {name for name, part in second.published.items() if part == "validation"} == set(names[:2])
    assert {name for name, part in second.published.items() if part == "test"} == {"test/c0_0001", "test/x"}
    assert "channels" not in second.implied  # grey, as of any grey image
    with pytest.raises(UserError, match=r"publishes 2 folds, but data\.folds is 9") as caught:
        found(tmp_path, folds=9, fold=1)
    assert advised(caught.value.todo) == [{"folds": 2}]


def test_published_folds_are_those_of_the_cross_validation(tmp_path):
    names = [f"c{n}" for n in range(20)]
    nnunet(tmp_path, names, 1)
    folds = [{"train": [n for n in names if n not in names[k::5]], "val": names[k::5]} for k in range(5)]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    listing = found(tmp_path)
    assert "--set data.folds=5 --set data.fold=1" in listing.notes[0]
    tests = set()
    for fold in range(5):
        data = Data(kind="folder", root=str(tmp_path), folds=5, fold=fold)
        listing = find_cases(data)
        split = make_split(listing, data)
        tests.add(split.test)
        assert set(split.validation) == set(names[fold::5]) - set(split.test)
        assert fold_of(split) == (fold, 5)
    assert len(tests) == 1, "one test for all folds"
    again = fold_splits(listing, split, 5, 0, stratify=False, sizes={})
    assert [set(one.validation) for one in again] == [set(names[fold::5]) - set(split.test) for fold in range(5)]


def test_nnunet_as_the_decathlon_wrote_it(tmp_path):
    nnunet(tmp_path, ["la_003", "la_004"], 1, ".png")
    for path in (tmp_path / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace("_0000", "")))
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "atrium", "2": "wall"}}')
    listing = found(tmp_path)
    assert [case.id for case in listing.cases] == ["la_003", "la_004"]
    assert listing.implied == {"labels": {"atrium": 1, "wall": 2}}


def test_nnunet_below_the_root_is_named(tmp_path):
    nnunet(tmp_path / "nnUNet_raw" / "Dataset001_X", ["a", "b"])
    with pytest.raises(UserError, match="holds 1 data set in nnU-Net's raw layout: Dataset001_X") as caught:
        found(tmp_path)
    assert f"--data-root {tmp_path}/nnUNet_raw/Dataset001_X" in caught.value.todo


def test_nnunet_cases_that_are_not_whole(tmp_path):
    nnunet(tmp_path, ["a", "b", "c", "d"])
    (tmp_path / "imagesTr/b_0001.png").unlink()
    (tmp_path / "labelsTr/c.png").unlink()
    with pytest.raises(UserError, match=r"b lacks channel 0001 \(and 1 more cases like it\)"):
        found(tmp_path)
    listing = found(tmp_path, bad_cases="skip")
    assert [case.id for case in listing.cases] == ["a", "d"]
    assert "left out c: has no label in labelsTr" in listing.notes
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "CT"}, "labels": {}}')
    with pytest.raises(UserError, match=r"names 1 channels \(CT\), but the cases have 2 files each"):
        found(tmp_path, bad_cases="skip")


def test_nnunet_regions_that_overlap_need_classes(tmp_path):
    nnunet(tmp_path, ["a", "b"], labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3]})
    with pytest.raises(UserError, match="regions that overlap") as caught:
        found(tmp_path)
    [offer] = advised(caught.value.todo)
    listing = found(tmp_path, **offer)
    assert listing.implied == {"channels": 2}
    assert list(offer["labels"]) == ["class 1", "class 2", "class 3"]


@pytest.mark.parametrize("text", ["[", "[1]", '{"labels": [1]}', '{"labels": {"a": "b"}}', '{"channel_names": [1]}'])
def test_a_damaged_description_is_named(tmp_path, text):
    nnunet(tmp_path, ["a", "b"])
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UserError) as caught:
        found(tmp_path)
    assert "dataset.json" in caught.value.where


def listing(**implied) -> Listing:
    case = Case("a", Path("a.png"), Path("b.png"), "a")
    return Listing((case,), implied=implied)


def test_what_is_told_fills_what_is_not_said():
    told = listing(channels=2, labels={"core": 1, "edema": [[2] * 3, [3] * 3, [4] * 3]}, ignore_label=5)
    data = apply_implied(Data(kind="folder", image_size=64), told)
    values = {"core": 1, "edema": [[2] * 3, [3] * 3, [4] * 3]}  # three numbers alone would be a colour
    assert data == Data(kind="folder", image_size=64, channels=2, labels=values, ignore_label=5)
    assert replace(data, image_size=32).labels == {"core": (1,), "edema": (2, 3, 4)}
    assert apply_implied(data, told) == data
    assert apply_implied(Data(kind="folder"), listing()) == Data(kind="folder")


def test_classes_may_be_named_otherwise_but_not_by_unknown_values():
    told = listing(labels={"core": 1, "edema": 2})
    own = Data(kind="folder", labels={"tumour": [1, 2]})
    assert apply_implied(own, told) == own
    with pytest.raises(UserError, match="names the value 3, which the data set does not know: core = 1, edema = 2"):
        apply_implied(Data(kind="folder", labels={"tumour": [1, 3]}), told)


@pytest.mark.parametrize(
    ("said", "told", "where"),
    [
        ({"channels": 4}, {"channels": 2}, "data.channels"),
        ({"ignore_label": 255}, {"ignore_label": 3}, "data.ignore_label"),
        ({"num_classes": 3}, {"labels": {"a": 1, "b": 2}}, "data.num_classes"),
    ],
)
def test_a_contradiction_is_named(said, told, where):
    with pytest.raises(UserError) as caught:
        apply_implied(Data(kind="folder", **said), listing(**told))
    assert caught.value.where == where


def test_a_search_is_planned_with_what_the_data_set_tells(tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path / "home"))
    nnunet(tmp_path / "raw", [f"c{n:03}" for n in range(20)], labels={"background": 0, "core": 1, "rim": [2, 3, 4], "ignore": 9})
    space = override(load_space("kvasir"), ["data.kind=folder", f"data.root={tmp_path / 'raw'}", "guide.kind=none"])
    resolved = resolve_data(space)
    data = resolved.base.data
    assert (data.channels, data.class_names, data.num_classes, data.ignore_label) == (2, ("core", "rim"), 2, 9)
    again = read_space(resolved.to_dict(), source="study.yaml")  # as a study keeps it
    assert again.base == resolved.base
    assert again.base.data.labels == {"core": (1,), "rim": (2, 3, 4)}
    assert resolve_data(resolved) is resolved
    for number, file in enumerate(sorted((tmp_path / "raw").rglob("*.png"))):  # a plan reads them
        values = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        if file.parent.name == "labelsTr":
            values = np.repeat(np.array([0, 1, 2, 3, 4, 9, 0, 1], np.uint8)[None], 8, 0)
        Image.fromarray(values).save(file)
    console = Console(record=True, width=200)
    from guidino_tune.space.check import without_idle

    show_plan(without_idle(space), console)
    text = console.export_text()
    for part in ("channels: 2", "note: layout: nnU-Net raw, 20 cases", "note: dataset.json tells: 2 channels (T0, T1)"):
        assert part in text


def test_the_doctor_sees_a_contradiction_too(tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDINO_TUNE_HOME", str(tmp_path / "home"))
    nnunet(tmp_path / "raw", [f"c{n:03}" for n in range(20)])
    file = tmp_path / "space.yaml"
    text = "experiment: {data: {kind: folder, root: ROOT, channels: 3}, guide: {kind: none}}\n"
    text = text.replace("ROOT", str(tmp_path / "raw")) + "space: {training.lr: {type: float, low: 0.001, high: 0.01}}\n"
    file.write_text(text)
    assert [finding.mark for finding in look_at_space(str(file))] == ["ok"]
    file.write_text(text.replace("channels: 3", "channels: 5"))
    assert any("is 5, but the data set tells 2" in finding.found for finding in look_at_space(str(file)))
