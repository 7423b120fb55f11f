/** How a widget of ours listens to its node, and lets through to the canvas what the canvas wants. */

const MIDDLE = 4; // in PointerEvent.buttons

/** Call `more` after what `owner[name]` does already, with the same arguments. */
export function chain(owner, name, more) {
    const before = owner[name];
    owner[name] = function (...given) {
        const result = before?.apply(this, given);
        more(...given);
        return result;
    };
}

/**
 * End what is kept for nodes that are in no graph any more, and forget it: a page that clears its graph tells no node within a subgraph.
 * `kept` is a Map from nodes.
 */
export function releaseGone(kept, app, end) {
    const root = app.rootGraph ?? app.graph, graphs = [root, ...(root.subgraphs?.values() ?? [])];
    const there = new Set(graphs.flatMap((graph) => graph.nodes));
    for (const [node, one] of kept) {
        if (there.has(node)) continue;
        end(one);
        kept.delete(node);
    }
}

/** Whether the classic canvas is shown, over which a widget's element lies; in Nodes 2.0 it is a part of the node. */
export const isClassic = () => !globalThis.LiteGraph.vueNodesMode;

/**
 * Keep a widget that was just added until the answer is called. A subgraph's node makes its list of widgets anew out of what is inside:
 * there it comes after those.
 */
export function keepWidget(node, widget) {
    const { get, ...rest } = Object.getOwnPropertyDescriptor(node, "widgets");
    if (!node.subgraph || !get) return () => node.removeWidget(widget);
    const leaveOut = (list) => list.splice(0, list.length, ...list.filter((one) => one !== widget));
    let kept = true;
    leaveOut(get.call(node));
    Object.defineProperty(node, "widgets", {
        ...rest,
        get() {
            const own = get.call(node);
            return !kept || own.includes(widget) ? own : [...own, widget];
        },
    });
    return () => {
        kept = false;
        node.removeWidget(widget);
        widget.onRemove?.();
        leaveOut(node.widgets);
    };
}

/** Show a widget or not, in both kinds of nodes. */
export function hideWidget(node, widget, hidden) {
    widget.hidden = widget.options.hidden = hidden;
    node.widgets.push(node.widgets.pop()); // Nodes 2.0 looks at its widgets when their list changes
    node.setDirtyCanvas(true, true);
}

/** Nodes 2.0 keeps the place of a node's widget when undo makes the node anew, and the place still shows the old element. */
export function remount(node, widget) {
    if (isClassic() || widget.element.isConnected || !node.widgets?.includes(widget)) return;
    hideWidget(node, widget, true);
    requestAnimationFrame(() => hideWidget(node, widget, false));
}

/** In the classic canvas the middle button moves the view over an element, too. */
export function panThrough(element, app) {
    const pan = { pointerdown: "processMouseDown", pointermove: "processMouseMove", pointerup: "processMouseUp" };
    for (const [kind, method] of Object.entries(pan))
        element.addEventListener(kind, (event) => {
            if (isClassic() && (event.buttons === MIDDLE || event.button === 1)) app.canvas[method](event);
        });
}

/** In the classic canvas the wheel over an element zooms the view. */
export const passWheel = (event, app) => isClassic() && app.canvas.processMouseWheel(event);
