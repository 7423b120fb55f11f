"""LoRAs in a running ComfyUI: ours and core's, on one MODEL, in the key of a run, with workers, and clear words where it cannot work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from magi_core.lora import Adapter, write_adapter
from magi_core.presets import PRESETS
from tests.comfy.graphs import denoise, extend, node, pictures, story, text_to_video
from tests.comfy.server import Prompt, Refused, Run, Server
from tests.lora.test_lora import FOUR, adapter_for

ONE = "1s: a red circle moves right"


@pytest.fixture(scope="module")
def folder(server: Server) -> Iterator[Path]:
    loras = server.base / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)

    def write(name: str, adapter: Adapter) -> None:
        write_adapter(loras / name, adapter.layers, "nano", {})

    write("new.safetensors", adapter_for(PRESETS["nano"].dit, size=0.01))
    write("other.safetensors", adapter_for(FOUR))
    (loras / "broken.safetensors").write_bytes(b"no LoRA")
    yield loras


def prompt(*steps: dict[str, Any], precision: str = "auto", **changes: Any) -> Prompt:
    """Nodes between the loader and what denoises."""
    made = {**text_to_video(ONE), "kept": node("SaveLatent", samples=["made", 0], filename_prefix="test/lora")}
    made["model"]["inputs"] |= {"precision": precision, **changes}
    before = "model"
    for number, step in enumerate(steps):
        made[f"step{number}"] = {**step, "inputs": {**step["inputs"], "model": [before, 0]}}
        before = f"step{number}"
    made["made"] = denoise(model=[before, 0])
    return made


def ours(strength: float = 1.0, name: str = "new.safetensors") -> dict[str, Any]:
    return node("MagiLora", lora_name=name, strength=strength)


def cores(strength: float = 1.0) -> dict[str, Any]:
    return node("LoraLoaderModelOnly", lora_name="new.safetensors", strength_model=strength)


def latents(server: Server, asked: Prompt) -> torch.Tensor:
    run: Run = server.run(asked)
    assert run.status == "success", run.error
    (file,) = run.history["outputs"]["kept"]["latents"]
    return load(server.view(file))["latent_tensor"]


def near(one: torch.Tensor, other: torch.Tensor, relative: float = 1e-3) -> bool:
    return float((one - other).norm()) <= relative * float(other.norm())


def test_ours_and_cores_are_one_and_leave_the_model_as_it_was(server: Server, folder: Path) -> None:
    base = latents(server, prompt())
    used = latents(server, prompt(ours()))
    assert not near(used, base, 0.05)
    assert near(latents(server, prompt(cores())), used), "merged by ComfyUI, or added by us"
    assert near(latents(server, prompt(ours(0.25), ours(0.75))), used), "strengths in a row add up"
    assert torch.equal(latents(server, prompt(ours(0.0))), base)
    assert near(latents(server, prompt(ours(), weights="streamed")), used)
    assert not near(latents(server, prompt(ours(-1.0))), used, 0.05)
    free = {"on_repeat": "start over"}
    again = prompt()
    again["made"]["inputs"] |= free
    assert torch.equal(latents(server, again), base)


def test_it_is_part_of_what_a_run_is_named_after(server: Server, folder: Path) -> None:
    """Another strength, and other bytes under the same name, are other runs; the same is the same."""

    def runs(asked: Prompt) -> set[Path]:
        latents(server, asked)
        return set((server.base / "output" / "magi").iterdir())

    before = runs(prompt(ours(0.3)))
    assert runs(prompt(ours(0.3))) == before
    other = runs(prompt(ours(0.31)))
    assert len(other - before) == 1
    tensors = load_file(folder / "new.safetensors")
    name = next(name for name in tensors if "lora_B" in name)
    save_file({**tensors, name: tensors[name] * 2}, folder / "new.safetensors")
    assert len(runs(prompt(ours(0.3))) - other) == 1


def test_a_session_goes_on_with_the_loras_that_made_it(server: Server, folder: Path) -> None:
    """By what they are: the same graph asked again, from other nodes, is the same."""
    steps = {"none": None, "ours": ours(0.4), "ours again": ours(0.4), "others": ours(0.5), "cores": cores(0.4)}
    for made, *going_on in (("ours", "ours again", "others", "none"), ("cores", "cores", "ours"), ("none", "ours")):
        for other in going_on:
            asked: Prompt = {**text_to_video(ONE), **story("0.5s: it stops", "next")}
            model = {"none": "model"}
            for name in {made, other} - {"none"}:
                asked[name] = {**steps[name], "inputs": {**steps[name]["inputs"], "model": ["model", 0]}}
                model[name] = name
            asked["made"] = denoise(model=[model[made], 0])
            asked["more"] = extend("next_said", session=["made", 1], model=[model[other], 0])
            run = server.run(asked | pictures("more"))
            if other.split()[0] == made:
                assert run.status == "success", run.error
            else:
                assert "go on with the same LoRAs at the same strengths" in str(run.error), (made, other)


def test_workers_and_8_bits_use_it_too(server: Server, folder: Path) -> None:
    used = latents(server, prompt(ours(0.5)))
    devices = node("MagiDevices", devices="cpu, cpu", strategy="auto")
    assert near(latents(server, prompt(ours(0.5), devices)), used)
    assert near(latents(server, prompt(ours(0.5), precision="fp8")), used, 0.5)
    assert "put it before" in str(server.run(prompt(devices, ours())).error)


def test_what_cannot_work_says_why(server: Server, folder: Path) -> None:
    assert "does not fit this model" in str(server.run(prompt(ours(name="other.safetensors"))).error)
    assert "not a safetensors file" in str(server.run(prompt(ours(name="broken.safetensors"))).error)
    assert "use 'MAGI LoRA'" in str(server.run(prompt(cores(), precision="fp8")).error)
    with pytest.raises(Refused, match="not in list"):
        server.run(prompt(ours(name="absent.safetensors")))
