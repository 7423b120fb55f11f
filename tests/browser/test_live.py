"""The live view in ComfyUI's page: chunks appear while they are made, survive a refresh, and are sought, reviewed and put away."""

from __future__ import annotations

import io
import json
import random
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from tests.browser.page import PACK, ComfyPage
from tests.comfy.server import ROOT, Server

PROMPTS = ("a red circle moves right", "a green square moves up", "a blue circle moves left", "it stops")
WATCH = """() => {
    const open = window.magiListeners = [];
    for (const target of [window, document, document.body, window.app.api]) {
        const { addEventListener } = target;
        target.addEventListener = function (kind, listener, options) {
            if (new Error().stack.includes('comfyui-magi')) {
                const place = { kind };
                open.push(place);
                options?.signal?.addEventListener('abort', () => open.splice(open.indexOf(place), 1));
            }
            return addEventListener.call(this, kind, listener, options);
        };
    }
    const { requestAnimationFrame } = window;
    window.magiFrames = 0;
    window.requestAnimationFrame = function (act) {
        if (new Error().stack.includes('/live.js')) window.magiFrames += 1;
        return requestAnimationFrame.call(this, act);
    };
    const { observe, disconnect } = ResizeObserver.prototype;
    ResizeObserver.prototype.observe = function (element) {
        if (element.className === 'magi-below') open.push(this);
        return observe.call(this, element);
    };
    ResizeObserver.prototype.disconnect = function () {
        if (open.includes(this)) open.splice(open.indexOf(this), 1);
        return disconnect.call(this);
    };
}"""
PIXEL = """(canvas, [x, y]) => {
    const { width, height } = canvas, shown = canvas.getContext('2d');
    return [...shown.getImageData(Math.floor(x * width), Math.floor(y * height), 1, 1).data].slice(0, 3);
}"""


LOOK = """() => {
    const filming = (view, seen) => {
        const text = (name) => view.querySelector(name).textContent, second = view.querySelector('.magi-slider').ariaValueNow;
        const plays = seen.second !== undefined && seen.second !== second;
        seen.second = second;
        return plays && /frames\\/s · \\d+:\\d\\d left/.test(text('.magi-pace')) && parseInt(text('.magi-count')) >= 1
            && text('.magi-caption') && /chunk \\d+ · \\d+\\/\\d+/.test(text('.magi-flights')) && view.querySelector('.magi-noisy')
            && view.querySelector('canvas').width === 64;
    };
    const seen = window.magiSeen = {};
    clearInterval(window.magiLooks);
    window.magiLooks = setInterval(() => {
        for (const { id, widgets } of window.app.canvas.graph.nodes) {
            const live = widgets?.find((widget) => widget.name === 'live');
            if (!live) continue;
            live.element.dataset.test = id;
            seen[id] ??= {};
            seen[id].films ||= filming(live.element, seen[id]);
        }
    }, 40);
}"""
"""Notes which nodes were seen to film: the picture plays, and chunks, shot, pace, time left and steps are told."""
WEIGHT = """() => ({
    nodes: document.querySelectorAll('*').length,
    strip: document.querySelectorAll('.magi-strip i').length,
})"""


class LiveView:
    """The view on the page, or that of one node, by what an artist sees of it."""

    def __init__(self, page: ComfyPage, node: int | None = None) -> None:
        self.page, self.tab, self.node = page, page.tab, node
        mine = "" if node is None else f"[data-test='{node}']"
        self.root = page.tab.locator(f".magi-live{mine}:visible")
        self.slider = self.root.get_by_role("slider")

    def wait(self, state: str) -> None:
        self.root.and_(self.tab.locator(f"[data-state='{state}']")).wait_for()

    def wait_for_chunks(self, count: int) -> None:
        self.tab.wait_for_function(
            "([count, n]) => parseInt(count?.textContent) >= n", arg=[self.count.element_handle(), count]
        )

    def films(self) -> None:
        """Wait until all was seen that is to be seen of a run in its middle, since ``LOOK`` began to look."""
        self.tab.wait_for_function("(id) => window.magiSeen[id]?.films", arg=str(self.node))

    @property
    def count(self) -> Any:
        return self.root.locator(".magi-count")

    def button(self, name: str) -> Any:
        return self.root.get_by_role("button", name=name, exact=True)

    def pause(self) -> None:
        if self.button("Pause").count():
            self.button("Pause").click()

    def seek(self, second: float, total: float) -> None:
        box = self.slider.bounding_box()
        self.tab.mouse.click(box["x"] + box["width"] * second / total, box["y"] + box["height"] / 2)

    def shows(self, strip: Image.Image, place: dict[str, Any], frame: int) -> None:
        """Wait until the canvas shows this frame of a strip, wherever one looks."""
        left, top = frame % place["columns"] * place["width"], frame // place["columns"] * place["height"]
        for x, y in ((0.5, 0.5), (0.3, 0.6), (0.7, 0.3), (0.55, 0.75)):
            wanted = strip.getpixel((left + int(x * place["width"]), top + int(y * place["height"])))
            code = f"""([canvas, x, y, wanted]) => ({PIXEL})(canvas, [x, y])
                .every((value, i) => Math.abs(value - wanted[i]) <= 8)"""
            canvas = self.root.locator("canvas").element_handle()
            self.tab.wait_for_function(code, arg=[canvas, x, y, list(wanted)], timeout=20_000)


def weigh(page: ComfyPage) -> dict[str, int]:
    """The page's elements, those of the strip, and bytes of JavaScript's heap after a collection."""
    devtools = page.tab.context.new_cdp_session(page.tab)
    devtools.send("HeapProfiler.collectGarbage")
    heap = devtools.send("Runtime.getHeapUsage")["usedSize"]
    devtools.detach()
    return {**page.tab.evaluate(WEIGHT), "heap": int(heap)}


def frames_in(video: bytes) -> int:
    with av.open(io.BytesIO(video)) as opened:
        return sum(1 for _ in opened.decode(video=0))


def runs(server: Server) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = server.get("magi/runs")["runs"]
    return answer


@pytest.fixture(scope="module")
def only_page(browser: Any, server: Server) -> Iterator[ComfyPage]:
    """One page for all tests of this file: it takes long to open."""
    page = ComfyPage(browser, server)
    yield page
    page.close()


@pytest.fixture(params=[False, True], ids=["classic", "nodes_2"])
def page(request: pytest.FixtureRequest, only_page: ComfyPage) -> Iterator[ComfyPage]:
    if request.param and not only_page.has_nodes_2:
        pytest.skip("this page's Nodes 2.0 leave out widgets")
    only_page.errors.clear()
    only_page.set_nodes_2(request.param)
    yield only_page
    only_page.server.post("interrupt", {})  # a test that failed leaves a run that waits


def saved(page: ComfyPage, number: int) -> tuple[Any, ...]:
    """What is saved of a node. Not its height in Nodes 2.0, where core's own text of the progress makes a node taller for good; and not
    that text, which an older page saves after holes for all that is not saved.
    """
    (node,) = (node for node in page.workflow()["nodes"] if int(node["id"]) == number)
    size = node["size"][:1] if page.is_nodes_2 else node["size"]
    values = node["widgets_values"]
    if page.frontend < (1, 45) and None in values:
        values = values[: values.index(None)]
    return node["pos"], size, values, node["inputs"]


def workflow(name: str) -> dict[str, Any]:
    """A workflow that is shipped, as if it were another one."""
    document: dict[str, Any] = json.loads((ROOT / "workflows" / f"{name}.json").read_text("utf-8"))
    document.pop("groups", None)
    return {**document, "id": str(uuid.uuid4())}


def open_workflow(page: ComfyPage, prompts: tuple[str, ...], seconds: int, review_every: int) -> tuple[int, int]:
    """Open the workflow; the number of the node that makes the video, and its seed."""
    page.load(workflow("storyboard"))
    named = {node["type"]: number for number, node in page.nodes().items()}
    node, seed = named["MagiChunkDenoise"], random.randrange(10**9)
    page.set_widget(named["MagiStoryboard"], "text", "\n".join(f"{seconds}s: {prompt}" for prompt in prompts))
    page.set_widget(node, "seed", seed)
    page.set_widget(node, "review_every", review_every)
    return node, seed


def test_a_run_is_seen_while_it_is_made(page: ComfyPage, pictures: Path) -> None:
    node, _ = open_workflow(page, PROMPTS[:2], seconds=2, review_every=3)
    graph, prompt, placed = page.workflow(), page.prompt(), saved(page, node)
    live = LiveView(page)
    assert live.root.count() == 0, "no room is taken before a run"
    page.press_run()
    live.wait("running")
    page.fit(node)
    live.wait_for_chunks(1)
    page.screenshot(pictures / f"live_{'vue' if page.is_nodes_2 else 'classic'}.png")
    assert live.root.get_by_role("progressbar").count() > 0
    assert saved(page, node) == placed and page.prompt() == prompt, "a run changes nothing of the workflow"

    page.tab.reload(wait_until="domcontentloaded")  # in the middle
    page._ready()
    page.load(graph)
    page.fit(node)
    live.wait_for_chunks(1)
    live.wait("paused")
    assert len(runs(page.server)[-1]["chunks"]) == 3
    live.button("Approve").click()
    live.wait("finished")
    page.settle()

    run = runs(page.server)[-1]
    assert len(run["chunks"]) == 4 and run["shots"][1]["prompt"] == PROMPTS[1]
    live.pause()
    for second, chunk, frame in ((3 + 10.5 / 24, 3, 10), (0.5 / 24, 0, 0), (1 + 20.5 / 24, 1, 20)):
        live.seek(second, 4)
        assert f"shot {chunk // 2 + 1}: {PROMPTS[chunk // 2]}" in live.slider.get_attribute("aria-valuetext")
        place = run["chunks"][chunk]["strip"]
        shown = int(float(live.slider.get_attribute("aria-valuenow")) * 24 + 1e-3) % 24  # a pixel is more than a frame
        assert abs(shown - frame) <= 1
        live.shows(Image.open(io.BytesIO(page.server.view(place))).convert("RGB"), place, shown)
    before = live.slider.get_attribute("aria-valuenow")
    live.slider.focus()
    page.tab.keyboard.press("ArrowRight")
    page.tab.keyboard.press("ArrowLeft")
    assert live.slider.get_attribute("aria-valuenow") == before
    page.tab.keyboard.press("Home")
    assert live.slider.get_attribute("aria-valuenow") == "0.00"
    assert saved(page, node) == placed, "arrows move no node"
    assert "video.mp4" in live.root.get_by_role("link", name="Open video").get_attribute("href")
    assert page.server.view(run["video"])[4:8] == b"ftyp"
    tall = page.nodes()[node]["size"][1]
    live.button("Close until the next run").click()
    page.settle()
    assert live.root.count() == 0 and page.nodes()[node]["size"][1] < tall - 200, "the room is given back"
    assert page.errors == []


def test_review_themes_and_a_removed_node(page: ComfyPage, pictures: Path) -> None:
    page.tab.evaluate(WATCH)
    node, seed = open_workflow(page, PROMPTS, seconds=1, review_every=2)
    live = LiveView(page)
    page.press_run()
    live.wait("paused")
    page.fit(node)
    assert f"2 chunks are finished, with seed {seed}" in live.root.get_by_role("group", name="Review").text_content()
    live.button("Retry…").focus()
    page.tab.keyboard.press("Enter")
    assert page.tab.evaluate("document.activeElement.type") == "number", "the keyboard is led into the form"
    page.tab.keyboard.press("Escape")
    page.tab.keyboard.press("Enter")
    page.settle()
    page.screenshot(pictures / f"review_{'vue' if page.is_nodes_2 else 'classic'}.png")
    live.root.get_by_label("Prompt").fill("a \x07 bell")
    live.button("Make again").click()
    live.root.get_by_role("alert").filter(has_text="control character").wait_for()
    page.errors.clear()  # the browser notes every refused request
    live.root.get_by_label("Prompt").fill("a yellow square moves left")
    live.root.get_by_label("Seed").fill("5")
    live.button("Make again").click()
    live.wait("running")
    live.wait("paused")
    run = runs(page.server)[-1]
    assert (run["seed"], run["take"], run["next"]) == (5, 2, 2)
    assert run["shots"][1]["prompt"].endswith("a yellow square moves left")

    page.tab.evaluate("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
    page.settle(1)
    page.screenshot(pictures / f"review_light_{'vue' if page.is_nodes_2 else 'classic'}.png")
    page.tab.evaluate("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
    live.button("Approve").click()
    live.wait_for_chunks(4)  # the page says "paused" until the server has heard of it
    live.wait("paused")
    assert runs(page.server)[-1]["next"] == 4
    live.button("Approve").click()
    assert page.wait_for_end() == "success"
    live.wait("finished")

    live.button("Play").or_(live.button("Pause")).wait_for()
    assert page.tab.evaluate("() => [magiListeners.length, magiFrames > 0]") == [1, True]
    page.tab.evaluate("(id) => app.graph.remove(app.graph.getNodeById(id))", node)
    page.settle()
    gone = "() => [magiListeners.length, document.querySelectorAll('.magi-live').length, magiFrames]"
    listeners, views, frames = page.tab.evaluate(gone)
    page.settle(1)
    assert (listeners, views) == (0, 0) and page.tab.evaluate("() => magiFrames") == frames
    assert page.errors == []


def test_every_node_that_films_shows_it(page: ComfyPage) -> None:
    page.load(workflow("endless_extension"))
    first, more = 6, 15
    page.set_widget(4, "text", "20s: a red circle moves right")
    page.set_widget(13, "text", "16s: it turns blue")
    page.set_widget(first, "seed", random.randrange(10**9))
    page.tab.evaluate(LOOK)
    page.press_run()
    assert page.wait_for_end() == "success"
    both = [LiveView(page, node) for node in (first, more)]
    for live, total in zip(both, ("17 of 17", "19 of 19"), strict=True):
        live.films()
        live.wait("finished")
        assert live.count.text_content().startswith(total)
    assert page.errors == []


def test_a_box_in_a_subgraph_shows_it_outside_and_inside(page: ComfyPage, pictures: Path) -> None:
    page.load(workflow("one_box"))
    page.set_widget(1, "storyboard", "8s: a red circle moves right")
    page.set_widget(1, "seed", random.randrange(10**9))
    page.set_widget(1, "review_every", 4)
    wrap = """() => {
        const { graph } = window.app, { node } = graph.convertToSubgraph(new Set([graph.getNodeById(1)]));
        return Number(node.id);
    }"""
    outer = page.tab.evaluate(wrap)
    page.settle()
    placed, widgets = page.workflow(), page.nodes()[outer]["widgets"]
    page.tab.evaluate(LOOK)
    page.press_run()
    LiveView(page, outer).wait("paused")
    LiveView(page, outer).films()
    page.fit()
    page.screenshot(pictures / f"subgraph_{'vue' if page.is_nodes_2 else 'classic'}.png")
    page.tab.evaluate(
        "(id) => app.canvas.openSubgraph(app.graph.getNodeById(id).subgraph, app.graph.getNodeById(id))", outer
    )
    page.settle()
    page.fit()
    inner = LiveView(page, 1)
    inner.wait("paused")
    assert inner.root.count() == LiveView(page).root.count() == 1
    inner.button("Approve").click()
    inner.films()
    inner.wait_for_chunks(8)
    inner.wait("paused")
    inner.button("Approve").click()
    assert page.wait_for_end() == "success"
    inner.wait("finished")
    page.tab.evaluate("() => app.canvas.setGraph(app.rootGraph ?? app.graph)")
    page.settle()
    page.fit()
    LiveView(page, outer).wait("finished")
    after = page.workflow()
    assert [node["size"][0] for node in after["nodes"]] == [node["size"][0] for node in placed["nodes"]]
    LiveView(page, outer).button("Close until the next run").click()
    page.settle()
    assert LiveView(page).root.count() == 0 and page.nodes()[outer]["widgets"] == widgets
    assert [error for error in page.errors if PACK in error] == [], "a page's own word on progress fails in a subgraph"


def test_two_tabs_see_one_run_and_either_answers(page: ComfyPage, open_page: Callable[..., ComfyPage]) -> None:
    graph = workflow("one_box")
    page.load(graph)
    page.set_widget(1, "storyboard", "\n".join(f"1s: {prompt}" for prompt in PROMPTS))
    page.set_widget(1, "seed", random.randrange(10**9))
    page.set_widget(1, "review_every", 1)
    page.press_run()
    one = LiveView(page)
    one.wait("paused")
    page.fit(1)
    other_page = open_page(nodes_2=page.is_nodes_2)  # in the middle
    other_page.load(graph)
    other = LiveView(other_page)
    other.wait("paused")
    other_page.fit(1)
    for answers, sees, done in ((other, one, 2), (one, other, 3)):
        answers.button("Approve").click()
        for live in (answers, sees):
            live.wait_for_chunks(done)
            live.wait("paused")
    other.pause()
    other.seek(1.5, 4)
    assert "shot 2" in other.slider.get_attribute("aria-valuetext")
    other.button("Stop").click()
    assert page.wait_for_end() == "success"
    for live in (one, other):
        live.wait("stopped")
        assert live.count.text_content() == "3 of 4 chunks"
    assert frames_in(page.server.view(runs(page.server)[-1]["video"])) == 72
    assert page.errors == other_page.errors == []


def test_a_long_run_is_light_and_its_finished_part_stays_when_it_is_interrupted(
    page: ComfyPage, pictures: Path
) -> None:
    node, _ = open_workflow(page, PROMPTS, seconds=50, review_every=0)
    page.set_widget(node, "steps", 4)
    live = LiveView(page)
    page.press_run()
    live.wait("running")
    page.fit(node)
    held = []
    for done in (10, 40):
        live.wait_for_chunks(done)
        held.append(weigh(page))
        assert held[-1]["strip"] < 40
    assert held[1]["nodes"] - held[0]["nodes"] < 50 and held[1]["heap"] < held[0]["heap"] + 8 * 2**20, held
    page.tab.evaluate("() => app.extensionManager.command.execute('Comfy.Interrupt')")
    assert page.wait_for_end() == "interrupted"
    live.wait("stopped")
    live.pause()
    page.screenshot(pictures / f"interrupted_{'vue' if page.is_nodes_2 else 'classic'}.png")
    run = runs(page.server)[-1]
    assert 40 <= run["next"] < 200 and frames_in(page.server.view(run["video"])) == 24 * run["next"]
    live.seek(31.5, 200)
    index, frame = divmod(int(float(live.slider.get_attribute("aria-valuenow")) * 24 + 1e-3), 24)
    place = run["chunks"][index]["strip"]
    live.shows(Image.open(io.BytesIO(page.server.view(place))).convert("RGB"), place, frame)
    assert page.errors == []
