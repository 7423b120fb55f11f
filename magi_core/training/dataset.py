"""What the DiT is trained on: clips as latents with captions, and how training sequences are drawn from them.

``ClipSet`` is the same for synthetic worlds (``shards.py``) and for real videos (``videos.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from magi_core.errors import MagiError
from magi_core.text.assembly import NULL_LENGTH
from magi_core.text.caption import Caption
from magi_core.text.special_tokens import PromptTokens, SpecialTokens
from magi_core.training.objective import Layout, Sample

MANY = 1 << 20
"""Numbers that are drawn for a choice whose size differs from clip to clip, taken modulo that size."""


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
    own_history: float = 0.0
    """The clean chunks are not those of the clip but the model's own (``own_history.py``; ``train_dit`` alone does it)."""


def draw_sample(clips: ClipSet, layout: Layout, count: int, mix: Mix, generator: torch.Generator) -> Sample:
    """Draw ``count`` sequences of a layout; equal generators give equal samples.

    A sequence that begins with a noisy chunk or goes on from the model's own begins where its clip does, any other one anywhere. Raises MagiError when no clip is long
    enough for the layout.
    """
    chunks, needed = len(layout.places), 1 + max(layout.shown)

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
    anywhere = any(layout.clean) and not layout.own
    start = pick(0, MANY, count, 1) % starts if anywhere else torch.zeros(count, 1, dtype=torch.long)
    place = torch.tensor(layout.shown) + start
    pasted = torch.where(chance(mix.prefix, count, chunks), pick(1, 6, count, chunks), 0)
    if any(layout.clean) and layout.stagger is None:
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
    remaining = torch.tensor(layout.shown).max() - torch.tensor(layout.shown) + pick(1, 9, count, 1)
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
