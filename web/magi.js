/**
 * This pack's extensions of ComfyUI's page: the timeline on every storyboard text, the live view on every node that makes a video.
 *
 * Notable: ComfyUI imports every .js of this folder as an extension; only this file does anything then.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { make } from "./dom.js";
import { inputImages } from "./input_images.js";
import { liveExtension } from "./live_extension.js";
import { chain, releaseGone } from "./node_hooks.js";
import { loadStrings } from "./strings.js";
import { attachTimeline } from "./timeline_widget.js";

/** Which text of which node is a storyboard. */
const STORYBOARDS = { MagiStoryboard: "text", MagiVideo: "storyboard" };
const VIEW = "Magi.Timeline.View";

const timelines = new Map(); // node -> its timeline
const memories = new Map(); // place of a node -> what was looked at in its timeline, which ended just now
let t;

const setting = (id, otherwise) => app.extensionManager?.setting?.get(id) ?? otherwise;

/** Undo makes every node anew at once: what is kept is taken within a moment, or forgotten. */
const memory = {
    keep(place, state) {
        memories.set(place, state);
        setTimeout(() => memories.delete(place), 3000);
    },
    take(place) {
        const state = memories.get(place);
        memories.delete(place);
        return state;
    },
};

app.registerExtension({
    name: "Magi.Timeline",
    settings: [
        {
            id: VIEW,
            name: "Show storyboards as",
            category: ["MAGI", "Storyboard", "View"],
            tooltip: "How a storyboard is shown when a node is made or a workflow is opened. Every node has a switch.",
            type: "combo",
            options: ["Timeline", "Text"],
            defaultValue: "Timeline",
        },
    ],
    commands: [
        {
            id: "Magi.Timeline.Switch",
            label: "MAGI: switch storyboards between timeline and text",
            icon: "pi pi-images",
            function() {
                const chosen = Object.values(app.canvas.selected_nodes ?? {}).filter((node) => timelines.has(node));
                const all = chosen.length ? chosen.map((node) => timelines.get(node)) : [...timelines.values()];
                const mode = all.some((timeline) => timeline.mode() === "Timeline") ? "Text" : "Timeline";
                for (const timeline of all) timeline.setMode(mode);
            },
        },
    ],
    menuCommands: [{ path: ["MAGI"], commands: ["Magi.Timeline.Switch"] }],

    async init() {
        t = await loadStrings(api, setting("Comfy.Locale", "en"));
        for (const sheet of ["./timeline.css", "./live.css"])
            document.head.append(make("link", { rel: "stylesheet", href: new URL(sheet, import.meta.url).href }));
    },

    nodeCreated(node) {
        const name = STORYBOARDS[node.comfyClass];
        const text = name && node.widgets?.find((widget) => widget.name === name);
        if (!text) return;
        const mode = setting(VIEW, "Timeline");
        timelines.set(node, attachTimeline(node, text, { app, t, images: inputImages(api), mode, memory }));
        chain(node, "onRemoved", () => timelines.delete(node));
    },

    afterConfigureGraph: () => releaseGone(timelines, app, (timeline) => timeline.destroy()),
});

app.registerExtension(liveExtension({ app, api, words: () => t }));
