/**
 * The part of this pack's extension that shows runs: at their nodes, in settings, in commands.
 */

import { createFeed } from "./live_feed.js";
import { newest } from "./live_runs.js";
import { liveSlot } from "./live_widget.js";
import { releaseGone } from "./node_hooks.js";
import { showUnfinished } from "./unfinished_dialog.js";

/** Nodes that make videos. */
const MAKERS = ["MagiChunkDenoise", "MagiExtendVideo", "MagiVideo"];

/** `words()` gives the translator of strings.js once ComfyUI has begun. */
export function liveExtension({ app, api, words }) {
    const slots = new Map(); // node -> its place for runs
    const url = ({ filename, subfolder, type }) => api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
    const host = { url, load, answer, t: (...said) => words()(...said) };
    const feed = createFeed(api, (run) => newest(feed.runs()).includes(run) && show(run));
    const showAll = () => newest(feed.runs()).forEach(show);

    /**
     * Show a run at its node, and at the boxes of the subgraphs that it is in, where the workflow that asked for it is open; what a program
     * asked for is shown in any that has the node.
     */
    function show(run) {
        const graph = app.rootGraph ?? app.graph, { workflow, node } = run.about;
        if (workflow != null && workflow !== graph.id) return;
        const path = pathTo(graph, node);
        if (MAKERS.includes(path.at(-1)?.comfyClass)) path.forEach((one) => slotAt(one).show(run));
    }

    function slotAt(node) {
        if (!slots.has(node)) slots.set(node, liveSlot(node, { app, host, onRemoved: () => slots.delete(node) }));
        return slots.get(node);
    }

    async function load(place, signal) {
        const answer = await fetch(place, { signal });
        if (!answer.ok) throw new Error(String(answer.status));
        return createImageBitmap(await answer.blob());
    }

    async function answer(run, review) {
        const body = JSON.stringify(review), headers = { "Content-Type": "application/json" };
        const said = await api.fetchApi(`/magi/runs/${encodeURIComponent(run.about.run)}/review`, { method: "POST", headers, body });
        if (!said.ok) throw new Error((await said.json().catch(() => ({}))).error ?? `${said.status} ${said.statusText}`);
    }

    function toast(severity, key, values) {
        app.extensionManager.toast.add({ severity, summary: "MAGI", detail: words()(key, values), life: 6000 });
    }

    async function listUnfinished() {
        const said = await api.fetchApi("/magi/unfinished");
        if (!said.ok) return toast("error", "unfinished.failed", { reason: `${said.status} ${said.statusText}` });
        const locale = app.extensionManager.setting.get("Comfy.Locale") ?? "en";
        let found;
        try {
            found = await said.json();
        } catch (error) {
            return toast("error", "unfinished.failed", { reason: error.message });
        }
        showUnfinished({ ...found, t: words(), locale, urlOf: url, onOpen: open, onGoOn: goOn });
    }

    const open = (run) => app.loadGraphData(run.workflow, true, true, run.run);

    async function goOn(run) {
        if (run.workflow) await open(run);
        try {
            await api.queuePrompt(0, { output: run.prompt, workflow: run.workflow ?? {} });
        } catch (error) {
            toast("error", "unfinished.refused", { reason: error.message });
        }
    }

    /** The video of the selected node's run, else of the newest that has one. */
    function openVideo() {
        const chosen = Object.values(app.canvas.selected_nodes ?? {}).map((node) => slots.get(node)?.run());
        const run = [...feed.runs().values(), ...chosen].filter((one) => one?.about.video).at(-1);
        if (run) window.open(url(run.about.video), "_blank", "noopener");
        else toast("info", "live.noVideo");
    }

    return {
        name: "Magi.Live",
        settings: [
            {
                id: "MAGI.Preview",
                name: "Show chunks as soon as they are finished",
                category: ["MAGI", "Runs", "Preview"],
                tooltip: "Every chunk is decoded while the next ones are made. Takes effect with the next run.",
                type: "boolean",
                sortOrder: 3,
                defaultValue: true,
            },
            {
                id: "MAGI.PreviewHeight",
                name: "Height of the preview (pixels)",
                category: ["MAGI", "Runs", "PreviewHeight"],
                tooltip: "64 to 720; small videos are not made larger. Takes effect with the next run.",
                type: "slider",
                sortOrder: 2,
                attrs: { min: 64, max: 720, step: 16 },
                defaultValue: 256,
            },
            {
                id: "MAGI.RunFolderLimit",
                name: "Room for runs on disk (GB)",
                category: ["MAGI", "Runs", "RunFolderLimit"],
                tooltip: "In output/magi. When there are more, finished runs are removed, the oldest first; their videos and unfinished runs stay. 0: no limit.",
                type: "number",
                sortOrder: 1,
                attrs: { min: 0, max: 1000000, step: 1 },
                defaultValue: 20,
            },
        ],
        commands: [
            { id: "Magi.Runs.Unfinished", label: "MAGI: unfinished runs", icon: "pi pi-history", function: listUnfinished },
            { id: "Magi.Runs.OpenVideo", label: "MAGI: open the run video", icon: "pi pi-video", function: openVideo },
        ],
        menuCommands: [{ path: ["MAGI"], commands: ["Magi.Runs.Unfinished", "Magi.Runs.OpenVideo"] }],

        afterConfigureGraph() {
            releaseGone(slots, app, (slot) => slot.destroy());
            showAll();
        },
        setup: feed.restore,
    };
}

/** The nodes that an id like 12, or 5:12 for one within a subgraph, leads through, it being the last; none where there is no such node. */
function pathTo(graph, id) {
    const [first, ...inner] = String(id).split(":"), node = graph?.getNodeById(Number(first));
    if (!node || !inner.length) return node ? [node] : [];
    const within = pathTo(node.subgraph, inner.join(":"));
    return within.length ? [node, ...within] : [];
}
