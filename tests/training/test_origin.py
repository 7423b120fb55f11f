"""The same command goes on with a run; another one does not take it for its own, nor replaces what it did not make."""

from __future__ import annotations

from pathlib import Path

import pytest

from magi_core.errors import MagiError
from magi_core.training.origin import claim

TRAIN = {"command": "train", "start": "nothing"}


def test_only_the_run_itself_goes_on(tmp_path: Path) -> None:
    claim(tmp_path, tmp_path / "training", TRAIN)
    (tmp_path / "config.json").write_text("{}")
    claim(tmp_path, tmp_path / "training", TRAIN)
    with pytest.raises(MagiError, match=r"begun with start nothing instead of nano\. Choose another --output"):
        claim(tmp_path, tmp_path / "training", {**TRAIN, "start": "nano"})
    with pytest.raises(MagiError, match=r"begun with command train instead of distill; teacher None instead of nano"):
        claim(tmp_path, tmp_path / "training", {"command": "distill", "teacher": "nano"})


@pytest.mark.parametrize("name", ["star.safetensors", "model/config.json", "star/adapter_config.json"])
def test_what_no_run_has_made_is_not_replaced(tmp_path: Path, name: str) -> None:
    made = tmp_path / name
    made.parent.mkdir(exist_ok=True)
    made.write_text("kept")
    target = made if made.suffix == ".safetensors" else made.parent
    with pytest.raises(MagiError, match="is there already, and no run of this command makes it"):
        claim(target, tmp_path / "work", TRAIN)
    assert made.read_text() == "kept" and not (tmp_path / "work").exists()


def test_a_run_from_before_it_was_noted_goes_on(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "dit.safetensors").write_text("")
    claim(tmp_path, tmp_path / "training", TRAIN)
    claim(tmp_path, tmp_path / "training", TRAIN)


def test_a_folder_that_cannot_be_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MagiError, match=r"cannot make the folder .*Choose another --output"):
        claim(tmp_path / "file" / "out", tmp_path / "file" / "out" / "training", TRAIN)
