"""The commands of evaluation, one after the other as a person calls them: magi-nano predicts, is scored, and reported on one page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magi_core.cli import main
from magi_core.evaluation.report_page import curve_svg, to_html
from magi_core.video import VideoWriter, read_video

pytest.importorskip("cv2", reason="OpenCV is not installed; pip install 'comfyui-magi[evaluation]'")

STUDENT = Path(__file__).parents[2] / "assets" / "nano-distilled"
NAMES = [f"{number:04}_{{}}_perspective-{side}_take-{take}_trimmed-dot.mp4" for number, side, take in
         ((1, "left", 1), (2, "center", 1), (3, "left", 2), (4, "center", 2))]  # fmt: skip


@pytest.fixture
def benchmark(tmp_path: Path) -> Path:
    """Two videos to predict; what is given of the second is missing."""
    columns = np.arange(64)
    rows = ["scenario,description,category"]
    for name in NAMES:
        frames = np.zeros((120, 64, 64, 3), np.uint8)
        for t in range(120):
            frames[t, 24:40, np.abs(columns - 10 - t // 3) < 8] = (235, 50, 50)
        with VideoWriter(tmp_path / "split-videos/testing/24FPS" / name.format("testing-videos_24FPS")) as writer:
            writer.append(frames)
        rows.append(f"{name.replace('_{}', '')},a red square moves right,Solid Mechanics")
    given = NAMES[0].format("conditioning-videos_24FPS")
    with VideoWriter(tmp_path / "split-videos/conditioning/24FPS" / given) as writer:
        writer.append(np.repeat(frames[:1], 72, axis=0))
    (tmp_path / "descriptions.csv").write_text("\n".join(rows))
    return tmp_path


def test_predict_score_measure_and_report(benchmark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = benchmark / "out"
    command = ["physics-iq", str(benchmark), "--steps", "4", "-o", str(out)]
    assert main(command) == 1  # one could not be made, and is named
    said = capsys.readouterr()
    assert "0002_perspective-center_trimmed-dot.mp4 was not made" in said.err and "Only 1 of" in said.out
    video = out / "physics-iq-videos" / "0001_perspective-left_trimmed-dot.mp4"
    assert read_video(video).shape == (120, 64, 64, 3)
    made = video.stat().st_mtime_ns
    figures = json.loads((out / "physics-iq.json").read_text())
    assert figures["scores"]["all"]["views"] == 1 and figures["settings"]["sampling"]["num_steps"] == 4
    assert main(command) == 1 and video.stat().st_mtime_ns == made
    assert main([*command, "--reuse", "0.1"]) == 2  # other settings, although the model is the same
    assert "was made with another model or other settings" in capsys.readouterr().err
    assert main(["physics-iq", str(benchmark), "--score-only", str(video.parent), "--count", "1", "-o", str(out)]) == 0
    others = benchmark / "others"
    others.mkdir()
    (others / "A.MP4").write_bytes(video.read_bytes())
    assert main(["motion", str(others), "-o", str(out)]) == 0
    (others / "half.mp4").write_bytes(video.read_bytes()[:500])
    assert main(["motion", str(others), "-o", str(out)]) == 1  # the others count
    assert "half.mp4 is left out" in capsys.readouterr().err
    assert main(["vote", str(video.parent), str(video.parent), "-o", str(benchmark / "vote.html")]) == 0
    assert (benchmark / "vote.html").stat().st_size > video.stat().st_size

    assert main(["report", str(out), "-o", str(benchmark / "report.html"), "--title", "A <model>"]) == 0
    page = (benchmark / "report.html").read_text()
    assert "<h1>A &lt;model&gt;</h1>" in page and "data:image/png;base64," in page
    assert page.index("Physics-IQ</h2>") < page.index("manner of VBench</h2>")
    for wrong, said in (("page.md", "must end in .html"), ("out/motion.html", "is what was measured")):
        assert main(["report", str(out), "-o", str(benchmark / wrong)]) == 2
        assert said in capsys.readouterr().err
    assert "<td>the other take (n=1)</td>" in page and not re.search(r"(src|href)=.(?!data:)", page)
    assert "| temporal flickering |" in (benchmark / "report.md").read_text()


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "x.html")]) == 2
    assert main(["votes", str(tmp_path / "none.json")]) == 2
    assert main(["physics-iq", str(tmp_path), "--score-only", str(tmp_path)]) == 2
    assert main(["motion", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    said = [line for line in lines if line.startswith("magi ")]
    assert "nothing was measured" in said[0] and "descriptions.csv" in said[2] and "no video" in said[3]
    assert main(["physics-iq", str(tmp_path), "--count", "-5"]) == 2
    assert "--count is -5" in capsys.readouterr().err


def test_the_worlds_give_scores_baselines_and_a_curve(tmp_path: Path) -> None:
    out, model = str(tmp_path), tmp_path / "nano-distilled"
    shutil.copytree(STUDENT, model)
    config = json.loads((model / "config.json").read_text())
    config["runtime_config"]["noise2clean_kvrange"] = [2, 2, 2, 2]
    (model / "config.json").write_text(json.dumps(config))
    asked = ["--model", str(model), "--count", "1", "--kv-ranges", "2", "1", "-o", out]
    assert main(["physics-worlds", *asked]) == 0
    figures = json.loads((tmp_path / "physics-worlds.json").read_text())
    names = ["continuation", "continuation, slide", "image to video", "KV range 2", "KV range 1"]
    assert list(figures["scores"])[:5] == names and "baseline: constant velocity" in figures["scores"]
    assert figures["settings"]["model"] == str(model) and figures["settings"]["reuse"] is None
    assert [point[0] for point in figures["curve"]["series"]["Verified"]] == [1, 2]
    assert Image.open(tmp_path / "physics-worlds.png").width > 900
    assert figures["scores"]["KV range 2"] == figures["scores"]["continuation"]  # the model's own range
    assert main(["report", out, "-o", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page and f"synthetic world: {model}</h2>" in page


def test_markdown_and_curves_become_a_page() -> None:
    assert to_html("") == "\n"
    page = to_html("| a | b |\n|---|---|\n| **1** | <x> |\n\n- one\n- two\n\nwords")
    assert "<tr><th>a</th><th>b</th></tr><tr><td><b>1</b></td><td>&lt;x&gt;</td></tr>" in page
    assert "<ul><li>one</li><li>two</li></ul>" in page and "<p>words</p>" in page
    svg = curve_svg({"x": "range", "y": "<score>", "series": {"a": [[1, 10, 5, 15], [2, 20, 15, 25]]}})
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', svg)]
    assert heights[0] > heights[1] and "&lt;score&gt;" in svg and svg.count("<circle") == 2


def test_the_names_of_a_curve_stand_above_its_lines() -> None:
    svg = curve_svg(
        {"x": "second", "y": "%", "series": {name: [[1, 100, 90, 100], [30, 100, 90, 100]] for name in "abcde"}}
    )
    names = [
        float(y) for y, name in re.findall(r'<text x="[^"]*" y="([^"]*)"[^>]*>(\w)</text>', svg) if name in "abcde"
    ]
    assert len(names) == 5 and max(names) < min(float(y) for y in re.findall(r'cy="([^"]*)"', svg))
