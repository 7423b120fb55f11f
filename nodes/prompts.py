"""Prompts as they were queued, so that they can be kept and queued once more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHANGED = "is_changed"
"""Where ComfyUI notes in a node, once it is queued, what tells whether it must run again."""


def as_queued(prompt: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Without those notes: queued again they would hold for good, and a NaN among them is no JSON."""
    return {number: {name: part for name, part in node.items() if name != CHANGED} for number, node in prompt.items()}
