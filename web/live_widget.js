/**
 * The live view as a widget of a node: there from the moment a run begins, and nothing before.
 *
 * Notable: it is saved nowhere, and the node is saved in the size that it has without it, so a run leaves a workflow as it was.
 */

import { createLive } from "./live.js";
import { chain, keepWidget, panThrough, passWheel, remount } from "./node_hooks.js";

const LEAST_WIDTH = 360; // a subgraph's box is narrower

/**
 * A place for runs at a node: {show(run), run(), close(), destroy()}, the last where the node is gone and nobody told it. `host` has t, url,
 * load and answer of `createLive`; `onRemoved()` is called when the node is gone.
 */
export function liveSlot(node, { app, host, onRemoved }) {
    let live = null, widget = null, remove = null;
    let added = [0, 0]; // to the node's size
    let closed = null; // the prompt whose view the artist closed

    function open() {
        live = createLive({
            ...host,
            onClose() {
                closed = live.run().about.prompt_id;
                close();
            },
            onHeight: grow,
            passWheel: (event) => passWheel(event, app),
        });
        panThrough(live.element, app);
    }

    function attach() {
        widget = node.addDOMWidget("live", "magi-live", live.element, {
            serialize: false,
            hideOnZoom: false,
            margin: 6,
            getMinHeight: () => live.height(),
        });
        widget.serialize = false;
        remove = keepWidget(node, widget);
        setTimeout(() => widget && remount(node, widget), 50);
        grow();
    }

    /** Give the node as much more room as the view needs now. */
    function grow() {
        if (!widget) return;
        const [width, height] = without(node.size);
        added = [Math.max(0, LEAST_WIDTH - width), live.height() + 8];
        node.setSize([width + added[0], height + added[1]]);
        node.setDirtyCanvas(true, true);
    }

    const without = ([width, height]) => [width - added[0], height - added[1]];

    function close() {
        if (!live) return;
        live.destroy();
        remove();
        node.setSize(without(node.size));
        live = widget = null;
        added = [0, 0];
        node.setDirtyCanvas(true, true);
    }

    chain(node, "onSerialize", (saved) => {
        saved.size = without(saved.size);
    });
    function destroy() {
        live?.destroy();
        live = null;
    }

    chain(node, "onRemoved", () => {
        destroy();
        onRemoved();
    });

    return {
        show(run) {
            if (closed === run.about.prompt_id) return;
            closed = null;
            if (!live) open();
            live.show(run);
            if (!widget) attach();
        },
        run: () => live?.run() ?? null,
        close,
        destroy,
    };
}
