"""The training set of the DiT: clips as latents with captions, and how training sequences are drawn from them.

``ClipSet`` is the same for synthetic worlds and for real videos (``videos.py``). A world's clips are made once and kept on disk. Clip ``i`` is a pure function of (world, seed, i), so the set is reproducible, can be made in any number of sittings, and is one
safetensors file for every thousand clips: latents float16 [n, chunks, C, F, H/8, W/8] and, in the metadata, the captions of every
chunk in several wordings. Captions are encoded when the set is opened, each distinct one once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from magi_core.errors import MagiError
from magi_core.files import atomic_write
from magi_core.text.assembly import NULL_LENGTH
from magi_core.text.caption import Caption
from magi_core.text.encoder import T5TextEncoder
from magi_core.text.special_tokens import PromptTokens, SpecialTokens
from magi_core.training.objective import Layout, Sample
from magi_core.training.practice import PRACTICE
from magi_core.vae import ViTVAE, frames_to_video
from magi_core.worlds.captions import caption
from magi_core.worlds.clips import render, sample_clip

CHUNKS = 5
WORDINGS = 4
SHARD = 1000
ENCODED_TOGETHER = 16
WINDOW = 4  # frames of a latent frame
MANY = 1 << 20
"""Numbers that are drawn for a choice whose size differs from clip to clip, taken modulo that size."""

log = logging.getLogger(__name__)


def make_shards(folder: Path, vae: ViTVAE, world: str, clips: int, seed: int) -> None:
    """Render, encode and write the shards of ``clips`` clips that ``folder`` does not hold yet.

    Raises MagiError where it holds clips of another world or seed.
    """
    for first in range(0, clips, SHARD):
        path = folder / f"clips-{first:06d}.safetensors"
        if path.exists():
            _check_origin(path, world, seed)
        else:
            write_shard(path, vae, world, range(first, min(first + SHARD, clips)), seed)
            log.info("data: clips %d of %d", min(first + SHARD, clips), clips)


def _check_origin(path: Path, world: str, seed: int) -> None:
    with _opened(path) as file:
        made = file.metadata() or {}
    if (made.get("world"), made.get("seed")) != (world, str(seed)):
        raise MagiError(
            f"the training clips {path} are of the world '{made.get('world')}' with seed {made.get('seed')}, and '{world}' with seed {seed} is "
            "asked for. Give another --output, or delete the folder of clips; they will be made again"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A shard for reading. Raises MagiError where it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise MagiError(
            f"the training clips {path} are damaged: {error}. Delete the file; it will be made again"
        ) from error


def write_shard(path: Path, vae: ViTVAE, world: str, indices: Sequence[int], seed: int) -> None:
    """Write the clips ``indices`` of a world (a name of ``WORLDS``) to one file."""
    practice = PRACTICE[world]
    latents, wordings, images = [], [], []
    for first in range(0, len(indices), ENCODED_TOGETHER):
        videos = []
        for index in indices[first : first + ENCODED_TOGETHER]:
            rng = np.random.default_rng([seed, index])
            clip = sample_clip(practice.world, CHUNKS, rng)
            videos.append(frames_to_video(torch.from_numpy(render(clip))))
            wordings.append(
                [
                    [caption(clip, chunk, rng, omissions=practice.omissions) for chunk in range(CHUNKS)]
                    for _ in range(WORDINGS)
                ]
            )
            images.append(clip.hold > 0)
        latents.append(encode_windows(vae, torch.cat(videos)).half())
    stacked = torch.cat(latents)
    metadata = {"captions": json.dumps(wordings), "world": world, "seed": str(seed)}
    with atomic_write(path) as temporary:
        save_file({"latents": stacked, "image": torch.tensor(images)}, temporary, metadata)


def encode_windows(vae: ViTVAE, video: Tensor) -> Tensor:
    """Video [N, 3, T, H, W] in -1..1 -> latents [N, chunks, C, F, H/8, W/8], each latent frame encoded from its own 4 frames."""
    count, colours, _, height, width = video.shape
    windows = video.reshape(count, colours, -1, WINDOW, height, width).transpose(1, 2).flatten(0, 1)
    with torch.no_grad(), torch.autocast(video.device.type, torch.bfloat16):
        latents = vae.encode(windows).squeeze(2).float()  # [N * T/4, C, h, w]
    return latents.reshape(count, CHUNKS, -1, *latents.shape[1:]).transpose(2, 3).contiguous()


@dataclass(frozen=True, eq=False)
class ClipSet:
    """Clips, which may be of different lengths: latents of each [chunks, C, F, h, w] float16 (tensors that are mapped to a file stay
    there until they are drawn), image [n] True where the first latent frame is a still image, wording of each [variants, chunks]
    indices into ``captions``, -1 for no caption, and the special tokens to put in front of captions, None where the model has none."""

    latents: Sequence[Tensor] | Tensor
    image: Tensor
    wording: Sequence[Tensor] | Tensor
    captions: Sequence[Caption]
    special: SpecialTokens | None

    def __len__(self) -> int:
        return len(self.latents)

    @cached_property
    def lengths(self) -> Tensor:
        """Chunks of every clip [n]."""
        return torch.tensor([clip.shape[0] for clip in self.latents])


def open_clips(folder: Path, encoder: T5TextEncoder, special: SpecialTokens) -> ClipSet:
    """Read every shard of ``folder`` and encode its captions; raises MagiError when there is none or one is damaged."""
    paths = sorted(folder.glob("clips-*.safetensors"))
    if not paths:
        raise MagiError(f"{folder} holds no training clips")
    latents, images, texts = [], [], []
    for path in paths:
        with _opened(path) as file:
            latents.append(file.get_tensor("latents"))
            images.append(file.get_tensor("image"))
            texts += json.loads(file.metadata()["captions"])
        if latents[-1].shape[1:] != latents[0].shape[1:]:
            raise MagiError(
                f"the training clips {path} are {latents[-1].shape[1]} seconds long and those before them {latents[0].shape[1]}: "
                "they are of another version or model. Delete the folder; it will be made again"
            )
    distinct = {text: i for i, text in enumerate(dict.fromkeys(t for clip in texts for words in clip for t in words))}
    log.info("data: %d clips, %d distinct captions", len(texts), len(distinct))
    wording = torch.tensor([[[distinct[t] for t in words] for words in clip] for clip in texts])
    encoded = [Caption(c.embedding.half(), c.mask) for c in encoder.encode(list(distinct), batch_size=128)]
    return ClipSet(torch.cat(latents), torch.cat(images), wording, encoded, special)


@dataclass(frozen=True)
class Mix:
    """How often the rarer situations are shown, as shares of 0..1."""

    null_caption: float = 0.12
    prefix: float = 0.15
    """A chunk begins with some given frames, as after a prefix video that does not end on a chunk's border."""
    scene: float = 0.08
    """A chunk after another clip begins with a keyframe of a new one."""
    special_token: float = 0.5
    """Each of the HQ and the DURATION token stands in front of the caption."""
    late_row: float = 0.3
    """A clean chunk in a text pass takes that pass's adaLN row, as in the step that writes its cache entry."""


def draw_sample(clips: ClipSet, layout: Layout, count: int, mix: Mix, generator: torch.Generator) -> Sample:
    """Draw ``count`` sequences of a layout; equal generators give equal samples.

    A sequence that begins with a noisy chunk begins where its clip does, any other one anywhere. Raises MagiError when no clip is long
    enough for the layout.
    """
    chunks, needed = len(layout.places), 1 + max(layout.places)

    def chance(share: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) < share

    def pick(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    long_enough = (clips.lengths >= needed).nonzero().squeeze(1)
    if not len(long_enough):
        raise MagiError(
            f"no clip has the {needed} chunks that a training sequence needs; the longest has {int(clips.lengths.max())}"
        )
    clean = torch.tensor(layout.clean).expand(count, chunks)
    clip = long_enough[pick(0, len(long_enough), count, 1)].expand(count, chunks).clone()
    starts = clips.lengths[clip[:, :1]] - needed + 1
    start = pick(0, MANY, count, 1) % starts if any(layout.clean) else torch.zeros(count, 1, dtype=torch.long)
    place = torch.tensor(layout.places) + start
    pasted = torch.where(chance(mix.prefix, count, chunks), pick(1, 6, count, chunks), 0)
    if any(layout.clean) and not layout.stagger:
        stills = clips.image.nonzero().squeeze(1)
        scene = chance(mix.scene, count, chunks) & ~clean & bool(len(stills))
        clip = torch.where(scene, stills[pick(0, max(len(stills), 1), count, chunks)] if len(stills) else clip, clip)
        place = torch.where(scene, 0, place)
        pasted = torch.where(scene, 1, pasted)
    first = (place == 0) & clips.image[clip]
    pasted = torch.where(first, 1, pasted).masked_fill(clean, 0)
    unsaid, late = chance(mix.null_caption, count, 1), chance(mix.late_row, count, 1)
    variant = pick(0, MANY, count, chunks).flatten().tolist()
    rows = list(zip(clip.flatten().tolist(), place.flatten().tolist(), strict=True))
    said = (clips.wording[c][v % len(clips.wording[c]), p] for (c, p), v in zip(rows, variant, strict=True))
    words = torch.stack(list(said)).view(count, chunks)
    null = unsaid | clean | (words < 0)
    dropped = null & ~(clean & late)
    remaining = torch.tensor(layout.places).max() - torch.tensor(layout.places) + pick(1, 9, count, 1)
    text, mask = _texts(clips, words, remaining, chance(mix.special_token, count, 1, 2), null)
    latents = torch.stack([clips.latents[c][p] for c, p in rows]).float()
    latents = latents.view(count, chunks, *latents.shape[1:])
    return Sample(latents.transpose(1, 2).flatten(2, 3), pasted, text, mask, null, dropped)


def _texts(clips: ClipSet, words: Tensor, remaining: Tensor, special: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    """Text [N*D, L, E] and mask [N*D, L] of captions ``words`` [N, D] behind their special tokens, zeros where ``null``.

    remaining [N, D] chunks to come, counting the chunk itself; special [N, 1, 2] whether HQ and DURATION stand in front.
    """
    width = clips.captions[0].channels
    rows: list[Tensor] = []
    switches = special.expand(*words.shape, 2).reshape(-1, 2).tolist()
    for word, left, (quality, duration), empty in zip(
        words.flatten().tolist(), remaining.flatten().tolist(), switches, null.flatten().tolist(), strict=True
    ):
        if empty:
            rows.append(torch.zeros(0, width))
            continue
        caption = clips.captions[word].embedding.float()
        tokens = PromptTokens(high_quality=quality, duration=duration)
        rows.append(torch.cat([clips.special.prompt_rows(tokens, left), caption]) if clips.special else caption)
    text = torch.zeros(len(rows), max(NULL_LENGTH, *map(len, rows)), width)
    for i, row in enumerate(rows):
        text[i, : len(row)] = row
    lengths = torch.tensor([len(row) for row in rows])
    return text, torch.arange(text.shape[1]) < lengths[:, None]
