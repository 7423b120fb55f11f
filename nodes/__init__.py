"""The ComfyUI nodes: thin translations of sockets and widgets to calls of magi_core.

Those that make nodes, and ``host``, ``memory``, ``running``, ``filming``, ``sockets`` and ``routes``, import ComfyUI; the other files know
nothing of it. It is imported when it asks for the nodes, not before, so that this package also imports where ComfyUI is absent.
"""

from __future__ import annotations

from typing import Any


async def comfy_entrypoint() -> Any:
    """What ComfyUI calls once: the extension that lists our nodes."""
    from comfy_api.latest import ComfyExtension
    from server import PromptServer

    from . import denoise, devices, extension, filming, host, loaders, lora, routes, sessions, storyboard, video

    class MagiExtension(ComfyExtension):  # type: ignore[misc]
        async def get_node_list(self) -> list[type]:
            return [
                node
                for part in (loaders, lora, devices, storyboard, denoise, extension, sessions, video)
                for node in part.NODES
            ]

    routes.add_routes(PromptServer.instance.routes, filming.RUNS, filming.run_folder)
    host.add_model_folder()  # here and not in on_load, which ComfyUI of 2025 does not call
    return MagiExtension()
