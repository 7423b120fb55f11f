"""Range attention: every chunk's queries attend to one range of keys."""

from magi_core.kernels.attention import Attend, AttnRange, attend

__all__ = ["Attend", "AttnRange", "attend"]
