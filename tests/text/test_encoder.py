"""The T5 encoder and its cache, on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from magi_core.errors import MagiError
from magi_core.golden import Golden, compare
from magi_core.text import EmbeddingCache, T5TextEncoder
from magi_core.text.tokenizer import byte_ids
from magi_core.text.weights import T5Sizes, build_t5, find_t5, fingerprint

SIZES = T5Sizes(vocab_size=384, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level encoder in one file, as artists keep T5 encoders."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("t5") / "t5xxl_tiny.safetensors"
    save_file({k: v.contiguous() for k, v in build_t5(SIZES).state_dict().items() if "embed_tokens" not in k}, path)
    return path


def test_recorded_encoder(golden: Golden, tmp_path: Path) -> None:
    if not golden.family("t5"):
        pytest.skip("this golden folder has no t5 case")
    case = golden.case("t5/encoder")
    (tmp_path / "spiece.model").write_bytes(b"not read here")
    encoder = T5TextEncoder(golden.weights_path("t5_tiny"), vocabulary=tmp_path)
    assert encoder.files.sizes.num_layers == 2 and encoder.channels == 64
    largest, relative = compare(encoder.encode_ids(**case.inputs), case.outputs["last_hidden_state"])
    limit = case.tolerance["last_hidden_state"]
    assert largest <= limit.max_abs and relative <= limit.rel_rms


def test_padding_changes_nothing_that_is_real(weights: Path) -> None:
    encoder = T5TextEncoder(weights, max_length=40)
    ids = byte_ids("a red ball", 40)
    padded = torch.tensor([ids + [0] * (40 - len(ids))])
    features = encoder.encode_ids(padded, (padded != 0).long())[0, : len(ids)]
    (caption,) = encoder.encode(["a RED  ball"])
    torch.testing.assert_close(caption.embedding, features, atol=1e-5, rtol=1e-5)
    assert caption.mask.all() and len(caption) == len(ids)


def test_each_distinct_prompt_is_encoded_once(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = T5TextEncoder(weights)
    seen: list[int] = []
    plain = encoder.encode_ids
    monkeypatch.setattr(encoder, "encode_ids", lambda ids, mask: seen.append(len(ids)) or plain(ids, mask))
    captions = encoder.encode(["one", "Two", "ONE ", "two"])
    assert seen == [1, 1]
    assert captions[0] is captions[2] and captions[1] is captions[3]
    batched = encoder.encode(["one", "two, and more"], batch_size=8)
    assert seen[2:] == [2]
    torch.testing.assert_close(batched[0].embedding, captions[0].embedding, atol=1e-5, rtol=1e-5)


def test_long_prompt_is_cut_with_its_end_token(weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = T5TextEncoder(weights, max_length=6)
    assert encoder.token_ids("a red ball") == byte_ids("a red", 6)
    assert "longer than 6 tokens" in caplog.text
    assert len(encoder.encode([""])[0]) == 1  # the end token alone


def test_cache_spares_the_network(weights: Path, tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "captions")
    (first,) = T5TextEncoder(weights, cache=cache).encode(["a red ball"])
    again = T5TextEncoder(weights, cache=cache)
    (second,) = again.encode(["A red ball"])
    assert again._network is None
    assert torch.equal(first.embedding, second.embedding) and torch.equal(first.mask, second.mask)
    (rounded,) = T5TextEncoder(weights, cache=cache, dtype=torch.bfloat16).encode(["a red ball"])
    assert not torch.equal(rounded.embedding, first.embedding)  # another type is another entry


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damaged_cache_entry_is_made_again(weights: Path, tmp_path: Path, damage: str) -> None:
    cache = EmbeddingCache(tmp_path)
    encoder = T5TextEncoder(weights, cache=cache)
    (good,) = encoder.encode(["ball"])
    (entry,) = tmp_path.glob("*.safetensors")
    content = entry.read_bytes()
    entry.write_bytes(
        {"truncate": content[:-9], "flip": content[:-40] + bytes([content[-40] ^ 1]) + content[-39:], "empty": b""}[
            damage
        ]
    )
    (made,) = encoder.encode(["ball"])
    assert torch.equal(made.embedding, good.embedding)
    assert entry.read_bytes() == content


def test_cache_forgets_what_was_used_longest_ago(weights: Path, tmp_path: Path) -> None:
    encoder = T5TextEncoder(weights)
    caption = encoder.encode(["ball"])[0]
    EmbeddingCache(tmp_path).put("m", "0", caption)
    size = next(tmp_path.iterdir()).stat().st_size
    cache = EmbeddingCache(tmp_path, limit_bytes=3 * size)
    (tmp_path / "mine.safetensors").write_bytes(b"an artist's own file")
    for text in ("1", "2"):
        cache.put("m", text, caption)
    assert cache.get("m", "0", 16) is not None  # used now, so "1" is the oldest
    cache.put("m", "3", caption)
    assert [text for text in "0123" if cache.path("m", text).exists()] == ["0", "2", "3"]
    assert (tmp_path / "mine.safetensors").exists()


def test_cache_that_cannot_be_written_is_no_error(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    encoder = T5TextEncoder(weights, cache=EmbeddingCache(tmp_path / "file"))
    assert len(encoder.encode(["ball"])) == 1
    assert "cannot store the caption" in caplog.text


def test_release_folder_with_shards(weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "t5-v1_1-xxl"
    folder.mkdir()
    tensors = load_file(weights)
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard)
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    expected = T5TextEncoder(weights).encode(["ball"])[0]
    made = T5TextEncoder(tmp_path).encode(["ball"])[0]
    assert torch.equal(made.embedding, expected.embedding)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MagiError, match="fetch all shards"):
        T5TextEncoder(tmp_path)


def test_scaled_fp8_weights(weights: Path, tmp_path: Path) -> None:
    tensors = load_file(weights)
    plain, scaled = dict(tensors), dict(tensors)
    for name in [n for n in tensors if "SelfAttention" in n and "bias" not in n]:
        scale = tensors[name].abs().max() / 448
        quantised = (tensors[name] / scale).to(torch.float8_e4m3fn)
        plain[name] = quantised.float() * scale
        scaled |= {name: quantised, name.replace("weight", "scale_weight"): scale}
    scaled["scaled_fp8"] = torch.zeros(0)
    save_file(plain, tmp_path / "plain.safetensors")
    save_file(scaled, tmp_path / "scaled.safetensors")
    a, b = (T5TextEncoder(tmp_path / f"{name}.safetensors").encode(["ball"])[0] for name in ("plain", "scaled"))
    torch.testing.assert_close(a.embedding, b.embedding)


def test_what_is_no_t5_is_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(MagiError, match="does not exist"):
        find_t5(tmp_path / "nowhere")
    with pytest.raises(MagiError, match="holds no T5 weights"):
        find_t5(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(MagiError, match="never opened"):
        find_t5(tmp_path)
    tensors = load_file(weights)
    path = tmp_path / "t5.safetensors"
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    save_file({**tensors, bias.format(1): tensors[bias.format(0)].clone()}, path)
    with pytest.raises(MagiError, match="umT5"):
        find_t5(path)
    save_file({k: v for k, v in tensors.items() if "shared" not in k}, path)
    with pytest.raises(MagiError, match=r"not a T5 v1.1 encoder: it has no tensor"):
        find_t5(path)
    save_file({k: v for k, v in tensors.items() if "final_layer_norm" not in k}, path)
    with pytest.raises(MagiError, match="lacks 1 tensors"):
        T5TextEncoder(path).encode(["ball"])
    path.write_bytes(b"\0" * 50)
    with pytest.raises(MagiError, match="Fetch the file again"):
        find_t5(path)


def test_missing_vocabulary_says_what_to_do(weights: Path, tmp_path: Path) -> None:
    tensors = load_file(weights)
    tensors["shared.weight"] = tensors["shared.weight"][:120].clone()
    save_file(tensors, tmp_path / "t5xxl.safetensors")
    with pytest.raises(MagiError, match=r"Put spiece\.model of t5-v1_1-xxl into a folder"):
        find_t5(tmp_path / "t5xxl.safetensors")


def test_arguments_that_cannot_be_used(weights: Path) -> None:
    with pytest.raises(MagiError, match="list of strings"):
        T5TextEncoder(weights).encode("a single prompt")
    with pytest.raises(MagiError, match=r"cannot run in torch\.float16"):
        T5TextEncoder(weights, dtype=torch.float16)
    with pytest.raises(MagiError, match="does not belong"):
        T5TextEncoder(weights).encode_ids(torch.tensor([[500, 1]]), torch.ones(1, 2))


def test_fingerprint_sees_changed_weights(weights: Path, tmp_path: Path) -> None:
    tensors = load_file(weights)
    other = tmp_path / weights.name
    save_file(tensors, other)
    assert fingerprint(find_t5(other)) == fingerprint(find_t5(weights))
    tensors["encoder.final_layer_norm.weight"] += 1
    save_file(tensors, other)
    assert fingerprint(find_t5(other)) != fingerprint(find_t5(weights))
