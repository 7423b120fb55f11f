"""One generation on several devices: who computes what, what is sent to whom, and the processes that do it."""

from magi_core.parallel.engine import Engine, FromFiles, start
from magi_core.parallel.predict import choose, machine_of
from magi_core.parallel.worker import Decoder, Strategy

__all__ = ["Decoder", "Engine", "FromFiles", "Strategy", "choose", "machine_of", "start"]
