"""A real ComfyUI server for tests: found, started on a free port with a folder of its own, and driven over HTTP and websocket.

Only the standard library is used, so that the tests need nothing that the project does not.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BOOT_SECONDS = 300
NEEDS = "import aiohttp, torchsde, sqlalchemy, safetensors"

Prompt = dict[str, dict[str, Any]]


def find_comfyui() -> tuple[Path, Path] | str:
    """(folder, python) of a ComfyUI, or why there is none."""
    named = os.environ.get("COMFYUI_DIR")
    folder = Path(named) if named else ROOT.parent / "ComfyUI"
    if not (folder / "main.py").is_file():
        return f"no ComfyUI in {folder}; name one in COMFYUI_DIR"
    places = (folder / ".venv", folder / "venv", ROOT.parent / "comfy-venv")
    pythons = [Path(os.environ["COMFYUI_PYTHON"])] if "COMFYUI_PYTHON" in os.environ else []
    pythons += [place / "bin" / "python" for place in places] + [Path(sys.executable)]
    for python in pythons:
        if python.is_file() and not subprocess.run([python, "-c", NEEDS], capture_output=True).returncode:
            return folder.resolve(), python.absolute()
    return f"no Python with ComfyUI's packages; tried {', '.join(map(str, pythons))}; name one in COMFYUI_PYTHON"


def find_gguf_nodes() -> Path | str:
    """The checkout of the node pack ComfyUI-GGUF that tests may load beside ours, or why there is none."""
    found = find_comfyui()
    if isinstance(found, str):
        return found
    named = os.environ.get("COMFYUI_GGUF")
    folder = Path(named) if named else found[0] / "custom_nodes" / "ComfyUI-GGUF"
    if not (folder / "nodes.py").is_file():
        return f"no ComfyUI-GGUF in {folder}; name a checkout in COMFYUI_GGUF"
    if subprocess.run([found[1], "-c", "import gguf"], capture_output=True).returncode:
        return f"{found[1]} has no package gguf, which ComfyUI-GGUF needs"
    return folder.resolve()


@dataclass
class Run:
    """What the server said of one prompt."""

    prompt_id: str
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    history: dict[str, Any] = field(default_factory=dict)

    @property
    def error(self) -> str | None:
        """The message of the node that failed."""
        return next((data["exception_message"] for kind, data in self.messages if kind == "execution_error"), None)

    @property
    def status(self) -> str:
        """success, error or interrupted."""
        return self.messages[-1][0].removeprefix("execution_")

    def progress(self, node: str) -> list[tuple[int, int]]:
        """(value, max) of a node, as they came."""
        seen = []
        for kind, data in self.messages:
            if kind == "progress" and data.get("node") == node:
                seen.append((data["value"], data["max"]))
        return seen

    def files(self, node: str) -> list[dict[str, Any]]:
        """Files that an output node reported."""
        return [file for file in self.history["outputs"][node].get("images", [])]


class Refused(Exception):
    """The server did not take a prompt; holds its answer."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(json.dumps(answer)[:2000])
        self.answer = answer

    @property
    def reasons(self) -> str:
        """All messages and details in one text."""
        errors = [error for node in self.answer.get("node_errors", {}).values() for error in node["errors"]]
        return "\n".join(f"{error['message']} {error['details']}" for error in [self.answer["error"], *errors])


class Server:
    """A running ComfyUI with this pack in its ``custom_nodes``."""

    def __init__(self, base: Path, pack: str = "comfyui-magi", *options: object) -> None:
        found = find_comfyui()
        assert not isinstance(found, str), found
        self.folder, self.python = found
        self.base = base
        (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
        link = base / "custom_nodes" / pack
        if not link.exists():  # else a server that is started once more
            link.symlink_to(ROOT, target_is_directory=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = base / "server.log"
        command = [self.python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--base-directory", base, "--database-url", f"sqlite:///{base}/comfyui.db"]
        command += ["--disable-auto-launch", "--disable-api-nodes", *options]
        if "COMFYUI_FRONTEND" in os.environ:  # the folder static of a wheel comfyui_frontend_package
            command += ["--front-end-root", os.environ["COMFYUI_FRONTEND"]]
        with self.log.open("w") as log:
            offline = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT, env=offline)
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended at its start:\n{self.tail()}")
            try:
                self.get("system_stats")
                return
            except OSError:
                time.sleep(0.5)
        self.stop()
        raise RuntimeError(f"ComfyUI did not start in {BOOT_SECONDS} s:\n{self.tail()}")

    def tail(self, lines: int = 40) -> str:
        """The end of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def kill(self) -> None:
        """End the process at once, as a crash does."""
        self.process.kill()
        self.process.wait()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def read(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url(path), timeout=60) as answer:
            return bytes(answer.read())

    def get(self, path: str) -> Any:
        return json.loads(self.read(path))

    def post(self, path: str, document: object) -> Any:
        data = json.dumps(document).encode()
        request = urllib.request.Request(self.url(path), data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def view(self, file: dict[str, Any]) -> bytes:
        """A result file, as a page fetches it."""
        return self.read("view?" + urllib.parse.urlencode({k: file[k] for k in ("filename", "subfolder", "type")}))

    def run(self, prompt: Prompt, watch: Callable[[Run], None] | None = None, seconds: float = 600) -> Run:
        """Queue a prompt and follow it to its end. ``watch`` is called after every message. Raises Refused."""
        client = uuid.uuid4().hex
        with WebSocket(self.port, client) as stream:
            run = Run(self.queue(prompt, client))
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                message = stream.receive(until - time.monotonic())
                if isinstance(message, bytes):
                    if struct.unpack(">I", message[:4])[0] == 3:  # text for a node
                        (length,) = struct.unpack(">I", message[4:8])
                        run.texts.append(message[8 + length :].decode())
                    continue
                kind, data = message["type"], message["data"]
                if data.get("prompt_id") not in (None, run.prompt_id):
                    continue
                run.messages.append((kind, data))
                if watch:
                    watch(run)
                if kind in ("execution_success", "execution_error", "execution_interrupted"):
                    return self._with_history(run)
        raise TimeoutError(f"the prompt did not end in {seconds} s:\n{self.tail()}")

    def queue(self, prompt: Prompt, client: str = "", **more: Any) -> str:
        """The id of a prompt that is queued and not waited for. Raises Refused."""
        try:
            queued = self.post("prompt", {"prompt": prompt, "client_id": client, **more})
        except urllib.error.HTTPError as error:
            raise Refused(json.loads(error.read())) from None
        if queued.get("node_errors"):
            raise Refused({"error": {"message": "", "details": ""}, **queued})
        return str(queued["prompt_id"])

    def _with_history(self, run: Run) -> Run:
        for _ in range(100):
            history = self.get(f"history/{run.prompt_id}")
            if run.prompt_id in history:
                run.history = history[run.prompt_id]
                break
            time.sleep(0.05)
        return run


class WebSocket:
    """Just enough of a websocket to read ComfyUI's messages: JSON as dict, binary as bytes."""

    def __init__(self, port: int, client: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET /ws?clientId={client} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket"]
        lines += ["Connection: Upgrade", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
        self._socket.sendall("\r\n".join(lines).encode())
        self._stream = self._socket.makefile("rb")
        assert b"101" in self._stream.readline()
        while self._stream.readline().strip():
            pass

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._socket.close()

    def receive(self, seconds: float) -> dict[str, Any] | bytes:
        self._socket.settimeout(max(1.0, seconds))
        body, text = b"", True
        while True:
            first, second = self._stream.read(2)
            length = second & 127
            if length > 125:
                wide = length == 127
                (length,) = struct.unpack(">Q" if wide else ">H", self._stream.read(8 if wide else 2))
            part, kind = self._stream.read(length), first & 15
            if kind == 9:  # a ping wants a pong, masked with zeros
                self._socket.sendall(bytes([0x8A, 0x80 | len(part), 0, 0, 0, 0]) + part)
                continue
            if kind == 8:
                raise ConnectionError("the server closed the websocket")
            text = kind == 1 if kind else text  # 0: goes on with the part before
            body += part
            if first & 128:
                return json.loads(body) if text else body
