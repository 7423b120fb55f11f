"""HTTP for pages and programs: what runs now, what on disk can go on, the answer to a review (docs/live.md)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from magi_core.errors import MagiError
from magi_core.keeping import VIDEO, Run
from magi_core.run_folders import look_through

from .inputs import GO_ON
from .kept import NEWEST, newest_session, place_of
from .prompts import as_queued
from .runs import NotWaiting, Runs

log = logging.getLogger(__name__)

MOST_UNFINISHED = 20
GOING_ON = ("running", "paused")


def add_routes(routes: web.RouteTableDef, known: Runs, folder: Callable[[], Path]) -> None:
    """known: the runs of this server. folder: where runs are kept."""

    @routes.get("/magi/runs")
    async def all_runs(request: web.Request) -> web.Response:
        return web.json_response({"runs": [told.document() for told in known.all()]})

    @routes.get("/magi/unfinished")
    async def all_unfinished(request: web.Request) -> web.Response:
        busy = {told.about.run for told in known.all() if told.about.state in GOING_ON}
        return web.json_response(await asyncio.to_thread(unfinished, folder(), busy))

    @routes.post("/magi/runs/{run}/review")
    async def review(request: web.Request) -> web.Response:
        told = known.find(request.match_info["run"])
        if told is None:
            return _refused(404, "there is no such run on this server")
        try:
            told.answer(await request.json())
        except (MagiError, json.JSONDecodeError, UnicodeDecodeError) as error:
            return _refused(400, str(error))
        except NotWaiting as error:
            return _refused(409, str(error))
        return web.json_response({"run": told.about.run, "state": "running"})


def unfinished(folder: Path, busy: set[str]) -> dict[str, list[dict[str, Any]]]:
    """The newest take of each run below a folder that can go on, the newest run first, without those that are ``busy``; and what is damaged."""
    found: list[dict[str, Any]] = []
    whole, damaged = look_through(folder)
    for run in whole:
        place = place_of(run.folder)
        try:
            if place is None or place.name in busy or place not in place.takes()[:1] or run.finished:
                continue
            found.append({"run": place.name, "take": place.take, **_described(run)})
        except OSError as error:
            log.warning("the run in %s is left out: %s", run.folder, error)
        if len(found) == MOST_UNFINISHED:
            break
    broken = [
        {"folder": _shown(path), "reason": str(error), "video": _file(path)}
        for path, error in list(damaged.items())[:MOST_UNFINISHED]
    ]
    return {"runs": found, "damaged": broken}


def _described(run: Run) -> dict[str, Any]:
    return {
        "folder": _shown(run.folder),
        "shots": run.asked.settings.get("shots", []),
        "done": run.done,
        "chunks": run.end - run.first,
        "changed": run.changed,
        "bytes": run.nbytes,
        "video": _file(run.folder),
        "session": f"{_shown(run.folder)}/{NEWEST} [output]" if newest_session(run.folder) else None,
        "prompt": _going_on(_json(run.asked.metadata.get("prompt"))),
        "workflow": _json(run.asked.metadata.get("workflow")),
    }


def _shown(run: Path) -> str:
    """A run's folder as the page names it, in ComfyUI's output folder."""
    return f"{run.parent.name}/{run.name}"


def _file(run: Path) -> dict[str, str] | None:
    """How the page asks for a run's video; None where there is none."""
    return {"filename": VIDEO, "subfolder": _shown(run), "type": "output"} if (run / VIDEO).exists() else None


def _going_on(prompt: Any) -> Any:
    """The prompt that finishes a run, though it was begun with 'start over'."""
    if not isinstance(prompt, dict):
        return None
    return {
        number: {**node, "inputs": {**node["inputs"], "on_repeat": GO_ON}} if "on_repeat" in node["inputs"] else node
        for number, node in as_queued(prompt).items()
    }


def _json(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return None


def _refused(status: int, error: str) -> web.Response:
    return web.json_response({"error": error}, status=status)
