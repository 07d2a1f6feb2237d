"""Odd files and odd command lines: YAML's own traps, typing errors, paths that cannot be. See ``test_fuzz_configuration``."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz_helpers import FULL, SPACE, TEXT, checked, examples
from hypothesis import assume, given
from hypothesis import strategies as st

from guidino_tune import search
from guidino_tune.config import Experiment
from guidino_tune.config.parsing import MAX_BYTES, read_yaml
from guidino_tune.errors import UserError
from guidino_tune.space.parameters import leaf_paths
from guidino_tune.space.space import read_space

# --------------------------------------------------------------------------------------------------------------- YAML's own traps

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
ODDITIES: dict[str, tuple[str | bytes, str]] = {
    "a billion laughs": (f"{LAUGHS}data: {{kind: *i}}", "more than 100000 values"),
    "a mapping in itself": ("data: &a {kind: demo, root: *a}", "line 1: an alias stands inside what it names"),
    "a list in itself": ("data: &a [*a]", "an alias stands inside"),
    "merged laughs": ("a: &a {x: 1}\nb: &b {<<: [*a, *a, *a]}\ndata: {<<: [*b, *b], kind: demo}", "'a'"),
    "an unknown alias": ("data: *a", "line 1: found undefined alias"),
    "merging a number": ("data: {<<: 5, kind: demo}", "line 1: expected a mapping"),
    "a name twice": ("data: {kind: demo, kind: demo}", "line 1: the name 'kind' stands twice"),
    "a list as a name": ("data: {[a, b]: demo}", "line 1: found unhashable key"),
    "a mapping as a name": ("data: {{a: b}: demo}", "line 1: found unhashable key"),
    "a tab": ("data:\n\tkind: demo", "line 2"),
    "a tag of Python": ("data: !!python/object/apply:os.system ['touch owned']", "line 1: could not determine a constructor"),
    "an unknown tag": ("data: !mine {kind: demo}", "line 1: could not determine a constructor"),
    "an impossible date": ("data: {kind: 2020-13-41}", "line 1: '2020-13-41' is no timestamp"),
    "an impossible time": ("data: {kind: 2020-01-01T99:99:99Z}", "is no timestamp"),
    "a date": ("data: {kind: 2020-01-01}", "'data.kind'"),
    "a hexadecimal number without digits": ("data: {kind: demo, split_seed: 0x_}", "line 1: '0x_' is no int"),
    "a number that is none": ("data: {kind: demo, split_seed: !!int x}", "'x' is no int"),
    "a number that is empty": ("data: {kind: demo, split_seed: !!int ''}", "'' is no int"),
    "a switch that is none": ("data: {kind: demo, group_duplicates: !!bool x}", "'x' is no bool"),
    "a time that is none": ("data: {kind: !!timestamp x}", "'x' is no timestamp"),
    "five thousand digits": (f"data: {{kind: demo, split_seed: {'9' * 5000}}}", "is no int"),
    "yes for a number": ("data: {kind: demo, split_seed: yes}", "'data.split_seed' = True"),
    "on for a name": ("data: {on: demo}", "'data.kind' is missing"),
    "a set": ("data: !!set {kind}", "'data' = {'kind'}"),
    "bytes": ("data: {kind: !!binary aGVsbG8=}", "'data.kind' = b'hello'"),
    "two documents": ("data: {kind: demo}\n---\ndata: {kind: demo}", "found another document"),
    "another version of YAML": ("%YAML 9.9\n---\ndata: {kind: demo}", "incompatible"),
    "a character that is none": ('data: {kind: "\\UFFFFFFFF"}', "is no valid YAML"),
    "brackets without end": ("data: " + "[" * 3000, "nested too deeply"),
    "indented without end": ("\n".join(" " * i + "a:" for i in range(1500)), "nested too deeply"),
    "a NUL in a path": ('data: {kind: demo, root: "a\\0b"}', "'data.root'"),
    "half a character in a path": ('data: {kind: demo, root: "\\ud800"}', "'data.root'"),
    "a path without end": (f"data: {{kind: demo}}\nguide: {{kind: dino, backbone: {'a' * 10000}}}", "'guide.backbone'"),
    "a value without end": (f"data: {{kind: {'ä' * 10000}}}", "'data.kind'"),
    "UTF-16": ("data: {kind: demo}".encode("utf-16"), "cannot be read"),
    "no text": (bytes(range(256)), "cannot be read"),
    "too large": (b"# \n" * (MAX_BYTES // 3 + 1), "larger than 10 MB"),
}  # fmt: skip


@pytest.mark.parametrize("oddity", ODDITIES)
def test_odd_files_are_told_with_their_name_and_line(tmp_path: Path, oddity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, part = ODDITIES[oddity]
    file = tmp_path / "mine.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        Experiment.from_yaml(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert part in str(caught.value)
    assert len(str(caught.value)) < 2500
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_and_an_endless_device_in_the_place_of_a_file(tmp_path: Path) -> None:
    for path, part in ((tmp_path, "cannot be read"), (Path("/dev/zero"), "larger than 10 MB"), (Path("/dev/null"), "holds no mapping")):
        with pytest.raises(UserError, match=part) as caught:
            read_yaml(path)
        assert str(path) in str(caught.value)


TOKENS = [
    "\t", "&a ", "*a", "<<: ", "!!python/name:os.system ", "!!int ", "!!set ", "!!binary ", "{", "}", "[", "]", ": ", "- ", "\n", "\n  ",
    '"', "'", "|", ">", "%", "@", "`", "#", ", ", "? ", "...\n", "---\n", "\x00", "\ufeff", "\u2028", "\x85", "é", "0x_", "2020-13-41",
    ".nan", ".inf", "1e999", "~", "on", "null", "-1", "9" * 50, "\\", '"\\UFFFFFFFF"',
]  # fmt: skip


@given(edits=st.lists(st.tuples(st.integers(0, len(TEXT)), st.integers(0, 6), st.sampled_from(TOKENS)), min_size=1, max_size=4))
@examples(50)
def test_a_text_with_typing_errors_is_a_space_or_a_message(tmp_path: Path, edits: list[tuple[int, int, str]]) -> None:
    text = TEXT
    for place, removed, token in edits:
        text = text[:place] + token + text[place + removed :]
    file = tmp_path / "mine.yaml"
    file.write_bytes(text.encode())
    message = str(file)
    try:
        checked(file)
    except UserError as error:
        message = str(error)
    assert message.startswith(str(file))


def test_the_text_without_typing_errors_is_a_space(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(TEXT)
    checked(tmp_path / "mine.yaml")
    read_space(SPACE, source="demo")


# ------------------------------------------------------------------------------------------------------------------ command line


RAW = [
    "[]", "{}", "[1, x]", ".nan", ".inf", "-1", "9" * 400, "2020-13-41", "0x_", "!!int x", "!!python/none x", "*a", "{", '"\\UFFFFFFFF"',
    "[" * 2000, "&a [*a]",
]  # fmt: skip


@given(
    path=st.sampled_from([*leaf_paths(FULL), "study.trials", "study.sampler", "resources.workers", "resources.share_views"]),
    raw=st.sampled_from(RAW),
)
@examples(25)
def test_a_wrong_value_on_the_command_line_ends_with_one_message(
    capsys: pytest.CaptureFixture[str], home: Path, path: str, raw: str
) -> None:
    assume(not path.startswith("segmenter.") or path == "segmenter.kind")  # the demo's is another one
    assume(path not in ("data.root", "guide.backbone"))  # any text is a path
    assert search.main(["demo", "--dry-run", "--set", f"{path}={raw}"]) == 2
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert shown.err.count("error: ") == 1
    assert path.rpartition(".")[2] in shown.err
    assert shown.out == ""
    assert not home.exists()


@pytest.mark.parametrize(
    "text", ["", "=", "=5", ".=5", "training=5", "training.=5", "training.lr.x=5", "experiment.training.lr=5", "study=5", "ä=5", "a" * 5000]
)
def test_a_wrong_path_on_the_command_line_ends_with_one_message(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert search.main(["demo", "--dry-run", "--set", text]) == 2
    shown = capsys.readouterr().err
    assert shown.count("error: ") == 1
    assert "Traceback" not in shown


@pytest.mark.parametrize("root", ["a" * 5000, "a" * 300, "/dev/null/x"])
def test_a_path_that_cannot_be_ends_with_one_message(capsys: pytest.CaptureFixture[str], root: str) -> None:
    assert search.main(["demo", "--dry-run", "--set", "data.kind=folder", "--data-root", root]) == 2
    shown = capsys.readouterr().err
    assert shown.count("error: ") == 1
    assert "Traceback" not in shown
