"""A folder of real videos as training clips: ``cat.mp4`` and, beside it, ``cat.txt`` with one caption a second.

Notable:

* Line k is the caption of second k. Where there are fewer lines than seconds the last one holds; an empty line is no caption.
* A video is encoded once, tiled as for generation, into one safetensors file that says what it was made from. A changed video, size or
  VAE makes its file anew and no other; captions are not part of it and may be rewritten at any time.
* Every video is also there as one that begins with a still image, as image to video does: its first frame stands for a latent frame
  before it moves. One clip in four is such a one.
* One video that cannot be used does not stop the others: what is wrong with it is a warning, and the end says how many were left out.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from magi_core.errors import MagiError
from magi_core.files import atomic_write, digest_of
from magi_core.images import Frames
from magi_core.text.caption import Caption
from magi_core.text.encoder import T5TextEncoder
from magi_core.text.special_tokens import SpecialTokens
from magi_core.training.dataset import ClipSet
from magi_core.vae import Tiling, ViTVAE, vae_config_document
from magi_core.vae.chunks import encode_frames
from magi_core.video import play_video

SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".gif")
FPS = 24
CHUNK_FRAMES = 24
MULTIPLE = 16
"""Pixels of a token's side: 8 of a latent, 2 latents of a patch."""
MOVING_COPIES = 3
"""A video counts so many times as it is for once with a still beginning: a quarter of the clips are for image to video."""
MOST_CAPTION_BYTES = 1 << 20
MOST_NAME_BYTES = 180
NO_CAPTION = -1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoding:
    """How frames become latents: everything but the video that decides what a file of latents holds."""

    vae: ViTVAE
    tiling: Tiling
    scale_factor: float
    size: tuple[int, int]
    """(height, width) in pixels; videos of another aspect are cropped around their middle."""

    def digest(self) -> str:
        """Equal where equal videos give equal latents."""
        parts = hashlib.sha256(
            repr((self.tiling, self.scale_factor, self.size, vae_config_document(self.vae.config))).encode()
        )
        for name, weight in self.vae.state_dict().items():
            parts.update(name.encode())
            parts.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return parts.hexdigest()


def open_videos(
    folder: Path, encoding: Encoding, encoder: T5TextEncoder, special: SpecialTokens | None, cache_folder: Path
) -> ClipSet:
    """The videos of ``folder`` with their captions, encoded into ``cache_folder`` where they are not yet.

    Warns of every video that is left out (damaged, shorter than a second, without a readable caption file) and, at the end, of how many.
    Raises MagiError when the size does not fit, there is no folder, or not one video can be used.
    """
    _check_size(encoding.size)
    paths = find_videos(folder)
    model, left_out = encoding.digest(), []
    clips: list[tuple[Tensor, bool]] = []
    lines: list[list[str]] = []
    for number, path in enumerate(paths, 1):
        try:
            said = read_captions(path.with_suffix(".txt"))
            moving, still = latents_of(path, encoding, model, cache_folder / _cache_name(path))
        except MagiError as error:
            log.warning("left out: %s", error)
            left_out.append(path.name)
            continue
        log.info("videos: %d of %d, %s has %d chunks", number, len(paths), path.name, len(moving))
        if len(said) > len(moving):
            log.warning(
                "%s has %d lines, but %s only %d whole seconds; the lines after them are not used",
                path.with_suffix(".txt"),
                len(said),
                path.name,
                len(moving),
            )
        copies = [(moving, False)] * MOVING_COPIES + [(still, True)]
        clips += copies
        lines += [captions_of(said, len(latents)) for latents, _ in copies]
    if not clips:
        raise MagiError(f"none of the {len(paths)} videos in {folder} can be used; the warnings above say why")
    if left_out:
        log.warning("%d of %d videos were left out: %s", len(left_out), len(paths), ", ".join(left_out))
    distinct = list(dict.fromkeys(text for said in lines for text in said if text)) or [""]
    places = {text: i for i, text in enumerate(distinct)} | {"": NO_CAPTION}
    wording = [torch.tensor([[places[text] for text in said]]) for said in lines]
    encoded = [Caption(c.embedding.half(), c.mask) for c in encoder.encode(distinct)]
    encoder.unload()
    return ClipSet(
        [latents for latents, _ in clips], torch.tensor([still for _, still in clips]), wording, encoded, special
    )


def _cache_name(video: Path) -> str:
    """Of its file of latents; file names have at most 255 bytes, and a temporary one is longer than that of the video."""
    raw = video.name.encode(errors="surrogateescape")
    return f"{video.name if len(raw) <= MOST_NAME_BYTES else hashlib.sha256(raw).hexdigest()}.safetensors"


def find_videos(folder: Path) -> list[Path]:
    """The videos in ``folder``, by name; raises MagiError when there are none, or two that would share a caption file."""
    folder = Path(folder)
    if not folder.is_dir():
        raise MagiError(
            f"{folder} is no folder; give the folder with your videos and a text file of captions beside each"
        )
    paths = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not paths:
        raise MagiError(f"{folder} holds no videos; put files there that end in {', '.join(SUFFIXES)}")
    stems = [path.stem for path in paths]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise MagiError(
            f"{folder} holds several videos called {twice[0]}, which would share {twice[0]}.txt; give them different names"
        )
    return paths


def read_captions(path: Path) -> list[str]:
    """The lines of a caption file, without white space around them; raises MagiError when it is missing, no UTF-8 or too large."""
    if not path.is_file():
        raise MagiError(
            f"the captions {path} are missing; write one line for every second of the video, or an empty file for no words"
        )
    try:
        raw = path.read_bytes()[: MOST_CAPTION_BYTES + 1]
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise MagiError(f"the captions {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise MagiError(
            f"the captions {path} are no UTF-8 text (byte {error.start}); save the file as UTF-8"
        ) from error
    if len(raw) > MOST_CAPTION_BYTES or "\0" in text:
        raise MagiError(
            f"the captions {path} are no text of at most 1 MB; write one line for every second of the video"
        )
    return [line.strip() for line in text.splitlines()]


def captions_of(lines: Sequence[str], chunks: int) -> list[str]:
    """One caption for every chunk: the last line holds; "" for none."""
    last = lines[-1] if lines else ""
    return [lines[chunk] if chunk < len(lines) else last for chunk in range(chunks)]


def latents_of(path: Path, encoding: Encoding, model: str, file: Path) -> tuple[Tensor, Tensor]:
    """Latents of a video's whole chunks [chunks, C, F, h, w] float16: as it is, and beginning with a still image.

    Read from ``file`` (mapped, not copied) where that was made from this video by this ``model``, the digest of ``encoding``; else made.
    Raises MagiError when the video is damaged or shorter than a chunk.
    """
    source = json.dumps({"video": digest_of(path), "encoding": model})
    stored = _stored(file, source)
    if stored is not None:
        return stored
    made = {
        "moving": _encode(path, encoding, 0),
        "still": _encode(path, encoding, encoding.vae.config.patch_length - 1),
    }
    with atomic_write(file) as temporary:
        save_file(made, temporary, {"source": source})
    return _stored(file, source) or (made["moving"], made["still"])


def _stored(file: Path, source: str) -> tuple[Tensor, Tensor] | None:
    try:
        with safe_open(file, framework="pt") as opened:
            if (opened.metadata() or {}).get("source") != source:
                return None
            return opened.get_tensor("moving"), opened.get_tensor("still")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        log.warning("%s is damaged (%s); it is made again", file, error)
        return None


def _encode(path: Path, encoding: Encoding, held: int) -> Tensor:
    """The latents of a video whose first frame stands ``held`` frames longer."""
    frames = play_video(path, size=encoding.size, fps=FPS)
    first = list(islice(frames, 1))
    latents = [
        encode_frames(encoding.vae, chunk, encoding.scale_factor, encoding.tiling)[0].half().cpu()
        for chunk in _chunks(chain(first * (1 + held), frames))
    ]
    if not latents:
        raise MagiError(f"{path} is shorter than a second ({CHUNK_FRAMES} frames); use a longer video")
    stacked = torch.stack(latents)
    if not bool(stacked.isfinite().all()):
        raise MagiError(f"{path} gives latents that are no finite numbers; encode the video again")
    return stacked


def _chunks(frames: Iterator[Frames]) -> Iterator[Frames]:
    """Whole chunks [24, H, W, 3]; what remains at the end is dropped."""
    while len(chunk := list(islice(frames, CHUNK_FRAMES))) == CHUNK_FRAMES:
        yield np.concatenate(chunk)


def _check_size(size: tuple[int, int]) -> None:
    for name, side in zip(("height", "width"), size, strict=True):
        if side % MULTIPLE or side < 2 * MULTIPLE:
            raise MagiError(
                f"the videos' {name} is {side}; it must be a multiple of {MULTIPLE}, at least {2 * MULTIPLE}: "
                f"try {max(2, round(side / MULTIPLE)) * MULTIPLE}"
            )
