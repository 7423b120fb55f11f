/**
 * What an artist can do to a storyboard on its timeline: every act makes a new text of it, says what was done, and shows it.
 *
 * Notable: an act that would break a rule changes nothing and says which rule.
 */

import { pickKeyframe } from "./keyframe_picker.js";
import { editPrompt } from "./prompt_editor.js";
import { keyframeOf } from "./storyboard.js";
import * as edits from "./storyboard_edits.js";
import { StoryboardError } from "./storyboard_error.js";

/**
 * `host` and `view` as in timeline.js; `state` is the timeline's own {document, text, selected}; `show()` draws it anew, `select(index, focus)`
 * shows another shot as selected; `signal` is aborted at the timeline's end.
 */
export function createActs({ host, view, state, show, select, signal }) {
    const { t, images } = host, rows = () => state.document.rows;
    let closeEditor = null;

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
            view.live.textContent = t(`timeline.${said}`, values);
            return true;
        } catch (error) {
            if (!(error instanceof StoryboardError)) throw error;
            note(t("timeline.refused", { reason: error.say(t) }));
            return false;
        } finally {
            show();
        }
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
        const before = index ?? state.selected, row = rows()[before];
        if (!file.type.startsWith("image/")) return note(t("timeline.notAnImage", { name: file.name }));
        try {
            const name = await images.upload(file);
            const place = signal.aborted || !state.document ? -1 : edits.placeOf(row, before)(state.document);
            if (place >= 0) setKeyframe(place, name);
            else host.tell(t("timeline.shotGone", { name })); // here nobody may see a note: undo makes another timeline
        } catch (error) {
            note(t("timeline.uploadFailed", { name: file.name, reason: error.message }));
        }
    }

    function choose(index) {
        pickKeyframe({
            root: view.root,
            title: t("timeline.pickTitle", { shot: index + 1 }),
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

    return {
        edit,
        setSeconds,
        dropFile,
        move,
        setPrefix: (words) => apply(edits.setPrefix(words), "prefixChanged"),
        /** Close the box in which a prompt is edited, and keep what was typed. */
        closeEditor: () => closeEditor?.(),
        /** By the name that a button or key has for it, on the shot at `index`. */
        named: {
            add(index) {
                const added = index + 1;
                if (apply(edits.insert(added, t("timeline.newShot")), "added", { shot: added + 1 })) edit(added);
            },
            split: (index) => apply(edits.split(index), "splitDone", { shot: index + 1 }) && select(index),
            duplicate: (index) => apply(edits.duplicate(index), "duplicated", { shot: index + 1 }) && select(index + 1),
            delete: (index) => apply(edits.remove(index), "deleted", { shot: index + 1 }) && select(state.selected),
            keyframe: choose,
            removeKeyframe: (index) => setKeyframe(index, null),
            earlier: (index) => index > 0 && move(index, index - 1),
            later: (index) => index < rows().length - 1 && move(index, index + 1),
        },
    };
}
