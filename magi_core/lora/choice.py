"""Which adapter a model uses and how strongly, as it is typed, sent to other processes and written into a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from magi_core.errors import MagiError, shorten
from magi_core.files import digest_of
from magi_core.lora.files import adapter_files

STRONGEST = 100.0


@dataclass(frozen=True)
class Lora:
    """An adapter and its strength. Raises MagiError where its file is missing or the strength is not from -100 to 100."""

    path: Path
    """A safetensors file, or a folder as peft writes it."""
    strength: float = 1.0
    """1: as it was trained; 0: not at all; negative: away from what it was trained on."""
    digest: str = ""
    """SHA-256 of what is meant, see ``pinned``; "": whatever is there."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength) or abs(self.strength) > STRONGEST:
            raise MagiError(
                f"the strength of {self.path.name} is {self.strength:g}; it must be from {-STRONGEST:g} to {STRONGEST:g}, "
                "usually from 0 to 1"
            )
        adapter_files(self.path)

    @classmethod
    def parse(cls, text: str) -> Lora:
        """What "FILE" or "FILE:STRENGTH" means."""
        path, _, strength = text.rpartition(":")
        try:
            number = float(strength)
        except ValueError:
            return cls(Path(text))
        return cls(Path(path), number) if path and not Path(text).exists() else cls(Path(text))

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> Lora:
        """What ``document`` gave; raises MagiError where it is damaged."""
        try:
            return cls(Path(document["path"]), float(document["strength"]), str(document["digest"]))
        except (KeyError, TypeError) as error:
            raise MagiError(
                f"the LoRA {shorten(document)} cannot be read; the file that names it is damaged"
            ) from error

    def document(self) -> dict[str, Any]:
        """What JSON can say, and holds in whatever folder."""
        return {"path": str(self.path.absolute()), "strength": self.strength, "digest": self.digest}

    def pinned(self) -> Lora:
        """The same, of which only today's file will do, unless it is pinned already; raises MagiError where it cannot be read."""
        return self if self.digest else replace(self, digest=digest_of(*adapter_files(self.path)))

    def check(self) -> None:
        """Raise MagiError where the file is not the one that was pinned."""
        if self.digest and digest_of(*adapter_files(self.path)) != self.digest:
            raise MagiError(f"the LoRA {self.path} has changed; put the earlier file back, or begin anew with this one")
