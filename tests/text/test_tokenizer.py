"""Token ids: bytes as ByT5 numbers them, and both forms of a T5 vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_core.errors import MagiError
from magi_core.text.tokenizer import byte_ids, sentencepiece_tokenizer


@pytest.fixture(scope="module")
def byt5():
    return pytest.importorskip("transformers").ByT5Tokenizer()


@given(
    st.text(max_size=30).filter(lambda text: "<" not in text)
)  # ByT5 also parses markers such as </s>, which cleaning removes
@settings(max_examples=60, deadline=None)
def test_bytes_equal_byt5(byt5, text: str) -> None:
    assert byte_ids(text, 800) == byt5(text)["input_ids"]


@given(st.text(max_size=20), st.integers(1, 30))
@settings(deadline=None)
def test_bytes_are_cut_before_the_end_token(text: str, length: int) -> None:
    ids = byte_ids(text, length)
    assert len(ids) <= length and ids[-1] == 1 and ids[:-1] == byte_ids(text, 1000)[: len(ids) - 1]


PIECES = [
    ("<pad>", 0.0),
    ("</s>", 0.0),
    ("<unk>", 0.0),
    ("▁", -4.0),
    ("▁red", -1.0),
    ("▁ball", -1.0),
    ("s", -2.0),
    ("▁b", -9.0),
]


def test_json_vocabulary(tmp_path: Path) -> None:
    document = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": None,
        "decoder": None,
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": PIECES},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    tokenize = sentencepiece_tokenizer(tmp_path)
    assert tokenize("red balls red", 10) == [4, 5, 6, 4, 1]  # the file's own truncation is not used
    assert tokenize("red balls red", 3) == [4, 5, 1]
    assert tokenize("", 10) == [1]


def test_sentencepiece_vocabulary(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    text = tmp_path / "text.txt"
    text.write_text("a red ball\nblue balls roll\nthe ball is red\n" * 20, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=20,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=3,
    )
    tokenize = sentencepiece_tokenizer(tmp_path)
    whole = tokenize("red ball", 50)
    assert whole[-1] == 1 and len(whole) > 2
    assert tokenize("red ball", 3) == [*whole[:2], 1]


def test_damaged_and_missing_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(MagiError, match="no T5 vocabulary"):
        sentencepiece_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(MagiError, match="Fetch the file again"):
        sentencepiece_tokenizer(tmp_path)
