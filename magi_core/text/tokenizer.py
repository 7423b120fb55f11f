"""From a cleaned prompt to token ids: T5's sentencepiece vocabulary, or bytes for magi-nano.

A tokenizer is a function ``(text, max_length) -> ids``: the text's ids, cut so that the end token fits, then the end token.
Which of the two a model has is written in its folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from magi_core.errors import MagiError, missing_extra

Tokenizer = Callable[[str, int], list[int]]

PAD_ID = 0
END_ID = 1
BYTE_VOCABULARY = 384
"""Rows of a byte model's embedding table: 3 special ids, 256 bytes, 125 unused (ByT5's numbering)."""

VOCABULARY_FILES = ("tokenizer.json", "spiece.model")
FOLDER_NAMES = ("t5-v1_1-xxl", "tokenizer")


def byte_ids(text: str, max_length: int) -> list[int]:
    """ByT5's ids: every UTF-8 byte plus 3, then the end token; at most ``max_length`` ids.

    >>> byte_ids("ab", 8)
    [100, 101, 1]
    """
    return [byte + 3 for byte in text.encode("utf-8", errors="replace")[: max_length - 1]] + [END_ID]


def find_vocabulary(place: Path) -> Path | None:
    """The folder that holds a T5 vocabulary: ``place`` itself or a usual folder name inside it; None when there is none."""
    for folder in (place, *(place / name for name in FOLDER_NAMES)):
        if any((folder / name).is_file() for name in VOCABULARY_FILES):
            return folder
    return None


def sentencepiece_tokenizer(folder: Path) -> Tokenizer:
    """T5's own tokenizer, from a folder with ``tokenizer.json`` or ``spiece.model``; both give the same ids.

    Raises MagiError when the folder holds neither, when a package is missing, or when the file is damaged.
    """
    if (folder / "tokenizer.json").is_file():
        pieces = _read_json_vocabulary(folder / "tokenizer.json")
    elif (folder / "spiece.model").is_file():
        pieces = _read_sentencepiece(folder / "spiece.model")
    else:
        raise MagiError(f"{folder} has no T5 vocabulary: it must hold {' or '.join(VOCABULARY_FILES)}")
    return lambda text, max_length: [*pieces(text)[: max_length - 1], END_ID]


def _read_json_vocabulary(path: Path) -> Callable[[str], list[int]]:
    try:
        from tokenizers import Tokenizer as JsonTokenizer
    except ImportError as error:
        raise missing_extra("tokenizers", "text", f"reading {path}") from error
    try:
        vocabulary = JsonTokenizer.from_file(os.fspath(path))
    except Exception as error:  # the library raises bare Exceptions
        raise _damaged(path, error) from error
    vocabulary.no_truncation()
    vocabulary.no_padding()
    return lambda text: list(vocabulary.encode(text, add_special_tokens=False).ids)


def _read_sentencepiece(path: Path) -> Callable[[str], list[int]]:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise missing_extra("sentencepiece", "text", f"reading {path}") from error
    try:
        vocabulary = SentencePieceProcessor(model_file=os.fspath(path))
    except (OSError, RuntimeError) as error:
        raise _damaged(path, error) from error
    return lambda text: list(vocabulary.encode(text))


def _damaged(path: Path, error: Exception) -> MagiError:
    return MagiError(f"cannot read the T5 vocabulary {path}: {error}. Fetch the file again")
