"""Which adapters a video was made with, as its session remembers them, so that it goes on with the same and no others.

Known by what they hold: a file may be called anything and lie anywhere, also on another machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from magi_core.errors import MagiError
from magi_core.lora.choice import Lora

SHOWN = 8
"""Digits of a hash, where names do not tell two files apart."""


@dataclass(frozen=True)
class Used:
    """An adapter at some other strength than 0."""

    name: str
    """For people: of its file."""
    strength: float
    digest: str
    """SHA-256 of what it holds."""


def used(loras: Iterable[Lora]) -> tuple[Used, ...]:
    """Those that do something; raises MagiError where a file cannot be read."""
    return tuple(Used(lora.path.name, lora.strength, lora.pinned().digest) for lora in loras if lora.strength)


def check_same(made_with: Sequence[Used], present: Sequence[Used], what: str) -> None:
    """Raise MagiError, in which ``what`` is what was made, unless both hold the same at the same strengths, in any order."""
    if sorted(map(_key, made_with)) == sorted(map(_key, present)):
        return
    before, now = _listed(made_with), _listed(present)
    if before == now:
        before, now = _listed(made_with, exactly=True), _listed(present, exactly=True)
    raise MagiError(
        f"{what} was made with {before}, and the model has {now}; go on with the same LoRAs at the same strengths, or begin a new video"
    )


def write_used(loras: Sequence[Used]) -> str:
    """As JSON."""
    return json.dumps([asdict(each) for each in loras])


def read_used(text: str) -> tuple[Used, ...]:
    """What ``write_used`` gave; raises KeyError, TypeError or ValueError where it is damaged."""
    return tuple(Used(str(each["name"]), float(each["strength"]), str(each["digest"])) for each in json.loads(text))


def _key(each: Used) -> tuple[str, float]:
    return each.digest, each.strength


def _listed(loras: Sequence[Used], *, exactly: bool = False) -> str:
    names = (
        f"{each.name}{f' ({each.digest[:SHOWN]}...)' if exactly else ''} at strength {each.strength:g}"
        for each in loras
    )
    return f"the LoRA {' and '.join(names)}" if loras else "no LoRA"
