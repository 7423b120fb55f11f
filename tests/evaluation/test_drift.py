"""Drift is seen where it begins, and of what kind it is; the truth has none."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magi_core.cli import main
from magi_core.errors import MagiError
from magi_core.evaluation.cases import Request
from magi_core.evaluation.drift import Drift, build_stories, drift_markdown, score_drift
from magi_core.images import Frames
from magi_core.worlds.clips import CHUNK_FRAMES, render
from magi_core.worlds.shapes import COLOURS, SHAPES

pytest.importorskip("cv2", reason="OpenCV is not installed; pip install 'comfyui-magi[evaluation]'")

COUNT, SECONDS = 4, 6


def seen(spoil: Callable[[Frames], Frames] = lambda frames: frames, world: str = "narrow") -> list[Drift]:
    """What is found where a model that knows the truth spoils the seconds from the fourth on."""
    stories = {case.request.seed: case for case in build_stories(world, COUNT, SECONDS)}

    def generate(requests: Sequence[Request]) -> list[Frames]:
        frames = render(stories[requests[0].seed].clip)
        return [np.concatenate([frames[: 3 * CHUNK_FRAMES], spoil(frames[3 * CHUNK_FRAMES :])])]

    return score_drift(generate, world, COUNT, SECONDS)


def shares(rows: list[Drift], name: str) -> list[float]:
    return [getattr(row, name).value for row in rows]


@pytest.mark.parametrize("world", ["narrow", "full"])
def test_the_truth_does_not_drift(world: str) -> None:
    rows = seen(world=world)
    assert all(shares(rows, name) == [1.0] * SECONDS for name in ("colour", "shape", "whole", "direction"))
    assert "**" not in drift_markdown(rows)


def test_each_drift_is_seen_where_it_begins() -> None:
    """Channels turned around, a second object half a frame away, nothing at all, and the same picture again and again."""
    late = [1.0] * 3
    turned = seen(lambda frames: np.roll(frames, 1, axis=3))
    assert shares(turned, "colour")[:3] == late and max(shares(turned, "colour")[3:]) < 0.5
    assert shares(turned, "shape") == [1.0] * SECONDS
    doubled = seen(lambda frames: np.maximum(frames, np.roll(frames, 32, axis=2)))
    assert shares(doubled, "whole")[:3] == late and max(shares(doubled, "whole")[3:]) == 0
    assert set(shares(seen(np.zeros_like), "colour")[3:]) == {0.0}
    assert min(shares(seen(lambda frames: np.repeat(frames[:1], len(frames), 0)), "direction")[3:]) < 1
    assert drift_markdown(turned).count("**") >= 2


def test_every_second_may_say_what_is_seen() -> None:
    for case in build_stories("full", 6, 5, "every"):
        assert all(case.clip.shape in text and case.clip.phases[0].colour in text for text in case.request.prompts)


def test_only_the_first_second_says_what_is_seen() -> None:
    for case in build_stories("full", 12, 5):
        first, *later = case.request.prompts
        assert case.clip.shape in first and case.clip.phases[0].colour in first
        assert not any(word in text for text in later for word in (*SHAPES, *COLOURS, "black", "white", "gray"))
        assert len({phase.colour for phase in case.clip.phases}) == 1
    assert len({phase.motion for case in build_stories("full", 4, 9) for phase in case.clip.phases}) > 3
    for wrong in ((0, 5), (5, 0)):
        with pytest.raises(MagiError, match="at least 1"):
            score_drift(lambda requests: [], "narrow", *wrong)
    with pytest.raises(MagiError, match="narrow"):
        next(build_stories("flat", 1, 1))


def test_the_command(tmp_path: Path) -> None:
    command = ["drift", "--count", "1", "--seconds", "3", "--steps", "4", "--history-guidance", "2"]
    assert main([*command, "-o", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "drift.json").read_text())
    assert figures["settings"]["sampling"]["prev_chunk_scales"] == [2, 2, 2, 1, 1]
    assert len(figures["seconds"]) == 3 and figures["seconds"][0]["colour"]["total"] == 1
    assert (tmp_path / "drift.png").exists() and (tmp_path / "drift.md").read_text().count("\n| ") == 3
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "report.html")]) == 0
    assert "Long videos in the synthetic world: nano</h2>" in (tmp_path / "report.html").read_text()


def test_the_command_takes_what_generate_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["drift", "--count", "1", "--seconds", "2"]
    assert main([*short, "--steps", "4", "--devices", "cpu,cpu", "-o", str(tmp_path / "both")]) == 0
    assert main([*short, "--steps", "4", "-o", str(tmp_path / "one")]) == 0
    both, one = (np.asarray(Image.open(tmp_path / name / "drift.png"), float) for name in ("both", "one"))
    assert np.abs(both - one).max() <= 2
    assert main([*short, "--steps", "3", "-o", str(tmp_path)]) == 2
    assert "not a multiple of window_size 4" in capsys.readouterr().err
    assert main([*short, "--steps", "4", "--window", "2", "--reuse", "-1", "-o", str(tmp_path)]) == 2
    assert "reuse" in capsys.readouterr().err
