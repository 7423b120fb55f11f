"""A video goes on with the LoRAs that it was made with: by name in the error, by content in the comparison, whatever it is kept in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import magi_core
from magi_core.cli import main
from magi_core.errors import MagiError
from magi_core.keeping import Asked, Run
from magi_core.lora import write_adapter
from magi_core.presets import PRESETS
from magi_core.tensor_files import read_tensors, write_tensors
from tests.lora.test_lora import adapter_for

FAST = replace(PRESETS["nano"].sampling, num_steps=4)


def nano(*loras: str) -> magi_core.Magi:
    return magi_core.load("nano", device="cpu", loras=loras)


@pytest.fixture
def star(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, seed in (("star.safetensors", 1), ("moon.safetensors", 2)):
        write_adapter(Path(name), adapter_for(PRESETS["nano"].dit, seed, size=0.01).layers, "nano", {})
    return Path("star.safetensors")


def test_a_session_and_a_run_go_on_with_the_same_and_no_others(star: Path) -> None:
    own = nano("star.safetensors:0.5", "moon.safetensors:0")
    begun = own.generate("1s: a red circle moves right", seed=1, sampling=FAST)
    begun.save(Path("a.session"))
    Run.create(Path("run"), Asked("", "nano"), begun.making)
    Path("elsewhere").mkdir()
    again = nano(f"{star.rename('elsewhere/any name.safetensors')}:0.5")
    for kept in ("a.session", "run"):
        assert again.extend(kept).making.loras == own.used_loras
        for other, words in (
            (nano(), "star.safetensors at strength 0.5, and the model has no LoRA"),
            (nano("elsewhere/any name.safetensors:0.6"), "any name.safetensors at strength 0.6"),
            (nano("moon.safetensors:0.5"), "has the LoRA moon.safetensors"),
            (nano("moon.safetensors", "elsewhere/any name.safetensors:0.5"), "moon.safetensors at strength 1 and any"),
        ):
            with pytest.raises(MagiError, match=words):
                other.extend(kept)
    with pytest.raises(MagiError, match="no LoRA"):
        Run.open(Path("run")).rewound(own.dit, 0)
    assert Run.open(Path("run")).rewound(own.dit, 0, loras=own.used_loras).loras == own.used_loras


def test_a_lora_of_the_output_layer_does_not_make_another_model_of_it(star: Path) -> None:
    names = ["final_linear.linear"]
    write_adapter(star, adapter_for(PRESETS["nano"].dit, names=names, size=0.01).layers, "nano", {})
    begun = nano(str(star)).generate("1s: a red circle moves right", seed=1, sampling=FAST)
    begun.save(Path("a.session"))
    Run.create(Path("run"), Asked("", "nano"), begun.making)
    for kept in ("a.session", "run"):
        with pytest.raises(MagiError, match=r"made with the LoRA star\.safetensors .* no LoRA"):
            nano().extend(kept)


def test_two_files_of_one_name_are_told_apart(star: Path) -> None:
    nano(str(star)).generate("1s: a red circle", sampling=FAST).save(Path("a.session"))
    star.unlink()
    Path("moon.safetensors").rename(star)
    with pytest.raises(
        MagiError, match=r"star\.safetensors \(\w{8}\.\.\.\) at .* star\.safetensors \(\w{8}\.\.\.\) at"
    ):
        nano(str(star)).extend("a.session")


def test_a_base_video_does_not_go_on_with_a_lora_but_an_old_file_does_and_then_remembers(star: Path) -> None:
    nano().generate("1s: a red circle", sampling=FAST).save(Path("a.session"))
    used = nano(str(star))
    with pytest.raises(MagiError, match=r"made with no LoRA, and the model has the LoRA star\.safetensors"):
        used.extend("a.session")
    header, tensors = read_tensors(Path("a.session"), "magi_session", "session file")
    assert json.loads(header["notes"].pop("loras")) == []
    write_tensors(Path("a.session"), tensors, "magi_session", header)
    used.extend("a.session").save(Path("b.session"))
    with pytest.raises(MagiError, match="no LoRA"):
        nano().extend("b.session")
    header["notes"]["loras"] = "[{}]"
    write_tensors(Path("a.session"), tensors, "magi_session", header)
    with pytest.raises(MagiError, match="damaged"):
        used.extend("a.session")


def test_the_command_line_refuses_and_goes_on(star: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [
        "generate",
        "--prompt",
        "a red circle",
        "--seconds",
        "1",
        "--steps",
        "4",
        "--quiet",
        "--lora",
        f"{star}:0.5",
    ]
    assert main([*made, "-o", "a.mp4", "--save-session", "a.session", "--keep", "run"]) == 0
    more = ["--prompt", "it moves up", "--seconds", "0.5", "--quiet", "-o", "b.mp4"]
    for kept in ("a.session", "run"):
        capsys.readouterr()
        assert main(["extend", kept, *more]) == 2
        assert "was made with the LoRA star.safetensors at strength 0.5" in capsys.readouterr().err
    assert main(["extend", "run", *more, "--lora", f"{star}:0.5"]) == 0
    assert main(["resume", "run", "--quiet", "-o", "c.mp4"]) == 0
