"""A LoRA in training: the base stands still, what is written is what was learnt, a break changes nothing, and the command's whole way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from magi_core.checkpoint.find import find_checkpoint
from magi_core.cli import main
from magi_core.errors import MagiError
from magi_core.keeping import Run
from magi_core.lora import add, merge, read_adapter, write_adapter
from magi_core.presets import PRESETS
from magi_core.training.dataset import Mix, draw_sample
from magi_core.training.finetune import FinetuneSettings, finetune
from magi_core.training.layouts import layouts_for
from magi_core.training.lora import LoraSettings, Matrices, frozen
from magi_core.training.objective import LAYOUTS, add_noise, draw_times, squared_errors, velocities
from magi_core.training.ranks import Ranks
from tests.training.test_objective import random_clips, tiny_model
from tests.training.test_videos import write_video

SETTINGS = FinetuneSettings(steps=4, passes=2, rate=1e-2, warmup_steps=1, average=0.5, autocast=False)
ALONE = Ranks(0, 1, torch.device("cpu"))


def learn(folder: Path, settings: FinetuneSettings = SETTINGS) -> tuple[dict[str, Tensor], Matrices]:
    """What the base of a tiny model is afterwards, and the matrices; the adapter is in ``folder``."""
    model = tiny_model().requires_grad_(False)
    matrices = Matrices(model, LoraSettings(rank=4, alpha=2.0))

    def keep(weights: Mapping[str, Tensor], step: int) -> None:
        write_adapter(folder / "a.safetensors", matrices.layers(weights), "tiny", {})

    clips = random_clips(2)
    finetune(model, clips, layouts_for(PRESETS["nano"].sampling, 3), folder, settings, ALONE, keep, matrices)
    return model.state_dict(), matrices


def test_only_the_matrices_learn_and_a_break_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, matrices = learn(tmp_path / "whole")
    assert all(torch.equal(value, base[name]) for name, value in tiny_model().state_dict().items())
    assert all(float(up.detach().abs().max()) > 0 for up in matrices.up.values())
    with monkeypatch.context() as patch:
        patch.setattr(
            "magi_core.training.finetune.progress", lambda state, s: 1.0 if state.step == 2 else state.step / 4
        )
        learn(tmp_path / "parts")
    learn(tmp_path / "parts")
    whole, parts = (load_file(tmp_path / name / "a.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_the_loss_falls_and_the_file_says_what_was_learnt(tmp_path: Path) -> None:
    clips, layout = random_clips(1), LAYOUTS["first"]
    generator = torch.Generator().manual_seed(5)
    sample = draw_sample(clips, layout, 4, Mix(), generator)
    noised = add_noise(sample, layout, draw_times(layout, 4, generator), generator)

    def error(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return float(squared_errors(velocities(model, layout, sample, noised.x, noised.t), noised).sum())

    before = error(tiny_model())
    learn(tmp_path, replace(SETTINGS, steps=24))
    adapter = read_adapter(tmp_path / "a.safetensors", tiny_model().config)
    merged, added = tiny_model().requires_grad_(False), tiny_model().requires_grad_(False)
    merge(merged, [(adapter, 1.0)])
    add(added, [(adapter, 1.0)])
    assert error(merged) < 0.97 * before
    assert error(added) == pytest.approx(error(merged), rel=1e-4)


def test_what_is_asked_for_must_be_there() -> None:
    model = tiny_model()
    chosen = LoraSettings(targets=("mlp", "linear_proj")).layers(model.config)
    assert chosen and all("mlp" in name or "linear_proj" in name for name in chosen)
    with pytest.raises(MagiError, match=r"no layer is called 'to_q'.*linear_fc1"):
        LoraSettings(targets=("to_q",)).layers(model.config)
    for wrong in ({"rank": 0}, {"alpha": -1.0}):
        with pytest.raises(MagiError, match=r"rank|alpha"):
            LoraSettings(**wrong)
    distilled = replace(find_checkpoint("nano"), config=PRESETS["4.5b-distill"])
    with pytest.raises(MagiError, match="with the base model"):
        frozen(distilled, torch.device("cpu"))


def test_from_videos_to_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained, used, and used again by a run that is resumed; another file under the same name is refused."""
    pytest.importorskip("av")
    monkeypatch.chdir(tmp_path)
    Path("videos").mkdir()
    write_video(Path("videos/a.mp4"), 24, "a square glides east\n")
    words = ["finetune", "videos", "--size", "32x32", "--batch", "1", "--passes", "1", "--steps", "2", "--samples", "0"]
    assert main([*words, "--lora", "2", "-o", "a.safetensors"]) == 0
    assert "is a LoRA: magi generate --model nano --lora a.safetensors" in capsys.readouterr().out
    assert main([*words, "--lora", "2", "--lora-alpha", "1", "-o", "a.safetensors"]) == 2
    assert "begun with LoRA rank 2, alpha 2" in capsys.readouterr().err
    Path("checkpoint.safetensors").write_text("kept")
    assert main([*words, "--lora", "2", "-o", "checkpoint.safetensors"]) == 2
    assert "checkpoint.safetensors is there already" in capsys.readouterr().err
    assert Path("checkpoint.safetensors").read_text() == "kept"
    assert main([*words, "--lora", "2", "-o", "v0.5"]) == main([*words, "--lora", "2", "-o", "v0.8"]) == 0
    assert Path("v0.5.training").is_dir() and Path("v0.8.training").is_dir()
    capsys.readouterr()
    tensors = load_file("a.safetensors")
    save_file({name: t + 0.1 if "lora_B" in name else t for name, t in tensors.items()}, "a.safetensors")

    made = ["generate", "--prompt", "a red circle moves right", "--seconds", "1", "--steps", "4", "--quiet"]
    assert main([*made, "-o", "base.mp4", "--keep", "base"]) == 0
    assert main([*made, "-o", "used.mp4", "--keep", "used", "--lora", "a.safetensors:0.5"]) == 0
    assert main([*made, "-o", "none.mp4", "--keep", "none", "--lora", "a.safetensors:0"]) == 0

    def latents(folder: str) -> Tensor:
        return Run.open(Path(folder)).chunk(0).latents

    assert torch.equal(latents("none"), latents("base")) and not torch.equal(latents("used"), latents("base"))
    first = latents("used")
    for path in (Path("used/chunks").iterdir(), Path("used/checkpoints").glob("000001*")):
        for file in path:
            file.unlink()
    assert main(["resume", "used", "-o", "again.mp4", "--quiet"]) == 0
    assert torch.equal(latents("used"), first)
    assert json.loads(Path("used/run.json").read_text())["asked"]["settings"]["lora"][0]["strength"] == 0.5
    save_file(tensors, "a.safetensors")
    capsys.readouterr()
    assert main(["resume", "used", "-o", "again.mp4", "--quiet"]) == 2
    assert "has changed" in capsys.readouterr().err
