"""Whose settings a prompt runs with, where ComfyUI has several users (``--multi-user``).

Notable: only the request that queues a prompt names its user. What runs later knows the page that sent it, by its client id.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

QUEUES = ("/prompt", "/api/prompt")
MOST_CLIENTS = 1000
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Users:
    """The settings file of each client that queued something; bounded, the oldest is forgotten first."""

    def __init__(self) -> None:
        self._files: dict[str, Path] = {}

    def note(self, client: str, file: Path) -> None:
        self._files.pop(client, None)
        self._files[client] = file
        for oldest in list(self._files)[:-MOST_CLIENTS]:
            del self._files[oldest]

    def settings_file(self, client: str | None, otherwise: Path) -> Path:
        """``otherwise`` for who queued without a client id, or is not known (any more)."""
        return self._files.get(client or "", otherwise)

    def watch(self, file_of: Callable[[web.Request], str | None]) -> Any:
        """A middleware of the server that notes who queues. file_of: the settings file of a request's user; raises KeyError where there is none."""

        @web.middleware
        async def noting(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.method == "POST" and request.path in QUEUES:
                try:
                    client, file = (await request.json()).get("client_id"), file_of(request)
                    if isinstance(client, str) and file:
                        self.note(client, Path(file))
                except (KeyError, ValueError, AttributeError):
                    pass  # no such user, or no prompt: the route itself says so
            return await handler(request)

        return noting
