"""Where runs are kept: folders named after what is asked for, so that a run that was broken off is found when it is asked for again.

``magi/<first words>_<key>`` holds the first take, ``..._2`` the second. The key is a hash of the session as it stands before the first
step, which has in it all that the result depends on, and of what the frames depend on besides.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from magi_core.errors import MagiError
from magi_core.files import atomic_write, read_json_object
from magi_core.keeping import ABOUT, Run
from magi_core.making import Making

MAX_WORDS = 40
KEY = 12
_TAKE = re.compile(r"(.+_[0-9a-f]{12})(?:_([0-9]{1,6}))?")
NEWEST = "newest.session"
"""Stands, in a run's folder, for its newest whole checkpoint."""
REVIEW = "review.json"


@dataclass(frozen=True)
class Place:
    """A run, by the folder of one of its takes."""

    root: Path
    """The folder of all runs."""
    name: str
    take: int = 1

    @property
    def folder(self) -> Path:
        return self.root / (self.name if self.take == 1 else f"{self.name}_{self.take}")

    @property
    def shown(self) -> str:
        """The folder as the page names it, in ComfyUI's output folder."""
        return f"{self.root.name}/{self.folder.name}"

    def takes(self) -> list[Place]:
        """What is there, the newest first."""
        found = (place_of(path) for path in self.root.glob(f"{self.name}*") if (path / ABOUT).is_file())
        own = (place for place in found if place is not None and place.name == self.name)
        return sorted(own, key=lambda place: place.take, reverse=True)

    def next(self) -> Place:
        """A take that is not there yet, nor the video of one that was removed."""
        found = self.root.glob(f"{self.name}*")
        there = (place_of(path.with_suffix("") if path.suffix == ".mp4" else path) for path in found)
        last = max((place.take for place in there if place is not None and place.name == self.name), default=0)
        return replace(self, take=last + 1)


def place_of(folder: Path) -> Place | None:
    """The place that has such a folder; None for a folder of another kind."""
    match = _TAKE.fullmatch(folder.name)
    return Place(folder.parent, match[1], int(match[2] or 1)) if match else None


def run_name(making: Making, beside: Mapping[str, Any]) -> str:
    """A name of ASCII letters, digits, "-" and "_" for what ``making``, before its first step, will make.

    beside: what the result depends on and the session does not say; anything that JSON can say.
    """
    first = min(making.pending, default=None)
    words = "" if first is None else making.pending[first].prompt.lower()
    slug = re.sub("[^a-z0-9]+", "-", words)[:MAX_WORDS].strip("-") or "video"
    return f"{slug}_{_key(making, beside)[:KEY]}"


def _key(making: Making, beside: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(beside, sort_keys=True).encode())
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder) / NEWEST
            making.save(path)
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    except (MagiError, OSError):  # no disk to write on, so no run that could be found again
        return uuid.uuid4().hex
    return digest.hexdigest()


def newest_session(folder: Path) -> Path | None:
    """The newest checkpoint of a run; None where there is none."""
    return max((folder / "checkpoints").glob("[0-9]*.session"), default=None)


def read_approved(run: Run) -> int:
    """After how many of the run's chunks somebody said to go on."""
    try:
        approved = read_json_object(run.folder / REVIEW).get("approved")
    except MagiError:  # not there, or damaged: then it is asked once more
        return 0
    return approved if isinstance(approved, int) else 0


def write_approved(run: Run, approved: int) -> None:
    """Keep that for a restart. Raises MagiError where it cannot be written."""
    with atomic_write(run.folder / REVIEW) as temporary:
        temporary.write_text(json.dumps({"approved": approved}), encoding="utf-8")
