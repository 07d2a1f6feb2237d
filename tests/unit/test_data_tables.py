"""Tables of cases: CSV and JSON lines, with messages that name line and column."""

import json

import pytest
from layout_helpers import advised, files, found, touch

from guidino_tune.errors import UserError


def write(root, text, name="cases.csv"):
    touch(root, *(f"data/{n}.png" for n in "abcdef"), *(f"truth/{n}_{i}.png" for n in "abcdef" for i in (1, 2)), "data/a2.tif")
    (root / name).write_text(text, encoding="utf-8")
    return root / name


TABLE = """\
Image,mask,group,split,scanner
data/a.png,truth/a_1.png; truth/a_2.png,P1,train,x
data/b.png,truth/b_1.png,P1,Training,y

data/c.png,truth/c_1.png,P2,val,y
data/d.png,truth/d_1.png,,test,x
"""


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_table_tells_images_masks_groups_and_split(tmp_path, bom, line_end):
    path = write(tmp_path, bom + TABLE.replace("\n", line_end))
    for root in (tmp_path, path):
        listing = found(root)
        assert files(listing, tmp_path)["a"] == (["data/a.png"], ["truth/a_1.png", "truth/a_2.png"])
        assert [case.group for case in listing.cases] == ["P1", "P1", "P2", "d"]
        assert listing.published == {"a": "train", "b": "train", "c": "validation", "d": "test"}
        assert listing.notes[0] == (
            "layout: table cases.csv, 4 cases; column group is the group (3); column split publishes test 1, train 2, validation 1"
        )
    assert [case.group for case in found(path, group="scanner").cases] == ["x", "y", "y", "x"]
    assert {case.group for case in found(path, group="data/(.)").cases} == set("abcd")


def test_json_lines_tabs_and_several_channels(tmp_path):
    rows = [{"image": [f"data/{n}.png", f"data/{m}.png"], "mask": f"truth/{n}_1.png", "patient": 7, "split": None} for n, m in ("ab", "cd")]
    listing = found(write(tmp_path, "\n".join(map(json.dumps, rows)), "mine.jsonl"), group="patient")
    assert files(listing, tmp_path)["c"][0] == ["data/c.png", "data/d.png"]
    assert listing.implied == {"channels": 2}
    assert {case.group for case in listing.cases} == {"7"}
    text = "image\tmask\ndata/a.png;data/b.png\ttruth/a_1.png\n"
    assert found(write(tmp_path, text, "mine.tsv")).implied == {"channels": 2}


def test_paths_may_be_absolute_and_ids_named(tmp_path):
    path = write(tmp_path / "set", "")
    table = tmp_path / "elsewhere.csv"
    table.write_text(f"id,image,mask\none,{path.parent}/data/a.png,set/truth/a_1.png\ntwo,set/data/b.png,set/truth/b_2.png\n")
    assert [case.id for case in found(table).cases] == ["one", "two"]


def test_equal_stems_are_two_cases(tmp_path):
    touch(tmp_path, "a.png", "a.tif", "m.png")
    (tmp_path / "cases.csv").write_text("image,mask\na.png,m.png\na.tif,m.png\n")
    assert [case.id for case in found(tmp_path).cases] == ["a.png", "a.tif"]


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("", "cases.csv", "has no column 'image'"),
        ("images,mask\nx,y", "cases.csv", "has no column 'image'; did you mean 'images'?"),
        ("image;mask\nx;y", "cases.csv, line 1", "semicolons"),
        ("image,mask,mask\nx,y,z", "cases.csv, line 1", "two columns are called 'mask'"),
        ("image,mask\ndata/z.png,truth/a_1.png", "cases.csv, line 2, column image", "there is no file"),
        ("image,mask\ndata/a.png,truth/a_1.png;truth/zz.png", "cases.csv, line 2, column mask", "there is no file"),
        ("image,mask\n\ndata/a.png,", "cases.csv, line 3, column mask", "is empty"),
        ("image,mask,split\ndata/a.png,truth/a_1.png,tset", "cases.csv, line 2, column split", "'tset' is no part"),
        ("image,mask\ndata/a.png,truth/a_1.png\ndata/a.png,truth/a_2.png", "cases.csv, line 3, column image", "is that of line 2 too"),
        ("image,mask\ndata/a.png,truth/a_1.png\ndata/b.png;data/c.png,truth/b_1.png", "line 3, column image", "has 2 files"),
        ("image,mask\ndata/a.png,truth/a_1.png,x,y", "cases.csv, line 2", "has 4 values for 2 columns"),
        ("image,mask\ncases.csv,truth/a_1.png", "cases.csv, line 2, column image", "no ending of an image"),
        ("image,mask", "cases.csv", "has no column"),
    ],
)  # fmt: skip
def test_mistakes_are_named_by_line_and_column(tmp_path, text, where, what):
    write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        found(tmp_path)
    assert where in caught.value.where
    assert what in caught.value.what


@pytest.mark.parametrize("text", ["[1]", "{", '{"image": {"a": 1}, "mask": "b"}', "nonsense"])
def test_mistakes_in_json_lines(tmp_path, text):
    path = write(tmp_path, '{"image": "data/a.png", "mask": "truth/a_1.png"}\n' + text, "cases.jsonl")
    with pytest.raises(UserError) as caught:
        found(path)
    assert "cases.jsonl, line 2" in caught.value.where


def test_lines_without_files_are_left_out_whole(tmp_path):
    write(tmp_path, "image,mask\ndata/a.png,truth/a_1.png;truth/zz.png\ndata/b.png,truth/b_1.png\n")
    listing = found(tmp_path, bad_cases="skip")
    assert [case.id for case in listing.cases] == ["b"]
    assert "left out 1 lines: line 2, column mask" in listing.notes[1]


def test_two_tables_and_files_that_are_none(tmp_path):
    path = write(tmp_path, TABLE)
    (tmp_path / "cases.jsonl").write_text("")
    with pytest.raises(UserError, match=r"holds cases\.csv and cases\.jsonl"):
        found(tmp_path)
    assert len(found(path).cases) == 4
    with pytest.raises(UserError, match="is no folder and no table"):
        found(tmp_path / "data" / "a.png")


def test_columns_that_are_not_read_are_told_with_what_they_may_be_for(tmp_path):
    lines = [f"data/{n}.png,truth/{n}_1.png,P{i // 2},{i}" for i, n in enumerate("abcdef")]
    path = write(tmp_path, "\n".join(["image,mask,patient_id,age", *lines]))
    [note] = [note for note in found(path).notes if "not used" in note]
    assert "patient_id, age" in note
    followed = found(path, **advised(note)[0])
    assert {case.group for case in followed.cases} == {"P0", "P1", "P2"}


def test_a_mask_of_several_images_is_told(tmp_path):
    listing = found(write(tmp_path, "image,mask\n" + "".join(f"data/{n}.png,truth/a_1.png\n" for n in "abc")))
    assert any("a_1.png to 3" in note for note in listing.notes)


def test_a_path_as_windows_writes_it_is_named_so(tmp_path):
    with pytest.raises(UserError, match="there is no file") as caught:
        found(write(tmp_path, "image,mask\ndata\\a.png,truth\\a_1.png\n"))
    assert "write / between folders" in caught.value.todo
