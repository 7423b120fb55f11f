"""The README's examples run as they stand."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from magi_core.cli import main
from magi_core.video import read_video

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def beside_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "storyboards", tmp_path / "storyboards")
    monkeypatch.chdir(tmp_path)


def test_the_python_example(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(import magi_core\n.*?)```", TEXT, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102 - our own README
    assert len(read_video(Path("out/story.mp4"))) == 60
    assert "it moves left" in capsys.readouterr().out


def test_the_commands() -> None:
    block = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)[2]
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert len(commands) >= 6
    for _, *words in commands:
        assert main(words) == 0, words
    assert len(read_video(Path("out/continued.mp4"))) == 48


def test_every_path_in_the_map_exists() -> None:
    house = TEXT.split("## Map of the house")[1].split("```")[1]
    names = re.findall(r"(?<![\w/])([\w./]+(?:\.py|/))(?=\s)", house.replace("magi_core/  ", "", 1))
    assert len(names) > 20
    for name in names:
        assert (ROOT / name).exists() or (ROOT / "magi_core" / name).exists(), name


def test_pictures_and_links_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / link).exists(), link
