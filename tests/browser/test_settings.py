"""MAGI in ComfyUI's settings panel: a change is clicked there, and the next run is made with it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.page import ComfyPage
from tests.comfy.server import ROOT, Server

SIDE = 96
DEFAULTS = {"MAGI.Preview": True, "MAGI.PreviewHeight": 256, "MAGI.RunFolderLimit": 20}
PLENTY = 2 * 10**9


@pytest.fixture(scope="module")
def page(browser: Any, server: Server) -> Iterator[ComfyPage]:
    page = ComfyPage(browser, server)
    yield page
    page.close()
    server.post("settings", DEFAULTS)


class Panel:
    """The settings panel, opened at MAGI."""

    def __init__(self, page: ComfyPage) -> None:
        self.page, self.tab = page, page.tab
        page.tab.keyboard.press("Control+,")
        self.root = page.tab.get_by_role("dialog").filter(has=page.tab.get_by_placeholder("Search Settings"))
        self.root.get_by_text("MAGI", exact=True).first.click()
        self.root.get_by_text("Room for runs on disk (GB)").wait_for()

    def at(self, name: str) -> Any:
        return self.root.locator(f"[id='MAGI.{name}']")

    def enter(self, field: Any, number: int) -> None:
        field.click()
        self.tab.keyboard.press("Control+a")
        self.tab.keyboard.type(str(number))
        self.tab.keyboard.press("Enter")

    def close(self) -> None:
        self.page.settle()
        self.tab.keyboard.press("Escape")
        self.root.wait_for(state="detached")


def run(page: ComfyPage) -> dict[str, Any]:
    """Make a short video of 96 pixels; what clients are told of the run."""
    page.load(ROOT / "workflows" / "text_to_video.json")
    named = {node["type"]: number for number, node in page.nodes().items()}
    node, board = named["MagiChunkDenoise"], named["MagiStoryboard"]
    page.set_widget(board, "text", "1s: a red circle moves right")
    for name, value in (("seed", random.randrange(10**9)), ("width", SIDE), ("height", SIDE), ("steps", 4)):
        page.set_widget(node, name, value)
    assert page.run() == "success"
    told: dict[str, Any] = page.server.get("magi/runs")["runs"][-1]
    return told


def test_what_is_set_holds_for_the_next_run(page: ComfyPage, server: Server, pictures: Path) -> None:
    panel = Panel(page)
    named = panel.root.locator(".setting-item").all_inner_texts()
    assert [name.strip() for name in named][:3] == [
        "Show chunks as soon as they are finished",
        "Height of the preview (pixels)",
        "Room for runs on disk (GB)",
    ]
    panel.at("Preview").click()
    page.screenshot(pictures / "settings.png")
    panel.close()
    told = run(page)
    assert (told["previews"], told["video"], told["chunks"][0]["strip"]) == (False, None, None)

    panel = Panel(page)
    panel.at("Preview").click()
    panel.enter(panel.root.locator(".input-slider input"), 64)
    panel.close()
    told = run(page)
    assert told["previews"] and told["video"]
    assert told["chunks"][0]["strip"]["height"] == 64

    # A finished run that takes more room than there is gives it back; its video stays.
    old = server.base / "output" / told["folder"]
    with (old / "large").open("wb") as large:
        os.truncate(large.fileno(), PLENTY)
    run(page)
    assert old.is_dir(), "20 GB are not used up"
    panel = Panel(page)
    panel.enter(panel.at("RunFolderLimit").locator("input"), 1)
    panel.close()
    run(page)
    assert not old.exists() and old.with_name(f"{old.name}.mp4").read_bytes()[4:8] == b"ftyp"
    kept = json.loads((server.base / "user" / "default" / "comfy.settings.json").read_text())
    assert {name: kept[name] for name in DEFAULTS} == {
        "MAGI.Preview": True,
        "MAGI.PreviewHeight": 64,
        "MAGI.RunFolderLimit": 1,
    }
    assert page.errors == []
