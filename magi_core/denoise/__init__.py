"""Denoising: the window schedule, guidance, and the session that walks them."""

from magi_core.denoise.chunk import ChunkCondition, FinishedChunk, Progress
from magi_core.denoise.guidance import dispatch
from magi_core.denoise.session import Session
from magi_core.denoise.window import Window

__all__ = ["ChunkCondition", "FinishedChunk", "Progress", "Session", "Window", "dispatch"]
