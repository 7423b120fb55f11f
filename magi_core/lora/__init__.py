"""LoRA: small matrices beside a model's large ones. Their files, and how a model uses them, merged into its weights or added to its products."""

from magi_core.lora.apply import Weighted, add, merge, read, restore, use
from magi_core.lora.choice import Lora
from magi_core.lora.files import Adapter, LowRank, read_adapter, write_adapter

__all__ = [
    "Adapter",
    "Lora",
    "LowRank",
    "Weighted",
    "add",
    "merge",
    "read",
    "read_adapter",
    "restore",
    "use",
    "write_adapter",
]
