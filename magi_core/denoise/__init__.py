"""Denoising: the window schedule, guidance, and the session that walks them."""

from magi_core.denoise.guidance import Window, dispatch
from magi_core.denoise.session import ChunkCondition, FinishedChunk, Progress, Session

__all__ = ["ChunkCondition", "FinishedChunk", "Progress", "Session", "Window", "dispatch"]
