"""The ComfyUI nodes: thin translations of sockets and widgets to calls of magi_core.

ComfyUI is imported when it asks for the nodes, not before, so that this package also imports where ComfyUI is absent.
"""

from __future__ import annotations

from typing import Any


async def comfy_entrypoint() -> Any:
    """What ComfyUI calls once: the extension that lists our nodes."""
    from comfy_api.latest import ComfyExtension

    class MagiExtension(ComfyExtension):  # type: ignore[misc]
        async def get_node_list(self) -> list[type]:
            return []

    return MagiExtension()
