"""Socket types for what ComfyUI has no word for, and what all our nodes share."""

from __future__ import annotations

import weakref
from pathlib import Path

from comfy_api.latest import io

CATEGORY = "MAGI"

Storyboard = io.Custom("MAGI_STORYBOARD")
"""Carries a ``values.Board``."""
Session = io.Custom("MAGI_SESSION")
"""Carries a ``SessionFile``."""


class SessionFile:
    """A session as a file, so that it never changes and takes no memory; a temporary one is removed with the last reference."""

    def __init__(self, path: Path, *, temporary: bool = False) -> None:
        self.path = path
        if temporary:
            weakref.finalize(self, path.unlink, missing_ok=True)
