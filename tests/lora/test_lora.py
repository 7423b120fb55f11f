"""Adapters: what their files may look like, and that a model uses them alike in every way that it can."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from magi_core.checkpoint.load import load_dit
from magi_core.config import DiTConfig
from magi_core.errors import MagiError
from magi_core.lora import Adapter, Lora, LowRank, add, merge, read, read_adapter, restore, use, write_adapter
from magi_core.lora.names import targets, usual_targets
from magi_core.model import MagiDiT
from tests.memory.test_streaming import FOUR, passes, same

RANK, ALPHA = 3, 6.0


def adapter_for(config: DiTConfig, seed: int = 1, names: list[str] | None = None, size: float = 0.05) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    sizes = targets(config)

    def part(name: str) -> LowRank:
        outputs, inputs = sizes[name]
        down, up = (torch.randn(shape, generator=generator) for shape in ((RANK, inputs), (outputs, RANK)))
        return LowRank(down, size * up, ALPHA / RANK)

    return Adapter({name: part(name) for name in (names or usual_targets(config))})


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file(MagiDiT(FOUR).state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def close(one: list[Tensor], other: list[Tensor], relative: float = 1e-4) -> bool:
    pairs = zip(one, other, strict=True)
    return all(float((a - b).float().norm()) <= relative * float(b.float().norm()) for a, b in pairs)


# ---- a model that uses them ----


@pytest.mark.parametrize("place", ["resident", "streamed"])
def test_merged_equals_added_and_restored_is_untouched(weights: Path, place: Any) -> None:
    """Every linear layer there is, two adapters at once, one of them turned around."""
    names = list(targets(FOUR))
    adapters = [(adapter_for(FOUR, 1, names), 0.7), (adapter_for(FOUR, 2, names), -0.4)]
    model = load_dit(weights, FOUR, weights=place)
    base = passes(model)
    remove = add(model, adapters)
    added = passes(model)
    assert not close(added, base, 0.05), "the adapters do something"
    remove()
    assert same(passes(model), base)
    originals: dict[str, Tensor] = {}
    merge(model, adapters, originals)
    assert close(passes(model), added)
    restore(model, originals)
    assert same(passes(model), base)


@pytest.mark.parametrize("place", ["resident", "streamed"])
def test_weights_in_8_bits_stay_and_the_product_is_added(weights: Path, place: Any) -> None:
    model = load_dit(weights, FOUR, weights=place, fp8=True)
    base, adapter = passes(model), adapter_for(FOUR)
    path = weights / "a.safetensors"
    write_adapter(path, adapter.layers, "tiny", {})
    use(model, read([Lora(path)], model.config))
    used = passes(model)
    assert not close(used, base, 0.05)
    plain = load_dit(weights, FOUR)
    exact = passes(plain)
    merge(plain, [(adapter, 1.0)])
    change = [a - b for a, b in zip(passes(plain), exact, strict=True)]
    seen = [a - b for a, b in zip(used, base, strict=True)]
    assert close(seen, change, 0.35), "what changes is the same but for 8 bits of precision"


def test_public_fp8_checkpoints_use_them_and_are_left_as_they_are() -> None:
    """One of the layers that share their quantised input is adapted, and both of the MLP."""
    torch.manual_seed(0)
    model = MagiDiT(replace(FOUR, fp8_quant=True)).requires_grad_(False)
    for name, tensor in model.state_dict().items():
        if tensor.dtype == torch.float8_e4m3fn:
            tensor.copy_(0.3 * torch.randn(tensor.shape))
    base = passes(model)
    inner = "videodit_blocks.layers.1."
    names = [inner + end for end in ("self_attention.linear_qkv.k", "mlp.linear_fc1", "mlp.linear_fc2")]
    adapter = adapter_for(model.config, 1, names)
    merge(model, [(adapter, 1.0)])
    assert same(passes(model), base), "nothing is merged into them"
    remove = add(model, [(adapter, 1.0)])
    used = passes(model)
    remove()
    assert same(passes(model), base)
    twice = [add(model, [(adapter, 0.5)]) for _ in range(2)]
    assert close(passes(model), used) and not close(used, base, 0.02)
    twice[0]()
    assert not close(passes(model), base, 0.01), "the other one is still heard"


def test_strength_0_changes_no_bit() -> None:
    torch.manual_seed(0)
    model = MagiDiT(FOUR).requires_grad_(False)
    base, adapter = passes(model), adapter_for(FOUR)
    nothing = [(adapter, 0.0), (adapter, -0.0)]
    add(model, nothing)
    merge(model, nothing)
    assert same(passes(model), base)


def test_rounded_once_to_the_weights_dtype(weights: Path) -> None:
    model = load_dit(weights, FOUR, dtype=torch.bfloat16)
    name = usual_targets(FOUR)[0]
    adapter = adapter_for(FOUR)
    before = model.get_submodule(name).weight.detach().clone()
    merge(model, [(adapter, 0.5), (adapter, 0.25)])
    part = adapter.layers[name]
    exact = before.double() + 0.75 * part.scale * (part.up.double() @ part.down.double())
    after = model.get_submodule(name).weight.detach()
    assert after.dtype == torch.bfloat16
    assert float((after.double() - exact).abs().max()) <= float(exact.abs().max()) * 2**-8


# ---- files ----


def test_round_trip_in_both_forms(tmp_path: Path) -> None:
    adapter = adapter_for(FOUR)
    for path in (tmp_path / "a.safetensors", tmp_path / "a"):
        write_adapter(path, adapter.layers, "tiny", {"note": "x"})
        again = read_adapter(path, FOUR)
        assert again.layers.keys() == adapter.layers.keys()
        for name, part in adapter.layers.items():
            other = again.layers[name]
            assert torch.equal(other.down, part.down) and torch.equal(other.up, part.up) and other.scale == part.scale
    settings = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", RANK, ALPHA)


def kohya(name: str) -> str:
    return "lora_unet_" + name.replace(".", "_")


@pytest.mark.parametrize(
    ("call", "down", "up"),
    [
        (lambda name: f"base_model.model.{name}", ".lora_A.weight", ".lora_B.weight"),
        (lambda name: f"diffusion_model.{name}", ".lora_A.default.weight", ".lora_B.default.weight"),
        (lambda name: f"transformer.{name}", ".lora.down.weight", ".lora.up.weight"),
        (lambda name: name, ".lora_A", ".lora_B"),
        (kohya, ".lora_down.weight", ".lora_up.weight"),
    ],
)
def test_names_of_other_trainers(call: Callable[[str], str], down: str, up: str, tmp_path: Path) -> None:
    adapter, tensors = adapter_for(FOUR), {}
    for name, part in adapter.layers.items():
        tensors |= {call(name) + down: part.down, call(name) + up: part.up, call(name) + ".alpha": torch.tensor(ALPHA)}
    save_file(tensors, tmp_path / "a.safetensors")
    again = read_adapter(tmp_path / "a.safetensors", FOUR)
    assert again.layers.keys() == adapter.layers.keys()
    assert all(part.scale == ALPHA / RANK for part in again.layers.values())


def test_without_an_alpha_it_is_the_rank(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a.safetensors", adapter_for(FOUR).layers, "tiny", {})
    tensors = load_file(tmp_path / "a.safetensors")
    save_file({k: v for k, v in tensors.items() if "alpha" not in k}, tmp_path / "b.safetensors")
    assert {part.scale for part in read_adapter(tmp_path / "b.safetensors", FOUR).layers.values()} == {1.0}


FIRST = "diffusion_model.videodit_blocks.layers.0.self_attention.linear_qkv.q"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({f"{FIRST}.lora_A.weight": torch.zeros(RANK, 7)}, ["linear_qkv.q", r"\[3, 7\]", r"\[rank, 48\]"]),
        ({f"{FIRST}.lora_B.weight": torch.zeros(48, 9)}, ["linear_qkv.q", r"\[48, 9\]"]),
        ({"diffusion_model.blocks.9.to_q.lora_A.weight": torch.zeros(3, 4)}, ["no linear layer 'blocks.9.to_q'"]),
        ({f"{FIRST}.dora_scale": torch.zeros(48)}, ["DoRA"]),
        ({f"{FIRST}.lokr_w1": torch.zeros(4, 4)}, ["LoKr"]),
        ({"encoder.weight": torch.zeros(4)}, ["no plain LoRA", "encoder.weight"]),
        ({f"{FIRST}.lora_A.weight": torch.full((RANK, 48), torch.nan)}, ["NaN", "linear_qkv.q"]),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Tensor], words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_adapter(path, adapter_for(FOUR).layers, "tiny", {})
    save_file({**load_file(path), **change}, path)
    with pytest.raises(MagiError, match=".*".join(words)):
        read_adapter(path, FOUR)


def test_it_says_which_model_it_was_made_for(tmp_path: Path) -> None:
    nano = load_dit("nano").config
    write_adapter(tmp_path / "a.safetensors", adapter_for(nano).layers, "nano", {})
    with pytest.raises(MagiError, match="It was made for nano"):
        read_adapter(tmp_path / "a.safetensors", FOUR)


def test_choosing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_adapter(Path("a.safetensors"), adapter_for(FOUR).layers, "tiny", {})
    assert Lora.parse("a.safetensors") == Lora(Path("a.safetensors"), 1.0)
    assert Lora.parse("a.safetensors:-0.5").strength == -0.5
    again = Lora.of_document(json.loads(json.dumps(Lora(Path("a.safetensors"), 0.1).document())))
    assert (again.path, again.strength) == (tmp_path / "a.safetensors", 0.1)
    for wrong in ("b.safetensors", "a.safetensors:strong", "a.safetensors:nan", "a.safetensors:1000"):
        with pytest.raises(MagiError, match=r"b\.safetensors|strong|strength"):
            Lora.parse(wrong)
    pinned = Lora(Path("a.safetensors")).pinned()
    pinned.check()
    write_adapter(Path("a.safetensors"), adapter_for(FOUR, 2).layers, "tiny", {})
    with pytest.raises(MagiError, match="has changed"):
        pinned.check()
