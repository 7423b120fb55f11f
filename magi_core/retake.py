"""Other words for chunks that are planned and not begun, as after ``Making.rewind``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from magi_core.denoise.checks import check_caption
from magi_core.errors import MagiError
from magi_core.making import Making
from magi_core.text.assembly import chunk_caption
from magi_core.text.caption import Caption
from magi_core.text.special_tokens import PromptTokens, SpecialTokens


def reword(
    making: Making,
    words: Mapping[int, str],
    captions: Mapping[str, Caption],
    *,
    special: SpecialTokens | None = None,
    tokens: PromptTokens = PromptTokens(),
) -> None:
    """Tell the chunks of ``words``, by number, something else. captions: of each of those texts.

    Raises MagiError, and changes nothing, where a chunk is not planned or in flight already, or a caption does not fit.
    """
    session = making.session
    longest = session.model.config.caption_max_length
    told: dict[tuple[str, int], Caption] = {}  # the same words at the same countdown are held, and saved, once
    new: dict[int, Caption] = {}
    for number, text in words.items():
        if number not in session.state.captions or number in session.state.in_flight:
            raise MagiError(f"chunk {number} is not planned, or begun already; its words cannot be changed")
        plan = making.pending[number]
        key = (text, plan.duration_token)
        if key not in told:
            caption = captions[text].to(session.null.embedding.device)
            made = chunk_caption(caption, session.null, plan.chunks_remaining, longest, special, tokens)
            told[key] = check_caption(made, session.model)
        new[number] = told[key]
    session.state = replace(session.state, captions={**session.state.captions, **new})
    making.pending |= {number: replace(making.pending[number], prompt=text) for number, text in words.items()}
