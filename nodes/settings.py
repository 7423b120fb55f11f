"""What the user set in ComfyUI's settings panel, as its file has it."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SETTINGS = "comfy.settings.json"
"""In a user's folder."""
PREVIEW, PREVIEW_HEIGHT, RUN_FOLDER_LIMIT = "MAGI.Preview", "MAGI.PreviewHeight", "MAGI.RunFolderLimit"
LOWEST, HIGHEST = 64, 720
MOST_GIGABYTES = 1_000_000


@dataclass(frozen=True)
class Settings:
    """See docs/live.md."""

    preview: bool = True
    """Whether chunks are decoded while the video is made."""
    preview_height: int = 256
    """Pixels of a strip's frames, 64 to 720."""
    folder_bytes: int = 20 * 10**9
    """What all runs on disk may take before finished ones are removed; 0: no limit."""


def read_settings(file: Path) -> Settings:
    """The settings in ComfyUI's file. What is not there, or is no sensible value, is as it is by default."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings()
    except (OSError, ValueError, RecursionError) as error:
        log.warning("ComfyUI's settings in %s cannot be read (%s); MAGI's are as by default", file, error)
        return Settings()
    values = document if isinstance(document, dict) else {}
    own = Settings()
    preview = values.get(PREVIEW, own.preview)
    height = _number(values.get(PREVIEW_HEIGHT), own.preview_height, LOWEST, HIGHEST)
    gigabytes = _number(values.get(RUN_FOLDER_LIMIT), own.folder_bytes / 10**9, 0, MOST_GIGABYTES)
    return Settings(
        preview=preview if isinstance(preview, bool) else own.preview,
        preview_height=int(height),
        folder_bytes=int(gigabytes * 10**9),
    )


def _number(value: Any, otherwise: float, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return otherwise
    return min(most, max(least, value))
