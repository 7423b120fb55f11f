/**
 * A timeline as a widget of a node, beside the text widget that it edits.
 *
 * Notable:
 * - The timeline's widget is saved nowhere: the text widget's value is all there is. It is hidden while the timeline is shown.
 * - An edit is one step for the graph's undo: it is made between the canvas's "before change" and "after change".
 * - Undo and a switch of tabs make every node anew; what the artist was looking at is handed from the old timeline to the new one.
 */

import { chain, hideWidget, panThrough, passWheel, remount } from "./node_hooks.js";
import { createTimeline } from "./timeline.js";

const NARROW = 460; // a narrower node has its tools in two rows
const LEAST_HEIGHT = { wide: 244, narrow: 280 };
const BAR_HEIGHT = { right: 68, wrong: 110 }; // below the text
const ROOM = [620, 340]; // of a new node

/** Add a timeline for the widget `text` to `node`. `memory` is {keep(place, state), take(place)} for what was looked at. */
export function attachTimeline(node, text, { app, t, images, mode, memory }) {
    let place = null; // noted while the node has one: at its removal the graph has lost its name
    const isLinked = () => node.inputs?.some((input) => input.widget?.name === text.name && input.link != null) ?? false;
    const timeline = createTimeline({
        t,
        images,
        isLinked,
        text: () => String(text.value ?? ""),
        setText(value) {
            const old = text.value;
            place = placeOf(node);
            app.canvas.emitBeforeChange();
            text.value = value;
            text.callback?.(value, app.canvas, node);
            node.onWidgetChanged?.(text.name, value, old, text);
            app.canvas.emitAfterChange();
            node.setDirtyCanvas(true, true);
        },
        onMode: showText,
        tell: (words) => app.extensionManager.toast.add({ severity: "warn", summary: "MAGI", detail: words, life: 10000 }),
        passWheel: (event) => passWheel(event, app),
    }, { mode });

    const widget = node.addDOMWidget("timeline", "magi-timeline", timeline.element, {
        serialize: false,
        hideOnZoom: false,
        margin: 6,
        getMinHeight: () => LEAST_HEIGHT[node.size[0] < NARROW ? "narrow" : "wide"],
    });
    widget.serialize = false;
    node.setSize([Math.max(node.size[0], ROOM[0]), Math.max(node.size[1], ROOM[1])]);
    showText();

    /** The text has the room that the node has; below it the timeline is a bar of one row. */
    function showText() {
        const shown = timeline.mode() === "Text" || isLinked();
        widget.computeSize = shown ? (width) => [width, BAR_HEIGHT[timeline.isRight() ? "right" : "wrong"]] : undefined;
        if (shown) widget.computeLayoutSize = undefined; // else both kinds of nodes would make the bar grow
        else delete widget.computeLayoutSize;
        hideWidget(node, text, !shown);
    }
    function follow() {
        showText();
        timeline.refresh();
    }

    chain(text, "callback", () => {
        timeline.refresh();
        node.setDirtyCanvas(true, true); // the bar may have another height
    });
    chain(node, "onConnectionsChange", follow);
    chain(node, "onConfigure", () => {
        place = placeOf(node);
        timeline.resume(memory.take(place));
        follow();
        setTimeout(() => remount(node, widget), 50);
    });
    chain(node, "onRemoved", () => memory.keep(place, timeline.destroy()));

    panThrough(timeline.element, app);
    timeline.refresh();
    return timeline;
}

/** Where a node is, the same for the node that undo makes in its stead. */
const placeOf = (node) => `${node.graph?.id}:${node.id}`;
