"""Socket types for what ComfyUI has no word for, and what all our nodes share."""

from __future__ import annotations

import copy
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path

from comfy_api.latest import io

from magi_core.denoise.storage import fingerprint
from magi_core.errors import MagiError
from magi_core.files import atomic_write
from magi_core.lora import Used
from magi_core.making import Making
from magi_core.model import MagiDiT

CATEGORY = "MAGI"

Storyboard = io.Custom("MAGI_STORYBOARD")
"""Carries a ``values.Board``."""
Session = io.Custom("MAGI_SESSION")
"""Carries a ``SessionFile``, or a ``HeldSession`` where no file could be written."""


class SessionFile:
    """A session as a file, so that it never changes and takes no memory; a temporary one is removed with the last reference."""

    def __init__(self, path: Path, *, temporary: bool = False) -> None:
        self.path = path
        if temporary:
            weakref.finalize(self, path.unlink, missing_ok=True)

    def load(self, dit: MagiDiT, loras: Sequence[Used]) -> Making:
        """One's own, to go on with; raises MagiError when the file is damaged or belongs to another model or other LoRAs."""
        making = Making.load(self.path, dit)
        making.check_loras(loras)
        return making

    def write(self, target: Path) -> None:
        """Write it as a file, all or nothing."""
        with atomic_write(target) as temporary:
            shutil.copyfile(self.path, temporary)


class HeldSession:
    """A session in memory, for want of a disk that it could be written on."""

    def __init__(self, making: Making) -> None:
        self._making = making

    def load(self, dit: MagiDiT, loras: Sequence[Used]) -> Making:
        """As ``SessionFile.load``."""
        model = self._making.session.model
        if fingerprint(dit) != fingerprint(model):
            raise MagiError("the session was made with another model; connect the model it was made with")
        self._making.check_loras(loras)
        return copy.deepcopy(self._making, {id(model): dit})

    def write(self, target: Path) -> None:
        """As ``SessionFile.write``."""
        self._making.save(target)
