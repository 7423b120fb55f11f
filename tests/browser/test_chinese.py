"""The page in Chinese: whatever is ours, and can be seen, read out or hovered over, is Chinese."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.page import ComfyPage
from tests.comfy.server import ROOT, Server

STORY = "1s: 一个红色的圆\n1s: 向右移动 [image: first.png]"
NAMES = {"magi", "nano", "json", "clip", "vae", "sigmas", "lora", "kv", "seconds", "shift", "alt", "ctrl", "delete", "enter", "mp", "gb", "mb", "video", "comfyui", "view"}  # fmt: skip
"""Words that stand in Chinese, too: names and keys."""
SEEN = """(element) => {
    const found = [];
    for (const one of [element, ...element.querySelectorAll('*')].filter((one) => one.checkVisibility())) {
        for (const name of ['title', 'aria-label', 'placeholder', 'aria-valuetext']) found.push(one.getAttribute(name) ?? '');
        if (!one.children.length) found.push(one.textContent);
        for (const part of one.childNodes) if (part.nodeType === 3) found.push(part.data);
    }
    return [...new Set(found.map((words) => words.trim()).filter(Boolean))];
}"""
LABELS = """() => Object.entries(LiteGraph.registered_node_types).filter(([name]) => name.startsWith('Magi')).flatMap(([name, kind]) => {
    const node = LiteGraph.createNode(name);
    app.graph.add(node);
    const slots = [...node.inputs ?? [], ...node.outputs ?? []].map((slot) => slot.label ?? slot.localized_name);
    const widgets = node.widgets.filter((w) => w.name !== 'timeline').map((w) => w.label);
    app.graph.remove(node);
    return [node.title, ...slots, ...widgets];
})"""


def english(words: list[str]) -> list[str]:
    """What has an English word in it that is no name."""
    plain = [re.sub(r"[\w ]+\.png", "", said) for said in words]
    return [said for said in plain if {word.lower() for word in re.findall("[A-Za-z]{2,}", said)} - NAMES]


@pytest.fixture(scope="module")
def page(browser: Any, server: Server) -> Iterator[ComfyPage]:
    server.post("settings", {"Comfy.Locale": "zh"})
    page = ComfyPage(browser, server)
    yield page
    page.close()
    server.post("settings", {"Comfy.Locale": "en"})


def seen(place: Any) -> list[str]:
    place.wait_for()
    words: list[str] = place.evaluate(SEEN)
    assert len(words) > 1
    return words


def test_no_english_is_left(page: ComfyPage, pictures: Path) -> None:
    tab = page.tab
    labels = tab.evaluate(LABELS)
    assert None not in labels and english(labels) == []

    page.load(ROOT / "workflows" / "storyboard.json")
    named = {node["type"]: number for number, node in page.nodes().items()}
    node, board = named["MagiChunkDenoise"], named["MagiStoryboard"]
    page.set_widget(board, "text", "2x: 圆\n0:03: 圆")
    timeline = tab.locator(".magi-timeline")
    assert any("无法读取时间" in words for words in seen(timeline.get_by_role("alert")))
    page.set_widget(board, "text", STORY)
    assert english(seen(timeline)) == []
    timeline.get_by_role("option").first.focus()
    tab.keyboard.press("k")
    assert english(seen(timeline.get_by_role("dialog"))) == []
    tab.keyboard.press("Escape")
    page.screenshot(pictures / "chinese.png")

    page.set_widget(board, "text", STORY.replace(" [image: first.png]", ""))
    page.set_widget(node, "seed", random.randrange(10**9))
    page.set_widget(node, "review_every", 1)
    page.press_run()
    live = tab.locator(".magi-live[data-state='paused']")
    live.get_by_role("button", name="重做…").click()
    page.fit(node)
    page.screenshot(pictures / "chinese_live.png")
    assert english(seen(live)) == []
    page.server.post("interrupt", {})
    assert page.wait_for_end() == "interrupted"

    tab.locator(".comfy-menu-button-wrapper, .comfyui-logo-wrapper").first.click()
    tab.get_by_role("menuitem", name="MAGI", exact=True).hover()
    entries = tab.get_by_role("menuitem", name=re.compile("^MAGI.+"))
    entries.first.wait_for()
    assert entries.count() == 3
    page.screenshot(pictures / "chinese_menu.png")
    entries.filter(has_text="未完成").click()
    window = tab.get_by_role("dialog", name="未完成的运行")
    assert (
        english(seen(window.get_by_role("listitem").filter(has_text="向右移动").first)) == []
    )  # others have English prompts
    assert window.get_by_role("button", name="关闭").count() == 1
    page.screenshot(pictures / "chinese_unfinished.png")
    tab.keyboard.press("Escape")
    window.wait_for(state="detached")

    tab.keyboard.press("Control+,")
    panel = tab.get_by_role("dialog").last
    panel.get_by_text("MAGI", exact=True).first.click()
    own = panel.locator(".setting-group").filter(has=tab.locator("[id^='MAGI.'], [id^='Magi.']"))
    assert [english(seen(group)) for group in own.all()] == [[], []]
    page.screenshot(pictures / "chinese_settings.png")
    assert [error for error in page.errors if "first.png" not in error] == []
