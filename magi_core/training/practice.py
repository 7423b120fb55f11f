"""What training shows of a world: hard motions and looks more often than they happen, and captions that leave out what can be seen.

A model that is always told what it could have read from the seconds before does not learn to read them: it keeps no shape that the
prompt does not name, and no velocity that it does not tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from magi_core.worlds.captions import USUAL, Omissions
from magi_core.worlds.clips import FULL, NARROW, World


@dataclass(frozen=True)
class Practice:
    """The clips and captions of a training set."""

    world: World
    """The distribution that clips are drawn from."""
    omissions: Omissions
    rough: float = 0.0
    """Share of clips' wordings that are told in another writer's hand (``roughen``)."""


def emphasised(world: World, times: Mapping[str, float]) -> World:
    """The world with some motions that many times as often."""
    return replace(world, motions=tuple((name, share * times.get(name, 1.0)) for name, share in world.motions))


PRACTICE: Mapping[str, Practice] = MappingProxyType(
    {
        "narrow": Practice(emphasised(NARROW, {"bounce": 2.0, "fall": 1.5}), USUAL),
        "full": Practice(
            replace(
                emphasised(FULL, {"bounce": 3.5, "fall": 1.5, "still": 1.5}),
                # Circles and stars turn into squares in long videos, and the middle size, which has no word, grows.
                shapes=(*FULL.shapes, "circle", "star"),
                radii=(*FULL.radii, 9.0),
                colour_change=0.30,
                motion_change=0.35,
                image_share=0.30,
            ),
            Omissions(
                later={"colour": 0.6, "shape": 0.7, "motion": 0.5, "direction": 0.5, "size": 0.8, "speed": 0.7},
                image={"colour": 0.75, "shape": 0.7, "size": 0.7, "speed": 0.3, "background": 0.8},
            ),
            rough=0.2,
        ),
    }
)
"""By the names of ``WORLDS``."""
