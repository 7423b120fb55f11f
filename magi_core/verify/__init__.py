"""`magi verify`: hold our numbers against a golden folder, or compute the outputs for somebody else to compare.

Nothing here computes on its own: every family calls the code that generates video.
"""

from magi_core.verify.report import Row, verify

__all__ = ["Row", "verify"]
