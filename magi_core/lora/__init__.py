"""LoRA: small matrices beside a model's large ones. Their files, and how a model uses them, merged into its weights or added to its products."""

from magi_core.lora.apply import Weighted, add, merge, read, restore, use
from magi_core.lora.choice import Lora
from magi_core.lora.files import Adapter, LowRank, read_adapter, write_adapter
from magi_core.lora.used import Used, used

__all__ = [
    "Adapter",
    "Lora",
    "LowRank",
    "Used",
    "Weighted",
    "add",
    "merge",
    "read",
    "read_adapter",
    "restore",
    "use",
    "used",
    "write_adapter",
]
