"""The storyboard's timeline in ComfyUI's page, used as an artist uses it; every edit must arrive in the text, the prompt and undo."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.page import ComfyPage
from tests.comfy.server import ROOT, Server

STORY = "prefix: on black,\n# opening\n2s: a red circle   [Image: first.png]\n1.5s: it turns blue\nit stops\n"
EDITS = 7
DROP = """([shot, name, data, type]) => {
    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0)), carried = new DataTransfer();
    carried.items.add(new File([bytes], name, { type }));
    for (const kind of ['dragover', 'drop'])
        shot.dispatchEvent(new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true }));
}"""
WATCH = """() => {
    const open = window.magiListeners = [];
    for (const target of [window, document, document.body]) {
        const { addEventListener, removeEventListener } = target;
        target.addEventListener = function (kind, listener, options) {
            const place = new Error().stack.includes('comfyui-magi') && { kind, listener };
            if (place) { open.push(place); options?.signal?.addEventListener('abort', () => open.splice(open.indexOf(place), 1)); }
            return addEventListener.call(this, kind, listener, options);
        };
    }
    const { observe, disconnect } = ResizeObserver.prototype;
    ResizeObserver.prototype.observe = function (element) {
        if (element.className === 'magi-scroller') open.push(this);
        return observe.call(this, element);
    };
    ResizeObserver.prototype.disconnect = function () {
        if (open.includes(this)) open.splice(open.indexOf(this), 1);
        return disconnect.call(this);
    };
}"""

FOCUSED = """() => {
    const one = document.activeElement, { outlineStyle, outlineWidth } = getComputedStyle(one);
    const name = one.ariaLabel || one.textContent.trim() || one.labels?.[0]?.textContent || one.placeholder;
    return one.closest('.magi-timeline') && [name, `${outlineStyle} ${outlineWidth}`];
}"""


def workflow(text: str = STORY, size: tuple[int, int] = (860, 360)) -> dict[str, Any]:
    """The shipped storyboard workflow with this text, its storyboard apart from the other nodes."""
    document: dict[str, Any] = json.loads((ROOT / "workflows" / "storyboard.json").read_text("utf-8"))
    document.pop("groups", None)
    for node in document["nodes"]:
        if node["type"] == "MagiStoryboard":
            node |= {"id": node["id"], "pos": [0, 3000], "size": list(size), "widgets_values": [text]}
    return document


class Timeline:
    """The timeline on the page, by what an artist sees of it."""

    def __init__(self, page: ComfyPage, text: str = STORY, **options: Any) -> None:
        self.page, self.tab = page, page.tab
        document = workflow(text, **options)
        self.node = next(node["id"] for node in document["nodes"] if node["type"] == "MagiStoryboard")
        page.load(document)
        page.fit(self.node)
        self.root = self.tab.locator(".magi-timeline")

    @property
    def text(self) -> str:
        return str(self.page.widget(self.node, "text"))

    @property
    def lines(self) -> list[str]:
        return self.text.rstrip("\n").split("\n")

    def shot(self, number: int) -> Any:
        return self.root.get_by_role("option").nth(number - 1)

    def button(self, name: str) -> Any:
        return self.root.get_by_role("button", name=name, exact=True)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        mouse = self.tab.mouse
        mouse.move(*start)
        mouse.down()
        mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        mouse.move(*end)
        mouse.up()

    def at(self, number: int, across: float, down: float) -> tuple[float, float]:
        """A point of a shot, both ways from 0 to 1."""
        box = self.shot(number).bounding_box()
        return box["x"] + across * box["width"], box["y"] + down * box["height"]

    def drag_edge(self, number: int, seconds: float) -> None:
        """Drag a shot's right edge by so many seconds."""
        right, middle = self.at(number, 1, 0.5)
        one = self.shot(1).bounding_box()["width"] / float(self.lines[2].split("s")[0])
        self.drag((right - 4, middle), (right - 4 + seconds * one, middle))

    def undo(self, key: str = "Control+z") -> None:
        code = "([id, text]) => app.graph.getNodeById(id)?.widgets[0].value !== text"
        before = self.text
        self.tab.keyboard.press(key)
        self.tab.wait_for_function(code, arg=[self.node, before])
        self.page.settle()  # the page may still be at it


@pytest.fixture(scope="module")
def only_page(browser: Any, server: Server) -> Iterator[ComfyPage]:
    """One page for all tests of this file: it takes long to open."""
    (server.base / "input").mkdir(exist_ok=True)
    shutil.copy(ROOT / "storyboards" / "circle.png", server.base / "input" / "first.png")
    page = ComfyPage(browser, server)
    yield page
    page.close()


@pytest.fixture(params=[False, True], ids=["classic", "nodes_2"])
def timeline(request: pytest.FixtureRequest, only_page: ComfyPage) -> Timeline:
    if request.param and not only_page.has_nodes_2:
        pytest.skip("this page's Nodes 2.0 leave out widgets")
    only_page.errors.clear()
    only_page.set_nodes_2(request.param)
    return Timeline(only_page)


def test_edits_by_pointer(timeline: Timeline, pictures: Path) -> None:
    page, tab = timeline.page, timeline.tab
    assert timeline.text == STORY, "opening changes nothing"
    assert page.workflow()["nodes"] and timeline.root.get_by_role("option").count() == 3
    assert timeline.root.locator(".magi-total").text_content() == "4.5 s · 108 frames · 5 chunks · 3 shots"

    timeline.drag_edge(2, 1.3)  # from 3.5 s to 4.8 s: snaps to 5 s on the axis
    assert timeline.lines[3] == "3s: it turns blue"
    assert timeline.lines[:3] == STORY.split("\n")[:3], "what was not edited stands as it was written"
    assert page.prompt()[str(timeline.node)]["inputs"]["text"] == timeline.text
    tab.keyboard.down("Shift")
    timeline.drag_edge(2, -0.2)
    tab.keyboard.up("Shift")
    assert timeline.lines[3] == "2.75s: it turns blue"

    timeline.drag(timeline.at(3, 0.5, 0.08), timeline.at(1, 0.1, 0.5))
    assert timeline.lines[1:] == [
        "it stops",
        "# opening",
        "2s: a red circle   [Image: first.png]",
        "2.75s: it turns blue",
    ]

    tab.mouse.click(*timeline.at(3, 0.5, 0.6))
    editor = timeline.root.get_by_role("textbox", name="Prompt of shot 3")
    editor.fill("it turns [green]\nand glows")
    editor.press("Enter")
    assert timeline.lines[-1] == '2.75s: "it turns \\u005bgreen]\\nand glows"'

    timeline.button("Duplicate").click()
    timeline.button("Split").click()
    assert timeline.lines[-3:] == [
        '2.75s: "it turns \\u005bgreen]\\nand glows"',
        '1s: "it turns \\u005bgreen]\\nand glows"',
        '1.75s: "it turns \\u005bgreen]\\nand glows"',
    ]
    timeline.button("Delete").click()
    assert len(timeline.lines) == 6
    timeline.button("Add").click()
    tab.keyboard.type("a star falls")
    prefix = timeline.root.get_by_placeholder("words that every shot shares")
    prefix.click()  # clicking elsewhere keeps what was typed
    assert "1s: a star falls" in timeline.lines
    page.screenshot(pictures / f"timeline_{'vue' if page.is_nodes_2 else 'classic'}.png")
    prefix.fill("in oil,")
    tab.keyboard.press("Enter")
    assert timeline.lines[0] == "prefix: in oil,"
    assert page.errors == []


def test_seconds_belong_to_the_shot_they_were_typed_for(timeline: Timeline) -> None:
    page, tab = timeline.page, timeline.tab
    timeline.shot(1).focus()
    timeline.root.get_by_role("spinbutton", name="Seconds").click(click_count=3)
    tab.keyboard.type("5")
    tab.mouse.click(*timeline.at(2, 0.5, 0.08))
    assert timeline.lines[2:4] == ["5s: a red circle [image: first.png]", "1.5s: it turns blue"]
    assert timeline.shot(2).get_attribute("aria-selected") == "true"
    assert page.errors == []


def test_keyboard_undo_and_saving(timeline: Timeline) -> None:
    page, tab = timeline.page, timeline.tab
    timeline.shot(1).focus()
    tab.keyboard.press("ArrowRight")
    assert "Shot 2 of 3: it turns blue. 1.5 s, from second 2." in tab.evaluate("document.activeElement.ariaLabel")
    tab.keyboard.press("Control+ArrowRight")
    assert timeline.lines[3] == "2s: it turns blue"
    tab.keyboard.press("Control+Shift+ArrowLeft")
    assert timeline.lines[3] == "1.75s: it turns blue"
    assert timeline.root.get_by_role("status").text_content() == "Shot 2 lasts 1.75 s"
    tab.keyboard.press("Alt+ArrowRight")
    assert timeline.lines[-1] == "1.75s: it turns blue"
    tab.keyboard.press("Enter")
    tab.keyboard.type("it fades")
    tab.keyboard.press("Enter")
    assert timeline.lines[-1] == "1.75s: it fades"
    tab.keyboard.press("d")
    tab.keyboard.press("s")
    assert timeline.lines[-3:] == ["1.75s: it fades", "1s: it fades", "0.75s: it fades"]
    tab.keyboard.press("Delete")
    assert timeline.lines[-2:] == ["1.75s: it fades", "0.75s: it fades"] and len(page.nodes()) == len(
        workflow()["nodes"]
    )
    ended = timeline.text
    for _ in range(EDITS):
        assert timeline.text != STORY, "an edit is one step"
        timeline.undo()
        tab.wait_for_function("() => document.activeElement.classList.contains('magi-shot')")  # undo keeps the focus
    assert timeline.text == STORY
    for _ in range(EDITS):
        timeline.undo("Control+y")
    assert timeline.text == ended

    saved = page.workflow()
    stored = next(node for node in saved["nodes"] if node["id"] == timeline.node)
    assert stored["widgets_values"] == [ended], "the text is all that is saved"
    page.load(saved)
    assert timeline.text == ended
    assert page.errors == []


def test_text_view_and_mistakes(timeline: Timeline) -> None:
    page, tab = timeline.page, timeline.tab
    timeline.root.get_by_role("radio", name="Text").click()
    box = tab.locator("textarea:visible").first
    box.wait_for(state="visible")
    assert box.input_value() == STORY
    broken = "1s: a\n\n2x: b\n0:03: c"
    box.fill(broken)
    problem = timeline.root.get_by_role("alert")
    assert "line 4 (shot 3): cannot read the time '0:03:'" in problem.text_content()
    timeline.root.get_by_role("radio", name="Timeline").click()
    assert "0:03: c" in problem.locator("pre").text_content()
    assert timeline.text == broken, "what cannot be read is kept"
    timeline.button("Edit the text").click()
    box.fill('{"version": 1, "shots": [{"prompt": "a"}]}')
    timeline.root.get_by_role("radio", name="Timeline").click()
    timeline.shot(1).focus()
    tab.keyboard.press("Delete")
    assert "the storyboard has no shots" in timeline.root.locator(".magi-note").text_content()
    tab.keyboard.press("Control+ArrowRight")
    assert timeline.text == '{"version": 1, "shots": [{"prompt": "a", "seconds": 2}]}'
    assert page.errors == []


def test_keyframes(timeline: Timeline) -> None:
    page, tab = timeline.page, timeline.tab
    picture = base64.b64encode((ROOT / "storyboards" / "circle.png").read_bytes()).decode()
    timeline.shot(2).evaluate(f"(shot, given) => ({DROP})([shot, ...given])", ["my circle.png", picture, "image/png"])
    tab.wait_for_function("(id) => app.graph.getNodeById(id).widgets[0].value.includes('my circle')", arg=timeline.node)
    assert timeline.lines[3] == "1.5s: it turns blue [image: my circle.png]"
    assert (page.server.base / "input" / "my circle.png").is_file()
    assert page.nodes().keys() == {node["id"] for node in workflow()["nodes"]}, "the page did not open the file"
    timeline.shot(2).evaluate(f"(shot, given) => ({DROP})([shot, ...given])", ["notes.txt", "", "text/plain"])
    assert timeline.root.locator(".magi-note").text_content() == "notes.txt is not a picture"

    timeline.shot(3).focus()
    tab.keyboard.press("k")
    window = timeline.root.get_by_role("dialog", name="Keyframe for shot 3")
    window.get_by_role("button", name="my circle.png").click()
    assert timeline.lines[4] == "1s: it stops [image: my circle.png]"
    timeline.button("Remove the keyframe").click()
    assert timeline.lines[4] == "1s: it stops"
    assert page.errors == []


def test_a_dropped_picture_finds_its_shot_though_that_was_moved_or_is_gone(timeline: Timeline) -> None:
    page, tab = timeline.page, timeline.tab
    picture = base64.b64encode((ROOT / "storyboards" / "circle.png").read_bytes()).decode()
    waiting: list[Any] = []
    tab.route("**/upload/image", lambda route: waiting.append(route))  # Playwright marks its handlers

    def drop(shot: int, name: str) -> Any:
        timeline.shot(shot).evaluate(f"(shot, given) => ({DROP})([shot, ...given])", [name, picture, "image/png"])
        while not waiting:
            page.settle(0.1)
        return waiting.pop()

    upload = drop(2, "moved.png")
    timeline.shot(2).focus()
    tab.keyboard.press("Alt+ArrowRight")
    upload.continue_()
    tab.wait_for_function("(id) => app.graph.getNodeById(id).widgets[0].value.includes('moved')", arg=timeline.node)
    assert timeline.lines[3:] == ["it stops", "1.5s: it turns blue [image: moved.png]"]

    upload = drop(3, "lost.png")
    tab.keyboard.press("Delete")
    left = timeline.text
    upload.continue_()
    tab.get_by_text("lost.png is in the input folder, but its shot was changed meanwhile").wait_for()
    assert timeline.text == left
    tab.unroute("**/upload/image")
    assert page.errors == []


def test_text_goes_in_and_out_by_the_clipboard(timeline: Timeline) -> None:
    page, tab = timeline.page, timeline.tab
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    pasted = '{"version": 1, "shots": [{"prompt": "a red circle"}, {"prompt": "it stops", "seconds": 2.5}]}'
    tab.evaluate("(text) => navigator.clipboard.writeText(text)", pasted)
    timeline.root.get_by_role("radio", name="Text").click()
    box = tab.locator("textarea:visible").first
    box.click()
    tab.keyboard.press("Control+a")
    tab.keyboard.press("Control+v")
    assert box.input_value() == pasted
    timeline.root.get_by_role("radio", name="Timeline").click()
    assert timeline.root.locator(".magi-total").text_content() == "3.5 s · 84 frames · 4 chunks · 2 shots"
    assert timeline.text == pasted and page.nodes().keys() == {node["id"] for node in workflow()["nodes"]}
    timeline.root.get_by_role("radio", name="Text").click()
    box.click()
    tab.keyboard.press("Control+a")
    tab.keyboard.press("Control+c")
    assert tab.evaluate("() => navigator.clipboard.readText()") == pasted
    timeline.root.get_by_role("radio", name="Timeline").click()
    assert page.errors == []


def test_a_narrow_node_the_text_view_and_focus(only_page: ComfyPage, pictures: Path) -> None:
    page, tab = only_page, only_page.tab
    page.errors.clear()
    for nodes_2 in (False, True)[: 1 + page.has_nodes_2]:
        page.set_nodes_2(nodes_2)
        timeline = Timeline(page, size=(320, 300))
        root, (tools, status) = timeline.root, (timeline.root.locator(part) for part in (".magi-tools", ".magi-status"))
        page.screenshot(pictures / f"timeline_narrow_{'vue' if nodes_2 else 'classic'}.png")
        whole, low, last = (place.bounding_box() for place in (root, tools, status))
        assert low["y"] + low["height"] <= last["y"], "the tools leave the summary free"
        assert last["y"] + last["height"] <= whole["y"] + whole["height"]
        assert root.evaluate("(root) => root.scrollWidth <= root.clientWidth")
        for button in root.locator("button:visible").all():
            box = button.bounding_box()
            assert whole["x"] <= box["x"] and box["x"] + box["width"] <= whole["x"] + whole["width"]

        timeline = Timeline(page)
        shown = timeline.root.bounding_box()["height"]
        root.get_by_role("radio", name="Text").click()
        page.settle()
        bar, box = root.bounding_box(), tab.locator("textarea:visible").first.bounding_box()
        assert bar["height"] < 90 and box["height"] > shown / 2 and box["y"] + box["height"] <= bar["y"] + 1
        page.screenshot(pictures / f"timeline_text_{'vue' if nodes_2 else 'classic'}.png")
        root.get_by_role("radio", name="Timeline").click()

        root.get_by_role("radio", name="Timeline").focus()
        reached = []
        for _ in range(30):
            tab.keyboard.press("Tab")
            if not (focused := tab.evaluate(FOCUSED)):
                break
            reached.append(focused)
        assert len(reached) >= 13 and all(name and outline == "solid 2px" for name, outline in reached), reached
        wide = timeline.shot(1).bounding_box()["width"]
        timeline.button("Zoom in (+)").click()
        assert timeline.shot(1).bounding_box()["width"] > wide
        timeline.shot(1).focus()
        tab.mouse.move(*timeline.at(1, 0.3, 0.5))
        tab.keyboard.down("Control")
        tab.mouse.wheel(0, 300)
        tab.mouse.wheel(0, 300)
        tab.keyboard.up("Control")
        page.settle(0.2)
        assert timeline.shot(1).bounding_box()["width"] < wide * 1.4
        start, before = timeline.at(1, 0.5, 0.08), timeline.text
        tab.mouse.move(*start)
        tab.mouse.down()
        tab.mouse.move(start[0] + 300, start[1])
        tab.keyboard.press("Escape")
        tab.mouse.up()
        assert timeline.text == before, "Escape gives up what is dragged"
    assert page.errors == []


def test_many_shots_themes_and_a_removed_node(only_page: ComfyPage, pictures: Path) -> None:
    page = only_page
    page.errors.clear()
    page.set_nodes_2(False)
    page.tab.evaluate(WATCH)
    text = "\n".join(f"{1 + number % 3}s: shot {number} of a long story about circles" for number in range(64))
    timeline = Timeline(page, text, size=(1100, 380))
    scroller = timeline.root.locator(".magi-scroller")
    assert timeline.root.get_by_role("option").count() == 64
    assert all(box["width"] > 40 for box in (timeline.shot(1).bounding_box(), timeline.shot(64).bounding_box()))
    page.screenshot(pictures / "timeline_64.png")
    timeline.shot(1).focus()
    page.tab.keyboard.press("End")
    assert scroller.evaluate("(box) => box.scrollLeft > 500")
    page.tab.keyboard.press("0")
    page.settle()
    assert scroller.evaluate("(box) => box.scrollWidth <= box.clientWidth + 50"), "all shots are seen at once"
    page.screenshot(pictures / "timeline_64_fit.png")
    assert timeline.root.evaluate("(root) => root.scrollWidth <= root.clientWidth"), "nothing sticks out"

    dark = timeline.root.evaluate("(root) => getComputedStyle(root).backgroundColor")
    page.tab.evaluate("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
    page.settle(1)
    page.screenshot(pictures / "timeline_light.png")
    assert timeline.root.evaluate("(root) => getComputedStyle(root).backgroundColor") != dark
    page.tab.evaluate("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")

    assert page.tab.evaluate("() => magiListeners.length") > 0
    page.tab.evaluate("(id) => app.graph.remove(app.graph.getNodeById(id))", timeline.node)
    page.settle()
    assert page.tab.evaluate("() => [magiListeners.length, document.querySelectorAll('.magi-timeline').length]") == [
        0,
        0,
    ]
    assert page.errors == []


def test_a_timeline_in_a_subgraph_ends_with_its_workflow(only_page: ComfyPage) -> None:
    page = only_page
    page.errors.clear()
    page.set_nodes_2(False)
    page.tab.evaluate(WATCH)
    wrap = "(id) => { const { graph } = window.app; graph.convertToSubgraph(new Set([graph.getNodeById(id)])); }"
    page.tab.evaluate(wrap, Timeline(page).node)
    page.settle()
    assert page.tab.evaluate("() => magiListeners.length") > 0
    page.load({"nodes": [], "links": [], "version": 0.4})
    assert page.tab.evaluate("() => magiListeners.length") == 0
    assert page.errors == []
