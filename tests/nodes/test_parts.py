"""What lies on native sockets, as core's nodes call it: the VAE and the text encoder; and the plan's picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from magi_core.cost.around import decode_bytes
from magi_core.errors import MagiError
from magi_core.plan import plan
from magi_core.storyboard import Storyboard
from magi_core.vae import decode_tiled
from magi_core.vae.chunks import encode_frames
from nodes.picture import MOST_ROWS, ROW, draw_plan
from nodes.text import MAX_TOKENS, MagiTextEncoder, encode_prompts
from nodes.vae import MagiVAE


def test_decoding_by_chunks_equals_decoding_at_once(vae: MagiVAE) -> None:
    latents = torch.randn(1, 16, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    images = vae.decode(latents)
    assert images.shape == (1, 32, 64, 64, 3)
    with torch.no_grad():
        whole = decode_tiled(vae.first_stage_model, latents, vae._tiling)
    expected = ((whole + 1) / 2).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)


def test_core_calls_the_tiled_versions(vae: MagiVAE) -> None:
    latents = torch.randn(1, 16, 6, 16, 16, generator=torch.Generator().manual_seed(1))
    tiled = vae.decode_tiled(latents, tile_x=8, tile_y=8, overlap=2, tile_t=16, overlap_t=2)
    assert tiled.shape == (1, 24, 128, 128, 3)
    assert vae.encode_tiled(tiled[0], tile_x=64, tile_y=64, overlap=16, tile_t=64, overlap_t=8).shape == latents.shape


def test_encode_takes_any_picture_and_length(vae: MagiVAE) -> None:
    assert vae.encode(torch.rand(1, 64, 64, 3)).shape == (1, 16, 1, 8, 8)
    assert vae.encode(torch.rand(31, 71, 66, 4)).shape == (1, 16, 7, 8, 8)
    assert vae.encode(torch.rand(3, 64, 64, 3)).shape == (1, 16, 1, 8, 8)
    with pytest.raises(MagiError, match="at least 8x8"):
        vae.encode(torch.rand(1, 7, 64, 3))
    with pytest.raises(MagiError, match="NaN"):
        vae.encode(torch.full((1, 64, 64, 3), float("nan")))


def test_room_is_asked_for_a_chunk_of_the_size_of_its_tiles(vae: MagiVAE) -> None:
    asked: list[int] = []
    network = vae.first_stage_model
    counting = MagiVAE(network, asked.append)
    for length in (6, 12):
        counting.decode_tiled(torch.zeros(1, 16, length, 16, 16), tile_x=8, tile_y=8, overlap=2)
        counting.encode(torch.rand(4 * length, 128, 128, 3))
    assert asked[:2] == asked[2:], "a longer video needs no more"
    tiling = counting._tiles(64, 64, 16)
    assert asked[0] == decode_bytes(network.config, network.dtype, tiling, (1, 16, 6, 16, 16))
    assert counting.working_bytes(1024, 1024) > 30 * counting.working_bytes(128, 128)


def test_long_prefixes_are_encoded_chunk_by_chunk(vae: MagiVAE) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (28, 64, 64, 3), np.uint8)
    whole = encode_frames(vae.first_stage_model, frames, 1.0, vae._tiling)
    torch.testing.assert_close(vae.encode_frames(frames, 64, 64, "crop"), whole, atol=1e-5, rtol=0)


def test_other_latents_are_refused(vae: MagiVAE) -> None:
    with pytest.raises(MagiError, match="MAGI's VAE decodes"):
        vae.decode(torch.zeros(1, 4, 8, 8))


def test_the_text_encoder_serves_core_too(clip: MagiTextEncoder) -> None:
    entry, extra = clip.encode_from_tokens_scheduled(clip.tokenize("a red circle"))[0]
    (caption,) = encode_prompts(clip, ["a red circle"])
    assert torch.equal(entry[0], caption.embedding) and extra["attention_mask"].shape == entry.shape[:2]
    assert clip.encode_from_tokens(clip.tokenize("a"), return_pooled=True)[1] is None


class CoreClip:
    """A CLIP as ComfyUI makes it of a T5, padded to 10 tokens; counts what it encodes."""

    def __init__(self, keys: tuple[str, ...] = ("t5xxl",), masks: bool = True) -> None:
        self.keys, self.masks, self.seen = keys, masks, []

    def tokenize(self, text: str, **options: Any) -> dict[str, Any]:
        assert options == {"disable_weights": True}
        return {key: [[(5, 1.0)] * len(text.split()) + [(1, 1.0)]] for key in self.keys}

    def encode_from_tokens(self, tokens: dict[str, Any], return_dict: bool) -> dict[str, Any]:
        (row,) = tokens["t5xxl"]
        self.seen.append(row)
        length = max(10, len(row))
        mask = (torch.arange(length) < len(row)).long()[None]
        return {"cond": torch.ones(1, length, 4), **({"attention_mask": mask} if self.masks else {})}


def test_a_core_clip_gives_unpadded_captions_once_each() -> None:
    core = CoreClip()
    one, two, again = encode_prompts(core, ["a b", "c", "A  b"])
    assert (len(one), len(two)) == (3, 2) and again is one
    assert len(core.seen) == 2
    (long,) = encode_prompts(core, ["word " * 1500])
    assert len(long) == MAX_TOKENS and core.seen[-1][-1] == (1, 1.0)


def test_other_clips_are_refused_with_advice() -> None:
    with pytest.raises(MagiError, match="mochi"):
        encode_prompts(CoreClip(("g", "l")), ["a"])
    with pytest.raises(MagiError, match="umt5xxl, but MAGI needs T5-XXL"):
        encode_prompts(CoreClip(("umt5xxl",)), ["a"])
    with pytest.raises(MagiError, match="mask"):
        encode_prompts(CoreClip(masks=False), ["a"])


def test_the_plans_picture_shows_chunks_shots_and_keyframes() -> None:
    story = Storyboard.from_string("2s: a\n1s: b [image: k.png]")
    picture = draw_plan(plan(story))
    bars = [picture[60 + row * ROW, 900] for row in range(3)]
    assert np.array_equal(bars[0], bars[1]) and not np.array_equal(bars[1], bars[2])
    assert (picture[46 + 2 * ROW + 11, 12 + 11] > 200).all(), "the keyframe's dot"
    long = draw_plan(plan(Storyboard.from_string("500s: " + "word " * 500)))
    assert long.shape[0] < (MOST_ROWS + 4) * ROW and long.shape[1] == picture.shape[1]
