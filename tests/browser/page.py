"""ComfyUI's page in Chromium: opens workflows, runs them, tells what the page said.

The page is driven as an artist drives it (Run is pressed, a file is opened) and read through the objects that it gives to extensions.
Requests to any other host are blocked, so that nothing depends on a network.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Route

    from tests.comfy.server import Server

PACK = "comfyui-magi"
"""The pack's folder in the tests' ComfyUI."""
SECONDS = 120
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--mute-audio",
)
QUIET = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Notification.ShowVersionUpdates": False,
    "Comfy.InstalledVersion": "1.0.0",
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.Workflow.Persist": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
}
"""Settings without greetings, news and the workflow of the last visit."""
NODES_2 = "Comfy.VueNodes.Enabled"
RUN = re.compile("^(Run|运行)$")
"""The button, in the languages of the tests."""
ALWAYS_SAID = ("net::ERR_FAILED", "net::ERR_BLOCKED", "Content Security Policy")
ALWAYS_ABSENT = ("/user.css", "/userdata")
"""What a fresh ComfyUI logs as an error by itself: blocked hosts, and files of a user that do not exist yet."""

READY = """() => !!(window.app?.canvas && window.app.extensionManager && window.LiteGraph
    && Object.keys(window.LiteGraph.registered_node_types).some((name) => name.startsWith('Magi')))"""
LISTEN = """() => {
    const said = window.magiTest = { ended: null, outputs: {}, events: [] };
    const listen = (kind, act) => window.app.api.addEventListener(kind, (event) => {
        said.events.push(kind);
        act(event.detail);
    });
    listen('execution_start', () => { said.ended = null; });
    listen('executed', (detail) => { said.outputs[detail.node] = detail.output; });
    for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
        listen(kind, (detail) => { said.ended = [kind.slice(10), detail]; });
}"""
NODES = """() => window.app.graph.nodes.map((node) => ({
    id: Number(node.id), type: node.type, title: node.title, position: [...node.pos], size: [...node.size],
    known: node.type in window.LiteGraph.registered_node_types, red: !!node.has_errors,
    widgets: Object.fromEntries((node.widgets ?? []).filter((w) => w.type !== 'button').map((w) => [w.name, w.value])),
}))"""
FIT = """([ids, readable]) => {
    const { canvas } = window.app, { graph } = canvas, box = canvas.canvas.getBoundingClientRect();
    const nodes = graph.nodes.filter((node) => !ids.length || ids.includes(Number(node.id)));
    const corners = nodes.map((node) => [...node.pos, node.pos[0] + node.size[0], node.pos[1] + node.size[1]]);
    if (!ids.length)
        corners.push(...graph.groups.map((g) => [g.pos[0], g.pos[1], g.pos[0] + g.size[0], g.pos[1] + g.size[1]]));
    const least = (i) => Math.min(...corners.map((c) => c[i])), most = (i) => Math.max(...corners.map((c) => c[i]));
    const [left, top, edge] = [90, 100, 40], [x, y] = [least(0), least(1) - 30];
    const whole = Math.min((box.width - left - edge) / (most(2) - x), (box.height - top - edge) / (most(3) - y));
    canvas.ds.scale = Math.min(1.2, Math.max(readable, whole));
    canvas.ds.offset = [left / canvas.ds.scale - x, top / canvas.ds.scale - y];
    canvas.setDirty(true, true);
}"""


def find_chromium() -> Path | str:
    """The system's Chromium, or why there is none."""
    names = (os.environ.get("CHROMIUM_PATH"), "chromium", "chromium-browser", "google-chrome")
    places = (shutil.which(name) for name in names if name)
    return next((Path(place) for place in places if place), "no chromium on PATH; name one in CHROMIUM_PATH")


class ComfyPage:
    """A tab with ComfyUI's page, and what was logged in it. ``tab`` is Playwright's page, for everything not here."""

    def __init__(self, browser: Browser, server: Server, nodes_2: bool = False, user: str = "") -> None:
        self.server = server
        self.errors: list[str] = []
        server.post("settings", {**QUIET, NODES_2: nodes_2})
        self._context = browser.new_context(viewport={"width": 1600, "height": 1000})
        self._context.route("**/*", self._stay_here)
        if user:  # of a ComfyUI with several
            self._context.add_init_script(f"localStorage['Comfy.userId'] = localStorage['Comfy.userName'] = '{user}'")
        self.tab = self._context.new_page()
        self.tab.set_default_timeout(SECONDS * 1000)
        self.tab.on("console", self._on_console)
        self.tab.on("pageerror", lambda error: self.errors.append(f"exception: {error.stack or error}"))
        self.tab.goto(server.url(""), wait_until="domcontentloaded")
        self._ready()

    def _stay_here(self, route: Route) -> None:
        url = urlsplit(route.request.url)
        here = url.scheme in ("data", "blob") or url.port == self.server.port
        route.continue_() if here else route.abort()

    def _on_console(self, message: ConsoleMessage) -> None:
        place = message.location.get("url", "")
        usual = any(part in message.text for part in ALWAYS_SAID) or any(part in place for part in ALWAYS_ABSENT)
        if message.type == "error" and not usual:
            self.errors.append(f"{message.text} ({place})")

    def _ready(self) -> None:
        self.tab.wait_for_function(READY)
        self.tab.evaluate(LISTEN)
        self.settle()
        self.errors = [error for error in self.errors if PACK in error]  # a page's own start is not always silent

    def close(self) -> None:
        self._context.close()

    def settle(self, seconds: float = 0.5) -> None:
        """Let the page draw."""
        self.tab.wait_for_timeout(seconds * 1000)

    @property
    def is_nodes_2(self) -> bool:
        return bool(self.tab.evaluate("() => !!window.LiteGraph.vueNodesMode"))

    @property
    def frontend(self) -> tuple[int, ...]:
        """The page's version, like (1, 45, 21)."""
        return tuple(int(part) for part in self.tab.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__").split("."))

    @property
    def has_nodes_2(self) -> bool:
        """Nodes 2.0 are fit for use: the first ones drew nodes over each other and left out widgets."""
        return self.frontend >= (1, 45)

    def set_nodes_2(self, on: bool) -> None:
        """Switch Nodes 2.0 on or off in the open page, as its settings do."""
        self.tab.evaluate("([key, on]) => window.app.extensionManager.setting.set(key, on)", [NODES_2, on])
        self.tab.wait_for_function("(on) => !!window.LiteGraph.vueNodesMode === on", arg=on)
        self.settle()

    def load(self, workflow: dict[str, Any] | Path, name: str = "test") -> None:
        """Open a workflow of the page's own form, given as a document or as its file, and show all of it."""
        if isinstance(workflow, Path):
            workflow, name = json.loads(workflow.read_text(encoding="utf-8")), workflow.stem
        self.tab.evaluate("([graph, name]) => window.app.loadGraphData(graph, true, true, name)", [workflow, name])
        self.settle()
        self.fit()

    def fit(self, *ids: int, readable: float = 0) -> None:
        """Move the view to these nodes, or to all; to their upper left corner where that would be smaller than ``readable``."""
        self.tab.evaluate(FIT, [list(ids), readable])
        self.settle()

    def nodes(self) -> dict[int, dict[str, Any]]:
        """The graph's nodes by number: type, title, position, size, known, red, widgets (name to value)."""
        return {node["id"]: node for node in self.tab.evaluate(NODES)}

    def widget(self, node: int, name: str) -> Any:
        """A widget's value."""
        return self.nodes()[node]["widgets"][name]

    def set_widget(self, node: int, name: str, value: Any) -> None:
        """Set a widget's value as a typed one is set."""
        code = """([id, name, value]) => {
            const widget = window.app.graph.getNodeById(id).widgets.find((w) => w.name === name);
            widget.value = value;
            widget.callback?.(value);
        }"""
        self.tab.evaluate(code, [node, name, value])

    def workflow(self) -> dict[str, Any]:
        """The graph as the page saves it."""
        return self._saved("workflow")

    def prompt(self) -> dict[str, dict[str, Any]]:
        """The graph as the page queues it."""
        return self._saved("output")

    def _saved(self, form: str) -> dict[str, Any]:
        """As JSON text, since only that leaves out what is undefined, as a saved file does."""
        text = self.tab.evaluate("async (form) => JSON.stringify((await window.app.graphToPrompt())[form])", form)
        document: dict[str, Any] = json.loads(text)
        return document

    def press_run(self) -> None:
        self.tab.evaluate("() => { window.magiTest.ended = null; window.magiTest.outputs = {}; }")
        self.tab.get_by_role("button", name=RUN).first.click()

    def wait_for_end(self) -> str:
        """Wait until what was queued has ended: success, error or interrupted."""
        self.tab.wait_for_function("() => window.magiTest.ended", timeout=SECONDS * 1000)
        return str(self.tab.evaluate("() => window.magiTest.ended[0]"))

    def run(self) -> str:
        """Press Run and wait for the end."""
        self.press_run()
        return self.wait_for_end()

    @property
    def outputs(self) -> dict[str, dict[str, Any]]:
        """What the nodes of the last run showed, by node number."""
        shown: dict[str, dict[str, Any]] = self.tab.evaluate("() => window.magiTest.outputs")
        return shown

    @property
    def events(self) -> list[str]:
        """The kinds of what the server said since the page was opened."""
        return list(self.tab.evaluate("() => window.magiTest.events"))

    def screenshot(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.tab.screenshot(path=str(path))
        return path
