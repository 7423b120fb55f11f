"""What is on disk is what the model gets, however the checkpoint is split, packed or converted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from magi_core.check import check
from magi_core.checkpoint.convert import convert
from magi_core.checkpoint.find import find_checkpoint
from magi_core.checkpoint.load import load_dit
from magi_core.config import DiTConfig, MagiConfig
from magi_core.config_file import config_document
from magi_core.errors import MagiError
from magi_core.golden import Golden
from tests.checkpoint.tiny import compress, random_tensors, write_shards


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].float(), tensor.float()), name


def _skip_absent(golden: Golden, name: str) -> None:
    if name not in golden.json("manifest.json")["configs"]:
        pytest.skip(f"configuration {name} is not in this golden folder")


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_golden_weights(golden: Golden, name: str) -> None:
    """float32 configurations get the stored values up-cast; fp8 weights stay as stored."""
    _skip_absent(golden, name)
    stored = golden.weights(name)
    wanted = {k: v if v.dtype == torch.float8_e4m3fn else v.float() for k, v in stored.items()}
    model = load_dit(golden.weights_path(name), golden.config(name).dit)
    assert_same(model.state_dict(), wanted)


def test_promotions(golden: Golden) -> None:
    """A bfloat16 model keeps the file's tensors; embedders, output and some norms become float32."""
    state = load_dit(golden.weights_path("a"), golden.config("a_bf16").dit).state_dict()
    assert all(torch.equal(state[name].float(), tensor.float()) for name, tensor in golden.weights("a").items())
    dtypes = {name.split(".", 3)[-1]: tensor.dtype for name, tensor in state.items() if ".layers.1." in name}
    assert dtypes["self_attention.q_layernorm.weight"] == torch.float32
    assert dtypes["self_attention.q_layernorm_xattn.weight"] == torch.bfloat16
    assert dtypes["mlp.linear_fc1.weight"] == torch.bfloat16
    assert state["x_embedder.weight"].dtype == state["rope.bands"].dtype == torch.float32


def test_dtype_is_chosen(tmp_path: Path, tiny: DiTConfig, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    model = load_dit(tmp_path, tiny, dtype=torch.bfloat16)
    assert model.config.params_dtype == torch.bfloat16
    weight = "videodit_blocks.layers.0.mlp.linear_fc1.weight"
    assert torch.equal(model.state_dict()[weight], tensors[weight].to(torch.bfloat16))
    assert torch.equal(model.state_dict()["x_embedder.weight"], tensors["x_embedder.weight"])


def test_what_was_read_is_known_wherever_it_is_kept(
    tmp_path: Path, tiny: DiTConfig, tensors: dict[str, Tensor]
) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    write_shards(tmp_path / "shards", tensors, 3)
    known = load_dit(tmp_path, tiny).origin
    assert known.keys() == {"weights", "sampled_weights"}
    for kept in (
        load_dit(tmp_path / "shards", tiny),
        load_dit(tmp_path, tiny, weights="streamed"),
        load_dit(tmp_path, tiny, dtype=torch.bfloat16),
        load_dit(tmp_path, tiny, fp8=True),
    ):
        assert kept.origin == known
    weight = "videodit_blocks.layers.1.mlp.linear_fc1.weight"
    save_file({**tensors, weight: tensors[weight] * 1.01}, tmp_path / "model.safetensors")
    merged = load_dit(tmp_path, tiny).origin
    assert merged["weights"] == known["weights"] and merged["sampled_weights"] != known["sampled_weights"]


def test_changing_the_model_leaves_the_file(tmp_path: Path, tiny: DiTConfig, tensors: dict[str, Tensor]) -> None:
    """Parameters are mapped from the file: writing to them must stay in memory."""
    save_file(tensors, tmp_path / "model.safetensors")
    with torch.no_grad():
        for parameter in load_dit(tmp_path, tiny).parameters():
            parameter.zero_()
    assert_same(load_dit(tmp_path, tiny).state_dict(), tensors)


@pytest.mark.parametrize("fp8", [False, True])
def test_shards_and_zst_equal_single(tmp_path: Path, tiny: DiTConfig, fp8: bool) -> None:
    config = replace(tiny, fp8_quant=fp8, distill=fp8)
    tensors = random_tensors(config)
    save_file(tensors, tmp_path / "model.safetensors")
    write_shards(tmp_path / "shards", tensors, 3)
    single = load_dit(tmp_path / "model.safetensors", config).state_dict()
    assert_same(single, tensors)
    assert_same(load_dit(tmp_path / "shards", config).state_dict(), single)
    packed = compress(tmp_path / "shards" / "model-00002-of-00003.safetensors")
    assert_same(load_dit(tmp_path / "shards", config, cache=tmp_path / "cache").state_dict(), single)
    assert not packed.with_suffix("").exists()
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert_same(load_dit(tmp_path / "shards", config).state_dict(), single)
    assert packed.with_suffix("").is_file()
    compress(tmp_path / "model.safetensors")
    assert_same(load_dit(tmp_path, config).state_dict(), single)


@pytest.mark.parametrize("name", ["a", "c"])
def test_convert_keeps_every_bit(tmp_path: Path, golden: Golden, name: str) -> None:
    _skip_absent(golden, name)
    config = golden.config(name)
    source = tmp_path / "model"
    write_shards(source / f"inference_weight{'.fp8.distill' if name == 'c' else ''}", golden.weights(name))
    (source / "config.json").write_text(json.dumps(config_document(config)))
    target = tmp_path / "out" / "one.safetensors"
    convert(source, target)
    assert_same(load_file(target), golden.weights(name))
    found = find_checkpoint(target)
    assert found.config == config
    assert found.notes == ()
    assert_same(load_dit(target).state_dict(), load_dit(source).state_dict())


def test_convert_to_float16(tmp_path: Path, tiny: DiTConfig, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    target = tmp_path / "half.safetensors"
    notes = convert(tmp_path, target, torch.float16)
    half = load_file(target)
    assert torch.equal(half["x_embedder.weight"], tensors["x_embedder.weight"].half())
    assert torch.equal(half["rope.bands"], tensors["rope.bands"])
    assert find_checkpoint(target).notes == ("; ".join(notes),)
    before = target.read_bytes()
    save_file({**tensors, "x_embedder.weight": tensors["x_embedder.weight"] * 1e9}, tmp_path / "model.safetensors")
    with pytest.raises(MagiError, match=r"x_embedder\.weight"):
        convert(tmp_path, target, torch.float16)
    assert target.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["half.safetensors", "model.safetensors"]


def test_release_folder(
    tmp_path: Path, tensors: dict[str, Tensor], tiny: DiTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The public layout: models beside each other, VAE and T5 above them, kinds told by folder names."""
    magi = tmp_path / "ckpt" / "magi"
    distill = magi / "tiny_distill" / "inference_weight.distill"
    write_shards(distill, tensors)
    for folder, file in (("vae", "diffusion_pytorch_model.safetensors"), ("t5/t5-v1_1-xxl", "model.safetensors")):
        (tmp_path / "ckpt" / folder).mkdir(parents=True)
        save_file({"x": torch.zeros(1)}, tmp_path / "ckpt" / folder / file)
        (tmp_path / "ckpt" / folder / "config.json").write_text("{}")
    for place in (tmp_path, tmp_path / "ckpt", distill, distill.parent, distill / "model.safetensors.index.json"):
        found = find_checkpoint(place)
        assert found.config.dit.distill
        assert found.config.sampling.cfg_number == 1
        assert found.vae == tmp_path / "ckpt" / "vae"
        assert found.t5 == tmp_path / "ckpt" / "t5" / "t5-v1_1-xxl"
        assert len(found.missing) == 1
        assert "special tokens" in found.missing[0]
    for below, place in (("", "."), ("shards", "..")):
        (distill / below).mkdir(exist_ok=True)
        monkeypatch.chdir(distill / below)
        assert find_checkpoint(place).config.dit.distill, "the folder's name counts, wherever one stands"
    (tmp_path / "special_tokens.npz").touch()
    assert find_checkpoint(tmp_path).missing == ()
    write_shards(magi / "tiny_base" / "inference_weight", tensors)
    with pytest.raises(MagiError, match="choose one"):
        find_checkpoint(tmp_path)
    assert not find_checkpoint(magi / "tiny_base").config.dit.distill


def test_configuration_file(
    tmp_path: Path, tensors: dict[str, Tensor], tiny: DiTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths count from the file or from the working folder; weights of another kind are pointed out."""
    monkeypatch.chdir(tmp_path)
    config = MagiConfig(dit=tiny, load="./ckpt/tiny", vae_pretrained="./elsewhere/vae")
    (tmp_path / "example").mkdir()
    file = tmp_path / "example" / "tiny_config.json"
    file.write_text(json.dumps(config_document(config)))
    write_shards(tmp_path / "ckpt/tiny/inference_weight.distill", tensors)
    found = find_checkpoint(file)
    assert found.dit is None
    assert "inference_weight.distill" in found.missing[0]
    with pytest.raises(MagiError, match=r"there is inference_weight\.distill"):
        load_dit(found)
    (tmp_path / "ckpt/tiny/inference_weight.distill").rename(tmp_path / "ckpt/tiny/inference_weight")
    (tmp_path / "elsewhere/vae").mkdir(parents=True)
    (tmp_path / "elsewhere/vae/config.json").write_text("{}")
    save_file({"x": torch.zeros(1)}, tmp_path / "elsewhere/vae/diffusion_pytorch_model.safetensors")
    found = find_checkpoint(file)
    assert found.config == config
    assert found.vae is not None
    assert_same(load_dit(file).state_dict(), tensors)


def test_hugging_face_cache_links(tmp_path: Path, tensors: dict[str, Tensor], tiny: DiTConfig) -> None:
    """The hub's cache keeps files as links into its blobs folder; those are followed, others are not."""
    snapshot = tmp_path / "repo" / "snapshots" / "0123" / "inference_weight"
    write_shards(snapshot, tensors)
    shard = snapshot / "model-00001-of-00002.safetensors"
    for place, allowed in ((tmp_path / "repo" / "blobs", True), (tmp_path / "other", False)):
        place.mkdir()
        shard.resolve().rename(place / "blob")
        shard.unlink(missing_ok=True)
        shard.symlink_to(place / "blob")
        if allowed:
            assert_same(load_dit(snapshot, tiny).state_dict(), tensors)
        else:
            with pytest.raises(MagiError, match="link"):
                load_dit(snapshot, tiny)


def test_check_report(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    report = check(tmp_path, deep=True)
    assert not report.problems
    assert not report.complete
    text = report.text()
    assert "transformer" in text
    assert "missing          VAE" in text
    assert "fits" in text
    broken = {**tensors, "x_embedder.weight": tensors["x_embedder.weight"] * float("nan")}
    save_file(broken, tmp_path / "model.safetensors")
    assert check(tmp_path).problems == ()
    assert "x_embedder.weight" in check(tmp_path, deep=True).problems[0]
