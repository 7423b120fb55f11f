"""The diffusion transformer of MAGI-1."""

from magi_core.model.cache import KVCache
from magi_core.model.dit import MagiDiT

__all__ = ["KVCache", "MagiDiT"]
