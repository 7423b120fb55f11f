"""Special tokens and null captions: what must hold for any length. (The recorded assemblies are compared by ``magi verify``.)"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_core.errors import MagiError
from magi_core.text import Caption, PromptTokens, SpecialTokens, chunk_caption, null_caption

WIDTH = 4
ROWS = {"caption_token": 1, "logo_token": 1, "other_tokens": 100}


def make_tokens() -> SpecialTokens:
    return SpecialTokens(*(torch.randn(n, WIDTH) for n in ROWS.values()))


@given(st.integers(1, 30), st.integers(1, 30), st.lists(st.booleans(), min_size=7, max_size=7), st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_special_tokens_come_first_and_the_end_is_cut(length: int, limit: int, on: list[bool], remaining: int) -> None:
    tokens, null = make_tokens(), null_caption(torch.randn(60, WIDTH))
    text = Caption(torch.randn(length, WIDTH), torch.ones(length, dtype=torch.bool))
    switches = PromptTokens(*on)
    rows = tokens.prompt_rows(switches, remaining)
    made = chunk_caption(text, null, remaining, limit, tokens, switches)
    assert len(rows) == sum(on)
    assert len(made) == min(limit, sum(on) + length) and made.mask.all()
    assert torch.equal(made.embedding, torch.cat([rows, text.embedding])[:limit])


def test_duration_counts_this_chunk_and_stops_at_eight() -> None:
    tokens, switches = make_tokens(), PromptTokens(duration=True)
    for remaining, row in ((1, 7), (2, 8), (8, 14), (900, 14)):
        assert torch.equal(tokens.prompt_rows(switches, remaining)[0], tokens.other[row])
    with pytest.raises(MagiError, match="chunks_remaining is 0"):
        tokens.prompt_rows(switches, 0)


def test_empty_caption_becomes_the_null_caption_and_loses_its_tokens() -> None:
    null = null_caption(torch.randn(60, WIDTH))
    empty = Caption(torch.randn(5, WIDTH), torch.zeros(5))
    made = chunk_caption(empty, null, 1, 60, make_tokens(), PromptTokens(high_quality=True))
    assert torch.equal(made.embedding, null.embedding) and int(made.mask.sum()) == 50


def test_padding_and_compacting() -> None:
    caption = Caption(torch.randn(3, WIDTH), torch.tensor([1, 0, 1]))
    assert torch.equal(caption.padded(5).compact().embedding, caption.embedding[[0, 2]])
    with pytest.raises(MagiError, match="cannot be padded"):
        caption.padded(2)
    with pytest.raises(MagiError, match="mask has shape"):
        Caption(torch.randn(3, WIDTH), torch.ones(2))


def test_npz_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "special_tokens.npz"
    good = {name: np.zeros((n, WIDTH)) for name, n in ROWS.items()}
    np.savez(path, **good)
    assert SpecialTokens.load(path).channels == WIDTH
    with pytest.raises(MagiError, match="another caption width"):
        SpecialTokens.load(path, channels=128)
    np.savez(path, caption_token=good["caption_token"])
    with pytest.raises(MagiError, match="lack logo_token, other_tokens"):
        SpecialTokens.load(path)
    np.savez(path, **{**good, "logo_token": np.array([{"a": 1}], dtype=object)})  # pickled: never read
    with pytest.raises(MagiError, match="cannot read the special tokens"):
        SpecialTokens.load(path)
    path.write_bytes(b"no archive")
    with pytest.raises(MagiError, match="cannot read the special tokens"):
        SpecialTokens.load(path)


def test_switches_without_tokens_and_wrong_widths() -> None:
    null = null_caption(torch.randn(60, WIDTH))
    text = Caption(torch.randn(2, WIDTH), torch.ones(2))
    with pytest.raises(MagiError, match="none are loaded"):
        chunk_caption(text, null, 1, 60, None, PromptTokens(duration=True))
    with pytest.raises(MagiError, match="the model expects 4"):
        chunk_caption(Caption(torch.randn(2, 6), torch.ones(2)), null, 1, 60)
