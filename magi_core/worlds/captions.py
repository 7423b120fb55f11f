"""What a chunk of a synthetic clip is told: one short English sentence in varied wording.

Notable:

* The first chunk is described in full ("a red circle moves right"); a later one is told in full or by what changes ("it turns blue
  and stops"). What history or a first image shows may be left out, so the model learns to keep it.
* The wordings of the split "test" share no verb phrase with those of "train": a score on them shows that the sense was learnt.
* A middle-sized object, the middle speed and the black background are the unmarked case and have no word;
  another background is named in the first chunk only.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import numpy as np

from magi_core.worlds.clips import DIRECTIONS, Clip

ATTRIBUTES = ("colour", "shape", "motion", "direction", "size", "speed", "background")
"""What a caption may leave out. Without its motion it tells a change of colour alone; without the direction, an unchanged slide goes on."""


@dataclass(frozen=True)
class Wording:
    """The phrases of one split; ``{}`` takes the direction."""

    move: tuple[str, ...]
    keep: tuple[str, ...]
    """How an unchanged direction is told."""
    same: tuple[str, ...]
    """How it is told that a slide goes on, without its direction."""
    still: tuple[str, ...]
    stop: tuple[str, ...]
    """How a change to standing still is told."""
    bounce: tuple[str, ...]
    fall: tuple[str, ...]
    turn: tuple[str, ...]
    """How a change of colour is told; the colour follows."""


WORDINGS: dict[str, Wording] = {
    "train": Wording(
        move=("moves {}", "slides {}", "goes {}", "is moving {}", "travels {}"),
        keep=("keeps moving {}", "keeps sliding {}", "goes on moving {}", "continues {}"),
        same=("keeps moving", "moves on", "continues", "continues as before"),
        still=(
            "stands still",
            "does not move",
            "is still",
            "stays in place",
            "remains where it is",
            "is not travelling",
            "does not slide",
        ),
        stop=(
            "stops",
            "stops moving",
            "comes to a stop",
            "stands still now",
            "stops at once",
            "stops there",
            "comes to rest",
            "halts",
            "no longer moves",
        ),
        bounce=("bounces around", "bounces off the walls", "keeps bouncing", "jumps from wall to wall"),
        fall=("falls", "falls to the floor", "falls and bounces", "drops and bounces"),
        turn=("turns", "becomes", "is now"),
    ),
    "test": Wording(
        move=("is sliding {}", "is going {}"),
        keep=("keeps going {}", "goes on {}"),
        same=("goes on as before", "goes on the same way"),
        still=("is not moving", "stays still"),
        stop=("stops now", "stops and stands still"),
        bounce=("is bouncing around", "bounces from wall to wall"),
        fall=("is falling", "drops to the floor"),
        turn=("changes to", "turns to"),
    ),
}

TOWARDS: dict[str, tuple[str, ...]] = {
    "right": ("right", "to the right"),
    "left": ("left", "to the left"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
    "up-right": ("up and right", "to the upper right"),
    "up-left": ("up and left", "to the upper left"),
    "down-right": ("down and right", "to the lower right"),
    "down-left": ("down and left", "to the lower left"),
}


@dataclass(frozen=True)
class Omissions:
    """How often a caption leaves out what history or a first image shows, as shares of 0..1."""

    later: Mapping[str, float] = field(
        default_factory=lambda: {
            "colour": 0.5,
            "shape": 0.4,
            "motion": 0.3,
            "size": 0.6,
            "speed": 0.5,
            "background": 0.7,
        }
    )
    """Attributes that have not changed, after the first chunk."""
    image: Mapping[str, float] = field(
        default_factory=lambda: {"colour": 0.65, "shape": 0.5, "size": 0.6, "speed": 0.5, "background": 0.7}
    )
    """In a first chunk that begins with a held image."""


USUAL = Omissions()


@dataclass(frozen=True)
class Description:
    """A caption and what it says; an attribute that it leaves out is None."""

    text: str
    """Lower-case ASCII of at most 80 bytes."""
    colour: str | None
    shape: str | None
    motion: str | None


def caption_clip(clip: Clip, rng: np.random.Generator, *, split: str = "train") -> list[str]:
    """One caption per chunk of the clip, with the usual omissions."""
    return [describe(clip, chunk, rng, split=split).text for chunk in range(len(clip.phases))]


def describe(
    clip: Clip,
    chunk: int,
    rng: np.random.Generator,
    *,
    omit: Set[str] | None = None,
    omissions: Omissions = USUAL,
    split: str = "train",
) -> Description:
    """Put chunk ``chunk`` (0-based) of a clip into words.

    omit: names of ``ATTRIBUTES`` to leave out; None draws them from ``omissions``: nothing in a first chunk from text, often
    colour and shape where the clip begins with a held image, and in later chunks only what has not changed.
    split: "train" or "test", the set of wordings.
    """
    wording = WORDINGS[split]
    phase, before = clip.phases[chunk], clip.phases[chunk - 1] if chunk else None
    new_colour = before is not None and before.colour != phase.colour
    new_motion = before is None or before.motion != phase.motion
    if omit is None:
        omit = _draw_omitted(clip, chunk, omissions, new_colour, new_motion, rng)
    turns = before is not None and new_colour and "colour" not in omit and rng.random() < 0.5
    says_motion = not (turns and "motion" in omit)  # a caption says something, whatever is to be left out
    says_direction = phase.motion not in DIRECTIONS or new_motion or "direction" not in omit
    clauses = []
    if turns:
        clauses.append(f"{_pick(wording.turn, rng)} {phase.colour}")
    if says_motion:
        speed = "" if "speed" in omit else _speed_word(clip, phase.motion)
        if says_direction:
            clauses.append(_motion_words(wording, phase.motion, before is not None, new_motion, rng) + speed)
        else:
            clauses.append(_pick(wording.same, rng) + speed)
    colour = None if "colour" in omit else phase.colour
    shape = None if "shape" in omit else clip.shape
    size = "" if "size" in omit else _size_word(clip.radius)
    subject = _subject(None if turns else colour, shape, size, first=before is None, rng=rng)
    place = "" if before is not None or "background" in omit or clip.background == "black" else f" on {clip.background}"
    text = f"{subject} {' and '.join(clauses)}{place}"
    return Description(text, colour, shape, phase.motion if says_motion and says_direction else None)


def _draw_omitted(
    clip: Clip, chunk: int, omissions: Omissions, new_colour: bool, new_motion: bool, rng: np.random.Generator
) -> Set[str]:
    if chunk == 0 and not clip.hold:
        return frozenset()
    told = {"colour"} if new_colour else set()
    if new_motion:
        told |= {"motion", "direction"}
    shares = omissions.later if chunk else omissions.image
    return {name for name, share in shares.items() if name not in told and rng.random() < share}


def _motion_words(wording: Wording, motion: str, has_history: bool, changes: bool, rng: np.random.Generator) -> str:
    if motion == "still":
        return _pick(wording.stop if has_history and changes else wording.still, rng)
    if motion == "bounce":
        return _pick(wording.bounce, rng)
    if motion == "fall":
        return _pick(wording.fall, rng)
    keeps = not changes and rng.random() < 0.7
    return _pick(wording.keep if keeps else wording.move, rng).format(_pick(TOWARDS[motion], rng))


def _subject(colour: str | None, shape: str | None, size: str, *, first: bool, rng: np.random.Generator) -> str:
    if colour is None and shape is None and not size and rng.random() < 0.5:
        return "it"
    article = _pick(("a", "the", "one"), rng) if first and colour is not None else "the"
    return " ".join(word for word in (article, size, colour, shape or _pick(("shape", "object"), rng)) if word)


def _size_word(radius: float) -> str:
    return "small" if radius < 8 else "big" if radius > 10 else ""


def _speed_word(clip: Clip, motion: str) -> str:
    if motion in ("still", "fall"):
        return ""
    return " slowly" if clip.speed < 0.5 else " quickly" if clip.speed > 1 else ""


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
