"""The ComfyUI nodes: thin translations of sockets and widgets to calls of magi_core.

Those that make nodes, and ``host``, ``memory``, ``running``, ``filming``, ``sockets`` and ``routes``, import ComfyUI; the other files know
nothing of it. It is imported when it asks for the nodes, not before, so that this package also imports where ComfyUI is absent.
"""

from __future__ import annotations

from typing import Any


async def comfy_entrypoint() -> Any:
    """What ComfyUI calls once: the extension that lists our nodes."""
    from comfy.cli_args import args
    from comfy_api.latest import ComfyExtension
    from server import PromptServer

    from . import (
        denoise,
        devices,
        extension,
        filming,
        host,
        loaders,
        lora,
        routes,
        sessions,
        settings,
        storyboard,
        video,
    )

    class MagiExtension(ComfyExtension):  # type: ignore[misc]
        async def get_node_list(self) -> list[type]:
            return [
                node
                for part in (loaders, lora, devices, storyboard, denoise, extension, sessions, video)
                for node in part.NODES
            ]

    server = PromptServer.instance
    routes.add_routes(server.routes, filming.RUNS, filming.run_folder)
    if args.multi_user:
        of_user = server.user_manager.get_request_user_filepath
        server.app.middlewares.append(
            filming.USERS.watch(lambda request: of_user(request, settings.SETTINGS, create_dir=False))
        )
    host.add_model_folder()  # here and not in on_load, which ComfyUI of 2025 does not call
    return MagiExtension()
