"""The command line as people use it: what they type, what they get, and one line where it cannot work."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from magi_core.checkpoint.find import BUILT_IN
from magi_core.cli import main
from magi_core.making import Making
from magi_core.video import read_metadata, read_video

STORY = "1s: a red circle moves right\n0.5s: it stops"


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> int:
    try:
        return main(words)
    except SystemExit as exit_code:  # argparse's own
        return int(exit_code.code or 0)


def test_generate_then_extend(tmp_path: Path) -> None:
    assert (
        run("generate", "--storyboard", STORY, "--steps", "4", "-o", "a.mp4", "--save-session", "a.session", "--quiet")
        == 0
    )
    assert len(read_video(Path("a.mp4"))) == 36
    metadata = read_metadata(Path("a.mp4"))
    assert json.loads(metadata["prompt"])["shots"][1]["prompt"] == "it stops"
    assert json.loads(metadata["settings"])["sampling"]["num_steps"] == 4
    assert run("extend", "a.session", "--prompt", "it moves up", "--seconds", "1", "-o", "b.mp4", "--quiet") == 0
    assert len(read_video(Path("b.mp4"))) == 12 + 24
    assert (
        run(
            "generate",
            "--prompt",
            "it moves up",
            "--seconds",
            "0.5",
            "--video",
            "a.mp4",
            "--steps",
            "4",
            "-o",
            "c.webm",
        )
        == 0
    )
    assert len(read_video(Path("c.webm"))) == 12


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_keeps_what_is_finished_and_goes_on(
    presses: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--storyboard", "3s: a red circle moves right", "--steps", "4", "--window", "1", "--quiet")
    assert run("generate", *words, "-o", "whole.mp4") == 0
    step, steps = Making.step, iter(range(6))

    def interrupted(self: Making, deliver: object, *, drain: bool = True) -> object:
        if next(steps, None) is None:
            for _ in range(presses):  # the first lets the step end, the second breaks it off
                signal.raise_signal(signal.SIGINT)
        return step(self, deliver, drain=drain)

    with monkeypatch.context() as patch:
        patch.setattr(Making, "step", interrupted)
        assert run("generate", *words, "-o", "part.mp4") == 130
    assert "magi resume" in capsys.readouterr().err
    assert len(read_video(Path("part.mp4"))) == 24
    assert run("extend", "part.run", "-o", "rest.mp4", "--quiet") == 0
    assert len(read_video(Path("rest.mp4"))) == 48
    assert run("resume", "part.run", "--quiet") == 0
    assert Path("part.mp4").read_bytes() == Path("whole.mp4").read_bytes()
    assert sorted(path.name for path in Path().iterdir()) == ["part.mp4", "rest.mp4", "whole.mp4"]


def test_a_run_can_be_kept_and_comes_out_as_pictures_too() -> None:
    words = ("generate", "--storyboard", STORY, "--steps", "4", "--quiet", "--keep", "kept")
    assert run(*words, "-o", "a.mp4") == 0
    assert run(*words, "-o", "b.mp4") == 2, "the run is not written over"
    assert run("resume", "kept", "-o", "pictures", "--quiet") == 0
    assert len(list(Path("pictures").glob("*.png"))) == 36
    assert run("extend", "kept", "--prompt", "it moves up", "--seconds", "1", "-o", "b.mp4", "--quiet") == 0
    assert len(read_video(Path("b.mp4"))) == 12 + 24


def test_a_result_is_not_put_into_the_run_that_is_removed(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("generate", "--storyboard", STORY, "--steps", "4", "--quiet")
    assert run(*words, "--save-session", "magi.run/a.session", "-o", "magi.mp4") == 2
    assert "a.session lies in the run's own folder" in capsys.readouterr().err and not Path("magi.run").exists()
    assert run(*words, "--keep", "kept", "-o", "a.mp4") == 0
    assert run("resume", "kept", "-o", "kept/video.mp4") == 2
    assert "lies in the run's own folder" in capsys.readouterr().err


def test_a_model_named_by_a_path_is_found_again_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("convert", "nano", "own.safetensors") == 0
    for part in ("vae", "t5"):
        Path(part).symlink_to(BUILT_IN["nano"] / part)
    words = ("--storyboard", STORY, "--steps", "4", "--quiet", "--keep", "kept", "-o", "a.mp4")
    assert run("generate", "--model", "own.safetensors", *words) == 0
    kept = Path("kept").absolute()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert run("resume", str(kept), "-o", "b.mp4", "--quiet") == 0
    assert Path("b.mp4").read_bytes() == kept.with_name("a.mp4").read_bytes()
    settings = json.loads(read_metadata(Path("b.mp4"))["settings"])
    assert settings["model"] == "own.safetensors", "the film says what was typed, not where that lay"


def test_plan_check_and_convert(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "--storyboard", STORY) == 0
    assert "36 frames" in capsys.readouterr().out
    assert run("check") == 0
    said = capsys.readouterr().out
    assert "nano" in said
    assert "sdpa_flash: usable" in said
    assert run("convert", "nano", "nano.safetensors") == 0
    assert Path("nano.safetensors").stat().st_size > 1e6
    assert run("check", "nano.safetensors") in (0, 1)


def test_estimate_says_what_a_video_would_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("estimate", "--device", "cpu") == 0
    assert "96 a chunk" in capsys.readouterr().out
    words = ("--size", "480x480", "--steps", "8", "--precision", "fp8", "--rates", "100", "100", "1000", "20")
    assert run("estimate", "4.5b-distill", *words) == 0
    said = capsys.readouterr().out
    assert "5,400 a chunk" in said and "on rates given" in said and "weights resident, fp8" in said


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["generate", "--prompt", "a", "--size", "65x64"], "width is 65"),
        (["generate", "--prompt", "a", "--size", "big"], "--size"),
        (["estimate", "4.5b", "--size", "0x480"], "--size is '0x480'"),
        (["generate", "--prompt", "a", "--seconds", "0"], "seconds is 0"),
        (["generate", "--prompt", "a", "--seconds", "nan"], "seconds"),
        (["generate", "--prompt", ""], "empty"),
        (["generate", "--prompt", "a", "--steps", "7"], "num_steps 7"),
        (["generate", "--prompt", "a", "--window", "0"], "window_size is 0"),
        (["generate", "--prompt", "a", "--seed", "-1"], "seed"),
        (["generate", "--prompt", "a", "--image", "no.png"], "no.png"),
        (["generate", "--prompt", "a", "--video", "no.mp4"], "no.mp4"),
        (["generate", "--prompt", "a", "--model", "no"], "no"),
        (["generate", "--prompt", "a", "--model", "24b"], "24b"),
        (["generate", "--prompt", "a", "--device", "gpu9"], "gpu9"),
        (["generate", "--prompt", "a", "-o", "a.avi"], "a.avi"),
        (["generate", "--prompt", "a", "-o", ".."], "not an empty folder"),
        (["generate", "--prompt", "a", "--more-to-come", "-3"], "more_to_come"),
        (["generate", "--storyboard", "no.json"], "no.json"),
        (["generate", "--storyboard", '{"version": 9, "shots": [{"prompt": "a", "seconds": 1}]}'], "version"),
        (["generate", "--storyboard", "1s: a [image: ../../secret.png]"], "secret"),
        (["extend", "no.session", "--prompt", "a"], "no.session"),
        (["plan", "--storyboard", "two seconds: a", "--seconds", "2"], "--seconds"),
        (["check", "no.safetensors"], "no.safetensors"),
        (["convert", "nano", "no/such/../\0.safetensors"], "safetensors"),
        (["verify", "."], "manifest.json"),
        (["train", "--minutes", "-1"], "minutes"),
        (["finetune", "clips", "--lora", "0", "-o", "a"], "the rank of the LoRA is 0"),
        (["finetune", "clips", "--lora-alpha", "3", "-o", "a"], "--lora RANK"),
        (["finetune", "clips", "--lora-targets", "mlp", "-o", "a"], "--lora RANK"),
        (["finetune", "clips", "-o", "a.safetensors"], "a.safetensors"),
        (["finetune", "clips", "--samples", "-1", "-o", "a"], "--samples is -1"),
        (["train", "--sample-steps", "-1", "-o", "a"], "--sample-steps is -1"),
        (["drift", "--count", "0", "-o", "a"], "count is 0"),
        (["physics-worlds", "--count", "0", "-o", "a"], "count is 0"),
        (["finetune", "clips", "-o", "./clips"], "the folder of the videos"),
        (["score", "--count", "0"], "count is 0"),
        (["generate", "--prompt", "a", "--reuse", "-1"], "reuse threshold is -1"),
        (["estimate", "5b"], "5b"),
        (["estimate", "4.5b", "--size", "721x720"], "721x720"),
        (["estimate", "4.5b", "--rates", "0", "1", "1", "1"], "--rates"),
        (["estimate", "--words", "0"], "--words"),
    ],
)
def test_one_line_where_it_cannot_work(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 2
    said = capsys.readouterr().err.strip()
    assert named in said and "Traceback" not in said and len(said.splitlines()) == 1
