"""``train`` at the smallest size, from the shipped text encoder and VAE, with its sample sheets; the data set's reproducibility, and the loss curve."""

from __future__ import annotations

import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from magi_core.checkpoint.find import find_checkpoint
from magi_core.cli import main
from magi_core.cli.samples import sheets
from magi_core.config_file import read_config
from magi_core.errors import MagiError
from magi_core.parts import Parts
from magi_core.training.curve import draw_curve
from magi_core.training.dit import DiTSettings
from magi_core.training.practice import PRACTICE
from magi_core.training.shards import make_shards, open_clips, write_shard
from magi_core.training.train import NANO, Training, train
from magi_core.training.vae import NANO_VAE
from magi_core.vae import ViTVAE

SHIPPED = Path(__file__).parents[2] / "assets" / "nano"

SMALLEST = Training(
    clips=3,
    dit=DiTSettings(steps=2, batch={"first": 1, "next": 1}, keep_steps=1),
)


def test_train_finishes_a_model_folder_and_a_second_call_changes_nothing(tmp_path: Path) -> None:
    for part in ("t5", "vae"):
        shutil.copytree(SHIPPED / part, tmp_path / part)
    shutil.copy(SHIPPED / "special_tokens.npz", tmp_path)
    watch = sheets(tmp_path, tmp_path / "training", Namespace(sample=["1s: a red circle moves right"]))
    train(tmp_path, SMALLEST, watch)
    drawn = sorted((tmp_path / "training" / "samples").iterdir())
    assert [sheet.name for sheet in drawn] == ["step-000001.png", "step-000002.png"]
    pictures = [np.asarray(Image.open(sheet)) for sheet in drawn]
    assert pictures[0].std() > 0 and not np.array_equal(*pictures), "each of its own step's model"
    weights = tmp_path / "inference_weight" / "model.safetensors"
    made = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".npz", ".json")}
    assert read_config(tmp_path / "config.json") == NANO
    assert all(tensor.dtype == torch.float16 for tensor in load_file(weights).values())
    assert (tmp_path / "training" / "dit.png").stat().st_size > 0
    train(tmp_path, SMALLEST)
    for path, content in made.items():
        if path.name != "dit.safetensors":
            assert path.read_bytes() == content, path


def test_training_goes_on_from_a_model(tmp_path: Path) -> None:
    careful = replace(SMALLEST.dit, steps=1, muon_lr=1e-8, adamw_lr=1e-8)
    train(tmp_path, replace(SMALLEST, start="nano", dit=careful))
    began, ended = (load_file(folder / "inference_weight" / "model.safetensors") for folder in (SHIPPED, tmp_path))
    for name, tensor in began.items():
        torch.testing.assert_close(ended[name], tensor, atol=1e-4, rtol=1e-3)
    assert (tmp_path / "t5" / "model.safetensors").read_bytes() == (SHIPPED / "t5" / "model.safetensors").read_bytes()
    with pytest.raises(MagiError, match="not distilled"):
        train(tmp_path / "other", replace(SMALLEST, start="nano-distilled"))
    with pytest.raises(MagiError, match="folder of the model that is trained"):
        train(tmp_path, replace(SMALLEST, start=tmp_path))


def test_a_blend_is_between_what_a_run_began_with_and_what_it_learnt(tmp_path: Path) -> None:
    settings = replace(SMALLEST, start="nano", dit=replace(SMALLEST.dit, warmup_steps=1), blend=0.25)
    train(tmp_path, settings)
    weights = tmp_path / "inference_weight" / "model.safetensors"
    began, mixed = load_file(SHIPPED / "inference_weight" / "model.safetensors"), load_file(weights)
    train(tmp_path, replace(settings, blend=1.0))  # a finished run hands out what is asked for now
    learnt = load_file(weights)
    assert any((learnt[name] - tensor).abs().max() > 1e-3 for name, tensor in began.items())
    for name, tensor in began.items():
        wanted = 0.75 * tensor.float() + 0.25 * learnt[name].float()
        torch.testing.assert_close(mixed[name].float(), wanted, atol=1e-3, rtol=2e-3)
    for share, words in ((0.0, "blend is 0"), (1.5, "at most 1"), (float("nan"), "blend is nan")):
        with pytest.raises(MagiError, match=words):
            replace(settings, blend=share)
    with pytest.raises(MagiError, match="give start"):
        replace(SMALLEST, blend=0.5)


def test_equal_seeds_give_equal_clips_and_others_do_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = ViTVAE(NANO_VAE).eval()
    for name, seed, indices in (
        ("one", 0, range(2)),
        ("same", 0, range(2)),
        ("other", 1, range(2)),
        ("later", 0, range(1, 2)),
    ):
        write_shard(tmp_path / name, vae, "narrow", indices, seed)
    one, same, other, later = (load_file(tmp_path / n)["latents"] for n in ("one", "same", "other", "later"))
    assert one.shape == (2, 5, 16, 6, 8, 8)
    assert torch.equal(one, same) and not torch.equal(one, other)
    torch.testing.assert_close(later[0], one[1], rtol=0.02, atol=0.02)


def test_clips_of_another_version_are_refused_by_name(tmp_path: Path) -> None:
    vae = ViTVAE(NANO_VAE).eval()
    write_shard(tmp_path / "clips-000000.safetensors", vae, "narrow", range(1), 0)
    write_shard(tmp_path / "clips-001000.safetensors", vae, "narrow", range(1), 0, chunks=3)
    parts = Parts(find_checkpoint("nano"))
    parts.vae = vae
    with pytest.raises(MagiError, match=r"clips-001000\.safetensors are 3 seconds long and those before them 5"):
        open_clips([tmp_path], parts)
    parts.vae = ViTVAE(NANO_VAE)
    with pytest.raises(MagiError, match=r"clips-000000\.safetensors are of another VAE than"):
        open_clips([tmp_path], parts)


def test_clips_made_from_something_else_are_refused_before_anything_is_learnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = ViTVAE(NANO_VAE)
    made = tmp_path / "clips-000000.safetensors"
    write_shard(made, vae, "narrow", range(1), 0)
    make_shards(tmp_path, vae, "narrow", 1, 0)
    for other, world, clips, seed, chunks, said in (
        (vae, "full", 1, 0, 5, "world and practice"),
        (vae, "narrow", 1, 1, 5, "seed"),
        (vae, "narrow", 2, 0, 5, "number"),
        (vae, "narrow", 1, 0, 8, "length"),
        (ViTVAE(NANO_VAE), "narrow", 1, 0, 5, "VAE"),
    ):
        with pytest.raises(MagiError, match=rf"clips-000000\.safetensors are of another {said} than is asked for"):
            make_shards(tmp_path, other, world, clips, seed, chunks)
    with monkeypatch.context() as patch:
        patch.setattr("magi_core.training.shards.PRACTICE", {"narrow": PRACTICE["full"]})
        with pytest.raises(MagiError, match=r"another practice than"):
            make_shards(tmp_path, vae, "narrow", 1, 0)
    made.write_bytes(made.read_bytes()[:100])
    with pytest.raises(MagiError, match=r"clips-000000\.safetensors are damaged.*Delete the file"):
        make_shards(tmp_path, vae, "narrow", 1, 0)


def test_the_command_trains_each_world_by_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Training] = []
    monkeypatch.setattr("magi_core.training.train.train", lambda out, settings, watch: made.append(settings))
    go_on = ["--world", "full", "--start", "nano", "--steps", "7"]
    for words in (
        [],
        ["--world", "full"],
        go_on,
        [*go_on, "--blend", "0.7"],
        [*go_on, "--rollouts", "3", "--seed", "9"],
    ):
        assert main(["train", "-o", str(tmp_path), *words]) == 0
    small, full, further, mixed, mended = made
    assert [settings.blend for settings in made] == [1, 1, 1, 0.7, 0.75]
    assert [settings.dit.seed for settings in made] == [0, 0, 1, 1, 9]
    assert replace(mixed, blend=1.0) == further and mended.rollouts == 3
    assert (small.world, small.clips, small.dit.steps) == ("narrow", 12_000, 4350)
    assert (full.world, full.clips, full.dit.steps) == ("full", 16_000, 18_000)
    assert (full.text.steps, full.vae.steps, full.vae.full_world) == (600, 2000, 0.9)
    assert further.start == "nano" and (further.world, further.clips, further.dit.steps) == ("full", 16_000, 7)
    assert further.dit.muon_lr < full.dit.muon_lr


def test_the_command_says_what_it_cannot_start_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model, said in (("nano-distilled", "not distilled"), ("nowhere", "nothing at 'nowhere'")):
        assert main(["train", "--start", model, "-o", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
    for words, said in (
        (["--blend", "0.5"], "--start nano-full"),
        (["--start", "nano", "--blend", "2"], "blend is 2"),
        (["--seed", "-1"], "seed is -1; it must be from 0 to 4294967295"),
    ):
        assert main(["train", "-o", str(tmp_path / "out"), *words]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_curve_shows_every_series_and_survives_none(tmp_path: Path) -> None:
    draw_curve(tmp_path / "a.png", "loss", {"first": [(i, 1 / i) for i in range(1, 50)], "next": [(1, 0.5)]})
    with Image.open(tmp_path / "a.png") as picture:
        blue = (np.asarray(picture) == (31, 78, 156)).all(-1)
    assert blue.sum() > 400
    draw_curve(tmp_path / "b.png", "nothing", {})
    assert (tmp_path / "b.png").exists()
