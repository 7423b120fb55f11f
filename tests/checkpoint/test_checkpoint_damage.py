"""Whatever is done to a checkpoint, it loads unchanged or there is one clear error: never another exception, never other values."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from magi_core.check import check
from magi_core.checkpoint.find import find_checkpoint
from magi_core.checkpoint.load import load_dit
from magi_core.config_file import config_document
from magi_core.errors import MagiError
from tests.checkpoint.tiny import TINY, compress, random_tensors, write_shards

WEIGHTS = random_tensors(TINY)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
OTHER_MODELS = (
    "model.diffusion_model.blocks.0.self_attn.q.weight",
    "double_blocks.0.img_attn.qkv.weight",
    "transformer_blocks.0.attn1.to_q.weight",
    "encoder.block.0.layer.0.SelfAttention.q.weight",
    "decoder.proj_in.weight",
    "lora_unet.lora_down.weight",
    "\u202eevil\n\x1b[31m" * 50,
)
Damage = Callable[[Path, Random], None]


def split_header(file: Path) -> tuple[dict[str, Any], bytes]:
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join_header(file: Path, header: object, data: bytes) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def edit_header(change: Callable[[dict[str, Any], str, Random], None]) -> Damage:
    """Apply ``change`` to the header, given the name of a random tensor."""

    def damage(folder: Path, random: Random) -> None:
        save_file(WEIGHTS, folder / SINGLE)
        header, data = split_header(folder / SINGLE)
        change(header, random.choice(sorted(header)), random)
        join_header(folder / SINGLE, header, data)

    return damage


def edit_tensors(change: Callable[[dict[str, Tensor], str, Random], None]) -> Damage:
    """Apply ``change`` to the tensors before they are saved, in one file or two."""

    def damage(folder: Path, random: Random) -> None:
        tensors = dict(WEIGHTS)
        change(tensors, random.choice(sorted(tensors)), random)
        if random.random() < 0.5 and len(tensors) > 1:
            write_shards(folder, tensors)
        else:
            save_file(tensors, folder / SINGLE)

    return damage


def edit_index(change: Callable[[dict[str, Any], str, Random], None]) -> Damage:
    def damage(folder: Path, random: Random) -> None:
        write_shards(folder, WEIGHTS)
        index = json.loads((folder / INDEX).read_text())
        change(index, random.choice(sorted(index["weight_map"])), random)
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def write(name: str, content: Callable[[Random], bytes]) -> Damage:
    def damage(folder: Path, random: Random) -> None:
        (folder / name).write_bytes(content(random))

    return damage


def truncate(folder: Path, random: Random) -> None:
    save_file(WEIGHTS, folder / SINGLE)
    raw = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(raw[: random.choice((random.randrange(len(raw)), random.randrange(64)))])


def flip_header_byte(folder: Path, random: Random) -> None:
    save_file(WEIGHTS, folder / SINGLE)
    raw = bytearray((folder / SINGLE).read_bytes())
    length = int.from_bytes(raw[:8], "little")
    raw[random.choice((random.randrange(8), random.randrange(8, 8 + length)))] ^= 1 << random.randrange(8)
    (folder / SINGLE).write_bytes(raw)


def truncate_shard(folder: Path, random: Random) -> None:
    write_shards(folder, WEIGHTS)
    shard = random.choice(sorted(folder.glob("*.safetensors")))
    random.choice((shard.unlink, lambda: shard.write_bytes(shard.read_bytes()[: random.randrange(5000)])))()


def flip_zst_byte(folder: Path, random: Random) -> None:
    save_file(WEIGHTS, folder / SINGLE)
    packed = compress(folder / SINGLE)
    raw = bytearray(packed.read_bytes())
    raw[random.choice((random.randrange(32), random.randrange(len(raw))))] ^= 1 << random.randrange(8)
    packed.write_bytes(raw)


def truncate_zst(folder: Path, random: Random) -> None:
    save_file(WEIGHTS, folder / SINGLE)
    packed = compress(folder / SINGLE)
    packed.write_bytes(packed.read_bytes()[: random.randrange(packed.stat().st_size)])


def longer_zst(folder: Path, random: Random) -> None:
    """More inside than the header promises: refused when the promise is exceeded, whatever follows."""
    save_file(WEIGHTS, folder / SINGLE)
    with (folder / SINGLE).open("ab") as file:
        file.write(bytes(random.choice((1, 1 << 20, 64 << 20))))
    compress(folder / SINGLE)


def promising_zst(folder: Path, random: Random) -> None:
    """A header that promises up to terabytes, with or without the zeros to keep the promise."""
    count = 1 << random.choice((28, 33, 44))
    header = {"x_embedder.weight": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}
    join_header(folder / SINGLE, header, bytes(random.choice((0, 1 << 22))))
    compress(folder / SINGLE)


def link_outside(folder: Path, random: Random) -> None:
    write_shards(folder, WEIGHTS)
    shard = random.choice(sorted(folder.glob("*.safetensors")))
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    shutil.move(shard, elsewhere / "shard")
    shard.symlink_to(elsewhere / "shard")


def other_model(folder: Path, random: Random) -> None:
    save_file({random.choice(OTHER_MODELS): torch.zeros(2), "other.weight": torch.zeros(3)}, folder / SINGLE)


def reshape(tensors: dict[str, Tensor], name: str, random: Random) -> None:
    tensors[name] = random.choice(
        (tensors[name][None], tensors[name].reshape(-1)[:-1].clone(), tensors[name].new_zeros(()), tensors[name][:0])
    )


def retype(tensors: dict[str, Tensor], name: str, random: Random) -> None:
    tensors[name] = tensors[name].to(random.choice((torch.int8, torch.float64, torch.float8_e4m3fn, torch.bool)))


def poison(tensors: dict[str, Tensor], name: str, random: Random) -> None:
    values = tensors[name].clone().reshape(-1)
    values[random.randrange(len(values))] = random.choice((math.nan, math.inf, -math.inf))
    tensors[name] = values.reshape(tensors[name].shape)


def drop(tensors: dict[str, Tensor], name: str, random: Random) -> None:
    for gone in random.sample(sorted(tensors), random.choice((1, 20, len(tensors) - 1))):
        del tensors[gone]


def add(tensors: dict[str, Tensor], name: str, random: Random) -> None:
    layer = random.choice(("3", "-1", "x", "99999999", "٣"))
    tensors[random.choice(("extra", f"videodit_blocks.layers.{layer}.mlp.linear_fc1.weight"))] = torch.zeros(1)


def move_range(header: dict[str, Any], name: str, random: Random) -> None:
    header[name]["data_offsets"] = random.choice(
        ([0, 4], [-4, 0], [4, 0], [0, 1 << 60], [0], "all", [0.0, 4.0], [True, False], None, [1 << 70, 1 << 71])
    )


def change_shape(header: dict[str, Any], name: str, random: Random) -> None:
    header[name]["shape"] = random.choice(
        ([1 << 31, 1 << 31, 1 << 31], [-1], [0], ["2"], [2.0], None, {}, [[1]], [1] * 1000, [1 << 200])
    )


def change_dtype(header: dict[str, Any], name: str, random: Random) -> None:
    header[name]["dtype"] = random.choice(("F16", "F4", "X", "", None, 7, ["F32"], "F32" * 10000))


def change_entry(header: dict[str, Any], name: str, random: Random) -> None:
    header[name] = random.choice((None, 1, [], "x", {}))


def bad_metadata(header: dict[str, Any], name: str, random: Random) -> None:
    config = random.choice(("{", "[]", '{"model_config": 1}', '{"model_config": {"num_layers": 1e9}}', "[" * 9999, 5))
    header["__metadata__"] = (
        random.choice(({"magi_config": config}, [1], "text")) if config != 5 else {"magi_config": 5}
    )


def bad_file_name(index: dict[str, Any], name: str, random: Random) -> None:
    index["weight_map"][name] = random.choice(
        (
            "/etc/passwd",
            "../model.safetensors",
            "..",
            "",
            ".",
            "C:\\x.safetensors",
            "\\\\host\\share\\x.safetensors",
            "sub/model.safetensors",
            "model.safetensors:stream",
            "model\x00.safetensors",
            "http://x/y.safetensors",
            "model.bin",
            "a" * 5000 + ".safetensors",
            "none.safetensors",
            None,
            7,
            ["model-00001-of-00002.safetensors"],
        )
    )


def swap_shard(index: dict[str, Any], name: str, random: Random) -> None:
    files = sorted(set(index["weight_map"].values()))
    index["weight_map"][name] = next(file for file in files if file != index["weight_map"][name])


def bad_index(index: dict[str, Any], name: str, random: Random) -> None:
    kind = random.randrange(4)
    if kind == 0:
        del index["weight_map"][name]
    elif kind == 1:
        index["weight_map"]["extra"] = index["weight_map"][name]
    else:
        index["weight_map"] = random.choice(({}, [], None, "x"))


def deep(random: Random) -> bytes:
    """JSON nested deeper than a parser's stack, or with numbers too long to convert."""
    depth = random.choice((2000, 100_000))
    return random.choice((b"[" * depth, b'{"a":' * depth, b'{"a":' + b"9" * depth + b"}", b"\xff\xfe", b"null", b""))


def deep_header(folder: Path, random: Random) -> None:
    join_header(folder / SINGLE, deep(random), b"")


def bad_config(folder: Path, random: Random) -> None:
    """The model's config.json: other types, numbers without end, sizes without sense."""
    write_shards(folder / "inference_weight", WEIGHTS)
    document = config_document(find_checkpoint(folder / "inference_weight").config)
    model = random.choice(sorted(document["model_config"]))
    document["model_config"][model] = random.choice(
        (math.nan, math.inf, -1, 0, 10**12, 10**400, None, "x", [1], {}, 0.5)
    )
    text = random.choice((json.dumps(document).encode(), deep(random)))
    (folder / "config.json").write_bytes(text)


CONTENTS = (
    b"",
    b"\x80\x02}q\x00.",
    b"PK\x03\x04zip",
    b"<!DOCTYPE html>",
    b"version https://git-lfs.github.com/spec/v1\n",
    b"{}",
)
MUST_FAIL: dict[str, Damage] = {
    "truncated": truncate,
    "longer": lambda folder, random: (save_file(WEIGHTS, folder / SINGLE), (folder / SINGLE).open("ab").write(b"x"))[0],
    "huge header": write(
        SINGLE, lambda random: random.choice((1 << 62, 1 << 30, 17 << 20)).to_bytes(8, "little") + b"{}"
    ),
    "other content": write(SINGLE, lambda random: random.choice(CONTENTS)),
    "noise": write(SINGLE, lambda random: random.randbytes(random.randrange(400))),
    "noise in zst": write(SINGLE + ".zst", lambda random: random.randbytes(random.randrange(400))),
    "pickle": write("model.bin", lambda random: b"\x80\x02}q\x00."),
    "deep header": deep_header,
    "deep index": write(INDEX, deep),
    "byte range": edit_header(move_range),
    "shape in header": edit_header(change_shape),
    "dtype in header": edit_header(change_dtype),
    "entry in header": edit_header(change_entry),
    "wrong shape": edit_tensors(reshape),
    "wrong dtype": edit_tensors(retype),
    "not finite": edit_tensors(poison),
    "missing": edit_tensors(drop),
    "unexpected": edit_tensors(add),
    "other model": other_model,
    "index path": edit_index(bad_file_name),
    "index shard": edit_index(swap_shard),
    "index": edit_index(bad_index),
    "link": link_outside,
    "shard": truncate_shard,
    "zst truncated": truncate_zst,
    "zst longer": longer_zst,
    "zst bomb": promising_zst,
}
MAY_FAIL: dict[str, Damage] = {
    "bit of the header": flip_header_byte,
    "bit of a zst": flip_zst_byte,
    "metadata": edit_header(bad_metadata),
    "config": bad_config,
}


def attempt(action: Callable[[], object]) -> str:
    """The message of the MagiError that ``action`` raises, or an empty text; any other exception fails the test."""
    try:
        action()
    except MagiError as error:
        return str(error)
    return ""


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(sorted(MUST_FAIL | MAY_FAIL)), random=st.randoms(use_true_random=False))
def test_damaged_checkpoints(tmp_path_factory: pytest.TempPathFactory, kind: str, random: Random) -> None:
    folder = tmp_path_factory.mktemp("damage")
    (MUST_FAIL | MAY_FAIL)[kind](folder, random)
    for action in (lambda: find_checkpoint(folder), lambda: check(folder).text(), lambda: load_dit(folder)):
        assert_clear(attempt(action))
    message = ""
    try:
        state = load_dit(folder, TINY).state_dict()
    except MagiError as error:
        message = str(error)
    else:
        assert all(torch.equal(state[name], tensor) for name, tensor in WEIGHTS.items())
    assert message or kind in MAY_FAIL, kind
    assert_clear(message)
    shutil.rmtree(folder)
    shutil.rmtree(folder.parent / "elsewhere", ignore_errors=True)


@pytest.mark.parametrize("kind", sorted(MUST_FAIL | MAY_FAIL))
def test_every_kind_of_damage_once(tmp_path: Path, kind: str) -> None:
    """The property above draws kinds at random; this makes sure that none is left out."""
    (MUST_FAIL | MAY_FAIL)[kind](tmp_path, Random(kind))
    message = attempt(lambda: load_dit(tmp_path, TINY))
    assert message or kind in MAY_FAIL
    assert_clear(message)


@pytest.mark.parametrize("source", ["24b", "nowhere", "", "\0", "a" * 5000, "~nobody/x", "model.bin", "/dev/null"])
def test_names_that_lead_nowhere(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"\x80")
    message = attempt(lambda: load_dit(source))
    assert message
    assert_clear(message)


def assert_clear(message: str) -> None:
    """One printable line that a person can read."""
    assert len(message) < 4000
    assert message.isprintable()
