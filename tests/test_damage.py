"""Sizes, settings and files as nobody should give them: hundreds of each kind, one clear MagiError for every one."""

from __future__ import annotations

import io
import json
import math
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from magi_core.config import Sampling
from magi_core.errors import MagiError
from magi_core.pipeline import Magi, Wishes, load
from magi_core.presets import PRESETS
from magi_core.text.special_tokens import SpecialTokens
from magi_core.text.weights import find_t5, read_t5
from magi_core.vae import load_vae

NANO = Path(__file__).parents[1] / "assets" / "nano"
many = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
several = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

not_numbers = st.sampled_from(
    [None, "64", b"64", [], [64], {}, math.nan, math.inf, -math.inf, 1j, object(), True, False]
)
fractions = st.floats(allow_nan=True)
below_one = st.integers(max_value=0)
huge = st.integers(min_value=10_000) | st.sampled_from([10**400, 10**5000, 1 << 63, 1 << 64])


def refused(action: Callable[[], object]) -> str:
    """The message of the one MagiError that ``action`` raises; another exception, or none, fails the test."""
    with pytest.raises(MagiError) as caught:
        action()
    message = str(caught.value)
    assert message and len(message) < 2000
    return message


# --- sizes and settings ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unloaded() -> Magi:
    """magi-nano, of which nothing big may be read."""
    return load("nano", device="cpu")


@many
@given(st.sampled_from(["num_steps", "window_size", "chunk_width"]), not_numbers | fractions | below_one | huge)
def test_steps_windows_and_chunk_widths(name: str, value: object) -> None:
    assert name in refused(lambda: Sampling(**{name: value}))  # type: ignore[arg-type]


@many
@given(
    st.sampled_from(["cfg_t_range", "prev_chunk_scales", "text_scales", "noise2clean_kvrange"]),
    not_numbers | st.lists(fractions) | st.tuples(*[st.sampled_from([math.nan, math.inf, "1", None, -math.inf])] * 5),
)
def test_guidance_and_ranges(name: str, value: object) -> None:
    assert name in refused(lambda: Sampling(**{name: value}))  # type: ignore[arg-type]


@many
@given(
    st.sampled_from(["height", "width"]),
    fractions | below_one | huge | st.integers(1, 8192).filter(lambda side: side % 16 or side < 32) | not_numbers,
)
@example("height", 16)
@example("width", 8208)
def test_heights_and_widths(unloaded: Magi, name: str, value: object) -> None:
    if value is None:
        return  # the model's own
    assert name in refused(lambda: unloaded.generate("1s: a dot", **{name: value}))  # type: ignore[arg-type]
    assert not {"dit", "vae", "text_encoder"} & vars(unloaded).keys()


@many
@given(
    st.sampled_from(["seed", "more_to_come"]),
    fractions
    | st.integers(max_value=-1)
    | st.integers(min_value=1 << 64)
    | not_numbers.filter(lambda v: v is not None),
)
def test_seeds_and_announcements(unloaded: Magi, name: str, value: object) -> None:
    assert name in refused(lambda: unloaded.generate("1s: a dot", **{name: value}))  # type: ignore[arg-type]
    assert not {"dit", "vae", "text_encoder"} & vars(unloaded).keys()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"fit": "fill"}, "fit"),
        ({"fit": 3}, "fit"),
        ({"tokens": {"duration": True}}, "tokens"),
        ({"negative": "yes"}, "negative"),
        ({"sampling": {"num_steps": 8}}, "sampling"),
        ({"sampling": Sampling(cfg_number=1)}, "cfg_number"),
        ({"wishes": "fast"}, "wishes"),
        ({"image": "circle.png"}, "frames"),
        ({"image": np.zeros((64, 64), np.uint8)}, "frames"),
        ({"image": [[0]]}, "frames"),
        ({"video": np.zeros((8, 64, 64, 3), np.float32)}, "frames"),
        ({"video": 24}, "frames"),
        ({"video": np.zeros((0, 64, 64, 3), np.uint8)}, "frames"),
    ],
)
def test_other_wishes(unloaded: Magi, given: dict[str, Any], named: str) -> None:
    assert named in refused(lambda: unloaded.generate("1s: a dot", **given))
    assert not {"dit", "vae", "text_encoder"} & vars(unloaded).keys()


def test_wishes_that_are_allowed() -> None:
    Wishes(height=64, width=8192, seed=(1 << 64) - 1, more_to_come=3, sampling=PRESETS["nano"].sampling)


# --- files -------------------------------------------------------------------------------------------------------------------


def damage_bytes(path: Path, random: Random) -> None:
    """Cut off, emptied, overwritten from the start, or with its JSON header in ruins."""
    raw = path.read_bytes()
    kind = random.randrange(4)
    if kind == 0:
        path.write_bytes(raw[: random.choice((random.randrange(64), random.randrange(len(raw))))])
    elif kind == 1:
        path.write_bytes(random.randbytes(random.randrange(300)))
    elif kind == 2:
        path.write_bytes(random.randbytes(8) + raw[8:])
    else:
        path.write_bytes((1 << random.randrange(20, 63)).to_bytes(8, "little") + raw[8:])


def damage_tensor(path: Path, name: str, random: Random) -> None:
    tensors = load_file(path)
    kind = random.randrange(4)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[name] = tensors[name].reshape(-1)[:-1].clone()
    elif kind == 2:
        tensors[name] = tensors[name].to(random.choice((torch.int8, torch.bool, torch.int64)))
    else:
        tensors[name].view(-1)[random.randrange(tensors[name].numel())] = random.choice((math.nan, math.inf))
    save_file(tensors, path)


WRONG = (None, "x", -1, 0, 1.5, 10**9, 10**400, math.nan, math.inf, [], {}, True, "9" * 5000)


def damage_json(path: Path, change: Callable[[dict[str, Any], Random], None], random: Random) -> None:
    document = json.loads(path.read_text())
    change(document, random)
    texts = (
        json.dumps(document),
        "[" * 100_000,
        '{"a":' * 100_000,
        "",
        "null",
        "[1]",
        "\udcff",
        '{"a": ' + "9" * 9999 + "}",
    )
    text = texts[0] if random.random() < 0.8 else random.choice(texts)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


def damage_folder(weights: Path, change: Callable[[dict[str, Any], Random], None], random: Random) -> None:
    """The weights' bytes, one of their tensors, or the configuration beside them."""
    kind = random.randrange(3)
    if kind == 0:
        damage_bytes(weights, random)
    elif kind == 1:
        damage_tensor(weights, random.choice(sorted(load_file(weights))), random)
    else:
        damage_json(weights.with_name("config.json"), change, random)


@several
@given(st.randoms(use_true_random=False))
def test_vae_folders(tmp_path_factory: pytest.TempPathFactory, random: Random) -> None:
    def change(document: dict[str, Any], random: Random) -> None:
        names = sorted(set(document["ddconfig"]) - {"mlp_ratio"})
        document["ddconfig"][random.choice(names)] = random.choice((None, "x", -1, 10**9, math.nan, [], {}, 1e300))

    folder = tmp_path_factory.mktemp("vae") / "vae"
    shutil.copytree(NANO / "vae", folder)
    damage_folder(folder / "diffusion_pytorch_model.safetensors", change, random)
    refused(lambda: load_vae(folder))
    shutil.rmtree(folder)


@several
@given(st.randoms(use_true_random=False))
def test_text_encoder_folders(tmp_path_factory: pytest.TempPathFactory, random: Random) -> None:
    def change(document: dict[str, Any], random: Random) -> None:
        name = random.choice(("relative_attention_max_distance", "layer_norm_epsilon"))
        document[name] = random.choice([value for value in WRONG if value not in (1.5, 10**9) or value is True])
        document[name] = -1 if document[name] is True and random.random() < 0.5 else document[name]

    folder = tmp_path_factory.mktemp("t5") / "t5"
    shutil.copytree(NANO / "t5", folder)
    damage_folder(folder / "model.safetensors", change, random)
    refused(lambda: read_t5(find_t5(folder), torch.float32, torch.device("cpu")))
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "lost", ["encoder.block.1.layer.0.SelfAttention.q.weight", "encoder.block.1.", "encoder.block.0."]
)
def test_a_text_encoder_never_loses_a_layer_silently(tmp_path: Path, lost: str) -> None:
    shutil.copytree(NANO / "t5", tmp_path / "t5")
    weights = tmp_path / "t5" / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(weights).items() if not name.startswith(lost)}, weights)
    refused(lambda: read_t5(find_t5(tmp_path / "t5"), torch.float32, torch.device("cpu")))


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@several
@given(st.randoms(use_true_random=False))
def test_special_tokens(tmp_path_factory: pytest.TempPathFactory, random: Random) -> None:
    path = tmp_path_factory.mktemp("tokens") / "special_tokens.npz"
    with np.load(NANO / "special_tokens.npz") as archive:
        arrays = {name: archive[name] for name in archive}
    name = random.choice(sorted(arrays))
    if random.random() < 0.4:
        shutil.copy(NANO / "special_tokens.npz", path)
        damage_bytes(path, random)
        if random.random() < 0.2:  # a bomb: a member that unpacks to far more than tokens have
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
                bomb.writestr("caption_token.npy", bytes(65 << 20))
        elif zipfile.is_zipfile(path):  # the damaged first bytes belong to no part that a zip reader needs
            path.write_bytes(b"")
    else:
        wrong = (
            arrays[name][..., :-1],
            arrays[name].astype(str),
            arrays[name] * math.nan,
            arrays[name] + 1e9,
            arrays[name].astype(complex),
            arrays[name].astype(int),
            np.float64(3.0),
            np.array([{"a": 1}], dtype=object),
            np.zeros(0),
        )
        arrays[name] = random.choice(wrong)
        path.write_bytes(npz(**arrays))
    refused(lambda: SpecialTokens.load(path, 128))
    shutil.rmtree(path.parent)
