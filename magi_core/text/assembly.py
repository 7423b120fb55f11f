"""What one chunk is told: its caption behind the special tokens, or the null caption (spec section 9).

Everything is made for one chunk at a time, so memory does not grow with the video's length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from magi_core.errors import MagiError
from magi_core.text.caption import Caption
from magi_core.text.special_tokens import PromptTokens, SpecialTokens

NULL_LENGTH = 50
"""Real tokens of the null caption (spec 14.4)."""


def null_caption(null_table: Tensor, negative: SpecialTokens | None = None) -> Caption:
    """What the unconditional passes and the clean chunks are told: ``null_table`` [Lmax, C], its first 50 positions real.

    negative: special tokens to set in front as a negative prompt (borders, transitions, logos, captions), or None.
    Raises MagiError when the widths differ.
    """
    embedding = null_table
    if negative is not None:
        embedding = _prepend(negative.negative_rows(), embedding)[: len(null_table)]
    mask = torch.arange(len(embedding), device=embedding.device) < NULL_LENGTH
    return Caption(embedding, mask)


def chunk_caption(
    caption: Caption,
    null: Caption,
    chunks_remaining: int,
    longest: int,
    tokens: SpecialTokens | None = None,
    switches: PromptTokens = PromptTokens(),
) -> Caption:
    """The caption of one chunk: special tokens, then the prompt, cut after ``longest`` tokens (the model's caption_max_length).

    null: the null caption, whole or its real tokens alone. chunks_remaining counts this chunk: 1 for the last. A caption without any real token is replaced by the null caption, special
    tokens and all (spec 14.12). Raises MagiError when widths differ or a switch is on without ``tokens``.
    """
    if caption.channels != null.channels:
        raise MagiError(
            f"the caption is {caption.channels} wide, the model expects {null.channels}. "
            f"Use the text encoder that belongs to the model (t5-v1_1-xxl for MAGI-1, its own for magi-nano)"
        )
    if caption.is_empty:
        return null
    if tokens is None:
        if switches != PromptTokens():
            raise MagiError("special tokens are switched on, but none are loaded; give the model's special_tokens.npz")
        return caption.cut(longest)
    rows = tokens.prompt_rows(switches, chunks_remaining)
    embedding = _prepend(rows, caption.embedding)
    mask = torch.cat([caption.mask.new_ones(len(rows)), caption.mask])
    return Caption(embedding, mask).cut(longest)


def stacked_condition(
    captions: Sequence[Caption],
    null: Caption,
    offset: int = 0,
    tokens: SpecialTokens | None = None,
    switches: PromptTokens = PromptTokens(),
) -> tuple[Tensor, Tensor]:
    """The whole video's condition at once, as the reference builds it: for checks, it grows with the video.

    captions: one per chunk to denoise; ``offset`` clean chunks stand before them. Returns y [2, chunks, Lmax, C] (text, then null) and
    masks [2, chunks, Lmax] float32. Clean chunks have the null caption with an empty mask in the text half.
    """
    length = len(null)
    clean = Caption(null.embedding, torch.zeros_like(null.mask))
    text = [clean] * offset + [
        chunk_caption(caption, null, len(captions) - i, length, tokens, switches).padded(length)
        for i, caption in enumerate(captions)
    ]
    y = torch.stack([torch.stack([c.embedding for c in half]) for half in (text, [null] * len(text))])
    masks = torch.stack([torch.stack([c.mask.float() for c in half]) for half in (text, [null] * len(text))])
    return y, masks


def _prepend(rows: Tensor, embedding: Tensor) -> Tensor:
    if rows.shape[1] != embedding.shape[1]:
        raise MagiError(
            f"the special tokens are {rows.shape[1]} wide, the captions {embedding.shape[1]}; use the model's own special_tokens.npz"
        )
    return torch.cat([rows.to(embedding), embedding])
