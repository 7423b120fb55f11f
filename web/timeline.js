/**
 * The timeline of a storyboard: one element that shows a text as shots on an axis and writes every edit back into the text.
 *
 * Notable:
 * - The text is the only truth. `host.text()` is read, every edit gives a whole new text to `host.setText`, and what cannot be read is
 *   shown with its line and never touched.
 * - Nothing here knows of ComfyUI; `magi.js` brings the two together.
 */

import { MAX_SHOT_SECONDS, readStoryboard } from "./storyboard.js";
import * as edits from "./storyboard_edits.js";
import { StoryboardError } from "./storyboard_error.js";
import { createActs } from "./timeline_acts.js";
import { listenToKeys } from "./timeline_keys.js";
import { boundaries, boundedScale, fittingScale, openingScale, stepped } from "./timeline_layout.js";
import { listenToPointer } from "./timeline_pointer.js";
import { buildView, drawRuler, drawTimeline, SIDES } from "./timeline_view.js";
import { showProblem } from "./timeline_problem.js";

/**
 * `host`: text(), setText(text), isLinked(), onMode(), tell(words), passWheel(event), images (input_images.js), t (strings.js).
 * `opened`: how it is shown at first, {mode: "Timeline" or "Text"}.
 * Returns {element, mode(), isRight(), setMode(mode), refresh(), resume(memory), destroy()}; `destroy` gives the memory that a new timeline of
 * the same node may resume.
 */
export function createTimeline(host, opened) {
    const { t } = host, view = buildView(t), ending = new AbortController(), { signal } = ending;
    const state = { mode: "Timeline", selected: 0, scale: null, scroll: 0, focused: false, text: null, document: null, error: null, preview: null, ...opened };
    let resuming = null;

    const rows = () => state.document.rows;
    const room = () => view.scroller.clientWidth - SIDES;
    const scale = () => state.scale ?? openingScale(rows(), room());

    function refresh() {
        const text = host.text(), linked = host.isLinked();
        if (text !== state.text) read(text);
        state.selected = Math.max(0, Math.min(state.selected, (state.document?.rows.length ?? 1) - 1));
        view.root.dataset.mode = state.mode;
        for (const tab of view.tabs.children) tab.setAttribute("aria-checked", tab.dataset.mode === state.mode);
        const usable = state.mode === "Timeline" && !linked && !state.error;
        view.body.hidden = !usable;
        view.root.classList.toggle("magi-idle", !usable);
        view.root.classList.toggle("magi-bar", state.mode === "Text" || linked);
        showProblem(view, { linked, error: state.error, text, mode: state.mode, t });
        if (state.document && !linked) draw();
    }

    function read(text) {
        state.text = text;
        try {
            state.document = readStoryboard(text);
            state.error = null;
        } catch (error) {
            if (!(error instanceof StoryboardError)) throw error;
            state.document = null;
            state.error = error;
        }
    }

    function draw() {
        const { document, preview } = state;
        const shown = preview ? edits.change(preview.index, { seconds: preview.seconds })(document) : document;
        drawTimeline(view, { prefix: shown.prefix, rows: shown.rows, scale: scale(), selected: state.selected }, t, host.images.url);
    }

    function select(index, focus = true) {
        view.seconds.blur(); // what was typed there is meant for the shot that is selected until now
        state.selected = index;
        draw();
        const shot = view.shots.children[index], { scroller } = view;
        if (focus) shot.focus({ preventScroll: true });
        const left = shot.offsetLeft - 8, right = shot.offsetLeft + Math.min(shot.offsetWidth, scroller.clientWidth - 16) + 8;
        if (left < scroller.scrollLeft) scroller.scrollLeft = left;
        else if (right > scroller.scrollLeft + scroller.clientWidth) scroller.scrollLeft = right - scroller.clientWidth;
    }

    function scaleBy(factor, second = boundaries(rows())[state.selected]) {
        const { scroller } = view, offset = second * scale() - scroller.scrollLeft;
        const least = Math.min(1, fittingScale(rows(), room()));
        state.scale = Math.max(least, boundedScale(scale() * factor));
        draw();
        scroller.scrollLeft = second * state.scale - offset;
        drawRuler(view, state.scale);
    }

    const acts = createActs({ host, view, state, show: refresh, select, signal });
    const named = {
        ...acts.named,
        zoomIn: () => scaleBy(1.5),
        zoomOut: () => scaleBy(1 / 1.5),
        fit() {
            state.scale = fittingScale(rows(), room());
            draw();
        },
    };
    const act = (name) => state.document && named[name](state.selected);

    function setMode(mode) {
        acts.closeEditor();
        state.mode = mode;
        host.onMode();
        refresh();
    }

    view.root.addEventListener("click", (event) => {
        const { act: name, mode } = event.target.closest("button")?.dataset ?? {};
        if (name) act(name);
        else if (mode) setMode(mode);
    }, { signal });
    view.root.addEventListener("pointerdown", (event) => {
        if (event.button === 0) event.stopPropagation(); // else the node is dragged
    }, { signal });
    view.prefix.addEventListener("change", () => acts.setPrefix(view.prefix.value.trim()), { signal });
    view.seconds.addEventListener("change", () => acts.setSeconds(state.selected, view.seconds.valueAsNumber), { signal });
    view.shots.addEventListener("focusin", (event) => {
        state.focused = true;
        const index = Array.prototype.indexOf.call(view.shots.children, event.target);
        if (index !== state.selected) select(index);
    }, { signal });
    view.shots.addEventListener("focusout", () => {
        // Where the page takes the element away, as undo does, the focus has not gone elsewhere.
        queueMicrotask(() => (state.focused = !view.root.isConnected || view.shots.contains(document.activeElement)));
    }, { signal });
    for (const field of [view.prefix, view.seconds])
        field.addEventListener("keydown", (event) => event.key === "Enter" && field.blur(), { signal });

    const actions = {
        rows,
        scale,
        selected: () => state.selected,
        select,
        edit: acts.edit,
        act,
        move: acts.move,
        dropFile: acts.dropFile,
        scaleBy,
        passWheel: host.passWheel,
        scrolled() {
            state.scroll = view.scroller.scrollLeft;
            if (state.document) drawRuler(view, scale());
        },
        step(direction, fine) {
            const index = state.selected, { seconds } = rows()[index];
            const wanted = stepped(boundaries(rows())[index], seconds, direction, fine, MAX_SHOT_SECONDS);
            if (wanted !== seconds) acts.setSeconds(index, wanted);
        },
        preview(index, seconds) {
            state.preview = index === null ? null : { index, seconds };
            if (state.document) draw();
        },
        commit: (index, seconds) => seconds !== rows()[index].seconds && acts.setSeconds(index, seconds),
    };
    listenToPointer(view, actions, signal);
    listenToKeys(view, actions, signal);
    const sizes = new ResizeObserver(() => {
        if (!state.document || !view.scroller.clientWidth) return;
        draw();
        if (!resuming) return;
        const { scroll, focused } = resuming;
        resuming = null;
        view.scroller.scrollLeft = scroll;
        if (focused) select(state.selected);
    });
    sizes.observe(view.scroller);

    return {
        element: view.root,
        mode: () => state.mode,
        /** Whether the text is a storyboard. */
        isRight: () => !state.error,
        setMode,
        refresh,
        /** Go on as an earlier timeline of the same node looked: at once, but scroll and focus when it is on the page. */
        resume(memory) {
            if (!memory) return;
            const { mode, selected, scale: pixels } = memory;
            Object.assign(state, { mode, selected, scale: pixels });
            resuming = memory;
        },
        /** End everything that was begun; returns what a new timeline of the same node may go on with. */
        destroy() {
            const { mode, selected, scale: pixels, scroll, focused } = state;
            ending.abort();
            sizes.disconnect();
            view.root.remove();
            return { mode, selected, scale: pixels, scroll, focused };
        },
    };
}
