"""A T5 in a GGUF file says what a T5 with the numbers that the file stands for says."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from magi_core.check import check
from magi_core.checkpoint.find import BUILT_IN, find_checkpoint
from magi_core.errors import MagiError
from magi_core.text import T5TextEncoder
from magi_core.text.gguf import open_gguf
from magi_core.text.weights import T5Sizes, build_t5, find_t5

pytest.importorskip("gguf", reason="the package 'gguf' is not installed: pip install 'comfyui-magi[gguf]'")
from tests.tiny_gguf import write_gguf

ADVICE = r"pip install 'comfyui-magi\[gguf\]'"
SIZES = T5Sizes(vocab_size=384, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_t5(SIZES)
    assert sum(parameter.numel() for parameter in network.parameters()) == SIZES.parameters
    return {name: value for name, value in network.state_dict().items() if "embed_tokens" not in name}


@pytest.fixture(scope="module")
def whole(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "t5-v1_1-xxl-encoder-Q8_0.gguf"
    write_gguf(weights, path, "Q8_0")
    return path


def nano_with(t5: Path, folder: Path) -> Path:
    """magi-nano's folder, with that file as its text encoder."""
    model = folder / "model"
    shutil.copytree(BUILT_IN["nano"], model, ignore=shutil.ignore_patterns("t5"))
    (model / "t5").mkdir()
    shutil.copy(t5, model / "t5")
    return model


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1", "BF16"])
def test_captions_are_those_of_the_restored_weights(weights: dict[str, Tensor], tmp_path: Path, kind: str) -> None:
    meant = write_gguf(weights, tmp_path / f"t5-{kind}.gguf", kind)
    save_file(meant, tmp_path / "t5.safetensors")
    expected, made = (
        T5TextEncoder(tmp_path / name).encode(["a red ball rolls"])[0] for name in ("t5.safetensors", f"t5-{kind}.gguf")
    )
    assert torch.equal(made.embedding, expected.embedding) and torch.equal(made.mask, expected.mask)
    assert not torch.equal(meant["shared.weight"], weights["shared.weight"])


def test_a_model_folder_with_a_gguf_is_whole(whole: Path, tmp_path: Path) -> None:
    model = nano_with(whole, tmp_path)
    assert find_checkpoint(model).t5 == model / "t5" / whole.name
    assert find_t5(model / "t5").sizes == SIZES
    part = next(part for part in check(model).parts if part.name == "text encoder")
    assert part.dtypes == "Q8_0 + F32 + F16" and part.parameters == SIZES.parameters
    assert 0.95 < part.nbytes / whole.stat().st_size < 1


def test_a_missing_package_is_named(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MagiError, match=ADVICE):
        T5TextEncoder(whole)
    (problem,) = check(nano_with(whole, tmp_path)).problems
    assert re.search(ADVICE, problem)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_damaged_file_is_refused_or_read(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(whole.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(1, 3)) if content else 0):
        content[data.draw(st.integers(0, min(2000, len(content)) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "t5.gguf"
    path.write_bytes(content)
    try:
        tensors = open_gguf(path)
        assert all(tensor.values().shape == tensor.shape for tensor in tensors.values())
    except MagiError as error:
        assert "t5.gguf" in str(error)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ((4).to_bytes(4, "little") + (1 << 20).to_bytes(8, "little"), r"it needs \d+ bytes and has \d+"),
        (((9).to_bytes(4, "little") + (1).to_bytes(8, "little")) * 2000, "recursion"),
    ],
    ids=["longer than the file", "arrays of arrays"],
)
def test_an_array_without_end_is_refused(tmp_path: Path, written: bytes, said: str) -> None:
    gguf, path = pytest.importorskip("gguf"), tmp_path / "t5.gguf"
    writer = gguf.GGUFWriter(path, "t5encoder")
    writer.add_array("tokens", [7, 8, 9])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = path.read_bytes()
    array = (
        content.index(b"tokens") + len(b"tokens") + 4
    )  # behind the type of the field: type of the items, and how many
    path.write_bytes(content[:array] + written + content[array + 12 :])
    with pytest.raises(MagiError, match=f"{said}.*Fetch the file again"):
        open_gguf(path)


def test_a_file_that_is_cut_is_refused(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "t5.gguf"
    for length in (0, 3, 100, 5000, whole.stat().st_size - 1):
        path.write_bytes(whole.read_bytes()[:length])
        with pytest.raises(MagiError, match="Fetch the file again"):
            find_t5(path)


def test_another_model_in_gguf_is_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    layer = {name: value for name, value in weights.items() if "SelfAttention.q" in name}
    write_gguf(layer, tmp_path / "other.gguf", "Q8_0")
    with pytest.raises(MagiError, match=r"not a T5 v1\.1 encoder"):
        find_t5(tmp_path / "other.gguf")
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    write_gguf({**weights, bias.format(1): weights[bias.format(0)]}, tmp_path / "umt5.gguf", "Q8_0")
    with pytest.raises(MagiError, match="umT5"):
        find_t5(tmp_path / "umt5.gguf")
