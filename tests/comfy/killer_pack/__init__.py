"""A custom node pack for the test server alone. Ends this process with SIGKILL at a moment that a test names by ``POST /test/kill``: while a file is written, or around its name.

    {"event": "sync", "path": "checkpoints/", "count": 2, "share": 0.4}    the second such file, of which 40 % is on disk
    {"event": "name", "path": "chunks/", "count": 1, "share": 0}           before it has its name; with share 1 just after

A write that is cut short is what the kernel leaves of one: the process ends before the rest is there.
"""

import os
import re
import signal
import sys
from threading import Lock

from aiohttp import web
from server import PromptServer

core_fsync, core_replace = os.fsync, os.replace
lock = Lock()
wanted = {}
before = {}
"""Bytes of a file when it was opened to be written."""


def due(event, path):
    """Whether this is the moment."""
    with lock:
        if wanted.get("event") != event or not re.search(wanted["path"], path):
            return False
        wanted["count"] -= 1
        return wanted["count"] == 0


def end():
    os.kill(os.getpid(), signal.SIGKILL)


def noted(event, args):
    if event == "open" and wanted and isinstance(args[0], str) and args[0].endswith("video.mp4"):
        before[args[0]] = os.path.getsize(args[0]) if os.path.exists(args[0]) else 0


def fsync(handle):
    path = os.readlink(f"/proc/self/fd/{handle}")
    if due("sync", path):
        size, start = os.fstat(handle).st_size, before.get(path, 0)
        os.ftruncate(handle, min(size, start + int(wanted["share"] * max(0, size - start))))
        end()
    core_fsync(handle)


def replace(source, target, **options):
    now = due("name", str(target))
    if now and not wanted["share"]:
        end()
    core_replace(source, target, **options)
    if now:
        end()


sys.addaudithook(noted)
os.fsync, os.replace = fsync, replace


@PromptServer.instance.routes.post("/test/kill")
async def arrange(request):
    with lock:
        wanted.update(await request.json())
    return web.json_response({})


NODE_CLASS_MAPPINGS = {}
