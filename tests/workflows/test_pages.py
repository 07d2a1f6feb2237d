"""The shell blocks of README, docs/ and CONTRIBUTING are run line after line in a home of their own, on few images."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image
from small_searches import SPACE, study_folder

from guidino_tune.__main__ import COMMANDS, module_of
from guidino_tune.data.sources.demo import generate
from guidino_tune.space import recipes, space

ROOT = Path(__file__).parents[2]

RUN = (
    "docs/index.md", "docs/install.md", "docs/search.md", "docs/resume.md", "docs/data.md", "docs/gpus.md", "docs/simulating.md",
    "README.md", "docs/compare.md", "docs/models.md", "docs/tables.md", "CONTRIBUTING.md",
)  # fmt: skip
"""Pages whose lines are run, in an order in which each finds what it needs; a line that several show is run once."""

NOT_RUN = {
    "docs/clusters.md": "machines and clouds; tests/cluster",
    "docs/databases.md": "PostgreSQL and S3; tests/contract, test_study_postgres.py",
    "docs/reading-the-report.md": "a study of another name; test_report.py",
    "docs/searching.md": "simulations of half an hour; test_simulation.py",
    "docs/slurm.md": "Slurm; tests/cluster/long/test_slurm.py",
    "docs/team.md": "several people; test_list_and_show.py, test_backup.py",
}
"""Other pages with shell blocks, and what tests what they show."""

ELSEWHERE = {
    "make ": "it installs, or runs this test",
    ".venv/bin/ruff ": "it changes the files of the checkout; `make lint` looks at them",
    ".venv/bin/pre-commit ": "it changes the checkout's hooks",
    ".ci/run": "it runs this test",
    "guidino-tune prepare kvasir": "Internet; test_download.py",
    "guidino-tune simulate kvasir ": "a study of ten trials; the line after it simulates a table",
    "guidino-tune reproduce table1 ": "three data sets; test_reproduce.py",
    "guidino-tune ensemble kvasir": "a study of several complete trials; test_workflows_ensemble.py",
    "python kvasir-onnx/": "a program without this package; test_exports.py",
    "export MLFLOW_": "a server; test_serving.py",
    "mlflow models ": "a server; test_serving.py",
    "curl ": "a server; test_serving.py",
    "-d ": "a server; test_serving.py",
    "guidino-tune serve ": "it ends by Ctrl-C; test_serve.py",
    "PIP_": "it installs",
    "UV_": "it installs",
    "python3 -m venv ": "it installs",
    ".venv/bin/python -m pip ": "it installs",
    "source .venv/": "the environment of the tests is active",
    "cluster/": "a cluster; test_cluster_scripts.py",
    "sbatch ": "Slurm; tests/cluster/long/test_slurm.py",
}
"""Lines, by their beginning, that are not run here, and why."""

SMALLER = {
    "--trials 200": "--trials 3",
    "--seeds 20 --workers 4,16": "--seeds 2 --workers 2 --epochs 54",
    "--configurations 400 --repeat 40 --set training.epochs=27": "--configurations 2 --repeat 1 --set training.epochs=1",
    "guidino-tune compare kvasir": "guidino-tune compare kvasir --top 1 --seeds 2",
    "--seeds 3": "--seeds 2",
    "--budget tiny": "--budget tiny --dry-run --set guide.weights=random",
    "--variant reference": "--variant reference --dry-run --set guide.weights=random",
    "--image-sizes 256,512": "--image-sizes 64,96 --dry-run --set guide.weights=random",
}


def lines(page: str) -> Iterator[str]:
    """Each command of a page's shell blocks."""
    for block in re.findall(r"^```bash\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if words := re.split(r"\s+#|^#", line)[0].strip():
                yield re.sub(r"^(?:\.venv/bin/)?(?:python -m guidino_tune\.|guidino-tune )", "guidino-tune ", words)


@pytest.fixture
def sandbox(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images where the pages have them, and a small space in the place of that of Kvasir-SEG."""
    data, other = home / "datasets" / "kvasir", tmp_path / "data" / "other"  # the first is where `prepare kvasir` puts them
    for number in range(24):
        for kind, picture in zip(("images", "masks"), generate(number, 48), strict=True):
            folder = (data if number < 20 else other) / kind
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{number:02d}.jpg", quality=95)
    for copy in ("mine", "Kvasir-SEG"):
        shutil.copytree(data, tmp_path / "data" / copy)
    shutil.copytree(data / "images", tmp_path / "images")
    small = {**SPACE, "experiment": SPACE["experiment"] | {"training": SPACE["experiment"]["training"] | {"epochs": 2}}}
    small["experiment"]["data"] = SPACE["experiment"]["data"] | {"kind": "kvasir", "test_fraction": 0.2, "validation_fraction": 0.2}
    small["study"] = SPACE["study"] | {"name": "kvasir", "trials": 2}
    spaces = shutil.copytree(ROOT / "search_spaces", tmp_path / "search_spaces")
    (spaces / "kvasir.yaml").write_text(yaml.safe_dump(small))
    for module in (space, recipes):
        monkeypatch.setattr(module, "shipped", lambda: spaces)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_page_with_a_shell_block_is_run_or_says_why_not() -> None:
    pages = {page.relative_to(ROOT).as_posix() for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))}
    assert {page for page in pages if "\n```bash\n" in (ROOT / page).read_text(encoding="utf-8")} == {*RUN, *NOT_RUN}


def test_the_shell_blocks_of_the_pages_run(home: Path, sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left, larger, ran = set(ELSEWHERE), set(SMALLER), set()
    for line in dict.fromkeys(line for page in RUN for line in lines(page)):
        if reason := next((begin for begin in ELSEWHERE if line.startswith(begin)), None):
            left.discard(reason)
            continue
        command = line
        for text in [text for text in SMALLER if text in command]:
            larger.discard(text)
            command = command.replace(text, SMALLER[text])
        command = command.replace("/data/", f"{sandbox}/data/")
        if (best := study_folder(home, "kvasir").best).exists():
            number = yaml.safe_load(best.read_text())["provenance"]["trial"]
            command = command.replace("~/guidino_tune/retrained/kvasir-12/", f"{home}/retrained/kvasir-{number}/")
        program, name, *words = shlex.split(command)
        assert (program, name in COMMANDS) == ("guidino-tune", True), line
        code = importlib.import_module(f"guidino_tune.{module_of(name)}").main(words)
        assert code == 0 or (name == "doctor" and code == 1), (command, capsys.readouterr())  # it tells what is missing here
        ran.add(name)
    assert (left, larger) == (set(), set())  # what no page shows any more
    assert set(COMMANDS) - ran == {
        "prepare",
        "track",
        "reproduce-trial",
        "serve",
        "ui",
        "delete",
        "completion",
    }  # shown beside the text alone
