"""One ComfyUI server for all tests of this folder, with bad files in its folders; skipped with the reason where there is none."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from magi_core.checkpoint.convert import convert
from magi_core.checkpoint.load import load_dit
from magi_core.denoise.session import ChunkCondition, Session
from magi_core.model import MagiDiT
from magi_core.presets import PRESETS
from magi_core.text.assembly import null_caption
from tests.comfy.server import ROOT, Server, find_comfyui, find_gguf_nodes
from tests.comfy.tiny import tiny_t5, write_t5

NANO = ROOT / "assets" / "nano"


def prepare(base: Path) -> None:
    """Models and pictures that the tests use: a checkpoint as downloaded, damaged files, keyframes."""
    files = base / "models" / "diffusion_models"
    files.mkdir(parents=True)
    (files / "corrupt.safetensors").write_bytes(b"\xff" * 4096)
    (files / "empty.safetensors").write_bytes(b"")
    whole = (NANO / "inference_weight" / "model.safetensors").read_bytes()
    (files / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    shutil.copy(NANO / "vae" / "diffusion_pytorch_model.safetensors", files / "not_a_transformer.safetensors")
    shutil.copytree(NANO, base / "models" / "magi" / "mine")
    wrong = base / "models" / "magi" / "wrong"
    shutil.copytree(NANO, wrong)
    config = json.loads((wrong / "config.json").read_text())
    config["model_config"]["num_layers"] = 7
    (wrong / "config.json").write_text(json.dumps(config))
    texts = base / "models" / "text_encoders"
    write_t5(tiny_t5(128), texts / "tiny_t5xxl.safetensors")
    write_t5(tiny_t5(128), texts / "tiny_t5xxl_fp8_scaled.safetensors", scaled=True)
    write_t5(tiny_t5(64), texts / "narrow_t5xxl.safetensors")
    write_t5(tiny_t5(64, old=True), texts / "old_t5xxl.safetensors")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "helper_pack").symlink_to(Path(__file__).parent / "helper_pack", target_is_directory=True)
    gguf_nodes = find_gguf_nodes()
    if isinstance(gguf_nodes, Path):
        (base / "custom_nodes" / "ComfyUI-GGUF").symlink_to(gguf_nodes, target_is_directory=True)
    damage_parts(base / "models" / "magi")
    pictures = base / "input"
    pictures.mkdir()
    for name, colour in (("red.png", (255, 0, 0)), ("größe 图.png", (0, 0, 255))):
        Image.fromarray(np.full((48, 80, 3), colour, np.uint8)).save(pictures / name)
    (pictures / "broken.session").write_bytes(b"no session at all")
    write_sessions(pictures)
    (pictures / "broken.png").write_bytes(b"\x89PNG but no more")


def damage_parts(models: Path) -> None:
    """VAE and T5 folders, each with one thing wrong, and one with nothing wrong but its name."""
    shutil.copytree(NANO, models / "größe 图 🎬")
    for part, name in (("vae", "diffusion_pytorch_model.safetensors"), ("t5", "model.safetensors")):
        for kind in ("cut", "shape", "nan", "json"):
            folder = models / f"{kind} {part}"
            shutil.copytree(NANO / part, folder)
            weights, config = folder / name, folder / "config.json"
            tensors = load_file(weights)
            largest = max(tensors, key=lambda key: tensors[key].numel())
            if kind == "cut":
                weights.write_bytes(weights.read_bytes()[:-1000])
            elif kind == "shape":
                save_file(tensors | {largest: tensors[largest][:, :-1].contiguous()}, weights)
            elif kind == "nan":
                save_file({key: torch.full_like(value, torch.nan) for key, value in tensors.items()}, weights)
            else:
                config.write_text(config.read_text()[:-20])


def write_sessions(folder: Path) -> None:
    """A session of another configuration, one of another model of the same configuration, and damaged ones of magi-nano."""
    nano = load_dit("nano")

    def write(model: MagiDiT, name: str) -> Path:
        null = null_caption(model.null_caption.detach(), None)
        sampling = replace(PRESETS["nano"].sampling, num_steps=4)
        session = Session(model, sampling, height=8, width=8, seed=1, null=null)
        session.add([ChunkCondition(null)])
        session.run()
        session.save(folder / name, notes={"pending": "{}"})
        return folder / name

    write(MagiDiT(replace(nano.config, num_layers=2)), "other configuration.session")
    other = copy.deepcopy(nano)
    other.final_linear.linear.weight.data += 1
    other.origin = {}  # not what was read from the shipped file
    write(other, "other weights.session")
    whole = write(nano, "whole.session").read_bytes()
    for name, place in (("flipped header", 200), ("flipped tensor", len(whole) - 3000)):
        flipped = whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :]
        (folder / f"{name}.session").write_bytes(flipped)
    (folder / "cut.session").write_bytes(whole[: len(whole) // 2])


def write_elsewhere(folder: Path) -> Path:
    """Models outside of ComfyUI's folder, and the file that tells ComfyUI of them; gives the file."""
    shutil.copytree(NANO, folder / "checkpoints of magi" / "there")
    (folder / "single files").mkdir()
    convert(NANO / "inference_weight", folder / "single files" / "one_file.safetensors")
    paths = folder / "extra_model_paths.yaml"
    paths.write_text(f"other:\n  base_path: {folder}\n  magi: checkpoints of magi\n  diffusion_models: single files\n")
    return paths


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = find_comfyui()
    if isinstance(found, str):
        pytest.skip(found)
    base = tmp_path_factory.mktemp("comfyui")
    prepare(base)
    running = Server(base, "some_name-main", "--extra-model-paths-config", write_elsewhere(base / "elsewhere"))
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def alive(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test the server still runs; its log is shown where a test failed."""
    yield
    if "server" in request.fixturenames:
        running: Server = request.getfixturevalue("server")
        assert running.process.poll() is None, running.tail()
