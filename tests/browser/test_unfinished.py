"""The window of unfinished runs: what was broken off is listed, looked at, opened and finished, after a restart too."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from magi_core.keeping import _hash
from tests.browser.page import QUIET, ComfyPage
from tests.comfy.server import ROOT, Server

STORY = "1s: a red circle moves right\n1s: it turns blue\n1s: it stops"
USER = "painter"


class Window:
    """The window on the page, by what an artist sees of it."""

    def __init__(self, page: ComfyPage) -> None:
        self.page = page
        page.tab.evaluate("() => { app.extensionManager.command.execute('Magi.Runs.Unfinished'); }")
        self.root = page.tab.get_by_role("dialog", name="Unfinished runs")
        self.root.wait_for()

    def row(self, text: str) -> Any:
        return self.root.get_by_role("listitem").filter(has_text=text)

    def press(self, name: str) -> None:
        self.root.get_by_role("button", name=name, exact=True).click()
        self.root.wait_for(state="detached")


@pytest.fixture(scope="module")
def runs(server: Server) -> Iterator[Path]:
    """The folder of runs, with none in it at first."""
    folder, aside = server.base / "output" / "magi", server.base / "aside"
    if folder.exists():
        folder.rename(aside)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
    if aside.exists():
        aside.rename(folder)


@pytest.fixture(scope="module")
def page(browser: Any, server: Server, runs: Path) -> Iterator[ComfyPage]:
    """One page for all tests of this file: it takes long to open."""
    page = ComfyPage(browser, server)
    yield page
    page.close()


def open_workflow(page: ComfyPage) -> int:
    """Open the workflow; the number of the node that makes the video."""
    page.load(ROOT / "workflows" / "storyboard.json")
    named = {node["type"]: number for number, node in page.nodes().items()}
    page.set_widget(named["MagiStoryboard"], "text", STORY)
    page.set_widget(named["MagiChunkDenoise"], "seed", random.randrange(10**9))
    return named["MagiChunkDenoise"]


def broken_off(page: ComfyPage, runs: Path) -> Path:
    """Run the open workflow and cancel it after a chunk; the run's folder."""
    known = set(runs.glob("*"))
    page.press_run()
    until = time.monotonic() + 60
    while not (found := [path for path in runs.glob("*/chunks/*.safetensors") if path.parents[1] not in known]):
        assert time.monotonic() < until, "no chunk was finished"
        time.sleep(0.02)
    page.server.post("interrupt", {})
    assert page.wait_for_end() == "interrupted"
    return found[0].parents[1]


def chunks(folder: Path) -> int:
    return len(list((folder / "chunks").glob("*.safetensors")))


def test_nothing_is_unfinished_and_the_menu_leads_there(page: ComfyPage, runs: Path) -> None:
    assert not list(runs.glob("*"))
    page.tab.locator(".comfy-menu-button-wrapper, .comfyui-logo-wrapper").first.click()
    page.tab.get_by_role("menuitem", name="MAGI", exact=True).hover()
    page.tab.get_by_role("menuitem", name="MAGI: unfinished runs").click()
    window = page.tab.get_by_role("dialog", name="Unfinished runs")
    assert "is listed here and goes on from its last finished chunk" in window.text_content()
    page.tab.keyboard.press("Escape")
    window.wait_for(state="detached")
    assert page.errors == []


def test_an_answer_that_cannot_be_read_is_said(page: ComfyPage) -> None:
    page.errors.clear()
    page.tab.route("**/magi/unfinished", lambda route: route.fulfill(body='{"runs": [NaN]}'))
    page.tab.evaluate("() => { app.extensionManager.command.execute('Magi.Runs.Unfinished'); }")
    page.tab.get_by_text("The server did not answer: ").wait_for()
    page.tab.unroute("**/magi/unfinished")
    assert page.errors == []


@pytest.mark.parametrize("nodes_2", [False, True], ids=["classic", "nodes_2"])
def test_a_run_is_watched_opened_and_finished(page: ComfyPage, runs: Path, pictures: Path, nodes_2: bool) -> None:
    if nodes_2 and not page.has_nodes_2:
        pytest.skip("this page's Nodes 2.0 leave out widgets")
    page.errors.clear()
    page.set_nodes_2(nodes_2)
    node = open_workflow(page)
    page.set_widget(node, "on_repeat", "start over")  # what is gone on with is not started over
    asked = page.prompt()
    folder = broken_off(page, runs)
    page.load({"nodes": [], "links": [], "version": 0.4})

    window = Window(page)
    row = window.row(f"{chunks(folder)} of 3 chunks")
    assert row.get_by_role("progressbar").get_attribute("aria-valuenow") == str(chunks(folder))
    assert "a red circle moves right · it turns blue · it stops" in row.text_content()
    page.screenshot(pictures / f"unfinished_{'vue' if nodes_2 else 'classic'}.png")
    page.tab.evaluate("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
    page.settle(1)
    page.screenshot(pictures / f"unfinished_light_{'vue' if nodes_2 else 'classic'}.png")
    page.tab.evaluate("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
    with page.tab.context.expect_page() as opened:
        row.get_by_role("link", name="Watch").click()
    video = opened.value
    video.wait_for_function("() => document.querySelector('video')?.readyState >= 1")
    assert video.evaluate("() => document.querySelector('video').videoWidth") == 64
    video.close()

    window.press("Open workflow")
    page.tab.wait_for_function("(node) => window.app.graph.getNodeById(node)", arg=node)
    page.settle()
    assert page.prompt() == asked and page.server.get("queue") == {"queue_running": [], "queue_pending": []}

    page.tab.evaluate("() => { window.magiTest.ended = null; }")
    Window(page).press("Go on")
    assert page.wait_for_end() == "success"
    page.tab.locator(".magi-live[data-state='finished']").wait_for()
    assert chunks(folder) == 3 and list(runs.glob("*_2")) == [], "the same run was finished, no other take begun"
    window = Window(page)
    assert window.root.get_by_role("listitem").count() == 0
    window.press("Close")
    assert page.errors == []


def test_damage_is_said_and_a_restart_forgets_nothing(
    page: ComfyPage, browser: Any, runs: Path, pictures: Path, tmp_path: Path
) -> None:
    page.set_nodes_2(False)
    page.errors.clear()
    node = open_workflow(page)
    folder = broken_off(page, runs)
    damaged = runs / "a-damaged-run_0123456789ab"
    shutil.copytree(folder, damaged)
    (damaged / "run.json").write_text("{")
    untold = runs / "told-nothing_0123456789ab"
    shutil.copytree(folder, untold)
    strip_metadata(untold)
    window = Window(page)
    row = window.row(damaged.name)
    assert "Cannot go on: " in row.text_content() and "run.json" in row.text_content()
    assert row.get_by_role("button").count() == 0 and row.get_by_role("link", name="Watch").count() == 1
    page.screenshot(pictures / "unfinished_damaged.png")
    assert [button.is_disabled() for button in window.root.get_by_role("button").all()].count(True) == 2, (
        "of the untold"
    )
    window.press("Close")
    assert page.errors == []

    # A server that has never heard of the run, with several users; the newest checkpoint is damaged, so the one before it is used.
    base = tmp_path / "restarted"
    shutil.copytree(folder, base / "output" / "magi" / folder.name)
    newest = max((base / "output" / "magi" / folder.name / "checkpoints").glob("*.session"))
    newest.write_bytes(newest.read_bytes()[:-100])
    (base / "user" / USER).mkdir(parents=True)
    (base / "user" / "users.json").write_text(json.dumps({"default": "default", USER: USER}))
    own = {**QUIET, "MAGI.Preview": False}
    (base / "user" / USER / "comfy.settings.json").write_text(json.dumps(own))
    restarted = Server(base, "comfyui-magi", "--multi-user")
    try:
        other = ComfyPage(browser, restarted, user=USER)
        Window(other).press("Go on")
        assert other.wait_for_end() == "success"
        live = other.tab.locator(".magi-live[data-state='finished']")
        live.wait_for()
        assert "is damaged" in live.get_by_role("alert").text_content()
        assert chunks(base / "output" / "magi" / folder.name) == 3
        (run,) = restarted.get("magi/runs")["runs"]
        assert (run["node"], run["previews"]) == (str(node), False), "a user's own settings hold for what he queues"
        other.screenshot(pictures / "unfinished_restarted.png")
        other.close()
    finally:
        restarted.stop()


def strip_metadata(folder: Path) -> None:
    """Make the run one that was made with --disable-metadata."""
    document = json.loads((folder / "run.json").read_text())
    document.pop("sha256")
    document["asked"]["metadata"] = {}
    (folder / "run.json").write_text(json.dumps({"sha256": _hash(document), **document}))
