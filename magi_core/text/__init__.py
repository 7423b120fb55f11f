"""From prompts to captions: cleaning, T5 encoding with a disk cache, special tokens, one caption per chunk."""

from magi_core.text.assembly import chunk_caption, null_caption, stacked_condition
from magi_core.text.cache import EmbeddingCache
from magi_core.text.caption import Caption
from magi_core.text.cleaning import clean_caption
from magi_core.text.encoder import T5TextEncoder
from magi_core.text.special_tokens import PromptTokens, SpecialTokens

__all__ = [
    "Caption",
    "EmbeddingCache",
    "PromptTokens",
    "SpecialTokens",
    "T5TextEncoder",
    "chunk_caption",
    "clean_caption",
    "null_caption",
    "stacked_condition",
]
