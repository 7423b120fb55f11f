/**
 * The timeline of a storyboard: one element that shows a text as shots on an axis and writes every edit back into the text.
 *
 * Notable:
 * - The text is the only truth. `host.text()` is read, every edit gives a whole new text to `host.setText`, and what cannot be read is
 *   shown with its line and never touched.
 * - Nothing here knows of ComfyUI; `magi.js` brings the two together.
 */

import { pickKeyframe } from "./keyframe_picker.js";
import { editPrompt } from "./prompt_editor.js";
import { keyframeOf, MAX_SHOT_SECONDS, readStoryboard } from "./storyboard.js";
import * as edits from "./storyboard_edits.js";
import { StoryboardError } from "./storyboard_error.js";
import { listenToKeys } from "./timeline_keys.js";
import { boundaries, boundedScale, fittingScale, openingScale, stepped } from "./timeline_layout.js";
import { listenToPointer } from "./timeline_pointer.js";
import { buildView, drawRuler, drawTimeline, SIDES } from "./timeline_view.js";
import { showProblem } from "./timeline_problem.js";

/**
 * `host`: text(), setText(text), isLinked(), onMode(), passWheel(event), images (input_images.js), t (strings.js).
 * `opened`: how it is shown at first, {mode: "Timeline" or "Text"}.
 * Returns {element, mode(), isRight(), setMode(mode), refresh(), resume(memory), destroy()}; `destroy` gives the memory that a new timeline of
 * the same node may resume.
 */
export function createTimeline(host, opened) {
    const { t, images } = host, view = buildView(t), ending = new AbortController(), { signal } = ending;
    const state = { mode: "Timeline", selected: 0, scale: null, scroll: 0, focused: false, text: null, document: null, error: null, preview: null, ...opened };
    let resuming = null;
    let closeEditor = null;

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
        drawTimeline(view, { prefix: shown.prefix, rows: shown.rows, scale: scale(), selected: state.selected }, t, images.url);
    }

    function say(key, values) {
        view.live.textContent = t(`timeline.${key}`, values);
    }

    function note(words) {
        view.note.textContent = words;
        view.note.hidden = !words;
        view.rule.hidden = !!words;
        if (words) view.live.textContent = words;
    }

    /** Do an edit, write the text, and show it; where it would break a rule, say so and change nothing. */
    function apply(edit, said, values) {
        note("");
        try {
            const done = edits.edited(state.document, edit);
            Object.assign(state, done);
            host.setText(done.text);
            say(said, values);
            return true;
        } catch (error) {
            if (!(error instanceof StoryboardError)) throw error;
            note(t("timeline.refused", { reason: error.say(t) }));
            return false;
        } finally {
            refresh();
        }
    }

    function select(index, focus = true) {
        state.selected = index;
        draw();
        const shot = view.shots.children[index], { scroller } = view;
        if (focus) shot.focus({ preventScroll: true });
        const left = shot.offsetLeft - 8, right = shot.offsetLeft + Math.min(shot.offsetWidth, scroller.clientWidth - 16) + 8;
        if (left < scroller.scrollLeft) scroller.scrollLeft = left;
        else if (right > scroller.scrollLeft + scroller.clientWidth) scroller.scrollLeft = right - scroller.clientWidth;
    }

    function edit(index) {
        closeEditor?.();
        select(index, false);
        const label = t("timeline.prompt", { shot: index + 1 }), { scroller, track, shots } = view;
        closeEditor = editPrompt({ scroller, track, shot: shots.children[index], words: rows()[index].prompt, label, onDone });
        function onDone(words, next) {
            closeEditor = null;
            if (words !== null) apply(edits.change(index, { prompt: words }), "promptChanged", { shot: index + 1 });
            if (!state.document || next === null) return;
            const neighbour = index + next;
            if (next && rows()[neighbour]) edit(neighbour);
            else select(index);
        }
    }

    function setSeconds(index, seconds) {
        apply(edits.change(index, { seconds }), "lengthened", { shot: index + 1, seconds });
    }

    function setKeyframe(index, name) {
        apply(edits.change(index, { keyframe: name }), name ? "keyframeSet" : "keyframeRemoved", { shot: index + 1, name });
    }

    async function dropFile(index, file) {
        const target = index ?? state.selected;
        if (!file.type.startsWith("image/")) return note(t("timeline.notAnImage", { name: file.name }));
        try {
            const name = await images.upload(file);
            if (!signal.aborted && state.document) setKeyframe(Math.min(target, rows().length - 1), name);
        } catch (error) {
            note(t("timeline.uploadFailed", { name: file.name, reason: error.message }));
        }
    }

    function choose() {
        const index = state.selected, shot = index + 1;
        pickKeyframe({
            root: view.root,
            title: t("timeline.pickTitle", { shot }),
            images,
            current: keyframeOf(rows()[index]),
            t,
            onPick: (name) => setKeyframe(index, name),
            onFile: (file) => dropFile(index, file),
            onClose: () => select(index),
        });
    }

    function move(from, to) {
        if (apply(edits.move(from, to), "moved", { shot: to + 1, shots: rows().length })) select(to);
    }

    function scaleBy(factor, second = boundaries(rows())[state.selected]) {
        const { scroller } = view, offset = second * scale() - scroller.scrollLeft;
        const least = Math.min(1, fittingScale(rows(), room()));
        state.scale = Math.max(least, boundedScale(scale() * factor));
        draw();
        scroller.scrollLeft = second * state.scale - offset;
        drawRuler(view, state.scale);
    }

    const acts = {
        add() {
            const index = state.selected + 1;
            if (apply(edits.insert(index, t("timeline.newShot")), "added", { shot: index + 1 })) edit(index);
        },
        split: (index) => apply(edits.split(index), "splitDone", { shot: index + 1 }) && select(index),
        duplicate: (index) => apply(edits.duplicate(index), "duplicated", { shot: index + 1 }) && select(index + 1),
        delete: (index) => apply(edits.remove(index), "deleted", { shot: index + 1 }) && select(state.selected),
        keyframe: choose,
        removeKeyframe: (index) => setKeyframe(index, null),
        earlier: (index) => index > 0 && move(index, index - 1),
        later: (index) => index < rows().length - 1 && move(index, index + 1),
        zoomIn: () => scaleBy(1.5),
        zoomOut: () => scaleBy(1 / 1.5),
        fit() {
            state.scale = fittingScale(rows(), room());
            draw();
        },
    };
    const act = (name) => state.document && acts[name](state.selected);

    function setMode(mode) {
        closeEditor?.();
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
    view.prefix.addEventListener("change", () => apply(edits.setPrefix(view.prefix.value.trim()), "prefixChanged"), { signal });
    view.seconds.addEventListener("change", () => setSeconds(state.selected, view.seconds.valueAsNumber), { signal });
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
        edit,
        act,
        move,
        dropFile,
        scaleBy,
        passWheel: host.passWheel,
        scrolled() {
            state.scroll = view.scroller.scrollLeft;
            if (state.document) drawRuler(view, scale());
        },
        step(direction, fine) {
            const index = state.selected, { seconds } = rows()[index];
            const wanted = stepped(boundaries(rows())[index], seconds, direction, fine, MAX_SHOT_SECONDS);
            if (wanted !== seconds) setSeconds(index, wanted);
        },
        preview(index, seconds) {
            state.preview = index === null ? null : { index, seconds };
            if (state.document) draw();
        },
        commit: (index, seconds) => seconds !== rows()[index].seconds && setSeconds(index, seconds),
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
