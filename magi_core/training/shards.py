"""The training clips of a synthetic world, on disk.

Clip ``i`` is a pure function of (world, seed, i), so the set is reproducible, can be made in any number of sittings, and is one
safetensors file for every thousand clips: latents float16 [n, chunks, C, F, H/8, W/8] and, in the metadata, the captions of every
chunk in several wordings and what the clips are made from. Captions are encoded when the set is opened, each distinct one once.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from magi_core.errors import MagiError
from magi_core.files import atomic_write
from magi_core.parts import Parts
from magi_core.text.caption import Caption
from magi_core.training.dataset import ClipSet
from magi_core.training.practice import PRACTICE, Practice
from magi_core.training.precision import autocast
from magi_core.training.rough import roughen
from magi_core.vae import ViTVAE, frames_to_video
from magi_core.worlds.captions import describe
from magi_core.worlds.clips import CHUNK_FRAMES, Clip, render, sample_clip
from magi_core.worlds.shapes import Frames

CHUNKS = 5
"""Of a clip, unless told otherwise."""
WORDINGS = 4
SHARD = 1000
ENCODED_TOGETHER = 16
WINDOW = 4  # frames of a latent frame

Show = Callable[[Clip, np.random.Generator], Frames]
"""Frames [24 * chunks, 64, 64, 3] uint8 that a clip is shown by."""

log = logging.getLogger(__name__)


def as_it_is(clip: Clip, _rng: np.random.Generator) -> Frames:
    """What happens in it."""
    return render(clip)


def make_shards(
    folder: Path, vae: ViTVAE, world: str, clips: int, seed: int, chunks: int = CHUNKS, show: Show = as_it_is
) -> None:
    """Render, encode and write the shards of ``clips`` clips of ``chunks`` chunks that ``folder`` does not hold yet.

    Raises MagiError where it holds clips of another world, seed, VAE, number, length or practice.
    """
    for path, indices in missing_shards(folder, clips, SHARD, lambda count: origin(vae, world, count, seed, chunks)):
        write_shard(path, vae, world, indices, seed, chunks, show)
        log.info("data: clips %d of %d", indices.stop, clips)


def missing_shards(
    folder: Path, clips: int, size: int, made_from: Callable[[int], Mapping[str, str]]
) -> Iterator[tuple[Path, range]]:
    """File and clips of every shard of ``size`` clips that ``folder`` does not hold yet.

    made_from: what a shard of so many clips says in its metadata; raises MagiError where one that is there says something else.
    """
    for first in range(0, clips, size):
        path, indices = folder / f"clips-{first:06d}.safetensors", range(first, min(first + size, clips))
        if path.exists():
            check_origin(path, made_from(len(indices)))
        else:
            yield path, indices


def origin(vae: ViTVAE, world: str, clips: int, seed: int, chunks: int) -> dict[str, str]:
    """What a shard of ``clips`` clips of ``chunks`` chunks is made from, as its metadata say it."""
    practice = hashlib.sha256(repr(PRACTICE[world]).encode()).hexdigest()
    drawn = {"world": world, "number": str(clips), "length": str(chunks), "seed": str(seed)}
    return drawn | {"practice": practice, "VAE": digest_of_vae(vae)}


def digest_of_vae(vae: ViTVAE) -> str:
    """Equal for equal weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_origin(path: Path, wanted: Mapping[str, str]) -> None:
    """Raise MagiError where the clips of ``path`` are made from something else than ``wanted``, part of an ``origin``, says."""
    with _opened(path) as file:
        made = file.metadata() or {}
    others = [name for name, value in wanted.items() if made.get(name) != value]
    if others:
        raise MagiError(
            f"the training clips {path} are of another {' and '.join(others)} than is asked for. Choose another folder, or delete this one "
            "where the same command made it"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A shard for reading. Raises MagiError where it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise MagiError(
            f"the training clips {path} are damaged: {error}. Delete the file, and make it again with the command that made it"
        ) from error


def write_shard(
    path: Path,
    vae: ViTVAE,
    world: str,
    indices: Sequence[int],
    seed: int,
    chunks: int = CHUNKS,
    show: Show = as_it_is,
) -> None:
    """Write the clips ``indices`` of a world (a name of ``WORLDS``), each of ``chunks`` chunks, to one file."""
    practice = PRACTICE[world]
    latents, wordings, images = [], [], []
    for first in range(0, len(indices), ENCODED_TOGETHER):
        videos = []
        for index in indices[first : first + ENCODED_TOGETHER]:
            rng = np.random.default_rng([seed, index])
            clip = sample_clip(practice.world, chunks, rng)
            videos.append(frames_to_video(torch.from_numpy(show(clip, rng))))
            wordings.append([put_into_words(clip, practice, rng) for _ in range(WORDINGS)])
            images.append(clip.hold > 0)
        latents.append(encode_windows(vae, torch.cat(videos)).half())
    save_shard(path, torch.cat(latents), images, wordings, origin(vae, world, len(indices), seed, chunks))


def save_shard(
    path: Path,
    latents: Tensor,
    images: Sequence[bool],
    wordings: Sequence[Sequence[Sequence[str]]],
    made_from: Mapping[str, str],
) -> None:
    """Write what ``open_clips`` reads: of every clip latents [n, chunks, C, F, h, w], whether it begins with an image, and captions by wording and chunk."""
    with atomic_write(path) as temporary:
        metadata = {"captions": json.dumps(wordings), **made_from}
        save_file({"latents": latents, "image": torch.tensor(images)}, temporary, metadata)


def put_into_words(clip: Clip, practice: Practice, rng: np.random.Generator) -> list[str]:
    """One caption for each chunk of a clip, as training shows them."""
    chunks = range(len(clip.phases))
    captions = [describe(clip, chunk, rng, omissions=practice.omissions).text for chunk in chunks]
    return [roughen(text, rng) for text in captions] if rng.random() < practice.rough else captions


def encode_windows(vae: ViTVAE, video: Tensor) -> Tensor:
    """Video [N, 3, T, H, W] in -1..1 -> latents [N, chunks, C, F, H/8, W/8], each latent frame encoded from its own 4 frames."""
    count, colours, frames, height, width = video.shape
    windows = video.reshape(count, colours, -1, WINDOW, height, width).transpose(1, 2).flatten(0, 1)
    with torch.no_grad(), autocast(video.device):
        latents = vae.encode(windows).squeeze(2).float()  # [N * T/4, C, h, w]
    return latents.reshape(count, frames // CHUNK_FRAMES, -1, *latents.shape[1:]).transpose(2, 3).contiguous()


def shards_of(folder: Path, vae: ViTVAE) -> list[Path]:
    """The shards of a folder. Raises MagiError when there is none, one is damaged, or one is encoded by another VAE than ``vae``."""
    paths = sorted(folder.glob("clips-*.safetensors"))
    if not paths:
        raise MagiError(f"{folder} holds no training clips")
    encoded_by = {"VAE": digest_of_vae(vae)}
    for path in paths:
        check_origin(path, encoded_by)
    return paths


def open_clips(folders: Sequence[Path], parts: Parts) -> ClipSet:
    """Read every shard of the ``folders`` and encode their captions.

    Raises MagiError as ``shards_of`` does, and where shards are of different versions.
    """
    latents, images, texts = [], [], []
    for path in (path for folder in folders for path in shards_of(folder, parts.vae)):
        with _opened(path) as file:
            latents.append(file.get_tensor("latents"))
            images.append(file.get_tensor("image"))
            texts += json.loads(file.metadata()["captions"])
        if latents[-1].shape[1:] != latents[0].shape[1:]:
            raise MagiError(
                f"the training clips {path} are {latents[-1].shape[1]} seconds long and those before them {latents[0].shape[1]}: "
                "they are of another version or model. Give a folder of one kind"
            )
    distinct = {text: i for i, text in enumerate(dict.fromkeys(t for clip in texts for words in clip for t in words))}
    log.info("data: %d clips, %d distinct captions", len(texts), len(distinct))
    wording = torch.tensor([[[distinct[t] for t in words] for words in clip] for clip in texts])
    encoded = [Caption(c.embedding.half(), c.mask) for c in parts.text_encoder.encode(list(distinct), batch_size=128)]
    return ClipSet(torch.cat(latents), torch.cat(images), wording, encoded, parts.special_tokens)
