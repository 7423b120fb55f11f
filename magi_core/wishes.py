"""How a video is to be made, apart from what is seen in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import torch

from magi_core.config import MAX_SIDE, Sampling
from magi_core.denoise import Session
from magi_core.denoise.checks import check_caption
from magi_core.denoise.noise import check_seed
from magi_core.errors import MagiError, shorten, whole_number
from magi_core.images import Fit
from magi_core.plan import MAX_MORE_TO_COME
from magi_core.text.assembly import null_caption
from magi_core.text.special_tokens import PromptTokens, SpecialTokens


@dataclass(frozen=True)
class Wishes:
    """None takes the model's own value."""

    height: int | None = None
    """In pixels, a multiple of 16."""
    width: int | None = None
    seed: int | None = None
    """0 .. 2**64 - 1; the same seed gives the same video on the same device."""
    sampling: Sampling | None = None
    tokens: PromptTokens = PromptTokens()
    """Special tokens set before every prompt."""
    negative: bool = False
    """Put the special tokens for borders, transitions, logos and captions into the null prompt."""
    fit: Fit = "crop"
    """How images and clips of another size are brought to the video's."""
    more_to_come: int = 0
    """Chunks that a later extension will add, for the duration countdown."""

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), 1, MAX_SIDE)
        if self.seed is not None:
            check_seed(self.seed)
        whole_number("more_to_come", self.more_to_come, 0, MAX_MORE_TO_COME)
        for name, kind in (("sampling", Sampling | None), ("tokens", PromptTokens), ("negative", bool)):
            if not isinstance(getattr(self, name), kind):
                raise MagiError(f"{name} is {shorten(getattr(self, name))}; it must be of type {kind}")
        if self.fit not in get_args(Fit):
            raise MagiError(f"fit is {shorten(self.fit)}; it must be one of {', '.join(get_args(Fit))}")


def changed(wishes: Wishes, changes: dict[str, object]) -> Wishes:
    """``wishes`` with fields given by name; raises MagiError for a name that is none."""
    if not isinstance(wishes, Wishes):
        raise MagiError(f"wishes is {shorten(wishes)}; it must be of type Wishes")
    unknown = changes.keys() - vars(wishes).keys()
    if unknown:
        raise MagiError(f"unknown setting {sorted(unknown)[0]!r}; known: {', '.join(vars(wishes))}")
    return replace(wishes, **changes)  # type: ignore[arg-type]


def check_kept(wishes: Wishes, session: Session, patch: int, special: SpecialTokens | None) -> None:
    """Raise MagiError where wishes for a video that goes on ask for something else than it was begun with.

    patch: pixels of a latent, in height and in width. special: what a negative prompt is made of.
    """
    own = {"height": session.height * patch, "width": session.width * patch, "seed": session.seed}
    asked = {name: getattr(wishes, name) for name in own if getattr(wishes, name) is not None}
    if wishes.sampling is not None:
        own, asked = {**own, **vars(session.sampling)}, {**asked, **vars(wishes.sampling)}
    for name, value in asked.items():
        if value != own[name]:
            raise MagiError(
                f"{name} is {shorten(value)}, but the video was begun with {shorten(own[name])} and keeps it; leave it out"
            )
    if wishes.negative:
        null = check_caption(null_caption(session.model.null_caption.detach(), special), session.model)
        if special is None or not torch.equal(null.embedding, session.null.embedding):
            raise MagiError("negative is on, but the video was begun without it and stays so; leave it out")
