"""Prompts to captions through a T5 encoder.

Notable:

* The weights (19 GB in float32 for the released encoder) are read at the first prompt that the cache does not hold, and ``unload``
  lets go of them.
* Each distinct cleaned prompt is encoded once, without padding: with the mask exact, padding would change nothing but the cost.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from magi_core.errors import MagiError
from magi_core.text.cache import EmbeddingCache
from magi_core.text.caption import Caption
from magi_core.text.cleaning import clean_caption
from magi_core.text.tokenizer import PAD_ID, Tokenizer, byte_ids, sentencepiece_tokenizer
from magi_core.text.weights import T5Files, find_t5, fingerprint, read_t5

if TYPE_CHECKING:
    from transformers import T5EncoderModel

logger = logging.getLogger(__name__)


class T5TextEncoder:
    """A T5 encoder with its tokenizer (spec section 10).

    place: a folder like the release's t5-v1_1-xxl (or the folder that holds it), one safetensors file, or what ``find_t5`` found.
    vocabulary: the tokenizer's folder where it is not the model's own. max_length: DiTConfig.caption_max_length.
    dtype: float32 as in the reference, or bfloat16 for half the memory. Raises MagiError when the files cannot be used.
    """

    def __init__(
        self,
        place: Path | T5Files,
        *,
        vocabulary: Path | None = None,
        max_length: int = 800,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        cache: EmbeddingCache | None = None,
    ) -> None:
        if dtype not in (torch.float32, torch.bfloat16):
            raise MagiError(f"the text encoder cannot run in {dtype}; use torch.float32 or torch.bfloat16")
        if max_length < 1:
            raise MagiError(f"caption_max_length is {max_length}; it must be at least 1")
        self.files = place if isinstance(place, T5Files) else find_t5(place, vocabulary)
        self.max_length = max_length
        self.dtype = dtype
        self.device = torch.device(device)
        self.cache = cache
        self._tokenize: Tokenizer | None = None
        self._network: T5EncoderModel | None = None

    @property
    def channels(self) -> int:
        """Width of the embeddings; must equal DiTConfig.caption_channels."""
        return self.files.sizes.d_model

    @property
    def network(self) -> T5EncoderModel:
        """The network on ``device``, read from disk when it is not loaded."""
        if self._network is None:
            self._network = read_t5(self.files, self.dtype, self.device)
        return self._network

    def unload(self) -> None:
        """Let go of the weights; the next uncached prompt reads them again."""
        self._network = None

    def token_ids(self, text: str) -> list[int]:
        """A cleaned prompt's ids, end token included, cut at ``max_length`` (with a logged warning)."""
        if self._tokenize is None:
            self._tokenize = sentencepiece_tokenizer(self.files.vocabulary) if self.files.vocabulary else byte_ids
        ids = self._tokenize(text, self.max_length + 1)
        if len(ids) > self.max_length:
            logger.warning("the prompt is longer than %d tokens; its end is ignored: '%.60s...'", self.max_length, text)
            ids = self._tokenize(text, self.max_length)
        return ids

    @torch.no_grad()
    def encode_ids(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Features of token ids: ids [B, L] int64, mask [B, L] (1 = real) -> [B, L, C] float32; masked positions hold values too.

        Raises MagiError when an id is not in the model's vocabulary.
        """
        rows = self.files.sizes.vocab_size
        if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < rows:
            raise MagiError(
                f"the tokenizer in {self.files.vocabulary} does not belong to the text encoder {self.files.weights[0]}: "
                f"it gives id {int(input_ids.max())}, the encoder knows {rows} ids"
            )
        output = self.network(input_ids=input_ids.to(self.device), attention_mask=attention_mask.to(self.device))
        features: Tensor = output.last_hidden_state
        return features.float()

    def encode(self, prompts: Sequence[str], batch_size: int = 1) -> list[Caption]:
        """One caption per prompt, on the CPU, unpadded: embedding [L, C] float32, mask [L] of True, 1 <= L <= max_length.

        Prompts are cleaned (spec section 10); those that are the same after cleaning share one caption. With batch_size 1 a prompt's
        features do not depend on the other prompts; larger batches are faster for many prompts and equal up to rounding.
        Raises MagiError when ``prompts`` is not a sequence of strings.
        """
        if isinstance(prompts, str):
            raise MagiError("prompts is a single string; give a list of strings, one for each prompt")
        texts = [clean_caption(prompt) for prompt in prompts]
        model = f"{fingerprint(self.files)} {self.max_length} {self.dtype} {self.device.type}" if self.cache else ""
        known: dict[str, Caption] = {}
        for text in dict.fromkeys(texts):
            stored = self.cache.get(model, text, self.channels) if self.cache else None
            if stored is not None:
                known[text] = stored
        new = [text for text in dict.fromkeys(texts) if text not in known]
        for start in range(0, len(new), batch_size):
            batch = new[start : start + batch_size]
            for text, caption in zip(batch, self._encode_batch(batch), strict=True):
                known[text] = caption
                if self.cache:
                    self.cache.put(model, text, caption)
        return [known[text] for text in texts]

    def _encode_batch(self, texts: Sequence[str]) -> list[Caption]:
        ids = [self.token_ids(text) for text in texts]
        longest = max(map(len, ids))
        input_ids = torch.tensor([row + [PAD_ID] * (longest - len(row)) for row in ids])
        mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in ids])
        features = self.encode_ids(input_ids, mask.long()).cpu()
        return [Caption(features[i, : len(row)].clone(), mask[i, : len(row)].clone()) for i, row in enumerate(ids)]
